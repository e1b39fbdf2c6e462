"""Metrics against scikit-learn and slow references."""

import math
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as torchmetrics
from logit_cases import CASES, case, sample
from method_variants import method_for
from scipy.optimize import minimize_scalar
from scipy.stats import entropy
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    brier_score_loss,
    confusion_matrix,
    log_loss,
    recall_score,
    roc_auc_score,
    top_k_accuracy_score,
)
from torchmetrics.functional import kl_divergence

import kd_methods
from kd_core import metrics
from kd_core.errors import NonFinite, UserError
from kd_core.models.method_on_split import score


@pytest.mark.parametrize("decimals", [None, 0])  # rounded scores have many ties
def test_auroc_equals_scikit_learn(decimals):
    logits, labels = sample(decimals=decimals)
    area, left_out = metrics.auroc(logits, labels)
    expected = roc_auc_score(np.eye(10)[labels], logits.numpy(), average="macro")
    assert area == pytest.approx(expected, abs=1e-12) and left_out == 0


def test_auroc_leaves_out_classes_without_positives():
    logits, labels = sample()
    labels[labels == 3] = 4
    area, left_out = metrics.auroc(logits, labels)
    columns = [c for c in range(10) if c != 3]
    expected = roc_auc_score(np.eye(10)[labels][:, columns], logits.numpy()[:, columns], average="macro")
    assert left_out == 1 and area == pytest.approx(expected, abs=1e-12)


def test_auroc_of_one_class_only_is_not_a_number():
    area, left_out = metrics.auroc(torch.randn(5, 3), torch.zeros(5, dtype=torch.long))
    assert math.isnan(area) and left_out == 3


def test_constant_scores_are_chance():
    assert metrics.auroc(torch.zeros(20, 4), torch.arange(20) % 4)[0] == 0.5


def test_classification_equals_references():
    logits, labels = sample()
    figures = metrics.classification(logits, labels)
    probabilities = logits.double().softmax(1).numpy()
    assert figures["correct"] == int((probabilities.argmax(1) == labels.numpy()).sum()) and figures["total"] == 500
    assert figures["accuracy"] == figures["correct"] / 500
    assert figures["top5"] == pytest.approx(top_k_accuracy_score(labels, probabilities, k=5))
    assert figures["loss_ce"] == pytest.approx(log_loss(labels, probabilities), rel=1e-5) == figures["nll"]
    assert figures["brier"] == pytest.approx(((probabilities - np.eye(10)[labels]) ** 2).sum(1).mean(), rel=1e-5)


@pytest.mark.parametrize("decimals", [None, 0])
def test_a_class_that_is_missing_changes_no_other_metric(decimals):
    logits, labels = sample(decimals=decimals)
    labels[labels == 3] = 4
    figures = metrics.classification(logits, labels)
    probabilities = logits.double().softmax(1).numpy()
    assert figures["loss_ce"] == pytest.approx(log_loss(labels, probabilities, labels=np.arange(10)), rel=1e-5)
    assert figures["accuracy"] == pytest.approx(accuracy_score(labels, probabilities.argmax(1)))
    # scikit-learn's classes of equal scores come the other way round
    turned = top_k_accuracy_score(9 - labels, logits.flip(1).numpy(), k=5, labels=np.arange(10))
    assert figures["top5"] == pytest.approx(turned)
    assert figures["auroc_classes_left_out"] == 1
    assert metrics.classification(logits[labels == 4], labels[labels == 4])["auroc_classes_left_out"] == 10


@pytest.mark.parametrize("classes", [2, 10])
def test_one_image(classes):
    logits = torch.randn(1, classes)
    figures = metrics.classification(logits, logits.argmax(1))
    assert figures["accuracy"] == figures["top5"] == 1 and figures["auroc_classes_left_out"] == classes
    assert figures["ece"] == pytest.approx(1 - float(logits.softmax(1).max()))
    assert [name for name, value in figures.items() if not math.isfinite(value)] == ["auroc"]


