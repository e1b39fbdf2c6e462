"""The pooled variance of a blocked design, against statsmodels' least squares with a term for each group and seed."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from compared_runs import OTHERS, VALUES

from kd_core.comparison.significance import difference, is_within, pooled

THIRD = [0.690, 0.701, 0.703, 0.699, 0.704]
GROUPS = {name: dict(enumerate(values)) for name, values in zip("abc", (VALUES, OTHERS, THIRD), strict=True)}
# Seeds are missing here and there; d has one alone, and e's second is nobody else's.
UNEVEN = {
    "a": GROUPS["a"], "b": {seed: value for seed, value in GROUPS["b"].items() if seed != 1},
    "c": {2: 0.703, 3: 0.699}, "d": {0: 0.72}, "e": {4: 0.68, 9: 0.5},
}  # fmt: skip


def least_squares(groups: dict[str, dict[int, float]], own: str, other: str) -> tuple[float, list[float], float, int]:
    """statsmodels, value = group + seed + error: (difference of two groups, its 90% interval, p, freedom)."""
    rows = [(name, str(seed), value) for name, one in groups.items() for seed, value in one.items()]
    data = pd.DataFrame(rows, columns=["group", "seed", "value"])
    fit = smf.ols(f"value ~ C(group, Treatment('{other}')) + C(seed)", data).fit()
    name = f"C(group, Treatment('{other}'))[T.{own}]"
    return fit.params[name], list(fit.conf_int(0.1).loc[name]), fit.pvalues[name], int(fit.df_resid)


@pytest.mark.parametrize(
    ("names", "pair"),
    [("ab", "ab"), ("abc", "ac"), ("abc", "cb"), ("abcde", "ab"), ("abcde", "ca"), ("abcde", "da"), ("abcde", "ed")],
)
def test_it_is_least_squares(names, pair):
    groups = {name: (UNEVEN if len(names) > 3 else GROUPS)[name] for name in names}
    mean, interval, p, freedom = least_squares(groups, *pair)
    found = pooled(groups)
    runs = sum(map(len, groups.values()))
    assert found.summary() == {"deviation": found.deviation, "freedom": freedom, "groups": len(names), "runs": runs}
    test = found.difference(*pair, 0.9)
    assert test["kind"] == "pooled" and test["mean"] == pytest.approx(mean)
    assert test["interval"] == pytest.approx(interval) and test["p"] == pytest.approx(p)


def test_with_two_groups_it_is_the_paired_test():
    two = {name: GROUPS[name] for name in "ab"}
    found, paired = pooled(two).difference("a", "b", 0.95), difference(two["a"], two["b"], 0.95)
    assert found["p"] == pytest.approx(paired["p"]) and found["interval"] == pytest.approx(paired["interval"])


def test_with_the_same_seeds_it_is_the_difference_of_the_means():
    test = pooled(GROUPS).difference("a", "c", 0.95)
    assert test["mean"] == pytest.approx(np.mean(VALUES) - np.mean(THIRD)) and test["seeds"] == [0, 1, 2, 3, 4]


def test_groups_that_no_seeds_link_are_not_tested():
    found = pooled(GROUPS | {"apart": {8: 0.5, 9: 0.6}})
    test = found.difference("apart", "a", 0.95)
    assert test["p"] is None and test["interval"] is None and test["seeds"] == []
    assert test["why"] == "no common seeds, nor by way of other groups"
    assert test["mean"] == pytest.approx(0.55 - np.mean(VALUES))
    assert found.freedom == pooled(GROUPS).freedom and found.deviation == pytest.approx(pooled(GROUPS).deviation)


@pytest.mark.parametrize(
    "groups",
    [
        [], [GROUPS["a"]], [{0: 0.5}, {0: 0.6}], [{0: 0.5, 1: 0.6}, {2: 0.5, 3: 0.6}],
        [{0: 0.5, 1: 0.6}, {0: 0.7, 1: 0.8}],  # equal differences
    ],
)  # fmt: skip
def test_without_what_it_needs_there_is_none(groups):
    assert pooled(dict(enumerate(groups))) is None


@pytest.mark.parametrize("lacks", [set(), {(1, 1), (4, 0), (5, 1)}], ids=["even", "uneven"])
def test_its_intervals_cover_the_truth_at_their_nominal_rate_and_are_narrower_with_two_seeds(lacks):
    generator, hits, narrower, means = np.random.default_rng(1), 0, 0, (0, 0.5, 1, 2, 4, 0, 1, 0)
    for _ in range(400):
        values = generator.normal(0, 3, 2) + np.array(means)[:, None] + generator.normal(0, 1, (8, 2))
        groups = {
            str(row): {seed: value for seed, value in enumerate(own) if (row, seed) not in lacks}
            for row, own in enumerate(values)
        }
        low, high = pooled(groups).difference("1", "0", 0.9)["interval"]
        hits += low < 0.5 < high
        alone = difference(groups["1"], groups["0"], 0.9)["interval"]
        narrower += alone is None or high - low < alone[1] - alone[0]
    assert 0.86 < hits / 400 < 0.94 and narrower > 240


@pytest.mark.parametrize(
    ("interval", "margin", "expected"),
    [
        ([-0.4, 0.5], 0.5, True), ([-0.6, 0.1], 0.5, False), ([0.1, 0.51], 0.5, False), (None, 0.5, False),
        ([0, 0.1], None, False),
    ],
)  # fmt: skip
def test_within_a_margin_is_the_whole_interval(interval, margin, expected):
    assert is_within(interval, margin) is expected
