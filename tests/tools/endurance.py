#!/usr/bin/env python
"""Train for thousands of very short epochs and watch the process: memory, open files and threads must stay flat.

    python tests/tools/endurance.py [--epochs 2000] [--minutes 20] [--folder FOLDER]

Everything that training does per epoch is on: validation, checkpoints (also within epochs), a teacher's cache, and an
offline W&B run.  The process is sampled every second from outside; its usage at the end is compared with that after a
tenth of its epochs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import median

from kill_campaign import ROOT, trained_teachers


@dataclass
class Usage:
    """A process's current usage: anonymous memory in MiB, open files, threads."""

    memory: float
    files: float
    threads: float


def usage(process: int) -> Usage:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    files = len(os.listdir(f"/proc/{process}/fd"))
    return Usage(int(status["RssAnon"].split()[0]) / 1024, files, int(status["Threads"]))


def typical(moments: list[Usage]) -> Usage:
    return Usage(*map(median, zip(*map(astuple, moments), strict=True)))


def endure(home: Path, epochs: int, minutes: float) -> tuple[int, Usage, Usage]:
    """The number of epochs trained, and the process's usage after a tenth of them and at the end."""
    teacher = trained_teachers(home)[0]
    words = [
        f"--output_dir={home / 'runs'}", f"--cache.dir={home / 'cache'}", "--name=long", "--wandb.mode=offline",
        "--model={name: cifar_resnet8}", f"--teachers=[{{weights: {teacher}}}]", "--kd.type=average",
        "--data.train_size=64", "--data.batch_size=32", f"--training.max_epochs={epochs}", "--training.log_every=1",
        "--training.save_every_steps=3", "--training.compare_with_baseline=false", "--evaluation.report=false",
    ]  # fmt: skip
    moments: list[tuple[int, Usage]] = []
    limit = time.monotonic() + 60 * minutes
    with open(home / "output", "w") as output:
        process = subprocess.Popen([sys.executable, "train_kd.py", *words], cwd=ROOT, stdout=output, stderr=output)
        while process.poll() is None and time.monotonic() < limit:
            time.sleep(1)
            done = (home / "output").read_text().count("\nepoch ")
            try:
                moments.append((done, usage(process.pid)))
            except (FileNotFoundError, ProcessLookupError, KeyError):  # it has just ended
                break
        if process.poll() is None and time.monotonic() >= limit:
            process.terminate()
        if process.wait() not in (0, 143):
            raise AssertionError((home / "output").read_text()[-3000:])
    trained = (home / "output").read_text().count("\nepoch ")
    within = [(done, moment) for done, moment in moments if 0 < done < trained]
    early = [moment for done, moment in within if 0.1 * trained <= done <= 0.2 * trained]
    late = [moment for done, moment in within if done >= 0.9 * trained]
    return trained, typical(early), typical(late)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2000)
    parser.add_argument("--minutes", type=float, default=20, help="stop after so many")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        trained, early, late = endure(Path(scratch), options.epochs, options.minutes)
    print(f"{trained} epochs                 after a tenth    at the end")
    for name in ("memory", "files", "threads"):
        print(f"{name:24} {getattr(early, name):12.0f} {getattr(late, name):13.0f}")


if __name__ == "__main__":
    main()
