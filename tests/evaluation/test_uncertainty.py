"""Intervals and differences against independent formulas; one set of words for both kinds of comparison."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kd_core.comparison import compare
from kd_core.evaluation import uncertainty
from kd_core.evaluation.uncertainty import BETTER, INCONCLUSIVE, WORSE, PairedDifference, paired_difference, wilson


@settings(deadline=None)
@given(st.integers(1, 3000), st.floats(0, 1), st.sampled_from([0.8, 0.95, 0.999]))
def test_wilsons_interval_is_scipys_and_holds_the_accuracy(count, share, confidence):
    correct = round(share * count)
    low, high = wilson(correct, count, confidence)
    known = stats.binomtest(correct, count).proportion_ci(confidence, method="wilson")
    assert (low, high) == pytest.approx((known.low, known.high), abs=1e-12)
    assert 0 <= low <= correct / count <= high <= 1 and high > low


def test_wilsons_interval_at_the_ends():
    assert wilson(0, 10)[0] == 0 and wilson(10, 10)[1] == 1
    assert wilson(0, 10)[1] == pytest.approx(1 - wilson(10, 10)[0]) and wilson(0, 10)[1] > 0.2
    with pytest.raises(ValueError, match="no images"):
        wilson(0, 0)


def test_a_paired_difference_is_that_of_the_images():
    generator = torch.Generator().manual_seed(0)
    right, other = (torch.rand(229, generator=generator) < share for share in (0.9, 0.8))
    found = paired_difference(right, other)
    each = right.double() - other.double()
    assert found.images == int(each.sum()) and found.count == 229
    assert found.error == pytest.approx(math.sqrt(float(each.var(correction=0)) / 229))
    b, c = found.gained, found.lost
    assert found.error == pytest.approx(math.sqrt(b + c - (b - c) ** 2 / 229) / 229)
    assert found.p == pytest.approx(stats.binomtest(b, b + c).pvalue)
    turned = paired_difference(other, right)
    assert (turned.images, turned.error, turned.p) == (-found.images, found.error, found.p)


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_p_value_equals_the_sign_test(gained, lost):
    known = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert PairedDifference(gained, lost, 200).p == pytest.approx(known)


@pytest.mark.parametrize("found", [PairedDifference(0, 0, 229), PairedDifference(1, 0, 1), PairedDifference(0, 9, 9)])
def test_no_sample_has_a_standard_error_of_0(found):
    assert found.error == 1 / found.count


@pytest.mark.parametrize(
    ("gained", "lost", "word"),
    [(5, 2, INCONCLUSIVE), (2, 5, INCONCLUSIVE), (0, 0, INCONCLUSIVE), (5, 0, INCONCLUSIVE), (6, 0, BETTER),
     (0, 6, WORSE), (40, 10, BETTER), (10, 40, WORSE)],
)  # fmt: skip
def test_verdicts_on_images(gained, lost, word):
    assert PairedDifference(gained, lost, 229).verdict == word


@pytest.mark.parametrize("p", [None, 0.001, 0.05, 0.0501, 1.0])
@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize("mean", [-0.1, 0.1])
def test_seeds_get_the_same_verdicts(p, higher, mean):
    word = compare.verdict({"mean": mean, "p_holm": p}, higher, 0.95)
    assert word == uncertainty.verdict(mean, p, higher=higher)
    sure = p is not None and p <= 0.05
    assert word == ((BETTER if (mean > 0) == higher else WORSE) if sure else INCONCLUSIVE)


def test_no_image_is_an_error():
    with pytest.raises(ValueError, match="no images"):
        paired_difference(torch.zeros(0, dtype=torch.bool), torch.zeros(0, dtype=torch.bool))
