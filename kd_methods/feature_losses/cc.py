"""Correlation congruence (CC), in the form of RepDistiller, whose code its authors gave.  Peng et al. 2019,
arXiv:1904.01802.

    l = mean over i < B-1 of sum over d of |s - t|[i,d] |s - t|[i+1,d]

s, t: linear layers of width `dim` on both embeddings, both trained. Neighbors in the batch are multiplied, in whatever
order they come. 0 for one image. The loss is of the batch. Kept of a teacher: the embedding.
"""

from typing import Any, Literal

from pydantic import Field

from kd_methods._torch import Tensor, torch
from kd_methods.feature_losses._base import GATHER, Batch, FeatureConfig, FeatureLoss
from kd_methods.feature_losses._projectors import seeded


class Config(FeatureConfig):
    equation = "correlation congruence (width {config.dim})"

    loss: Literal["cc"] = "cc"
    weight: float = Field(default=0.02, ge=0, description="factor of this loss")
    dim: int = Field(default=128, ge=1, description="width of both linear layers")
    gather: bool = Field(default=False, description=GATHER)


class Loss(FeatureLoss):
    kinds = ("embedding",)
    number = 1
    of_batch = True
    config: Config

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        with seeded(self.seed):
            self.student_layer = torch.nn.Linear(self.student_shapes[0][0], self.config.dim)
            self.teacher_layer = torch.nn.Linear(self.teacher_shapes[0][0], self.config.dim)

    def forward(self, student: tuple[Tensor, ...], kept: tuple[Tensor, ...], batch: Batch) -> Tensor:
        difference = (self.gathered(self.student_layer(student[0])) - self.gathered(self.teacher_layer(kept[0]))).abs()
        return (difference[:-1] * difference[1:]).sum() / max(len(difference) - 1, 1)
