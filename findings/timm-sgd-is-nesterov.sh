#!/usr/bin/env bash
# Guess: create_optimizer_v2(model, opt="sgd") is torch.optim.SGD with the learning rate and momentum given: one recipe, two spellings.
# Happens: it sets nesterov=True, so a step goes along the gradient plus momentum, and the first one is already 1.9 times as long at
#   momentum 0.9. The classical momentum of most CIFAR recipes is called "momentum" there.
# Source: timm's registry of optimizers, timm/optim/_optim_factory.py, whose description of "sgd" says so; the name does not.
# Seen: first step at learning rate 1 and gradient 1: torch SGD -1.0, timm sgd -1.9, timm momentum -1.0
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet timm==1.0.31 torch==2.14.1
venv/bin/python - <<'PY'
import sys

import timm
import torch
from timm.optim import create_optimizer_v2
from torch import nn


def first_step(build):
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    optimizer = build(layer)
    layer(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    return round(layer.weight.item(), 4)


steps = {
    "torch SGD": first_step(lambda layer: torch.optim.SGD(layer.parameters(), lr=1.0, momentum=0.9)),
    "timm sgd": first_step(lambda layer: create_optimizer_v2(layer, opt="sgd", lr=1.0, momentum=0.9)),
    "timm momentum": first_step(lambda layer: create_optimizer_v2(layer, opt="momentum", lr=1.0, momentum=0.9)),
}
print("python", sys.version.split()[0], "torch", torch.__version__, "timm", timm.__version__)
print("first step at learning rate 1 and gradient 1:", ", ".join(f"{name} {step}" for name, step in steps.items()))
if list(steps.values()) != [-1.0, -1.9, -1.0]:
    sys.exit('changed: "sgd" is classical momentum')
PY
