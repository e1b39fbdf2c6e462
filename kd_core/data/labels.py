"""Labels as class numbers: a column of names or numbers, in one class order for all splits; bad labels are refused."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np

from kd_core.data.decoding import Classes
from kd_core.data.raw import MAX_CLASSES
from kd_core.errors import UserError


def class_numbers(
    values: list[Any],
    names: list[str] | None,
    training: Classes | None,
    where: str,
    *,
    split: str = "train",
    train_split: str = "train",
) -> tuple[np.ndarray, Classes]:
    """Labels as class numbers int64 [N], and the classes.

    Args:
        values: labels of one kind: class numbers (also as whole floats), names, or true and false.
        names: names of the class numbers, if the source has them.
        training: the training split's classes, to which the labels of another split are translated by name; None for
            the training split itself.
        where: the source's name in messages; split, train_split: the names of this split and of the training split.

    Raises:
        UserError: a missing label, one that is no whole number or outside the range, one that training does not know,
            labels of another kind than training has, class names that look the same.
    """
    here = f"data.label_column: {where}, split {split}"
    if not values:
        raise UserError(f"data.path: {where}, split {split}: has no images")
    for row, value in enumerate(values):
        if value is None or value == -1 or value != value or (isinstance(value, str) and not value.strip()):
            raise UserError(f"{here}: row {row} has no label ({value!r})")
    kind = _kind(values, names, here)
    if kind == "boolean":
        values, names = [int(value) for value in values], ["false", "true"]
    elif kind == "text":
        names = sorted(set(values))
        position = {name: number for number, name in enumerate(names)}
        values = [position[value] for value in values]
    if names is not None:
        count = len(names)
    elif training and training.kind == kind:
        count = len(training.names)
    else:
        count = max(int(max(values)) + 1, 1)
    if count > MAX_CLASSES:
        shown = f"{count:,}" if count < 1e20 else "more than 1e20"
        raise UserError(f"{here}: {shown} classes, at most {MAX_CLASSES:,} are possible")
    names = names or [str(number) for number in range(count)]
    _check_range(values, count, here)
    numbers = np.array(values, dtype=np.int64)
    if training is None:
        for first, second in alike(names, _as_seen):
            raise UserError(
                f"{here}: classes {ascii(first)} and {ascii(second)} differ by spaces or Unicode forms alone; "
                "give one class one name"
            )
        return numbers, Classes(names, kind)
    if not _comparable(Classes(names, kind), training):
        raise UserError(
            f"data.label_column: {where}: in split {train_split} {_KINDS[training.kind]} (such as "
            f"{training.names[0]!r}), in split {split} {_KINDS[kind]} (such as {names[numbers[0]]!r}); which class is "
            "which cannot be known, so write both in the same way"
        )
    return _translated(numbers, names, training.names, here), training


_KINDS = {
    "text": "labels are class names",
    "named": "labels are numbers of named classes",
    "number": "labels are class numbers without names",
    "boolean": "labels are true and false",
}


def _kind(values: list[Any], names: list[str] | None, here: str) -> str:
    """The kind of labels, one of `_KINDS`.  UserError unless they are numbers, text, or true and false."""
    types = {type(value) for value in values}
    if types == {str}:
        return "text"
    if types == {bool}:
        return "boolean"
    if not types <= {int, float}:
        listed = ", ".join(sorted(kind.__name__ for kind in types))
        raise UserError(f"{here}: labels are of type {listed}; expected whole numbers, text, or true/false")
    row = next((row for row, v in enumerate(values) if isinstance(v, float) and not v.is_integer()), None)
    if row is not None:
        raise UserError(
            f"{here}: row {row} has label {values[row]!r}, of type float; class numbers must be whole, class names text"
        )
    return "number" if names is None else "named"


def _check_range(values: list[Any], count: int, here: str) -> None:
    row = next((row for row, value in enumerate(values) if not 0 <= value < count), None)
    if row is not None:
        shown = repr(values[row]) if abs(values[row]) < 1e20 else "beyond 1e20"
        raise UserError(f"{here}: row {row} has label {shown}, outside the range 0 to {count - 1}")


def _comparable(own: Classes, training: Classes) -> bool:
    """Whether equal names mean equal classes: true for names, and for numbers that are also the names."""
    kinds = {own.kind, training.kind}
    if len(kinds) == 1 or kinds == {"text", "named"}:
        return True
    named = own if own.kind == "named" else training
    return kinds == {"named", "number"} and named.names == [str(number) for number in range(len(named.names))]


def _translated(numbers: np.ndarray, names: list[str], classes: list[str], here: str) -> np.ndarray:
    """Class numbers int64 [N] of `names`, translated to numbers of `classes`; UserError for a name not among them."""
    position = {name: number for number, name in enumerate(classes)}
    for name in (names[number] for number in np.unique(numbers)):
        if name not in position:
            alike = next((other for other in classes if _as_seen(other).casefold() == _as_seen(name).casefold()), None)
            hint = "" if alike is None else f", which has {ascii(alike)}: give one class one name"
            shown = repr(name) if alike is None else ascii(name)
            raise UserError(f"{here}: class {shown} does not occur in training{hint}")
    return np.array([position.get(name, -1) for name in names], dtype=np.int64)[numbers]


def _as_seen(name: str) -> str:
    """A class name without spaces and invisible characters, and with accents in composed form."""
    composed = unicodedata.normalize("NFC", name)
    return "".join(letter for letter in composed if not letter.isspace() and unicodedata.category(letter) != "Cf")


def alike(names: list[str], form: Callable[[str], str]) -> list[tuple[str, str]]:
    """Pairs of different names that `form` maps to the same text: each name with the first such name."""
    first: dict[str, str] = {}
    return [(there, name) for name in names if (there := first.setdefault(form(name), name)) != name]