@pytest.mark.parametrize("value", [0.0, 1e4, -1e4])
def test_constant_logits_name_the_first_classes(value):
    labels = torch.arange(10).repeat_interleave(torch.arange(1, 11))
    figures = metrics.classification(torch.full((55, 10), value), labels)
    assert figures["correct"] == 1 and figures["top5"] == (1 + 2 + 3 + 4 + 5) / 55
    assert figures["auroc"] == 0.5 and figures["loss_ce"] == pytest.approx(math.log(10))
    assert figures["brier"] == pytest.approx(0.9) and figures["ece"] == pytest.approx(0.1 - 1 / 55)


def test_huge_logits():
    logits, labels = sample()
    figures = metrics.classification(1e4 * logits.sign(), labels)
    assert all(math.isfinite(value) for value in figures.values())
    expected = roc_auc_score(np.eye(10)[labels], (1e4 * logits.sign()).softmax(1).numpy(), average="macro")
    assert figures["auroc"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_an_error(value):
    logits, labels = sample()
    logits[7, 2] = logits[9, 0] = value
    with pytest.raises(NonFinite, match="^logits of 2 of 500 images not finite, number 7 the first$"):
        metrics.classification(logits, labels)
    with pytest.raises(ValueError, match="NaN|infinity"):  # as in scikit-learn
        roc_auc_score(np.eye(10)[labels], logits.numpy())


def test_no_image_is_an_error():
    with pytest.raises(UserError, match="no images"):
        metrics.classification(torch.zeros(0, 10), torch.zeros(0, dtype=torch.long))


@pytest.mark.parametrize("method", kd_methods.names())
def test_scores_of_splits_that_lack_something(method):
    """One image, a last chunk of one, a class without images, constant logits."""
    logits, labels = sample(9)
    labels[labels == 3] = 4
    built, teachers = method_for({"type": method}, 2), torch.stack([logits.flip(0), torch.zeros_like(logits)])
    for count in (1, 9):
        row = score(built, logits[:count], teachers[:, :count], labels[:count], batch_size=4, progress=0.5)
        assert math.isfinite(row["loss_total"]) and row["auroc_classes_left_out"] >= 1
        assert math.isnan(row["auroc"]) == (count == 1)
    with pytest.raises(NonFinite, match="logits of 9 of 9 images"):
        score(built, logits * torch.nan, teachers, labels, batch_size=4, progress=0.5)
    if built.requires_teachers:
        with pytest.raises(NonFinite, match=r"the evaluation loss is not finite \(loss_total of 9 images\)"):
            score(built, logits, teachers * torch.nan, labels, batch_size=4, progress=0.5)


def top(probabilities, labels):
    """The top probability of each image, and 1 where its class is the label."""
    confidence, predicted = probabilities.max(1)
    return confidence.double(), (predicted == labels).double()


def test_calibration_error_equals_a_loop_over_bins():
    logits, labels = sample()
    probabilities = logits.softmax(1)
    confidence, predicted = probabilities.double().max(1)
    expected = 0.0
    for lower in range(15):
        inside = (confidence > lower / 15) & (confidence <= (lower + 1) / 15)
        if inside.any():
            gap = (predicted == labels)[inside].double().mean() - confidence[inside].mean()
            expected += float(inside.double().mean() * gap.abs())
    assert metrics.calibration_error(*top(probabilities, labels)) == pytest.approx(expected, abs=1e-12)


def test_ensemble_is_the_mean_of_probabilities():
    logits = torch.randn(3, 7, 5)
    assert torch.allclose(metrics.ensemble_logits(logits).exp(), logits.softmax(-1).mean(0), atol=1e-6)


# ------------------------------------------------------------------------------------ through Hugging Face's evaluate

THROUGH = (
    "import sys, torch; from kd_core import metrics; assert 'evaluate' not in sys.modules; "
    "print(metrics.through_evaluate()(torch.eye(4), torch.tensor([0, 1, 2, 0]))['correct'])"
)


def offline(home, **variables):
    """The environment of a process without network, whose caches are in `home`, empty at first."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return {**known, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home), **variables}


def test_the_evaluate_module_works_offline_and_at_once_with_an_empty_cache(tmp_path):
    """Two processes: nothing but the module's code is written, so there is nothing to fight over."""
    command = [sys.executable, "-c", THROUGH]
    running = [subprocess.Popen(command, env=offline(tmp_path), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in running] == ["3", "3"]
    assert [path.name for path in tmp_path.iterdir()] == ["modules"]
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} <= {".py", ".json", ".lock", ".pyc"}


def test_a_folder_that_evaluate_cannot_write_is_one_message(tmp_path):
    (tmp_path / "file").touch()
    environment = offline(tmp_path, HF_MODULES_CACHE=str(tmp_path / "file" / "modules"))
    done = subprocess.run([sys.executable, "-c", THROUGH], env=environment, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert "UserError: HF_MODULES_CACHE: `evaluate` cannot copy its metrics to " in last and str(tmp_path) in last
    assert last.endswith("set this environment variable to a writable folder")


def test_what_does_without_evaluate_does_not_import_it():
    code = "import sys, train_kd, evaluate_kd, compare_kd; sys.exit('evaluate' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ------------------------------------------------------------------------ everything, on random and degenerate inputs


@pytest.fixture(params=CASES)
def inputs(request):
    return case(request.param)


def test_the_evaluate_module_gives_the_same_numbers(inputs):
    """Bit for bit, from tensors, and from lists as its users may have them."""
    logits, labels = inputs
    expected = metrics.classification(logits, labels)
    module = metrics.evaluate_module()
    for found in (
        metrics.through_evaluate()(logits, labels),
        module.compute(predictions=logits.numpy(), references=labels.numpy()),
        module.compute(predictions=logits.tolist(), references=labels.tolist()),
    ):
        assert found.keys() == expected.keys()
        np.testing.assert_array_equal([*found.values()], [*expected.values()])  # for which NaN equals NaN


def test_through_evaluate_errors_are_the_same():
    logits, labels = sample(5)
    classify = metrics.through_evaluate()
    with pytest.raises(UserError, match="no images"):
        classify(logits[:0], labels[:0])
    with pytest.raises(NonFinite, match="logits of 1 of 5 images not finite, number 3"):
        classify(logits.index_fill(0, torch.tensor([3]), math.inf), labels)
    assert classify(logits, labels) == metrics.classification(logits, labels)  # which can be asked again


def first_of_the_largest(logits):
    """Without torch or NumPy deciding about ties."""
    return torch.tensor([row.index(max(row)) for row in logits.tolist()])


def test_predictions_are_the_first_of_the_largest(inputs):
    logits, _ = inputs
    assert torch.equal(metrics.predictions(logits), first_of_the_largest(logits))
    assert torch.equal(metrics.predictions(logits.expand(3, -1, -1))[2], first_of_the_largest(logits))


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:A single label was found")
def test_accuracy_per_class_and_macro(inputs):
    logits, labels = inputs
    predicted, classes = first_of_the_largest(logits), logits.shape[1]
    counts, accuracy = metrics.accuracy_by(predicted == labels, labels, classes)
    expected = recall_score(labels, predicted, labels=np.arange(classes), average=None, zero_division=np.nan)
    np.testing.assert_allclose(accuracy.numpy(), expected, atol=1e-12)
    assert counts.tolist() == [int((labels == number).sum()) for number in range(classes)]
    macro = metrics.classification(logits, labels)["macro_accuracy"]
    assert macro == pytest.approx(balanced_accuracy_score(labels, predicted), abs=1e-12)
    if (counts > 0).all():
        own = torchmetrics.multiclass_accuracy(predicted, labels, classes, average="macro")
        assert macro == pytest.approx(float(own), abs=1e-6)


def test_accuracy_by_group_equals_a_loop():
    logits, labels = sample(200, 12)
    predicted, parents = logits.argmax(1), torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3])
    counts, accuracy = metrics.accuracy_by(predicted == labels, parents[labels], 5)
    for number in range(4):
        rows = [i for i in range(200) if parents[labels[i]] == number]
        assert counts[number] == len(rows)
        assert accuracy[number] == pytest.approx(sum(bool(predicted[i] == labels[i]) for i in rows) / len(rows))
    assert counts[4] == 0 and math.isnan(accuracy[4])


