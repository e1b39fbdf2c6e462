"""Feature losses give the values and gradients of other projects' own code (tests/tools/grid.py)."""

from collections.abc import Iterator
from typing import Any

import grid
import pytest
import torch
from grid_features import parameters
from torch import Tensor

from kd_methods import feature_losses
from kd_methods.feature_losses import Batch, FeatureLoss, ofd

every_dtype = pytest.mark.parametrize("dtype", grid.DTYPES, ids=str)


def places(case: str, key: str) -> list[int]:
    """The stages of a key: `.../stage1`, `.../last_stage...` or `.../all_stages...`."""
    stages = [0, 1] if case.startswith("tokens") else [0, 1, 2]
    part = key.rpartition("/")[2]
    if part.startswith("stage"):
        return [int(part.removeprefix("stage"))]
    return stages[-1:] if part.startswith("last") or key == "ickd/last_stage" else stages


def names(case: str, key: str, layers: list[int]) -> tuple[list[str], list[str]]:
    """The names of the student's and of teacher 0's features."""
    if "embeddings" in key:
        return ["emb_s"], ["emb_t"]
    kind = "tokens" if case.startswith("tokens") else "preact" if key.startswith("ofd") else "feat"
    return [f"{kind}_s{layer}" for layer in layers], [f"{kind}_t0_{layer}" for layer in layers]


SETTINGS = {
    "at/p2/": {"p": 2.0}, "at/p4/": {"p": 4.0}, "at/paper": {"form": "paper"},
    "fitnet/plain1x1/": {"regressor": "plain"}, "fitnet/conv_bn_relu/": {"regressor": "conv_bn_relu"},
    "sp/last_stage_all_tokens": {"prefix_tokens": True},
    "rkd/distance_only": {"distance": 1.0, "angle": 0.0}, "rkd/angle_only": {"distance": 0.0, "angle": 1.0},
    "rkd/d25_a50": {"distance": 25.0, "angle": 50.0}, "cc/": {"dim": 8},
}  # fmt: skip


def build(name: str, key: str, student: list[Tensor], teacher: list[Tensor]) -> FeatureLoss:
    settings: dict[str, Any] = next((given for start, given in SETTINGS.items() if key.startswith(start)), {})
    layers = list(range(len(student)))
    config = feature_losses.config_class(name)(student=layers, teacher=layers, **settings)
    shapes = [[tuple(values.shape[1:]) for values in features] for features in (student, teacher)]
    loss: FeatureLoss = feature_losses.loss_class(name)(config, *shapes)
    return loss.to(student[0].dtype)


def evaluate(name: str, case: str, key: str, inputs: dict[str, Tensor]) -> Tensor:
    """The loss on the inputs of a case, as a function of them, parameters included."""
    layers = places(case, key)
    student, teacher = ([inputs[one] for one in group] for group in names(case, key, layers))
    loss = build(name, key, student, teacher)
    own = dict(loss.named_parameters())
    given = [inputs[one] for one in parameters(name, key, layers)]
    assert [value.shape for value in given] == [value.shape for value in own.values()]
    if name == "ofd":
        loss.use_norms([(inputs[f"ofd_teacher_bn_w{layer}"], inputs[f"ofd_teacher_bn_b{layer}"]) for layer in layers])
    batch = Batch(inputs["labels"], inputs["logits_s"], inputs["logits_t"][0], 1.0)
    kept = loss.keep(tuple(teacher))
    values = torch.func.functional_call(loss, dict(zip(own, given, strict=True)), (tuple(student), kept, batch))
    assert values.shape == (() if loss.of_batch else inputs["labels"].shape)
    return values.mean()


def covered() -> Iterator[tuple[str, str, str]]:
    """(loss, case, key) of every key of the losses that are tested here."""
    for name in ("fitnet", "at", "nst", "sp", "pkt", "rkd", "cc", "vid", "ickd"):
        yield from ((name, *pair) for pair in grid.pairs(name))
    yield from (("ofd", *pair) for pair in grid.pairs("ofd/all_stages"))
    yield from (("mse", *pair) for pair in grid.pairs("timm/feature_mse"))


@every_dtype
@pytest.mark.parametrize(("name", "case", "key"), list(covered()))
def test_values_and_gradients(name: str, case: str, key: str, dtype: torch.dtype) -> None:
    grid.check(case, key, lambda inputs: evaluate(name, case, key, inputs), dtype)


@every_dtype
@pytest.mark.parametrize(("case", "key"), grid.pairs("ofd/margin_stage"))
def test_margins_of_ofd(case: str, key: str, dtype: torch.dtype) -> None:
    layer = key[-1]

    def margin(inputs: dict[str, Tensor]) -> Tensor:
        return ofd.margin(inputs[f"ofd_teacher_bn_w{layer}"], inputs[f"ofd_teacher_bn_b{layer}"])

    grid.check(case, key, margin, dtype)
