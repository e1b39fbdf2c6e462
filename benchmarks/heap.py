"""A bare step on a CPU with glibc's heap as train_kd.py sets it against the heap as it is by default.

ResNet-8 and ResNet-8x4 at batch 128: forward, cross-entropy, backward, optimizer.  The larger one's activations are
blocks of 32 MiB, which glibc by default gives back to the system in every step.
"""

import contextlib
import ctypes
import sys
from collections.abc import Callable, Iterator

from benchmarks._measure import Note, Options, Result, compare, interleave, seconds_of
from benchmarks.step import bare_step
from kd_core.processes import M_MMAP_MAX, M_TRIM_THRESHOLD, keep_freed_memory

STUDENTS = ("cifar_resnet8", "cifar_resnet8x4")
M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


def run(options: Options) -> list[Result]:
    if sys.platform != "linux":
        return [Note("not available: only Linux has the C library whose habits these are")]
    results: list[Result] = []
    for name in STUDENTS[: options.size(2, 1)]:
        step, repeats = bare_step({"name": name}), options.size(4, 1)

        def usual(step: Callable[[], None] = step, repeats: int = repeats) -> float:
            with usual_heap():
                step()  # what the other left is given back
                return seconds_of(step, repeats)()

        def kept(step: Callable[[], None] = step, repeats: int = repeats) -> float:
            keep_freed_memory()
            step()
            return seconds_of(step, repeats)()

        results.append(compare(interleave({name: kept, "default": usual}, options.pairs), name, "default", "s a step"))
    return results


@contextlib.contextmanager
def usual_heap() -> Iterator[None]:
    """glibc as it is where nobody calls `keep_freed_memory`: its thresholds have grown to 32 MiB and twice that."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 65_536)
        mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
        mallopt(M_TRIM_THRESHOLD, 64 * 2**20)
    try:
        yield
    finally:
        keep_freed_memory()