def test_confusion(inputs):
    logits, labels = inputs
    predicted, classes = first_of_the_largest(logits), logits.shape[1]
    found = metrics.confusion_matrix(predicted, labels, classes)
    assert np.array_equal(found, confusion_matrix(labels, predicted, labels=np.arange(classes)))
    pairs = Counter((a, b) for a, b in zip(labels.tolist(), predicted.tolist(), strict=True) if a != b)
    expected = sorted(((a, b, n) for (a, b), n in pairs.items()), key=lambda row: (-row[2], row[0], row[1]))
    assert metrics.most_confused(predicted, labels, classes) == expected[:10]
    assert metrics.most_confused(predicted, labels, classes, at_most=10**6) == expected


@pytest.mark.filterwarnings("ignore:The y_prob values do not sum to one", "ignore:The y_pred values do not sum to one")
def test_calibration_equals_references(inputs):
    logits, labels = inputs
    found, classes = metrics.calibration(logits.float(), labels), logits.shape[1]
    exact, known = logits.double().softmax(1), np.arange(classes)
    assert found["nll"] == pytest.approx(cross_entropy(logits, labels, 1.0), rel=1e-5, abs=1e-6)
    if found["nll"] < 20:  # scikit-learn cuts probabilities off at 1e-16
        assert found["nll"] == pytest.approx(log_loss(labels, exact.numpy(), labels=known), rel=1e-5, abs=1e-6)
    expected = brier_score_loss(labels, exact.numpy(), labels=known, scale_by_half=False)
    assert found["brier"] == pytest.approx(expected, rel=1e-5, abs=1e-6)
    probabilities = logits.float().softmax(1)
    assert found["ece_adaptive"] == pytest.approx(slow_adaptive(probabilities, labels), abs=1e-12)


