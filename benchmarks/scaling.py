"""How an epoch with a warm cache, and the cache's size, grow with teachers, classes and images.

A tiny student, whose step hides nothing; cached clean views of as tiny teachers, whose networks no epoch runs.  Each
time stands beside the same epoch without teachers.
"""

import statistics
from pathlib import Path

from benchmarks import _runs
from benchmarks._data import write_parquet
from benchmarks._measure import Figure, Options, Result, compare, interleave
from kd_core.cache import logits_folder

BATCH, TEACHERS, CLASSES = 128, 3, 100
ALONE = "without teachers"


def run(options: Options) -> list[Result]:
    base = options.size(2_560, 256)
    # (what varies, its value, teachers, classes, images)
    points = [("teachers", count, count, CLASSES, base) for count in (1, TEACHERS, 10)]
    points += [("classes", classes, TEACHERS, classes, base) for classes in (10, CLASSES, 1000)]
    points += [("images", images, TEACHERS, CLASSES, images) for images in (base, 10_000, 50_000)]
    if options.quick:
        points = [("teachers", 1, 1, 10, base)]
    results: list[Result] = []
    for axis, value, teachers, classes, images in points:
        results += measured(options, axis, value, teachers, classes, images)
    return results


def measured(options: Options, axis: str, value: int, teachers: int, classes: int, images: int) -> list[Result]:
    """Epochs with and without `teachers` cached teachers in turn, and what the cache takes."""
    name = f"{axis}={value}"
    home, val, pairs = options.folder(name), max(200, classes), options.few(5 if images < 50_000 else 2)
    data = write_parquet(home / "data", images + val, classes)
    panel = team(options, data, teachers, classes, val)

    def words(kind: str, members: list[Path]) -> list[str]:
        return _runs.words(
            home, kind, data, student=_runs.TINY, teachers=members, view="clean", epochs=pairs + 1, val=val,
            batch=BATCH, more=["--cache.mode=clean", "--no-wandb"],
        )  # fmt: skip

    with _runs.turns({"warm": words("warm", panel), ALONE: words("alone", [])}) as runs:
        seconds = interleave({kind: turn.step_seconds for kind, turn in runs.items()}, pairs)
    stored = sum(file.stat().st_blocks * 512 for file in logits_folder(home / "cache").rglob("*") if file.is_file())
    own = statistics.median(seconds["warm"])
    comparison = compare(seconds, "warm", ALONE, "s a step")
    comparison.name = f"{name}: {comparison.name}"
    return [
        comparison,
        Figure(f"{name}: an epoch", own * (images // BATCH), "s", curve=f"an epoch by {axis}", x=value),
        Figure(f"{name}: the cache", stored / 1e6, "MB", curve=f"the cache (one view) by {axis}", x=value),
    ]


def team(options: Options, data: Path, count: int, classes: int, val: int) -> list[Path]:
    """Teachers for so many classes, trained once: the patterns of a class are the same in every data set here."""
    home = options.scratch / f"team-{classes}"
    found = sorted((home / "runs").glob("teacher*")) if home.exists() else []
    if len(found) < count:
        found = _runs.trained_teachers(home, data, [_runs.TINY] * max(count, TEACHERS), val=val)
    return found[:count]
