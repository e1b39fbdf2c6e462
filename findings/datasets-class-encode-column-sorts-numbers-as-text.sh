#!/usr/bin/env bash
# Guess: class_encode_column makes a ClassLabel of a column of integers 0 to C-1 without changing them: 2 stays 2.
# Happens: the numbers become text and are sorted as text, so from eleven classes on they are renumbered: 2 becomes 4 and 10 becomes 2.
#   Nothing is said. Logits or weights of a teacher that was trained on the old numbers no longer fit the labels, and neither does a
#   test split that was left as it was.
# Source: Dataset.class_encode_column; that it sorts is the subject of https://github.com/huggingface/datasets/issues/3762
# Seen: before [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]; after [0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 2, 3]; cast_column keeps them
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet datasets==5.2.0
export HF_HOME="$home/hub" HF_DATASETS_OFFLINE=1
venv/bin/python - <<'PY'
import sys

import datasets

datasets.disable_progress_bars()
before = datasets.Dataset.from_dict({"label": list(range(12))})
encoded = before.class_encode_column("label")
cast = before.cast_column("label", datasets.ClassLabel(num_classes=12))
print("python", sys.version.split()[0], "datasets", datasets.__version__)
print("before", before["label"][:])
print("after class_encode_column", encoded["label"][:], "names", encoded.features["label"].names)
print("after cast_column", cast["label"][:])
if encoded["label"][:] != [0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 2, 3] or cast["label"][:] != before["label"][:]:
    sys.exit("changed: class_encode_column keeps the numbers of a column of integers")
PY
