#!/usr/bin/env bash
# Guess: moving a module to the device on which it lies changes nothing: `module.to(device)` leaves its tensors as they are.
# Happens: "cpu" and "cpu:0" are one device with two names, but not to `to`: every buffer is replaced by a copy, whose device is "cpu"
#   again, so the next call copies once more. Parameters stay the same objects. Accelerate moves networks to "cpu:0" in some set-ups, and
#   whoever has kept the network's tensors before, to average weights and BatchNorm's statistics, say, then watches buffers that are dead.
# Source: torch.nn.Module._apply assigns `param.data` but replaces entries of `_buffers`; torch.device("cpu") != torch.device("cpu:0").
# Seen: device before: cpu, after: cpu; same parameter: True; same buffer: False
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.14.1 numpy==2.4.6
venv/bin/python - <<'PY'
import sys

import torch
from torch import nn

network = nn.BatchNorm1d(3)
weight, mean = network.weight, network.running_mean
before = mean.device
network.to("cpu:0")
same_parameter, same_buffer = network.weight is weight, network.running_mean is mean
print("python", sys.version.split()[0], "torch", torch.__version__)
print(f"device before: {before}, after: {network.running_mean.device};", end=" ")
print(f"same parameter: {same_parameter}; same buffer: {same_buffer}")

network(torch.randn(8, 3) + 5)  # in training mode, which updates the statistics
print("running mean that was kept:", mean.tolist(), "running mean of the network:", network.running_mean.tolist())
if same_buffer or not same_parameter or network.running_mean.device != before:
    sys.exit("changed: a buffer is no longer replaced by a copy on the same device")
PY
