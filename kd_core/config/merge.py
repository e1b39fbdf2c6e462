"""Layers of settings -> one valid configuration.

    defaults  <  --config file.yaml, in the order given  <  --section.key=value

Layers are plain dicts that are merged key by key (lists are replaced as a whole) and validated once, so that all
mistakes are reported together, each with its origin, the value, and what is allowed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

import kd_methods
from kd_core.config.messages import explain
from kd_core.config.read import COMMAND_LINE, Layer, import_remedy, in_trial, merge
from kd_core.config.schema import Config
from kd_core.errors import UserError
from kd_methods import logit_losses

MAX_MISTAKES = 30  # shown at once


@dataclass
class Resolved:
    """A valid configuration, and notices for the user about settings that were dropped."""

    config: Config
    notices: list[str] = field(default_factory=list)


def resolve(layers: list[Layer], *, in_sweep: bool | None = None) -> Resolved:
    """Merge layers (lowest first) and validate once.  UserError lists every mistake, one per line.

    A higher layer that changes `kd.type` drops the hyperparameters that the new type lacks, one that changes
    `kd.loss` the settings of the former loss, one that changes `model.name` the lower layers' `model.args`, with a
    notice. In one layer such hyperparameters are mistakes, except in a sweep's trial, where they are dropped with a
    notice: one sweep may vary the method and every method's hyperparameters together. A `name` stays, with a
    notice; only a trial drops one that says another method.
    """
    in_sweep = in_trial() if in_sweep is None else in_sweep
    values: dict[str, Any] = {}
    notices: list[str] = []
    origins: dict[str, str] = {}
    for layer in layers:
        values, dropped = _without_former_method(values, layer, origins, in_sweep)
        values, of_loss = _without_former_loss(values, layer)
        values, args = _without_former_args(values, layer)
        notices += [*dropped, *of_loss, *args]
        values = merge(values, layer.values)
        origins.update({key: layer.origin for key in _dotted_keys(layer.values)})
    if in_sweep and isinstance(values.get("kd"), dict):
        values["kd"], foreign = _without_foreign_keys(values["kd"], values["kd"].get("type"))
        notices += [f"kd.{key} dropped in this trial: {values['kd'].get('type')!r} has no such key" for key in foreign]
    values.setdefault("kd", {})
    if isinstance(values["kd"], dict):
        values["kd"].setdefault("type", kd_methods.LABEL_ONLY)
    try:
        return Resolved(Config.model_validate(values), notices)
    except ValidationError as error:
        lines = [explain(problem, origins) for problem in error.errors()[:MAX_MISTAKES]]
        more = [f"and {error.error_count() - MAX_MISTAKES} more"] if error.error_count() > MAX_MISTAKES else []
        remedies = [remedy for layer in layers if layer.record and (remedy := import_remedy(layer.record))]
        kind = NotImported if remedies else UserError
        raise kind("\n".join([*dict.fromkeys(lines), *more, *remedies])) from None


def _without_former_method(
    values: dict[str, Any], layer: Layer, origins: dict[str, str], in_sweep: bool
) -> tuple[dict[str, Any], list[str]]:
    """`values` without the hyperparameters that the `kd.type` of a higher layer lacks, and notices."""
    below, above = values.get("kd"), layer.values.get("kd")
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return values, []
    former = below.get("type")
    method = above.get("type", former)
    if method == former:
        return values, []
    kd, dropped = _without_foreign_keys(below, method)
    notices = [f"kd.{key} dropped: {method!r} (from {_source(layer)}) has no such key" for key in dropped]
    values, name = {**values, "kd": kd}, values.get("name")
    if in_sweep and former and str(former) in str(name):  # else runs of all methods would have this name
        del values["name"]
        notices.append(f"name {name!r} dropped in this trial: kd.type is {method!r}")
    elif name is not None and "name" not in layer.values and not in_sweep:
        notices.append(
            f"name stays {name!r}, as {origins['name']} says, though kd.type is {method!r}; --name=NAME gives another"
        )
    return values, notices


def _source(layer: Layer) -> str:
    return f"the {layer.origin}" if layer.origin == COMMAND_LINE else layer.origin


def _without_former_loss(values: dict[str, Any], layer: Layer) -> tuple[dict[str, Any], list[str]]:
    """`values` without what only another `kd.loss` than that of a higher layer uses, and notices."""
    below, above = values.get("kd"), layer.values.get("kd")
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return values, []
    default = kd_methods.LogitConfig.model_fields["loss"].default
    former, loss = below.get("loss", default), above.get("loss")
    if loss in (None, former) or loss not in kd_methods.losses():
        return values, []
    unused = {name for name in kd_methods.losses() if name == former}
    if loss in logit_losses.OWN and not logit_losses.config_class(loss).uses_temperature:
        unused |= {"temperature", "teacher_temperatures"}
    dropped = sorted(unused & below.keys() - above.keys())
    kept = {key: value for key, value in below.items() if key not in dropped}
    notices = [f"kd.{key} dropped: loss {loss!r} (from {_source(layer)}) does not use it" for key in dropped]
    return {**values, "kd": kept}, notices


def _without_former_args(values: dict[str, Any], layer: Layer) -> tuple[dict[str, Any], list[str]]:
    """`values` without the `model.args` of another network than that of a higher layer, and notices."""
    below, above = values.get("model"), layer.values.get("model")
    if not (isinstance(below, dict) and isinstance(above, dict) and below.get("args")):
        return values, []
    if above.get("name", below.get("name")) == below.get("name"):
        return values, []
    kept = {key: value for key, value in below.items() if key != "args"}
    return {**values, "model": kept}, [f"model.args {below['args']} dropped: they were meant for {below.get('name')!r}"]


class NotImported(UserError):
    """Settings that need own code which the command does not import."""


def _without_foreign_keys(kd: dict[str, Any], method: Any) -> tuple[dict[str, Any], list[str]]:
    """`kd` without the keys that only other methods have, and their names; a misspelled key stays, to be reported."""
    if method not in kd_methods.names():
        return kd, []
    own = set(kd_methods.config_class(method).model_fields)
    others = set().union(*(kd_methods.config_class(name).model_fields for name in kd_methods.names()))
    dropped = sorted(key for key in kd if key in others - own)
    return {key: value for key, value in kd.items() if key not in dropped}, dropped


def _dotted_keys(values: Any, prefix: str = "") -> Iterator[str]:
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield f"{prefix}{key}"
        yield from _dotted_keys(value, f"{prefix}{key}.")


def with_seed(config: Config, seed: int) -> Config:
    """The same settings with another `training.seed`."""
    return config.model_copy(update={"training": config.training.model_copy(update={"seed": seed})})


def with_precision(config: Config, precision: str) -> Config:
    """The same settings, with `precision` where they leave it open; UserError if it does not fit them."""
    if config.training.mixed_precision not in (None, "auto"):
        return config
    launchers = Layer("the launcher", {"training": {"mixed_precision": precision}})
    return resolve([Layer("the settings", config.model_dump(mode="json")), launchers], in_sweep=False).config
