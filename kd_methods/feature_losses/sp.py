"""Similarity-preserving distillation (SP).  Tung and Mori 2019, arXiv:1907.09682.

    l = sum over layers of ||N(S S') - N(T T')||^2 / B^2

S, T: flat features [B,CHW]; N scales each row of the B x B matrix to length 1. Sizes and channels may differ. The loss
is of the batch. Kept of a teacher: its features.
"""

from typing import Literal

from pydantic import Field

from kd_methods._torch import Tensor
from kd_methods.feature_losses._base import GATHER, LAST, Batch, FeatureLoss, Layer, MapConfig, as_map, sum_layers, unit


class Config(MapConfig):
    equation = "similarity-preserving loss"

    loss: Literal["sp"] = "sp"
    weight: float = Field(default=3000.0, ge=0, description="factor of this loss")
    student: list[Layer] = Field(default=LAST, min_length=1, description="layers of the student")
    teacher: list[Layer] | list[list[Layer]] = Field(
        default=LAST, min_length=1, description="layers of every teacher, or one list for each teacher"
    )
    prefix_tokens: bool = Field(default=False, description="count a ViT's class token and the like too")
    gather: bool = Field(default=False, description=GATHER)


class Loss(FeatureLoss):
    of_batch = True
    config: Config
    kept_by = ("prefix_tokens",)

    def keep(self, teacher: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(map(self.flat, teacher))

    def flat(self, features: Tensor) -> Tensor:
        return (features if self.config.prefix_tokens else as_map(features)).flatten(1)

    def forward(self, student: tuple[Tensor, ...], kept: tuple[Tensor, ...], batch: Batch) -> Tensor:
        pairs = zip(student, kept, strict=True)
        return sum_layers(
            (self.similarity(self.flat(own)) - self.similarity(other)).square().mean() for own, other in pairs
        )

    def similarity(self, flat: Tensor) -> Tensor:
        """[B,B] of features [B,D]."""
        everyone = self.gathered(flat)
        return unit(everyone @ everyone.T, 1)
