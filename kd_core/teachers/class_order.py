"""The order of classes in a teacher's outputs: by name, or found from its predictions."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Tensor

from kd_core import metrics
from kd_core.config import ClassOrder

Order = str | list[int] | None  # a value of the setting `class_order`
# By class name as text, as folders are listed; by class name with numbers by their value (1, 2, 10); by class number as
# text: 0, 1, 10, 11, ..., 2, 20, ...
USUAL = get_args(ClassOrder)


def outputs_in_order(order: Order, class_names: list[str]) -> list[int]:
    """The index of the output for each class, from a setting `class_order`: C numbers."""
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
    """A sort key that compares the numbers in names by value: "1", "2", "10"; "a2", "a10"."""
    parts = re.split("([0-9]+)", name)  # text and digits alternate, so equal positions have equal types
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


def on_top_of(setting: Order, order: Order, names: list[str]) -> Order:
    """The setting that has the effect of `setting` followed by `order`."""
    if setting is None or order is None:
        return order if setting is None else setting
    outputs = outputs_in_order(setting, names)
    return [outputs[number] for number in outputs_in_order(order, names)]


def effort(order: Order) -> int:
    """The complexity of a setting: nothing (0), a word (1) or a list (2)."""
    return 0 if order is None else 1 if isinstance(order, str) else 2


def best_order(logits: Tensor, labels: Tensor) -> list[int]:
    """The order of outputs with the most correct predictions: C numbers, output `order[c]` for class c.

    logits [N,C], labels int64 [N].  Solved exactly as a linear assignment (Crouse, IEEE TAES 2016, in scipy).  A class
    that the images leave open keeps its own output if that is free.  The order is fitted to these images, so measure
    its accuracy on others.
    """
    from scipy.optimize import linear_sum_assignment  # not above: takes a second, and few teachers need it

    classes = logits.shape[1]
    counts = metrics.confusion_matrix(metrics.predictions(logits), labels, classes).double()
    own = torch.eye(classes, dtype=torch.float64, device=counts.device) / (classes + 1)  # below one image altogether
    _, outputs = linear_sum_assignment((counts + own).cpu().numpy(), maximize=True)
    return [int(output) for output in outputs]


def accuracies(logits: Tensor, labels: Tensor, class_names: list[str]) -> list[tuple[Order, float]]:
    """The accuracy of logits [N,C] for labels int64 [N] under each order: (a value for `class_order`, accuracy).

    Tries no reordering, the usual orders and, with at least two images per class, the order fitted to the images with
    even indices; each is measured on those with odd indices.
    """
    orders: list[Order] = [None, *USUAL]
    if len(labels) // 2 >= 2 * logits.shape[1]:
        orders.append(best_order(logits[::2], labels[::2]))
    outputs = torch.tensor([outputs_in_order(order, class_names) for order in orders], device=labels.device)  # [O,C]
    right = outputs[:, labels[1::2]] == metrics.predictions(logits[1::2])
    return list(zip(orders, right.double().mean(1).tolist(), strict=True))
