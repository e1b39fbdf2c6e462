"""Every method with every combination of its choices; a new file in kd_methods needs no change here."""

import itertools
import json
from typing import Any, Literal, get_args, get_origin

import pytest
import torch

import kd_methods
from kd_methods import KDMethod, StudentOutput, TeacherOutputs, logit_losses

FIXED = "best", "covariance", "fixed"  # weights that belong to a teacher, whatever it says
RANDOM = "random"  # other weights at every step
SCOPED = [  # every method, with each of its scopes
    (name, scope)
    for name in kd_methods.names()
    for scope in (("batch", "sample") if "scope" in kd_methods.config_class(name).model_fields else (None,))
]


def method_for(config: dict[str, Any], num_teachers: int, **more: Any) -> KDMethod:
    """The method with what it needs to know of so many teachers: given weights, and errors on validation images.

    Of the errors of teacher k, k + 1 are its own and one is everybody's.
    """
    if config["type"] == "fixed":
        config = {"weights": [float(number) for number in range(1, num_teachers + 1)], **config}
    errors = torch.block_diag(*(torch.ones(1, number + 1) for number in range(num_teachers)))
    return kd_methods.build(config, teacher_errors=torch.cat([errors, torch.ones(num_teachers, 1)], 1), **more)


def outputs(
    method: KDMethod, student: torch.Tensor, teachers: torch.Tensor | None
) -> tuple[StudentOutput, TeacherOutputs]:
    """Logits [B,C] and [K,B,C] as the method takes them, with a second view made of them where it needs one."""
    own, others = StudentOutput(student), TeacherOutputs(teachers if method.requires_teachers else None)
    if method.config.second_view != "required":
        return own, others
    return with_second(own, others)


def with_second(student: StudentOutput, teachers: TeacherOutputs) -> tuple[StudentOutput, TeacherOutputs]:
    """Both with a second view: other logits, which come from the first and have no gradient."""
    second = None if teachers.logits is None else 0.5 * teachers.logits.flip(-1)
    return student._replace(second=student.logits.detach().flip(-1)), teachers._replace(second=second)


def products(choices: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]

TURNED_ON = (
    {"standardize": True}, {"norm_temperature": True}, {"entropy_weight": True}, {"correct_labels": "swap"},
    {"correct_labels": "raise"},
)  # fmt: skip
SWITCHES = {key for switch in TURNED_ON for key in switch}
WHOLE_BATCH = {"dist", "mlkd", "skd"}  # losses with a term of the whole batch, which sees that of one process
GROWING = {"mlkd", "skd"}  # those whose term grows with the batch
ONE_VIEW = [name for name in kd_methods.losses() if logit_losses.config_class(name).second_view != "required"]


def variants(name: str) -> list[dict[str, Any]]:
    """Every combination of a method's own choices; every logit loss and every switch with one of these; and each of its
    own switches turned off."""
    fields = kd_methods.config_class(name).model_fields
    choices = {
        key: get_args(field.annotation)
        for key, field in fields.items()
        if get_origin(field.annotation) is Literal and key not in {"loss", *SWITCHES}
    }
    own = products(choices)
    of_logits = [{"loss": loss} for loss in kd_methods.losses() if loss != "kd"] + [*TURNED_ON]
    combined = [{**one, **other} for one, other in zip(itertools.cycle(own), of_logits, strict=False)]
    switches = [key for key, field in fields.items() if field.default is True]
    scopes = [{"scope": scope} for scope in choices.get("scope", ())] or [{}]
    off = [{"type": name, key: False, **scope} for key in switches for scope in scopes]
    return own + off + (combined if "loss" in fields else [])


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
