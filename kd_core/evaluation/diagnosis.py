"""Findings about a finished run: what its own measurements say went wrong, and the setting to change.

Each check is a small generator of findings that yields nothing if it does not apply or lacks the measurement; `CHECKS`
lists them.  A threshold is a judgment: its constant says why it has its value, docs/diagnosis.md lists all, and a run
of the shipped settings is meant to have no finding.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from statistics import fmean
from typing import Any, TypeVar

import torch
from torch import Tensor

import kd_methods
from kd_core import metrics
from kd_core.config import Config, TeacherConfig
from kd_core.errors import printable
from kd_core.evaluation import uncertainty
from kd_core.evaluation.figures import Predictions
from kd_core.evaluation.metric_names import LABELS
from kd_core.evaluation.uncertainty import BEYOND_DOUBT, paired_difference
from kd_core.loop.optimizer import learning_rate_at
from kd_core.models.method_on_split import image_weights
from kd_core.teachers.class_order import accuracies, effort, on_top_of

# Mean p(label) of a teacher on training images at the temperature of distillation: above it, all other classes
# together get less than the 0.05 that label smoothing of 0.05 would give them for nothing.
SATURATED = 0.95
# By how much more a saturated teacher believes in training labels than in validation labels, at temperature 1: with
# less, it is confident because the task is easy, not because it has memorized its images.
MEMORIZED = 0.05
# Mean distance of an image's teacher weights from 1/K, as a share of 1/K: with less the distillation term is, on
# average, within 2% of the plain mean's.
UNIFORM = 0.02
# Weight of a teacher as a share of 1/K: with less it contributes a tenth of its share at its full cost.
IDLE = 0.1
GIVEN_WEIGHTS = ("best", "fixed")  # methods whose weights are a choice, not a result
# Share of the distillation term in the loss, and of the label term.  They are not alike since temperature squared
# makes the distillation term large: the label term was half a per cent in the quickstart, and is less behind a steep
# gate.
NO_DISTILLATION, NO_LABELS = 0.01, 0.0002
# Agreement with the teachers' ensemble on training images above which a student follows them there, and by how much
# less it may follow them on validation images: 30 points is a judgment, above what teachers themselves lose in
# accuracy from training to validation images of CIFAR-100 (some 25).
FOLLOWS, FORGETS = 0.9, 0.3
# The student cannot follow if it agrees on so few training images with an ensemble that is right on so many.
CANNOT_FOLLOW, GOOD_ENSEMBLE = 0.5, 0.7
# Learning rate and batch of recipes that work on small images: SGD after Tian et al., arXiv:1910.10699, scaled
# linearly with the batch (Goyal et al., arXiv:1706.02677); Adam scaled by the square root (Malladi et al.,
# arXiv:2205.10287).  Shipped recipes lie within a factor of 8; beyond 10 a rate is more likely a slip than a choice.
REFERENCE = {"sgd": (0.05, 64, 1.0), "adam": (1e-3, 128, 0.5), "adamw": (1e-3, 128, 0.5)}
FAR = 10.0
# In the last fifth of its epochs a finished run gains less than one point of training accuracy or 2% of its loss per
# epoch.
STILL_RISES, STILL_FALLS = 0.01, 0.02
# A run whose training accuracy gains less than a point over its second half, and stands below one half, is stuck; one
# that loses a fifth of the best it had has diverged.
STUCK_GAIN, STUCK_BELOW, DIVERGED = 0.01, 0.5, 0.8
FEWEST_EPOCHS = 4  # that show a trend
# A student that is right on so few of its own training images, and on nearly as many others, has not learned what it
# was shown.  Both are judgments: networks that fit CIFAR-100 stand 10 points higher there than on validation images, a
# digits student of a hundredth of the usual size at 75% on both.
LEARNED_LITTLE, CLOSE = 0.8, 0.05
# Learning rate of the last step, as a share of the highest, above which the schedule has not come down: one decay
# of multistep leaves 0.1 or 0.2, and shipped recipes end below 0.01.
STILL_HIGH = 0.25
# Validation loss above its lowest by so much, and so many times the training loss: far more than it wavers on some
# hundred images.
RISEN, OVER_TRAINING = 1.5, 3.0
# Images that one process's BatchNorm sees: below 16 its statistics are noise (Wu and He, arXiv:1803.08494, figure 1).
FEWEST_FOR_BATCH_NORM = 16
# Standard error of a gain in accuracy with which a gain of 5 points, which is large for distillation, would not be
# distinguished from none (two standard errors).
BLIND = 0.025
# How far below the student a teacher's accuracy must be, beside `BEYOND_DOUBT` standard errors of the difference.
# Somewhat worse teachers still help (Yuan et al., arXiv:1909.11723), but one below the student alone, by the verdict of
# a comparison, is reported.
WORSE = 0.1
# How much another order of classes must add to a teacher's accuracy on images to which it was not fitted.
CLEAR_GAIN = 0.05


T = TypeVar("T")


@dataclass(frozen=True)
class Finding:
    """Something that is probably wrong.

    Args:
        name: which check found it.
        message: one sentence with the numbers.
        key: the setting to change, dotted as on the command line.
        value: what it is now, ready for JSON.
        advice: what to try.
    """

    name: str
    message: str
    key: str
    value: Any
    advice: str


@dataclass(frozen=True)
class Evidence:
    """The measurements of a run; `epochs` are the rows of whole epochs, the rest is described in `diagnose`."""

    config: Config
    epochs: list[dict[str, Any]]
    train: Predictions | None
    val: Predictions | None
    steps_per_epoch: int
    processes: int
    batch_norm: bool

    def course(self, name: str) -> list[float]:
        """The values of a metric over the epochs that have it; null, a value that was not finite, is left out."""
        return [row[name] for row in self.epochs if row.get(name) is not None]

    def finding(self, name: str, message: str, key: str, advice: str) -> Finding:
        """A finding about the setting `key`, with the value that it has."""
        return Finding(name, message, key, value_of(self.config, key), advice)


def value_of(config: Config, key: str) -> Any:
    """The value of a dotted key, ready for JSON."""
    value: Any = config.model_dump(mode="json")
    for part in key.split("."):
        value = value[int(part) if isinstance(value, list) else part]
    return value


def diagnose(
    config: Config,
    *,
    rows: list[dict[str, Any]],
    train: Predictions | None,
    val: Predictions | None,
    steps_per_epoch: int,
    processes: int = 1,
    batch_norm: bool = False,
) -> list[Finding]:
    """The findings about a run, in the order of `CHECKS`; none about a healthy one.

    Args:
        config: the run's settings.
        rows: of its metrics.jsonl.
        train: some training images (two thousand are plenty): clean views, networks in evaluation mode.
        val: the validation images.  Both: with teachers where there are any, and with the method's weights.
        processes: that share a batch.
        batch_norm: whether the student has BatchNorm.
    """
    epochs = [row for row in rows if "train/loss_total" in row]
    evidence = Evidence(config, epochs, train, val, steps_per_epoch, processes, batch_norm)
    return list(chain.from_iterable(check(evidence) for check in CHECKS))


# ------------------------------------------------------------------------------------------------------- teachers


def saturated_teachers(evidence: Evidence) -> Iterator[Finding]:
    """Soft targets that say little more than the label, from teachers that have memorized their training images."""
    kd, train, val = evidence.config.kd, evidence.train, evidence.val
    if not isinstance(kd, kd_methods.LogitConfig) or train is None or val is None:
        return
    if kd.standardize or kd.norm_temperature or not kd.uses_temperature:
        return  # standardized logits never saturate
    for index, on_train, on_val in _each_teacher(train, val):
        seen, unseen = _label_probability(on_train, train.labels), _label_probability(on_val, val.labels)
        temperature = kd.temperature_of(index)
        soft = _label_probability(on_train / temperature, train.labels)
        if soft >= SATURATED and seen - unseen >= MEMORIZED:
            yield evidence.finding(
                "saturated teacher",
                f"{_named(train, index)} gives training labels a probability of {seen:.3f} ({soft:.3f} at temperature "
                f"{temperature:g}) and validation labels {unseen:.3f}: its soft targets say little more than labels",
                "kd.teacher_temperatures" if kd.teacher_temperatures else "kd.temperature",
                f"a higher temperature, view: shared for this teacher (it is {evidence.config.teachers[index].view}), "
                "or a teacher that was trained for fewer epochs or with more augmentation",
            )


def uniform_weights(evidence: Evidence) -> Iterator[Finding]:
    """A method that weights teachers, on images for which all get the same weight."""
    predictions = evidence.train or evidence.val
    if predictions is None or predictions.weights is None or len(predictions.weights) < 2:
        return
    equal = 1 / len(predictions.weights)
    distance = float((predictions.weights - equal).abs().mean()) / equal
    if distance < UNIFORM and _weighs(evidence.config):
        yield evidence.finding(
            "uniform weights",
            f"an image's weights of the teachers are on average within {distance:.1%} of equal ones: the method is a "
            "plain average here",
            "kd.type",
            "teachers that differ more, or that were trained for fewer epochs: if all are confident of the label, "
            "weights cannot differ; or the plain average, which is simpler",
        )


def idle_teachers(evidence: Evidence) -> Iterator[Finding]:
    """A teacher that the method gives almost no weight, though nobody said that it should."""
    if evidence.config.kd.type in GIVEN_WEIGHTS:
        return
    count = len(evidence.config.teachers)
    for index in range(count):
        weights = evidence.course(f"train/teacher/{index}/weight")
        # a negative weight, as covariance may give, is not idle
        if count > 1 and weights and abs(mean := sum(weights) / len(weights)) < IDLE / count:
            yield evidence.finding(
                "idle teacher",
                f"{_named(evidence.val, index)} had a weight of {mean:.3f} over the run, where an equal share is "
                f"{1 / count:.3f}: it costs time and contributes almost nothing",
                f"teachers.{index}",
                "leave it out, or find out why it is so uncertain of the labels: --check tries other normalizations "
                "and class orders",
            )


def worse_teachers(evidence: Evidence) -> Iterator[Finding]:
    """A teacher that is far worse than its student, or worse than the student that had no teachers."""
    val = evidence.val
    if val is None or val.teachers is None:
        return
    own = metrics.predictions(val.student) == val.labels
    alone = None if val.alone is None else metrics.predictions(val.alone) == val.labels
    for index, logits in enumerate(val.teachers):
        right = metrics.predictions(logits) == val.labels
        lead, error = _mean_and_error(own.double() - right.double())
        less = [f"{100 * lead:.1f} points less than its student"]
        far = lead >= WORSE and lead >= BEYOND_DOUBT * error
        if alone is not None and (beside := paired_difference(right, alone)).verdict == uncertainty.WORSE:
            points, error = -100 * beside.images / beside.count, 100 * beside.error
            without = f"{points:.1f} points less than the student alone, without teachers (standard error {error:.1f})"
            less = [*(less if far else []), without]
        elif not far:
            continue
        yield evidence.finding(
            "worse teacher",
            f"{_named(val, index)} has an accuracy of {float(right.double().mean()):.2%} on validation images, "
            f"{' and '.join(less)}",
            f"teachers.{index}",
            "a better teacher, or none; if it should be good, --check tries other normalizations and class orders",
        )


def other_class_orders(evidence: Evidence) -> Iterator[Finding]:
    """A teacher whose predictions fit the labels better if its outputs stand for other classes."""
    val = evidence.val
    if val is None or val.teachers is None:
        return
    for index, logits in enumerate(val.teachers):
        tried = accuracies(logits, val.labels, val.class_names)
        before, (order, after) = tried[0][1], simplest_of_best(tried, len(val.labels) // 2, effort)
        if is_clear_gain(before, after, len(val.labels) // 2):
            teacher = evidence.config.teachers[index]
            yield evidence.finding(
                "class order",
                f"{_named(val, index)} has an accuracy of {before:.2%} as its classes are ordered, and {after:.2%} in "
                "another order",
                f"teachers.{index}.class_order",
                advice_for(teacher, {"class_order": on_top_of(teacher.class_order, order, val.class_names)}),
            )


def is_clear_gain(before: float, after: float, images: int) -> bool:
    """Whether an accuracy on so many images is better beyond doubt, and by enough to matter."""
    error = math.sqrt((before * (1 - before) + after * (1 - after)) / images)
    return after - before >= max(CLEAR_GAIN, BEYOND_DOUBT * error)


def advice_for(teacher: TeacherConfig, settings: dict[str, Any]) -> str:
    """How to give a teacher other settings, as its entry in a file or on the command line holds them."""
    if teacher.logits:
        return f"write the columns of {teacher.logits} in the order {settings['class_order']}"
    return "set " + ", ".join(f"{key}: {value}" for key, value in settings.items())


def simplest_of_best(tried: list[tuple[T, float]], images: int, effort: Callable[[T], int]) -> tuple[T, float]:
    """The (setting, accuracy) of least effort among those within a standard error of the best, on so many images.

    Of equal effort the most accurate one.
    """
    best = max(accuracy for _, accuracy in tried)
    enough = best - math.sqrt(best * (1 - best) / images)
    return min((trial for trial in tried if trial[1] >= enough), key=lambda trial: (effort(trial[0]), -trial[1]))


# ------------------------------------------------------------------------------------------------------- the loss


def share_of_distillation(evidence: Evidence) -> Iterator[Finding]:
    """A distillation term, or a label term, that hardly counts in the loss that is minimized."""
    kd = evidence.config.kd
    if kd.type == kd_methods.LABEL_ONLY or not evidence.course("train/kd_weight"):
        return
    weight, distill, label = (evidence.course(f"train/{name}") for name in ("kd_weight", "loss_distill", "loss_label"))
    soft = sum(w * loss for w, loss in zip(weight, distill, strict=True))
    hard = sum((1 - w) * loss for w, loss in zip(weight, label, strict=True))
    labels = hard / (soft + hard) if soft + hard > 0 else 1.0
    if features := evidence.course("train/loss_features"):  # they are distillation, too
        total = sum(evidence.course("train/loss_total"))
        labels *= 1 - sum(features) / total if total > 0 else 1.0
    share = 1 - labels
    coefficient = sum(weight) / len(weight)
    if share < NO_DISTILLATION:
        name, said, term = "no distillation term", f"{share:.2%} of the loss is the distillation term", "distillation"
    elif 0 < 1 - share < NO_LABELS:  # exactly none is a choice, and a sound one
        name, said, term = "no label term", f"{1 - share:.3%} of the loss is the label term", "label"
    else:
        return
    keys = balancing(kd)
    yield evidence.finding(
        name,
        f"{said} (the coefficient of distillation is {coefficient:.3g} of both): it hardly counts",
        f"kd.{keys[0]}",
        f"more weight for the {term} term by {' or '.join(f'kd.{key}' for key in keys)}",
    )


def balancing(kd: kd_methods.MethodConfig) -> list[str]:
    """Settings of a method that shift weight between its two terms, the likeliest cause of an imbalance first.

    Switches that are off come first, then settings with another value than their default.
    """
    fields = type(kd).model_fields
    off = [name for name, field in fields.items() if field.default is True and getattr(kd, name) is False]
    own = sorted(type(kd).balance, key=lambda name: getattr(kd, name) == fields[name].default)
    return [*off, *own] or ["type"]


def agreement(evidence: Evidence) -> Iterator[Finding]:
    """A student that agrees with its teachers only on training images, or not even there."""
    train, val = evidence.train, evidence.val
    if train is None or train.teachers is None or val is None or val.teachers is None:
        return
    seen, unseen = (
        float(metrics.agreement(metrics.predictions(p.student), metrics.predictions(metrics.ensemble_logits(t))))
        for p, t in ((train, train.teachers), (val, val.teachers))
    )
    said = f"student and ensemble of teachers agree on {seen:.1%} of training and {unseen:.1%} of validation images"
    if seen >= FOLLOWS and seen - unseen >= FORGETS:
        data, recipe = evidence.config.data, evidence.config.augment
        plain = not data.crop_padding and not data.flip and not recipe.operations
        yield evidence.finding(
            "memorized",
            f"{said}: it has memorized the training images",
            "data.crop_padding" if plain else "training.weight_decay",
            "augmentation (data.crop_padding, data.flip, augment) with view: shared for the teachers, more weight "
            "decay, or more training images",
        )
    ensemble = metrics.predictions(metrics.ensemble_logits(train.teachers))
    right = float((ensemble == train.labels).double().mean())
    if seen < CANNOT_FOLLOW and right >= GOOD_ENSEMBLE:
        short = _still_learns(evidence) is not None
        yield evidence.finding(
            "cannot follow",
            f"{said}, though the ensemble is right on {right:.1%} of the training images",
            "training.max_epochs" if short else "model.name",
            "more epochs" if short else "a larger student, or another learning rate",
        )


# --------------------------------------------------------------------------------------------------- the training


def learning_rate(evidence: Evidence) -> Iterator[Finding]:
    """A learning rate that is far from what works for this optimizer and batch size."""
    training, batch = evidence.config.training, evidence.config.data.batch_size
    if training.optimizer not in REFERENCE:
        return
    rate, reference, power = REFERENCE[training.optimizer]
    usual = rate * (batch / reference) ** power
    factor = training.learning_rate / usual
    if factor > FAR or (factor < 1 / FAR and not evidence.config.model.pretrained):  # fine-tuning takes low rates
        far = f"{factor:.3g} times as high as" if factor > 1 else f"{1 / factor:.3g} times lower than"
        yield evidence.finding(
            "learning rate",
            f"the learning rate of {training.learning_rate:g} is {far} the {usual:.2g} that is usual for "
            f"{training.optimizer} at a batch of {batch}",
            "training.learning_rate",
            f"about {usual:.1g}; for sgd it goes with data.batch_size, for adam with its square root",
        )


def training_failed(evidence: Evidence) -> Iterator[Finding]:
    """Training accuracy that fell far below its best, or that never rose."""
    course = evidence.course("train/accuracy")
    if len(course) < FEWEST_EPOCHS:
        return
    last, best, half = course[-1], max(course), course[len(course) // 2]
    advice = "a lower learning rate, training.warmup_epochs or training.clip"
    if last < DIVERGED * best:
        yield evidence.finding(
            "diverged",
            f"the training accuracy fell to {last:.1%} from {best:.1%} in epoch {course.index(best) + 1}",
            "training.learning_rate",
            advice,
        )
    elif max(course[len(course) // 2 :]) - half < STUCK_GAIN and best < STUCK_BELOW:
        yield evidence.finding(
            "stuck",
            f"the training accuracy stands at {last:.1%}, and it was {half:.1%} after half of the epochs",
            "training.learning_rate",
            f"{advice}; if it is low already, a higher one; or a larger student",
        )


def too_few_epochs(evidence: Evidence) -> Iterator[Finding]:
    """A run that ended while it was still learning."""
    pace = _still_learns(evidence)
    if pace:
        rise, fall, last = pace
        epochs = len(evidence.epochs)
        yield evidence.finding(
            "too few epochs",
            f"over the last {last} of {epochs} epochs ({epochs * evidence.steps_per_epoch:,} steps in all) an epoch "
            f"still added {100 * rise:.1f} points of training accuracy and took {fall:.1%} off the loss",
            "training.max_epochs",
            "more epochs; the schedule of the learning rate stretches with them",
        )


def _still_learns(evidence: Evidence) -> tuple[float, float, int] | None:
    """(rise of accuracy, fall of the loss, epochs averaged) per epoch at the end of the run, if both are large."""
    accuracy, loss = evidence.course("train/accuracy"), evidence.course("train/loss_total")
    if not 2 <= len(accuracy) == evidence.config.training.max_epochs:  # else stopped early, for it learned no more
        return None
    last = max(1, len(accuracy) // 5)
    rise, fall = (accuracy[-1] - accuracy[-1 - last]) / last, (1 - loss[-1] / loss[-1 - last]) / last
    return (rise, fall, last) if rise >= STILL_RISES and fall >= STILL_FALLS else None


def underfitting(evidence: Evidence) -> Iterator[Finding]:
    """A student that is hardly better on its training images than on others, and good on neither."""
    train, val = (
        None if one is None else float((metrics.predictions(one.student) == one.labels).double().mean())
        for one in (evidence.train, evidence.val)
    )
    if train is None or val is None:  # then what the last epoch measured, of augmented images
        courses = evidence.course("train/accuracy"), evidence.course("val/accuracy")
        if min(map(len, courses)) < FEWEST_EPOCHS:
            return
        train, val = (course[-1] for course in courses)
    if train < LEARNED_LITTLE and train - val < CLOSE:
        learns = _still_learns(evidence) is not None or _still_rises(evidence) is not None
        yield evidence.finding(
            "underfitting",
            f"the student is right on {train:.1%} of training and {val:.1%} of validation images: it has not learned "
            "what it was shown",
            "training.max_epochs" if learns else "model.name",
            "more epochs, for it was still learning"
            if learns
            else "a larger student; or another learning rate, less weight decay or augmentation",
        )


def unfinished_schedule(evidence: Evidence) -> Iterator[Finding]:
    """A learning rate that never came down, in a run that was still getting better."""
    rise, training = _still_rises(evidence), evidence.config.training
    steps = training.max_epochs * evidence.steps_per_epoch
    rate = learning_rate_at(
        steps - 1, total_steps=steps, steps_per_epoch=evidence.steps_per_epoch, training=training
    )
    if rise is None or rate < STILL_HIGH * training.learning_rate:
        return
    gain, error, last = rise
    keys = {"constant": "training.schedule", "multistep": "training.milestones", "cosine": "training.min_learning_rate"}
    yield evidence.finding(
        "unfinished schedule",
        f"the validation accuracy still rose by {100 * gain:.1f} points over the last {last} epochs (standard error "
        f"{100 * error:.1f}), and the learning rate ended at {rate:.2g} of {training.learning_rate:.2g}",
        keys[training.schedule],
        "a schedule that comes down before the end, such as training.schedule: cosine, and more epochs",
    )


def _still_rises(evidence: Evidence) -> tuple[float, float, int] | None:
    """(rise, standard error, epochs) of the validation accuracy, where its last epochs are better than those before.

    It compares the means of two stretches of epochs, each a fifth of the run and at least two epochs; the standard
    error is that of one accuracy on these images.
    """
    accuracy, val = evidence.course("val/accuracy"), evidence.val
    if val is None or not FEWEST_EPOCHS <= len(accuracy) == evidence.config.training.max_epochs:
        return None
    last = max(2, len(accuracy) // 5)
    before, end = fmean(accuracy[-2 * last : -last]), fmean(accuracy[-last:])
    error = math.sqrt(max(end * (1 - end), 1 / len(val.labels)) / len(val.labels))
    return (end - before, error, last) if end - before > error else None


def validation_loss_rose(evidence: Evidence) -> Iterator[Finding]:
    """Overfitting: a validation loss that rises while the training loss falls."""
    val, train = evidence.course("val/loss_ce"), evidence.course("train/loss_label")
    if len(val) >= FEWEST_EPOCHS and val[-1] >= RISEN * min(val) and val[-1] >= OVER_TRAINING * train[-1] > 0:
        yield evidence.finding(
            "overfitting",
            f"the validation cross-entropy rose from {min(val):.3f} in epoch {val.index(min(val)) + 1} to "
            f"{val[-1]:.3f}, while that of training fell to {train[-1]:.3f}",
            "training.weight_decay",
            "more of it, augmentation (data.crop_padding, data.flip, augment), more weight for the distillation term, "
            "or fewer epochs (training.patience)",
        )


def small_batch_norm(evidence: Evidence) -> Iterator[Finding]:
    """BatchNorm over a handful of images."""
    share = evidence.config.part // evidence.processes
    training = evidence.config.training
    if evidence.batch_norm and share < FEWEST_FOR_BATCH_NORM and not (training.sync_bn and evidence.processes > 1):
        yield evidence.finding(
            "small batch",
            f"the student's BatchNorm sees {share} images at a time: its statistics are noisy",
            "data.batch_size",
            "a larger batch, on several GPUs training.sync_bn, or a student without BatchNorm",
        )


def blind_validation(evidence: Evidence) -> Iterator[Finding]:
    """Validation images too few to show what distillation brings."""
    val = evidence.val
    if val is None or evidence.config.kd.type == kd_methods.LABEL_ONLY:
        return
    own = (metrics.predictions(val.student) == val.labels).double()
    if val.alone is not None:
        gain, error = _mean_and_error(own - (metrics.predictions(val.alone) == val.labels).double())
        said = f"the {LABELS['gain']} of {100 * gain:+.1f} points has"
    else:
        error = math.sqrt(2) * _mean_and_error(own)[1]
        said = "a difference to another student has"
    if error > BLIND:
        yield evidence.finding(
            "few validation images",
            f"on {len(val.labels)} validation images {said} a standard error of {100 * error:.1f} points",
            "data.val_size",
            "more validation images, or several seeds",
        )


CHECKS: tuple[Callable[[Evidence], Iterator[Finding]], ...] = (
    other_class_orders,
    worse_teachers,
    idle_teachers,
    saturated_teachers,
    uniform_weights,
    share_of_distillation,
    learning_rate,
    training_failed,
    too_few_epochs,
    unfinished_schedule,
    underfitting,
    agreement,
    validation_loss_rose,
    small_batch_norm,
    blind_validation,
)


# -------------------------------------------------------------------------------------------------------- helpers


def _each_teacher(train: Predictions, val: Predictions) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(number, logits on training images, logits on validation images) of each teacher, if there are any."""
    if train.teachers is not None and val.teachers is not None:
        for index, (on_train, on_val) in enumerate(zip(train.teachers, val.teachers, strict=True)):
            yield index, on_train, on_val


