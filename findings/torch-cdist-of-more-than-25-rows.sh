#!/usr/bin/env bash
# Guess: the distance of two rows is the same, whatever else is in the batch, and that of a row to itself is 0.
# Happens: from 26 rows on torch.cdist multiplies matrices, |a|² + |b|² - 2ab, which cancels: in fp32 embeddings of norm 20 are 0.02 from
#   themselves, and distances below that are noise. Losses on pairwise distances (RKD, contrastive ones) change with the batch size.
# Source: `compute_mode` in the documentation of torch.cdist; issues 37734 and 123082 of pytorch/pytorch, open.
# Seen: largest distance of a row to itself 0 with 25 rows, 0.0175 with 26; neighbors at 0.0226: largest error 0.0000 and 0.0089
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.14.1 numpy==2.4.6
venv/bin/python - <<'PY'
import sys

import torch

torch.manual_seed(0)
rows = torch.randn(26, 512)
near = rows + 1e-3 * torch.randn(26, 512)
true = (rows - near).norm(dim=1)
itself, error = {}, {}
for count in (25, 26):
    itself[count] = torch.cdist(rows[:count], rows[:count]).diagonal().max().item()
    error[count] = (torch.cdist(rows[:count], near[:count]).diagonal() - true[:count]).abs().max().item()
print("python", sys.version.split()[0], "torch", torch.__version__)
print(f"neighbors are {true.mean():.4f} apart")
for count in (25, 26):
    print(f"{count} rows: largest distance to itself {itself[count]:.4f}, largest error of a neighbor's {error[count]:.4f}")
if itself[25] > 0 or error[25] > 1e-5 or itself[26] < 1e-3 or error[26] < 1e-3:
    sys.exit("changed: 25 and 26 rows are computed otherwise")
PY
