"""FitNet's hints.  Romero et al. 2015, arXiv:1412.6550, with the regressors of today's toolboxes.

    l_b = sum over layers of mean over channels and positions of (r(F_s) - F_t)^2

regressor conv_bn_relu: r is a convolution with bias, BatchNorm and ReLU: 1x1 for equal sides, 3x3 of stride 2 for a
student's map of twice the side, 4x4 transposed of stride 2 for half the side. regressor plain: r is 1x1 without bias.
For all other sizes the larger map is average-pooled first. Kept of a teacher: the map at the size of the comparison.
"""

from typing import Any, Literal

from pydantic import Field

from kd_methods._torch import Tensor, torch
from kd_methods.feature_losses._base import (
    Batch,
    FeatureLoss,
    Layer,
    MapConfig,
    Shape,
    as_map,
    pooled,
    smaller,
    sum_layers,
)
from kd_methods.feature_losses._projectors import BatchNorm, seeded

MIDDLE: list[Layer] = [-2]


class Config(MapConfig):
    equation = "hints (FitNet, regressor {config.regressor})"

    loss: Literal["fitnet"] = "fitnet"
    weight: float = Field(default=100.0, ge=0, description="factor of this loss")
    student: list[Layer] = Field(default=MIDDLE, min_length=1, description="layers of the student")
    teacher: list[Layer] | list[list[Layer]] = Field(
        default=MIDDLE, min_length=1, description="layers of every teacher, or one list for each teacher"
    )
    regressor: Literal["conv_bn_relu", "plain"] = Field(
        default="conv_bn_relu", description="what maps the student's features to the teacher's"
    )


class Loss(FeatureLoss):
    config: Config
    kept_by = ("regressor", "student")

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        with seeded(self.seed):
            self.regressors = torch.nn.ModuleList(self.regressor(*shapes) for shapes in self.map_pairs())

    def regressor(self, student: Shape, teacher: Shape) -> Any:
        channels, resizing, nn = (student[0], teacher[0]), self.resizing(student, teacher), torch.nn
        if self.config.regressor == "plain":
            return nn.Conv2d(*channels, 1, bias=False)
        layer: Any
        if resizing == "keep":
            layer = nn.Conv2d(*channels, 1)
        elif resizing == "halve":
            layer = nn.Conv2d(*channels, 3, stride=2, padding=1)
        else:
            layer = nn.ConvTranspose2d(*channels, 4, stride=2, padding=1)
        return nn.Sequential(layer, BatchNorm(teacher[0]), nn.ReLU())

    def resizing(self, student: Shape, teacher: Shape) -> Literal["halve", "double", "keep"]:
        """What the regressor does to the size of the student's map."""
        (height, width), other = student[1:], teacher[1:]
        if self.config.regressor == "plain":
            return "keep"
        if (height, width) == (2 * other[0], 2 * other[1]):
            return "halve"
        return "double" if (2 * height, 2 * width) == other else "keep"

    def sized(self, features: Tensor, student: Shape, teacher: Shape) -> Tensor:
        """The map of one of both networks, average-pooled unless the regressor changes the size."""
        keep = self.resizing(student, teacher) == "keep"
        return pooled(as_map(features), smaller(student, teacher)) if keep else as_map(features)

    def keep(self, teacher: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(self.sized(map_, *shapes) for map_, shapes in zip(teacher, self.map_pairs(), strict=True))

    def forward(self, student: tuple[Tensor, ...], kept: tuple[Tensor, ...], batch: Batch) -> Tensor:
        layers = zip(self.regressors, student, kept, self.map_pairs(), strict=True)
        return sum_layers(
            (regressor(self.sized(own, *shapes)) - target).square().mean((1, 2, 3))
            for regressor, own, target, shapes in layers
        )
