"""Plots of a run, and of runs side by side: plain values in, a matplotlib Figure out; `save` writes it.

They are drawn for a white background and a width of 800 pixels.  Colors are Okabe and Ito's (jfly.uni-koeln.de/color)
and viridis, which color-blind readers can tell apart, also in print; no information is in a color alone.  Names come
from data: they are shortened, and no text is read as a formula.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm, to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from kd_core.errors import printable
from kd_core.evaluation.metric_names import LABELS
from kd_core.run.selection import of_export

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
GRAY, OTHER = "#8A8A8A", "#D9D9D9"
# colors of lines that share a panel; markers differ, too
CYCLE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
MARKERS = "osD^vPX"
FAST = 2  # level of zlib's compression
WIDTH = 8.0  # inches; at 800 pixels a point is 1.4 pixels
FEW = 20  # classes up to which each is named and written into its cell
MANY = 6  # teachers up to which each is named
STYLE: Any = {
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "text.parse_math": False,
    "figure.dpi": 160,
}
P = ParamSpec("P")


def _styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """`draw` in this module's style, which other plots of the program do not take over."""

    @wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return styled


def save(figure: Figure, path: Path) -> None:
    """Write `figure` as the PNG file `path`: the same bytes for the same values, without a date or a version."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # Characters that the font lacks become boxes; the page and summary.json hold the names as they are.
        warnings.filterwarnings("ignore", r"Glyph \d+", UserWarning)
        # Figure.savefig would draw twice, first without rendering.  Full compression takes three times as long and
        # makes files 3% smaller.
        canvas = FigureCanvasAgg(figure)
        canvas.print_png(path, metadata={"Software": None}, pil_kwargs={"compress_level": FAST})


def short(name: str, limit: int = 18) -> str:
    """`name` on one line of at most `limit` characters; its end is kept, where names often differ."""
    name, tail = printable(" ".join(name.split())), limit // 3
    return name if len(name) <= limit else f"{name[: limit - 1 - tail]}…{name[-tail:]}"


def _figure(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **options).flat)


# ----------------------------------------------------------------------------------------------------- over the epochs


def _epochs(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    tested = {row["epoch"]: row for row in rows if "test_epochs/accuracy" in row}  # measured after the last epoch
    return [{**tested.get(row["epoch"], {}), **row} for row in rows if "train/loss_total" in row]


def _lines(axes: Axes, rows: list[dict[str, Any]], series: dict[str, str], ylabel: str) -> None:
    """Values over epochs; `series` is metric -> label.  Few epochs get markers, so that a single one is visible."""
    for i, (name, label) in enumerate(series.items()):
        points = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
        marker = MARKERS[i % len(MARKERS)] if len(points) <= 40 else None
        style = ("-", "--", "-.", ":")[i // len(CYCLE) % 4]
        axes.plot(
            *zip(*points, strict=True),
            color=CYCLE[i % len(CYCLE)],
            marker=marker,
            markersize=3.5,
            linestyle=style,
            linewidth=1.6,
            label=label,
        )
    axes.set_xlabel("epoch")
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    axes.grid(True)


def _legend(axes: Axes, columns: int = 1) -> None:
    """The legend above the panel, where it hides no line."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.1, handlelength=1.6, columnspacing=1.0,
                ncols=columns)  # fmt: skip