@pytest.mark.parametrize("name", ["random", "one image", "one class", "two classes", "a thousand classes"])
def test_calibration_error_equals_torchmetrics(name):  # whose bins are closed on the other side: not with ties
    logits, labels = case(name)
    probabilities = logits.softmax(1)
    expected = torchmetrics.multiclass_calibration_error(probabilities, labels, logits.shape[1], n_bins=15, norm="l1")
    assert metrics.calibration_error(*top(probabilities, labels)) == pytest.approx(float(expected), abs=1e-6)


def slow_adaptive(probabilities, labels, bins=15):
    """Image by image: sorted, cut into bins by rank, equal probabilities in the bin of the first."""
    rows = [(max(row), row.index(max(row)) == label) for row, label in zip(
        probabilities.double().tolist(), labels.tolist(), strict=True)]  # fmt: skip
    rows.sort(key=lambda row: row[0])
    content = [[] for _ in range(bins)]
    for position, (confidence, right) in enumerate(rows):
        if position and confidence == rows[position - 1][0]:
            content[index].append((confidence, right))  # noqa: F821 - of the one before
            continue
        index = position * bins // len(rows)
        content[index].append((confidence, right))
    return sum(abs(sum(right - confidence for confidence, right in part)) for part in content) / len(rows)


def test_adaptive_bins_hold_equal_numbers():
    logits, labels = sample(600)
    confidence, predicted = logits.softmax(1).double().max(1)
    order = confidence.argsort().numpy()
    parts = np.array_split(order, 15)
    assert {len(part) for part in parts} == {40} and len(confidence.unique()) == 600
    right = (predicted == labels).double().numpy()
    expected = np.mean([abs(right[part].mean() - confidence.numpy()[part].mean()) for part in parts])
    found = metrics.adaptive_calibration_error(*top(logits.softmax(1), labels))
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["random", "ties", "constant", "huge"])
def test_calibration_does_not_depend_on_the_order_of_images(name):
    logits, labels = case(name)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    one, two = metrics.classification(logits, labels), metrics.classification(logits[order], labels[order])
    assert two == pytest.approx(one, rel=1e-5, abs=1e-9)


