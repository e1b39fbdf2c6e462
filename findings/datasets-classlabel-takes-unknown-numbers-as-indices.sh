#!/usr/bin/env bash
# Guess: a text that is not among the names of a ClassLabel is an error, as "cat" is.
# Happens: a text that reads as a number is taken for the index of a class. With the names "1", "2", "3", a stray "0" becomes class "1", and
#   labels counted from 0 against names counted from 1 become other classes, two of them one. Only numbers out of range raise an error.
# Source: ClassLabel._strval2int in datasets/features/features.py.
# Seen: "0", "1", "2" become classes 1, 1, 2
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet datasets==5.2.0
venv/bin/python - <<'PY'
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
import datasets

datasets.disable_progress_bars()
label = datasets.ClassLabel(names=["1", "2", "3"])
rows = datasets.Dataset.from_dict({"label": ["0", "1", "2"]}).cast_column("label", label)
found = label.int2str(rows["label"][:])
print("python", sys.version.split()[0], "datasets", datasets.__version__)
print("labels 0, 1, 2 become classes", *found)
if found != ["1", "1", "2"]:
    sys.exit("changed: numbers that are no names are refused")
PY
