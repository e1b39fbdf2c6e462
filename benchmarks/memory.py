"""Peak anonymous memory of a train_kd.py run of one epoch, by number of images.

Anonymous memory is what a process allocates; it excludes memory-mapped files, whose pages the system drops when it
needs memory.  Summed over the process and its children, 20 times per second, on Linux.  The first run decodes the
images, the second reads the decoded ones.  The targets are for the growth over the run with the fewest images.
"""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import _runs
from benchmarks._data import write_parquet
from benchmarks._measure import Figure, Note, Options, Result, Target

ROOT = Path(__file__).resolve().parent.parent
VAL, CLASSES, MEBIBYTE = 200, 10, 2**20
STUDENT: dict[str, Any] = {"name": "test_vit", "img_size": 32, "args": {"patch_size": 32}}  # one token per image


def run(options: Options) -> list[Result]:
    if not Path("/proc/self/status").is_file():
        return [Note("not available: needs /proc/PID/status, on Linux")]
    least, *more = (2_000, 50_000, 1_000_000) if not options.quick else (500, 700)
    results: list[Result] = []
    footprint: dict[str, float] = {}
    for images in (least, *more):
        data = write_parquet(options.folder(f"data-{images}"), images, CLASSES, noise=0)
        words = _runs.words(
            options.folder(f"home-{images}"), "run", data, student=STUDENT, epochs=1, val=VAL,
            batch=options.size(1024, 128),
        )  # fmt: skip
        for kind in ("first run", "second run"):
            name = f"{images:,} images, {kind}"
            start = time.perf_counter()
            peak = peak_of(_runs.replaced([*words, f"--name={kind.split()[0]}"])) / MEBIBYTE
            seconds = time.perf_counter() - start
            results += [Figure(f"{name}: peak", peak, "MiB"), Figure(f"{name}: time", seconds, "s")]
            if images == least:
                footprint[kind] = peak
            else:
                results.append(Figure(f"{name}: growth", peak - footprint[kind], "MiB", Target(2048)))
    return results


def peak_of(words: list[str]) -> int:
    """Peak anonymous memory of a run of train_kd.py and its children, in bytes."""
    with subprocess.Popen(
        [sys.executable, "train_kd.py", *words], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, sum(anonymous(number) for number in family(process.pid)))
            time.sleep(0.05)
        if process.returncode:
            assert process.stderr is not None
            raise RuntimeError(f"train_kd.py {' '.join(words)}\n{process.stderr.read()}")
    return peak


def family(process: int) -> list[int]:
    """The process and its descendants."""
    found = [process]
    for parent in found:  # the list grows while it is iterated over
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, task.read_text().split())
            except OSError:
                pass  # the process has just ended
    return found


def anonymous(process: int) -> int:
    """The anonymous memory of a process in bytes, from a counter: unlike a sum over its pages, it takes no time."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)
