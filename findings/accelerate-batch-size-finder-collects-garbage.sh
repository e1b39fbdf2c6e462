#!/usr/bin/env bash
# Guess: a function wrapped by `accelerate.utils.find_executable_batch_size` costs nothing more while memory suffices; Python's
#   garbage is collected and the device's cache emptied after an out-of-memory error, before the next try.
# Happens: both are done at the start of every call, also where nothing ever fails. With torch imported a collection takes a
#   few tenths of a second, so a wrapped function that is called per batch or per split is many times slower.
# Source: accelerate/utils/memory.py, find_executable_batch_size.decorator and clear_device_cache.
# Seen: 5 calls without an error: 5 full collections
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet accelerate==1.15.0 torch==2.14.1
venv/bin/python - <<'PY'
import gc
import sys

import accelerate
from accelerate.utils import find_executable_batch_size

print("python", sys.version.split()[0], "accelerate", accelerate.__version__)


def full_collections():
    return gc.get_stats()[2]["collections"]


work = find_executable_batch_size(lambda batch_size: batch_size, starting_batch_size=8)
gc.disable()  # none but those that are asked for
before = full_collections()
results = [work() for _ in range(5)]
seen = full_collections() - before
print(f"{len(results)} calls without an error: {seen} full collections")
if results != [8] * 5 or seen != 5:
    sys.exit("changed: a call that succeeds does not collect garbage")
PY
