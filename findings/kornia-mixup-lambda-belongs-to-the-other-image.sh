#!/usr/bin/env bash
# Guess: the lambda beside two labels of a mixed image is the share of the first, the image's own, as in the papers, timm and torchvision.
# Happens: RandomMixUpV2 gives (own label, other label, share of the other). A loss that weights the first label by it learns the wrong shares
#   wherever they are not one half.
# Source: loss_mixup in the documentation of RandomMixUpV2, kornia.augmentation.
# Seen: images of 0 and 1 mixed: value 0.132, labels 0 and 1, lambda 0.132
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

torch.manual_seed(0)
images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 8, 8).contiguous()
mix = kornia.augmentation.RandomMixUpV2(p=1.0, data_keys=["input", "class"])
for _ in range(100):
    mixed, labels = mix(images, torch.tensor([0, 1]))
    own, other, share = labels[0].tolist()
    if own != other and abs(share - 0.5) > 0.1:  # a pair of different images, at shares that tell
        break
value = mixed[0].mean().item()
print("python", sys.version.split()[0], "torch", torch.__version__, "kornia", kornia.__version__)
print(f"images of 0 and 1 mixed: value {value:.3f}, labels {own:g} and {other:g}, lambda {share:.3f}")
if (own, other) != (0, 1) or abs(value - share) > 1e-5:
    sys.exit("changed: lambda is the share of the first label")
PY
