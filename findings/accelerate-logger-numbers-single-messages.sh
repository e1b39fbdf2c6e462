#!/usr/bin/env bash
# Guess: what `accelerate.logging.get_logger(...).info(text)` logs on the main process alone, its default, is `text`; and, as the
#   docstring of its adapter says, it "does not require an Accelerator object to be created first".
# Happens: every message begins with "[RANK 0] ", also of a single process, so that a log format cannot leave it out; before
#   `PartialState()` or `Accelerator()` there is a RuntimeError.
# Source: accelerate/logging.py, MultiProcessAdapter.process and .log.
# Seen: before an Accelerator: RuntimeError; after it: '[RANK 0] one line'
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet accelerate==1.15.0 torch==2.14.1
venv/bin/python - <<'PY'
import logging
import sys

import accelerate
from accelerate.logging import get_logger

print("python", sys.version.split()[0], "accelerate", accelerate.__version__)
seen = []


class Keep(logging.Handler):
    def emit(self, record):
        seen.append(record.getMessage())


log = get_logger("one")
log.logger.addHandler(Keep())
log.logger.setLevel(logging.INFO)
try:
    log.info("one line")
    before = "no error"
except RuntimeError:
    before = "RuntimeError"
accelerate.Accelerator(cpu=True)
log.info("one line")
print(f"before an Accelerator: {before}; after it: {seen[-1]!r}")
if before != "RuntimeError" or seen != ["[RANK 0] one line"]:
    sys.exit("changed: messages are logged as they are, or without an Accelerator")
PY
