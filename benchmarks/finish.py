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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import _runs
from benchmarks._data import write_parquet
from benchmarks._measure import Comparison, Figure, Options, Result, Target, interleave

ROOT = Path(__file__).resolve().parent.parent
TRAIN, VAL, TEST, CLASSES = 2_000, 5_000, 10_000, 100


def run(options: Options) -> list[Result]:
    train, val, test = options.size(TRAIN, 400), options.size(VAL, 100), options.size(TEST, 100)
    data = write_parquet(options.folder("data"), train + val + test, options.size(CLASSES, 10))
    student: dict[str, Any] = {"name": "cifar_resnet8"} if not options.quick else _runs.TINY
    network = {"name": "cifar_resnet8"} if not options.quick else _runs.TINY
    common = [f"--data.test_size={test}", f"--data.batch_size={options.size(128, 32)}", "--no-wandb"]
    teachers = _runs.trained_teachers(options.scratch, data, [network] * 3, val=val, epochs=8, more=common)

    def words(name: str, team: list[Path]) -> list[str]:
        more = [*common, "--cache.mode=fixed", "--cache.views=1", "--evaluation.test_at_end=true"]
        return _runs.words(
            options.scratch, name, data, student=student, teachers=team, epochs=2, val=val, method="dynamic", more=more
        )

    alone = _runs.train(words("alone", []))
    trained = [word for word in words("student", teachers) if word != "--fresh"]
    with _runs.turns({"student": trained}) as runs:
        runs["student"].epoch()
    checkouts = {"this": ROOT, **({"other": options.against} if options.against else {})}
    times: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}

    def timed(name: str) -> Callable[[], float]:
        def seconds() -> float:
            times[name].append(finish_once(checkouts[name], options.folder("copies"), alone, trained))
            return times[name][-1]["wall"]

        return seconds

    interleave({name: timed(name) for name in checkouts}, options.few(7))
    return results(times, options.few(7))


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
    """Finish a copy of the trained run with the code of a checkout; its seconds."""
    runs = home / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    shutil.copytree(_runs.folder_of(words).parent, runs)
    command = [
        sys.executable, "-P", str(ROOT / "benchmarks" / "_finish_once.py"), str(alone),
        *_runs.replaced([*words, f"--output_dir={runs}"]),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found