def test_reliability_equals_a_loop_over_bins(inputs):
    logits, labels = inputs
    probabilities = logits.float().softmax(1)
    found = metrics.reliability(*top(probabilities, labels))
    confidence, predicted = probabilities.double().max(1)
    gaps = 0.0
    for number in range(15):
        lower, upper = number / 15, (number + 1) / 15
        inside = (confidence > lower) & (confidence <= upper)
        assert (found["lower"][number], found["upper"][number]) == (lower, upper)
        assert found["count"][number] == inside.sum()
        for name, values in (("mean_confidence", confidence), ("accuracy", (predicted == labels).double())):
            expected = float(values[inside].mean()) if inside.any() else math.nan
            assert float(found[name][number]) == pytest.approx(expected, abs=1e-12, nan_ok=True)
        if inside.any():
            gaps += float(inside.sum() * (found["accuracy"][number] - found["mean_confidence"][number]).abs())
    assert found["count"].sum() == len(labels)
    assert metrics.calibration_error(*top(probabilities, labels)) == pytest.approx(gaps / len(labels), abs=1e-12)


def test_a_limit_belongs_to_the_bin_below():
    probabilities = torch.tensor([[0.6, 0.4], [0.2, 0.8]], dtype=torch.float64)  # 9/15 and 12/15
    found = metrics.reliability(*top(probabilities, torch.tensor([0, 0])))
    assert [number for number, count in enumerate(found["count"].tolist()) if count] == [8, 11]
    assert found["upper"][8] == 0.6 and found["upper"][11] == 0.8


def cross_entropy(logits, labels, temperature):
    rows = (logits.double() / temperature).log_softmax(1)
    return -float(rows[torch.arange(len(labels)), labels].mean())


