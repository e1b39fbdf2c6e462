"""What every method promises of its arithmetic, and the metrics; a new file in kd_methods needs no edit here.

Bounds follow from the formats: u is the unit roundoff, half the distance from 1 to the next larger number.
"""

import copy
import functools
import itertools
import json
import re
from typing import Any

import pytest
import torch
from method_variants import RANDOM, every_variant, method_for, outputs
from pydantic import BaseModel
from torch import Tensor

import kd_methods
from kd_methods import KDMethod

UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
LARGE = 1e4
SHAPES = [(1, 1, 2), (1, 6, 10), (10, 1, 10), (10, 6, 2)]  # teachers, samples, classes: each pair of sizes once


def inputs(num_teachers: int, batch: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Student [B,C] and teachers [K,B,C], as a trained network gives them, and labels [B], never class 0."""
    generator = torch.Generator().manual_seed(0)
    student = 2 * torch.randn(batch, classes, generator=generator)
    teachers = 2 * torch.randn(num_teachers, batch, classes, generator=generator)
    return student, teachers, torch.randint(1, classes, (batch,), generator=generator)


def built(config: str, *sizes: Any) -> KDMethod:
    """The method; of the one whose weights change from step to step, the first step."""
    method = made(config, *sizes)
    return copy.deepcopy(method) if json.loads(config)["type"] == RANDOM else method


@functools.cache
def made(config: str, num_teachers: int, classes: int, dtype: torch.dtype) -> KDMethod:
    torch.manual_seed(0)
    return method_for(json.loads(config), num_teachers, num_classes=classes).to(dtype)


def measure(
    config: dict[str, Any], student: Tensor, teachers: Tensor, labels: Tensor, progress: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Loss [], and the gradient of the student's logits [B,C]; all that the method gives is checked to be finite."""
    dtype = torch.promote_types(student.dtype, torch.float32)
    method = built(json.dumps(config), len(teachers), student.shape[1], dtype)
    student = student.detach().requires_grad_()
    loss, metrics = method(*outputs(method, student, teachers), labels, progress)
    gradient, *own = torch.autograd.grad(loss, [student, *method.parameters()], materialize_grads=True)
    assert gradient.isfinite().all() and all(value.isfinite().all() for value in own), "a gradient"
    everything = {"the loss": loss, **metrics}
    finite = torch.stack([value.detach().double() for value in everything.values()]).isfinite()
    assert finite.all(), [name for name, good in zip(everything, finite, strict=True) if not good]
    return loss.detach(), gradient


ONE_BY_ONE = ("aekd", RANDOM)  # torch.func.grad nests no gradients, and changes no count of steps


def measure_all(config: dict[str, Any], students: Tensor, teachers: Tensor, labels: Tensor) -> Tensor:
    """`measure` for many inputs at once, students [N,B,C] and teachers [N,K,B,C]: gradients [N,B,C]."""
    method = built(json.dumps(config), teachers.shape[1], students.shape[-1], torch.float32)
    if config["type"] in ONE_BY_ONE:
        return torch.stack([measure(config, *pair, labels)[1] for pair in zip(students, teachers, strict=True)])

    def loss_of(student: Tensor, taught: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = method(*outputs(method, student, taught), labels, 1.0)
        return loss, {"the loss": loss, **metrics}

    gradients, everything = torch.vmap(torch.func.grad(loss_of, has_aux=True))(students, teachers)
    assert gradients.isfinite().all(), "a gradient"
    for name, values in everything.items():
        assert values.isfinite().all(), name
    return gradients


def assert_within(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], bound: float) -> None:
    """Loss and gradient differ by at most `bound`, relative to one plus their size; gradients are per sample."""
    for name, a, b, scale in zip(("loss", "gradient"), actual, expected, (1, len(actual[1])), strict=True):
        error = scale * (a.double() - b.double()).abs().max() / (1 + scale * b.double().abs().max())
        assert error <= bound, f"{name}: {error:.2g} > {bound:.2g}"


# ------------------------------------------------------------------------------------------------------ precision


@every_variant
@pytest.mark.parametrize("dtype", UNIT, ids=str)
def test_arithmetic_is_exact_to_fp32_whatever_the_logits_format(config: dict[str, Any], dtype: torch.dtype) -> None:
    """Against fp64 of the same rounded logits, so that arithmetic alone counts: 2^7 roundings of fp32."""
    for shape in SHAPES:
        student, teachers, labels = inputs(*shape)
        student, teachers = student.to(dtype), teachers.to(dtype)
        loss, gradient = measure(config, student, teachers, labels)
        exact = measure(config, student.double(), teachers.double(), labels)
        assert loss.dtype == torch.float32 and gradient.dtype == dtype
        full = measure(config, student.float(), teachers.float(), labels)
        assert torch.equal(loss, full[0])
        assert torch.equal(gradient, full[1].to(dtype))
        assert_within(full, exact, 2**7 * UNIT[torch.float32])


@every_variant
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_formats_agree_to_their_own_precision(config: dict[str, Any], dtype: torch.dtype) -> None:
    """Logits rounded to a format against those of fp32, of which the rounding is all that differs: 2^4 roundings."""
    for shape in SHAPES:
        student, teachers, labels = inputs(*shape)
        rounded = measure(config, student.to(dtype), teachers.to(dtype), labels)
        assert_within(rounded, measure(config, student, teachers, labels), 2**4 * UNIT[dtype])


# ------------------------------------------------------------------------------------------------- extreme logits


def ordinary(logits: Tensor) -> Tensor:
    return logits


def largest(logits: Tensor) -> Tensor:
    """Each 1e4 or -1e4, which makes every decision certain, right or wrong."""
    return LARGE * logits.sign()


def hundredfold(logits: Tensor) -> Tensor:
    """Nearly certain decisions: probabilities that fp32 can and cannot hold, side by side."""
    return 100 * logits


def constant(logits: Tensor) -> Tensor:
    """All 1e4 for one image, all -1e4 for the next."""
    signs = 1 - 2 * (torch.arange(logits.shape[-2]) % 2)
    return (LARGE * signs.to(logits)).unsqueeze(-1).expand_as(logits)


def zero(logits: Tensor) -> Tensor:
    return torch.zeros_like(logits)


def tiny(logits: Tensor) -> Tensor:
    """As a network gives them whose last layer is about zero."""
    return 1e-3 * logits


def alike(logits: Tensor) -> Tensor:
    """All teachers, or all students of the batch, say the same."""
    return logits[:1].expand_as(logits)


KINDS = (ordinary, hundredfold, largest, constant, zero, tiny, alike)


@every_variant
@pytest.mark.parametrize("dtype", UNIT, ids=str)
def test_extreme_logits_have_finite_losses_and_gradients(config: dict[str, Any], dtype: torch.dtype) -> None:
    """1e4, constant and equal logits of student, teachers or both; fp16 ends at 65504.

    A gradient of 1e4 is far above the losses' own scale, and far below noise divided by noise. `norm_temperature`
    multiplies it by the teacher's variance over the student's deviation: finite in fp32, too large for fp16.
    """
    scaled = config.get("norm_temperature", False)
    too_large = (hundredfold, largest) if scaled and dtype != torch.float32 else ()
    of_any_teachers = [kind for kind in KINDS if kind not in too_large]
    for shape in SHAPES:
        student, teachers, labels = inputs(*shape)
        pairs = list(itertools.product(KINDS, of_any_teachers))
        if config["type"] in ONE_BY_ONE and dtype != torch.float32:  # these compute in fp32, too: each kind once a side
            some = set(zip(KINDS, (*KINDS[1:], KINDS[0]), strict=True))
            pairs = [pair for pair in pairs if pair in some]
        students = torch.stack([of_student(student) for of_student, _ in pairs]).to(dtype)
        taught = torch.stack([of_teachers(teachers) for _, of_teachers in pairs]).to(dtype)
        gradients = measure_all(config, students, taught, labels)
        for pair, gradient in zip(pairs, gradients, strict=True):
            assert scaled or gradient.abs().max() < LARGE, (shape, pair)


@every_variant
def test_certain_logits_give_the_loss_of_fp64(config: dict[str, Any]) -> None:
    """Log-probabilities are as large as 2e4 there, and rounded accordingly."""
    if config.get("norm_temperature"):
        pytest.skip("multiplies a divergence, and its rounding, by the variance of the logits, 1e8 here")
    for shape, pair in itertools.product(SHAPES, [(largest, ordinary), (ordinary, largest), (largest, largest)]):
        student, teachers, labels = inputs(*shape)
        student, teachers = pair[0](student), pair[1](teachers)
        exact = measure(config, student.double(), teachers.double(), labels)
        assert_within(measure(config, student, teachers, labels), exact, 2 * LARGE * UNIT[torch.float32])


# ------------------------------------------------------------------------------------------- extreme hyperparameters


def limits(cls: type[BaseModel]) -> list[dict[str, Any]]:
    """Each number of a config, and of the configs within it, at the least and the largest that it allows.

    0.01 and 1000 where there is no such limit.
    """
    found = []
    for name, field in cls.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += [{name: inner} for inner in limits(field.annotation)]
        elif field.annotation in (int, float):
            lowest = [mark.ge for mark in field.metadata if hasattr(mark, "ge")] or [0.01]
            highest = [mark.le for mark in field.metadata if hasattr(mark, "le")] or [1000]
            found += [{name: float(value)} for value in lowest + highest]
    return found


@every_variant
def test_hyperparameters_at_their_limits_stay_finite(config: dict[str, Any]) -> None:
    for limit in limits(kd_methods.config_class(config["type"])):
        extreme = {**config, **limit}
        used = config.get("loss"), config["type"]
        if any(isinstance(value, dict) and key not in used for key, value in limit.items()):
            continue  # of a logit loss that is not used here
        try:
            method_for(extreme, 3)
        except ValueError as error:
            assert re.search("leaves no loss|has no temperature", str(error))
            continue
        for progress, of_teachers in ((0.0, ordinary), (1.0, largest), (1.0, constant)):
            student, teachers, labels = inputs(3, 4, 10)
            measure(extreme, student, of_teachers(teachers), labels, progress)
