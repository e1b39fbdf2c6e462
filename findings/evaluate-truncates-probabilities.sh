#!/usr/bin/env bash
# Guess: a metric that takes class numbers, as accuracy does, refuses probabilities or rounds them.
# Happens: each goes through int(), so 0.9 becomes class 0 without a word. Predictions that are all right get an accuracy of 1/3.
# Source: datasets/features/features.py, `Value.encode_example`: "return int(value)", called by EvaluationModule.add_batch.
#   The metric below is the Hub's `accuracy` (evaluate-metric/accuracy), without scikit-learn and the network.
# Seen: classes [1, 1, 0]: 1.0; probabilities [0.9, 0.8, 0.2] are taken as [0, 0, 0]: 0.3333333333333333
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet evaluate==0.4.6 datasets==5.2.0
export HF_HOME="$home/cache" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1
venv/bin/python - <<'PY'
import sys
from pathlib import Path

import datasets
import evaluate

print("python", sys.version.split()[0], "evaluate", evaluate.__version__, "datasets", datasets.__version__)
Path("share_right").mkdir()
Path("share_right/share_right.py").write_text('''
import datasets
import evaluate


class ShareRight(evaluate.Metric):
    def _info(self):
        numbers = datasets.Value("int32")
        features = datasets.Features({"predictions": numbers, "references": numbers})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        right = sum(a == b for a, b in zip(predictions, references))
        return {"taken": list(predictions), "accuracy": right / len(references)}
''')
metric = evaluate.load("./share_right")
classes = metric.compute(predictions=[1, 1, 0], references=[1, 1, 0])
shares = metric.compute(predictions=[0.9, 0.8, 0.2], references=[1, 1, 0])
print(f"classes [1, 1, 0]: {classes['accuracy']}; probabilities [0.9, 0.8, 0.2] are taken as {shares['taken']}: "
      f"{shares['accuracy']}")
if (classes["accuracy"], shares) != (1.0, {"taken": [0, 0, 0], "accuracy": 1 / 3}):
    sys.exit("changed: probabilities are taken otherwise")
PY
