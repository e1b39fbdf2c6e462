"""Statistics against independent formulas; which runs are compared with which; what tables do with names."""

import csv
import io
import itertools
import json
import math
import os
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from compared_runs import EVIL, LABEL_ONLY, OTHERS, TEACHER, VALUES, A, B, C, evil, make, several, store
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kd_core.comparison import tables
from kd_core.comparison.compare import compare, higher_is_better, limits
from kd_core.comparison.pivot import pivot
from kd_core.comparison.runs import Found, Run, as_same_data, find
from kd_core.comparison.significance import difference, holm, pooled, spread, verdict
from kd_core.config import command_line, group, own_code
from kd_core.errors import UserError
from kd_core.evaluation.figures import Predictions, evaluate
from kd_core.report.text_table import csv_text
from kd_core.run.folder import RunFolder


def groups_of(*runs: Run, **options) -> dict[str, dict]:
    """The groups of the only set, by their labels."""
    [one] = compare(Found(list(runs), []), **options)["sets"]
    return {row["label"]: row for row in one["groups"]}


# ------------------------------------------------------------------------------------------------------ statistics


def test_mean_standard_deviation_and_interval_are_the_textbooks():
    found = spread(VALUES, 0.9)
    n, mean = len(VALUES), sum(VALUES) / len(VALUES)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in VALUES) / (n - 1))
    half = stats.t.ppf(0.95, n - 1) * deviation / math.sqrt(n)
    assert found["n"] == 5 and found["mean"] == pytest.approx(mean)
    assert found["deviation"] == pytest.approx(deviation)
    assert found["interval"] == pytest.approx([mean - half, mean + half])


def test_one_value_has_no_standard_deviation_and_equal_values_no_interval():
    assert spread([0.7], 0.95) == {"n": 1, "mean": 0.7, "deviation": None, "interval": None}
    assert spread([0.1 + 0.2, 0.3, 0.3], 0.95)["interval"] is None


@pytest.mark.parametrize(
    ("metric", "values", "low", "high"),
    [
        ("val/accuracy", [0.97, 1.0], 0.0, 1.0), ("test/top5", [0.999, 1.0, 0.97], 0.0, 1.0),
        ("val/auroc", [0.999, 0.9], 0.0, 1.0), ("val/ece", [0.001, 0.03], 0.0, 1.0), ("val/gain", [0.9, -0.9], -1, 1),
        ("val/nll", [0.001, 2.0], 0.0, math.inf), ("val/kappa", [0.97, 1.0], -math.inf, math.inf),
        ("cost.latency_ms.256", [0.001, 2.0], 0.0, math.inf), ("test/class_accuracy.3", [0.97, 1.0], 0.0, 1.0),
        ("train/loss_ce", [0.001, 2.0], 0.0, math.inf), ("train/loss_total", [-0.3, -0.31], -math.inf, math.inf),
    ],
)  # fmt: skip
def test_intervals_end_at_the_limits_of_the_metric(metric, values, low, high):
    plain, found = spread(values, 0.95), spread(values, 0.95, limits(metric))
    assert limits(metric) == (low, high)
    assert found["interval"] == [max(plain["interval"][0], low), min(plain["interval"][1], high)]
    assert {**found, "interval": None} == {**plain, "interval": None}
    own, other = seeded(values), seeded([value * 0.5 for value in values])
    edges = difference(own, other, 0.95, limits(metric))["interval"]
    assert edges is None or low - high <= edges[0] <= edges[1] <= high - low


def test_a_comparisons_intervals_are_fractions():
    rows = [{"final_test_accuracy": value} for value in (0.999, 0.9)]
    lower = [{"final_test_accuracy": value} for value in (0.02, 0.9)]
    runs = [make(LABEL_ONLY, s, summary=row) for s, row in enumerate(lower)]
    runs += [make(A, s, summary=row) for s, row in enumerate(rows)]
    found = groups_of(*runs, metric="test/accuracy", also=["val/accuracy"])
    assert found[A]["interval"][1] == 1.0 and found["alone"]["interval"] == [0.0, 1.0]
    assert found[A]["against_baseline"]["interval"] == [-1.0, 1.0]
    table = pivot(Found(runs, []), "kd.type", "pair")
    assert table["alone"][0]["interval"] == [0.0, 1.0]


def seeded(values, first=0) -> dict[int, float]:
    return dict(enumerate(values, first))


def test_a_paired_difference_is_the_one_sample_test_of_the_differences():
    found = difference(seeded(VALUES), seeded(OTHERS), 0.95)
    d = np.subtract(VALUES, OTHERS)
    error = d.std(ddof=1) / math.sqrt(len(d))
    assert found["kind"] == "paired" and found["seeds"] == [0, 1, 2, 3, 4] and found["mean"] == pytest.approx(d.mean())
    assert found["p"] == pytest.approx(2 * stats.t.sf(abs(d.mean() / error), len(d) - 1))
    half = stats.t.ppf(0.975, len(d) - 1) * error
    assert found["interval"] == pytest.approx([d.mean() - half, d.mean() + half])
    assert found["p"] == pytest.approx(stats.ttest_1samp(d, 0).pvalue)


def test_only_common_seeds_are_paired():
    found = difference(seeded(VALUES, 0), seeded(OTHERS, 2), 0.95)
    assert found["seeds"] == [2, 3, 4]
    assert found["p"] == pytest.approx(stats.ttest_1samp(np.subtract(VALUES[2:], OTHERS[:3]), 0).pvalue)


def test_without_common_seeds_it_is_welchs_test():
    found = difference(seeded(VALUES, 0), seeded(OTHERS[:3], 10), 0.95)
    a, b = np.array(VALUES), np.array(OTHERS[:3])
    va, vb = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    t = (a.mean() - b.mean()) / math.sqrt(va + vb)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(va + vb)
    assert found["kind"] == "unpaired" and found["p"] == pytest.approx(2 * stats.t.sf(abs(t), freedom))
    assert found["interval"] == pytest.approx([a.mean() - b.mean() - half, a.mean() - b.mean() + half])


@pytest.mark.parametrize(
    ("own", "other", "why"),
    [
        ({0: 0.7}, {0: 0.6}, "one seed"),
        ({0: 0.7, 1: 0.8}, {1: 0.6, 2: 0.7}, "one seed"),
        ({0: 0.7, 1: 0.8}, {5: 0.6}, "one seed"),
        ({0: 0.7, 1: 0.8}, {0: 0.7, 1: 0.8}, "equal differences"),
        ({0: 0.7, 1: 0.8, 2: 0.1}, {0: 0.6, 1: 0.7, 2: 0.0}, "equal differences"),  # but for rounding
        ({0: 0.0, 1: 0.0}, {0: 0.0, 1: 0.0}, "equal differences"),
        ({0: 0.7, 1: 0.7}, {2: 0.6, 3: 0.6}, "equal values"),
    ],
)
def test_where_no_test_is_possible_there_is_no_p_value(own, other, why, recwarn):
    found = difference(own, other, 0.95)
    assert found["p"] is None and found["interval"] is None and found["why"] == why
    assert verdict({**found, "p_holm": None}, True, 0.95) == "inconclusive"
    assert not recwarn.list  # of scipy, about lost precision


def closed_testing(p: list[float]) -> list[float]:
    """Holm's procedure, slowly: the closure of Bonferroni's test over all sets of hypotheses."""
    everything = range(len(p))
    subsets = [s for k in range(1, len(p) + 1) for s in itertools.combinations(everything, k)]
    return [max(min(1.0, len(s) * min(p[j] for j in s)) for s in subsets if i in s) for i in everything]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closure_of_bonferroni(p):
    assert holm(p) == pytest.approx(closed_testing(p))


def test_holm_of_a_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.04]) == [0.04] and holm([0.9, 0.8]) == [1.0, 1.0]


