"""Every method with every combination of its choices; a new file in kd_methods needs no change here."""

import itertools
import json
from typing import Any, Literal, get_args, get_origin

import pytest

import kd_methods


def variants(name: str) -> list[dict[str, Any]]:
    """Every combination of a method's choices and `standardize`, and each other switch turned off."""
    fields = kd_methods.config_class(name).model_fields
    choices = {
        key: get_args(f.annotation) for key, f in fields.items() if get_origin(f.annotation) is Literal
    }
    if "standardize" in fields:
        choices["standardize"] = (False, True)
    combined = [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
    switches = [key for key, field in fields.items() if field.default is True]
    scopes = [{"scope": scope} for scope in choices.get("scope", ())] or [{}]
    return combined + [{"type": name, key: False, **scope} for key in switches for scope in scopes]


VARIANTS = [variant for name in kd_methods.names() for variant in variants(name)]
WITH_TEACHERS = [v for v in VARIANTS if kd_methods.build(v).requires_teachers]
every_variant = pytest.mark.parametrize("config", VARIANTS, ids=json.dumps)
every_teacher_variant = pytest.mark.parametrize("config", WITH_TEACHERS, ids=json.dumps)
