"""Inter-channel correlation (ICKD).  Liu et al. 2021, arXiv:2202.03680.

    l_b = sum over layers of ||N(S S') - N(T T')||^2 / C

S: the student's map after a 1x1 convolution and BatchNorm to the teacher's C channels, as [C,HW]; T: the teacher's; N
scales each row of the C x C matrix to length 1. Sizes may differ. Kept of a teacher: the map.
"""

from typing import Any, Literal

from pydantic import Field

from kd_methods._torch import Tensor, torch
from kd_methods.feature_losses._base import LAST, Batch, FeatureLoss, Layer, MapConfig, as_map, sum_layers, unit
from kd_methods.feature_losses._projectors import conv_bn, seeded

# Length of a row of S S' that is rounding alone: BatchNorm makes values about 1, or of equal ones what rounding left.
NOISE = 1e-5


class Config(MapConfig):
    equation = "inter-channel correlation"

    loss: Literal["ickd"] = "ickd"
    weight: float = Field(default=2.5, ge=0, description="factor of this loss")
    student: list[Layer] = Field(default=LAST, min_length=1, description="layers of the student")
    teacher: list[Layer] | list[list[Layer]] = Field(
        default=LAST, min_length=1, description="layers of every teacher, or one list for each teacher"
    )


class Loss(FeatureLoss):
    config: Config
    kept_by = ()

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        with seeded(self.seed):
            self.projectors = torch.nn.ModuleList(conv_bn(own[0], other[0], 1) for own, other in self.map_pairs())

    def keep(self, teacher: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(map(as_map, teacher))

    def forward(self, student: tuple[Tensor, ...], kept: tuple[Tensor, ...], batch: Batch) -> Tensor:
        layers = zip(self.projectors, student, kept, strict=True)
        return sum_layers(
            (correlation(project(as_map(own)), NOISE) - correlation(other)).square().sum(2).mean(1)
            for project, own, other in layers
        )


def correlation(map_: Tensor, least: float = 0.0) -> Tensor:
    """Rows of length 1 [B,C,C] of a map [B,C,H,W]; those no longer than `least` are zeros without gradient."""
    flat = map_.flatten(2)
    rows = flat @ flat.mT
    return unit(rows.masked_fill(torch.linalg.vector_norm(rows, dim=2, keepdim=True) <= least, 0.0), 2)
