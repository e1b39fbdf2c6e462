"""What would make a weak teacher a good one: the usual normalisations and class orders, tried on some images."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor

from kd_core.config import Config, TeacherConfig, TeacherNormalization
from kd_core.data.dataset import Data
from kd_core.data.views import epoch_order
from kd_core.evaluation.diagnosis import Finding, advice_for, is_clear_gain, simplest_of_best
from kd_core.models.predict import Images, Predictor
from kd_core.teachers.class_order import Order, accuracies, effort, on_top_of
from kd_core.teachers.load import Teacher, views_of
from kd_core.teachers.logits import near_chance

TRIED_IMAGES = 2000  # half of which find an order of classes, half of which judge
# Teachers whose settings are worth a try: right on less than half of the images, or so much worse than the best of
# them or than their own file states. Networks of all families lie closer together on the same data.
WEAK, BEHIND = 0.5, 0.1


def other_settings(
    members: list[Teacher],
    figures: list[dict[str, float]],
    logits: Tensor,
    images: Images,
    config: Config,
    data: Data,
    predict: Predictor,
) -> dict[int, Finding]:
    """For each weak teacher that other settings make clearly better: the finding, by its place in `members`.

    `figures` are theirs, `logits` [K,n,C] those they were measured by on `images`.  Up to `TRIED_IMAGES` of them are
    shown to each such teacher under every normalisation; every class order is then tried on what it says.  Teachers
    that are trained on demand learnt these very classes in this normalisation, and are left alone.  All processes call
    this together.
    """
    chosen = epoch_order(0, 0, torch.arange(len(images)))[:TRIED_IMAGES]
    split = replace(images.split, rows=images.split.rows[chosen])
    some = Images(split, predict.accelerator.device, config.data.store)
    best, found = max(row["accuracy"] for row in figures[: len(members)]), {}
    for place, (teacher, row) in enumerate(zip(members, figures, strict=False)):
        own = config.teachers[teacher.index]
        expected = max(best, teacher.stated_accuracy or 0.0) - BEHIND
        if own.train is None and (row["accuracy"] < WEAK or row["accuracy"] < expected):
            judged = logits[place, chosen.to(logits.device)]
            if finding := _try(teacher, own, judged, some, config, data, predict):
                found[place] = finding
    return found


def _try(
    teacher: Teacher, own: TeacherConfig, judged: Tensor, images: Images, config: Config, data: Data, predict: Predictor
) -> Finding | None:
    """What makes one teacher clearly better, with `judged` [n,C] its logits under its own settings."""
    everything = {own.normalization: judged}
    if teacher.preprocess is not None:
        network = predict.prepare(teacher.model)
        for name in get_args(TeacherNormalization):
            if name not in everything:
                views = views_of(teacher.preprocess, name, data, config)
                everything[name] = predict(network, images, views, f"teacher {teacher.index} with normalization {name}")
    tried: list[tuple[tuple[str, Order], float]] = [  # as it is, then all others
        ((name, order), accuracy)
        for name, logits in everything.items()
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
        f"teacher {teacher.index} ({teacher.name}) has an accuracy of {before:.2%} on {count} images as it is set, and "
        f"{after:.2%} with {said}",
        f"teachers.{teacher.index}.{key}",
        getattr(own, key),
        advice_for(own, settings),
    )
