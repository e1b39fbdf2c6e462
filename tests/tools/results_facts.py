"""Small tables of docs/results.md that compare_kd.py has no option for: teachers, seeds, classes and epochs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import results_plots

from kd_core.comparison.runs import Run
from kd_core.report import text_table

EPOCHS = (1, 3, 5, 8, 10, 12, 15)


def the_teachers(found: Sequence[Run]) -> str:
    """Each teacher by itself and each set of several together, on the test split."""
    _, taught = results_plots.rows(found)
    single: dict[str, tuple[float, ...]] = {}
    together: dict[str, tuple[float, ...]] = {}
    for one in taught:
        measured = one.first.summary["evaluation"]["test"]
        team = results_plots.team(one)
        single |= {name: _quality(values) for name, values in zip(team, measured["teachers"], strict=True)}
        if len(team) > 1:
            together["+".join(team)] = _quality(measured["ensemble"])
    rows = [[name, *_shown(values)] for name, values in sorted(single.items(), key=lambda one: -one[1][0])]
    rows += [[name, *_shown(values)] for name, values in together.items()]
    return text_table.markdown(["teachers", "test/accuracy %", "test/ece", "test/nll"], rows)


def _quality(values: dict[str, Any]) -> tuple[float, ...]:
    return values["accuracy"], values["ece"], values["nll"]


def _shown(values: tuple[float, ...]) -> list[str]:
    accuracy, *others = values
    return [f"{100 * accuracy:.2f}", *(f"{value:.3f}" for value in others)]


def by_seed(compared: dict[str, Any], pairs: Sequence[str]) -> str:
    """The differences of the contrasts, seed by seed, in points; `pairs` are the contrasts as they were asked for."""
    groups = [row for one in compared["sets"] for row in one["groups"]]
    values = {row["label"]: {run["seed"]: run["value"] for run in row["seeds"]} for row in groups}
    seeds = sorted({seed for test in compared["contrasts"] for seed in test["seeds"]})
    rows = []
    for test, pair in zip(compared["contrasts"], pairs, strict=True):
        own, other = values[test["label"]], values[test["against"]]
        cells = [f"{100 * (own[seed] - other[seed]):+.2f}" if seed in test["seeds"] else "" for seed in seeds]
        rows.append([pair.replace("results-", "").replace(":", " against "), *cells])
    return text_table.markdown(["contrast", *(f"seed {seed}" for seed in seeds)], rows)


def classes(found: Sequence[Run]) -> str:
    """How much the gains of the 100 classes differ, beside what seeds alone give where all classes gain alike."""
    alone, taught = results_plots.rows(found)
    rows = []
    for one in taught:
        if len(seeds := results_plots.common_seeds(one, alone)) < 2:
            continue
        gains, chance, p = results_plots.class_gains(one, alone)
        shown = "<0.0001" if p < 0.0001 else f"{p:.4f}"
        cells = [f"{gains.std(ddof=1):.1f}", f"{chance:.1f}", shown, f"{(gains < -1e-9).sum()}"]
        rows.append([results_plots.name(one), str(len(seeds)), *cells])
    header = ["teachers", "seeds", "spread of the gains", "by seeds alone", "p", "classes that lose"]
    return text_table.markdown(header, rows)


def by_epoch(found: Sequence[Run]) -> str:
    """Training accuracy of the student alone after each of some epochs, and how far the others are ahead of it."""
    alone, taught = results_plots.rows(found)
    base = _course(alone.runs.values())
    rows = [["none: accuracy %", *(f"{100 * value:.1f}" for value in base)]]
    for one in taught:
        if not (common := results_plots.common_seeds(one, alone)):
            continue
        own, other = (_course(side.runs[seed] for seed in common) for side in (one, alone))
        rows.append([results_plots.name(one), *(f"{100 * value:+.1f}" for value in np.subtract(own, other))])
    return text_table.markdown(["teachers", *(f"epoch {epoch}" for epoch in EPOCHS)], rows)


def _course(found: Iterable[Run]) -> list[float]:
    """Mean accuracy on the training views after each of `EPOCHS`."""
    courses = [{row["epoch"]: row["train/accuracy"] for row in run.rows if "train/accuracy" in row} for run in found]
    return [fmean(course[epoch] for course in courses) for epoch in EPOCHS]
