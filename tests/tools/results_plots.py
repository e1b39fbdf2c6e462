"""The plots of docs/results.md: what teachers add by their number, against arithmetic, and class by class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import results_cost
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from scipy.stats import f, norm

from kd_core.comparison.compare import Group, group
from kd_core.comparison.runs import Run
from kd_core.comparison.significance import difference, pooled
from kd_core.report import plots

METRIC, CLEAN, SHARED = "test/accuracy", "clean views", "shared views"
FEWEST = 3  # seeds, below which gains of single classes are not drawn: they are mostly chance


def teachers(runs: Sequence[Run], path: Path) -> None:
    """Write the plot of groups that differ in their teachers; one of them has none."""
    alone, taught = rows(runs)
    figure = Figure(figsize=(plots.WIDTH, 8.5), layout="constrained")
    (by_number, by_cost), (by_class, unused) = figure.subplots(2, 2)
    unused.axis("off")
    fit = [one for one in taught if len(common_seeds(one, alone)) >= FEWEST]
    kinds = [[one for one in fit if _kind(one) == kind] for kind in (CLEAN, SHARED)]
    shown_by_class = [max(members, key=lambda one: (len(one.runs), len(team(one)))) for members in kinds if members]
    for number, (one, found) in enumerate(zip(taught, gains(alone, taught), strict=True)):
        look = dict(zip(("color", "marker"), plots.look(number), strict=True))
        look["markerfacecolor"] = "none" if _kind(one) == SHARED else look["color"]
        place = [other for other in taught if len(team(other)) == len(team(one))]
        shift = 0.12 * (place.index(one) - (len(place) - 1) / 2)  # so that none hides another
        _gain(by_number, one, found, shift, look)
        _cost(by_cost, one, look)
        if one in shown_by_class:
            _classes(by_class, one, alone, look["color"])
    _cost(by_cost, alone, {"color": plots.GRAY, "marker": "o", "label": "student alone"})
    by_number.set(xlabel="teachers", ylabel="gain over the student alone, points", xticks=range(1, 5))
    by_cost.set(xlabel="multiply-adds of student and teachers, 10¹²", ylabel="test accuracy", xlim=(0, None))
    by_cost.yaxis.set_major_formatter(PercentFormatter(1))
    by_class.set(xlabel="classes, by gain", ylabel="gain of the class, points")
    for axes in (by_number, by_cost, by_class):
        axes.grid(True)
    by_number.set_ylim(bottom=min(0, by_number.get_ylim()[0]))  # a gain that begins at 2 would look large
    found = [axes.get_legend_handles_labels() for axes in (by_number, by_cost)]
    unused.add_artist(unused.legend(*map(sum, zip(*found, strict=True), ([], [])), loc="upper left"))
    if by_class.lines:
        unused.legend(*by_class.get_legend_handles_labels(), loc="lower left", title="gains of the classes")
    plots.save(figure, path)


def rows(runs: Sequence[Run]) -> tuple[Group, list[Group]]:
    """The student alone, and the others in the order of their views and number of teachers."""
    groups, _ = group(runs)
    [alone] = [one for one in groups if one.is_alone]
    return alone, sorted((one for one in groups if one is not alone), key=lambda one: (_kind(one), len(team(one))))


def gains(alone: Group, taught: Sequence[Group]) -> list[dict[str, Any]]:
    """The differences in accuracy to the student alone with their 95% intervals: with one variance for all groups."""
    values = {str(number): one.values(METRIC) for number, one in enumerate((alone, *taught))}
    common = pooled(values)
    if common is None:
        return [difference(one.values(METRIC), alone.values(METRIC), 0.95, (0, 1)) for one in taught]
    return [common.difference(str(number), "0", 0.95, (0, 1)) for number in range(1, len(values))]


def name(one: Group) -> str:
    """The row: depths of the ResNets and their views, and teachers of other families; none for the student alone."""
    return "none" if one.is_alone else f"{'+'.join(team(one))}, {_kind(one)}"


def common_seeds(one: Group, alone: Group) -> list[Any]:
    return sorted(one.runs.keys() & alone.runs.keys())


class ClassGains(NamedTuple):
    """What each class gains over the student alone, in points.

    gains: [classes], means over the seeds that both have.
    chance: their standard deviation if all classes gained alike on these images: that of seeds alone.
    p: of the hypothesis that they do (F test of class by seed).
    """

    gains: np.ndarray
    chance: float
    p: float


def by_class(one: Group, alone: Group) -> np.ndarray:
    """The gains [seeds,classes] in points, of the seeds that both have."""
    own, other = (
        np.array([side.runs[seed].summary["evaluation"]["test"]["class_accuracy"] for seed in common_seeds(one, alone)])
        for side in (one, alone)
    )
    return 100 * (own - other)


def class_gains(one: Group, alone: Group) -> ClassGains:
    """Two seeds at least: how much the gain of a class differs from seed to seed says what chance does."""
    found = by_class(one, alone)
    seeds, classes = found.shape
    means = found.mean(0)
    rest = found - means - found.mean(1, keepdims=True) + found.mean()
    square = (rest**2).sum() / ((seeds - 1) * (classes - 1))
    p = f.sf(seeds * means.var(ddof=1) / square, classes - 1, (seeds - 1) * (classes - 1))
    return ClassGains(means, float(np.sqrt(square / seeds)), float(p))


def team(one: Group) -> list[str]:
    return [teacher.removeprefix("cifar_resnet").removesuffix(".safetensors") for teacher in one.first.teachers]


def _kind(one: Group) -> str:
    views = {teacher.view for teacher in one.first.config.teachers if not teacher.logits}
    return SHARED if "shared" in views else CLEAN


def _gain(axes: Axes, one: Group, found: dict[str, Any], shift: float, look: dict[str, str]) -> None:
    """The gain, with its interval if there is one."""
    bars = found["interval"] and np.abs(100 * (np.array(found["interval"])[:, None] - found["mean"]))
    place = len(team(one)) + shift
    axes.errorbar(place, 100 * found["mean"], yerr=bars, linestyle="none", capsize=4, label=name(one), **look)


def _cost(axes: Axes, one: Group, look: dict[str, str]) -> None:
    axes.plot(results_cost.of(one.first).total, fmean(one.values(METRIC).values()), linestyle="none", **look)


def _classes(axes: Axes, one: Group, alone: Group, color: str) -> None:
    """The gains of the classes, sorted, and dotted those that chance would give if all classes gained the same."""
    gains, deviation, _ = class_gains(one, alone)
    axes.plot(np.sort(gains), color=color, linewidth=1.4, label=name(one))
    quantiles = norm.ppf((np.arange(len(gains)) + 0.5) / len(gains))
    alike = gains.mean() + deviation * quantiles
    axes.plot(alike, color=color, linestyle=":", linewidth=1.2, label="the same, if all classes gained alike")
