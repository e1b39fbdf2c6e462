#!/usr/bin/env bash
# Guess: load_dataset("webdataset") reads every file of the archive, or says which it cannot place.
# Happens: the first five samples decide which columns there are. Files of later samples with another extension are dropped without a word: a
#   sixth image that is .jpg among .png is None.
# Source: NUM_EXAMPLES_FOR_FEATURES_INFERENCE in datasets/packaged_modules/webdataset/webdataset.py.
# Seen: columns png and cls; images 5 of 6, the sixth None
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet datasets==5.2.0 pillow==13.0.0
venv/bin/python - <<'PY'
import io
import os
import sys
import tarfile

os.environ["HF_HUB_OFFLINE"] = "1"
import datasets
import PIL
from PIL import Image

datasets.disable_progress_bars()
with tarfile.open("images.tar", "w") as archive:
    for number in range(6):
        extension = "jpg" if number == 5 else "png"
        image = io.BytesIO()
        Image.new("RGB", (4, 4)).save(image, {"jpg": "JPEG", "png": "PNG"}[extension])
        for name, content in ((f"{number}.{extension}", image.getvalue()), (f"{number}.cls", b"1")):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
rows = datasets.load_dataset("webdataset", data_files={"train": ["images.tar"]}, split="train", cache_dir="cache")
missing = [number for number, image in enumerate(rows["png"]) if image is None]
print("python", sys.version.split()[0], "datasets", datasets.__version__, "pillow", PIL.__version__)
print("columns", sorted(rows.column_names), "images", len(rows) - len(missing), "of", len(rows), "missing", missing)
if "jpg" in rows.column_names or missing != [5]:
    sys.exit("changed: later samples have their files")
PY