def test_intervals_cover_the_truth_at_their_nominal_rate():
    generator = np.random.default_rng(0)
    shared = generator.normal(0, 3, (400, 4))  # what a seed does to both methods
    own, other = shared + generator.normal(0.5, 1, (400, 4)), shared + generator.normal(0, 1, (400, 4))
    hits = 0
    for a, b in zip(own, other, strict=True):
        low, high = difference(seeded(a), seeded(b), 0.9)["interval"]
        hits += low < 0.5 < high
    assert abs(hits / 400 - 0.9) < 4 * math.sqrt(0.9 * 0.1 / 400)


@pytest.mark.parametrize(
    ("metric", "higher"),
    [
        ("val/accuracy", True), ("test/macro_accuracy", True), ("val/auroc", True), ("val/top5", True),
        ("val/ece", False), ("val/ece_adaptive", False), ("val/temperature_scaling.ece", False), ("test/nll", False),
        ("val/loss_ce", False), ("test/brier", False), ("cost.latency_ms.256", False), ("parameters", False),
        ("cost.images_per_second.1", True), ("seed", None), ("val/temperature_scaling.temperature", None),
    ],
)  # fmt: skip
def test_the_better_direction_is_known_by_name(metric, higher):
    assert higher_is_better(metric) is higher


def test_verdicts_know_the_direction():
    rows = [{"evaluation": {"val": {"ece": value, "auroc": value}}} for value in (0.2, 0.21, 0.19)]
    lower = [{"evaluation": {"val": {"ece": value, "auroc": value}}} for value in (0.1, 0.109, 0.091)]
    runs = [make(LABEL_ONLY, s, summary=row) for s, row in enumerate(rows)]
    runs += [make(A, s, summary=row) for s, row in enumerate(lower)]
    assert groups_of(*runs, metric="val/ece")[A]["against_baseline"]["verdict"] == "better"
    assert groups_of(*runs, metric="val/auroc")[A]["against_baseline"]["verdict"] == "worse"


def test_p_values_are_corrected_for_the_methods_that_were_tested():
    runs = several(LABEL_ONLY, OTHERS) + several(A, VALUES) + several(B, VALUES[::-1]) + [make(C, 0, 0.9)]
    found = groups_of(*runs)
    raw = [stats.ttest_rel(values, OTHERS).pvalue for values in (VALUES, VALUES[::-1])]
    corrected = [found[name]["against_baseline"]["p_holm"] for name in (A, B)]
    assert corrected == pytest.approx(closed_testing(raw))
    assert found[C]["against_baseline"]["p_holm"] is None
    assert found[C]["against_baseline"]["verdict"] == "inconclusive" and found[C]["deviation"] is None


# -------------------------------------------------------------------------------------------------------- grouping


def test_seeds_of_one_experiment_are_one_group():
    runs = several(A) + [make(A, 9, 0.7, name="renamed", output_dir="elsewhere", wandb={"project": "other"},
                              cache={"max_gb": 1.0}, training={"log_every": 7})]  # fmt: skip
    found = groups_of(*runs)
    assert list(found) == [A] and found[A]["n"] == 6 and found[A]["against_baseline"] is None
    assert [one["seed"] for one in found[A]["seeds"]] == [0, 1, 2, 3, 4, 9]


def test_settings_of_the_method_make_distinct_groups_of_one_set():
    found = groups_of(*several(A), *several(A, OTHERS, kd={"temperature": 8.0}), *several(B))
    assert list(found) == [f"{A} (temperature=4.0)", f"{A} (temperature=8.0)", B]


def test_feature_losses_are_named_shortly():
    features = [None, [{"loss": "at"}], [{"loss": "rkd"}], [{"loss": "at"}, {"loss": "rkd"}]]
    runs = [run for own in features for run in several(A, kd={"features": own} if own else {})]
    assert set(groups_of(*runs)) == {A, f"{A} (feature=at)", f"{A} (feature=rkd)", f"{A} (feature=at, feature=rkd)"}


def test_two_entries_of_one_feature_loss_are_not_one():
    """Groups of equal labels would be taken for one wherever results are kept by label."""
    features = [None, [{"loss": "at"}], [{"loss": "at", "student": [-1]}, {"loss": "at", "student": [-2]}]]
    runs = [run for own in features for run in several(A, kd={"features": own} if own else {})]
    assert set(groups_of(*runs)) == {A, f"{A} (feature=at)", f"{A} (feature=at, feature=at)"}


def test_losses_are_named_without_all_that_they_alone_have():
    """Their own settings are shown where equal losses differ in them."""
    changes = {
        "loss=kd": {},
        "loss=rld": {"loss": "rld"},
        "loss=rld, rld.beta=4.0": {"loss": "rld", "rld": {"beta": 4.0}},
        "loss=kd, feature=rkd": {"features": [{"loss": "rkd"}]},
        "loss=kd, feature=at": {"features": [{"loss": "at"}]},
    }
    found = groups_of(*(run for kd in changes.values() for run in several(B, **({"kd": kd} if kd else {}))))
    assert {label.replace(", rld.beta=8.0", "") for label in found} == {f"{B} ({words})" for words in changes}


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"images": "e" * 64}, "images"),
        ({"data": {"split_seed": 1}}, "data.split_seed"),
        ({"data": {"val_size": 0.2}}, "data.val_size"),
        ({"data": {"train_size": 100}}, "data.train_size"),
        ({"data": {"flip": False}}, "data.flip"),
        ({"data": {"batch_size": 32}}, "data.batch_size"),
        ({"training": {"max_epochs": 7}}, "training.max_epochs"),
        ({"training": {"learning_rate": 0.5}}, "training.learning_rate"),
        ({"training": {"optimizer": "sgd"}}, "training.optimizer"),
        ({"training": {"label_smoothing": 0.1}}, "training.label_smoothing"),
        ({"model": {"name": "cifar_resnet8"}}, "model.name"),
        ({"teachers": [{**TEACHER, "weights": "other.pth"}]}, "teachers.0.weights"),
        ({"teachers": [{**TEACHER, "view": "clean"}]}, "teachers.0.view"),
        ({"cache": {"mode": "fixed"}}, "fixed_views"),
    ],
)
def test_what_differs_in_more_than_the_method_is_kept_apart(change, key):
    runs = several(A) + several(B, OTHERS, **change)
    found = compare(Found(runs, []))
    assert [[row["label"] for row in one["groups"]] for one in found["sets"]] == [[A], [B]]
    assert key in [one["key"] for one in found["differences"]]
    assert key in "\n".join(tables.remarks(found))
    forced = compare(Found(runs, []), force=True)
    assert len(forced["sets"]) == 1 and forced["forced"] and forced["differences"] == found["differences"]
    assert forced["sets"][0]["groups"][1]["against_baseline"]["kind"] == "paired"


def test_data_can_be_declared_the_same():
    old, new, third = "0a" * 32, "0b" * 32, "1c" * 32
    places = {"source": "cifar_python", "path": "archive"}

    def found() -> Found:
        runs = [*several(A, images=old), *several(B, images=new, data=places), *several(C, images=third)]
        return Found(runs, [])

    apart = compare(found())
    assert len(apart["sets"]) == 3
    assert any("--same-data 0a0a0a0a=1c1c1c1c" in note for note in apart["notes"])
    both = found()
    as_same_data(both, [(old[:8], new[:10])])
    compared = compare(both)
    assert [len(one["groups"]) for one in compared["sets"]] == [2, 1]
    assert "--same-data: data 0a0a0a0a0a0a and 0b0b0b0b0b0b are treated as the same" in compared["notes"]
    row = compared["sets"][0]["groups"][1]["against_baseline"]
    assert row["kind"] == "paired" and row["verdict"] == "inconclusive"
    everything = found()
    as_same_data(everything, [(new, old), (third[:8], new[:8])])
    assert len(compare(everything)["sets"]) == 1
    table = pivot(everything, "kd.type", "pair")
    assert [row[0]["n"] for row in table["cells"]] == [5, 5, 5] and any("--same-data" in w for w in table["warnings"])
    one = Found([make(A, images=old), make(B, images=old, data=places)], [])
    assert len(compare(one)["sets"]) == 2
    as_same_data(one, [(old, old)])  # equal data from two places
    assert len(compare(one)["sets"]) == 1
    other = Found([make(A, images=old, data={"split_seed": 1}), make(B, images=new)], [])
    as_same_data(other, [(old, new)])
    assert len(compare(other)["sets"]) == 2  # data alone, not how they are split
    for pair in ((old[:8], "2" * 8), ("2" * 8, new)):
        with pytest.raises(UserError, match="--same-data: 22222222: no run's data have .*; there are 0a0a0a0a"):
            as_same_data(found(), [pair])
    with pytest.raises(UserError, match="--same-data: 0a0a0a0a: several data have such a fingerprint; there are 0a0a"):
        as_same_data(Found([make(images=old), make(images=old[:-1] + "b")], []), [(old[:8], old)])


