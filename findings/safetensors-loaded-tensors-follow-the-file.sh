#!/usr/bin/env bash
# Guess: what `safetensors.torch.load_file` returns is in memory: the file may change afterwards, as with `torch.load`.
# Happens: on a CPU the tensors are views of the file, which is mapped into memory. If something writes into that same file (`cp` over it,
#   `rsync --inplace`, `open(path, "r+b")`), tensors that were loaded before get the new values. save_file to the same path is safe, since
#   it makes a new file; so are safetensors.numpy.load_file and load_state_dict without assign=True, which copy.
# Source: `backend` of load_file in safetensors/torch.py, "mmap" by default (pull request 760 of safetensors/safetensors).
# Seen: loaded before the file was overwritten: torch 1.0, numpy 0.0; before save_file: torch 0.0
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet safetensors==0.8.0 torch==2.14.1 numpy==2.4.6
venv/bin/python - <<'PY'
import sys

import numpy
import safetensors
import safetensors.numpy
import safetensors.torch
import torch

old, new = torch.zeros(1000), torch.ones(1000)
safetensors.torch.save_file({"weight": new}, "new.safetensors")

safetensors.torch.save_file({"weight": old}, "a.safetensors")
by_torch = safetensors.torch.load_file("a.safetensors")["weight"]
by_numpy = safetensors.numpy.load_file("a.safetensors")["weight"]
with open("new.safetensors", "rb") as source, open("a.safetensors", "r+b") as target:
    target.write(source.read())  # as many bytes as before

safetensors.torch.save_file({"weight": old}, "b.safetensors")
before = safetensors.torch.load_file("b.safetensors")["weight"]
safetensors.torch.save_file({"weight": new}, "b.safetensors")

found = (float(by_torch.mean()), float(by_numpy.mean()), float(before.mean()))
print("safetensors", safetensors.__version__, "torch", torch.__version__, "numpy", numpy.__version__)
print(f"loaded before the file was overwritten: torch {found[0]}, numpy {found[1]}; before save_file: torch {found[2]}")
if found != (1.0, 0.0, 0.0):
    sys.exit("changed: other values")
PY
