#!/usr/bin/env bash
# Guess: Image(mode="RGB") makes 16-bit gray images (X-rays, microscopy) into 8-bit color, dark pixels dark and bright ones bright.
# Happens: the conversion is Pillow's, which clips at 255 and does not scale: all but the darkest 0.4% of the range is white, without a word.
#   torchvision's decode_image keeps 16 bits in the same mode.
# Source: issue 3011 of python-pillow/Pillow; datasets/features/image.py, which calls convert.
# Seen: gray of 0, 16384, 32768, 65535 becomes 0, 255, 255, 255
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet datasets==5.2.0 pillow==13.0.0
venv/bin/python - <<'PY'
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
import datasets
import numpy as np
import PIL
from PIL import Image

Image.fromarray(np.array([[0, 16384, 32768, 65535]], dtype=np.uint16)).save("gray.png")
rows = datasets.Dataset.from_dict({"image": ["gray.png"]}).cast_column("image", datasets.Image(mode="RGB"))
values = np.asarray(rows[0]["image"])[0, :, 0].tolist()
print("python", sys.version.split()[0], "datasets", datasets.__version__, "pillow", PIL.__version__)
print("gray of 0, 16384, 32768, 65535 becomes", values)
if values != [0, 255, 255, 255]:
    sys.exit("changed: 16 bits are converted otherwise")
PY