def test_unlabeled_images_can_be_declared_the_same():
    """From two places, but not those and the rest of the training split."""
    sources = ({"source": "hub", "name": "images"}, {"source": "imagefolder", "path": "images"}, {"source": "rest"})
    data = [{"train_size": 1000, "unlabeled": own} for own in sources]
    runs = [make(method, data=own) for method, own in zip((A, B, C), data, strict=True)]
    found = Found(runs, [])
    assert len(compare(found)["sets"]) == 3
    as_same_data(found, [("f" * 8, "f" * 8)])
    assert [len(one["groups"]) for one in compare(found)["sets"]] == [2, 1]


def test_a_student_alone_is_compared_with_every_set_of_its_kind():
    other = [{**TEACHER, "weights": "other.pth"}]
    runs = several(LABEL_ONLY, OTHERS) + several(A) + several(A, teachers=other)
    runs += several(B, training={"max_epochs": 7})
    found = compare(Found(runs, []))
    assert [[row["label"] for row in one["groups"]] for one in found["sets"]] == [["alone", A], ["alone", A], [B]]
    assert [one["baseline_label"] for one in found["sets"]] == ["alone", "alone", B]
    assert not any("teachers" in one["key"] for one in compare(Found(runs[:10], []))["differences"])


def test_of_equal_runs_with_one_seed_the_newest_counts():
    runs = [make(A, 0, 0.1, created=2.0), make(A, 0, 0.9, created=1.0), make(A, 1, 0.3)]
    found = compare(Found(runs, []))
    assert [one["value"] for one in found["sets"][0]["groups"][0]["seeds"]] == [0.1, 0.3]
    [note] = found["notes"]
    assert note.startswith("seed 0 twice") and f"{runs[0].name} counts, {runs[1].name} is older" in note


def test_an_evaluation_makes_no_run_newer(tmp_path):
    older, newest = (store(make(A, 0, value), tmp_path / name) for name, value in (("older", 0.1), ("newest", 0.9)))
    for time, folder in enumerate((older, newest), 1):
        os.utime(folder / "config.yaml", (time, time))
    RunFolder(older).write_summary(evaluation={})
    [note] = compare(find([str(tmp_path)]))["notes"]
    assert f"{newest} counts, {older} is older" in note


@pytest.mark.parametrize("name", [A, "mine", f"{A} (temperature=8.0)"])
def test_the_baseline_is_chosen_by_method_name_or_label(name):
    runs = several(LABEL_ONLY, OTHERS) + several(B, name="other")
    runs += several(A, kd={"temperature": 8.0}, name="mine")
    if "(" in name:
        runs += several(A)
    [one] = compare(Found(runs, []), baseline=name)["sets"]
    assert one["baseline_label"].startswith(A) and one["groups"][0]["label"] == one["baseline_label"]
    assert one["groups"][0]["against_baseline"] is None and one["groups"][1]["against_baseline"]


def test_the_baseline_is_the_student_alone_else_the_first():
    assert compare(Found(several(A) + several(LABEL_ONLY), []))["sets"][0]["baseline_label"] == "alone"
    assert compare(Found(several(B) + several(A), []))["sets"][0]["baseline_label"] == B
    for name in ("alone", LABEL_ONLY):
        [one] = compare(Found(several(A) + several(LABEL_ONLY), []), baseline=name)["sets"]
        assert one["baseline_label"] == "alone"


def test_of_several_students_alone_the_baseline_does_not_depend_on_the_order():
    rates = [several(LABEL_ONLY, training={"learning_rate": rate}) for rate in (0.5, 0.06)]
    strong = several(LABEL_ONLY, augment={"randaugment": {}})
    for lots, vary, wanted in (
        (rates, ["training.learning_rate"], "alone (training.learning_rate=0.06)"),
        ([several(LABEL_ONLY), strong], ["augment"], "alone (augment.randaugment.ops=none)"),
    ):
        for first, second in (lots, lots[::-1]):
            runs = [*first, *second, *several(A, OTHERS)]
            [one] = compare(Found(runs, []), vary=vary)["sets"]
            assert one["baseline_label"] == one["groups"][0]["label"] == wanted
            note = f"2 students alone: differences are against {wanted}; --baseline names another"
            assert note in one["warnings"]
            [one] = compare(Found(runs, []), vary=vary, baseline=wanted)["sets"]
            assert note not in one["warnings"]


def test_a_baseline_that_is_none_or_several():
    runs = several(A) + several(A, kd={"temperature": 8.0}) + several(LABEL_ONLY)
    with pytest.raises(UserError, match=f"--baseline: '{A}' may be each of '{A} .temperature=4.0.', '"):
        compare(Found(runs, []), baseline=A)
    with pytest.raises(UserError, match="--baseline: no group is called 'nobody'; there are"):
        compare(Found(runs, []), baseline="nobody")


def taught_by(name: str, values=VALUES, method=A, **more) -> list[Run]:
    return several(method, values, teachers=[{**TEACHER, "model": name, "weights": f"{name}.pth"}], **more)


def test_what_may_vary_makes_one_set():
    runs = [*taught_by("cifar_resnet56"), *taught_by("cifar_resnet20", OTHERS), *several(LABEL_ONLY)]
    assert len(compare(Found(runs, []))["sets"]) == 2
    [one] = compare(Found(runs, []), vary=["teachers"])["sets"]
    labels = [row["label"] for row in one["groups"]]
    assert labels == ["alone", f"{A}: cifar_resnet56", f"{A}: cifar_resnet20"]
    [contrast] = compare(Found(runs, []), vary=["teachers"], contrasts=[f"{labels[1]}:{labels[2]}"])["contrasts"]
    assert (contrast["label"], contrast["against"]) == (labels[1], labels[2])
    longer = [*several(A), *several(A, OTHERS, training={"max_epochs": 9})]
    assert len(compare(Found(longer, []))["sets"]) == 2
    for vary in ("training", "training.max_epochs"):
        [one] = compare(Found(longer, []), vary=[vary])["sets"]
        assert {row["label"] for row in one["groups"]} == {
            f"{A} (training.max_epochs=100)", f"{A} (training.max_epochs=9)"
        }  # fmt: skip
    assert len(compare(Found(longer, []), vary=["teachers"])["sets"]) == 2


def test_many_teams_of_teachers_have_a_short_title_and_name_what_all_teachers_share():
    runs = [run for name in ("cifar_resnet56", "cifar_resnet20") for run in taught_by(name)]
    [one] = compare(Found(runs, []), vary=["teachers"])["sets"]
    assert one["title"] == "cifar_resnet56 -> cifar_resnet20; cifar_resnet20 -> cifar_resnet20"
    for view in ("clean", "shared"):
        both = [{"model": name, "weights": f"{name}.pth", "view": view} for name in ("cifar_resnet56", "vgg8")]
        runs += several(teachers=both)
    [one] = compare(Found(runs, []), vary=["teachers"])["sets"]
    assert one["title"] == "3 sets of teachers -> cifar_resnet20"
    assert {row["label"] for row in one["groups"][-2:]} == {
        f"{A}: cifar_resnet56 + vgg8 (view={view})" for view in ("clean", "shared")
    }
    other = several(teachers=[{**both[0], "view": "clean"}, both[1]])
    [one] = compare(Found([*runs, *other], []), vary=["teachers"])["sets"]
    views = {row["label"].partition(" (")[2] for row in one["groups"] if "vgg8" in row["label"]}
    assert views == {"view=clean)", "view=shared)", "teachers.0.view=clean, teachers.1.view=shared)"}


