"""The losses reproduce values that other code bases compute on the same inputs (tests/golden)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import kd_methods
from kd_methods import StudentOutput, TeacherOutputs
from kd_methods._weights import label_confidence_weights
from kd_methods.logit_losses import dist, dkd, kd

GOLDEN = Path(__file__).parents[1] / "golden"
VALUES = json.loads((GOLDEN / "losses.json").read_text())
CASES = sorted(VALUES)
DYNAMIC = {"type": "dynamic", "temperature": 4.0}
METHODS = {
    "ca_weighted/T4": {"type": "ca_weighted", "temperature": 4.0},
    "dynamic/T4_gamma2_theta0.3_alpha0.5": {**DYNAMIC, "gamma": 2.0, "threshold": 0.3, "alpha": 0.5},
    "dynamic/T4_gamma10_theta0.5_alpha1": {**DYNAMIC, "gamma": 10.0, "threshold": 0.5, "alpha": 1.0},
    "dynamic/T8_soft_only": {"type": "dynamic", "temperature": 8.0, "use_hard_loss": False},
    "confidence/T4": {"type": "confidence", "temperature": 4.0},
    "confidence/T16": {"type": "confidence", "temperature": 16.0},
    "confidence/T4_soft_only": {"type": "confidence", "temperature": 4.0, "use_hard_loss": False},
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor, Tensor, dict[str, Any], Tensor]:
    """Student logits [B,C], teacher logits [K,B,C], labels [B], the golden values, weights [K,B]."""
    with np.load(GOLDEN / "losses.npz", allow_pickle=False) as arrays:
        student, teachers, labels, weights = (
            torch.from_numpy(arrays[f"{request.param}/{name}"])
            for name in ("logits_s", "logits_t", "labels", "ca_weights")
        )
    return student, teachers, labels, VALUES[request.param], weights.T


def close(actual: Tensor, expected: Any, rtol: float = 1e-5) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected), rtol=rtol, atol=1e-7)


def golden(values: dict[str, Any], prefix: str) -> Any:
    """The one value whose key starts with prefix; the rest of the key is a remark."""
    (key,) = [key for key in values if key.split(" ")[0] == prefix]
    return values[key]


@pytest.mark.parametrize("key", METHODS)
def test_method(case: tuple, key: str) -> None:
    student, teachers, labels, values, _ = case
    loss, metrics = kd_methods.build(METHODS[key])(StudentOutput(student), TeacherOutputs(teachers), labels)
    expected = dict(values[key])
    close(loss, expected.pop("total"))
    expected.pop("loss_total")
    for name, value in expected.items():
        close(metrics[name], value)


def test_original_defaults_are_the_defaults(case: tuple) -> None:
    student, teachers, labels, values, _ = case
    for name in ("ca_weighted", "confidence"):
        loss, _ = kd_methods.build({"type": name})(StudentOutput(student), TeacherOutputs(teachers), labels)
        close(loss, values[f"{name}/T4"]["total"])


def test_label_confidence_weights(case: tuple) -> None:
    _, teachers, labels, _, weights = case
    torch.testing.assert_close(label_confidence_weights(teachers, labels), weights, rtol=1e-5, atol=1e-7)


def test_sample_scope_is_the_papers_weighting(case: tuple) -> None:
    student, teachers, labels, values, _ = case
    if len(teachers) == 1:
        pytest.skip("no golden value for one teacher")
    method = kd_methods.build({"type": "ca_weighted", "scope": "sample"})
    _, metrics = method(StudentOutput(student), TeacherOutputs(teachers), labels)
    (key,) = [key for key in values if key.startswith("ca_mkd/T4") and "summing to one" in key]
    close(metrics["loss_kl"], values[key])


@pytest.mark.parametrize("temperature", [1, 4])
def test_kd(case: tuple, temperature: int) -> None:
    student, teachers, labels, values, _ = case
    actual = kd.loss(student, teachers, labels, float(temperature), 1.0, kd.Config()).mean(1)
    close(actual[0], golden(values, f"kd/T{temperature}"))
    if temperature == 4:
        close(actual, golden(values, "kl_per_teacher/T4"))


def test_average(case: tuple) -> None:
    student, teachers, labels, values, _ = case
    _, metrics = kd_methods.build({"type": "average"})(
        StudentOutput(student), TeacherOutputs(teachers), labels
    )
    close(metrics["loss_kl"], golden(values, "aver_mkd/T4"))


@pytest.mark.parametrize("beta", [2, 8])
def test_dkd(case: tuple, beta: int) -> None:
    student, teachers, labels, values, _ = case
    params = dkd.Config(alpha=1.0, beta=float(beta), warmup=20 / 240)
    actual = dkd.loss(student, teachers, labels, 4.0, 1.0, params).mean(1)[0]
    close(actual, golden(values, f"dkd/alpha1_beta{beta}_T4"), rtol=5e-5)


@pytest.mark.parametrize("temperature", [1, 4])
def test_dist(case: tuple, temperature: int) -> None:
    student, teachers, labels, values, _ = case
    actual = dist.loss(student, teachers, labels, float(temperature), 1.0, dist.Config()).mean(1)[0]
    close(actual, golden(values, f"dist/beta1_gamma1_tau{temperature}"))


def test_standardized_kd(case: tuple) -> None:
    student, teachers, labels, values, _ = case
    method = kd_methods.build({"type": "average", "temperature": 2.0, "standardize": True})
    _, metrics = method(StudentOutput(student), TeacherOutputs(teachers[:1]), labels)
    close(metrics["loss_kl"] / 2**2, golden(values, "logit_std_kd/T2"))
