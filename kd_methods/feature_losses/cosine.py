"""Cosine distance of embeddings.

    l_b = 1 - cosine(p(s), t)

p: a linear layer with bias where the widths differ, else nothing. An embedding of zeros counts as orthogonal, without
gradient. Kept of a teacher: the embedding.
"""

from typing import Any, Literal

from kd_methods._torch import Tensor
from kd_methods.feature_losses._base import Batch, FeatureConfig, FeatureLoss, unit
from kd_methods.feature_losses._projectors import embedding_projector


class Config(FeatureConfig):
    equation = "cosine distance of embeddings"

    loss: Literal["cosine"] = "cosine"


class Loss(FeatureLoss):
    kinds = ("embedding",)
    number = 1
    config: Config

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.projector = embedding_projector(self.student_shapes[0], self.teacher_shapes[0], self.seed)

    def forward(self, student: tuple[Tensor, ...], kept: tuple[Tensor, ...], batch: Batch) -> Tensor:
        return 1 - (unit(self.projector(student[0]), 1) * unit(kept[0], 1)).sum(1)