def test_groups_of_one_method_are_in_the_order_of_their_settings():
    rates = [0.4, 0.05, 5e-3, 0.1]
    runs = [run for rate in rates for run in several(A, training={"learning_rate": rate})]
    runs = [*several(B), *runs, *several(LABEL_ONLY)]
    baseline = f"{A} (training.learning_rate=0.1)"
    [one] = compare(Found(runs, []), vary=["training.learning_rate"], baseline=baseline)["sets"]
    first, *labels = [row["label"] for row in one["groups"]]
    own = [label for label in labels if label.startswith(A)]
    assert first == baseline and labels[-len(own) :] == own and {"alone", B} == set(labels) - set(own)
    assert [float(label.partition("=")[2].rstrip(")")) for label in own] == sorted(set(rates) - {0.1})


def test_a_setting_to_vary_that_is_none():
    with pytest.raises(UserError, match="--vary: training.max_epoch: no run has such a setting, did you mean"):
        compare(Found(several(A), []), vary=["training.max_epoch"])


def test_contrasts_are_corrected_among_themselves():
    third = [0.6, 0.7, 0.65, 0.61, 0.66]
    runs = [*several(A), *several(B, OTHERS), *several(C, third), *several(LABEL_ONLY, OTHERS[::-1])]
    found = compare(Found(runs, []), contrasts=[f"{A}:{B}", f"alone : {C}"], margin=2.0)
    first, second = found["contrasts"]
    own = difference(seeded(VALUES), seeded(OTHERS), 0.95, (0, 1))
    assert {key: first[key] for key in own} == own and (first["label"], first["against"]) == (A, B)
    assert [first["p_holm"], second["p_holm"]] == holm([first["p"], second["p"]])
    assert first["within_margin"] == (first["interval"][0] >= -0.02 and first["interval"][1] <= 0.02)
    *_, table = tables.tables_of(found)
    assert table.title == "contrasts"
    assert [row[0].text for row in table.rows] == [f"{A} against {B}", f"alone against {C}"]
    assert (", within 2" in table.rows[0][-1].text) == first["within_margin"]


def test_a_contrast_is_of_each_set_that_has_both():
    """The student alone is in several sets; two students alone are one pair, however many sets have them."""
    runs = [*taught_by("first"), *taught_by("second", OTHERS), *several(LABEL_ONLY, OTHERS[::-1])]
    runs += [*taught_by("first", OTHERS, B), *taught_by("second", VALUES[::-1], B)]
    compared = compare(Found(runs, []), contrasts=[f"{A}:{B}", f"alone:{A}"])
    titles = [f"{name} -> cifar_resnet20" for name in ("first", "second")]
    pairs = [(one["label"], one["against"], one["title"]) for one in compared["contrasts"]]
    assert pairs == [(*pair, title) for pair in ((A, B), ("alone", A)) for title in titles]
    means = [one["mean"] for one in compared["contrasts"]]
    assert means[0] == pytest.approx(np.mean(VALUES) - np.mean(OTHERS)) == pytest.approx(-means[1])
    *_, table = tables.tables_of(compared)
    assert table.rows[1][0].text == f"{A} against {B}, {titles[1]}"
    assert list(csv.DictReader(io.StringIO(tables.csv_of_contrasts(compared))))[1]["title"] == titles[1]
    runs += several(LABEL_ONLY, training={"warmup_epochs": 3})
    names = [f"alone (training.warmup_epochs={value})" for value in (0.0, 3.0)]
    compared = compare(Found(runs, []), vary=["training.warmup_epochs"], contrasts=[":".join(names)])
    assert [(one["label"], one["title"]) for one in compared["contrasts"]] == [(names[0], None)]


def test_a_set_where_a_name_may_be_each_of_two_is_left_out_of_a_contrast_with_a_line():
    warm = [{"temperature": value} for value in (2, 8)]
    runs = [*taught_by("first"), *taught_by("first", OTHERS, B)]
    runs += [run for kd in warm for run in taught_by("second", kd=kd)] + taught_by("second", OTHERS, B)
    for order in (runs, runs[::-1]):
        [contrast] = compare(Found(order, []), contrasts=[f"{A}:{B}"])["contrasts"]
        assert contrast["mean"] == pytest.approx(np.mean(VALUES) - np.mean(OTHERS))
        assert any(f"--contrast: {A!r} may be each of" in line for line in contrast["warnings"])
    with pytest.raises(UserError, match="may be each of"):
        compare(Found(runs[10:], []), contrasts=[f"{A}:{B}"])


def test_a_contrast_says_which_test_it_is():
    compared = compare(Found([*several(A), *several(B, OTHERS[:3], first=9)], []), contrasts=[f"{A}:{B}"])
    *_, table = tables.tables_of(compared)
    assert table.notes[1:] == [f"{A} and {B} have no seed in common: compared by Welch's test, unpaired"]


def test_small_differences_are_said_to_be_small():
    runs = [*several(A), *several(B, [value + 0.001 * (-1) ** n for n, value in enumerate(VALUES)])]
    for margin, word in ((0.5, "inconclusive, within 0.5"), (0.1, "inconclusive")):
        [table] = tables.tables_of(compare(Found(runs, []), margin=margin))
        assert table.rows[1][table.header.index("verdict")].text == word


def test_a_pooled_variance_is_of_all_groups_of_the_set():
    values = {A: VALUES, B: OTHERS, C: [0.6, 0.7, 0.65, 0.61, 0.66]}
    runs = [run for method, own in values.items() for run in several(method, own)]
    compared = compare(Found(runs, []), pool=True)
    [one] = compared["sets"]
    common = pooled({method: seeded(own) for method, own in values.items()})
    assert one["pooled"]["deviation"] == common.deviation and one["pooled"]["freedom"] == 8
    wanted = common.difference(B, A, 0.95, (0, 1))
    found = one["groups"][1]["against_baseline"]
    assert {key: found[key] for key in wanted} == wanted
    [table] = tables.tables_of(compared)
    assert any("exploratory: one variance for all 3 groups, of 15 runs" in note for note in table.notes)
    apart = compare(Found([*runs, *several(LABEL_ONLY, first=7)], []), pool=True, baseline=A)["sets"][0]
    assert f"alone and {A}: no common seeds, nor by way of other groups: no test is possible" in str(apart["warnings"])
    lone = compare(Found(several(A)[:1] + several(B)[:1], []), pool=True)["sets"][0]
    assert lone["pooled"] is None and any("--pooled: needs two groups" in text for text in lone["warnings"])


@pytest.mark.parametrize(
    ("contrast", "text"),
    [
        ("nothing", "--contrast: is 'nothing', expected two groups, A:B; there are"),
        (f"{A}:{A}", "expected two groups, A:B"),
        (f"{A}:typo", f"is '{A}:typo', expected two groups"),
        (f"{A}:{B}", "the two are in no common set; --vary KEYS names settings"),
    ],
)
def test_contrasts_that_are_none(contrast, text):
    runs = [*several(A), *several(B, training={"max_epochs": 9})]
    with pytest.raises(UserError, match=text):
        compare(Found(runs, []), contrasts=[contrast])


@pytest.mark.parametrize("margin", [0.0, -1.0, math.nan, math.inf])
def test_a_margin_is_positive(margin):
    with pytest.raises(UserError, match="--margin: is .*, must be above 0"):
        compare(Found(several(A), []), margin=margin)


