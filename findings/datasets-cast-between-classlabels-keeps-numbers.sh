#!/usr/bin/env bash
# Guess: casting a column of named classes to a ClassLabel with the same names in another order, a teacher's say, keeps each row's class.
# Happens: the numbers stay and get the new names, so every cat becomes a dog; nothing is raised. A cast to string is no way round, since it
#   gives the numbers as text. align_labels_with_mapping keeps the classes; concatenate_datasets refuses two orders.
# Source: issue 8494 of huggingface/datasets, open: a cast that leaves the Arrow type alone changes the metadata and looks at no value.
# Seen: before cat, dog, dog; after the cast dog, cat, cat; after align_labels_with_mapping cat, dog, dog; concatenate_datasets ValueError
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet datasets==5.2.0
venv/bin/python - <<'PY'
import sys

import datasets
from datasets import ClassLabel, Dataset, Features

datasets.disable_progress_bars()
ours, theirs = ClassLabel(names=["cat", "dog"]), ClassLabel(names=["dog", "cat"])
pets = Dataset.from_dict({"label": ["cat", "dog", "dog"]}, features=Features({"label": ours}))


def names(dataset):
    return dataset.features["label"].int2str(list(dataset["label"]))


cast = pets.cast_column("label", theirs)
aligned = pets.align_labels_with_mapping({"dog": 0, "cat": 1}, "label")
try:
    datasets.concatenate_datasets([pets, cast])
    together = "accepted"
except ValueError:
    together = "ValueError"
print("python", sys.version.split()[0], "datasets", datasets.__version__)
print("before", names(pets), "after the cast", names(cast), "aligned", names(aligned), aligned.features["label"].names)
print("cast to string", list(pets.cast_column("label", datasets.Value("string"))["label"]))
print("concatenate_datasets of both orders:", together)
kept = names(pets) == names(aligned) == ["cat", "dog", "dog"] and together == "ValueError"
if not kept or names(cast) != ["dog", "cat", "cat"]:
    sys.exit("changed: a cast between two orders of names keeps the classes")
PY
