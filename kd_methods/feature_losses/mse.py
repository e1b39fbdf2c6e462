"""Mean squared error of embeddings, as in timm's feature distillation.

    l_b = mean over dimensions of (p(s) - t)^2

p: a linear layer with bias where the widths differ, else nothing. Kept of a teacher: the embedding.
"""

from typing import Any, Literal

from kd_methods._torch import Tensor
from kd_methods.feature_losses._base import Batch, FeatureConfig, FeatureLoss
from kd_methods.feature_losses._projectors import embedding_projector


class Config(FeatureConfig):
    equation = "mean squared error of embeddings"

    loss: Literal["mse"] = "mse"


class Loss(FeatureLoss):
    kinds = ("embedding",)
    number = 1
    config: Config

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.projector = embedding_projector(self.student_shapes[0], self.teacher_shapes[0], self.seed)

    def forward(self, student: tuple[Tensor, ...], kept: tuple[Tensor, ...], batch: Batch) -> Tensor:
        return (self.projector(student[0]) - kept[0]).square().mean(1)
