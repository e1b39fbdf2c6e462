"""Probabilistic knowledge transfer (PKT).  Passalis and Tefas 2018, arXiv:1803.10837, with the cosine kernel.

    l = mean over i and j of p_t log((p_t + e) / (p_s + e)),  p[i,j] = c[i,j] / sum_j c[i,j],  c = (1 + cosine) / 2

e 1e-7, also added to the lengths in the cosine. The mean over B^2 is 1/B of a KL per row. The loss is of the batch.
Kept of a teacher: the embedding.
"""

import math
from typing import Literal

from pydantic import Field

from kd_methods._torch import Tensor, torch
from kd_methods.feature_losses._base import GATHER, Batch, FeatureConfig, FeatureLoss

EPSILON = 1e-7


class Config(FeatureConfig):
    equation = "probabilistic knowledge transfer"

    loss: Literal["pkt"] = "pkt"
    weight: float = Field(default=30000.0, ge=0, description="factor of this loss")
    gather: bool = Field(default=False, description=GATHER)


class Loss(FeatureLoss):
    kinds = ("embedding",)
    number = 1
    of_batch = True
    config: Config

    def forward(self, student: tuple[Tensor, ...], kept: tuple[Tensor, ...], batch: Batch) -> Tensor:
        p_s, p_t = neighbors(self.gathered(student[0])), neighbors(self.gathered(kept[0]))
        return (p_t * ((p_t + EPSILON) / (p_s + EPSILON)).log()).mean()


def neighbors(embedding: Tensor) -> Tensor:
    """p [B,B] of embeddings [B,D]; an embedding of zeros is equally near to all, without gradient."""
    length = torch.linalg.vector_norm(embedding, dim=1, keepdim=True)
    direction = embedding / (length + EPSILON).masked_fill(length == 0, math.inf)
    closeness = (1 + direction @ direction.T) / 2
    return closeness / closeness.sum(1, keepdim=True)
