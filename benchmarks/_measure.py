"""What all benchmarks share: alternating measurements, paired ratios with intervals, and reporting."""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

RESAMPLES = 10_000


@dataclass
class Options:
    """How much to measure, on which data, and a scratch folder."""

    pairs: int
    quick: bool
    scratch: Path
    data_path: Path | None = None
    against: Path | None = None  # another checkout of this project

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def few(self, most: int) -> int:
        """The number of pairs for slow measurements that are far from their target."""
        return min(self.pairs, most)

    def folder(self, name: str) -> Path:
        folder = self.scratch / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


# ------------------------------------------------------------------------------------------------- alternation


def interleave(
    contestants: Mapping[str, Callable[[], float]], pairs: int, warm_up: int = 1, *, reverse: bool = False
) -> dict[str, list[float]]:
    """The values of each contestant over `pairs` rounds; every round reverses the order."""
    values: dict[str, list[float]] = {name: [] for name in contestants}
    for round_number in range(warm_up + pairs):
        names = list(contestants)
        for name in reversed(names) if reverse != bool(round_number % 2) else names:
            value = contestants[name]()
            if round_number >= warm_up:
                values[name].append(value)
    return values


def interleave_beside(
    reference: Callable[[], float], contestants: Mapping[str, Callable[[], float]], pairs: int, warm_up: int = 1
) -> dict[str, tuple[list[float], list[float]]]:
    """For each contestant its values and those of the reference, which is measured again next to each of them.

    With many contestants, this keeps the two sides of a ratio close in time.
    """
    values: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in contestants}
    for round_number in range(warm_up + pairs):
        for name, contestant in contestants.items():
            beside = interleave({"own": contestant, "other": reference}, 1, 0, reverse=bool(round_number % 2))
            if round_number >= warm_up:
                values[name][0].extend(beside["own"])
                values[name][1].extend(beside["other"])
    return values


def seconds_of(
    action: Callable[[], Any], repeats: int = 1, wait: Callable[[], Any] = lambda: None
) -> Callable[[], float]:
    """A contestant: the mean duration of `action` in seconds over `repeats` calls; `wait` until their work is done."""

    def timed() -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            action()
        wait()
        return (time.perf_counter() - start) / repeats

    return timed


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the median."""
    samples = np.random.default_rng(0).choice(np.asarray(values), (RESAMPLES, len(values)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.median(samples, axis=1), (tail, 1 - tail))
    return float(low), float(high)


# ------------------------------------------------------------------------------------------------- results


@dataclass(frozen=True)
class Target:
    """A bound that was set before measuring."""

    limit: float
    at_least: bool = False  # otherwise at most

    def met(self, low: float, high: float) -> bool:
        """Whether the worse end of the interval is within the bound."""
        return low >= self.limit if self.at_least else high <= self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:,g}"


@dataclass
class Comparison:
    """One contestant against another: the paired ratios `subject / reference`.

    own, others: values of subject and reference, one per round.
    """

    name: str
    own: list[float]
    others: list[float]
    unit: str
    target: Target | None = None

    @cached_property
    def ratios(self) -> list[float]:
        return [own / other for own, other in zip(self.own, self.others, strict=True)]

    @cached_property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @cached_property
    def interval(self) -> tuple[float, float]:
        return median_interval(self.ratios)

    @property
    def verdict(self) -> str:
        return verdict(self.target, *self.interval)

    def line(self, width: int) -> str:
        low, high = self.interval
        medians = " / ".join(quantity(statistics.median(values), self.unit) for values in (self.own, self.others))
        spread = f"{number(low)} to {number(high)}"
        return f"{self.name:<{width}}  {medians:<36}{number(self.ratio):>8}  {spread:<20}{self.verdict}".rstrip()

    def record(self) -> dict[str, Any]:
        low, high = self.interval
        found = {
            "name": self.name, "unit": self.unit, "own": self.own, "others": self.others, "ratio": self.ratio,
            "interval": [low, high],
        }  # fmt: skip
        return found | target_record(self.target, low, high)


@dataclass
class Figure:
    """A single number, possibly with a target; `curve` and `x` make it a point of a curve."""

    name: str
    value: float
    unit: str
    target: Target | None = None
    curve: str = ""
    x: float = 0.0

    @property
    def verdict(self) -> str:
        return verdict(self.target, self.value, self.value)

    def line(self, width: int) -> str:
        return f"{self.name:<{width}}  {quantity(self.value, self.unit):<66}{self.verdict}".rstrip()

    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = {"name": self.name, "value": self.value, "unit": self.unit}
        if self.curve:
            found |= {"curve": self.curve, "x": self.x}
        return found | target_record(self.target, self.value, self.value)


@dataclass
class Note:
    """A remark on the results, or why there are none."""

    name: str

    def line(self, width: int) -> str:
        return self.name

    def record(self) -> dict[str, Any]:
        return {"note": self.name}


Result = Comparison | Figure | Note


def compare(
    values: Mapping[str, list[float]], subject: str, reference: str, unit: str, target: Target | None = None
) -> Comparison:
    """The comparison of two contestants of `interleave`."""
    return Comparison(f"{subject} / {reference}", values[subject], values[reference], unit, target)


def verdict(target: Target | None, low: float, high: float) -> str:
    if target is None:
        return ""
    if target.met(low, high):
        return f"met: {target}"
    return f"MISSED: {target}, interval {number(low)} to {number(high)}"


def target_record(target: Target | None, low: float, high: float) -> dict[str, Any]:
    return {"target": str(target), "met": target.met(low, high)} if target else {}


def number(value: float) -> str:
    """`value` with four significant digits."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def quantity(value: float, unit: str) -> str:
    """A value with its unit; seconds as ms or us if below 1 s."""
    if unit.split(" ")[0] == "s":
        factor, prefix = next((pair for pair in ((1, ""), (1e3, "m")) if abs(value) * pair[0] >= 1), (1e6, "u"))
        return f"{number(value * factor)} {prefix}{unit}"
    return f"{number(value)} {unit}"


