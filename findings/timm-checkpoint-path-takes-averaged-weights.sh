#!/usr/bin/env bash
# Guess: of one checkpoint of timm's own training script, create_model(checkpoint_path=...) and resume_checkpoint read the same weights.
# Happens: create_model, through load_checkpoint with use_ema=True, takes the moving average where the file has one, resume_checkpoint the
#   plain weights. A teacher read one way has another accuracy than the one read the other way, and nothing is said below log level INFO.
# Source: load_state_dict and resume_checkpoint in timm/models/_helpers.py. timm's validate.py passes use_ema=False unless it has --use-ema.
# Seen: file with plain weights 1 and averaged weights 2: create_model 2.0, load_checkpoint use_ema=False 1.0, resume_checkpoint 1.0
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
from timm.models import load_checkpoint, resume_checkpoint

NAME = "resnet10t"


def filled(value):
    model = timm.create_model(NAME, num_classes=2)
    return {key: torch.full_like(tensor, value) for key, tensor in model.state_dict().items()}


torch.save({"state_dict": filled(1), "state_dict_ema": filled(2), "epoch": 3}, "checkpoint.pth.tar")
created = timm.create_model(NAME, num_classes=2, checkpoint_path="checkpoint.pth.tar")
loaded, resumed = timm.create_model(NAME, num_classes=2), timm.create_model(NAME, num_classes=2)
load_checkpoint(loaded, "checkpoint.pth.tar", use_ema=False)
resume_checkpoint(resumed, "checkpoint.pth.tar")
seen = {"create_model": created, "load_checkpoint use_ema=False": loaded, "resume_checkpoint": resumed}
weights = {name: model.get_classifier().weight.unique().tolist() for name, model in seen.items()}
print("python", sys.version.split()[0], "timm", timm.__version__, "torch", torch.__version__)
for name, found in weights.items():
    print(f"{name}: weights {found}")
if list(weights.values()) != [[2.0], [1.0], [1.0]]:
    sys.exit("changed: the functions choose other weights of the checkpoint")
PY
