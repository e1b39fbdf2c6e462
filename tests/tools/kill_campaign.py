#!/usr/bin/env python
"""Kill training at random times, resume it, and compare with an uninterrupted run, bit for bit.

    python tests/tools/kill_campaign.py [--kills 30] [--seed 0] [--folder FOLDER] [--strong]

Every trial is a new run with an empty cache of teachers' logits.  It is killed (SIGKILL, all its processes) one to
three times: after a random time, while a checkpoint is being written, or while logits are being cached.  Then it runs
to its end.  Every fourth trial is a run of two processes.  --strong turns on all that strong training has.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from warm_process import WarmProcess

ROOT = Path(__file__).resolve().parents[2]
TEACHERS = {name: {"name": name} for name in ("cifar_resnet8", "cifar_wrn_16_1")}
# One with dropout, so that the random generators matter within an epoch, and one with BatchNorm's running statistics.
STUDENTS = (
    "{name: test_vit, img_size: 32, args: {patch_size: 8, drop_rate: 0.2, proj_drop_rate: 0.1}}",
    "{name: cifar_resnet8}",
)
# All of strong training: one set for mixed images, one for those that have two views and partly no labels.
STRONG = (
    (
        "--augment={color_jitter: {}, randaugment: {}, erasing: {}, mixup: {}, cutmix: {}}", "--cache.mode=fixed",
        "--cache.views=3", "--training.ema={decay: 0.9}", "--training.accumulate=2", "--data.sampler=balanced",
        "--training.class_weights=balanced", "--data.label_noise={rate: 0.2}", "--evaluation.test_at_end=true",
        "--evaluation.test_epochs=all", "--kd.type=dynamic", "--kd.temperature={from: 6, to: 2}",
    ),
    (
        "--augment={trivialaugment: true, second: {randaugment: {}, cutout: 8}}", "--cache.mode=fixed",
        "--cache.views=3", "--training.ema={decay: 0.9, every: 3}", "--data.unlabeled={share: 0.5}",
        "--kd.type=average", "--kd.loss=crld", "--kd.features=[{loss: rkd}]",
    ),
)  # fmt: skip
MOMENTS = ("random", "random", "saving", "caching")
TIMES = ("perf/", "train/step_time", "train_step/step_time")  # begin what may differ


@dataclass
class Run:
    """A way to start the run of one trial."""

    home: Path
    teachers: list[Path]
    processes: int
    student: str
    more: tuple[str, ...] = ()  # settings, which take the place of those below

    def command(self) -> list[str]:
        start = [sys.executable]
        if self.processes > 1:
            start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self.processes}"]
        team = ", ".join(f"{{weights: {folder}}}" for folder in self.teachers[:1])
        view = "shared" if self.more else "clean"  # a clean view is not what mixed images show
        team += ", " + ", ".join(f"{{weights: {folder}, view: {view}}}" for folder in self.teachers[1:])
        own = [
            f"--output_dir={self.home / 'runs'}", f"--cache.dir={self.home / 'cache'}",
            "--name=run", "--no-wandb", f"--model={self.student}", f"--teachers=[{team}]", "--kd.type=dynamic",
            "--data.train_size=320", "--data.batch_size=32", "--training.max_epochs=4", "--training.log_every=3",
            "--training.save_every_steps=4", "--training.deterministic=true", "--training.compare_with_baseline=false",
            "--evaluation.report=false", *self.more,
        ]  # fmt: skip
        settings = {word.partition("=")[0]: word for word in own}  # each once
        return [*start, "train_kd.py", *settings.values()]

    def start(self) -> subprocess.Popen | WarmProcess:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if self.processes == 1:
            return WarmProcess(self.command()[1:], env=environment)
        return subprocess.Popen(
            self.command(), cwd=ROOT, env=environment, text=True, start_new_session=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip

    def finish(self) -> float:
        """Run to the end; returns the seconds taken."""
        began = time.monotonic()
        process = self.start()
        text, _ = process.communicate(timeout=600)
        if process.returncode:
            raise AssertionError(text)
        return time.monotonic() - began

    def killed(self, moment: str, seconds: float) -> bool:
        """Start it and kill it at `moment`, or after some seconds; returns whether it was killed before its end."""
        signs: dict[str, Callable[[], bool]] = {
            "saving": lambda: any(self.home.glob("runs/run-*/checkpoints/.latest.????????")),
            "caching": lambda: any(self.home.glob("cache/logits/*/checks")),
            "random": lambda: False,
        }
        process, limit = self.start(), time.monotonic() + seconds
        wait = 0.001 if moment != "random" else 0.02
        while process.poll() is None and time.monotonic() < limit and not signs[moment]():
            time.sleep(wait)
        alive = process.poll() is None
        if alive:
            kill_all(process.pid)
        process.communicate()
        return alive

    def result(self) -> tuple[list[dict], dict[str, dict[str, torch.Tensor]], dict]:
        [folder] = self.home.glob("runs/run-????????")
        return result_of(folder)


def result_of(folder: Path) -> tuple[list[dict], dict[str, dict[str, torch.Tensor]], dict]:
    """Of a run: the rows without times, the weights of every checkpoint, and the summary."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [{name: value for name, value in row.items() if not name.startswith(TIMES)} for row in rows]
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("model.safetensors"))}
    weights = {name: load_file(path) for name, path in files.items() if "/." not in name}  # not the checkpoint before
    assert {"student", "best", "latest"} <= {part for name in weights for part in name.split("/")}
    summary = json.loads((folder / "summary.json").read_text())
    return kept, weights, {name: value for name, value in summary.items() if name != "run_id"}


