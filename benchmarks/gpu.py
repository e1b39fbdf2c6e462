"""Training steps on the device that Accelerate finds: memory format, torch.compile, CUDA graphs, three cached teachers.

ResNet-8x4 at batch 64 in the precision of ACCELERATE_MIXED_PRECISION, against a bare loop of forward, cross-entropy,
backward and optimizer on the same device.  `benchmarks/gpu.sh` runs it in float32 and in bf16.
"""

import os
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks import _runs
from benchmarks._data import write_parquet
from benchmarks._measure import Comparison, Figure, Options, Result, Target, interleave, seconds_of
from benchmarks.step import bare_step
from kd_core.loop.launcher import PRECISION, uses_gpu
from kd_core.loop.timing import wait_for

BATCH, CLASSES, VAL = 64, 100, 200
VARIANTS = {
    "channels last": [],
    "channels first": ["--training.channels_last=false"],
    "compiled": ["--training.compile=true"],
    "CUDA graphs": ["--training.compile=true", "--training.compile_mode=reduce-overhead"],
}


def run(options: Options) -> list[Result]:
    device = torch.device("cuda" if uses_gpu(os.environ) else "cpu")
    precision = os.environ.get(PRECISION, "no")
    student: dict[str, Any] = {"name": "cifar_resnet8x4"} if not options.quick else _runs.TINY
    network = {"name": "cifar_resnet20"} if not options.quick else _runs.TINY
    steps, epochs = options.size(200 if device.type == "cuda" else 5, 2), options.pairs + 3
    data = write_parquet(options.folder("data"), steps * BATCH + VAL, options.size(CLASSES, 10))
    teachers = _runs.trained_teachers(options.scratch, data, [network] * 3, val=VAL, epochs=options.size(4, 8))

    def words(name: str, *more: str, taught: bool = True) -> list[str]:
        return _runs.words(
            options.scratch, name.replace(" ", "-"), data, student=student, teachers=teachers if taught else [],
            epochs=epochs, val=VAL, batch=BATCH, method="dynamic", more=["--cache.mode=fixed", "--no-wandb", *more],
        )  # fmt: skip

    given = {"no teachers": words("alone", taught=False)}
    # compiling takes long, and CUDA graphs are of GPUs
    for name, more in VARIANTS.items() if device.type == "cuda" else list(VARIANTS.items())[:2]:
        given[name] = words(name, *more)
    with _runs.turns(given) as runs:
        for run in runs.values():
            run.epoch()
        contestants: dict[str, Callable[[], float]] = {name: run.step_seconds for name, run in runs.items()}
        step = bare_step(student, BATCH, device, precision)
        contestants["bare"] = seconds_of(step, steps, wait=partial(wait_for, device))
        values = interleave(contestants, options.pairs)
    return results(values, precision)


def results(values: dict[str, list[float]], precision: str) -> list[Result]:
    """Each variant against the bare loop, teachers against none, and images per second."""
    own = values["channels last"]
    found: list[Result] = [
        Comparison(f"{precision}: step / bare", own, values["bare"], "s per step", Target(1.10)),
        Comparison(f"{precision}: 3 cached teachers / none", own, values["no teachers"], "s per step", Target(1.05)),
    ]
    for name in VARIANTS:
        if name in values:
            rate = BATCH / statistics.median(values[name])
            found.append(Figure(f"{precision}, {name}", rate, "images/s"))
            if name != "channels last":
                found.append(Comparison(f"{precision}: {name} / channels last", values[name], own, "s per step"))
    return found
