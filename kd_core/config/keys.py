"""Which settings there are, by name, and which types they take."""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

import kd_methods
from kd_core.config.schema import Config, accepts


def types_at(path: Sequence[str]) -> list[Any]:
    """The declared types of the key at `path`, one for each method that has it; none for an unknown key."""
    declared: list[Any] = [Config]
    for part in path:
        declared = [inner for outer in declared for inner in types_below(outer, part)]
    return declared


def types_below(declared: Any, part: str) -> list[Any]:
    """The types that key `part` has within a value of type `declared`; of a list all items have one."""
    origin, options = get_origin(declared), get_args(declared)
    if origin in (Union, types.UnionType):
        return [inner for option in options for inner in types_below(option, part)]
    if declared is Any or origin is dict:
        return [Any]
    if origin is list:
        return [options[0]]
    if hasattr(declared, "__metadata__"):
        return types_below(options[0], part)
    if declared is float and part in ("from", "to"):  # the ends of a schedule, in place of a number
        return [float]
    if not (isinstance(declared, type) and issubclass(declared, BaseModel)):
        return []
    if declared is Config and part == "kd":
        return [kd_methods.config_class(name) for name in kd_methods.names()]
    return [declared.model_fields[part].annotation] if part in declared.model_fields else []


def is_text(declared: list[Any]) -> bool:
    """Whether the key takes only text, or null."""
    return bool(declared) and all(str in accepts(one) and accepts(one) <= {str, type(None)} for one in declared)


def all_keys(section: type[BaseModel] | None = None, prefix: str = "") -> Iterator[str]:
    """The full names of all settings, as the command line has them; of teachers those of the first.

    `kd.features` is one key: its entries share names, such as `temperature`, with settings that are meant more often.
    """
    section = section or Config
    for name, info in section.model_fields.items():
        if prefix == "kd." and name == "features":
            inner: list[type[BaseModel]] = []
        elif section is Config and name == "kd":
            inner = [kd_methods.config_class(method) for method in kd_methods.names()]
        else:
            inner = list(sections_of(info.annotation))
        item = "0." if get_origin(info.annotation) is list else ""
        for one in inner:
            yield from all_keys(one, f"{prefix}{name}.{item}")
        if not inner:
            yield f"{prefix}{name}"


def known_keys(path: list[Any]) -> list[str]:
    """Names of the keys allowed in the section at `path`."""
    section: Any = Config
    for part in path:
        if isinstance(part, int):
            continue
        if part == "kd" and section is Config:
            own = {
                name: info for n in kd_methods.names() for name, info in kd_methods.config_class(n).model_fields.items()
            }
            nested = next(sections_of(own[path[1]].annotation), None) if len(path) > 1 and path[1] in own else None
            return list(nested.model_fields) if nested else sorted(own)
        section = next(iter(sections_of(section.model_fields[part].annotation)), None) if section else None
    return [info.alias or name for name, info in section.model_fields.items()] if section else []


def sections_of(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from sections_of(inner)
