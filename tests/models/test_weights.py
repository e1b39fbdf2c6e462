"""Reading state dicts from files, and what a strict load says when it refuses."""

import argparse
import os

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from kd_core.errors import UserError
from kd_core.models.build import create_model
from kd_core.models.checkpoint_layouts import CONTAINERS
from kd_core.models.weights import KNOWN_CHECKPOINTS, load_strict, read_state_dict


@pytest.fixture(scope="module")
def state_dict() -> dict[str, torch.Tensor]:
    return create_model("cifar_resnet8", num_classes=100).state_dict()


def assert_same(given: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(given) == list(expected)
    assert all(torch.equal(given[name], expected[name]) for name in expected)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".tar", ".pth.tar", ".bin", ".th", ".ckpt", ".PTH"])
def test_pickled_files(tmp_path, state_dict, suffix):
    torch.save(state_dict, tmp_path / f"weights{suffix}")
    assert_same(read_state_dict(tmp_path / f"weights{suffix}"), state_dict)


def test_safetensors_file(tmp_path, state_dict):
    safetensors.torch.save_file(state_dict, tmp_path / "w.safetensors")
    read = read_state_dict(tmp_path / "w.safetensors")
    assert_same({name: read[name] for name in state_dict}, state_dict)


@pytest.mark.parametrize("key", CONTAINERS)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_containers_and_prefixes(tmp_path, state_dict, key, prefix):
    """With what training scripts store beside: arguments, NumPy scalars, the optimizer."""
    wrapped = {prefix + name: tensor for name, tensor in state_dict.items()}
    beside = {
        "args": argparse.Namespace(lr=0.1, name="run"), "best_acc": np.float64(73.5), "epoch": 240,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
    }  # fmt: skip
    torch.save(beside | {key: wrapped}, tmp_path / "w.pth")
    assert_same(read_state_dict(tmp_path / "w.pth"), state_dict)


class Hostile:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_pickle_is_refused(tmp_path, state_dict):
    mark = tmp_path / "executed"
    torch.save({"state_dict": state_dict, "extra": Hostile(str(mark))}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"^teachers\[0\]\.weights: .*w\.pth: refused, holds Python objects"):
        read_state_dict(tmp_path / "w.pth", "teachers[0].weights")
    assert not mark.exists()
    torch.load(tmp_path / "w.pth", weights_only=False)  # the file would have run it
    assert mark.exists()