def _label_probability(logits: Tensor, labels: Tensor) -> float:
    """Mean p(label) of logits [N,C] for labels int64 [N]."""
    return float(logits.float().softmax(1).gather(1, labels[:, None]).mean())


def _mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean of values [N] and its standard error, which is at least that of one value in N that differs."""
    spread = max(float(values.var(correction=0)), 1 / len(values))
    return float(values.mean()), math.sqrt(spread / len(values))


def _weighs(config: Config) -> bool:
    """Whether the method weights a teacher that is confident of the label and one of another class differently."""
    # weights are those at temperature 1; a list of temperatures would be one for each of the run's teachers
    method = kd_methods.build(config.kd.without_features().model_copy(update={"teacher_temperatures": None}))
    if method.shared_weights:
        return False
    logits = torch.tensor([[10.0, 0.0], [0.0, 10.0]])
    weights = image_weights(method, logits[:1], logits[:, None], torch.tensor([0]))
    return weights is not None and float((weights - 0.5).abs().max()) > UNIFORM


def _named(predictions: Predictions | None, index: int) -> str:
    """A teacher's name in messages."""
    names = predictions.teacher_names if predictions else []
    return f"teacher {index} ({names[index]})" if index < len(names) else f"teacher {index}"


def findings_lines(findings: list[Finding]) -> str:
    """The message of each finding, the setting to change and what to try; empty without findings."""
    if not findings:
        return ""
    lines = [f"{len(findings)} finding{'s' * (len(findings) > 1)}:"]
    for finding in findings:
        now = "" if isinstance(finding.value, (dict, list)) else f" (now {json.dumps(finding.value)})"
        lines += [f"  {finding.message}", f"    {finding.key}{now}: {finding.advice}"]
    return printable("\n".join(lines))
