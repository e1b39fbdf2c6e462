"""A sweep of short trials: 12 trials of three epochs of test_vit on digits with two cached teachers, one worker.

`sweeps/run_local.py` runs the same grid, with its trials forked from one process.  With --against, the sweep of another
checkout takes turns; without it, the same sweep with --separate, whose trials start as commands do.
"""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from benchmarks import _runs
from benchmarks._measure import Comparison, Options, Result, Target, interleave

ROOT = Path(__file__).resolve().parent.parent
TRIALS, EPOCHS = 12, 3


def run(options: Options) -> list[Result]:
    home, trials = options.folder("trials"), options.size(TRIALS, 2)
    common = ["--data.source=digits", "--data.batch_size=32", f"--cache.dir={home / 'cache'}"]
    teachers = [_runs.train([*words(home, f"teacher{seed}", common), f"--training.seed={seed}"]) for seed in (0, 1)]
    team = ", ".join(f"{{weights: {folder}}}" for folder in teachers)
    given = words(home, "trial", [*common, f"--teachers=[{team}]", "--kd.type=average"])
    grid = {"training.learning_rate": {"values": [0.001 * (1 + number) for number in range(trials)]}}
    sweep = {
        "program": "train_kd.py", "method": "grid", "metric": {"name": "val/accuracy", "goal": "maximize"},
        "parameters": grid, "command": ["${env}", "${interpreter}", "${program}", *given, "${args}"],
    }  # fmt: skip
    file = home / "sweep.yaml"
    file.write_text(yaml.safe_dump(sweep))
    other = ("other", options.against, []) if options.against else ("separate", ROOT, ["--separate"])
    times: dict[str, list[dict[str, float]]] = {"forked": [], other[0]: []}

    def timed(name: str, checkout: Path, switches: list[str]) -> Callable[[], float]:
        def seconds() -> float:
            folder = home / f"{name}{len(times[name])}"
            times[name].append(seconds_of_sweep(checkout, file, folder, switches))
            return times[name][-1]["wall"]

        return seconds

    pairs = options.few(3)
    interleave({"forked": timed("forked", ROOT, []), other[0]: timed(*other)}, pairs, warm_up=0)
    found: list[Result] = []
    for kind, unit in (("wall", "s"), ("cpu", "s of CPU time")):
        own, others = ([one[kind] for one in times[name]] for name in times)
        found.append(Comparison(f"{trials} trials, {kind} time: forked / {other[0]}", own, others, unit, Target(0.35)))
    return found


def words(home: Path, name: str, more: list[str]) -> list[str]:
    """The words of a run of three epochs."""
    base = home / "defaults.yaml"  # without a file, train_kd.py starts from the quickstart's settings
    base.write_text("{}\n")
    return [
        f"--config={base}", f"--name={name}", f"--output_dir={home / 'runs'}", "--data.val_size=0.2",
        f"--model={_runs.as_word({'name': 'test_vit', 'img_size': 32, 'args': {'patch_size': 16}})}",
        f"--training.max_epochs={EPOCHS}", "--training.compare_with_baseline=false", "--no-wandb", *more,
    ]  # fmt: skip


def seconds_of_sweep(checkout: Path, file: Path, home: Path, switches: list[str]) -> dict[str, float]:
    """Wall and CPU seconds of the whole sweep, with runs and study of its own."""
    command = [sys.executable, "sweeps/run_local.py", str(file), *switches, "--", f"--output_dir={home}"]
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=checkout, env=dict(os.environ), capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": time.perf_counter() - began, "cpu": cpu}
