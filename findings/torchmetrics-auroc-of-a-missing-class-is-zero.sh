#!/usr/bin/env bash
# Guess: a class without images has no AUROC, so that it is left out of the mean over classes, or makes it nan as in scikit-learn.
# Happens: it counts as 0, the worst there is, and a perfect classifier of two out of three classes has 0.67 (with a warning that names no
#   class). Average precision leaves it out, unless `thresholds` are given: then it is 0 there as well.
# Source: pull request 583 of Lightning-AI/torchmetrics, merged; _binary_roc_compute in functional/classification/roc.py.
# Seen: perfect on the two classes that have images, of three: AUROC 0.667, average precision 1.000, with 100 thresholds 0.667
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torchmetrics==1.9.0 torch==2.14.1
venv/bin/python - <<'PY'
import sys
import warnings

import torch
import torchmetrics
from torchmetrics.functional.classification import multiclass_auroc, multiclass_average_precision

warnings.simplefilter("ignore")
probabilities = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.1, 0.9, 0.0], [0.2, 0.8, 0.0]])
labels = torch.tensor([0, 0, 1, 1])
auroc = multiclass_auroc(probabilities, labels, num_classes=3).item()
precision = multiclass_average_precision(probabilities, labels, num_classes=3).item()
binned = multiclass_average_precision(probabilities, labels, num_classes=3, thresholds=100).item()
found = tuple(round(value, 3) for value in (auroc, precision, binned))
print("python", sys.version.split()[0], "torch", torch.__version__, "torchmetrics", torchmetrics.__version__)
print("AUROC {}, average precision {}, with 100 thresholds {}".format(*found))
if found != (0.667, 1.0, 0.667):
    sys.exit("changed: a class without images counts otherwise")
PY
