"""Relational knowledge distillation (RKD).  Park et al. 2019, arXiv:1904.05068.

    l = distance * mean_ij h(d_s[i,j], d_t[i,j]) + angle * mean_ijk h(a_s[i,j,k], a_t[i,j,k])

h: Huber loss (beta 1); d: distances over their mean, which leaves the diagonal out; a: cosine of the angle at i between
j and k. Both means in l count the diagonal, which is 0. distance 25, angle 50. The loss is of the batch; its memory
grows as B^2 D + B^3. Kept of a teacher: the embedding.
"""

from typing import Literal

from pydantic import Field, model_validator

from kd_methods._torch import Tensor, torch
from kd_methods.feature_losses._base import GATHER, Batch, FeatureConfig, FeatureLoss, unit


class Config(FeatureConfig):
    equation = "({config.distance:g} RKD distance + {config.angle:g} RKD angle)"

    loss: Literal["rkd"] = "rkd"
    distance: float = Field(default=25.0, ge=0, description="weight of the distances")
    angle: float = Field(default=50.0, ge=0, description="weight of the angles")
    gather: bool = Field(default=False, description=GATHER)

    @model_validator(mode="after")
    def _some_loss(self) -> "Config":
        if self.distance == self.angle == 0:
            raise ValueError("distance and angle are both 0, which leaves no loss; raise one")
        return self


class Loss(FeatureLoss):
    kinds = ("embedding",)
    number = 1
    of_batch = True
    config: Config

    def forward(self, student: tuple[Tensor, ...], kept: tuple[Tensor, ...], batch: Batch) -> Tensor:
        huber = torch.nn.functional.smooth_l1_loss
        s, t = differences(self.gathered(student[0])), differences(self.gathered(kept[0]))
        loss = s.new_zeros(())
        if self.config.distance:
            loss = loss + self.config.distance * huber(distances(s), distances(t))
        if self.config.angle:
            loss = loss + self.config.angle * huber(angles(s), angles(t))
        return loss


def differences(embedding: Tensor) -> Tensor:
    """[i,j] = e_j - e_i: [B,B,D] of embeddings [B,D]."""
    return embedding - embedding[:, None]


def distances(difference: Tensor) -> Tensor:
    """Distances [B,B] over their mean; zeros where all embeddings are equal, and for one image."""
    distance = torch.linalg.vector_norm(difference, dim=2)
    pairs = len(distance) * (len(distance) - 1)
    mean = distance.sum() / max(pairs, 1)
    return distance / mean.masked_fill(mean == 0, 1.0)


def angles(difference: Tensor) -> Tensor:
    """[i,j,k]: the cosine of the angle at i between j and k; 0 where i is equal to one of them."""
    direction = unit(difference, 2)
    return direction @ direction.mT
