#!/usr/bin/env bash
# Guess: a Parquet folder that pyarrow, Spark or DuckDB partitioned by label (label=cat/...parquet) has its column label when it is loaded.
# Happens: the column, whose values stand in the names of the folders alone, is left out without a word, since each file is read by itself.
#   pyarrow gives it back. A label that names the partition, which suggests itself for images, is lost.
# Source: datasets/packaged_modules/parquet/parquet.py, which opens single files; the page "Partitioned Datasets" of pyarrow has the layout.
# Seen: columns with pyarrow ['image', 'label'], with datasets ['image'], 4 rows each
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
cd "$home"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet datasets==5.2.0 pyarrow==26.0.1
venv/bin/python - <<'PY'
import sys

import datasets
import pyarrow
import pyarrow.parquet as pq

table = pyarrow.table({"image": [b"a", b"b", b"c", b"d"], "label": ["cat", "dog", "cat", "dog"]})
pq.write_to_dataset(table, "pets", partition_cols=["label"])
with_pyarrow = pq.read_table("pets")
with_datasets = datasets.load_dataset("pets", split="train", cache_dir="cache")
print("python", sys.version.split()[0], "datasets", datasets.__version__, "pyarrow", pyarrow.__version__)
print("pyarrow: columns", with_pyarrow.column_names, "rows", len(with_pyarrow))
print("datasets: columns", with_datasets.column_names, "rows", len(with_datasets))
whole = with_pyarrow.column_names == ["image", "label"] and len(with_pyarrow) == len(with_datasets) == 4
if not whole or with_datasets.column_names != ["image"]:
    sys.exit("changed: columns of partitioned folders are read in another way")
PY