def kill_all(process: int) -> None:
    """Send SIGKILL to a process and its descendants: launchers start each process in its own session."""
    os.kill(process, signal.SIGSTOP)  # it starts no more of them
    family = [process]
    for member in family:  # which grows
        for children in Path(f"/proc/{member}/task").glob("*/children"):
            with suppress(FileNotFoundError):
                family += map(int, children.read_text().split())
    for member in family:
        with suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)


def differences(first: tuple, second: tuple) -> list[str]:
    """The differences between two runs' results, bit for bit."""
    found = [name for name, a, b in zip(("metrics", "summary"), first[::2], second[::2], strict=True) if a != b]
    found += sorted(first[1].keys() ^ second[1].keys())
    for name in first[1].keys() & second[1].keys():
        weights, other = first[1][name], second[1][name]
        if weights.keys() != other.keys() or not all(torch.equal(value, other[key]) for key, value in weights.items()):
            found.append(name)
    return found


def trained_teachers(home: Path, models: Mapping[str, Mapping[str, Any]] = TEACHERS) -> list[Path]:
    """Run folders, in `home`/teachers, of teachers of digits, sorted by the names that `models` gives them."""
    for name, model in models.items():
        words = [
            f"--output_dir={home / 'teachers'}", f"--cache.dir={home / 'cache'}", f"--name={name}", "--no-wandb",
            f"--model={json.dumps(model)}", "--teachers=[]", "--kd.type=baseline", "--training.max_epochs=3",
            "--training.compare_with_baseline=false",
            "--evaluation.report=false",
        ]  # fmt: skip
        process = WarmProcess(["train_kd.py", *words])
        text, _ = process.communicate(timeout=600)
        assert process.returncode == 0, text
    return sorted((home / "teachers").glob("*-????????"))


def campaign(
    home: Path,
    teachers: list[Path],
    kills: int,
    seed: int,
    tell: Callable[[str], None] = print,
    sets: Sequence[tuple[str, ...]] = ((),),
) -> int:
    """The number of runs that were killed, resumed, and ended like the uninterrupted run; else AssertionError."""
    draw = random.Random(seed)
    whole: dict[tuple[Any, ...], tuple] = {}
    length: dict[tuple[Any, ...], float] = {}
    done = trial = 0
    while done < kills:
        processes, student = (2 if trial % 4 == 3 else 1), STUDENTS[trial % 2]
        more = sets[trial // 2 % len(sets)]
        kind = processes, student, more
        if kind not in whole:
            reference = Run(home / f"whole-{len(whole)}", teachers, processes, student, more)
            length[kind] = reference.finish()
            whole[kind] = reference.result()
        run = Run(home / f"trial-{trial}", teachers, processes, student, more)
        times = 0
        moments = []
        for _ in range(draw.randint(1, 3)):
            moment = draw.choice(MOMENTS)
            # imports take the first part of a run, in which there is nothing to lose
            if run.killed(moment, draw.uniform(0.4, 1.0) * length[kind]):
                times += 1
                moments.append(moment)
        run.finish()
        wrong = differences(whole[kind], run.result())
        what = ", ".join(moments) or "never"
        tell(f"trial {trial}: {processes} process(es), killed {times} time(s) ({what}): {wrong or 'equal'}")
        assert not wrong, (run.home, wrong)
        done += times > 0
        trial += 1
        shutil.rmtree(run.home)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="runs to be killed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    parser.add_argument("--strong", action="store_true", help="with everything of docs/recipes.md and more turned on")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        home = Path(scratch)
        teachers = trained_teachers(home)
        sets = STRONG if options.strong else ((),)
        equal = campaign(home, teachers, options.kills, options.seed, partial(print, flush=True), sets)
    print(f"{equal} of {options.kills} killed runs ended bit for bit as the run that was never interrupted")


if __name__ == "__main__":
    main()
