"""Accuracy, top-5, AUROC, cross-entropy, Brier score, calibration error of 10,000 x 100 logits, against scikit-learn.

Both must agree to 1e-6 before they are timed.  scikit-learn has no expected calibration error; a NumPy loop over the
bins takes its place.
"""

import numpy as np
import torch
from sklearn import metrics as sklearn_metrics
from torch import Tensor

from benchmarks._measure import Options, Result, compare, interleave, seconds_of
from kd_core import metrics


def run(options: Options) -> list[Result]:
    images, classes = options.size(10_000, 1_000), options.size(100, 10)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (images,), generator=generator)
    logits = torch.randn(images, classes, generator=generator)
    logits[torch.arange(images), labels] += 2
    own, reference = metrics.classification(logits, labels), by_sklearn(logits, labels)
    for name, value in reference.items():
        assert abs(own[name] - value) < 1e-6, (name, own[name], value)

    probabilities = logits.softmax(1)
    whole = {
        "all metrics": seconds_of(lambda: metrics.classification(logits, labels)),
        "scikit-learn": seconds_of(lambda: by_sklearn(logits, labels)),
    }
    area = {
        "AUROC": seconds_of(lambda: metrics.auroc(probabilities, labels)),
        "scikit-learn": seconds_of(lambda: area_by_sklearn(probabilities, labels)),
    }
    return [
        compare(interleave(whole, options.pairs), "all metrics", "scikit-learn", "s"),
        compare(interleave(area, options.pairs), "AUROC", "scikit-learn", "s"),
    ]


def by_sklearn(logits: Tensor, labels: Tensor) -> dict[str, float]:
    probabilities = logits.softmax(1)
    exact, known = logits.double().softmax(1).numpy(), np.arange(logits.shape[1])
    predicted = logits.argmax(1)
    return {
        "accuracy": sklearn_metrics.accuracy_score(labels, predicted),
        "top5": sklearn_metrics.top_k_accuracy_score(labels, logits.numpy(), k=5, labels=known),
        "loss_ce": sklearn_metrics.log_loss(labels, exact, labels=known),
        "brier": sklearn_metrics.brier_score_loss(labels, exact, labels=known, scale_by_half=False),
        "ece": calibration_error(probabilities.numpy(), labels.numpy()),
        "auroc": area_by_sklearn(probabilities, labels),
    }


def area_by_sklearn(probabilities: Tensor, labels: Tensor) -> float:
    """One-vs-rest, class by class: `roc_auc_score` for several classes requires rows that sum to exactly 1."""
    areas = [
        sklearn_metrics.roc_auc_score(labels == number, probabilities[:, number])
        for number in range(probabilities.shape[1])
    ]
    return float(np.mean(areas))


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    confidence, right = probabilities.max(1).astype(np.float64), probabilities.argmax(1) == labels
    edges, error = np.linspace(0, 1, bins + 1), 0.0
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return float(error)
