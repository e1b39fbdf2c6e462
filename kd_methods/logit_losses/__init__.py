"""Logit losses, one file each: how the student's logits are compared with those of each teacher.

A loss is a file of this folder without a leading underscore, named like `kd.loss`, with two names in it:

    Config, derived from LossConfig: its parameters, which become the settings kd.NAME.*, and its equation
    loss(student [B,C], teachers [K,B,C], labels, temperature, progress, config) -> [K,B]

labels are int64 [B] or soft [B,C], progress is the fraction of training done, in [0,1]. The temperature is a number, or
a tensor [K,1] of one per teacher: `soften` divides by either. `add` takes a function of the user's own instead, which
has no `config` and gets numbers alone. Each value carries the factor temperature squared, which keeps the scale of the
gradient about constant in the temperature (Hinton et al. 2015), unless its file says otherwise, and its mean over B is
the loss that the paper states. Teachers' logits have no gradient; weights that must have none are computed from
`student.detach()`. A Config may ask for more arguments: the raw logits (`takes_raw`), and the logits of a second view
(`second_view`).
"""

import functools
import importlib
import pkgutil
import re
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

from pydantic import TypeAdapter

from kd_methods._torch import Tensor
from kd_methods.logit_losses._base import LossConfig

LogitLoss = Callable[[Tensor, Tensor, Tensor, float, float], Tensor]  # `loss` above, without `config`

OWN = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")))
_added: dict[str, LogitLoss] = {}


def names() -> list[str]:
    """Names of all logit losses: the files of this folder, and those that were added."""
    return [*OWN, *_added]


def add(name: str, function: LogitLoss) -> None:
    """Make `function` the logit loss `name`, which every method with teachers can use.

    It is called as function(student [B,C], teachers [K,B,C], labels, temperature, progress) and returns [K,B], the
    factor temperature squared included; labels are int64 [B] or soft [B,C]. Raises ValueError for a name that is taken
    or what is no function.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise ValueError(f"loss {name!r}: a name consists of lower-case letters, digits and _")
    if name in names():
        raise ValueError(f"loss {name!r}: there is one of this name already; choose another name")
    if not callable(function):
        raise ValueError(f"loss {name!r}: needs a function, not a {type(function).__name__}")
    _added[name] = function


def config_class(name: str) -> type[LossConfig]:
    """The parameters of a loss of this folder."""
    return _module(name).Config


def function(name: str, config: LossConfig | None) -> Callable[..., Tensor]:
    """The loss `name` with the parameters `config`, which a loss that was added does not have."""
    return functools.partial(_module(name).loss, config=config) if config is not None else _added[name]


def check_name(value: Any) -> Any:
    """`value` if it names a logit loss, pydantic's error for a choice otherwise."""
    return _choice(*names()).validate_python(value)


def _module(name: str) -> Any:
    return importlib.import_module(f"{__name__}.{name}")


@cache
def _choice(*allowed: str) -> TypeAdapter[Any]:
    choice: Any = Literal[allowed]
    return TypeAdapter(choice)
