"""Everything that is measured of a trained student on one split: on its own, beside its teachers, and beside itself
without them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kd_core import metrics
from kd_core.data.superclasses import superclasses_of
from kd_core.evaluation.uncertainty import paired_difference, wilson
from kd_core.files import mapped

# keys of the difference to the student alone
GAIN = ("gain", "gain_images", "gain_error", "gain_p", "gain_verdict")
# keys that an evaluation has only with such networks or classes, or that older evaluations lack
OPTIONAL = (
    "teachers", "ensemble", "against_teachers", "alone", *GAIN, "superclasses", "confusion", "accuracy_interval",
    "images",
)  # fmt: skip
MATRIX_CLASSES = 1000  # with more classes there is no confusion matrix: it would be a file of millions of zeros


@dataclass
class Predictions:
    """The networks' outputs for the images of one split; all tensors on the CPU.

    Args:
        split: "val", "test" or "train".
        labels: int64 [N].
        student: logits float32 [N,C].
        class_names: C names.
        teachers: logits float32 [K,N,C], of clean views.
        alone: logits float32 [N,C] of the same student, trained without teachers.
        weights: float [K,N], the method's weight of each teacher for each image; they sum to 1 over K.
        superclasses: the superclass number of each class; names are `superclass_names`.  CIFAR-100's are known.
        digest: of the split.
        pixels: gives the images uint8 [n,H,W,3] at positions int64 [n], to look at some of them.
    """

    split: str
    labels: Tensor
    student: Tensor
    class_names: list[str]
    teachers: Tensor | None = None
    teacher_names: list[str] = field(default_factory=list)
    alone: Tensor | None = None
    weights: Tensor | None = None
    superclasses: list[int] | None = None
    superclass_names: list[str] | None = None
    digest: str = ""
    pixels: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.superclasses is None and (known := superclasses_of(self.class_names)):
            self.superclasses, self.superclass_names = known


def evaluate(
    predictions: Predictions,
    fitted: Predictions | None = None,
    classify: Callable[[Tensor, Tensor], dict[str, float]] = metrics.classification,
) -> dict[str, Any]:
    """All metrics of a student's predictions, ready for JSON; docs/metrics.md defines them.

    `fitted` is the split on which the temperature is fitted; without it there is no temperature scaling.  `classify`
    computes the headline metrics: `metrics.classification`, or the same through Hugging Face's `evaluate`.  Undefined
    values, such as the accuracy of a class without images, are None; keys without a source are absent.

    Raises:
        UserError: no images; NonFinite: logits of the student, of a teacher or of the student alone are not finite.
    """
    logits, labels, names = predictions.student, predictions.labels, predictions.class_names
    figures: dict[str, Any] = {"split": predictions.split, **classify(logits, labels)}
    if predictions.digest:
        figures["images"] = predictions.digest
    figures["accuracy_interval"] = list(wilson(figures["correct"], figures["total"]))
    predicted = metrics.predictions(logits)
    figures["temperature_scaling"] = _scaled(figures, logits, labels, fitted) if fitted else None
    figures["reliability"] = {
        name: values.tolist() for name, values in metrics.reliability_of(logits, labels).items()
    }
    figures["per_class"] = _per_class(predictions, predicted)
    if predictions.superclasses:
        figures["superclasses"] = _superclasses(predictions, predicted)
    if len(names) <= MATRIX_CLASSES:
        figures["confusion"] = metrics.confusion_matrix(predicted, labels, len(names)).tolist()
    counts = torch.bincount(labels, minlength=len(names)).tolist()
    figures["most_confused"] = [
        {"label": names[label], "predicted": names[other], "count": count, "share": count / counts[label]}
        for label, other, count in metrics.most_confused(predicted, labels, len(names))
    ]
    if predictions.teachers is not None:
        figures |= _beside_teachers(predictions, predicted)
    if predictions.alone is not None:
        alone = metrics.classification(predictions.alone, labels)
        figures["alone"] = {name: alone[name] for name in ("accuracy", "nll", "ece", "auroc")}
        found = paired_difference(predicted == labels, metrics.predictions(predictions.alone) == labels)
        gain = (figures["accuracy"] - alone["accuracy"], found.images, found.error, found.p, found.verdict)
        figures |= dict(zip(GAIN, gain, strict=True))
    plain: dict[str, Any] = mapped(figures, _without_nan)
    return plain


def logged(figures: dict[str, Any]) -> dict[str, float]:
    """The single numbers of what `evaluate` returned that W&B charts, under their names there."""
    split = figures["split"]
    names = ("accuracy", "auroc", "top5", "macro_accuracy", "nll", "brier", "ece", "ece_adaptive")
    row: dict[str, float | None] = {name: figures[name] for name in names}
    if scaling := figures["temperature_scaling"]:
        row |= {"temperature": scaling["temperature"]}
        row |= {f"{name}_scaled": scaling[name] for name in ("nll", "brier", "ece", "ece_adaptive")}
    if "teachers" in figures:
        row |= {name: figures["ensemble"][name] for name in ("agreement", "kl")}
        for index, teacher in enumerate(figures["teachers"]):
            row |= {f"teacher/{index}/{name}": teacher[name] for name in ("accuracy", "agreement", "kl")}
        beside = figures["against_teachers"]
        row |= {f"accuracy_{name}": beside[name]["accuracy"] for name in ("all_agree", "disagree", "all_wrong")}
        row["oracle"] = beside["oracle"]
    row |= {name: float(figures[name]) for name in ("gain", "gain_images", "gain_error") if name in figures}
    return {f"{split}/{name}": math.nan if value is None else value for name, value in row.items()}


def _scaled(before: dict[str, Any], logits: Tensor, labels: Tensor, fitted: Predictions) -> dict[str, Any]:
    """Calibration at the temperature that fits `fitted` best, and whether that `helped` on these images.

    It helped if both cross-entropy and calibration error are lower than `before`.
    """
    temperature = metrics.fit_temperature(fitted.student, fitted.labels)
    scaled = metrics.calibration(logits, labels, temperature)
    helped = all(scaled[name] < before[name] for name in ("nll", "ece"))
    return {"temperature": temperature, "fitted_on": fitted.split, **scaled, "helped": helped}


def _per_class(predictions: Predictions, predicted: Tensor) -> list[dict[str, Any]]:
    labels, names = predictions.labels, predictions.class_names
    counts, accuracy = metrics.accuracy_by(predicted == labels, labels, len(names))
    columns = {"name": names, "count": counts.tolist(), "accuracy": accuracy.tolist()}
    if predictions.alone is not None:
        right = metrics.predictions(predictions.alone) == labels
        alone = metrics.accuracy_by(right, labels, len(names))[1]
        own, classes = predicted == labels, (labels == number for number in range(len(names)))
        found = [paired_difference(own[of], right[of]) if of.any() else None for of in classes]
        columns |= {
            "alone": alone.tolist(),
            "gain": (accuracy - alone).tolist(),
            "gain_images": [one.images if one else None for one in found],
            "gain_error": [one.error if one else None for one in found],
        }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _superclasses(predictions: Predictions, predicted: Tensor) -> list[dict[str, Any]]:
    labels, names = predictions.labels, predictions.superclass_names
    assert names is not None
    parents = torch.tensor(predictions.superclasses)
    counts, accuracy = metrics.accuracy_by(predicted == labels, parents[labels], len(names))
    _, within = metrics.accuracy_by(parents[predicted] == parents[labels], parents[labels], len(names))
    columns = (names, counts.tolist(), accuracy.tolist(), within.tolist())
    keys = ("name", "count", "accuracy", "superclass_accuracy")
    return [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]


def _beside_teachers(predictions: Predictions, predicted: Tensor) -> dict[str, Any]:
    teachers, labels = predictions.teachers, predictions.labels
    assert teachers is not None
    classes = metrics.predictions(teachers)

    def row(name: str, logits: Tensor) -> dict[str, Any]:
        logits = metrics.require_sound(logits, labels)
        own, calibrated = metrics.predictions(logits), metrics.calibration(logits, labels)
        return {
            "name": name,
            "accuracy": float(metrics.agreement(labels, own)),
            "ece": calibrated["ece"],
            "nll": calibrated["nll"],
            "agreement": float(metrics.agreement(predicted, own)),
            "kl": float(metrics.divergence(logits, predictions.student)),
        }

    return {
        "teachers": [row(name, own) for name, own in zip(predictions.teacher_names, teachers, strict=True)],
        "ensemble": row("ensemble", metrics.ensemble_logits(teachers)),
        "against_teachers": metrics.against_teachers(predicted, classes, labels),
    }


def _without_nan(value: Any) -> Any:
    """None in place of NaN, which JSON does not know."""
    return None if isinstance(value, float) and math.isnan(value) else value
