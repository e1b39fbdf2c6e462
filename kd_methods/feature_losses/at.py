"""Attention transfer (AT).  Zagoruyko and Komodakis 2017, arXiv:1612.03928.

    l_b = sum over layers of mean over positions of (q_s - q_t)^2    form: code, the authors' code
    l_b = sum over layers of ||q_s - q_t||                           form: paper, equation 2
    q = a / ||a||,  a = mean over channels of |F|^p

p 2. The larger map is average-pooled before the power. Kept of a teacher: q, one number per position.
"""

from typing import Literal

from pydantic import Field

from kd_methods._torch import Tensor, torch
from kd_methods.feature_losses._base import Batch, FeatureLoss, MapConfig, sum_layers, unit


class Config(MapConfig):
    equation = "attention transfer (p={config.p:g}, {config.form} form)"

    loss: Literal["at"] = "at"
    weight: float = Field(default=1000.0, ge=0, description="factor of this loss")
    p: float = Field(default=2.0, ge=1, description="power of the activations")
    form: Literal["code", "paper"] = Field(
        default="code", description="code: mean of squared differences; paper: their norm, not squared"
    )


class Loss(FeatureLoss):
    config: Config
    kept_by = ("p", "student")

    def keep(self, teacher: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(map(self.attention, self.common_maps(teacher)))

    def attention(self, map_: Tensor) -> Tensor:
        """Unit vectors [B,HW] of a map [B,C,H,W]; 0 for a map of zeros."""
        return unit(map_.abs().pow(self.config.p).mean(1).flatten(1), 1)

    def forward(self, student: tuple[Tensor, ...], kept: tuple[Tensor, ...], batch: Batch) -> Tensor:
        differences = [self.attention(own) - q for own, q in zip(self.common_maps(student), kept, strict=True)]
        if self.config.form == "paper":
            return sum_layers(torch.linalg.vector_norm(difference, dim=1) for difference in differences)
        return sum_layers(difference.square().mean(1) for difference in differences)
