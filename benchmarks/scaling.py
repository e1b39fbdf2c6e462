"""Time of an epoch with a warm cache, and size of the cache, by number of teachers, classes and images.

A tiny student, whose step is so short that it hides nothing, and clean views of tiny teachers, whose logits all come
from the cache.  Each time is compared with the same epoch without teachers.
"""

import statistics
from pathlib import Path

from benchmarks import _runs
from benchmarks._data import write_parquet
from benchmarks._measure import Figure, Options, Result, compare, interleave
from kd_core.teachers.cache import logits_folder

BATCH, TEACHERS, CLASSES = 128, 3, 100
ALONE = "without teachers"


def run(options: Options) -> list[Result]:
    base = options.size(2_560, 256)
    # (variable, its value, teachers, classes, images)
    points = [("teachers", count, count, CLASSES, base) for count in (1, TEACHERS, 10)]
    points += [("classes", classes, TEACHERS, classes, base) for classes in (10, CLASSES, 1000)]
    points += [("images", images, TEACHERS, CLASSES, images) for images in (base, 10_000, 50_000)]
    if options.quick:
        points = [("teachers", 1, 1, 10, base)]
    most = {classes: max(point[2] for point in points if point[3] == classes) for *_, classes, _ in points}
    teams: dict[int, list[Path]] = {}  # trained once: class patterns are the same in all data sets
    results: list[Result] = []
    for axis, value, teachers, classes, images in points:
        home, val = options.folder(f"{axis}={value}"), max(200, classes)
        data = write_parquet(home / "data", images + val, classes)
        if classes not in teams:
            networks = [_runs.TINY] * most[classes]
            teams[classes] = _runs.trained_teachers(options.folder(f"team-{classes}"), data, networks, val=val)
        results += measured(options, home, data, teams[classes][:teachers], axis, value, images, val)
    return results


def measured(
    options: Options, home: Path, data: Path, team: list[Path], axis: str, value: int, images: int, val: int
) -> list[Result]:
    """Alternating epochs with and without cached teachers, and the size of the cache."""
    pairs = options.few(5 if images < 50_000 else 2)

    def words(kind: str, members: list[Path]) -> list[str]:
        return _runs.words(
            home, kind, data, student=_runs.TINY, teachers=members, view="clean", epochs=pairs + 1, val=val,
            batch=BATCH, more=["--cache.mode=clean", "--no-wandb"],
        )  # fmt: skip

    with _runs.turns({"warm": words("warm", team), ALONE: words("alone", [])}) as runs:
        seconds = interleave({kind: turn.step_seconds for kind, turn in runs.items()}, pairs)
    stored = sum(file.stat().st_blocks * 512 for file in logits_folder(home / "cache").rglob("*") if file.is_file())
    own = statistics.median(seconds["warm"])
    comparison = compare(seconds, "warm", ALONE, "s per step")
    name = f"{axis}={value}"
    comparison.name = f"{name}: {comparison.name}"
    return [
        comparison,
        Figure(f"{name}: an epoch", own * (images // BATCH), "s", curve=f"an epoch by {axis}", x=value),
        Figure(f"{name}: the cache", stored / 1e6, "MB", curve=f"the cache (one view) by {axis}", x=value),
    ]

