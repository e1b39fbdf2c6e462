#!/usr/bin/env bash
# Guess: FlopCounterMode counts a backward pass of a convolution as two forward passes, whatever its groups.
# Happens: for grouped convolutions the gradient of the weight is counted as if there were one group, so that training a network of
#   depthwise convolutions (MobileNet, EfficientNet, ConvNeXt) seems to cost many times what it does. Forward passes are right.
# Source: pull request 183405 of pytorch/pytorch, closed; conv_backward_flop in torch/utils/flop_counter.py does not use its groups.
# Seen: forward and backward by forward: 3 with 1 group, 6 with 4, 18 with 16 (depthwise)
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.14.1 numpy==2.4.6
venv/bin/python - <<'PY'
import sys

import torch
from torch.utils.flop_counter import FlopCounterMode


def count(groups: int, backward: bool) -> int:
    convolution = torch.nn.Conv2d(16, 16, 3, padding=1, groups=groups, bias=False)
    images = torch.ones(2, 16, 8, 8, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        total = convolution(images).sum()
        if backward:
            total.backward()
    return counter.get_total_flops()


print("python", sys.version.split()[0], "torch", torch.__version__)
ratios = {groups: count(groups, True) / count(groups, False) for groups in (1, 4, 16)}
print("forward and backward by forward, of groups:", ratios)
if ratios != {1: 3, 4: 6, 16: 18}:
    sys.exit("changed: a backward pass counts otherwise")
PY
