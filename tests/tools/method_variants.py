"""Every method with every combination of its choices; a new file in kd_methods needs no change here."""

import itertools
import json
from typing import Any, Literal, get_args, get_origin

import pytest
import torch

import kd_methods
from kd_methods import KDMethod
from kd_methods._weighted import WeightedConfig

FIXED = "best", "covariance", "fixed"  # weights that belong to a teacher, whatever it says
RANDOM = "random"  # other weights at every step


def method_for(config: dict[str, Any], num_teachers: int, **more: Any) -> KDMethod:
    """The method with what it needs to know of so many teachers: given weights, and errors on validation images.

    Of the errors of teacher k, k + 1 are its own and one is everybody's.
    """
    if config["type"] == "fixed":
        config = {"weights": [float(number) for number in range(1, num_teachers + 1)], **config}
    errors = torch.block_diag(*(torch.ones(1, number + 1) for number in range(num_teachers)))
    return kd_methods.build(config, teacher_errors=torch.cat([errors, torch.ones(num_teachers, 1)], 1), **more)


def products(choices: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def variants(name: str) -> list[dict[str, Any]]:
    """Every combination of a method's choices and `standardize`, and each other switch turned off.

    Of weightings: every logit loss, standardized or not, and every combination of the other choices.
    """
    cls = kd_methods.config_class(name)
    fields = cls.model_fields
    choices = {
        key: get_args(f.annotation) for key, f in fields.items() if get_origin(f.annotation) is Literal
    }
    if "standardize" in fields:
        choices["standardize"] = (False, True)
    if issubclass(cls, WeightedConfig):
        of_loss = {"loss", "standardize"}
        combined = products({key: values for key, values in choices.items() if key in {"type", *of_loss}})
        combined += products({key: values for key, values in choices.items() if key not in of_loss})
    else:
        combined = products(choices)
    switches = [key for key, field in fields.items() if field.default is True]
    scopes = [{"scope": scope} for scope in choices.get("scope", ())] or [{}]
    return combined + [{"type": name, key: False, **scope} for key in switches for scope in scopes]


MORE: list[dict[str, Any]] = [
    {"type": "aekd", "aekd": {"gradient": "flat"}},
    {"type": "aekd", "aekd": {"cap": 0.3, "normalized": True}},
    {"type": "best", "teacher": 0},
    {"type": "covariance", "unconstrained": True, "shrinkage": 0.5},
]
VARIANTS = [variant for name in kd_methods.names() for variant in variants(name)] + MORE
WITH_TEACHERS = [v for v in VARIANTS if kd_methods.build(v).requires_teachers]
every_variant = pytest.mark.parametrize("config", VARIANTS, ids=json.dumps)
every_teacher_variant = pytest.mark.parametrize("config", WITH_TEACHERS, ids=json.dumps)
