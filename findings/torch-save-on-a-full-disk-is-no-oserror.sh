#!/usr/bin/env bash
# Guess: torch.save to a path on a full disk raises OSError, as any writing in Python does, so `except OSError` catches it.
# Happens: it raises RuntimeError. While a tensor is written its text names PytorchStreamWriter and "file write failed"; the first error
#   is then replaced by one of closing the archive, "[enforce fail at inline_container.cc] . unexpected pos N vs M", which names no disk.
# Source: caffe2/serialize/inline_container.cc, PyTorchStreamWriter::writeEndOfFile; torch/serialization.py, _open_zipfile_writer.__exit__.
#   The largest size of a file that a process may write (RLIMIT_FSIZE) stands in for a full disk here.
# Seen: RuntimeError: [enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598; is an OSError: False
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.14.1 numpy==2.4.6
venv/bin/python - <<'PY'
import resource
import signal
import sys

import torch

print("python", sys.version.split()[0], "torch", torch.__version__)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python has it: the call fails instead
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
try:
    torch.save({"weights": torch.ones(100_000)}, "weights.pt")
except Exception as error:
    found = error
    first = str(found).splitlines()[0]
    print(f"{type(found).__name__}: {first}; is an OSError: {isinstance(found, OSError)}")
try:
    with open("plain.bin", "wb") as file:
        file.write(bytes(400_000))
except OSError as error:
    print("a plain file:", type(error).__name__, error.strerror)
if type(found) is not RuntimeError or "inline_container" not in str(found):
    sys.exit("changed: another error of a disk without room")
PY
