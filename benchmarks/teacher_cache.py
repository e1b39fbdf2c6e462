#!/usr/bin/env python
"""An epoch with three teachers against an epoch without: computed in every step, and read from a warm cache.

    python -m benchmarks.teacher_cache [--pairs 15] [--json FILE]

Every epoch is one of train_kd.py's own, on scikit-learn's digits at 32 pixels and batch 128, ResNet-8 as student and
ResNet-14, ResNet-8 and WRN-16-1 as teachers; what counts is the time of its training steps (views, teachers or cache,
student, loss, optimizer, meter, log), not validation or checkpoints.  Contestants alternate in one process with one
torch thread; the first round fills the caches and is not counted, nor is the first epoch of a run.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch

import kd_methods
import train_kd
from kd_core.checkpoints import read_metrics

TEACHERS = ("cifar_resnet14", "cifar_resnet8", "cifar_wrn_16_1")
BATCH, RESAMPLES = 128, 10_000
CONTESTANTS = {
    "alone": [],
    "online": ["--cache.mode=off"],
    "clean": ["--cache.mode=clean"],
    "lazy": ["--cache.mode=lazy"],
    "fixed": ["--cache.mode=fixed", "--cache.views=8"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15, help="counted rounds of all contestants")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of a run; the first is not counted")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        folders = [train(home, f"teacher-{name}", 3, [f"--model={{name: {name}}}"]) for name in TEACHERS]
        for pair in range(options.pairs + 1):
            names = list(CONTESTANTS) if pair % 2 else list(reversed(CONTESTANTS))
            for name in names:
                view = "clean" if name == "clean" else "shared"
                team = ", ".join(f"{{weights: {folder}, view: {view}}}" for folder in folders)
                more = [f"--teachers=[{team}]", "--kd.type=average", *CONTESTANTS[name]] if name != "alone" else []
                rows = read_metrics(train(home, f"{name}-{pair}", options.epochs, more) / "metrics.jsonl")
                epochs = [row for row in rows if row.get("epoch", 0) > 1]
                steps = statistics.median(row["train/step_time"] for row in epochs)
                if pair:
                    seconds[name].append(steps)
                    wanted = 0.0 if name in ("alone", "online") else 1.0
                    assert all(row["perf/teacher_cache_hit_rate"] == wanted for row in epochs), name
    result = {}
    print(f"{'':<8}{'ms a step':>12}{'ratio':>9}   95% bootstrap interval of the median paired ratio")
    for name, own in seconds.items():
        ratios = np.array(own) / np.array(seconds["alone"])
        samples = np.random.default_rng(0).choice(ratios, (RESAMPLES, len(ratios)))
        low, high = np.quantile(np.median(samples, axis=1), (0.025, 0.975))
        result[name] = {"seconds": own, "ratio": float(np.median(ratios)), "interval": [float(low), float(high)]}
        print(f"{name:<8}{1000 * statistics.median(own):>12.2f}{np.median(ratios):>9.4f}   {low:.4f} to {high:.4f}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def train(home: Path, name: str, epochs: int, more: list[str]) -> Path:
    """The folder of a run with these further settings."""
    words = [
        "--teachers=[]", f"--kd.type={kd_methods.LABEL_ONLY}", "--model={name: cifar_resnet8}", "--no-wandb", "--fresh",
        f"--data.batch_size={BATCH}", f"--training.max_epochs={epochs}", "--training.compare_with_baseline=false",
        f"--name={name}", f"--output_dir={home / 'runs'}", f"--cache.dir={home / 'cache'}",
    ]  # fmt: skip
    replaced = {word.partition("=")[0] for word in more}
    words = [word for word in words if word.partition("=")[0] not in replaced] + more
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train_kd.main(words)
    [folder] = (home / "runs").glob(f"{name}-????????")
    return folder


if __name__ == "__main__":
    main()
