#!/usr/bin/env bash
# Guess: kornia's augmentations are modules, so a network that begins with them stops augmenting after eval(), as dropout and Keras's
#   augmentation layers do.
# Happens: they augment in every mode. A network with its augmentation inside is evaluated on augmented images, with other results each time.
# Source: no augmentation reads `self.training`: kornia/augmentation.
# Seen: in training and in eval mode a flip of probability 1 gives 3, 2, 1, 0
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet kornia==0.9.0 torch==2.14.1 numpy==2.4.6
venv/bin/python - <<'PY'
import sys
import warnings

warnings.simplefilter("ignore")
import kornia
import torch

network = torch.nn.Sequential(kornia.augmentation.RandomHorizontalFlip(p=1.0), torch.nn.Dropout(p=0.5))
images = torch.arange(4.0).view(1, 1, 1, 4)
found = {}
for mode in ("train", "eval"):
    getattr(network, mode)()
    found[mode] = network[0](images).flatten().tolist()
dropped = torch.equal(network[1](images), images)
print("python", sys.version.split()[0], "torch", torch.__version__, "kornia", kornia.__version__)
print("0, 1, 2, 3 becomes", found, "and dropout is", "off" if dropped else "on", "in eval mode")
if found["eval"] != [3, 2, 1, 0] or not dropped:
    sys.exit("changed: eval mode turns augmentation off")
PY
