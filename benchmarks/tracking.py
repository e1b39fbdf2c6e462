#!/usr/bin/env python
"""What tracking adds to the time of a run: the same 200 training steps with W&B offline and without W&B.

    python -m benchmarks.tracking [--pairs 5] [--json FILE]

A run is all that train_kd.py does: cached data, training with a row every 10 steps, 20 validations, checkpoints,
export.  Offline adds the start of W&B's service, the rows, system metrics, the students' artifact and the end.  Runs
alternate in one process with one torch thread; importing wandb, once a process, is reported apart.  The student is
ResNet-8, at batch 128, on digits.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import kd_methods
import train_kd

STEPS = 200
RESAMPLES = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="runs of each kind")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    assert "wandb" not in sys.modules
    start = time.perf_counter()
    import wandb  # noqa: F401

    importing = time.perf_counter() - start
    seconds: dict[str, list[float]] = {"disabled": [], "offline": []}
    with tempfile.TemporaryDirectory() as scratch:
        for pair in range(options.pairs + 1):  # the first warms up
            kinds = list(seconds) if pair % 2 else list(reversed(seconds))
            for kind in kinds:
                taken = timed(Path(scratch), kind, f"{kind}-{pair}")
                if pair:
                    seconds[kind].append(taken)
                print(f"{kind:<10}{taken:8.2f} s{'' if pair else '  (warm-up)'}", flush=True)
    ratios = np.array(seconds["offline"]) / np.array(seconds["disabled"])
    samples = np.random.default_rng(0).choice(ratios, (RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(samples, axis=1), (0.025, 0.975))
    print(
        f"{STEPS} steps: disabled {statistics.median(seconds['disabled']):.2f} s, offline "
        f"{statistics.median(seconds['offline']):.2f} s; median paired ratio {np.median(ratios):.4f} "
        f"(95% bootstrap interval {low:.4f} to {high:.4f}); importing wandb {importing:.2f} s"
    )
    if options.json:
        result = {"seconds": seconds, "ratio": float(np.median(ratios)), "interval": [float(low), float(high)]}
        options.json.write_text(json.dumps(result | {"import_seconds": importing}, indent=2) + "\n")


def timed(scratch: Path, mode: str, name: str) -> float:
    """Seconds of one run; each has its own name and so its own folder."""
    os.environ["WANDB_MODE"] = mode
    words = [
        "--teachers=[]", f"--kd.type={kd_methods.LABEL_ONLY}", "--model={name: cifar_resnet8}", "--data.batch_size=128",
        f"--training.max_epochs={STEPS // 10}", "--training.log_every=10", "--training.compare_with_baseline=false",
        f"--name={name}", f"--output_dir={scratch / 'runs'}", f"--cache.dir={scratch / 'cache'}", "--fresh",
    ]  # fmt: skip
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train_kd.main(words)
    taken = time.perf_counter() - start
    [folder] = (scratch / "runs").glob(f"{name}-*")
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-2])
    assert last["train_step/step"] == STEPS, last
    return taken


if __name__ == "__main__":
    main()