def test_sizes_that_all_rows_share_need_no_column():
    def table(*sizes):
        runs = [
            run for name, size in zip((A, B), sizes, strict=True)
            for run in several(name, summary={"parameters": size, "cost": {"multiply_adds": 2000}})
        ]  # fmt: skip
        [found] = tables.tables_of(compare(Found(runs, [])))
        return found

    same = table(1000, 1000)
    assert not {"parameters", "multiply-adds"} & set(same.header) and len(same.rows[0]) == len(same.header)
    assert same.notes[0].endswith("; every student has 1,000 parameters and 2,000 multiply-adds")
    unlike = table(1000, 900)
    assert unlike.header[-1] == "parameters" and [row[-1].value for row in unlike.rows] == [1000, 900]
    assert unlike.notes[0].endswith("; every student has 2,000 multiply-adds")
    unknown = table(1000, None)
    assert unknown.header[-1] == "parameters" and [row[-1].text for row in unknown.rows] == ["1,000", "-"]
    compared = compare(Found(several(A), []))
    [single] = tables.tables_of(compared)
    assert single.header[-1] == "parameters" and "every student" not in single.notes[0]
    assert "1000.0" in tables.csv_of(compared).splitlines()[1].split(",")


def test_warnings_about_seeds():
    def warnings(*runs):
        return "\n".join(compare(Found([*runs], []))["sets"][0]["warnings"])

    assert warnings(*several(A), *several(B, OTHERS)) == ""
    text = warnings(*several(A, VALUES[:3]), *several(B, OTHERS[:3], first=1))
    assert f"the seeds differ ({A}: 0, 1, 2; {B}: 1, 2, 3): differences are of" in text
    alike = [run for method in (B, C, LABEL_ONLY) for run in several(method, VALUES[:3])]
    assert f"the seeds differ ({A}: 1, 2, 3; the others: 0, 1, 2)" in warnings(*several(A, VALUES[:3], first=1), *alike)
    text = warnings(*several(A, VALUES[:2]), *several(B, OTHERS[:2], first=5))
    assert f"{B} and {A} have no seed in common: compared by Welch's test" in text
    assert f"fewer than three seeds: {A}, {B}" in text
    three = warnings(*several(A, VALUES[:2]), *several(B, OTHERS[:2]), *several(C, OTHERS[2:4]))
    assert "fewer than three seeds: all groups; expect" in three
    assert f"{B}: equal differences in all seeds" in warnings(*several(A), *several(B))


@pytest.mark.parametrize(("method", "code"), [(A, ["d1"]), (LABEL_ONLY, None)])
def test_a_student_alone_at_wandb_uses_no_own_method(method, code, monkeypatch):
    """As in identity.json, so the two are one group."""
    file = SimpleNamespace(path=Path("mine.py"), digest="d1", adds_methods_alone=True)
    monkeypatch.setattr(own_code, "files", lambda: [file])
    told = {"data_fingerprint": "f" * 64, "own_code": {"mine.py": "d1"}}
    values = make(method).config.model_dump(mode="json") | told
    run = SimpleNamespace(state="finished", id="1", path=["entity", "project", "1"], created_at="2026-01-01T00:00:00Z",
                          config=values, summary={}, scan_history=list)  # fmt: skip
    monkeypatch.setattr("wandb.Api", lambda **options: SimpleNamespace(run=lambda name: run))
    [found] = find(["entity/project/1"]).runs
    assert found.identity["kd"].get("code") == code


# --------------------------------------------------------------------------------------------------------- figures


def test_metrics_are_those_of_the_selected_student():
    rows = [
        {"epoch": 1, "val/loss_ce": 1.0, "train/accuracy": 0.1, "perf/epoch_time": 2.0},
        {"epoch": 2, "val/loss_ce": 0.5, "train/accuracy": 0.2, "perf/epoch_time": 3.0},
        {"epoch": 2, "test/loss_ce": 0.7},
    ]
    figures = {"ece": 0.03, "temperature_scaling": {"ece": 0.01}}
    nested = {"evaluation": {"val": figures}, "cost": {"latency_ms": {"1": 5}}}
    run = make(summary={"best_epoch": 1, "best_val_accuracy": 0.8, "final_test_accuracy": 0.7, **nested}, rows=rows)
    expected = {
        "val/accuracy": 0.8, "test/accuracy": 0.7, "val/loss_ce": 1.0, "train/accuracy": 0.1, "test/loss_ce": 0.7,
        "val/ece": 0.03, "val/temperature_scaling.ece": 0.01, "cost.latency_ms.1": 5.0, "parameters": 1000.0,
        "val/nothing": None, "cost": None, "": None,
    }  # fmt: skip
    assert {name: run.figure(name) for name in expected} == expected
    assert run.training_seconds == 5.0
    assert {"val/ece", "val/accuracy", "train/accuracy"} <= set(run.figures())
    run.summary["evaluation"]["val"]["accuracy"] = 0.81
    assert run.figure("val/accuracy") == 0.81
    run.rows[0]["val/ema_loss_ce"] = 0.9
    assert (run.figure("val/loss_ce"), run.figure("val/ema_loss_ce")) == (1.0, 0.9)
    run.summary["weights"] = "average"  # is what was exported
    assert (run.figure("val/loss_ce"), run.figure("val/ema_loss_ce"), run.figure("test/loss_ce")) == (0.9, 0.9, 0.7)


@pytest.mark.parametrize(("average", "expected"), [(0.6, 0.4), (0.4, 0.9)])
def test_of_averaged_weights_the_better_count_where_the_summary_does_not_say(average, expected):
    """As at W&B."""
    row = {"epoch": 1, "val/accuracy": 0.5, "val/loss_ce": 0.9, "val/ema_accuracy": average, "val/ema_loss_ce": 0.4}
    run = make(training={"ema": {"decay": 0.99}}, rows=[row])
    assert run.figure("val/loss_ce") == expected
    run.summary["weights"] = "last"
    assert run.figure("val/loss_ce") == 0.9


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "0.5", True, [0.5], 10**400])
def test_a_metric_that_is_not_finite_excludes_its_run(value):
    runs = several(A) + [make(A, 9, value)]
    found = compare(Found(runs, []))
    assert found["sets"][0]["groups"][0]["n"] == 5
    assert found["left_out"] == [{"run": runs[-1].name, "reason": "has no finite val/accuracy"}]
    with pytest.raises(UserError, match="--metric: val/accuracy: no run has such a metric; there are"):
        compare(Found(runs[-1:], []))


def test_the_default_metric_is_test_accuracy_where_all_have_it():
    tested = several(A, summary={"final_test_accuracy": 0.4})
    assert compare(Found(tested, []))["metric"] == "test/accuracy"
    assert compare(Found(tested + several(B), []))["metric"] == "val/accuracy"


def test_metrics_that_cannot_be_compared_by():
    with pytest.raises(UserError, match="--metric: val/typo: no run has such a metric; there are val/accuracy"):
        compare(Found(several(A), []), metric="val/typo")
    with pytest.raises(UserError, match="--metric: best_epoch: it is unknown whether higher is better"):
        compare(Found(several(A), []), metric="best_epoch")
    with pytest.raises(UserError, match="--also: val/typo: no run"):
        compare(Found(several(A), []), also=["val/typo"])
    with pytest.raises(UserError, match="--confidence: is 95"):
        compare(Found(several(A), []), confidence=95)
    with pytest.raises(UserError, match="no finished run to compare\n  runs/x: has no summary.json"):
        compare(Found([], [("runs/x", "has no summary.json")]))


def test_one_run_is_a_comparison_too():
    found = compare(Found([make(A)], []))
    text = tables.text(found, tables.tables_of(found))
    assert re.search(rf"^{A} +1 +50.00 ", text, re.MULTILINE) and "verdict" not in text
    json.dumps(found, allow_nan=False)


# ------------------------------------------------------------------------------------------------ rows and columns