@_styled
def training_curves(rows: list[dict[str, Any]]) -> Figure:
    """Loss, accuracy and learning rate over epochs, from the rows of metrics.jsonl; ValueError without an epoch."""
    rows = _epochs(rows)
    if not rows:
        raise ValueError("no row of an epoch")
    known = set().union(*rows)
    figure, (loss, accuracy, rate) = _figure(3.2, 1, 3)

    terms = {"train/loss_total": "training, what is minimized", "train/loss_label": "training, labels' term",
             "val/loss_ce": f"validation, {LABELS['loss_ce']}"}  # fmt: skip
    _lines(loss, rows, {name: label for name, label in terms.items() if name in known}, "loss (nats)")
    _legend(loss)
    shares = {"train/accuracy": "training, augmented", "val/accuracy": "validation",
              "val/ema_accuracy": "validation, average of the weights",
              "test_epochs/accuracy": "test, which selects nothing"}  # fmt: skip
    _lines(accuracy, rows, {name: label for name, label in shares.items() if name in known}, LABELS["accuracy"])
    accuracy.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    averaged = "val/ema_accuracy" in known
    validated = [of_export(row) if averaged else row for row in rows if "val/accuracy" in row]
    if validated:
        best = max(validated, key=lambda row: row["val/accuracy"])  # the first of several, as training does
        axis_label = f"selected: epoch {best['epoch']}, {best['val/accuracy']:.1%}"
        accuracy.plot(best["epoch"], best["val/accuracy"], marker="*", markersize=11, color=BLACK, linestyle="none",
                      markerfacecolor=YELLOW, label=axis_label)  # fmt: skip
    _legend(accuracy)
    _lines(rate, rows, {"learning_rate": ""}, "learning rate (end of epoch)")
    rate.set_ylim(bottom=0)
    rate.yaxis.set_major_formatter("{x:g}")
    return figure


# metrics of every method, which are shown elsewhere or not at all
COMMON = {"loss_total", "accuracy", "step_time", "skipped_steps"}
WEIGHT, USAGE = "mean weight of each teacher", "share of images that follow it"
SHARES, TERMS = "shares and probabilities", "loss terms (nats)"
FEATURES = "feature losses, before their weight"


def method_panels(rows: list[dict[str, Any]], teachers: Sequence[str]) -> dict[str, dict[str, str]]:
    """The method's own metrics by the panel that shows them: what it measures -> metric -> label; none, no panel."""
    rows = _epochs(rows)
    panels: dict[str, dict[str, str]] = {SHARES: {}, TERMS: {}, FEATURES: {}, WEIGHT: {}, USAGE: {}}
    seen: list[list[Any]] = []
    for name in sorted(set().union(*rows), key=_terms_first):
        if not name.startswith("train/") or name.removeprefix("train/") in COMMON:
            continue
        own, values = name.removeprefix("train/"), [row.get(name) for row in rows]
        weight = re.fullmatch(r"teacher/(\d+)/weight|teacher_(\d+)_usage_fraction", own)
        if weight:
            number = int(weight[1] or weight[2])
            label = f": {short(teachers[number], 24)}" if number < len(teachers) <= MANY else ""
            panels[WEIGHT if weight[1] else USAGE][name] = f"{number}{label}"
        elif values not in seen:
            seen.append(values)
            bounded = "norm" not in own and all(value is None or 0 <= value <= 1 for value in values)
            title = SHARES if bounded else own.replace("_", " ")
            title = TERMS if own.startswith("loss_") else FEATURES if own.startswith("feature/") else title
            panels.setdefault(title, {})[name] = own
    return {title: dict(sorted(series.items(), key=_in_order)) for title, series in panels.items() if series}


def _terms_first(name: str) -> tuple[bool, bool, str]:
    """Every method's name for a series before others for the same one: a method's own, or that of a feature loss."""
    return name not in ("train/loss_label", "train/loss_distill"), name.startswith("train/feature/"), name


