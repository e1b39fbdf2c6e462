"""Neuron selectivity transfer (NST).  Huang and Wang 2017, arXiv:1707.01219, with the polynomial kernel.

    l_b = sum over layers of k(t, t) + k(s, s) - 2 k(s, t),  k(a, b) = mean over pairs of channels of (a_i . b_j)^2

a_i is channel i's map as a vector of length 1. The larger map is average-pooled. Kept of a teacher: the map at the size
of the comparison. A channel that is 0 everywhere stays 0, without gradient.
"""

from typing import Literal

from pydantic import Field

from kd_methods._torch import Tensor
from kd_methods.feature_losses._base import Batch, FeatureLoss, MapConfig, sum_layers, unit


class Config(MapConfig):
    equation = "neuron selectivity transfer"

    loss: Literal["nst"] = "nst"
    weight: float = Field(default=50.0, ge=0, description="factor of this loss")


class Loss(FeatureLoss):
    config: Config
    kept_by = ("student",)

    def keep(self, teacher: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(self.common_maps(teacher))

    def forward(self, student: tuple[Tensor, ...], kept: tuple[Tensor, ...], batch: Batch) -> Tensor:
        pairs = zip(self.common_maps(student), kept, strict=True)
        return sum_layers(discrepancy(unit(own.flatten(2), 2), unit(other.flatten(2), 2)) for own, other in pairs)


def discrepancy(s: Tensor, t: Tensor) -> Tensor:
    """k(t, t) + k(s, s) - 2 k(s, t) [B] of s [B,C,N] and t [B,D,N]."""
    return kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)


def kernel(a: Tensor, b: Tensor) -> Tensor:
    """The mean over i and j of (a_i . b_j)^2 [B], of a [B,C,N] and b [B,D,N], by the smaller matrices."""
    if a.shape[2] < min(a.shape[1], b.shape[1]):
        products = (a.mT @ a) * (b.mT @ b)  # [B,N,N]; the sum is the same
        return products.sum((1, 2)) / (a.shape[1] * b.shape[1])
    return (a @ b.mT).square().mean((1, 2))
