#!/usr/bin/env bash
# Guess: n_bins=1 puts all predictions into one bin, so that the calibration error is |mean confidence - accuracy|.
# Happens: predictions of exactly 1 are counted in one more bin of their own. fp32 softmax gives such from a lead of about 17 in logits on,
#   so errors of sure networks differ from the definition with n_bins bins (Guo et al., ICML 2017), where the last bin holds its end.
# Source: issue 3510 of Lightning-AI/torchmetrics, open; _binning_bucketize in functional/classification/calibration_error.py.
# Seen: confidence 1.00 and wrong, 0.95 and right: error with one bin 0.525, |mean confidence - accuracy| 0.475
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torchmetrics==1.9.0 torch==2.14.1
venv/bin/python - <<'PY'
import sys

import torch
import torchmetrics
from torchmetrics.functional.classification import multiclass_calibration_error

logits = torch.tensor([[20.0, 0.0], [2.944439, 0.0]])  # softmax: 1 in fp32, and 0.95
labels = torch.tensor([1, 0])
confidence, predicted = logits.softmax(1).max(1)
wanted = (confidence.mean() - (predicted == labels).float().mean()).abs().item()
found = multiclass_calibration_error(logits, labels, num_classes=2, n_bins=1).item()
print("python", sys.version.split()[0], "torch", torch.__version__, "torchmetrics", torchmetrics.__version__)
print(f"confidence {confidence[0]:.2f} and wrong, {confidence[1]:.2f} and right: ", end="")
print(f"error with one bin {found:.3f}, |mean confidence - accuracy| {wanted:.3f}")
if (round(found, 3), round(wanted, 3)) != (0.525, 0.475):
    sys.exit("changed: the last bin holds its end")
PY
