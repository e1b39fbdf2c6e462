"""In which order a teacher's outputs stand for the classes: by name, or found from what it says about images."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, get_args

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from kd_core import metrics
from kd_core.config import ClassOrder

Order = str | list[int] | None  # a value of the setting `class_order`
# By class name as text, as folders are listed; by class name with numbers by their value (1, 2, 10); by class number as
# text: 0, 1, 10, 11, ..., 2, 20, ...
USUAL = get_args(ClassOrder)


def outputs_in_order(order: Order, class_names: list[str]) -> list[int]:
    """Which output of a network stands for each class, from a setting `class_order`: C numbers."""
    numbers = list(range(len(class_names)))
    if order is None or isinstance(order, list):
        return order or numbers
    keys: dict[str, Callable[[int], Any]] = {
        "alphabetical": lambda c: class_names[c],
        "natural": lambda c: natural_key(class_names[c]),
        "numbers_as_text": str,
    }
    stood_for = sorted(numbers, key=keys[order])
    return sorted(numbers, key=stood_for.__getitem__)  # output j stands for class stood_for[j]: this is its inverse


def natural_key(name: str) -> tuple[list[str | int], str]:
    """What sorts names with the numbers in them by value: "1", "2", "10"; "a2", "a10"."""
    parts = re.split("([0-9]+)", name)  # text and digits in turn, so that equal places hold equal types
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


def on_top_of(setting: Order, order: Order, names: list[str]) -> Order:
    """The setting that replaces `setting`, under which logits were computed, if these are to be put into `order`."""
    if setting is None or order is None:
        return order if setting is None else setting
    outputs = outputs_in_order(setting, names)
    return [outputs[number] for number in outputs_in_order(order, names)]


def effort(order: Order) -> int:
    """How much there is to set: nothing (0), a word (1) or a list (2)."""
    return 0 if order is None else 1 if isinstance(order, str) else 2


def explaining(logits: Tensor, labels: Tensor) -> list[int]:
    """The order of outputs that makes most of the predictions right: C numbers, output `order[c]` for class c.

    logits [N,C], labels int64 [N].  The assignment of outputs to classes of the largest sum of counts, solved exactly
    (Crouse, IEEE TAES 2016, in scipy).  A class whose images do not tell keeps its own number where that is free.  It
    is fitted to these images: how good it is must be measured on others.
    """
    classes = logits.shape[1]
    counts = metrics.confusion_matrix(metrics.predictions(logits), labels, classes).double()
    own = torch.eye(classes, dtype=torch.float64, device=counts.device) / (classes + 1)  # below one image altogether
    _, outputs = linear_sum_assignment((counts + own).cpu().numpy(), maximize=True)
    return [int(output) for output in outputs]


def accuracies(logits: Tensor, labels: Tensor, class_names: list[str]) -> list[tuple[Order, float]]:
    """The accuracy of logits [N,C] for labels int64 [N] under each order: (a value for `class_order`, accuracy).

    As it is, the usual ones, and, if they are two a class at least, the one that explains the images with even numbers;
    each is measured on the images with odd ones.
    """
    orders: list[Order] = [None, *USUAL]
    if len(labels) // 2 >= 2 * logits.shape[1]:
        orders.append(explaining(logits[::2], labels[::2]))
    outputs = torch.tensor([outputs_in_order(order, class_names) for order in orders], device=labels.device)  # [O,C]
    right = outputs[:, labels[1::2]] == metrics.predictions(logits[1::2])
    return list(zip(orders, right.double().mean(1).tolist(), strict=True))
