"""How good the teachers are before training, and which settings would make a weak one better."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from kd_core import metrics
from kd_core.config import TeacherConfig, TeacherNormalization
from kd_core.data.dataset import Data
from kd_core.data.plan import epoch_order
from kd_core.errors import UserError
from kd_core.evaluation.diagnosis import Finding, advice_for, is_clear_gain, simplest_of_best
from kd_core.evaluation.predictions import SAMPLE
from kd_core.models.predict import Images, Predictor
from kd_core.teachers.class_order import Order, accuracies, effort, on_top_of
from kd_core.teachers.load import EXPOSED, Teacher, exposure, views_of
from kd_core.teachers.logits import TeacherLogits
from kd_methods import MethodConfig

TRIED_IMAGES = 2000  # one half finds a class order, the other half measures it
# Other settings are tried for teachers that are right on less than half of the images, or this much worse than the
# best teacher or than their own file states: on the same data, networks of all families differ by less.
WEAK, BEHIND = 0.5, 0.1


class TeacherCheck(NamedTuple):
    """What `check_teachers` found.

    Args:
        logits: clean-view logits [K,n,C] of the validation split; None without teachers or without that split.
        metrics: of each teacher on that split, then of their ensemble; empty if there are no logits.
        findings: settings that make a weak teacher clearly better.
    """

    logits: Tensor | None
    metrics: list[dict[str, float]]
    findings: list[Finding]

    @property
    def rows(self) -> dict[str, float]:
        """teacher/{i}/val_accuracy and teacher/ensemble/val_accuracy."""
        names = [*range(len(self.metrics) - 1), "ensemble"] if self.metrics else []
        pairs = zip(names, self.metrics, strict=True)
        return {f"teacher/{name}/val_accuracy": row["accuracy"] for name, row in pairs}


def check_teachers(
    teachers: list[Teacher], data: Data, predict: Predictor, say: Callable[[str], None], *, try_settings: bool = False
) -> TeacherCheck:
    """Measure teachers on the validation split, or on some training images if there is none; all processes call this.

    Args:
        say: is told the accuracy of each teacher, and what makes it doubtful.
        try_settings: try other normalizations and class orders for weak teachers.

    Raises:
        UserError: teachers near chance, or logits that are not finite.
    """
    if not teachers:
        return TeacherCheck(None, [], [])
    split, name = data.val, "validation images"
    if split is None:
        rows = epoch_order(0, 0, data.truth.rows)[:SAMPLE]
        split, name = replace(data.truth, rows=rows), f"{len(rows)} training images"
    images = Images(split, predict.accelerator.device, predict.config.data.store)
    logits = _validation_logits(teachers, images, predict)
    measured = [metrics.classification(own, images.labels) for own in (*logits, metrics.ensemble_logits(logits))]
    for line in _descriptions(teachers, measured, name):
        say(f"  {line}")
    better = find_better_settings(teachers, measured, logits, images, data, predict) if try_settings else None
    _require_above_chance(teachers, measured, images.labels, better)
    findings = list((better or {}).values())
    return TeacherCheck(logits, measured, findings) if data.val is not None else TeacherCheck(None, [], findings)


def errors_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether each teacher is wrong on each image, bool [K,n], of logits [K,n,C] and labels int64 [n]."""
    return metrics.predictions(logits) != labels


def require_unseen_validation(kd: MethodConfig, members: list[Teacher], data: Data) -> None:
    """UserError if the method weights teachers by their errors on validation images that they may have been trained on.

    Then they look better than they are. Without a validation split there are no such errors.
    """
    if kd.instead_of_errors is None:
        return
    what = f"kd.type {kd.type!r}: weights teachers by their errors on the validation images"
    if data.val is None:
        raise UserError(f"{what}, and there are none; set data.val_size, or give {kd.instead_of_errors}")
    for teacher in members:
        if teacher.saw_validation in EXPOSED:
            raise UserError(
                f"{what}, and teacher {teacher.index} ({teacher.name}) {EXPOSED[teacher.saw_validation]}; set "
                f"teachers.{teacher.index}.trained_on if you know better, or give {kd.instead_of_errors}"
            )


