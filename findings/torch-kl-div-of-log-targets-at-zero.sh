#!/usr/bin/env bash
# Guess: kl_div of a teacher's log-probabilities with log_target=True is kl_div of its probabilities, only more exact.
# Happens: a class that the teacher rules out, probability 0 and log-probability -inf, adds 0 with probabilities and makes the sum NaN with
#   log_target=True, which multiplies 0 by infinity. Teachers with masked classes, or probabilities that went through half precision, have
#   such classes. Large negative logits in place of -inf avoid it.
# Source: exp(target) * (target - input) in the documentation of torch.nn.KLDivLoss. Its formula for probabilities would give NaN as well;
#   the code counts a probability of 0 as 0 (kl_div in aten/src/ATen/native/Loss.cpp).
# Seen: with probabilities 0.0326, with log_target=True nan, torch.distributions 0.0326, with -1e4 in place of -inf 0.0326
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.14.1 numpy==2.4.6
venv/bin/python - <<'PY'
import math
import sys

import torch
import torch.nn.functional as F
from torch.distributions import Categorical, kl_divergence


def log_probabilities(*logits):
    return torch.log_softmax(torch.tensor([logits]), dim=1)


student = log_probabilities(1.0, 2.0, 3.0, 0.0)
masked, large = log_probabilities(1.0, 2.0, 3.0, -math.inf), log_probabilities(1.0, 2.0, 3.0, -1e4)
seen = {
    "with probabilities": F.kl_div(student, masked.exp(), reduction="sum"),
    "with log_target=True": F.kl_div(student, masked, reduction="sum", log_target=True),
    "torch.distributions": kl_divergence(Categorical(logits=masked), Categorical(logits=student)).sum(),
    "with -1e4 in place of -inf": F.kl_div(student, large, reduction="sum", log_target=True),
}
print("python", sys.version.split()[0], "torch", torch.__version__)
for name, value in seen.items():
    print(f"{name}: {value:.4f}")
values = [round(float(value), 4) for value in seen.values()]
if not math.isnan(values[1]) or not values[0] == values[2] == values[3] > 0:
    sys.exit("changed: log_target=True counts classes of probability 0 in another way")
PY
