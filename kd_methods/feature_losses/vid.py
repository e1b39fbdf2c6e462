"""Variational information distillation (VID).  Ahn et al. 2019, arXiv:1904.05835.

    l_b = sum over layers of mean over channels and positions of ((m - F_t)^2 / v + log v) / 2

m: three 1x1 convolutions with ReLU between, on the student's map; v = log(1 + exp(a)) + 1e-5 with a trained value a per
channel; v starts at `variance`. The larger map is average-pooled. Kept of a teacher: the map at the size of the
comparison.
"""

import math
from typing import Any, Literal

from pydantic import Field

from kd_methods._torch import Tensor, torch
from kd_methods.feature_losses._base import Batch, FeatureLoss, MapConfig, Shape, sum_layers
from kd_methods.feature_losses._projectors import seeded

LEAST_VARIANCE = 1e-5


class Config(MapConfig):
    equation = "variational information distillation"

    loss: Literal["vid"] = "vid"
    variance: float = Field(default=5.0, ge=1e-3, description="variance at the start of training")


class Loss(FeatureLoss):
    config: Config
    kept_by = ("student",)

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        pairs = self.map_pairs()
        with seeded(self.seed):
            self.means = torch.nn.ModuleList(mean(*shapes) for shapes in pairs)
        start = inverse_softplus(self.config.variance - LEAST_VARIANCE)
        self.log_scales = torch.nn.ParameterList(torch.full((teacher[0],), start) for _, teacher in pairs)

    def keep(self, teacher: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(self.common_maps(teacher))

    def forward(self, student: tuple[Tensor, ...], kept: tuple[Tensor, ...], batch: Batch) -> Tensor:
        layers = zip(self.means, self.log_scales, self.common_maps(student), kept, strict=True)
        return sum_layers(likelihood_loss(mean(own), scale, target) for mean, scale, own, target in layers)


def mean(student: Shape, teacher: Shape) -> Any:
    widths = student[0], teacher[0], teacher[0], teacher[0]
    first, second, third = (torch.nn.Conv2d(*pair, 1, bias=False) for pair in zip(widths, widths[1:], strict=False))
    return torch.nn.Sequential(first, torch.nn.ReLU(), second, torch.nn.ReLU(), third)


def likelihood_loss(mean: Tensor, log_scale: Tensor, target: Tensor) -> Tensor:
    """[B] of mean and target [B,C,H,W] and log_scale [C]."""
    variance = (torch.nn.functional.softplus(log_scale) + LEAST_VARIANCE)[:, None, None]
    return ((mean - target).square() / variance + variance.log()).mean((1, 2, 3)) / 2


def inverse_softplus(value: float) -> float:
    return value + math.log(-math.expm1(-value))
