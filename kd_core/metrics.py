"""Classification metrics from logits: pure functions of tensors, without Python loops over classes or samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_core.errors import NonFinite, UserError, first_line

BINS = 15  # of calibration errors and reliability diagrams
BLOCK = 2**21  # values that are worked on at a time: temporary tensors of large splits would take many times the logits
COLDEST, HOTTEST = 0.01, 100.0  # range of temperatures that `fit_temperature` returns


def require_sound(logits: Tensor, labels: Tensor) -> Tensor:
    """`logits` [N,C] in float32.  UserError without images, NonFinite if any logit is not finite."""
    if not len(labels):
        raise UserError("no images to measure a network on")
    logits = logits.float()
    bad = logits.isfinite().all(1).logical_not()
    if bad.any():
        first = int(bad.int().argmax())
        raise NonFinite(f"logits of {int(bad.sum())} of {len(bad)} images not finite, number {first} the first")
    return logits


def in_blocks(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`function(*tensors)`, which gives a row for each of theirs, computed in blocks of rows, which need less memory.

    The first tensor [N,...] says how many rows a block has; all tensors have N.
    """
    step = max(1, BLOCK // max(1, tensors[0][:1].numel()))
    parts = [function(*(one[start : start + step] for one in tensors)) for start in range(0, len(tensors[0]), step)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def predictions(logits: Tensor) -> Tensor:
    """The most probable classes of logits [...,C]: int64 [...]; the lowest class index among equal logits."""
    return logits.max(-1).indices  # PyTorch documents that it returns the first of equal maxima


# -------------------------------------------------------------------------------------------------- classification


def auroc(scores: Tensor, labels: Tensor) -> tuple[float, int]:
    """One-vs-rest area under the ROC curve, macro average, ties counted half.

    scores [N,C], labels int64 [N].  Averages over the classes that have positives and negatives; returns the average
    (NaN if there is no such class) and the number of classes left out.  The area of class c is the Mann-Whitney
    statistic of its positives' ranks (Hanley and McNeil, Radiology 1982).
    """
    classes = torch.arange(scores.shape[1], device=scores.device)
    area = in_blocks(lambda own, number: _areas(own, number, labels), scores.t(), classes)
    valid = area.isfinite()
    return (float(area[valid].mean()) if valid.any() else float("nan")), int(len(classes) - valid.sum())


def _areas(scores: Tensor, classes: Tensor, labels: Tensor) -> Tensor:
    """The area under the ROC curve of each class, NaN without positives or negatives: float64 [c].

    scores [c,N] for the classes int64 [c]; labels int64 [N].
    """
    count = len(labels)
    ordered, order = scores.float().contiguous().sort(dim=1)
    position = torch.arange(count, device=scores.device).expand(len(classes), count)
    edge = torch.ones(len(classes), 1, dtype=torch.bool, device=scores.device)
    changes = ordered[:, 1:] != ordered[:, :-1]
    first = torch.where(torch.cat([edge, changes], 1), position, 0).cummax(dim=1).values
    last = torch.where(torch.cat([changes, edge], 1), position, count).flip(1).cummin(dim=1).values.flip(1)
    rank = (first + last).double() / 2 + 1  # tied scores share their mean rank
    positive = labels[order] == classes[:, None]
    positives = positive.sum(1).double()
    negatives = count - positives
    u = (rank * positive).sum(1) - positives * (positives + 1) / 2
    return u / (positives * negatives)  # 0 / 0 where there is none of either


def classification(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Metrics of logits [N,C] for labels int64 [N].

    `correct` and `total` are counts; `accuracy` and `top5` fractions; `macro_accuracy` the mean of the per-class
    accuracies; `loss_ce` and `nll` the mean cross-entropy in nats; `brier`, `ece` and `ece_adaptive` as in
    `calibration`; `auroc` one-vs-rest, macro average; `auroc_classes_left_out` the number of classes without positives
    or negatives.  Among equal logits the lowest class index counts as the most probable.  UserError without samples,
    NonFinite if logits are not finite.
    """
    logits = require_sound(logits, labels)
    rank = in_blocks(_ranks, logits, labels)
    correct, top5 = int((rank == 0).sum()), int((rank < 5).sum())
    calibrated = calibration(logits, labels)
    area, left_out = auroc(in_blocks(lambda own: own.softmax(1), logits), labels)
    return {
        "correct": correct,
        "total": len(labels),
        "accuracy": correct / len(labels),
        "top5": top5 / len(labels),
        "macro_accuracy": float(accuracy_by(rank == 0, labels, logits.shape[1])[1].nanmean()),
        "loss_ce": calibrated["nll"],
        **calibrated,
        "auroc": area,
        "auroc_classes_left_out": left_out,
    }


def _ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """How many classes are more probable than the label's: int64 [n].  topk would order ties in no specified way."""
    classes, own = torch.arange(logits.shape[1], device=logits.device), logits.gather(1, labels[:, None])
    return ((logits > own) | ((logits == own) & (classes < labels[:, None]))).sum(1)


def accuracy_by(right: Tensor, groups: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Number of images per group, int64 [G], and accuracy per group, float64 [G], NaN for empty groups.

    right bool [N], groups int64 [N] in [0, count): labels for per-class accuracy, the labels' superclasses for
    per-superclass accuracy.
    """
    images = torch.bincount(groups, minlength=count)
    return images, torch.bincount(groups[right], minlength=count).double() / images


def confusion_matrix(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Number of images of each class (row) predicted as each class (column): int64 [C,C], from int64 [N] both."""
    return torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)


def most_confused(predicted: Tensor, labels: Tensor, classes: int, at_most: int = 10) -> list[tuple[int, int, int]]:
    """(label, predicted class, number of images) of the most frequent mistakes; ties in order of the label.

    predicted, labels int64 [N].
    """
    wrong = predicted != labels
    pairs, counts = torch.unique(labels[wrong] * classes + predicted[wrong], return_counts=True)  # sorted
    order = counts.argsort(descending=True, stable=True)[:at_most]
    return [
        (pair // classes, pair % classes, count)
        for pair, count in zip(pairs[order].tolist(), counts[order].tolist(), strict=True)
    ]


# ------------------------------------------------------------------------------------------------------- calibration


def calibration(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> dict[str, float]:
    """Calibration metrics of finite logits [N,C], divided by `temperature`, for labels int64 [N].

    `nll` is the mean cross-entropy in nats; `brier` the mean squared distance of probabilities to the one-hot label, 0
    to 2 (Brier, Monthly Weather Review 1950); `ece` and `ece_adaptive` the errors of `calibration_error` and
    `adaptive_calibration_error`.
    """


    def of_block(own: Tensor, label: Tensor) -> Tensor:
        """Per image the Brier score, the top probability and its class: float64 [n,3]; in sum the cross-entropy."""
        own = _cooled(own, temperature)
        entropies.append(float(F.cross_entropy(own, label)) * len(label))  # exact: both have few digits
        probabilities = own.softmax(1)
        brier = (probabilities - F.one_hot(label, own.shape[1])).square().sum(1)
        top = probabilities.max(1)
        return torch.stack([brier.double(), top.values.double(), top.indices.double()], 1)

    entropies: list[float] = []
    brier, confidence, predicted = in_blocks(of_block, logits, labels).t().contiguous()
    right = (predicted == labels).double()
    return {
        "nll": sum(entropies) / len(labels),
        "brier": float(brier.float().mean()),
        "ece": calibration_error(confidence, right),
        "ece_adaptive": adaptive_calibration_error(confidence, right),
    }


def _cooled(logits: Tensor, temperature: float) -> Tensor:
    return logits.float() if temperature == 1 else logits.float() / temperature


def calibration_error(confidence: Tensor, right: Tensor, bins: int = BINS) -> float:
    """Expected calibration error over equal-width bins (l, r] of the top probability (Guo et al., arXiv:1706.04599).

    confidence float64 [N]: the top probabilities; right float64 [N]: 1 where that class is the label, else 0.  Sum over
    bins of the fraction of samples times |accuracy - confidence|.
    """
    return _gap(_sums(confidence, right, _equal_width(confidence, bins), bins))


def adaptive_calibration_error(confidence: Tensor, right: Tensor, bins: int = BINS) -> float:
    """Calibration error over bins with equal numbers of samples, by rank of the top probability (Nguyen and O'Connor,
    EMNLP 2015, arXiv:1508.05154).

    Equal probabilities share the bin of the first of them, so that the order of the samples does not matter.
    """
    rank = torch.searchsorted(confidence.sort().values, confidence)
    return _gap(_sums(confidence, right, rank * bins // len(confidence), bins))


def reliability_of(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> dict[str, Tensor]:
    """`reliability` of the probabilities of logits [N,C], divided by `temperature`."""
    confidence, predicted = most_probable(logits, temperature)
    return reliability(confidence, (predicted == labels).double())


def reliability(confidence: Tensor, right: Tensor, bins: int = BINS) -> dict[str, Tensor]:
    """Values of a reliability diagram per bin of `calibration_error`: float64 [bins] each, `count` int64.

    `lower` and `upper` are the bin's limits, `count` its number of samples, `mean_confidence` the mean top
    probability and `accuracy` the fraction that is right, both NaN in empty bins.
    """
    count, summed, correct = _sums(confidence, right, _equal_width(confidence, bins), bins)
    edges = torch.arange(bins + 1, dtype=torch.float64, device=count.device) / bins
    return {
        "lower": edges[:-1],
        "upper": edges[1:],
        "count": count.long(),
        "mean_confidence": summed / count,
        "accuracy": correct / count,
    }


def most_probable(logits: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The top probability float64 [N] of logits [N,C], divided by `temperature`, and its class int64 [N]."""

    def of_block(own: Tensor) -> Tensor:
        top = _cooled(own, temperature).softmax(1).max(1)
        return torch.stack([top.values.double(), top.indices.double()], 1)

    confidence, predicted = in_blocks(of_block, logits).t().contiguous()
    return confidence, predicted.long()


def _equal_width(confidence: Tensor, bins: int) -> Tensor:
    return (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)


def _sums(confidence: Tensor, right: Tensor, index: Tensor, bins: int) -> Tensor:
    """Per bin the number of samples, the sum of confidences and the number that are right: float64 [3,bins]."""
    values = torch.stack([torch.ones_like(confidence), confidence, right])
    return values.new_zeros(3, bins).index_add(1, index, values)


def _gap(sums: Tensor) -> float:
    return float((sums[2] - sums[1]).abs().sum() / sums[0].sum())


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T in [COLDEST, HOTTEST] that minimizes the cross-entropy of softmax(logits / T) (Guo et al.,
    arXiv:1706.04599).

    logits [N,C], labels int64 [N].  The cross-entropy is convex in 1/T, so the only zero of its slope is the minimum;
    T is 1 where no other is better, and a limit of the range where the minimum lies beyond it, as when all predictions
    are right.  UserError without samples, NonFinite if logits are not finite.
    """
    from scipy.optimize import brentq  # not above: takes a second

    logits = require_sound(logits, labels)

    def slope(temperature: float) -> float:
        """Derivative of the cross-entropy with respect to 1/T."""

        def of_block(own: Tensor, label: Tensor) -> Tensor:
            margins = own.double() - own.double().gather(1, label[:, None])
            return ((margins / temperature).softmax(1) * margins).sum(1)

        return float(in_blocks(of_block, logits, labels).mean())

    if slope(1.0) == 0:
        return 1.0
    if slope(COLDEST) <= 0:
        return COLDEST
    if slope(HOTTEST) >= 0:
        return HOTTEST
    return math.exp(brentq(lambda log: slope(math.exp(log)), math.log(COLDEST), math.log(HOTTEST), xtol=1e-7))


# -------------------------------------------------------------------------------------------- student and teachers


def agreement(predicted: Tensor, others: Tensor) -> Tensor:
    """Fraction of images with equal predicted classes int64 [N] and others int64 [...,N]: float64 [...]."""
    return (others == predicted).double().mean(-1)


def divergence(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """KL(teacher || student) in nats, averaged over images: float32 [...], of logits [...,N,C] and [N,C].

    At temperature 1; measures a student's fidelity to its teacher (Stanton et al., arXiv:2106.05945).
    """

    def of_block(own: Tensor, others: Tensor) -> Tensor:
        teacher, student = own.movedim(0, -2).float().log_softmax(-1), others.float().log_softmax(-1)
        return (teacher.exp() * (teacher - student)).sum(-1).movedim(-1, 0)

    return in_blocks(of_block, teacher_logits.movedim(-2, 0), student_logits).mean(0)


def against_teachers(predicted: Tensor, teachers: Tensor, labels: Tensor) -> dict[str, Any]:
    """Accuracy of a student where its teachers agree, disagree, or are all wrong.

    Classes predicted by the student int64 [N] and by the teachers int64 [K,N], labels int64 [N].  `all_agree`,
    `disagree` (the rest) and `all_wrong` hold the `share` of such images and the student's `accuracy` on them, NaN if
    there are none; `oracle` is the fraction of images that at least one teacher classifies correctly.
    """
    right, all_agree = predicted == labels, (teachers == teachers[0]).all(0)
    all_wrong = (teachers != labels).all(0)

    def of(where: Tensor) -> dict[str, float]:
        return {"share": float(where.double().mean()), "accuracy": float(right[where].double().mean())}

    return {
        "all_agree": of(all_agree),
        "disagree": of(~all_agree),
        "all_wrong": of(all_wrong),
        "oracle": 1 - float(all_wrong.double().mean()),
    }


def ensemble_logits(teacher_logits: Tensor) -> Tensor:
    """Log of the mean of the teachers' probabilities: [K,N,C] -> [N,C]."""
    mean = torch.tensor(float(len(teacher_logits))).log()
    by_image = teacher_logits.transpose(0, 1)  # [N,K,C]
    return in_blocks(lambda own: own.transpose(0, 1).float().log_softmax(-1).logsumexp(0) - mean, by_image)


# ------------------------------------------------------------------------------------ through Hugging Face's evaluate


def evaluate_module() -> Any:
    """The Hugging Face `evaluate` module that wraps `classification`; needs neither the Hub nor a warm cache.

    Its inputs stay in memory: concurrent runs share no file but the module's code, which `evaluate` locks.

    Raises:
        UserError: the folder to which `evaluate` copies a module's code cannot be written.
    """
    import evaluate  # here, since it takes a second

    path = Path(__file__).parent / "hf_metrics" / "kd_classification"
    try:
        with TemporaryDirectory() as unused:  # `evaluate` creates a cache folder even if it keeps all in memory
            return evaluate.load(str(path), keep_in_memory=True, cache_dir=unused)
    except OSError as error:
        raise UserError(
            f"HF_MODULES_CACHE: `evaluate` cannot copy its metrics to {evaluate.config.HF_MODULES_CACHE}: "
            f"{first_line(error, 200)}; set this environment variable to a writable folder"
        ) from error


def through_evaluate() -> Callable[[Tensor, Tensor], dict[str, float]]:
    """`classification`, computed by `evaluate_module`, which is loaded first; raises the same errors."""
    module = evaluate_module()

    def classify(logits: Tensor, labels: Tensor) -> dict[str, float]:
        logits = require_sound(logits, labels)
        found: dict[str, float] = module.compute(predictions=logits.cpu().numpy(), references=labels.cpu().numpy())
        return found

    return classify