@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
def test_temperature_of_scaled_logits(true):
    """Labels drawn from softmax(logits): of logits times T the best temperature is about T."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 10, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    assert metrics.fit_temperature(true * logits, labels) == pytest.approx(true, rel=0.03)


def test_temperature_is_the_minimum(inputs):
    logits, labels = inputs
    found = metrics.fit_temperature(logits, labels)
    assert metrics.COLDEST <= found <= metrics.HOTTEST
    reference = minimize_scalar(
        lambda log: cross_entropy(logits, labels, math.exp(log)),
        bounds=(math.log(metrics.COLDEST), math.log(metrics.HOTTEST)), method="bounded", options={"xatol": 1e-9},
    )  # fmt: skip
    best = cross_entropy(logits, labels, found)
    assert best <= reference.fun + 1e-9 and best <= cross_entropy(logits, labels, 1.0) + 1e-12
    if metrics.COLDEST < found < metrics.HOTTEST and found != 1:
        assert found == pytest.approx(math.exp(reference.x), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "temperature"),
    [("constant", 1.0), ("perfect", metrics.COLDEST), ("all wrong", metrics.HOTTEST), ("huge", metrics.HOTTEST)],
)
def test_temperature_at_the_ends(name, temperature):
    assert metrics.fit_temperature(*case(name)) == temperature


def test_temperature_refuses_what_classification_refuses():
    logits, labels = sample(5)
    with pytest.raises(UserError, match="no images"):
        metrics.fit_temperature(logits[:0], labels[:0])
    with pytest.raises(NonFinite, match="logits of 1 of 5 images not finite, number 3"):
        metrics.fit_temperature(logits.index_fill(0, torch.tensor([3]), math.inf), labels)


@pytest.mark.parametrize("count", [1, 3])
def test_figures_against_teachers_equal_loops(inputs, count):
    logits, labels = inputs
    noise = torch.randn(count, *logits.shape, generator=torch.Generator().manual_seed(2))
    for teachers in (logits + 2 * noise, logits.expand(count, -1, -1), noise.round()):
        student, taught = first_of_the_largest(logits), torch.stack([first_of_the_largest(own) for own in teachers])
        agreed = [accuracy_score(own, student) for own in taught]
        assert metrics.agreement(student, taught).tolist() == pytest.approx(agreed, abs=1e-12)

        images = {name: [] for name in ("all_agree", "disagree", "all_wrong")}
        some_right = 0
        for image, label in enumerate(labels.tolist()):
            named = {int(own[image]) for own in taught}
            right = bool(student[image] == label)
            images["all_agree" if len(named) == 1 else "disagree"].append(right)
            some_right += label in named
            if label not in named:
                images["all_wrong"].append(right)
        found = metrics.against_teachers(student, taught, labels)
        for name, values in images.items():
            assert found[name]["share"] == pytest.approx(len(values) / len(labels), abs=1e-12)
            expected = sum(values) / len(values) if values else math.nan
            assert found[name]["accuracy"] == pytest.approx(expected, abs=1e-12, nan_ok=True)
        assert found["oracle"] == pytest.approx(some_right / len(labels), abs=1e-12)
        if count == 1:
            assert found["all_agree"]["share"] == 1 and math.isnan(found["disagree"]["accuracy"])


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", [name for name in CASES if name != "huge"])
def test_divergence_equals_scipy_and_torchmetrics(name, count):
    logits, _ = case(name)
    teachers = logits + torch.randn(count, *logits.shape, generator=torch.Generator().manual_seed(3))
    found = metrics.divergence(teachers, logits)
    assert found.shape == (count,) and (found >= 0).all()
    q = logits.double().softmax(1)
    for own, value in zip(teachers, found.tolist(), strict=True):
        p = own.double().softmax(1)
        assert value == pytest.approx(float(np.mean(entropy(p.numpy(), q.numpy(), axis=1))), rel=1e-4, abs=1e-6)
        assert value == pytest.approx(float(kl_divergence(p, q)), rel=1e-4, abs=1e-6)
    assert float(metrics.divergence(logits, logits)) == 0


def test_divergence_of_huge_logits_is_finite():
    logits, _ = case("huge")
    assert metrics.divergence(logits.roll(1, dims=1), logits).isfinite()


# ---------------------------------------------------------------------------------------------------------- blocks


@pytest.mark.parametrize("block", [1, 70, 1000])
def test_large_splits_are_measured_in_blocks_with_the_same_results(block, monkeypatch):
    logits, labels = sample(decimals=1)
    logits, teachers = logits * 3, torch.stack([logits.roll(1, 1), logits.roll(1, 0)])

    def everything():
        return {
            **metrics.classification(logits, labels),
            **{f"cooled_{name}": value for name, value in metrics.calibration(logits, labels, 1.7).items()},
            "temperature": metrics.fit_temperature(logits, labels),
            "divergence": metrics.divergence(teachers, logits),
            "ensemble": metrics.ensemble_logits(teachers),
            **metrics.reliability_of(logits, labels, 1.7),
        }

    whole = everything()
    monkeypatch.setattr(metrics, "BLOCK", block)
    largest = []
    in_blocks = metrics.in_blocks

    def watched(function, *tensors):
        def each(*parts):
            largest.append(parts[0].numel())
            return function(*parts)

        return in_blocks(each, *tensors)

    monkeypatch.setattr(metrics, "in_blocks", watched)
    for name, value in everything().items():
        expected = torch.as_tensor(whole[name]).double()
        assert torch.allclose(torch.as_tensor(value).double(), expected, rtol=1e-6, atol=1e-7, equal_nan=True), name
    row = max(len(labels), teachers[:, 0].numel())
    assert max(largest) <= max(block, row)


def test_probabilities_and_logits_have_the_same_reliability():
    logits, labels = sample()
    of_logits = metrics.reliability_of(logits, labels)
    of_probabilities = metrics.reliability(*top(logits.softmax(1), labels))
    assert all(torch.equal(of_logits[name].nan_to_num(), of_probabilities[name].nan_to_num()) for name in of_logits)
