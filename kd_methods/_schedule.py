"""Settings that change over training: `{from: 4, to: 1, shape: cosine}` in place of a number.

    linear: value = (1 - p) from + p to        cosine: the same with (1 - cos(pi p)) / 2 in place of p

p is the fraction of training done, so a value is a function of progress alone. The settings of a method are plain
numbers with a table of schedules beside them, by path, such as ("dkd", "beta") or ("features", 0, "weight").
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ValidationError

Path = tuple[str | int, ...]
Shape = Literal["linear", "cosine"]
FORM = "a schedule is {from: number, to: number, shape: linear or cosine}"
AnyModel = TypeVar("AnyModel", bound=BaseModel)


@dataclass(frozen=True)
class Schedule:
    """A number that goes from `start` to `end` over training."""

    start: float
    end: float
    shape: Shape = "linear"

    def at(self, progress: float) -> float:
        """The value at `progress` in [0,1]; the ends exactly."""
        done = min(max(progress, 0.0), 1.0)
        if self.shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return (1 - done) * self.start + done * self.end

    def given(self) -> dict[str, Any]:
        """As it is given in settings."""
        return {"from": self.start, "to": self.end, "shape": self.shape}

    def __format__(self, spec: str) -> str:
        return f"{self.start:{spec}} to {self.end:{spec}} ({self.shape})"

    def __rsub__(self, number: float) -> "Schedule":
        return Schedule(number - self.start, number - self.end, self.shape)


def find(values: Any, cls: type[BaseModel]) -> dict[Path, Mapping[str, Any]]:
    """The schedules in `values`, settings of `cls`, by path. Raises ValidationError where one is not allowed."""
    found = dict[Path, Mapping[str, Any]]()
    problems: list[Any] = []
    for path, value, owner in _mappings(values, cls, ()):
        name = str(path[-1])
        field = owner.model_fields.get(name)
        if field is None or not isinstance(value, Mapping) or not {"from", "to"} & value.keys():
            continue
        constant = name != "weight" if path[0] == "features" else name in getattr(owner, "constant", ())
        if field.annotation is not float or constant:
            text = "this cannot change over training; give one value"
        elif not {"from", "to"} <= value.keys() <= {"from", "to", "shape"}:
            text = FORM
        elif (shape := value.get("shape", "linear")) not in get_args(Shape):
            text = f"shape {shape!r} is not known; {FORM}"
        else:
            found[path] = value
            continue
        # Where pydantic puts a mistake in an entry: below the name of its loss.
        where = (*path[:2], values["features"][path[1]]["loss"], *path[2:]) if path[0] == "features" else path
        wrong = ValueError(f"is {dict(value)}: {text}")
        problems.append({"type": "value_error", "loc": where, "input": value, "ctx": {"error": wrong}})
    if problems:
        raise ValidationError.from_exception_data(cls.__name__, problems)
    return found


def _mappings(values: Any, cls: type[BaseModel], path: Path) -> Iterator[tuple[Path, Any, type[BaseModel]]]:
    """(path, value, class of the section) of every value in the sections of `values`, and in entries of `features`."""
    if not isinstance(values, Mapping):
        return
    for key, value in values.items():
        field = cls.model_fields.get(key) if isinstance(key, str) else None
        section: Any = field.annotation if field is not None else None
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from _mappings(value, section, (*path, key))
        elif key == "features" and isinstance(value, list):
            for number, entry in enumerate(value):
                yield from _mappings(entry, _entry_class(entry), (*path, key, number))
        else:
            yield (*path, key), value, cls


def _entry_class(entry: Any) -> type[BaseModel]:
    """The settings of an entry of `kd.features`; none where it names no loss, which pydantic then says."""
    from kd_methods import feature_losses

    name = entry.get("loss") if isinstance(entry, Mapping) else None
    return feature_losses.config_class(name) if name in feature_losses.names() else BaseModel


def get(values: Any, path: Path) -> Any:
    """The value at `path` in a model."""
    for part in path:
        values = values[part] if isinstance(part, int) else getattr(values, part)
    return values


def put(values: Any, path: Path, new: Any) -> Any:
    """A copy of a mapping, a list or a model in which the value at `path` is `new`; it is not validated."""
    if not path:
        return new
    first, *rest = path
    if isinstance(values, BaseModel):
        return values.model_copy(update={str(first): put(getattr(values, str(first)), tuple(rest), new)})
    inner = put(values[first], tuple(rest), new)
    if isinstance(first, int):
        return [*values[:first], inner, *values[first + 1 :]]
    return {**values, first: inner}


def put_all(values: AnyModel, new: Mapping[Path, Any]) -> AnyModel:
    """`put` for every path."""
    for path, value in new.items():
        values = put(values, path, value)
    return values
