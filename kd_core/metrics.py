"""Classification metrics from logits: pure functions of tensors, without Python loops over classes or samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_core.errors import UserError
from kd_core.meter import NonFinite


def auroc(scores: Tensor, labels: Tensor) -> tuple[float, int]:
    """One-vs-rest area under the ROC curve, macro average, ties counted half.

    scores [N,C], labels int64 [N].  Averages over the classes that have positives and negatives; returns the average
    (NaN if there is no such class) and the number of classes left out.  The area of class c is the Mann-Whitney
    statistic of its positives' ranks (Hanley and McNeil, Radiology 1982).
    """
    count, classes = scores.shape
    ordered, order = scores.float().t().contiguous().sort(dim=1)  # [C,N]
    position = torch.arange(count, device=scores.device).expand(classes, count)
    edge = torch.ones(classes, 1, dtype=torch.bool, device=scores.device)
    changes = ordered[:, 1:] != ordered[:, :-1]
    first = torch.where(torch.cat([edge, changes], 1), position, 0).cummax(dim=1).values
    last = torch.where(torch.cat([changes, edge], 1), position, count).flip(1).cummin(dim=1).values.flip(1)
    rank = (first + last).double() / 2 + 1  # tied scores share their mean rank
    positive = labels[order] == torch.arange(classes, device=scores.device)[:, None]
    positives = positive.sum(1).double()
    negatives = count - positives
    u = (rank * positive).sum(1) - positives * (positives + 1) / 2
    valid = (positives > 0) & (negatives > 0)
    area = u[valid] / (positives[valid] * negatives[valid])
    return (float(area.mean()) if len(area) else float("nan")), int(classes - valid.sum())


def classification(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Metrics of logits [N,C] for labels int64 [N].

    `correct` and `total` are counts; `accuracy` and `top5` fractions; `loss_ce` and `nll` the mean cross-entropy in
    nats; `brier` the mean squared distance of probabilities to the one-hot label (0 to 2); `ece` the expected
    calibration error; `auroc` one-vs-rest, macro average; `auroc_classes_left_out` the number of classes without
    positives or negatives.  Of equal logits the class of the lowest number counts as the most probable.  UserError
    without a sample, NonFinite if logits are not finite.
    """
    if not len(labels):
        raise UserError("no images to measure a network on")
    logits = logits.float()
    bad = logits.isfinite().all(1).logical_not()
    if bad.any():
        first = int(bad.int().argmax())
        raise NonFinite(f"logits of {int(bad.sum())} of {len(bad)} images not finite, number {first} the first")
    probabilities = logits.softmax(1)
    loss = float(F.cross_entropy(logits, labels))
    classes, own = torch.arange(logits.shape[1], device=logits.device), logits.gather(1, labels[:, None])
    # Not topk, which leaves open the order of equal logits.
    rank = ((logits > own) | ((logits == own) & (classes < labels[:, None]))).sum(1)
    correct, top5 = int((rank == 0).sum()), int((rank < 5).sum())
    area, left_out = auroc(probabilities, labels)
    return {
        "correct": correct,
        "total": len(labels),
        "accuracy": correct / len(labels),
        "top5": top5 / len(labels),
        "loss_ce": loss,
        "nll": loss,
        "brier": float((probabilities - F.one_hot(labels, logits.shape[1])).square().sum(1).mean()),
        "ece": calibration_error(probabilities, labels),
        "auroc": area,
        "auroc_classes_left_out": left_out,
    }


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error over equal-width bins (l, r] of the top probability (Guo et al., arXiv:1706.04599).

    probabilities [N,C], labels int64 [N].  Sum over bins of the bin's share of samples times |accuracy - confidence|.
    """
    confidence, predicted = probabilities.double().max(1)
    index = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    gap = (predicted == labels).double() - confidence
    return float(
        torch.zeros(bins, dtype=torch.float64, device=gap.device).index_add(0, index, gap).abs().sum() / len(gap)
    )


def ensemble_logits(teacher_logits: Tensor) -> Tensor:
    """Log of the mean of the teachers' probabilities: [K,N,C] -> [N,C]."""
    return teacher_logits.float().log_softmax(-1).logsumexp(0) - torch.tensor(float(len(teacher_logits))).log()


def evaluate_module() -> Any:
    """The Hugging Face `evaluate` module that wraps `classification`; needs neither the Hub nor a warm cache."""
    import evaluate

    return evaluate.load(str(Path(__file__).parent / "hf_metrics" / "kd_classification"))
