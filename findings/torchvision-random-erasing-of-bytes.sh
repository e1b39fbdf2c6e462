#!/usr/bin/env bash
# Guess: RandomErasing(value="random") fills its box with random pixels, in images of bytes from 0 to 255.
# Happens: it draws normal numbers (deviation 1) and casts them. In bytes about five of six values are nearly black (0 to 3), the rest nearly
#   white (252 to 255): values of -1 and below wrap around. Nothing is said, and version 2 of the transforms recommends bytes.
# Source: RandomErasing in torchvision/transforms/v2/_augment.py: torch.empty(..., dtype=torch.float32).normal_(), cast when the box is set.
# Seen: values in the box 0, 1, 2, 3, 252, 253, 254, 255
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.14.1 torchvision==0.29.1 numpy==2.4.6
venv/bin/python - <<'PY'
import sys

import torch
import torchvision
from torchvision.transforms import v2

torch.manual_seed(0)
images = torch.full((3, 64, 64), 128, dtype=torch.uint8)
erased = v2.RandomErasing(p=1, scale=(0.5, 0.5), value="random")(images)
values = sorted(set(erased[erased != 128].tolist()))
print("python", sys.version.split()[0], "torch", torch.__version__, "torchvision", torchvision.__version__)
print("values in the box:", values)
black, white = [value for value in values if value < 8], [value for value in values if value > 247]
if not black or not white or len(black) + len(white) != len(values):
    sys.exit("changed: the box has other values")
PY
