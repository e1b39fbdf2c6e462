#!/usr/bin/env bash
# Guess: define_metric("val/*", step_metric="epoch") names the axis of plots; a row that is logged without `epoch` has none.
# Happens: the client adds the axis to each such row: the last value that was logged, and 0 in a run that logged none. So a
#   run that only evaluates has an epoch 0 in its history and summary, which filters and tables then show.
# Source: docstring of wandb.Run.define_metric, `step_sync`: "Automatically insert the last value of step_metric", where a row has none, by
#   default. It does not say what is inserted where no value was ever logged.
# Seen: logged {'val/accuracy': 0.5}; recorded: val/accuracy 0.5, epoch 0
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet wandb==0.31.0
export WANDB_MODE=offline WANDB_SILENT=true WANDB_DIR="$home" HOME="$home"
venv/bin/python - <<'PY'
import glob
import struct
import sys
from pathlib import Path

import wandb
from wandb.proto.wandb_internal_pb2 import Record

print("python", sys.version.split()[0], "wandb", wandb.__version__)
run = wandb.init(project="p")
run.define_metric("epoch")
run.define_metric("val/*", step_metric="epoch")
run.log({"val/accuracy": 0.5})
run.finish()

# The file that the run has left: after 7 bytes, records of checksum, length, kind (1: whole) and content.
content, position, recorded = Path(glob.glob("wandb/offline-run-*/*.wandb")[0]).read_bytes(), 7, {}
while position + 7 <= len(content):
    _, length, kind = struct.unpack_from("<IHB", content, position)
    position += 7 + length
    record = Record()
    if kind == 1:
        record.ParseFromString(content[position - length : position])
    for item in record.history.item:
        key = item.key or "/".join(item.nested_key)
        if not key.startswith("_"):
            recorded[key] = item.value_json
print("logged: {'val/accuracy': 0.5}; recorded:", recorded)
if recorded != {"val/accuracy": "0.5", "epoch": "0"}:
    sys.exit("changed: no axis is added to a row without it")
PY