def paper(tmp_path) -> list[Run]:
    """Two pairs of networks, three methods; one cell, one student alone and one seed are missing."""
    other = [{"model": "cifar_vgg13", "weights": "vgg.pth"}]
    told = {"teachers": [{"name": "cifar_resnet56", "val_accuracy": 0.75}]}
    runs = several(LABEL_ONLY, OTHERS) + several(A, VALUES, summary=told) + several(B, OTHERS)
    runs += several(C, [0.9, 0.8], kd={"loss": "dkd", "dkd": {"beta": 2.0}})
    runs += several(A, OTHERS, teachers=other, model={"name": "cifar_vgg8"})
    runs += several(B, VALUES, teachers=other, model={"name": "cifar_vgg8"})
    for run in runs:
        run.folder = tmp_path / run.run_id
        run.folder.mkdir()
        (run.folder / "config.yaml").write_text(run.config.to_yaml())
    return runs


def test_a_papers_table(tmp_path):
    found = pivot(Found(paper(tmp_path), []), "kd.type", "pair")
    assert found["rows"] == [A, B, C]
    assert found["cols"] == ["cifar_resnet56 -> cifar_resnet20", "cifar_vgg13 -> cifar_vgg8"]
    assert found["teachers"] == [[{"name": "cifar_resnet56", "value": 0.75}], [{"name": "cifar_vgg13", "value": None}]]
    assert found["alone"][0]["mean"] == pytest.approx(np.mean(OTHERS)) and found["alone"][1] is None
    cells = [[cell and (round(cell["mean"], 3), cell["n"], cell["mark"]) for cell in row] for row in found["cells"]]
    assert cells == [
        [(0.716, 5, None), (0.707, 5, None)],
        [(0.707, 5, None), (0.716, 5, None)],
        [(0.85, 2, None), None],
    ]
    table = tables.table_of(found)
    lines = tables.terminal(table).splitlines()
    assert lines[2] == lines[5] == "-" * len(lines[2])
    assert [line.split("  ")[0] for line in (lines[1], *lines[3:5], *lines[6:8])] == [
        "kd.type", "teacher", "student alone", A, B,
    ]  # fmt: skip
    assert re.search(rf"^{C} +85.00 ± 7.07 \(2\) +-$", "\n".join(lines), re.MULTILINE)
    tex = tables.latex(table)
    assert r"85.00 $\pm$ 7.07 (2) &" in tex and r"\textbf" not in tex and r"\underline" not in tex
    assert r"kd.type & cifar\_resnet56 $\rightarrow$ cifar\_resnet20 & cifar\_vgg13 $\rightarrow$ cifar\_vgg8 \\" in tex
    assert tex.count(r"\midrule") == 2 and r"\toprule" in tex and r"\bottomrule" in tex
    assert "| 85.00 ± 7.07 (2) |" in tables.markdown(table)
    left, right = found["cols"]
    notes = [
        f"missing, no finished run: student alone in {right}; {C} in {right}",
        f"missing seeds that others of the column have: {C} in {left} (2, 3, 4)",
        f"missing values: teacher in {right}",
    ]
    below = tex.partition(r"\end{tabular}")[2]
    assert "mean $\\pm$ sample standard deviation (number of seeds n)" in below and r"\footnotesize" in below
    for note in notes:
        assert f"note: {note}" in lines and note in table.notes
        assert tables.tex_escape(note) in below
    assert "none is here" in table.notes[-1]


CLOSE = [value - shift for value, shift in zip(VALUES, (0.002, -0.004, 0.003, -0.002, 0.001), strict=True)]
BELOW = [value - shift for value, shift in zip(VALUES, (0.051, 0.049, 0.05, 0.052, 0.05), strict=True)]
LOWEST = [value - shift for value, shift in zip(VALUES, (0.1, 0.101, 0.099, 0.1, 0.103), strict=True)]


@pytest.mark.parametrize(
    ("alone", "methods", "marks"),
    [
        (None, [VALUES, BELOW, LOWEST], ["best", "second", None]),
        (LOWEST, [VALUES, BELOW], ["best", "second"]),
        (None, [VALUES, BELOW], ["best", None]),  # what the second is better than, nobody knows
        (None, [BELOW, LOWEST, VALUES], ["second", None, "best"]),
        (None, [VALUES, CLOSE, BELOW], [None, None, None]),
        (None, [VALUES, BELOW, [value - 0.05 for value in CLOSE]], ["best", None, None]),
        (CLOSE, [VALUES, BELOW], [None, None]),  # the student alone is as good
        (VALUES, [BELOW, LOWEST], [None, None]),  # and here better
        (None, [VALUES, VALUES], [None, None]),
        (None, [VALUES[:1], BELOW[:1]], [None, None]),  # one seed shows nothing
        (None, [VALUES, BELOW[:1]], [None, None]),
        (LOWEST, [VALUES], [None]),  # of one method there is no best
    ],
)
@pytest.mark.parametrize("higher", [True, False])
def test_a_best_is_marked_where_its_interval_leaves_out_the_next(alone, methods, marks, higher):
    def runs_of(name: str, values: list[float]) -> list[Run]:
        shown = values if higher else [1 - value for value in values]
        return [make(name, seed, summary={"evaluation": {"val": {"accuracy": v, "ece": v}}})
                for seed, v in enumerate(shown)]  # fmt: skip

    runs = runs_of(LABEL_ONLY, alone) if alone else []
    for name, values in zip((A, B, C), methods, strict=False):
        runs += runs_of(name, values)
    found = pivot(Found(runs, []), "kd.type", "pair", metric="val/accuracy" if higher else "val/ece")
    assert [row[0]["mark"] for row in found["cells"]] == marks
    table = tables.table_of(found)
    assert tables.latex(table).count(r"\textbf") == marks.count("best")
    assert tables.terminal(table).count("*") == 2 * marks.count("best")  # once in the legend
    assert ("none is here" in table.notes[-1]) == ("best" not in marks)


