#!/usr/bin/env bash
# Guess: saving the same tensors and metadata twice gives the same file, since tensors are sorted and the format has no date.
# Happens: two entries of metadata or more are written in a random order, even within one process, so that digests of equal files differ.
# Source: issue 584 of huggingface/safetensors, "Metadata written in random order", open; the writer goes through a hash map.
# Seen: 20 times saved: without metadata 1 digest, with one entry 1 digest, with twelve entries 20 digests
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet safetensors==0.8.0 numpy==2.4.6
venv/bin/python - <<'PY'
import hashlib
import sys

import numpy as np
import safetensors
from safetensors.numpy import save


def digests(metadata):
    tensors = {"logits": np.zeros((2, 3), np.float16)}
    return len({hashlib.sha256(save(tensors, metadata=metadata)).hexdigest() for _ in range(20)})


none, one, twelve = digests(None), digests({"split": "train"}), digests({f"split{n}": "train" for n in range(12)})
print("python", sys.version.split()[0], "safetensors", safetensors.__version__)
print(f"20 times saved: without metadata {none} digest, with one entry {one} digest, with twelve entries {twelve} digests")
if (none, one) != (1, 1) or twelve == 1:
    sys.exit("changed: the order of metadata is fixed, or more than that is not")
PY
