#!/usr/bin/env bash
# Guess: RandAugment with two operations of magnitude 9 is the same recipe in timm ("rand-m9-n2") and in torchvision (RandAugment(2, 9)).
# Happens: timm's magnitudes go to 10, torchvision's to 30: a rotation of 27 degrees here is one of 9 there. The paper has 30 in its text, its
#   code 10. timm also leaves out each operation with probability 0.5.
# Source: _LEVEL_DENOM in timm/data/auto_augment.py, num_magnitude_bins=31 in torchvision; issue 614 of tensorflow/tpu asks which one is meant.
# Seen: rotation at magnitude 9: timm 27 degrees, torchvision 9
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet timm==1.0.31 torch==2.14.1 torchvision==0.29.1
venv/bin/python - <<'PY'
import sys
from importlib.metadata import version

from timm.data.auto_augment import rand_augment_transform
from torchvision.transforms import v2

[rotate] = [op for op in rand_augment_transform("rand-m9-n2", {}).ops if op.name == "Rotate"]
timms = abs(rotate.level_fn(rotate.magnitude, rotate.hparams)[0])
policy = v2.RandAugment(2, 9)
magnitudes, _ = policy._AUGMENTATION_SPACE["Rotate"]
torchvisions = magnitudes(policy.num_magnitude_bins, 224, 224)[policy.magnitude].item()
print("python", sys.version.split()[0], *(f"{name} {version(name)}" for name in ("timm", "torch", "torchvision")))
print(f"rotation at magnitude 9: timm {timms:g} degrees, torchvision {torchvisions:g}; timm's probability {rotate.prob}")
if (timms, torchvisions, rotate.prob) != (27, 9, 0.5):
    sys.exit("changed: magnitude 9 means something else")
PY
