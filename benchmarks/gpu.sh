#!/usr/bin/env bash
# What docs/performance.md tells of GPUs, in at most ten minutes: the tests that need one, then training steps in
# float32 and in bf16, with channels last and first, compiled and with CUDA graphs.
#
#     benchmarks/gpu.sh FOLDER            results go to FOLDER: gpu-no.json, gpu-bf16.json, and what was printed
#     benchmarks/gpu.sh FOLDER --quick    tiny sizes, also without a GPU: shows that all of it runs
set -euo pipefail
results=$(realpath -m "${1:?usage: benchmarks/gpu.sh FOLDER [--quick]}")
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p "$results"
python=${PYTHON:-python}

if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    nvidia-smi | tee "$results/gpu.txt"
    limit=150
    timeout 240 "$python" -m pytest -q -m gpu tests | tee "$results/tests.txt"
else
    limit=3600
    echo "no GPU: the tests that need one are left out, and the times below are a CPU's" | tee "$results/gpu.txt"
fi
for precision in no bf16; do
    ACCELERATE_MIXED_PRECISION=$precision timeout "$limit" "$python" -m benchmarks gpu --pairs 5 \
        --json "$results/gpu-$precision.json" "$@" | tee "$results/gpu-$precision.txt"
done
