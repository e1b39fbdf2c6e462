#!/usr/bin/env bash
# Guess: parquet files that `datasets` has written carry the names of their classes, so each file is read by its own names.
# Happens: the names of the first file are taken for all files, of all splits. Where another file lists the same classes in
#   another order, its labels are exchanged, without a word.
# Source: datasets/packaged_modules/parquet/parquet.py, `_split_generators`: "if self.info.features is None", set once.
# Seen: a cat is a cat, a dog is a dog (first file); a cat is a dog, a dog is a cat (second file, and the test split)
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet datasets==5.2.0
export HF_HOME="$home/cache" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1
venv/bin/python - <<'PY'
import sys

import datasets
from datasets import ClassLabel, Dataset, Features, Value, load_dataset

print("python", sys.version.split()[0], "datasets", datasets.__version__)


def write(path, names):
    """One row for a cat and one for a dog, with the class names in this order."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    rows = {"text": ["cat", "dog"], "label": [names.index("cat"), names.index("dog")]}
    Dataset.from_dict(rows, features=features).to_parquet(path)
    [alone] = load_dataset("parquet", data_files=path).values()
    assert [alone.features["label"].int2str(row["label"]) for row in alone] == ["cat", "dog"]  # the file is sound


write("train-00000-of-00002.parquet", ["cat", "dog"])
write("train-00001-of-00002.parquet", ["dog", "cat"])
write("test-00000-of-00001.parquet", ["dog", "cat"])
found = load_dataset("parquet", data_files={"train": "train-*.parquet", "test": "test-*.parquet"})
given = {}
for split, rows in found.items():
    label = rows.features["label"]
    given[split] = [(row["text"], label.int2str(row["label"])) for row in rows]
    for text, name in given[split]:
        print(f"{split}: a {text} is read as a {name}")
exchanged = [("cat", "dog"), ("dog", "cat")]
if given != {"train": [("cat", "cat"), ("dog", "dog"), *exchanged], "test": exchanged}:
    sys.exit("changed: files are no longer read by the class names of the first one")
PY
