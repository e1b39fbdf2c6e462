"""What a student costs: arithmetic against published figures, and that measuring leaves no trace."""

import math

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

import kd_core.zoo  # noqa: F401 - registers the cifar_ networks with timm
from kd_core.evaluation import cost
from kd_core.report import console

# 3x3 convolutions of 16, 32 and 64 channels at 32, 16 and 8 pixels, two 1x1 shortcuts, the classifier
RESNET20 = (
    (3 * 16 + 6 * 16 * 16) * 9 * 32**2
    + (16 * 32 + 5 * 32 * 32) * 9 * 16**2
    + (32 * 64 + 5 * 64 * 64) * 9 * 8**2
    + 16 * 32 * 16**2 + 32 * 64 * 8**2
    + 64 * 100
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "size", "classes", "expected", "tolerance"),
    [
        ("cifar_resnet20", 32, 100, RESNET20, 0),
        # timm's results tables
        ("resnet18", 224, 1000, 1.82e9, 0.01),
        ("vit_tiny_patch16_224", 224, 1000, 1.26e9, 0.01),  # 1.07e9 without the products of attention
    ],
)
def test_multiply_adds_of_known_networks(name, size, classes, expected, tolerance):
    model = timm.create_model(name, num_classes=classes).eval()
    found = cost.count_multiply_adds(model, torch.zeros(1, 3, size, size))
    assert found == pytest.approx(expected, rel=tolerance, abs=0)


def test_multiply_adds_by_hand():
    layers = [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(8 * 16, 5)]
    model, expected = nn.Sequential(*layers), 36 * 8 * 3 * 9 + 16 * 8 * 9 + 8 * 16 * 5
    assert cost.count_multiply_adds(model, torch.zeros(1, 3, 8, 8)) == expected
    assert cost.count_multiply_adds(model, torch.zeros(4, 3, 8, 8)) == 4 * expected


@pytest.fixture
def briefly(monkeypatch):
    monkeypatch.setattr(cost, "SECONDS", 0.0)


@pytest.fixture
def network(tmp_path) -> nn.Module:
    """A network with a layer in another mode, BatchNorm and dropout; its export lies in `tmp_path`."""
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(4, 7))
    model[1].eval()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    return model


@pytest.mark.usefixtures("briefly")
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_measuring(network, tmp_path, precision):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    random = torch.get_rng_state()
    found = cost.measure(network, 16, torch.device("cpu"), checkpoint=tmp_path, precision=precision, channels_last=True)
    assert torch.equal(torch.get_rng_state(), random) and [m.training for m in network.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert found["parameters"] == (3 * 9 + 1) * 4 + 8 + 5 * 7
    assert found["multiply_adds"] == 14 * 14 * 3 * 9 * 4 + 4 * 7
    assert found["checkpoint_bytes"] == (tmp_path / "model.safetensors").stat().st_size
    assert found["precision"] == precision and found["device"].startswith("cpu, ")
    assert set(found["latency_ms"]) == set(found["images_per_second"]) == {"1", "256"}
    for count, latency in found["latency_ms"].items():
        assert 0 < latency < math.inf
        assert found["images_per_second"][count] * latency / 1000 == pytest.approx(int(count))
    assert "images per second" in console.costs(found)


class Limited(nn.Module):
    """Says that memory is full for more than one image, or fails otherwise."""

    def __init__(self, error: str):
        super().__init__()
        self.error, self.passes = error, []

    def forward(self, images):
        self.passes.append(len(images))
        if len(images) > 1:
            raise RuntimeError(self.error)
        return images.mean((1, 2, 3))


@pytest.mark.usefixtures("briefly")
def test_a_batch_that_does_not_fit_has_no_times(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"12345")
    network = Limited("CUDA out of memory. Tried to allocate")
    found = cost.measure(network, 8, torch.device("cpu"), checkpoint=tmp_path)
    assert found["latency_ms"]["256"] is None and found["images_per_second"]["256"] is None
    assert found["latency_ms"]["1"] > 0 and found["checkpoint_bytes"] == 5
    assert network.passes == [1, 1, *[1] * cost.FEWEST, 256]  # counted, warmed up, measured; no second try
    assert "too large" in console.costs(found)
    with pytest.raises(RuntimeError, match="something else"):
        cost.measure(Limited("something else"), 8, torch.device("cpu"), checkpoint=tmp_path)


def test_modes_are_restored_after_a_failure(network):
    network.train()
    with pytest.raises(ZeroDivisionError), cost.in_evaluation_mode(network):
        assert not any(module.training for module in network.modules())
        raise ZeroDivisionError
    assert all(module.training for module in network.modules())
