"""Metrics against scikit-learn and slow references."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score, top_k_accuracy_score

from kd_core import metrics


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
