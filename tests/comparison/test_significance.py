"""The pooled variance of a blocked design, against statsmodels' least squares with a term for each group and seed."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from compared_runs import OTHERS, VALUES

from kd_core.comparison.significance import difference, is_within, pooled

THIRD = [0.690, 0.701, 0.703, 0.699, 0.704]
GROUPS = [dict(enumerate(values)) for values in (VALUES, OTHERS, THIRD)]


def least_squares(groups: list[dict[int, float]], first: int, second: int) -> tuple[float, list[float], float, int]:
    """statsmodels, value = group + seed + error: (difference of two groups, its 90% interval, p, freedom)."""
    rows = [(str(number), str(seed), value) for number, one in enumerate(groups) for seed, value in one.items()]
    data = pd.DataFrame(rows, columns=["group", "seed", "value"])
    fit = smf.ols(f"value ~ C(group, Treatment('{second}')) + C(seed)", data).fit()
    name = f"C(group, Treatment('{second}'))[T.{first}]"
    return fit.params[name], list(fit.conf_int(0.1).loc[name]), fit.pvalues[name], int(fit.df_resid)


@pytest.mark.parametrize("pair", [(0, 1), (0, 2), (2, 1)])
@pytest.mark.parametrize("count", [2, 3])
def test_it_is_least_squares(pair, count):
    groups = GROUPS[:count]
    if max(pair) >= count:
        pytest.skip("two groups have no third")
    mean, interval, p, freedom = least_squares(groups, *pair)
    found = pooled(groups)
    assert (found.freedom, found.groups, found.seeds) == (freedom, count, [0, 1, 2, 3, 4])
    test = found.difference(groups[pair[0]], groups[pair[1]], 0.9)
    assert test["kind"] == "pooled" and test["mean"] == pytest.approx(mean)
    assert test["interval"] == pytest.approx(interval) and test["p"] == pytest.approx(p)


def test_with_two_groups_it_is_the_paired_test():
    found = pooled(GROUPS[:2]).difference(*GROUPS[:2], 0.95)
    paired = difference(*GROUPS[:2], 0.95)
    assert found["p"] == pytest.approx(paired["p"]) and found["interval"] == pytest.approx(paired["interval"])


def test_seeds_are_those_that_all_groups_have():
    part = {seed: value for seed, value in GROUPS[2].items() if seed != 1}
    lone = {0: 0.5}  # does not count, and is not tested
    found = pooled([*GROUPS[:2], part, lone])
    assert (found.seeds, found.groups, found.freedom) == ([0, 2, 3, 4], 3, 6)
    test = found.difference(lone, GROUPS[0], 0.95)
    assert test["p"] is None and test["interval"] is None and test["why"] == "lacks seeds of the others"
    assert test["mean"] == pytest.approx(0.5 - VALUES[0])
    apart = found.difference({9: 0.5}, {8: 0.4}, 0.95)
    assert apart["mean"] == pytest.approx(0.1) and apart["seeds"] == []


@pytest.mark.parametrize(
    "groups",
    [
        [], GROUPS[:1], [{0: 0.5}, {0: 0.6}], [{0: 0.5, 1: 0.6}, {2: 0.5, 3: 0.6}],
        [{0: 0.5, 1: 0.6}, {0: 0.7, 1: 0.8}],  # equal differences
    ],
)  # fmt: skip
def test_without_what_it_needs_there_is_none(groups):
    assert pooled(groups) is None


def test_its_intervals_cover_the_truth_at_their_nominal_rate_and_are_narrower_with_two_seeds():
    generator, hits, narrower = np.random.default_rng(1), 0, 0
    for _ in range(400):
        seeds = generator.normal(0, 3, 2)
        groups = [dict(enumerate(seeds + mean + generator.normal(0, 1, 2))) for mean in (0, 0.5, 1, 2, 4, 0, 1, 0)]
        low, high = pooled(groups).difference(groups[1], groups[0], 0.9)["interval"]
        hits += low < 0.5 < high
        alone = difference(groups[1], groups[0], 0.9)["interval"]
        narrower += high - low < alone[1] - alone[0]
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