# ------------------------------------------------------------------------------------------------- reporting


@dataclass
class Report:
    """All results so far, by part; the JSON file is rewritten after each part."""

    machine: dict[str, Any]
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    results: dict[str, list[Result]] = field(default_factory=dict)

    def add(self, part: str, results: Iterable[Result], seconds: float) -> None:
        self.results[part] = list(results)
        records = [result.record() for result in self.results[part]]
        self.parts[part] = {"seconds": seconds, "results": records}

    def table(self, part: str) -> str:
        results = self.results[part]
        width = max((len(result.name) for result in results if not isinstance(result, Note)), default=0)
        head = f"{'':<{width}}  {'medians':<36}{'ratio':>8}  {'95% interval':<20}target"
        lines = [head] if any(isinstance(result, Comparison) for result in results) else []
        return "\n".join([*lines, *(result.line(width) for result in results)])

    def write_json(self, path: Path) -> None:
        path.write_text(json.dumps({"machine": self.machine, "parts": self.parts}, indent=2) + "\n", encoding="utf-8")

    def verdicts(self) -> str:
        """How many targets were met, and the names of those missed."""
        judged = [
            (f"{part}: {result.name}", result)
            for part, results in self.results.items()
            for result in results
            if not isinstance(result, Note) and result.target
        ]
        missed = [f"  {name}: {result.verdict}" for name, result in judged if result.verdict.startswith("MISSED")]
        return "\n".join([f"{len(judged) - len(missed)} of {len(judged)} targets met", *missed])


def machine_facts() -> dict[str, Any]:
    """What the results depend on besides the code."""
    import torch

    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def plot(report: Report, path: Path) -> None:
    """Draw the ratios with intervals and targets, one per row, and the curves below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [
        (f"{part}: {result.name}", result)
        for part, results in report.results.items()
        for result in results
        if isinstance(result, Comparison)
    ]
    curves: dict[str, list[Figure]] = {}
    for results in report.results.values():
        for result in results:
            if isinstance(result, Figure) and result.curve:
                curves.setdefault(result.curve, []).append(result)
    lines = (len(curves) + 1) // 2
    heights = {"ratios": (0.3 * len(rows) + 1.2) * bool(rows), "curves": 3.0 * lines}
    used = {name: height for name, height in heights.items() if height} or {"ratios": 1.0}
    figure = pyplot.figure(figsize=(12, sum(used.values()) + 0.4), layout="constrained")
    figure.suptitle("{cpu}, {cores} cores, one thread, torch {torch}".format(**report.machine), fontsize=10)
    areas = figure.subfigures(len(used), 1, height_ratios=list(used.values()), squeeze=False)[:, 0]
    if rows:
        _plot_ratios(areas[0].subplots(), rows)
    if curves:
        grid = areas[-1].subplots(lines, 2, squeeze=False).flatten()
        for axes in grid[len(curves) :]:
            axes.set_axis_off()
        for axes, (name, points) in zip(grid, curves.items(), strict=False):  # one stays empty if their number is odd
            places, values = [point.x for point in points], [point.value for point in points]
            axes.plot(places, values, "o-", color="#1f5a99")
            axes.set_title(name, fontsize=10)
            axes.set(ylabel=points[0].unit, xscale="log", ylim=(0, 1.1 * max(values)))
            axes.set_xticks(places, [f"{place:,g}" for place in places])
            axes.set_xticks([], minor=True)
            axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _plot_ratios(axes: Any, rows: list[tuple[str, Comparison]]) -> None:
    for height, (_, result) in enumerate(rows):
        low, high = result.interval
        missed = result.verdict.startswith("MISSED")
        color = "#b03030" if missed else "#2a7a3a" if result.target else "#555555"
        axes.plot([low, high], [height, height], color=color, linewidth=3, solid_capstyle="butt")
        axes.plot(result.ratio, height, "o", color=color, markersize=5)
        if result.target:
            axes.plot(result.target.limit, height, "|", color="black", markersize=14, markeredgewidth=2)
    labels = [
        f"{name}   {number(result.ratio)}" + (f"  (target {result.target})" if result.target else "")
        for name, result in rows
    ]
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if _within_a_decade(axes) else "")
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.6)
    axes.grid(axis="x", alpha=0.3, which="both")
    axes.set_xlabel("ratio: dot median, bar 95% interval, tick target; green met, red missed, gray no target")


def _within_a_decade(axes: Any) -> bool:
    low, high = axes.get_xlim()
    return bool(high < 10 * low)


# ------------------------------------------------------------------------------------------------- commands


def command_line(description: str, parts: Mapping[str, str]) -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:<12}{about}" for name, about in parts.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"{description}\n\nparts:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="default: all")
    parser.add_argument("--pairs", type=int, default=15, help="rounds of all contestants (default 15)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all results to this file")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="plot the ratios to this PNG file")
    parser.add_argument(
        "--data-path", type=Path, metavar="FOLDER", help="CIFAR-100 as parquet, for part input (default: noise)"
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="CHECKOUT",
        help="compare with this other checkout, in parts finish, evaluation and trials",
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, as a test; the results mean nothing")
    return parser


def hand_over(part: str) -> NoReturn:
    """Run one part with the common command, in a new process that is set up before torch is imported."""
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks", part, *sys.argv[1:]])
