#!/usr/bin/env bash
# Guess: an exponential moving average with decay 0.9 takes a tenth of each weight's change in an update, whatever module holds it.
# Happens: a weight that two modules share is updated twice each time, so its decay is 0.9 squared: it follows the student faster than
#   all others, by the factor by which it is shared. Nothing is said.
# Source: timm.utils.ModelEmaV3.update pairs the values of two state_dicts, and a state_dict lists a shared tensor once per name.
# Seen: after one update from 0 to 1 with decay 0.9: own weight 0.10, shared weight 0.19
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
from timm.utils import ModelEmaV3
from torch import nn


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        self.own, self.first, self.second = (nn.Linear(2, 2, bias=False) for _ in range(3))
        self.second.weight = self.first.weight


student = Student()
for weight in student.parameters():
    nn.init.zeros_(weight)
average = ModelEmaV3(student, decay=0.9)
for weight in student.parameters():
    nn.init.ones_(weight)
average.update(student)
own, shared = (layer.weight[0, 0].item() for layer in (average.module.own, average.module.first))
print("python", sys.version.split()[0], "torch", torch.__version__, "timm", timm.__version__)
print(f"after one update from 0 to 1 with decay 0.9: own weight {own:.2f}, shared weight {shared:.2f}")
if (round(own, 2), round(shared, 2)) != (0.1, 0.19):
    sys.exit("changed: shared weights are averaged like the others")
PY
