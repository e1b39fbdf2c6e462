"""Attention transfer (AT).  Zagoruyko and Komodakis 2017, arXiv:1612.03928, in the squared form of the authors' code.

    l_b = sum over layers of mean over positions of (q_s - q_t)^2,  q = a / ||a||,  a = mean over channels of |F|^p

p 2. The larger map is average-pooled before the power. Kept of a teacher: q, one number per position.
"""

from typing import Literal

from pydantic import Field

from kd_methods._torch import Tensor, torch
from kd_methods.feature_losses._base import Batch, FeatureLoss, MapConfig, as_map, map_shape, pooled, smaller


class Config(MapConfig):
    equation = "attention transfer (p={config.p:g})"

    loss: Literal["at"] = "at"
    weight: float = Field(default=1000.0, ge=0, description="factor of this loss")
    p: float = Field(default=2.0, gt=0, description="power of the activations")


class Loss(FeatureLoss):
    config: Config

    def sizes(self) -> list[tuple[int, int]]:
        pairs = zip(self.student_shapes, self.teacher_shapes, strict=True)
        return [smaller(map_shape(own), map_shape(other)) for own, other in pairs]

    def attention(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Unit vectors [B,HW]; 0 for a map of zeros."""
        energy = pooled(as_map(features), size).abs().pow(self.config.p).mean(1).flatten(1)
        return torch.nn.functional.normalize(energy, dim=1)

    def keep(self, teacher: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(self.attention(map_, size) for map_, size in zip(teacher, self.sizes(), strict=True))

    def forward(self, student: tuple[Tensor, ...], kept: tuple[Tensor, ...], batch: Batch) -> Tensor:
        layers = zip(student, kept, self.sizes(), strict=True)
        return sum((self.attention(map_, size) - q).square().mean(1) for map_, q, size in layers)
