"""Feature losses, one file each: how features of the student are compared with those of one teacher.

A loss is a file of this folder without a leading underscore, named like `loss` in an entry of `kd.features`:

    Config, derived from FeatureConfig or MapConfig: its parameters, default layers and weight, and its equation
    Loss, derived from FeatureLoss: built for one teacher from the shapes of the features, which hold no batch

The method adds weight x growth x mean_b sum_k w_kb l_kb for each entry, with the teachers' weights w that it logs; a
loss of the whole batch is multiplied by the batch's mean of w.
"""

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from kd_core.errors import did_you_mean
from kd_methods.feature_losses._base import Batch, FeatureConfig, FeatureLoss, Layer, Shape

__all__ = [
    "AnyEntry", "Batch", "FeatureConfig", "FeatureLoss", "Layer", "Shape", "config_class", "explain", "loss_class",
    "names",
]  # fmt: skip


OWN = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")))


def names() -> list[str]:
    """Names of all feature losses: the files of this folder."""
    return list(OWN)


def config_class(name: str) -> type[FeatureConfig]:
    """The settings of an entry with the loss `name`."""
    return _module(name).Config


def loss_class(name: str) -> Any:
    """The class of the loss `name`, a FeatureLoss."""
    return _module(name).Loss


def explain(path: Sequence[int | str], mistake: Mapping[str, Any]) -> tuple[list[int | str], str] | None:
    """(key, what is wrong) of pydantic's `mistake` at `path` in an entry of `kd.features`; None where it is elsewhere.

    Pydantic's path holds the name of the loss after the entry's number, and branches of unions at its end.
    """
    if len(path) < 2 or path[0] != "features":
        return None
    entry, kind, given = list(path[:2]), mistake["type"], mistake["input"]
    if kind.startswith("union_tag"):
        name, known = given.get("loss", ""), names()
        text = f"{name!r} is not a feature loss{did_you_mean(name, known)}" if "loss" in given else "is missing"
        return [*entry, "loss"], f"{text}; feature losses: {', '.join(known)}"
    if len(path) == 2:
        return entry, f"{given!r} is wrong: an entry is a section with the key loss, such as {{loss: at}}"
    key, fields = list(path[3:]), config_class(str(path[2])).model_fields
    if kind == "value_error":
        return entry + key, str(mistake["ctx"]["error"])
    if kind == "extra_forbidden":
        return entry + key, f"unknown key{did_you_mean(key[-1], list(fields))}; keys: {', '.join(fields)}"
    if key[0] in ("student", "teacher"):
        each = ", or one such list for each teacher" if key[0] == "teacher" else ""
        layers = f"layers are a list of stage numbers, names of modules or 'embedding'{each}"
        shown = "" if isinstance(given, list) and given else f"{given!r} "  # a list in a list may be right
        return [*entry, key[0]], f"{shown}is wrong: {layers}"
    return entry + key, f"{given!r} is wrong: {mistake['msg']}"


def _module(name: str) -> Any:
    if name not in OWN:
        raise ValueError(f"{name!r} is not a feature loss{did_you_mean(name, names())}; losses: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


if TYPE_CHECKING:
    AnyEntry = FeatureConfig
else:
    AnyEntry = Annotated[reduce(or_, map(config_class, names())), Field(discriminator="loss")]
