"""The end of a run, from the last epoch to the report: a CIFAR-sized student with three cached teachers.

Everything that `finish` in train_kd.py does, imports included, each time in a new process and on a copy of the same run
folder, of which the last epoch is trained before the clock starts: 5,000 validation and 10,000 test images of 100
classes, the student alone to compare with, caches warm.  With --against, the same of another checkout takes turns.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import _runs
from benchmarks._data import write_parquet
from benchmarks._measure import Comparison, Figure, Options, Result, Target, interleave
from benchmarks.memory import anonymous

ROOT = Path(__file__).resolve().parent.parent
TRAIN, VAL, TEST, CLASSES = 2_000, 5_000, 10_000, 100


def run(options: Options) -> list[Result]:
    train, val, test = options.size(TRAIN, 400), options.size(VAL, 100), options.size(TEST, 100)
    network: dict[str, Any] = {"name": "cifar_resnet8"} if not options.quick else _runs.TINY
    alone, trained = trained_run(
        options.scratch, student=network, teacher=network, train=train, val=val, test=test,
        classes=options.size(CLASSES, 10), batch=options.size(128, 32),
    )  # fmt: skip
    checkouts = {"this": ROOT, **({"other": options.against} if options.against else {})}
    times: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}

    def timed(name: str) -> Callable[[], float]:
        def seconds() -> float:
            times[name].append(finish_once(checkouts[name], options.folder("copies"), alone, trained))
            return times[name][-1]["wall"]

        return seconds

    interleave({name: timed(name) for name in checkouts}, options.few(7))
    return results(times, options.few(7))


def trained_run(
    home: Path, *, student: dict[str, Any], teacher: dict[str, Any], train: int, val: int, test: int, classes: int,
    batch: int,
) -> tuple[Path, list[str]]:  # fmt: skip
    """A run with three teachers of which the last of two epochs is left: that of the student alone, and its words."""
    data = write_parquet(home / "data", train + val + test, classes)
    common = [f"--data.test_size={test}", f"--data.batch_size={batch}", "--no-wandb"]
    teachers = _runs.trained_teachers(home, data, [teacher] * 3, val=val, epochs=8, more=common)

    def words(name: str, team: list[Path]) -> list[str]:
        more = [*common, "--cache.mode=fixed", "--cache.views=1", "--evaluation.test_at_end=true"]
        return _runs.words(
            home, name, data, student=student, teachers=team, epochs=2, val=val, method="dynamic", more=more
        )

    alone = _runs.train(words("alone", []))
    trained = [word for word in words("student", teachers) if word != "--fresh"]
    with _runs.turns({"student": trained}) as runs:
        runs["student"].epoch()
    return alone, trained


def results(times: dict[str, list[dict[str, float]]], pairs: int) -> list[Result]:
    """Wall and CPU seconds of the last `pairs` rounds; the ones before warm the caches."""
    found: list[Result] = []
    for kind, words in (("wall", "s"), ("cpu", "s of CPU time")):
        own, *other = ([one[kind] for one in times[name][-pairs:]] for name in times)
        if other:
            found.append(Comparison(f"end of a run, {kind} time: this / the other", own, other[0], words, Target(0.5)))
        else:
            found.append(Figure(f"end of a run, {kind} time", sorted(own)[len(own) // 2], words))
    return found


def finish_once(checkout: Path, home: Path, alone: Path, words: list[str]) -> dict[str, float]:
    """Finish a copy of the trained run with the code of a checkout; its seconds, and its peak memory in bytes."""
    runs = home / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    shutil.copytree(_runs.folder_of(words).parent, runs)
    command = [
        sys.executable, "-P", str(ROOT / "benchmarks" / "_finish_once.py"), str(alone),
        *_runs.replaced([*words, f"--output_dir={runs}"]),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, cwd=checkout, env=environment, stdout=said, stderr=errors) as process:
            peak = 0
            while process.poll() is None:
                peak = max(peak, anonymous(process.pid))
                time.sleep(0.02)
        for file in (said, errors):
            file.seek(0)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{errors.read()}")
        return {**json.loads(said.read().splitlines()[-1]), "peak": peak}
