"""Images per second of train_kd.py with two processes against one, one thread each, started by torchrun.

ResNet-8, a global batch of 128, no teachers.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import _runs
from benchmarks._data import write_parquet
from benchmarks._measure import Options, Result, compare, interleave

ROOT = Path(__file__).resolve().parent.parent
BATCH, CLASSES, VAL = 128, 100, 200


def run(options: Options) -> list[Result]:
    data = write_parquet(options.folder("data"), options.size(12, 2) * BATCH + VAL, CLASSES)
    student: dict[str, Any] = {"name": "cifar_resnet8"} if not options.quick else _runs.TINY

    def images_per_second(processes: int) -> float:
        words = _runs.words(
            options.scratch, f"p{processes}-{time.monotonic_ns()}", data, student=student, epochs=options.size(5, 2),
            val=VAL, batch=BATCH, more=["--no-wandb"],
        )  # fmt: skip
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [sys.executable, *(launcher if processes > 1 else ()), "train_kd.py", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
        return statistics.median(row["perf/images_per_second"] for row in _runs.epochs_of(_runs.folder_of(words)))

    contestants = {"2 processes": lambda: images_per_second(2), "1 process": lambda: images_per_second(1)}
    rates = interleave(contestants, options.few(5), warm_up=0)
    return [compare(rates, "2 processes", "1 process", "images/s")]
