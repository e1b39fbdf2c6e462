"""The projector loss of SimKD.  Chen et al., CVPR 2022, arXiv:2203.14001; the authors' code.

    l_b = mean over channels and positions of (r(F_s) - F_t)^2,  r = 1x1, 3x3, 1x1, each with BatchNorm and ReLU

on the last maps, the larger one average-pooled. r goes from the student's channels to 1/factor of the teacher's,
factor 2, and to all of them at the end. In the paper the student is used with r and the teacher's classifier,
`logits`; here r is trained beside the student, which keeps its own classifier and is exported without r. Kept of a
teacher: the pooled map.
"""

from typing import Any, Literal

from pydantic import Field

from kd_methods._torch import Tensor, torch
from kd_methods.feature_losses._base import (
    LAST,
    Batch,
    Classifier,
    FeatureConfig,
    FeatureLoss,
    Layer,
    as_map,
    pooled,
    smaller,
)
from kd_methods.feature_losses._projectors import conv_bn, seeded


class Config(FeatureConfig):
    equation = "projector loss of SimKD (factor {config.factor})"

    loss: Literal["simkd"] = "simkd"
    student: list[Layer] = Field(default=LAST, min_length=1, description="layer of the student: its last map")
    teacher: list[Layer] | list[list[Layer]] = Field(
        default=LAST, min_length=1, description="last map of every teacher, or one list for each teacher"
    )
    factor: int = Field(default=2, ge=1, description="the teacher's channels over the projector's inner ones")


class Loss(FeatureLoss):
    config: Config
    kept_by = ("student",)
    number = 1
    projector: Any

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        ((own, other),) = self.map_pairs()
        self.size = smaller(own, other)
        inner = max(1, other[0] // self.config.factor)
        with seeded(self.seed):
            self.projector = torch.nn.Sequential(
                conv_bn(own[0], inner, 1, relu=True),
                conv_bn(inner, inner, 3, relu=True),
                conv_bn(inner, other[0], 1, relu=True),
            )

    def keep(self, teacher: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (pooled(as_map(teacher[0]), self.size),)

    def project(self, student: tuple[Tensor, ...]) -> Tensor:
        """The student's last map in the teacher's channels [B,Ct,h,w]."""
        projected: Tensor = self.projector(pooled(as_map(student[0]), self.size))
        return projected

    def logits(self, student: tuple[Tensor, ...], classifier: Classifier) -> Tensor:
        """What the teacher's classifier makes of the projected map: the paper's student [B,C]."""
        return torch.nn.functional.linear(self.project(student).mean((2, 3)), *classifier)

    def forward(self, student: tuple[Tensor, ...], kept: tuple[Tensor, ...], batch: Batch) -> Tensor:
        return (self.project(student) - kept[0]).square().mean((1, 2, 3))
