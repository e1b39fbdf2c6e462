"""Settings that change over training: values, bounds, what may change, and that each call uses those of its time."""

import json
import math
import pickle
from collections.abc import Iterator
from typing import Any

import feature_cases
import pytest
import torch
from method_variants import RANDOM, method_for, outputs
from pydantic import BaseModel

import kd_methods
from kd_core.config import Layer, resolve
from kd_core.errors import UserError
from kd_methods._schedule import Schedule

B, C, K = 5, 4, 3
CONSTANT = {("shrinkage",), ("dkd", "warmup"), ("rld", "warmup"), ("abkd", "alpha"), ("abkd", "beta")}
NAMES = [name for name in kd_methods.names() if name != kd_methods.LABEL_ONLY]


def floats(cls: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all numbers in the settings of `cls`."""
    for name, field in cls.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from floats(field.annotation, (*path, name))
        elif field.annotation is float:
            yield (*path, name)


def setting(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    for name in reversed(path):
        value = {name: value}
    return value


def settings_with(name: str, path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """Settings of the method `name` in which the value at `path` counts."""
    loss = {"loss": path[0]} if path[0] in kd_methods.losses() else {}
    return {"type": name, **loss, **setting(path, value)}


def loss_of(config: dict[str, Any], progress: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    student, teachers = torch.randn(B, C, generator=generator), 3 * torch.randn(K, B, C, generator=generator)
    method = method_for(config, K)
    return method(*outputs(method, student, teachers), torch.arange(B) % C, progress)[0]


ALL = [(name, path) for name in NAMES for path in floats(kd_methods.config_class(name))]
OWN = [pair for pair in ALL if pair[0] == "average" or pair[1][0] not in kd_methods.losses()]


def test_shapes() -> None:
    linear, cosine = Schedule(4.0, 1.0), Schedule(4.0, 1.0, "cosine")
    assert [linear.at(p) for p in (-1, 0, 0.25, 0.5, 1, 2)] == [4, 4, 3.25, 2.5, 1, 1]
    assert [cosine.at(p) for p in (0, 1)] == [4, 1]
    assert cosine.at(0.25) == pytest.approx(4 - 3 * (1 - math.cos(math.pi / 4)) / 2)
    assert Schedule(0.1, 0.3).at(1.0) == 0.3, "the ends exactly"


@pytest.mark.parametrize(("name", "path"), OWN, ids=str)
def test_every_number_follows_its_schedule_or_says_that_it_cannot(name: str, path: tuple[str, ...]) -> None:
    given = settings_with(name, path, {"from": 0.5, "to": 0.875})
    if path in CONSTANT:
        with pytest.raises(ValueError, match=rf"kd\.{'.'.join(path)}: .*cannot change over training"):
            kd_methods.build(given)
        return
    values = []
    for progress, number in ((0.0, 0.5), (0.25, 0.59375), (1.0, 0.875)):
        values.append(loss_of(given, progress))
        assert torch.equal(values[-1], loss_of(settings_with(name, path, number), progress))
    assert name == RANDOM or not torch.equal(values[0], values[2])


def test_one_method_goes_back_and_forth() -> None:
    method = kd_methods.build({"type": "average", "temperature": {"from": 1.0, "to": 5.0}, "dkd": {"beta": 2.0}})
    student, teachers, labels = torch.randn(B, C), torch.randn(K, B, C), torch.arange(B) % C
    given = kd_methods.StudentOutput(student), kd_methods.TeacherOutputs(teachers)
    for progress, temperature in ((0.0, 1.0), (1.0, 5.0), (0.5, 3.0), (0.0, 1.0)):
        expected, _ = kd_methods.build({"type": "average", "temperature": temperature})(*given, labels, progress)
        assert torch.equal(method(*given, labels, progress)[0], expected)
    assert method(*given, labels)[0] == kd_methods.build({"type": "average", "temperature": 5.0})(*given, labels)[0]


def test_weights_of_feature_losses() -> None:
    entry = {"loss": "mse", "student": [5], "teacher": [5], "weight": {"from": 1.0, "to": 3.0, "shape": "cosine"}}
    for progress, factor in ((0.0, 1.0), (0.5, 2.0), (1.0, 3.0)):
        sample = feature_cases.case(entry)
        sample.progress = progress
        _, metrics = sample.call()
        torch.testing.assert_close(metrics["loss_features"], factor * metrics["feature/mse"])
    assert "1 to 3 (cosine) x" in sample.method.describe(3)


def test_records_and_words() -> None:
    given = {"type": "dynamic", "alpha": {"from": 0.25, "to": 0.75}, "loss": "crld"}
    given["crld"] = {"within_weight": {"from": 2, "to": 1, "shape": "cosine"}}
    config = kd_methods.build(given).config
    assert config.is_scheduled and config.alpha == 0.25 and config.at(0.5).alpha == 0.5
    recorded = config.model_dump(mode="json")
    assert recorded["alpha"] == {"from": 0.25, "to": 0.75, "shape": "linear"}
    assert recorded["crld"]["within_weight"] == {"from": 2.0, "to": 1.0, "shape": "cosine"}
    assert json.loads(json.dumps(recorded)) == recorded
    again = type(config).model_validate(recorded)
    assert again == config == pickle.loads(pickle.dumps(config)) != type(config).model_validate({"alpha": 0.25})
    assert "0.25 to 0.75 (linear) x cross-entropy" in kd_methods.build(given).describe(2)
    assert "0.75 to 0.25 (linear) x cross-entropy" in kd_methods.build(given).describe(1)
    # Of a loss that is not in use, with the default as its start: it was given, so it is recorded.
    idle = kd_methods.build({"type": "average", "skd": {"ridge": {"from": 0.1, "to": 0.2}}}).config
    assert idle.model_dump()["skd"] == {"ridge": {"from": 0.1, "to": 0.2, "shape": "linear"}}


def test_plain_numbers_are_recorded_as_before() -> None:
    config = kd_methods.build({"type": "average"}).config
    assert not config.is_scheduled and config.at(0.5) is config
    assert list(config.model_dump()) == [
        "type", "temperature", "loss", "standardize", "dist", "dkd", "hard_weight", "soft_weight", "average_of",
    ]  # fmt: skip


@pytest.mark.parametrize(("given", "wrong"), [
    ({"temperature": {"from": 4, "to": -1}}, r"kd\.temperature: -1 is wrong: Input should be greater than 0"),
    ({"temperature": {"from": 0, "to": 1}}, r"kd\.temperature: 0 is wrong: Input should be greater than 0"),
    ({"temperature": {"from": 4, "to": float("nan")}}, r"kd\.temperature: nan is wrong: Input should be a finite"),
    ({"temperature": {"from": 4}}, r"kd\.temperature: .* a schedule is \{from: number, to: number"),
    ({"temperature": {"from": 4, "to": 1, "by": 2}}, r"kd\.temperature: .* a schedule is \{from: number, to"),
    ({"temperature": {"from": "four", "to": 1}}, r"kd\.temperature: 'four' is wrong: Input should be a valid number"),
    ({"temperature": {"from": 4, "to": 1, "shape": "step"}}, r"kd\.temperature: .* shape 'step' is not known"),
    ({"standardize": {"from": 0, "to": 1}}, r"kd\.standardize: .* cannot change over training"),
    ({"mlkd": {"temperatures": {"from": 1, "to": 2}}}, r"kd\.mlkd\.temperatures: .* cannot change"),
    ({"hard_weight": 0.0, "soft_weight": {"from": 1, "to": 0}}, "kd: hard_weight and soft_weight are both 0"),
    ({"loss": "ttm", "temperature": {"from": 4, "to": 1}}, "kd: temperature: changes .* no effect beside loss 'ttm'"),
    ({"teacher_temperatures": [1, 2], "temperature": {"from": 4, "to": 1}}, "no effect beside teacher_temperatures"),
    ({"temprature": {"from": 4, "to": 1}}, r"kd\.temprature: unknown key, did you mean 'temperature'"),
    ({"features": [{"loss": "at", "p": {"from": 1, "to": 2}}]}, r"kd\.features\[0\]\.p: .* cannot change"),
    ({"features": [{"loss": "at", "weight": {"from": 1, "to": -2}}]}, r"kd\.features\[0\]\.weight: -2 is wrong"),
    ({"features": [{"loss": "att", "weight": {"from": 1, "to": 2}}]}, r"kd\.features\[0\]\.loss: 'att' is not a"),
])  # fmt: skip
def test_what_is_wrong_is_named(given: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        kd_methods.build({"type": "average", **given})


def test_files_and_the_command_line() -> None:
    def kd(*layers: dict[str, Any]) -> Any:
        teachers = {"teachers": [{"model": "resnet18", "weights": "a.pt"}]}
        return resolve([Layer("a.yaml", teachers), *(Layer("b.yaml", {"kd": layer}) for layer in layers)]).config.kd

    schedule = {"temperature": {"from": 4, "to": 1}}
    assert kd({"type": "average"}, schedule).at(1.0).temperature == 1.0
    assert not kd({"type": "average", **schedule}, {"temperature": 2.0}).is_scheduled
    with pytest.raises(UserError, match=r"b\.yaml: kd\.temperature: is 0: input should be greater than 0"):
        kd({"type": "average", "temperature": {"from": 4, "to": 0}})
    with pytest.raises(UserError, match=r"b\.yaml: kd\.gamma: is .* a schedule is \{from"):
        kd({"type": "dynamic", "gamma": {"to": 0}})