def _in_order(item: tuple[str, str]) -> list[tuple[int, str]]:
    """Numbers within names by their size: teacher 2 before teacher 10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", item[0])]


@_styled
def method_metrics(rows: list[dict[str, Any]], teachers: Sequence[str]) -> Figure:
    """What the method itself measured over epochs: loss terms, gates and shares, weights and usage of the teachers.

    All train/* of the rows of metrics.jsonl that not every run has, at least one; `teachers` are names.
    """
    panels, rows = method_panels(rows, teachers), _epochs(rows)
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure, grid = _figure(3.1 * lines, lines, columns)
    for axes, (title, series) in zip(grid, panels.items(), strict=False):  # the last cell of the grid may stay empty
        _lines(axes, rows, series, title)
        if title in (SHARES, WEIGHT, USAGE):
            values = np.array([row.get(name, 0.0) for row in rows for name in series], dtype=np.float64)
            values = values[np.isfinite(values)]  # a method may give weights beyond 0 and 1
            axes.set_ylim(values.min(initial=0.0) - 0.02, values.max(initial=1.0) + 0.02)
        if title == WEIGHT and len(series) > 1:
            axes.axhline(1 / len(series), color=GRAY, linewidth=1.2, linestyle=":", label="all alike")
        widest = max(map(len, series.values()))
        _legend(axes, columns=1 if widest > 18 else MANY if widest < 4 else 2)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    return figure


# -------------------------------------------------------------------------------------------------------- comparisons


def look(number: int) -> tuple[str, str]:
    """Color and marker of a group, of which no two among the first 49 are the same pair."""
    round_number, place = divmod(number, len(CYCLE))
    return CYCLE[place], MARKERS[(place + round_number) % len(MARKERS)]


@_styled
def seeds(
    points: dict[str, list[float]],
    means: Sequence[tuple[float, Sequence[float] | None]],
    metric: str,
    *,
    percent: bool,
) -> Figure:
    """Each seed's value, by group, and below it the group's mean with its interval (low, high), if any."""
    figure, [axes] = _figure(1.3 + 0.45 * len(points))
    for row, ((_, values), (mean, interval)) in enumerate(zip(points.items(), means, strict=True)):
        color, marker = look(row)
        axes.plot(values, [row + 0.15] * len(values), "o", color=color, markersize=4.5, alpha=0.55)
        if interval:
            axes.plot(interval, [row - 0.12] * 2, "-", color=color, linewidth=2)
        axes.plot([mean], [row - 0.12], marker, color=color, markersize=8)
    axes.set_yticks(range(len(points)), [short(name, 40) for name in points])
    axes.set_ylim(len(points) - 0.5, -0.5)
    axes.set_xlabel(metric)
    if percent:
        axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(True, axis="x")
    return figure


@_styled
def against_cost(
    costs: dict[str, tuple[float, float, float | None]], metric: str, *, percent: bool, within: tuple[float, float]
) -> Figure:
    """Each group's mean and standard deviation against its training time; `costs`: (seconds, mean, deviation).

    Bars of the deviation end at the limits `within` which the metric lies.
    """
    figure, [axes] = _figure(2.8 + 0.2 * len(costs))
    longest = max(seconds for seconds, _, _ in costs.values())
    scale, unit = (3600, "hours") if longest >= 7200 else (60, "minutes") if longest >= 120 else (1, "seconds")
    for row, (name, (seconds, mean, deviation)) in enumerate(costs.items()):
        color, marker = look(row)
        bars = None if deviation is None else [[min(deviation, abs(mean - limit))] for limit in within]
        axes.errorbar(seconds / scale, mean, yerr=bars, fmt=marker, color=color, markersize=8, capsize=4,
                      linestyle="none", label=short(name, 40))  # fmt: skip
    axes.set_xlabel(f"training time ({unit})")
    axes.set_xlim(left=0)
    axes.set_ylabel(metric)
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(True)
    _legend(axes)
    return figure


# -------------------------------------------------------------------------------------------------------- calibration


@_styled
def reliability(
    bins: Mapping[str, Any], ece: float, after: tuple[float, Mapping[str, Any], float] | None = None
) -> Figure:
    """Accuracy against confidence, and how many images have which confidence (Guo et al., arXiv:1706.04599).

    `bins`: lower, upper, count, confidence and accuracy of each bin, None or NaN for empty ones; `ece`: a fraction.
    `after`: a temperature, and the bins and the calibration error after the logits were divided by it.
    """
    figure, (axes, histogram) = _figure(5.6, 2, 1, sharex=True, height_ratios=(3, 1))
    lower, upper, count, confidence, accuracy = (
        np.array(bins[name], dtype=float) for name in ("lower", "upper", "count", "mean_confidence", "accuracy")
    )
    axes.bar(lower, accuracy, upper - lower, align="edge", color=SKY, edgecolor=BLUE, linewidth=0.8, label="accuracy")
    axes.bar(lower, confidence - accuracy, upper - lower, accuracy, align="edge", facecolor="none",
             edgecolor=VERMILLION, hatch="////", linewidth=0.8, label="gap to the confidence")  # fmt: skip
    axes.plot([0, 1], [0, 1], color=BLACK, linestyle="--", linewidth=1.2, label="perfectly calibrated")
    title = f"{LABELS['ece']} {ece:.1%}"
    if after:
        temperature, scaled, scaled_ece = after
        points = np.array([scaled["mean_confidence"], scaled["accuracy"]], dtype=float)
        axes.plot(*points[:, np.isfinite(points).all(0)], color=PURPLE, marker="o", markersize=4, linewidth=1.6,
                  label=f"accuracy at {LABELS['temperature']} {temperature:.2f}")  # fmt: skip
        title += f", {scaled_ece:.1%} at {LABELS['temperature']} {temperature:.2f}"
    axes.set_title(title)
    axes.set_ylabel(f"{LABELS['accuracy']} in the bin")
    axes.set_ylim(0, 1)
    axes.set_xlim(0, 1)
    axes.legend(loc="upper left")
    histogram.bar(lower, count / count.sum(), upper - lower, align="edge", color=GRAY, edgecolor="white", linewidth=0.8)
    histogram.set_ylabel("share of images")
    histogram.set_xlabel("confidence: probability of the predicted class")
    for each in (axes, histogram):
        each.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        each.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        each.grid(True, axis="y")
    return figure


# ------------------------------------------------------------------------------------------------------------ classes


@_styled
def confusion(
    matrix: list[list[int]],
    names: Sequence[str],
    superclasses: Sequence[int] | None = None,
    superclass_names: Sequence[str] | None = None,
) -> Figure:
    """Labels against predictions, each row as shares of the label's images; a root scale, so that errors are seen.

    `matrix`: counts, rows are labels.  Up to FEW classes each cell is written out; beyond, classes lie beside those
    of their superclass if those are given, else only some are named.
    """
    counts = np.array(matrix, dtype=float)
    order = np.arange(len(counts))
    if superclasses is not None:
        order = np.argsort(np.array(superclasses), kind="stable")
        counts = counts[order][:, order]
    totals = counts.sum(1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    few = len(counts) <= FEW
    figure, [axes] = _figure(6.9 if few else 8.9)
    image = axes.imshow(shares, cmap="viridis", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, location="right" if few else "top", shrink=0.8, pad=0.02,
                          ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1],
                          format=PercentFormatter(1, decimals=0))  # fmt: skip
    bar.set_label("share of the true class's images (root scale)")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    for spine in axes.spines.values():
        spine.set_visible(False)
    ticks: list[Any]
    if few:
        ticks, labels = list(range(len(order))), [short(names[i], 14) for i in order.tolist()]
        size = 9.0 if len(order) <= 12 else 6.5
        for row, column in np.argwhere(counts > 0):
            light = shares[row, column] < 0.4
            axes.text(column, row, f"{counts[row, column]:.0f}", ha="center", va="center", fontsize=size,
                      color="white" if light else "black")  # fmt: skip
    elif superclasses is not None and superclass_names is not None:
        groups = np.array(superclasses)[order]
        edges = np.flatnonzero(np.diff(groups)) + 0.5
        middles = np.split(np.arange(len(order)), np.flatnonzero(np.diff(groups)) + 1)
        ticks = [members.mean() for members in middles]
        labels = [short(superclass_names[groups[members[0]]], 24) for members in middles]
        limits = (-0.5, len(order) - 0.5)
        axes.hlines(edges, *limits, color="white", linewidth=0.35, alpha=0.6)
        axes.vlines(edges, *limits, color="white", linewidth=0.35, alpha=0.6)
        axes.set_xlabel("predicted class, by superclass")
        axes.set_ylabel("true class, by superclass")
    else:
        every = -(-len(order) // 34)
        ticks, labels = list(range(0, len(order), every)), [short(names[i], 16) for i in order[::every].tolist()]
        note = f", every {every}th named" if every > 1 else ""
        axes.set_xlabel(f"predicted class{note}")
        axes.set_ylabel(f"true class{note}")
    fontsize = 9.0 if few else 8.0
    axes.set_xticks(ticks, labels, rotation=90 if len(ticks) > 12 else 45, fontsize=fontsize,
                    ha="center" if len(ticks) > 12 else "right", rotation_mode=None if len(ticks) > 12 else "anchor",
                    va="top" if len(ticks) > 12 else "center")  # fmt: skip
    axes.set_yticks(ticks, labels, fontsize=fontsize)
    return figure


def _named_bars(axes: Axes, names: Sequence[str], gains: np.ndarray, errors: np.ndarray, title: str = "") -> None:
    """Horizontal bars with names, values and standard errors; all are fractions, drawn as percentage points."""
    places, points = np.arange(len(gains)), 100 * gains
    colors, whiskers = [BLUE if gain >= 0 else VERMILLION for gain in gains], 100 * errors
    axes.barh(places, points, color=colors, height=0.72, xerr=whiskers, ecolor=GRAY, error_kw={"linewidth": 1.2})
    axes.set_yticks(places, [short(name, 20) for name in names])
    axes.invert_yaxis()
    axes.axvline(0, color=BLACK, linewidth=0.9)
    reach = max(1.0, float(np.abs(points).max()))
    for place, (point, error) in enumerate(zip(points.tolist(), whiskers.tolist(), strict=True)):
        beyond = error + 0.03 * reach
        axes.text(point + (beyond if point >= 0 else -beyond), place, f"{point:+.1f}".replace("-", "−"),
                  va="center", ha="left" if point >= 0 else "right", fontsize=8.5)  # fmt: skip
    axes.margins(x=0.22, y=0.02)
    axes.set_xlabel(f"{LABELS['gain']} (points)")
    axes.set_title(title)
    axes.grid(True, axis="x")


@_styled
def gains(names: Sequence[str], values: Sequence[float], errors: Sequence[float] | None = None) -> Figure:
    """Each class's accuracy minus that of the same student trained alone, sorted; beyond FEW the ends are named.

    `values` are differences of fractions, one for each name, and `errors` their standard errors.
    """
    values_, order = np.array(values), np.argsort(-np.array(values), kind="stable")
    errors_ = np.zeros(len(values_)) if errors is None else np.array(errors)
    higher, lower = int((values_ > 0).sum()), int((values_ < 0).sum())
    bars = "" if errors is None else "; lines: one standard error"
    title = f"{higher} classes higher, {lower} lower, {len(values_) - higher - lower} equal{bars}"
    if len(order) <= FEW:
        figure, [axes] = _figure(0.9 + 0.34 * len(order))
        _named_bars(axes, [names[i] for i in order], values_[order], errors_[order], title)
        return figure
    figure = Figure(figsize=(WIDTH, 6.4), layout="constrained")
    parts = figure.subplot_mosaic([["all", "all"], ["best", "worst"]], height_ratios=(1, 1.35))
    points = 100 * values_[order]
    parts["all"].bar(range(len(order)), points, width=0.85,
                     color=[BLUE if point >= 0 else VERMILLION for point in points])  # fmt: skip
    parts["all"].axhline(0, color=BLACK, linewidth=0.9)
    mean = float(points.mean())
    parts["all"].axhline(mean, color=BLACK, linewidth=1.2, linestyle="--", label=f"mean {mean:+.1f}".replace("-", "−"))
    parts["all"].legend(loc="upper right")
    parts["all"].set_xlabel("classes, from the greatest rise to the greatest fall")
    parts["all"].set_ylabel(f"{LABELS['gain']} (points)")
    parts["all"].set_title(title)
    parts["all"].margins(x=0.01)
    parts["all"].grid(True, axis="y")
    ends = (("best", order[:10], "ten best"), ("worst", order[::-1][:10], "ten worst, the worst first"))
    for part, chosen, name in ends:
        _named_bars(parts[part], [names[i] for i in chosen], values_[chosen], errors_[chosen], name)
    return figure


# ----------------------------------------------------------------------------------------------------------- teachers


@_styled
def teacher_weights(weights: Tensor, right: Tensor, names: Sequence[str]) -> Figure:
    """How the method weighs each teacher where that teacher is right, and where it is wrong.

    weights [K,N], right bool [K,N], K names.  A method that recognizes good teachers has its right images further to
    the right.
    """
    count = len(weights)
    columns = min(3, count)
    lines = -(-count // columns)
    figure, grid = _figure(0.3 + 2.7 * lines, lines, columns, sharex=True, sharey=True)
    least, most = (round(float(weight), 6) for weight in (weights.min(), weights.max()))
    top = max(0.1, float(np.ceil(most * 10.5) / 10))
    edges = np.linspace(min(0.0, float(np.floor(least * 10) / 10)), top if most > 1 else min(1.0, top), 31)
    for i, axes in enumerate(grid):
        if i >= count:
            axes.set_axis_off()
            continue
        for mask, color, hatch, word in ((right[i], BLUE, None, "right"), (~right[i], VERMILLION, "////", "wrong")):
            chosen = weights[i][mask].double().numpy()
            if not len(chosen):
                continue
            share, filled = np.full(len(chosen), 1 / len(chosen)), hatch is None
            axes.hist(chosen, edges.tolist(), weights=share, histtype="stepfilled", edgecolor=color, hatch=hatch,
                      facecolor=color if filled else "none", alpha=0.75 if filled else 1, linewidth=1.2,
                      label=f"{word}: {len(chosen):,} images, mean {chosen.mean():.2f}")  # fmt: skip
        axes.axvline(1 / count, color=BLACK, linestyle=":", linewidth=1.2)
        axes.set_title(f"{i}: {short(names[i], 26)}", pad=34)
        _legend(axes)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(True, axis="y")
        if i % columns == 0:
            axes.set_ylabel("share of those images")
        if i + columns >= count:
            axes.set_xlabel("weight of this teacher")
            axes.tick_params(labelbottom=True)
    return figure


# ------------------------------------------------------------------------------------------------------------- images


@_styled
def mistakes(
    images: Tensor,
    labels: Tensor,
    probabilities: Sequence[Tensor],
    networks: Sequence[str],
    class_names: Sequence[str],
) -> Figure:
    """Images with the three most probable classes of each network, one image a line.

    images uint8 [n,H,W,3], labels int64 [n], for each of the `networks` probabilities [n,C].
    """
    count, columns = len(images), len(networks)
    side, gap = 0.86, 0.12  # inches: of an image; between lines
    head, foot = 0.5, 0.1
    height = head + count * (side + gap) + foot
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(height, 0)
    axes.set_axis_off()
    start = side + 0.25
    wide = (WIDTH - start) / columns
    letters = max(6, int((wide - 0.55) / 0.08))  # that fit beside the percentage
    for column, network in enumerate(networks):
        axes.text(
            start + column * wide, 0.22, short(network, int(wide / 0.095)), fontsize=9, weight="bold", va="center"
        )
    axes.text(0.1, 0.22, "image", fontsize=9, weight="bold", va="center")
    tops = [each.topk(min(3, each.shape[1]), dim=1) for each in probabilities]
    pixels, bars = images.numpy(), list[Any]()
    for line in range(count):
        y, label = head + line * (side + gap), int(labels[line])
        axes.imshow(pixels[line], extent=(0.1, 0.1 + side - 0.1, y + side - 0.1, y), aspect="auto",
                    interpolation="nearest" if max(pixels[line].shape[:2]) < 120 else "antialiased")  # fmt: skip
        step = side / 4
        for column, top in enumerate(tops):
            x = start + column * wide
            if column == 0:
                axes.text(x, y + 0.06, f"true: {short(class_names[label], letters)}", fontsize=8.5, va="center",
                          color=BLACK, style="italic")  # fmt: skip
            values, classes = top.values[line].tolist(), top.indices[line].tolist()
            for place, (value, guess) in enumerate(zip(values, classes, strict=True)):
                middle, hit = y + 0.06 + (place + 1) * step, guess == label
                bars.append((middle, (wide - 0.12) * value, x, to_rgba(*((GREEN, 0.55) if hit else (OTHER, 1.0)))))
                axes.text(x + 0.04, middle, short(class_names[guess], letters - 3 * hit) + " ✓" * hit, fontsize=8,
                          va="center", weight="bold" if hit else "normal")  # fmt: skip
                axes.text(x + wide - 0.14, middle, f"{value:.0%}", fontsize=8, va="center", ha="right")
    middles, widths, lefts, colors = zip(*bars, strict=True)
    axes.barh(middles, widths, side / 4 * 0.86, left=lefts, color=colors)  # one call for all: each takes a millisecond
    # imshow sets limits of its own
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(height, 0)
    return figure
