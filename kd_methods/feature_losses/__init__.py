"""Feature losses, one file each: how features of the student are compared with those of one teacher.

A loss is a file of this folder without a leading underscore, named like `loss` in an entry of `kd.features`:

    Config, derived from FeatureConfig or MapConfig: its parameters, default layers and weight, and its equation
    Loss, derived from FeatureLoss: built for one teacher from the shapes of the features, which hold no batch

The method adds weight x growth x mean_b sum_k w_kb l_kb for each entry, with the teachers' weights w that it logs; a
loss of the whole batch is multiplied by the batch's mean of w.
"""

import importlib
import pkgutil
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from kd_methods.feature_losses._base import Batch, FeatureConfig, FeatureLoss, Layer, Shape

__all__ = ["AnyEntry", "Batch", "FeatureConfig", "FeatureLoss", "Layer", "Shape", "config_class", "loss_class", "names"]


def names() -> list[str]:
    """Names of all feature losses: the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def config_class(name: str) -> type[FeatureConfig]:
    """The settings of an entry with the loss `name`."""
    return _module(name).Config


def loss_class(name: str) -> Any:
    """The class of the loss `name`, a FeatureLoss."""
    return _module(name).Loss


def _module(name: str) -> Any:
    return importlib.import_module(f"{__name__}.{name}")


if TYPE_CHECKING:
    AnyEntry = FeatureConfig
else:
    AnyEntry = Annotated[reduce(or_, map(config_class, names())), Field(discriminator="loss")]