def test_a_whole_pickled_model_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"refused, holds Python objects .* save model\.state_dict\(\) alone"):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.pth", None, "no such file; give a .pth, .pt, .tar, .bin, .th, .ckpt or .safetensors file"),
        ("w.pth", b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS, not the file itself"),
        ("w.pth", b"<!DOCTYPE html><html>", "is a web page, not a checkpoint; the download has failed"),
        ("w.tar", b"\x1f\x8b" + bytes(50), "is compressed by gzip; unpack it"),
        ("w.tar", bytes(257) + b"ustar" + bytes(300), "is a tar archive of files"),
        ("w.pth", b"", "damaged, or not a PyTorch file"),
        ("w.pth", b"hello, world", "damaged, or not a PyTorch file"),
        ("w.pth", b"PK\x03\x04" + bytes(100), "damaged, or not a PyTorch file"),
        ("w.safetensors", b"", "damaged, or not a safetensors file"),
        ("w.safetensors", b"\xff" * 64, "damaged, or not a safetensors file"),
        ("w.onnx", b"1", "unknown kind of file, expected .pth, .pt, .tar, .bin, .th, .ckpt or .safetensors"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_state_dict(tmp_path / name)
    assert message in str(caught.value) and name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_files(tmp_path, state_dict, suffix):
    path = tmp_path / f"w{suffix}"
    (torch.save if suffix == ".pth" else safetensors.torch.save_file)(state_dict, path)
    whole = path.read_bytes()
    for part in (0.1, 0.5, 0.99):
        path.write_bytes(whole[: int(part * len(whole))])
        with pytest.raises(UserError, match="damaged"):
            read_state_dict(path)


@pytest.mark.parametrize("content", [{"epoch": 3}, {}, [1, 2], {"model": {"a": 1}}, {"model": {}}])
def test_files_without_a_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match="no state dict at the top level or under any key"):
        read_state_dict(tmp_path / "w.pth")


def refusal(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> str:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_strict(model, weights, "teachers[2] 'resnet50'", num_classes=100)
    assert_same(model.state_dict(), before)  # nothing is loaded by half
    return str(caught.value).removeprefix("teachers[2] 'resnet50': ")


def test_refusals_say_why(state_dict):
    model = create_model("cifar_resnet8", num_classes=100)
    without = {name: tensor for name, tensor in state_dict.items() if "conv1" not in name}
    assert refusal(model, without) == (
        "4 missing keys (conv1.weight, layer1.0.conv1.weight, layer2.0.conv1.weight, ...): "
        "the weights are for another architecture"
    )
    assert refusal(model, without | {"stem.weight": torch.zeros(1)}).endswith(
        " and 1 unexpected key (stem.weight): the weights are for another architecture"
    )
    ten = create_model("cifar_resnet8", num_classes=10).state_dict()
    assert refusal(model, ten) == "the weights have 10 classes, the data has 100"
    gray = create_model("cifar_resnet8", num_classes=100, args={"in_chans": 1}).state_dict()
    assert refusal(model, gray) == "the weights take images of 1 channels, the model gets 3"
    large = timm.create_model("resnet18", num_classes=100).state_dict()
    assert refusal(create_model("resnet18", num_classes=100, stem="cifar"), large) == (
        "1 parameters of another shape (conv1.weight [64, 3, 7, 7] for [64, 3, 3, 3]): "
        "the weights are for another variant of the architecture"
    )


def test_load_strict_loads(state_dict):
    model = create_model("cifar_resnet8", num_classes=100)
    old = {name: tensor for name, tensor in state_dict.items() if not name.endswith("num_batches_tracked")}
    load_strict(model, old, "old checkpoint without batch counters", num_classes=100)
    assert_same(model.state_dict(), state_dict)


def described(repository: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a public teacher's parameters, made of timm's networks after its description."""
    if "resnet" in repository:
        model = timm.create_model(repository.split("/")[1].split("_")[0], num_classes=100)
        model.conv1 = torch.nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
        model.maxpool = torch.nn.Identity()
    elif "densenet" in repository:
        model = timm.models.DenseNet(growth_rate=12, block_config=(6, 12, 24, 16), num_classes=100)
        model.features.conv0 = torch.nn.Conv2d(3, 24, 3, stride=1, padding=1, bias=False)
        model.features.norm0 = model.features.pool0 = torch.nn.Identity()
    else:
        model = timm.create_model("vit_base_patch16_224", num_classes=100)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("repository", KNOWN_CHECKPOINTS)
def test_known_checkpoints_load(repository):
    """Random weights in the published layout load strictly, and are the ones that the network then uses."""
    known = KNOWN_CHECKPOINTS[repository]
    with torch.device("meta"):
        shapes = described(repository)
    weights = {
        name: torch.ones((), dtype=torch.int64)
        if not shape and name.endswith("tracked")
        else torch.full(shape, 0.01)
        for name, shape in shapes.items()
    }
    model = create_model(known.model, num_classes=known.num_classes)
    load_strict(model, weights, repository, num_classes=100)
    assert_same(model.state_dict(), weights)
    assert known.preprocess.size == (224 if "vit" in repository else 32)
    assert known.preprocess.resize == {"vit": 248, "den": 36}.get(repository.split("/")[1][:3], 32)


def test_known_densenet_has_no_norm_or_activation_after_its_first_convolution():
    model = create_model("cifar_densenet121", num_classes=100).eval()
    assert "features.norm0.weight" not in model.state_dict()
    images = torch.randn(1, 3, 32, 32)
    stem = model.forward_intermediates(images, indices=[0], intermediates_only=True)[0]
    assert torch.equal(stem, model.features.conv0(images)) and (stem < 0).any()
    assert model.forward_features(images).shape[2:] == (4, 4)
