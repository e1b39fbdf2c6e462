"""Parts of projectors: convolutions with BatchNorm, resizing, and initial values that depend on a seed alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kd_methods._module import LazyModule
from kd_methods._torch import Tensor, torch
from kd_methods.feature_losses._base import Classifier, Shape


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Modules made inside get initial values that depend on `seed` alone; the global generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class BatchNorm(LazyModule):
    """BatchNorm over maps [B,C,H,W]. One image of one position has no variance: the running statistics are used."""

    norm: Any

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(channels)

    def forward(self, maps: Tensor) -> Tensor:
        norm = self.norm
        if maps.numel() > maps.shape[1]:
            return norm(maps)
        statistics = norm.running_mean, norm.running_var
        return torch.nn.functional.batch_norm(maps, *statistics, norm.weight, norm.bias, eps=norm.eps)


def conv_bn(channels: int, out: int, size: int, *, bias: bool = False, relu: bool = False) -> Any:
    """A convolution of `size` that keeps the side, BatchNorm, and ReLU if asked for."""
    layers = [torch.nn.Conv2d(channels, out, size, padding=size // 2, bias=bias), BatchNorm(out)]
    return torch.nn.Sequential(*layers, *[torch.nn.ReLU()] * relu)


def embedding_projector(student: Shape, teacher: Shape, seed: int) -> Any:
    """A linear layer with bias from the student's width to the teacher's; nothing where they are equal."""
    (own,), (other,) = student, teacher
    with seeded(seed):
        return torch.nn.Identity() if own == other else torch.nn.Linear(own, other)


def class_maps(maps: Tensor, classifier: Classifier | None, *, bias: bool = True) -> Tensor:
    """The last linear layer at each position of maps [B,D,H,W]: [B,C,H,W]. ValueError where the widths differ."""
    assert classifier is not None  # FeatureTerm has checked it
    weight, offset = classifier
    if weight.shape[1] != maps.shape[1]:
        raise ValueError(
            f"the last linear layer takes {weight.shape[1]} features and the map has {maps.shape[1]} channels; the "
            "loss needs the map that is pooled for that layer"
        )
    return torch.nn.functional.conv2d(maps, weight[:, :, None, None], offset if bias else None)
