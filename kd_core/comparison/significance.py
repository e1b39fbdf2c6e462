"""How certain differences between groups of seeds are: intervals, paired, unpaired and pooled t tests, Holm.

What the numbers mean, with sources: docs/comparing.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kd_core.evaluation import uncertainty

ANY = (-math.inf, math.inf)
# Of the largest value; numbers of seven digits, as records have them, move what `pooled` leaves this far at most.
SAME = 4e-6


def spread(values: Sequence[float], confidence: float, within: tuple[float, float] = ANY) -> dict[str, Any]:
    """{n, mean, deviation, interval} of the values of several seeds, all `within` two limits.

    deviation is the sample standard deviation (divisor n - 1), interval the t confidence interval of the mean, cut at
    the limits; both None where n is 1, the interval also where all values are equal, which says nothing about how far
    seeds spread.
    """
    from scipy import stats  # not above: `compare_kd.py --help` should not wait for it

    array = np.asarray(values, dtype=np.float64)
    several = len(array) > 1
    interval = None
    if several and not _constant(array, array):
        low, high = stats.t.interval(confidence, len(array) - 1, loc=array.mean(), scale=stats.sem(array))
        interval = _cut([low, high], within)
    return {
        "n": len(array),
        "mean": float(array.mean()),
        "deviation": float(array.std(ddof=1)) if several else None,
        "interval": interval,
    }


def _cut(interval: Iterable[float], within: tuple[float, float]) -> list[float]:
    """An interval of a mean, cut at the values that a mean can have; it covers the true one as often."""
    low, high = within
    return [float(min(max(edge, low), high)) for edge in interval]


def difference(
    own: dict[int, float], other: dict[int, float], confidence: float, within: tuple[float, float] = ANY
) -> dict[str, Any]:
    """How far one group's values are from another's; both are {seed: value}, all `within` two limits.

    {kind, seeds, mean, interval, p, why}.  `paired`: of the seeds that both have, by the t test of their differences
    (Student 1908); `unpaired`, if they share none: by Welch's t test (1947).  p is two-sided.  Where no test is
    possible interval and p are None, and `why` says why.
    """
    from scipy import stats

    common = sorted(own.keys() & other.keys())
    if common:
        a, b = (np.array([values[seed] for seed in common], dtype=np.float64) for values in (own, other))
        result: dict[str, Any] = {"kind": "paired", "seeds": common, "mean": float((a - b).mean())}
        why = "one seed" if len(common) < 2 else "equal differences" if _constant(a - b, np.append(a, b)) else None
        test = None if why else stats.ttest_rel(a, b)
    else:
        a, b = (np.array(list(values.values()), dtype=np.float64) for values in (own, other))
        result = {"kind": "unpaired", "seeds": [], "mean": float(a.mean() - b.mean())}
        one = min(len(a), len(b)) < 2
        why = "one seed" if one else "equal values" if _constant(a, a) and _constant(b, b) else None
        test = None if why else stats.ttest_ind(a, b, equal_var=False)
    widest = within[1] - within[0]
    interval = _cut(test.confidence_interval(confidence), (-widest, widest)) if test else None
    return {**result, "interval": interval, "p": float(test.pvalue) if test else None, "why": why}


@dataclass(frozen=True)
class Pooled:
    """Least squares of value = group + seed + error, where the error has one variance in all groups.

    deviation: the square root of that variance; freedom: its degrees of freedom; groups: the values, {name: {seed:
    value}}; effects [m+n]: of the m groups, then of the n seeds; inverse [m+n,m+n]: of the normal equations, a
    generalized one; known [m+n,m+n]: takes any sum of effects that the values determine to itself.
    """

    deviation: float
    freedom: int
    groups: Mapping[str, Mapping[int, float]]
    effects: np.ndarray
    inverse: np.ndarray
    known: np.ndarray

    def difference(
        self, own: str, other: str, confidence: float, within: tuple[float, float] = ANY
    ) -> dict[str, Any]:
        """As `difference`, of kind `pooled`: the t test of two groups, given by name, with the pooled variance.

        Seeds that one of them lacks count through groups that have them, so a group of one seed is tested as well.
        """
        from scipy import stats

        a, b = self.groups[own], self.groups[other]
        result = {"kind": "pooled", "seeds": sorted(a.keys() & b.keys()), "interval": None, "p": None}
        wanted = np.zeros(len(self.effects))
        wanted[list(self.groups).index(own)], wanted[list(self.groups).index(other)] = 1, -1
        if not np.allclose(wanted @ self.known, wanted):
            apart = float(np.mean(list(a.values())) - np.mean(list(b.values())))
            return {**result, "mean": apart, "why": "no common seeds, nor by way of other groups"}
        # Rounded, since sums of these differ in the last bits from one processor to another, and tables round halves.
        mean = round(float(wanted @ self.effects), 12) + 0.0
        error = self.deviation * math.sqrt(float(wanted @ self.inverse @ wanted))
        widest = within[1] - within[0]
        reach = float(stats.t.ppf((1 + confidence) / 2, self.freedom)) * error
        interval = _cut((mean - reach, mean + reach), (-widest, widest))
        p = 2 * float(stats.t.sf(abs(mean) / error, self.freedom))
        return {**result, "mean": mean, "interval": interval, "p": p, "why": None}

    def summary(self) -> dict[str, Any]:
        """{deviation, freedom, groups, runs}, how many of the last two."""
        runs = sum(map(len, self.groups.values()))
        return {"deviation": self.deviation, "freedom": self.freedom, "groups": len(self.groups), "runs": runs}


def pooled(groups: Mapping[str, Mapping[int, float]]) -> Pooled | None:
    """The variance pooled over groups, {name: {seed: value}}, in a block design whose blocks are the seeds.

    Where m groups have the same n seeds it has (m - 1) (n - 1) degrees of freedom (Fisher, The Design of Experiments,
    1935); where seeds are missing, as many as there are values beyond the effects that they determine (Searle, Linear
    Models, 1971).  None where no values are left for an error, or all errors are zero.
    """
    seeds = sorted({seed for one in groups.values() for seed in one})
    cells = [(row, len(groups) + seeds.index(seed)) for row, one in enumerate(groups.values()) for seed in one]
    values = np.array([value for one in groups.values() for value in one.values()], dtype=np.float64)
    design = np.zeros((len(cells), len(groups) + len(seeds)))
    for number, columns in enumerate(cells):
        design[number, columns] = 1
    freedom = len(cells) - int(np.linalg.matrix_rank(design)) if cells else 0
    if freedom < 1:
        return None
    inverse = np.linalg.pinv(design.T @ design, hermitian=True)
    centered = values - values.mean()
    effects = inverse @ design.T @ centered
    left = centered - design @ effects
    if _constant(left, values):
        return None
    deviation = float(np.sqrt((left**2).sum() / freedom))
    return Pooled(deviation, freedom, groups, effects, inverse, inverse @ design.T @ design)


def is_within(interval: Sequence[float] | None, margin: float | None) -> bool:
    """Whether a difference is certain to be at most `margin` either way: its whole interval is."""
    return margin is not None and interval is not None and -margin <= interval[0] and interval[1] <= margin


def _constant(values: np.ndarray, scale: np.ndarray) -> bool:
    """Whether values are equal but for rounding of numbers of this scale."""
    return bool(np.ptp(values) <= SAME * np.abs(scale).max())


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in the given order (Holm, Scandinavian Journal of Statistics 1979).

    The i-th smallest of m is multiplied by m - i + 1, is at least its predecessor and at most 1.  The chance that any
    true hypothesis is rejected stays below the level, whatever the dependence.
    """
    array = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(array, kind="stable")
    adjusted = np.empty_like(array)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(array[order] * np.arange(len(array), 0, -1)))
    return [float(value) for value in adjusted]


def verdict(found: dict[str, Any], higher: bool, confidence: float) -> str:
    """better, worse or inconclusive, by the corrected p-value `p_holm`."""
    return uncertainty.verdict(found["mean"], found["p_holm"], higher=higher, confidence=confidence)
