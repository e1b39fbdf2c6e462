"""Checkpoints as people save them: which weights are taken, under which names, and what is said about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from kd_core.errors import UserError
from kd_core.models.build import create_model
from kd_core.models.weights import load_strict, read_state_dict

Weights = dict[str, Tensor]


def network() -> nn.Module:
    return create_model("cifar_resnet8", num_classes=10)


@pytest.fixture(scope="module")
def own() -> Weights:
    return network().state_dict()


@pytest.fixture(scope="module")
def other() -> Weights:
    return network().state_dict()


def prefixed(weights: Weights, prefix: str) -> Weights:
    return {prefix + name: tensor for name, tensor in weights.items()}


def loaded(content: Any, folder: Path) -> tuple[nn.Module, list[str]]:
    """A network with the weights of a file that holds `content`, and what was said while reading it."""
    torch.save(content, folder / "w.pth")
    said: list[str] = []
    model = network()
    load_strict(model, read_state_dict(folder / "w.pth", "here", said.append), "here", num_classes=10)
    return model, said


def assert_holds(model: nn.Module, weights: Weights) -> None:
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def averaged(weights: Weights) -> Weights:
    model = network()
    model.load_state_dict(weights)
    return AveragedModel(model).state_dict()


def profiled(weights: Weights) -> Weights:
    """thop adds two counters to every module."""
    modules = {name.rpartition(".")[0] for name in weights} | {""}
    counters = {f"{m}.{c}".lstrip("."): torch.zeros(1) for m in modules for c in ("total_ops", "total_params")}
    return weights | counters


LAYOUTS: dict[str, Callable[[Weights], Any]] = {
    "state dict": lambda w: w,
    "PyTorch's tutorial": lambda w: {"epoch": 5, "model_state_dict": w, "optimizer_state_dict": {}, "loss": 0.3},
    "pycls": lambda w: {"epoch": 1, "model_state": w, "optimizer_state": {"state": {}, "param_groups": []}, "cfg": "x"},
    "kuangliu": lambda w: {"net": w, "acc": 95.1, "epoch": 3},
    "DataParallel": lambda w: {"state_dict": prefixed(w, "module."), "best_prec1": 91.7},
    "fastai": lambda w: {"model": w, "opt": {"state": [], "hypers": [{}]}},
    "nested": lambda w: {"checkpoint": {"model": {"state_dict": w}, "epoch": 3}},
    "AveragedModel": averaged,
    "AveragedModel in a container": lambda w: {"model_ema": averaged(w)},
    "Lightning": lambda w: {
        "state_dict": prefixed(w, "model."),
        "pytorch-lightning_version": "2.1",
        "callbacks": {"Checkpoint": {"best_model_score": torch.tensor(0.9), "best_model_path": "x"}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3, 3)}}, "param_groups": [{"lr": 0.1}]}],
        "hyper_parameters": {"lr": 0.1},
    },
    "Lightning with another attribute": lambda w: {"state_dict": prefixed(w, "backbone_net.")},
    "Lightning around DataParallel": lambda w: {"state_dict": prefixed(w, "model.module.")},
    "DataParallel around Lightning": lambda w: {"state_dict": prefixed(w, "module.model.")},
    "compiled Lightning": lambda w: prefixed(w, "model._orig_mod."),
    "compiled and distributed": lambda w: prefixed(w, "_orig_mod.module."),
    "DataParallel around a stage": lambda w: {k.replace("layer1.", "layer1.module."): v for k, v in w.items()},
    "compiled stage": lambda w: {k.replace("layer1.", "layer1._orig_mod."): v for k, v in w.items()},
    "thop": profiled,
    "thop and DataParallel": lambda w: {"state_dict": prefixed(profiled(w), "module.")},
    "numbers among the weights": lambda w: {**w, "epoch": 3, "name": "x", "best": 0.7, "done": True},
    "an optimizer beside the weights": lambda w: {**w, "optimizer": {"state": {}, "param_groups": []}},
    "NumPy's flags": lambda w: {
        "state_dict": w, "flag": np.bool_(True), "epoch": np.int64(3), "small": np.uint8(1), "half": np.float16(0.5),
        "accuracy": np.float32(0.7), "name": np.str_("run"), "raw": np.bytes_(b"x"),
    },
    "EMA under another name": lambda w: {"ema_state_dict": w, "epoch": 1},
    "an unknown name": lambda w: {"my_classifier": w, "epoch": 1},
    "without batch counters": lambda w: {k: v for k, v in w.items() if not k.endswith("num_batches_tracked")},
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_load(name: str, own: Weights, tmp_path: Path) -> None:
    model, said = loaded(LAYOUTS[name](own), tmp_path)
    if name == "without batch counters":
        own = own | {k: torch.tensor(0) for k in own if k.endswith("num_batches_tracked")}
    assert_holds(model, own)
    expected = {
        "an unknown name": "the weights under 'my_classifier' are taken",
        "an optimizer beside the weights": "the weights at its top level are taken; beside them are 'optimizer'",
    }
    assert said == ([expected[name]] if name in expected else [])


@pytest.mark.parametrize(
    ("taken", "left"),
    [
        ("state_dict_ema", "state_dict"),  # timm's train.py
        ("model_ema", "model"),  # torchvision's references
        ("ema_state_dict", "state_dict"),
        ("ema", "net"),
        ("state_dict", "model"),
        ("student", "teacher"),
        ("net", "criterion"),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_of_several_weights_one_is_chosen_and_printed(
    taken: str, left: str, turned: bool, own: Weights, other: Weights, tmp_path: Path
) -> None:
    held = {left: other, taken: own} if turned else {taken: own, left: other}
    model, said = loaded({"epoch": 3, **held}, tmp_path)
    assert_holds(model, own)
    averaged = "the averaged weights " * ("ema" in taken)
    assert said == [f"{averaged}'{taken}' are taken; the file also holds '{left}'"]


def test_timm_takes_the_same(own: Weights, other: Weights, tmp_path: Path) -> None:
    from timm.models import load_state_dict

    for content in (
        {"state_dict": own, "state_dict_ema": other},
        {"model": own, "model_ema": other},
        {"model": own, "state_dict": other},
        {"state_dict": own, "state_dict_ema": None},
    ):
        torch.save(content, tmp_path / "w.pth")
        ours, timms = read_state_dict(tmp_path / "w.pth", notify=lambda _: None), load_state_dict(tmp_path / "w.pth")
        assert all(torch.equal(ours[name], timms[name]) for name in timms)


def refusal(content: Any, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        loaded(content, folder)
    return str(caught.value).removeprefix("here: ").removeprefix(f"{folder / 'w.pth'}: ")


def test_ambiguous_checkpoints_are_refused(own: Weights, other: Weights, tmp_path: Path) -> None:
    assert refusal({"first": own, "second": other}, tmp_path) == (
        "holds several state dicts ('first', 'second') and does not say which is the network's; save the state dict of "
        "the network alone"
    )
    both = prefixed(own, "student.") | prefixed(other, "teacher.")
    assert refusal({"state_dict": both}, tmp_path) == (
        "the file holds several such networks, under 'student.' and 'teacher.'; save the state dict of one of them "
        "alone"
    )
    beside = prefixed(own, "model.") | {"criterion.weight": torch.ones(10)}
    assert refusal({"state_dict": beside}, tmp_path) == (
        "1 unexpected key (criterion.weight): beside the network, which is under 'model.', the file holds other "
        "modules; save the state dict of the network alone"
    )
    twice = own | prefixed(other, "module.")
    assert refusal(twice, tmp_path) == "holds 'conv1.weight' twice, with and without a wrapper's name before it"


def test_messages_name_the_real_reason(own: Weights, tmp_path: Path) -> None:
    renamed = {name.replace("layer", "stage"): tensor for name, tensor in own.items()}
    assert refusal(renamed, tmp_path).endswith(
        "all shapes are this network's, under other names: its layout is not known here, so rename the keys"
    )
    deeper = create_model("cifar_resnet14", num_classes=10).state_dict()
    assert refusal({"state_dict": prefixed(deeper, "model.")}, tmp_path) == (
        "36 unexpected keys (layer1.1.conv1.weight, layer1.1.bn1.weight, layer1.1.bn1.bias, ...): the weights are for "
        "another architecture"
    )
    headless = {name: tensor for name, tensor in prefixed(own, "model.").items() if "fc" not in name}
    assert refusal({"state_dict": headless}, tmp_path) == (
        "2 missing keys (fc.weight, fc.bias): the weights are for another architecture"
    )
    hundred = create_model("cifar_resnet8", num_classes=100).state_dict()
    assert refusal(prefixed(hundred, "model."), tmp_path) == "the weights have 100 classes, the data has 10"


def test_programs_and_objects_are_refused_by_name(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "w.pt")
    with pytest.raises(UserError, match="w.pt: is a TorchScript program, which is not loaded since it is code"):
        read_state_dict(tmp_path / "w.pt")
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"holds Python objects besides tensors \(torch\.nn\.modules\.linear\.Linear\)"):
        read_state_dict(tmp_path / "w.pt")


def test_a_numpy_scalar_takes_no_more_memory_than_it_holds(tmp_path: Path) -> None:
    class Large:
        def __reduce__(self) -> Any:
            return np.float64(0).__reduce__()[0], (np.dtype("S2000000000"),)

    torch.save({"model": {"w": torch.zeros(2)}, "size": Large()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="damaged, or not a PyTorch file"):
        read_state_dict(tmp_path / "w.pth")
