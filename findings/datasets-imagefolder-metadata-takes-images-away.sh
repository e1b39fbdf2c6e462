#!/usr/bin/env bash
# Guess: a metadata.csv beside class folders adds columns: photographer, date. Pictures that it does not list stay, perhaps
#   with empty cells, and the folders stay the classes.
# Happens: the data set is what the table lists. Other pictures are gone, and there is no label column, without a word.
# Source: datasets/packaged_modules/folder_based_builder/folder_based_builder.py: "if `all_metadata_files` are found, don't
#   add labels". An error for pictures that are missing in the table was added once (huggingface/datasets pull request 4311).
# Seen: without the table 4 pictures, ['image', 'label']; with it 2 pictures, ['image', 'photographer']
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
for name in ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"):
    path = Path("animals") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16)).save(path)
given = []
for what in ("without the table", "with it"):
    found = load_dataset("imagefolder", data_dir="animals")["train"]
    given.append((len(found), found.column_names))
    print(f"{what}: {len(found)} pictures, {found.column_names}")
    Path("animals/metadata.csv").write_text("file_name,photographer\ncat/1.png,Ann\ndog/1.png,Bob\n")
if given != [(4, ["image", "label"]), (2, ["image", "photographer"])]:
    sys.exit("changed: a table beside class folders has another effect")
PY