def validation_errors(kd: MethodConfig, teachers: TeacherLogits, data: Data, predict: Predictor) -> Tensor | None:
    """The teachers' errors on the validation images, bool [K,n], if the method weights them by these; else None.

    UserError if there are no such images, or no logits for them.
    """
    if kd.instead_of_errors is None:
        return None
    if data.val is None:
        raise UserError(f"kd.type {kd.type!r} weights them by their errors on validation images, and there are none")
    images = Images(data.val, predict.accelerator.device, predict.config.data.store)
    logits = teachers.clean_logits(images, "measuring on validation images")
    assert logits is not None
    return errors_of(logits, images.labels)


def near_chance(accuracy: float, labels: Tensor) -> bool:
    """Whether always predicting the most frequent class could give this accuracy on `labels` int64 [n].

    The margin is 3 standard errors, but at least 2 points or half of the chance level, whichever is less.
    """
    chance = float(labels.bincount().max()) / len(labels)
    return accuracy <= chance + max(3 * math.sqrt(chance * (1 - chance) / len(labels)), min(0.02, chance / 2))


def _validation_logits(teachers: list[Teacher], images: Images, predict: Predictor) -> Tensor:
    """Clean-view logits [K,n,C], kept with each teacher so that they are computed once."""
    new = [teacher for teacher in teachers if teacher.validation_logits is None]
    logits = TeacherLogits(new, predict).clean_logits(images, "measuring")
    for index, teacher in enumerate(new):
        assert logits is not None
        teacher.validation_logits = logits[index]
    return torch.stack([teacher.validation_logits for teacher in teachers if teacher.validation_logits is not None])


def _descriptions(teachers: list[Teacher], measured: list[dict[str, float]], images: str) -> list[str]:
    """One line per teacher and one for the ensemble, and a warning where an accuracy is too good to be true.

    `images` says what they were measured on.
    """
    lines = []
    for teacher, row in zip(teachers, measured[:-1], strict=True):
        index = teacher.index
        lines.append(f"teacher {index} {teacher.name}: accuracy {row['accuracy']:.2%} on {images}, {teacher.view} view")
        if teacher.saw_validation in EXPOSED:
            lines.append(
                f"teacher {index} {EXPOSED[teacher.saw_validation]}, so this accuracy may say nothing about it "
                f"(set teachers.{index}.trained_on if you know what it was trained on)"
            )
        if teacher.stated_accuracy is not None and row["accuracy"] > teacher.stated_accuracy + 0.05:
            lines.append(
                f"teacher {index} is far better here than the {teacher.stated_accuracy:.2%} that its file states: "
                "it has probably been trained on these validation images"
            )
    lines.append(f"teachers' ensemble: accuracy {measured[-1]['accuracy']:.2%} on {images}")
    if (word := exposure(teachers)) in EXPOSED:
        lines[-1] += f"; a member {EXPOSED[word]}"
    return lines


def _require_above_chance(
    teachers: list[Teacher], measured: list[dict[str, float]], labels: Tensor, better: dict[int, Finding] | None
) -> None:
    """UserError that names all teachers near chance.

    `better`: settings that help, by position in `teachers`; None if none were tried.
    """
    tried = (
        "--check tries the usual normalizations and class orders for teachers from elsewhere, and says which works"
        if better is None
        else "the usual normalizations and class orders were tried for teachers from elsewhere: none helps"
    )
    problems = []
    for position, (teacher, row) in enumerate(zip(teachers, measured[:-1], strict=True)):
        if not near_chance(row["accuracy"], labels):
            continue
        remedy = (
            "Usual causes: weights of another data set, classes in another order (teachers[].class_order), "
            "another normalization than in its training (teachers[].normalization)"
            + ("" if teachers[position].has_own_size else ", another input size (teachers[].img_size)")
            + f"; {tried}"
        )
        if better and position in better:
            remedy = f"{better[position].message}: {better[position].advice}"
        problems.append(
            f"teachers[{teacher.index}] {teacher.name!r}: accuracy {row['accuracy']:.2%} on {len(labels)} images "
            f"is near chance. {remedy}"
        )
    if problems:
        raise UserError("\n".join(problems))


