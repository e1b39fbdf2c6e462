#!/usr/bin/env bash
# Guess: MixUp finds images and labels of a batch that is a dictionary, whatever the order of its keys, or says that it cannot.
# Happens: labels are found by their name, but the image is the first tensor. In {"label": ..., "image": ...}, the order of some data sets, that
#   is the label itself: labels are mixed and images are not, without a word. CutMix and a third tensor in front raise errors. Images that are
#   tv_tensors.Image are found in any order.
# Source: documentation of transforms v2, where the first plain tensor is the image; Transform._needs_transform_list, torchvision.
# Seen: image first: images mixed True, labels mixed True; label first: images mixed False, labels mixed True
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
images, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
found = {}
for title, batch in (
    ("image first", {"image": images, "label": labels}),
    ("label first", {"label": labels, "image": images}),
):
    mixed = v2.MixUp(num_classes=4)(batch)
    found[title] = (not torch.equal(mixed["image"], images), bool((mixed["label"].amax(1) < 1).all()))
print("python", sys.version.split()[0], "torch", torch.__version__, "torchvision", torchvision.__version__)
for title, (of_images, of_labels) in found.items():
    print(f"{title}: images mixed {of_images}, labels mixed {of_labels}")
if found != {"image first": (True, True), "label first": (False, True)}:
    sys.exit("changed: the order of keys does not count")
PY
