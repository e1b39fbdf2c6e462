#!/usr/bin/env bash
# Guess: `imagefolder` reads every picture that Pillow reads, or says what it leaves out.
# Happens: it goes by a list of suffixes that was taken from Pillow once. AVIF, which Pillow reads, is not on it, and neither
#   is a file without a suffix. Such pictures are left out without a word, and a class that has no others is no class.
# Source: datasets/packaged_modules/imagefolder/imagefolder.py, IMAGE_EXTENSIONS; _split_files_and_metadata_and_archives in
#   folder_based_builder.py drops every other file and logs nothing, not even for debugging.
# Seen: 4 of 8 pictures; classes ['cat', 'dog'], though Pillow opens all 8
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
for name in ("cat/{}.png", "dog/{}.png", "owl/{}.avif", "fox/{}"):
    for number in (1, 2):
        path = Path("animals") / name.format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(path, format="AVIF" if path.suffix == ".avif" else "PNG")
there = sorted(path for path in Path("animals").rglob("*") if path.is_file())
for path in there:
    Image.open(path).load()
found = load_dataset("imagefolder", data_dir="animals")["train"]
names = found.features["label"].names
print(f"{len(found)} of {len(there)} pictures; classes {names}, though Pillow opens all {len(there)}")
if (len(found), names) != (4, ["cat", "dog"]):
    sys.exit("changed: other pictures are read")
PY
