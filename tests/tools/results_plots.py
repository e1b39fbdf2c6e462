"""The plots of docs/results.md: what teachers add by their number, against time, and class by class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from kd_core.comparison.compare import Group, group
from kd_core.comparison.runs import Run
from kd_core.comparison.significance import difference
from kd_core.report import plots

METRIC = "test/accuracy"


def teachers(runs: Sequence[Run], path: Path) -> None:
    """Write the plot of groups that differ in their teachers; one of them has none."""
    alone, taught = rows(runs)
    figure = Figure(figsize=(plots.WIDTH, 8.5), layout="constrained")
    (by_number, by_time), (by_class, unused) = figure.subplots(2, 2)
    unused.axis("off")
    for number, one in enumerate(taught):
        look = dict(zip(("color", "marker"), plots.look(number), strict=True))
        _gain(by_number, one, alone, look)
        _time(by_time, one, look)
        _classes(by_class, one, alone, look)
    _time(by_time, alone, {"color": plots.GRAY, "marker": "o"})
    by_number.set(xlabel="teachers", ylabel="gain over the student alone, points", xticks=range(1, 5))
    by_time.set(xlabel="minutes of training", ylabel=METRIC)
    by_time.yaxis.set_major_formatter(PercentFormatter(1))
    by_class.set(xlabel="classes, by gain", ylabel="gain of the class, points")
    by_class.axhline(0, color=plots.BLACK, linewidth=0.8)
    for axes in (by_number, by_time, by_class):
        axes.grid(True)
    handles, labels = by_number.get_legend_handles_labels()
    unused.legend(handles, labels, loc="upper left")
    plots.save(figure, path)


def rows(runs: Sequence[Run]) -> tuple[Group, list[Group]]:
    """The student alone, and the others in the order of their views and number of teachers."""
    groups, _ = group(runs)
    [alone] = [one for one in groups if one.is_alone]
    return alone, sorted((one for one in groups if one is not alone), key=lambda one: (_kind(one), len(_team(one))))


def gain(one: Group, alone: Group) -> dict[str, Any]:
    """The difference in accuracy, paired by seed, with its 95% interval."""
    return difference(one.values(METRIC), alone.values(METRIC), 0.95, (0, 1))


def name(one: Group) -> str:
    """The row: depths of the ResNets and their views, and teachers of other families."""
    return f"{'+'.join(_team(one))}, {_kind(one)}"


def _team(one: Group) -> list[str]:
    return [teacher.removeprefix("cifar_resnet").removesuffix(".safetensors") for teacher in one.first.teachers]


def _kind(one: Group) -> str:
    views = {teacher.view for teacher in one.first.config.teachers if not teacher.logits}
    return "shared views" if "shared" in views else "clean views"


def _gain(axes: Axes, one: Group, alone: Group, look: dict[str, str]) -> None:
    found = gain(one, alone)
    low, high = found["interval"] or [found["mean"]] * 2
    bars = [[100 * (found["mean"] - low)], [100 * (high - found["mean"])]]
    shift = 0.08 if _kind(one) == "shared views" else -0.08  # so that neither hides the other
    axes.errorbar(
        len(_team(one)) + shift, 100 * found["mean"], yerr=bars, linestyle="none", capsize=4, label=name(one), **look
    )


def _time(axes: Axes, one: Group, look: dict[str, str]) -> None:
    seconds = fmean(run.training_seconds or np.nan for run in one.runs.values())
    axes.plot(seconds / 60, fmean(one.values(METRIC).values()), linestyle="none", **look)


def _classes(axes: Axes, one: Group, alone: Group, look: dict[str, str]) -> None:
    """The gain of each class, sorted, as the mean over the common seeds."""
    common = sorted(one.runs.keys() & alone.runs.keys())
    own, other = (
        np.mean([side.runs[seed].summary["evaluation"]["test"]["class_accuracy"] for seed in common], axis=0)
        for side in (one, alone)
    )
    axes.plot(np.sort(100 * (own - other)), color=look["color"], linewidth=1.4)
