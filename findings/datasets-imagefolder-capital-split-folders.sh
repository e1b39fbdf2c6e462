#!/usr/bin/env bash
# Guess: folders Train/ and Test/ are the splits train and test, as folders train/ and test/ are.
# Happens: split words count in small letters alone. With capital letters all pictures become one split, train, with the
#   right labels: nothing looks wrong, and whoever trains on it has trained on the test pictures.
# Source: datasets/data_files.py, SPLIT_KEYWORDS, compared as they stand; the documentation names the words without saying so
#   (https://huggingface.co/docs/datasets/repository_structure).
# Seen: train, test: {'train': 2, 'test': 2}; Train, Test: {'train': 4}; classes ['cat', 'dog'] both times
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet datasets==5.2.0 pillow==13.0.0
export HF_HOME="$home/cache" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1
venv/bin/python - <<'PY'
import sys
from pathlib import Path

import datasets
import PIL
from datasets import load_dataset
from PIL import Image

print("python", sys.version.split()[0], "datasets", datasets.__version__, "pillow", PIL.__version__)
given = []
for home, splits in (("small", ("train", "test")), ("capital", ("Train", "Test"))):
    for split in splits:
        for name in ("cat", "dog"):
            path = Path(home) / split / name / f"{split}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16)).save(path)
    found = load_dataset("imagefolder", data_dir=home)
    given.append({split: len(rows) for split, rows in found.items()})
    print(f"{', '.join(splits)}: {given[-1]}; classes {found['train'].features['label'].names}")
if given != [{"train": 2, "test": 2}, {"train": 4}]:
    sys.exit("changed: capital letters have another effect")
PY
