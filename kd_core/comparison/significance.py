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
        why = "one seed" if len(common) < 2 else "equal differences" if _constant(a - b, a) else None
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
    """What is left of the values when each group's mean and each seed's are taken out: its variance, over all groups.

    deviation: the square root of that variance; freedom: its degrees of freedom; seeds: those that all groups have.
    """

    deviation: float
    freedom: int
    seeds: list[int]
    groups: int

    def difference(
        self, own: Mapping[int, float], other: Mapping[int, float], confidence: float, within: tuple[float, float] = ANY
    ) -> dict[str, Any]:
        """As `difference`, of kind `pooled`: the t test with the pooled variance, of groups that have all the seeds."""
        from scipy import stats

        result = {"kind": "pooled", "seeds": self.seeds, "interval": None, "p": None}
        common = [seed for seed in self.seeds if seed in own and seed in other]
        if len(common) < len(self.seeds):
            known = sorted(own.keys() & other.keys())
            mean = np.mean([own[seed] - other[seed] for seed in known]) if known else _mean(own) - _mean(other)
            return {**result, "seeds": known, "mean": float(mean), "why": "lacks seeds of the others"}
        mean = float(np.mean([own[seed] - other[seed] for seed in common]))
        error = self.deviation * math.sqrt(2 / len(common))
        widest = within[1] - within[0]
        reach = float(stats.t.ppf((1 + confidence) / 2, self.freedom)) * error
        interval = _cut((mean - reach, mean + reach), (-widest, widest))
        p = 2 * float(stats.t.sf(abs(mean) / error, self.freedom))
        return {**result, "mean": mean, "interval": interval, "p": p, "why": None}


def _mean(values: Mapping[int, float]) -> float:
    return float(np.mean(list(values.values())))


def pooled(groups: Sequence[Mapping[int, float]]) -> Pooled | None:
    """The variance pooled over groups, each {seed: value}, in a randomized block design whose blocks are the seeds.

    With m groups and n seeds it has (m - 1) (n - 1) degrees of freedom (Fisher, The Design of Experiments, 1935).
    Groups with one seed do not count.  None with less than two groups or two common seeds, or where nothing is left.
    """
    several = [one for one in groups if len(one) > 1]
    seeds = sorted(set.intersection(*map(set, several))) if several else []
    if len(several) < 2 or len(seeds) < 2:
        return None
    table = np.array([[one[seed] for seed in seeds] for one in several], dtype=np.float64)
    left = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    freedom = (len(several) - 1) * (len(seeds) - 1)
    if _constant(left, table):
        return None
    return Pooled(float(np.sqrt((left**2).sum() / freedom)), freedom, seeds, len(several))


def is_within(interval: Sequence[float] | None, margin: float | None) -> bool:
    """Whether a difference is certain to be at most `margin` either way: its whole interval is."""
    return margin is not None and interval is not None and -margin <= interval[0] and interval[1] <= margin


def _constant(values: np.ndarray, scale: np.ndarray) -> bool:
    """Whether values are equal but for rounding of numbers of this scale."""
    return bool(np.ptp(values) <= 1e-12 * np.abs(scale).max())


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
