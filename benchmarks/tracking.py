#!/usr/bin/env python
"""Time that tracking adds to a run: the same 200 training steps with W&B offline and without W&B.

    python -m benchmarks.tracking [--pairs 5] [--json FILE]

A run is all that train_kd.py does: cached data, training with a row logged every 10 steps, 20 validations, checkpoints,
export; its time excludes the imports.  Offline adds starting W&B's service, the rows, system metrics, the artifacts
and finishing; timm imports the wandb package either way.  Runs alternate, each in a new process with one torch thread.
The student is ResNet-8, at batch 128, on digits.

Two results: the ratio of the runs' times, which covers everything but is noisy, and the fraction of a run's time spent
in calls of the tracker, which is stable but excludes what W&B's service does in parallel.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import kd_methods
import train_kd
from benchmarks._measure import compare
from kd_core.run import tracking

STEPS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="runs of each kind")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--once", nargs=3, metavar=("MODE", "NAME", "FOLDER"), help=argparse.SUPPRESS)  # internal
    options = parser.parse_args()
    if options.once:
        mode, name, folder = options.once
        print(json.dumps(timed(Path(folder), mode, name)))
        return
    seconds: dict[str, list[float]] = {"disabled": [], "offline": []}
    inside: dict[str, list[float]] = {"disabled": [], "offline": []}
    with tempfile.TemporaryDirectory() as scratch:
        for pair in range(options.pairs + 1):  # the first warms up
            kinds = list(seconds) if pair % 2 else list(reversed(seconds))
            for kind in kinds:
                child = [sys.executable, "-m", "benchmarks.tracking", "--once", kind, f"{kind}-{pair}", scratch]
                environment = {**os.environ, "OMP_NUM_THREADS": "1"}
                done = subprocess.run(child, env=environment, stdout=subprocess.PIPE, text=True, check=True)
                taken, within = json.loads(done.stdout.splitlines()[-1])
                if pair:
                    seconds[kind].append(taken)
                    inside[kind].append(within)
                print(f"{kind:<10}{taken:8.2f} s, {within:.3f} s of it in the tracker", flush=True)
    compared = compare(seconds, "offline", "disabled", "s")
    low, high = compared.interval
    base, more = (statistics.median(inside[kind]) for kind in ("disabled", "offline"))
    share = (more - base) / statistics.median(seconds["disabled"])
    print(
        f"{STEPS} steps: disabled {statistics.median(seconds['disabled']):.2f} s, offline "
        f"{statistics.median(seconds['offline']):.2f} s; median paired ratio {compared.ratio:.4f} "
        f"(95% bootstrap interval {low:.4f} to {high:.4f})\n"
        f"in the tracker: disabled {base:.3f} s, offline {more:.3f} s: W&B adds {share:.2%} of the run's time"
    )
    if options.json:
        result = {"seconds": seconds, "in_tracker": inside, "ratio": compared.ratio, "share": share}
        options.json.write_text(json.dumps(result | {"interval": [low, high]}, indent=2) + "\n")


class Clocked:
    """A tracker that sums the time spent in its methods."""

    def __init__(self, tracker: Any, start: float):
        self._tracker, self.seconds = tracker, time.perf_counter() - start

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._tracker, name)
        if not callable(value):
            return value

        def call(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return value(*args, **options)
            finally:
                self.seconds += time.perf_counter() - start

        return call


def timed(scratch: Path, mode: str, name: str) -> tuple[float, float]:
    """Seconds of one run, and of these in the tracker; each run has its own name and folder."""
    torch.set_num_threads(1)
    os.environ["WANDB_MODE"] = mode
    words = [
        "--teachers=[]", f"--kd.type={kd_methods.LABEL_ONLY}", "--model={name: cifar_resnet8}", "--data.batch_size=128",
        f"--training.max_epochs={STEPS // 10}", "--training.log_every=10", "--training.compare_with_baseline=false",
        f"--name={name}", f"--output_dir={scratch / 'runs'}", f"--cache.dir={scratch / 'cache'}", "--fresh",
    ]  # fmt: skip
    clocked: list[Clocked] = []

    def start_tracking(*args: Any, **options: Any) -> Clocked:
        start = time.perf_counter()
        clocked.append(Clocked(tracking.start_tracking(*args, **options), start))
        return clocked[-1]

    train_kd.start_tracking = start_tracking  # type: ignore[assignment]
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train_kd.main(words)
    taken = time.perf_counter() - start
    [folder] = (scratch / "runs").glob(f"{name}-*")
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-2])
    assert last["train_step/step"] == STEPS, last
    return taken, clocked[0].seconds


if __name__ == "__main__":
    main()
