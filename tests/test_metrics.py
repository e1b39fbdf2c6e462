"""Metrics against scikit-learn and slow references."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score, top_k_accuracy_score

import kd_methods
from kd_core import metrics
from kd_core.errors import UserError
from kd_core.inference import score
from kd_core.meter import NonFinite


def sample(count=500, classes=10, decimals=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator) + torch.nn.functional.one_hot(labels, classes)
    return (logits.round(decimals=decimals) if decimals is not None else logits), labels


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
    built, teachers = kd_methods.build({"type": method}), torch.stack([logits.flip(0), torch.zeros_like(logits)])
    for count in (1, 9):
        row = score(built, logits[:count], teachers[:, :count], labels[:count], batch_size=4, progress=0.5)
        assert math.isfinite(row["loss_total"]) and row["auroc_classes_left_out"] >= 1
        assert math.isnan(row["auroc"]) == (count == 1)
    with pytest.raises(NonFinite, match="logits of 9 of 9 images"):
        score(built, logits * torch.nan, teachers, labels, batch_size=4, progress=0.5)
    if built.requires_teachers:
        with pytest.raises(NonFinite, match="loss_total of the 9 images"):
            score(built, logits, teachers * torch.nan, labels, batch_size=4, progress=0.5)


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
    assert metrics.calibration_error(probabilities, labels) == pytest.approx(expected, abs=1e-12)


def test_ensemble_is_the_mean_of_probabilities():
    logits = torch.randn(3, 7, 5)
    assert torch.allclose(metrics.ensemble_logits(logits).exp(), logits.softmax(-1).mean(0), atol=1e-6)


def test_the_evaluate_module_works_offline_with_an_empty_cache(tmp_path):
    code = (
        "import torch; from kd_core import metrics; s = torch.eye(4); "
        "print(metrics.evaluate_module().compute(predictions=s.numpy(), references=[0, 1, 2, 0])['correct'])"
    )
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(tmp_path),
        "HF_HOME": str(tmp_path / "home"),
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "3", done.stderr


def test_the_evaluate_module_gives_the_same_numbers():
    logits, labels = sample(100, 7)
    module = metrics.evaluate_module()
    assert module.compute(predictions=logits.numpy(), references=labels.numpy()) == metrics.classification(
        logits, labels
    )
