"""A bare training step on a CPU with train_kd.py's glibc heap settings against the default settings.

ResNet-8 and ResNet-8x4 at batch 128: forward, cross-entropy, backward, optimizer.  The larger one's activations are
blocks of 32 MiB, which glibc by default returns to the system in every step.  Each measurement has its own process,
since a heap does not shrink again.
"""

import subprocess
import sys
from functools import partial

from benchmarks._measure import Note, Options, Result, compare, interleave

STUDENTS = ("cifar_resnet8", "cifar_resnet8x4")
CHILD = """
import statistics, sys, torch
from benchmarks._measure import seconds_of
from benchmarks.step import bare_step
from kd_core.loop.processes import keep_freed_memory

torch.set_num_threads(1)
name, heap, repeats = sys.argv[1:]
if heap == "kept":
    keep_freed_memory()
seconds = seconds_of(bare_step({"name": name}))
print(statistics.median([seconds() for _ in range(int(repeats))][2:]))
"""


def run(options: Options) -> list[Result]:
    if sys.platform != "linux":
        return [Note("not available: needs glibc, on Linux")]
    results: list[Result] = []
    for name in STUDENTS[: options.size(2, 1)]:
        contestants = {heap: partial(step_seconds, name, heap, options.size(8, 3)) for heap in ("kept", "default")}
        comparison = compare(interleave(contestants, options.few(7), warm_up=0), "kept", "default", "s per step")
        comparison.name = f"{name}: {comparison.name}"
        results.append(comparison)
    return results


def step_seconds(name: str, heap: str, repeats: int) -> float:
    """The median step time of a new process in seconds, without the first two steps."""
    child = [sys.executable, "-c", CHILD, name, heap, str(repeats)]
    return float(subprocess.run(child, capture_output=True, text=True, check=True).stdout)
