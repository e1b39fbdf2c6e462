#!/usr/bin/env bash
# Guess: under autocast a softmax is computed in fp32, on every device, so that a loss on log_softmax(logits) is exact.
# Happens: that is CUDA's list of operations. On the CPU softmax, log_softmax, logsumexp, norm and sum keep bf16, while cross_entropy, kl_div
#   and mse_loss go to fp32: kl_div then gets probabilities of 8 bits, and the same loss is less exact than on a GPU.
# Source: "Autocast Op Reference" of torch.amp: log_softmax stands in the fp32 list of CUDA, not in that of the CPU.
# Seen: log_softmax bfloat16, kl_div float32; KL divergence of two sets of logits 0.01704, in fp32 0.01922
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.14.1 numpy==2.4.6
venv/bin/python - <<'PY'
import sys

import torch
from torch.nn import functional as F

torch.manual_seed(0)
student = torch.randn(64, 100).bfloat16()
teacher = (student.float() + 0.2 * torch.randn(64, 100)).bfloat16()


def divergence(student, teacher):
    return F.kl_div(F.log_softmax(student, 1), F.log_softmax(teacher, 1), log_target=True, reduction="batchmean")


with torch.autocast("cpu", dtype=torch.bfloat16):
    logs, found = F.log_softmax(student, 1), divergence(student, teacher)
exact = divergence(student.float(), teacher.float())
print("python", sys.version.split()[0], "torch", torch.__version__)
print("log_softmax", logs.dtype, "kl_div", found.dtype, f"divergence {found:.5f}, in fp32 {exact:.5f}")
if (logs.dtype, found.dtype) != (torch.bfloat16, torch.float32) or abs(found / exact - 1) < 1e-3:
    sys.exit("changed: autocast computes log_softmax otherwise on the CPU")
PY
