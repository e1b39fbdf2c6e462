#!/usr/bin/env python
"""Random against Bayesian search: how good is the best of 30 trials?

    python -m benchmarks.sweep_search
    python -m benchmarks.sweep_search --trials 60 --seeds 50

Both sample as `sweeps/run_local.py` does.  The objective is synthetic: an accuracy that depends on six parameters of
the kinds used in this project's sweeps, with optima inside the ranges, an interaction (the best temperature depends on
the method) and noise as between seeds of one run.  Trials are ranked by their noisy value, as in a real sweep; the
results compare the true value of the best-ranked trial.
"""

import argparse
import json
import math
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

import optuna
import yaml
from scipy import stats

from kd_sweeps.samplers import create_sampler, draw
from kd_sweeps.sweep_file import Sweep, read_sweep

PARAMETERS = {
    "kd.type": {"values": ["average", "ca_weighted", "dynamic", "confidence"]},
    "kd.temperature": {"distribution": "q_uniform", "min": 1.0, "max": 16.0, "q": 0.5},
    "kd.alpha": {"min": 0.0, "max": 1.0},
    "training.learning_rate": {"distribution": "log_uniform_values", "min": 1.0e-4, "max": 1.0},
    "training.weight_decay": {"distribution": "log_uniform_values", "min": 1.0e-6, "max": 1.0e-2},
    "training.warmup_epochs": {"min": 0, "max": 10},
}
NOISE = 0.003  # standard deviation between seeds of one run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    found = {
        method: [best_of(method, options.trials, seed) for seed in range(options.seeds)]
        for method in ("random", "bayes")
    }
    print(f"true value of the best of {options.trials} trials, {options.seeds} seeds (optimum: 0.8)")
    for method, values in found.items():
        print(f"{method:>8}  mean {statistics.mean(values):.4f}  standard deviation {statistics.stdev(values):.4f}")
    differences = [bayes - by_chance for by_chance, bayes in zip(found["random"], found["bayes"], strict=True)]
    wins = sum(difference > 0 for difference in differences)
    mean = statistics.mean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    half = float(stats.t.ppf(0.975, len(differences) - 1)) * error
    print(f"bayes wins {wins} of {len(differences)}; paired difference {mean:+.4f}, 95% interval "
          f"{mean - half:+.4f} to {mean + half:+.4f}")  # fmt: skip
    if options.json:
        figures = {**found, "wins": wins, "difference": mean, "interval": [mean - half, mean + half]}
        options.json.write_text(json.dumps(figures, indent=2))


def best_of(method: str, trials: int, seed: int) -> float:
    """The true value of the trial with the best noisy value."""
    sweep = sweep_of(method)
    study = optuna.create_study(direction="maximize", sampler=create_sampler(sweep, seed=seed))
    noise = random.Random(seed)
    results = []
    for _ in range(trials):
        trial = study.ask()
        true = accuracy(draw(sweep, trial))
        seen = true + noise.gauss(0, NOISE)
        study.tell(trial, seen)
        results.append((seen, true))
    return max(results)[1]


def sweep_of(method: str) -> Sweep:
    content = {
        "program": "none.py",
        "method": method,
        "metric": {"name": "accuracy", "goal": "maximize"},
        "parameters": PARAMETERS,
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "search.yaml"
        file.write_text(yaml.safe_dump(content))
        return read_sweep(file)


def accuracy(values: dict[str, Any]) -> float:
    """The synthetic accuracy, at most 0.8."""
    best_temperature = {"average": 4, "ca_weighted": 4, "dynamic": 6, "confidence": 8}[values["kd.type"]]
    losses = [
        {"average": 0.02, "ca_weighted": 0.01, "dynamic": 0.0, "confidence": 0.015}[values["kd.type"]],
        0.02 * (values["kd.temperature"] - best_temperature) ** 2 / 16,
        0.05 * (values["kd.alpha"] - 0.7) ** 2,
        0.03 * (math.log10(values["training.learning_rate"]) + 1.3) ** 2,
        0.01 * (math.log10(values["training.weight_decay"]) + 3.3) ** 2,
        0.0005 * abs(values["training.warmup_epochs"] - 5),
    ]
    return max(0.01, 0.8 - sum(losses))


if __name__ == "__main__":
    main()