def test_metrics_of_a_real_evaluation():
    """Its names are the contract: of the student, after scaling, and of each teacher."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (200,), generator=generator)
    logits = torch.randn(3, 200, 4, generator=generator) + 2 * torch.eye(4)[labels]
    names = [str(number) for number in range(4)]
    seen = Predictions("val", labels, logits[0], names, teachers=logits[1:], teacher_names=["a", "b"])
    figures = evaluate(seen, fitted=seen)
    two = [TEACHER, {**TEACHER, "weights": "b.pth"}]
    runs = [make(A, seed, teachers=two, summary={"evaluation": {"val": figures}}) for seed in (0, 1)]
    for name in ("val/ece", "val/nll", "val/top5", "val/macro_accuracy"):
        assert runs[0].figure(name) == figures[name.removeprefix("val/")]
    assert runs[0].figure("val/temperature_scaling.ece") == figures["temperature_scaling"]["ece"]
    found = pivot(Found(runs, []), "kd.type", "pair", metric="val/ece")
    assert [one["value"] for one in found["teachers"][0]] == [one["ece"] for one in figures["teachers"]]
    assert found["higher_is_better"] is False


def test_commands_train_exactly_what_is_missing(tmp_path):
    """The settings that a listed command resolves to are those of the cell, but for the seed."""
    runs = paper(tmp_path)
    missing = pivot(Found(runs, []), "kd.type", "pair")["missing"]
    assert [(one["row"], one["column"].split()[0], one["seeds"]) for one in missing] == [
        (C, "cifar_resnet56", [2, 3, 4]),
        ("student alone", "cifar_vgg13", [0, 1, 2, 3, 4]),
        (C, "cifar_vgg13", [0, 1, 2, 3, 4]),
    ]
    for one, method in zip(missing, [C, LABEL_ONLY, C], strict=True):
        words = shlex.split(one["command"])
        assert words[:2] == ["python", "train_kd.py"]
        options, resolved = command_line.parse(words[2:])
        assert options.seeds == one["seeds"] and resolved.config.kd.type == method
        like = next(run for run in runs if run.config.kd.type == C)
        column = next(run for run in runs if run.pair == one["column"])
        wanted = column.config.model_copy(update={"kd": like.config.kd})
        if method == LABEL_ONLY:
            wanted = command_line.without_teachers(column.config)
        assert group(resolved.config, "f").rpartition("-")[2] == group(wanted, "f").rpartition("-")[2]


FITNET = {"features": [{"loss": "fitnet", "student": [3]}]}
AT = {"features": [{"loss": "at", "p": 1}, {"loss": "fitnet"}]}
FALLING = {"from": 4.0, "to": 1.0}


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        ({}, FITNET),
        (AT, FITNET),
        (FITNET, AT),
        (FITNET, {}),
        ({}, {"features": [{"loss": "fitnet", "weight": FALLING}]}),
        ({"entropy_weight": True}, {}),
        ({"correct_labels": "swap"}, {}),
        ({"teacher_temperatures": [2.0]}, {"teacher_temperatures": [3.0]}),
        ({"teacher_temperatures": [2.0]}, {"temperature": 8.0}),
        ({"temperature": FALLING}, {"temperature": 4.0}),
        ({"temperature": 4.0}, {"temperature": FALLING}),
        ({"temperature": FALLING}, {"temperature": {**FALLING, "shape": "cosine"}}),
        ({"loss": "rld", "rld": {"beta": 4.0}}, {"loss": "kd"}),
        ({"loss": "dkd", "dkd": {"beta": FALLING, "alpha": 2.0}}, {"loss": "dkd", "dkd": {"beta": 3.0}}),
        ({"loss": "dist", "dist": {"gather": True}}, {"loss": "dist"}),
        ({"loss": "rld", "rld": {"beta": 4.0}, **AT}, {"type": B}),
        ({"loss": "dkd"}, {"type": B, "entropy_weight": True, **FITNET}),
    ],
)
def test_commands_reset_what_is_not_recorded(tmp_path, there, wanted):
    """Settings at their defaults are not in config.yaml, so a command has to give those that differ there."""
    other = {"teachers": [{"model": "cifar_vgg13", "weights": "vgg.pth"}], "model": {"name": "cifar_vgg8"}}
    left, right = several(A, kd=wanted), several(A, kd=there, **other)
    right[0].folder = tmp_path
    (tmp_path / "config.yaml").write_text(right[0].config.to_yaml())
    keys = ("type", "loss", "temperature", "teacher_temperatures", "entropy_weight", "correct_labels", "features")
    keys = (*keys, "rld", "dkd", "dist")
    runs = [*left, *several(A, kd=there), *right, *several(C)]
    rows = [f"kd.{key}" for key in keys if any(key in run.config.kd.model_dump() for run in runs)]
    missing = pivot(Found(runs, []), ",".join(rows), "pair")["missing"]
    [command] = [one["command"] for one in missing if "vgg" in one["column"] and f"{left[0].config.kd.type}, " in
                 one["row"]]  # fmt: skip
    _, resolved = command_line.parse(shlex.split(command)[2:])
    assert resolved.config.kd.model_dump() == left[0].config.kd.model_dump()
    exact = right[0].config.model_copy(update={"kd": left[0].config.kd})
    assert group(resolved.config, "f") == group(exact, "f")


@pytest.mark.parametrize("keys", [("kd.type", "kd.temperature"), ("kd.temperature", "kd.type")])
def test_commands_give_the_method_that_row_and_column_name(tmp_path, keys):
    own, other = {"temperature": 4.0}, {"temperature": 8.0, "loss": "dkd", "dkd": {"beta": 2.0}}
    runs = several("aekd", kd=own) + several("aekd", kd={**other, "loss": "kd"}) + several("average", kd=own)
    for run in runs:
        store(run, tmp_path / run.run_id)
        run.folder = tmp_path / run.run_id
    [one] = [one for one in pivot(Found(runs, []), *keys)["missing"] if "student" not in one["row"]]
    kd = command_line.parse(shlex.split(one["command"])[2:])[1].config.kd
    assert kd.model_dump() == make("average", kd={"temperature": 8.0}).config.kd.model_dump()


def test_commands_take_the_losses_settings_from_where_the_loss_is_named():
    """Rows name the loss, columns the method; a part of a section is taken without its other parts."""
    runs = several("aekd") + several("aekd", kd={"loss": "dkd", "dkd": {"beta": 2.0}}) + several("average")
    [one] = [one for one in pivot(Found(runs, []), "kd.loss", "kd.type")["missing"] if "student" not in one["row"]]
    words = shlex.split(one["command"])
    assert [word for word in words if word.startswith("--kd.")] == [
        "--kd.loss=dkd", '--kd.dkd={"alpha": 1.0, "beta": 2.0, "warmup": 0.08333333333333333}'
    ]  # fmt: skip
    parts = {"loss": "dkd", "dkd": {"alpha": 3.0}}
    runs = several("aekd", kd={"loss": "dkd"}) + several("aekd", kd={**parts, "dkd": {"alpha": 3.0, "beta": 2.0}})
    runs += several("average", kd={"loss": "dkd", "dkd": {"alpha": 1.0}})
    missing = pivot(Found(runs, []), "kd.type,kd.dkd.alpha", "kd.dkd.beta")["missing"]
    found = {one["row"]: one["command"] for one in missing if one["column"] == "beta=2.0"}
    assert '{"alpha": 1.0, "beta": 2.0, ' in found["average, alpha=1.0"]


def test_cells_of_a_setting_that_the_method_lacks_are_not_missing():
    runs = several("dynamic") + several("dynamic", kd={"gamma": 2.0}) + several("average")
    missing = pivot(Found(runs, []), "kd.type", "kd.gamma")["missing"]
    assert {one["row"] for one in missing} == {"student alone"}


def test_commands_test_what_was_never_tested():
    tested = {"summary": {"final_test_accuracy": 0.4}}
    runs = several(A, **tested) + several(B, VALUES[:4], **tested)
    [one] = pivot(Found(runs, []), "kd.type", "pair")["missing"][1:]
    assert one["seeds"] == [4] and one["command"].endswith(" --evaluation.test_at_end=true --training.seed=4")


def test_finished_runs_that_lack_the_metric_are_measured_not_trained(tmp_path):
    """Seeds 0 to 2 of a cell, and one of the student alone, whose other two have never been trained."""
    runs = [run for method in (A, B, LABEL_ONLY) for run in several(method, VALUES[:3])]
    runs = [run for run in runs if run.config.kd.type != LABEL_ONLY or run.seed == 1]
    for run in runs:
        run.folder = store(run, tmp_path / run.run_id)
        if run.config.kd.type == A or (run.config.kd.type == B and run.seed == 0):
            run.summary["final_test_accuracy"] = 0.4
    found = pivot(Found(runs, []), "kd.type", "pair", metric="test/accuracy")
    folders = {(run.config.kd.type, run.seed): run.folder for run in runs}
    words = [(one["row"], one["seeds"], shlex.split(one["command"])) for one in found["missing"]]
    assert [(row, seeds, command[1]) for row, seeds, command in words] == [
        ("student alone", [1], "evaluate_kd.py"), ("student alone", [0, 2], "train_kd.py"),
        (B, [1], "evaluate_kd.py"), (B, [2], "evaluate_kd.py"),
    ]  # fmt: skip
    assert words[0][2][2:] == ["--checkpoint", str(folders[LABEL_ONLY, 1]), "--split", "test"]
    notes = tables.table_of(found).notes
    assert f"missing seeds that others of the column have: {B} in cifar_resnet56 -> cifar_resnet20 (1, 2)" in notes
    assert not any(note.startswith("missing, no finished run") for note in notes)
    for run in runs[:4]:
        run.summary["cost"] = {"latency_ms": {"1": 3.0}}
    found = pivot(Found(runs, []), "kd.type", "pair", metric="cost.latency_ms.1")  # which no such command measures
    assert [(one["row"], one["seeds"]) for one in found["missing"]] == [("student alone", [0, 2])]

def test_rows_and_columns_by_any_setting():
    runs = several(A) + several(A, OTHERS, kd={"temperature": 8.0}) + several(B, OTHERS)
    with pytest.raises(UserError, match=f"the cell of '{A}' and .* would hold .* differ in kd.temperature; add"):
        pivot(Found(runs, []), "kd.type", "pair")
    found = pivot(Found(runs, []), "kd.type,kd.temperature", "model.name")
    assert found["rows"] == [f"{A}, temperature=4.0", f"{A}, temperature=8.0", f"{B}, temperature=4.0"]
    assert found["cols"] == ["cifar_resnet20"]
    for key, text in (("kd.typo", "no run has such a setting"), ("training.seed", "over the seeds")):
        with pytest.raises(UserError, match=f"--rows: {key}: {text}"):
            pivot(Found(runs, []), key, "pair")


def test_columns_hold_what_may_be_compared():
    runs = several(A) + several(B, OTHERS, training={"max_epochs": 7})
    with pytest.raises(UserError, match="--cols: in column .* differs than the method: training.max_epochs: 100, 7"):
        pivot(Found(runs, []), "kd.type", "pair")
    [warning] = pivot(Found(runs, []), "kd.type", "pair", force=True)["warnings"]
    assert "training.max_epochs: 100, 7" in warning
    assert pivot(Found(runs, []), "kd.type", "pair,training.max_epochs")["cells"][0][1] is None


def test_students_alone_that_share_a_column_of_their_own():
    longer = several(LABEL_ONLY, OTHERS, training={"max_epochs": 7})
    runs = [*several(LABEL_ONLY), *longer]
    for more in ([], several(A, model={"name": "cifar_vgg8"})):
        with pytest.raises(UserError, match=r"the cell of 'student alone' and 'cifar_resnet20' would .* differ in "
                           r"training.max_epochs; add such a key to --rows or --cols"):  # fmt: skip
            pivot(Found([*runs, *more], []), "kd.type", "model.name")
    found = pivot(Found(runs, []), "kd.type", "model.name,training.max_epochs")
    assert [cell["n"] for cell in found["alone"]] == [5, 5]


def test_students_alone_of_which_several_fit_are_not_missing():
    seven = {"training": {"max_epochs": 7}}
    runs = [*several(A), *several(B, OTHERS, **seven), *several(LABEL_ONLY), *several(LABEL_ONLY, OTHERS, **seven)]
    found = pivot(Found(runs, []), "kd.type", "pair", force=True)
    assert any("several students alone fit, none is shown" in warning for warning in found["warnings"])
    assert found["alone"] == [None] and found["cols"] == ["cifar_resnet56 -> cifar_resnet20"]
    assert "alone" not in {word for one in found["missing"] for word in one["row"].split()}
    other = [run for method in (C, LABEL_ONLY) for run in several(method, model={"name": "cifar_vgg8"})]
    table = tables.table_of(pivot(Found([*runs, *other], []), "kd.type", "pair", force=True))
    [missing] = [note for note in table.notes if note.startswith("missing, no finished run")]
    assert "student alone in cifar_resnet56 -> cifar_resnet20" not in missing


def test_a_student_alone_that_does_not_fit_its_column_is_left_out_with_the_reason():
    other = several(LABEL_ONLY, OTHERS, training={"max_epochs": 7})
    found = pivot(Found([*several(A), *other], []), "kd.type", "model.name")
    wanted = "left out: alone differs from the column 'cifar_resnet20' in training.max_epochs"
    assert wanted in found["warnings"] and found["alone"] == [None]
    found = pivot(Found([*several(A), *other, *several(LABEL_ONLY)], []), "kd.type", "model.name")
    assert wanted.replace("alone", "alone (training.max_epochs=7)") in found["warnings"] and found["alone"][0]


# ------------------------------------------------------------------------------------------------- names from files


def test_control_characters_in_names_are_escaped():
    found = evil()
    text = tables.text(found, tables.tables_of(found))
    assert "\x1b" not in text and "\\x1b[31m" in text


def test_names_are_escaped_in_latex_and_markdown():
    [table] = tables.tables_of(evil())
    table.rows[0][0].text = EVIL
    tex = tables.latex(table)
    row = next(line for line in tex.splitlines() if "script" in line and not line.startswith("%"))
    bare = re.sub(r"\\(?:[&%$#_{}]|text\w+\{\}|degree\{\})|\$\\pm\$|\$-\$", "", row.removesuffix("\\\\"))
    assert bare.count("&") == len(table.header) - 1 and not re.search(r"[%$#_{}~^\\]", bare)
    lines = tables.markdown(table).splitlines()
    assert all(len(re.findall(r"(?<!\\)\|", line)) == len(table.header) + 1 for line in lines if line.startswith("|"))
    assert not re.search(r"(?<!\\)[<`]", "\n".join(lines))
    assert [line for line in tex.splitlines() if "new `line`" in line and line.startswith("%")]  # not a line of its own


class Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.scripts, self.text = 0, []

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"

    def handle_data(self, data):
        self.text.append(data)


def test_the_files(tmp_path):
    found = evil()
    written = tables.write(tmp_path / "out", found, tables.tables_of(found))
    assert {path.name for path in written} == {f"comparison.{end}" for end in ("csv", "md", "tex", "html", "json")}
    page = Elements()
    page.feed((tmp_path / "out" / "comparison.html").read_text())
    assert page.scripts == 1  # the page's own
    assert "<script>alert(1)</script>" in "".join(page.text)
    assert (tmp_path / "out" / "comparison.html").read_text().count("data:image/png;base64,") == 1  # nothing was timed
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "comparison.csv").read_text())))
    assert [row["label"] for row in rows] == ["alone", A, B] and all(row["title"].startswith("'=1+1") for row in rows)
    assert float(rows[1]["mean"]) == pytest.approx(np.mean(VALUES))
    assert float(rows[2]["p"]) == pytest.approx(stats.ttest_rel(OTHERS, VALUES).pvalue)
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == found


def test_contrasts_are_a_file_of_their_own(tmp_path):
    runs = [*several(A), *several(B, OTHERS)]
    found = compare(Found(runs, []), contrasts=[f"{A}:{B}"], margin=50.0)
    written = tables.write(tmp_path / "out", found, tables.tables_of(found))
    assert tmp_path / "out" / "contrasts.csv" in written
    [row] = csv.DictReader(io.StringIO((tmp_path / "out" / "contrasts.csv").read_text()))
    [test] = found["contrasts"]
    assert (row["label"], row["against"], row["test"], row["within_margin"]) == (A, B, "paired", "True")
    assert float(row["difference"]) == pytest.approx(np.mean(VALUES) - np.mean(OTHERS))
    assert [float(row[f"difference_{end}"]) for end in ("low", "high")] == pytest.approx(test["interval"])


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t"])
def test_no_cell_of_text_is_a_formula(start):
    text = csv_text([["name", "value"], [f"{start}1", -1.5]])
    [[name, value]] = list(csv.reader(io.StringIO(text)))[1:]
    assert name[0] == "'" and float(value) == -1.5


def test_a_papers_table_as_files(tmp_path):
    found = pivot(Found(paper(tmp_path), []), "kd.type", "pair")
    tables.write(tmp_path / "out", found, [tables.table_of(found)])
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "comparison.csv").read_text())))
    cells = {(row["row"], row["column"].split()[0]): row for row in rows}
    assert cells[C, "cifar_resnet56"]["n"] == "2" and cells[C, "cifar_resnet56"]["seeds"] == "0 1"
    assert cells["teacher cifar_resnet56", "cifar_resnet56"]["mean"] == "0.75"
    assert (C, "cifar_vgg13") not in cells
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "<strong>" not in page and "Bold" not in page and "train_kd.py --config" in page
    assert "missing, no finished run: student alone in" in page
    clear = several(A) + several(B, BELOW) + several(C, LOWEST) + several(LABEL_ONLY, LOWEST)
    found = pivot(Found(clear, []), "kd.type", "pair")
    tables.write(tmp_path / "out", found, [tables.table_of(found)])
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "<strong>" in page and "<u>" in page and "Bold: the best" in page
