#!/usr/bin/env bash
# Guess: torchinfo's "total mult-adds" of a linear layer grow with the tokens that go through it.
# Happens: a linear layer counts once per image, whatever the number of tokens, so that a vision transformer seems to cost a fraction of what
#   it does; attention itself is not counted at all. Convolutional networks are right, so a comparison of both is not.
# Source: issue 77 of TylerYep/torchinfo and pull request 318, which mends it after the last release, 1.8.0.
# Seen: one token 4096, 50 tokens 4096 (64 x 64 weights)
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torchinfo==1.8.0 torch==2.14.1 numpy==2.4.6
venv/bin/python - <<'PY'
import sys
from importlib.metadata import version

import torch
import torchinfo

layer = torch.nn.Linear(64, 64, bias=False)
found = [torchinfo.summary(layer, input_size=(1, tokens, 64), verbose=0).total_mult_adds for tokens in (1, 50)]
print("python", sys.version.split()[0], "torch", torch.__version__, "torchinfo", version("torchinfo"))
print(f"multiply-adds of 64 x 64 weights: one token {found[0]}, 50 tokens {found[1]}")
if found != [4096, 4096]:
    sys.exit("changed: tokens count")
PY