# ---------------------------------------------------------------------------------------------- other settings


def find_better_settings(
    teachers: list[Teacher],
    measured: list[dict[str, float]],
    logits: Tensor,
    images: Images,
    data: Data,
    predict: Predictor,
) -> dict[int, Finding]:
    """A finding for each weak teacher that other settings make clearly better, by its position in `teachers`.

    `measured` are the teachers' metrics, then their ensemble's, and `logits` [K,n,C] their logits on `images`.
    Each weak teacher sees up to `TRIED_IMAGES` of them under every normalization, and every class order is tried on
    the resulting logits.  Teachers trained on demand are skipped: they were trained on these classes with this
    normalization.  All processes call this together.
    """
    config = predict.config
    chosen = epoch_order(0, 0, torch.arange(len(images)))[:TRIED_IMAGES]
    split = replace(images.split, rows=images.split.rows[chosen])
    some = Images(split, predict.accelerator.device, config.data.store)
    alone = measured[:-1]
    best, found = max(row["accuracy"] for row in alone), {}
    for position, (teacher, row) in enumerate(zip(teachers, alone, strict=True)):
        own = config.teachers[teacher.index]
        expected = max(best, teacher.stated_accuracy or 0.0) - BEHIND
        if own.train is None and (row["accuracy"] < WEAK or row["accuracy"] < expected):
            current = logits[position, chosen.to(logits.device)]
            if finding := _try_settings(teacher, own, current, some, data, predict):
                found[position] = finding
    return found


def _try_settings(
    teacher: Teacher, own: TeacherConfig, current: Tensor, images: Images, data: Data, predict: Predictor
) -> Finding | None:
    """The settings that make one teacher clearly better than its own, under which its logits are `current` [n,C]."""
    by_normalization = {own.normalization: current}
    if teacher.preprocess is not None:
        network = predict.prepare(teacher.model)
        for name in get_args(TeacherNormalization):
            if name not in by_normalization:
                views = views_of(teacher.preprocess, name, data, predict.config)
                label = f"teacher {teacher.index} with normalization {name}"
                by_normalization[name] = predict(network, images, views, label)
    tried: list[tuple[tuple[str, Order], float]] = [  # its own settings first
        ((name, order), accuracy)
        for name, logits in by_normalization.items()
        if bool(logits.isfinite().all())
        for order, accuracy in accuracies(logits, images.labels, data.class_names)
    ]
    before, count = tried[0][1], len(images) // 2
    (name, order), after = simplest_of_best(
        tried, count, lambda setting: (setting[0] != own.normalization) + effort(setting[1])
    )
    if not is_clear_gain(before, after, count) or near_chance(after, images.labels):
        return None
    new = {"normalization": name, "class_order": on_top_of(own.class_order, order, data.class_names)}
    settings = {key: value for key, value in new.items() if value != getattr(own, key)}
    key = next(iter(settings))
    said = " and ".join(f"{key} {new[key]}" if isinstance(new[key], str) else f"another {key}" for key in settings)
    return Finding(
        "teacher settings",
        f"teacher {teacher.index} ({teacher.name}) has an accuracy of {before:.2%} on {count} images with its current "
        f"settings, and {after:.2%} with {said}",
        f"teachers.{teacher.index}.{key}",
        getattr(own, key),
        advice_for(own, settings),
    )
