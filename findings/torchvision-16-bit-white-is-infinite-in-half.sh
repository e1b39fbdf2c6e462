#!/usr/bin/env bash
# Guess: ToDtype(torch.float16, scale=True) brings a 16-bit image to 0 to 1, as it does with bytes.
# Happens: it casts before it divides. Values above 65519 are infinite in fp16, so white pixels, which saturated 16-bit images are full of,
#   become inf, and BatchNorm makes nan of them. fp32 and bf16 are right.
# Source: to_dtype_image in torchvision/transforms/v2/functional/_misc.py; decode_image gives 16-bit PNG files as uint16.
# Seen: 0, 32768, 65535 become 0, 0.5, inf in float16, 0, 0.5, 1 in float32
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.14.1 torchvision==0.29.1 numpy==2.4.6 pillow==13.0.0
venv/bin/python - <<'PY'
import sys

import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision.io import decode_image
from torchvision.transforms.v2.functional import to_dtype

Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16)).save("gray.png")
image = decode_image("gray.png")
half, single = ([round(v, 2) for v in to_dtype(image, kind, scale=True).flatten().tolist()] for kind in (torch.float16, torch.float32))
print("python", sys.version.split()[0], "torch", torch.__version__, "torchvision", torchvision.__version__)
print(image.dtype, image.flatten().tolist(), "float16", half, "float32", single)
if half != [0, 0.5, float("inf")] or single != [0, 0.5, 1]:
    sys.exit("changed: 16 bits are scaled otherwise")
PY
