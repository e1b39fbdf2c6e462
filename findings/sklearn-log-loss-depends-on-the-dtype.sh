#!/usr/bin/env bash
# Guess: log_loss of the same probabilities is the same in fp16, fp32 and fp64, to rounding.
# Happens: probabilities are clipped to the eps of their own type first, so that a class of probability 0 costs 7 in fp16, 16 in fp32 and 36 in
#   fp64. Softmax of a sure network holds such zeros: its negative log-likelihood is then mostly a matter of the type.
# Source: documentation of sklearn.metrics.log_loss, on clipping; finfo(y_proba.dtype).eps in sklearn/metrics/_classification.py.
# Seen: log loss of the same probabilities: {'float16': 3.81, 'float32': 8.32, 'float64': 18.37}
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet scikit-learn==1.9.1 numpy==2.4.6
venv/bin/python - <<'PY'
import sys

import numpy as np
import sklearn
from sklearn.metrics import log_loss

probabilities, labels = np.array([[1.0, 0.0], [0.5, 0.5]]), [1, 0]
found = {
    kind.__name__: round(float(log_loss(labels, probabilities.astype(kind))), 2) for kind in (np.float16, np.float32, np.float64)
}
print("python", sys.version.split()[0], "scikit-learn", sklearn.__version__, "numpy", np.__version__)
print("log loss of the same probabilities:", found)
if found != {"float16": 3.81, "float32": 8.32, "float64": 18.37}:
    sys.exit("changed: probabilities are clipped otherwise")
PY
