"""Every method with every combination of its choices; a new file in kd_methods needs no change here."""

import itertools
import json
from typing import Any, Literal, get_args, get_origin

import pytest

import kd_methods

TURNED_ON = (
    {"standardize": True}, {"norm_temperature": True}, {"entropy_weight": True}, {"correct_labels": "swap"},
    {"correct_labels": "raise"},
)  # fmt: skip
SWITCHES = {key for switch in TURNED_ON for key in switch}
WHOLE_BATCH = {"dist", "mlkd", "skd"}  # losses with a term of the whole batch, which sees that of one process
GROWING = {"mlkd", "skd"}  # those whose term grows with the batch


def variants(name: str) -> list[dict[str, Any]]:
    """Every combination of a method's own choices; every logit loss and every switch with one of these; and each of its
    own switches turned off."""
    fields = kd_methods.config_class(name).model_fields
    choices = {
        key: get_args(field.annotation)
        for key, field in fields.items()
        if get_origin(field.annotation) is Literal and key not in {"loss", *SWITCHES}
    }
    own = [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
    of_logits = [{"loss": loss} for loss in kd_methods.losses() if loss != "kd"] + [*TURNED_ON]
    combined = [{**one, **other} for one, other in zip(itertools.cycle(own), of_logits, strict=False)]
    switches = [key for key, field in fields.items() if field.default is True]
    scopes = [{"scope": scope} for scope in choices.get("scope", ())] or [{}]
    off = [{"type": name, key: False, **scope} for key in switches for scope in scopes]
    return own + off + (combined if "loss" in fields else [])


VARIANTS = [variant for name in kd_methods.names() for variant in variants(name)]
WITH_TEACHERS = [v for v in VARIANTS if kd_methods.build(v).requires_teachers]
every_variant = pytest.mark.parametrize("config", VARIANTS, ids=json.dumps)
every_teacher_variant = pytest.mark.parametrize("config", WITH_TEACHERS, ids=json.dumps)
