#!/usr/bin/env bash
# Guess: a local file that was replaced by another is read again; at least if the new one has another size.
# Happens: `datasets` knows local files by path and modification time alone. Where the time is kept, as `cp -p`, `rsync -t` and
#   unpacking an archive do, load_dataset gives the rows of the old file, without a word.
# Source: datasets/data_files.py, `_get_single_origin_metadata`: "for local we simply check mtime".
# Seen: 2 rows; after the file was replaced by one of 4 rows and 4 times the size, its time kept: 2 rows
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet datasets==5.2.0
export HF_HOME="$home/cache" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1
venv/bin/python - <<'PY'
import os
import sys

import datasets
from datasets import Dataset, load_dataset

print("python", sys.version.split()[0], "datasets", datasets.__version__)


def rows():
    return load_dataset("parquet", data_files="data.parquet", split="train").num_rows


Dataset.from_dict({"text": ["old"] * 2}).to_parquet("data.parquet")
before, first = os.stat("data.parquet"), rows()
Dataset.from_dict({"text": [f"new {number}" * 500 for number in range(4)]}).to_parquet("data.parquet")
os.utime("data.parquet", ns=(before.st_atime_ns, before.st_mtime_ns))
after, second = os.stat("data.parquet"), rows()
print(f"{before.st_size} bytes: {first} rows; replaced by {after.st_size} bytes of the same time: {second} rows")
os.utime("data.parquet")
third = rows()
print(f"with a new time: {third} rows")
if (first, second, third) != (2, 2, 4) or after.st_size == before.st_size:
    sys.exit("changed: a replaced file with its old time is read again")
PY
