"""What logit losses share: the base class of their Config, and standardized vectors."""

import math
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from kd_methods._torch import Tensor, torch


class LossConfig(BaseModel):
    """Parameters of one logit loss, and its equation in words.

    equation: format string with the parameters as `{config.NAME:g}`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    equation: ClassVar[str]

    def describe(self, conditions: str) -> str:
        """The equation with its numbers, followed by `conditions`, such as "at T=4"."""
        return f"{self.equation.format(config=self)} {conditions}"


def standardize(logits: Tensor) -> Tensor:
    """Logits with mean 0 and (unbiased) standard deviation 1 over the classes.  Sun et al. 2024, arXiv:2403.01427."""
    return unit(logits, -1) * math.sqrt(logits.shape[-1] - 1)


def unit(values: Tensor, dim: int) -> Tensor:
    """Values centered and scaled to length 1 along `dim`: the product of two such vectors is Pearson's correlation.

    Where the spread is rounding noise (constant logits, a batch of one, a class of probability 0) the result
    is 0 with gradient 0, instead of noise divided by noise.
    """
    centered = values - values.mean(dim, keepdim=True)
    spread = torch.linalg.vector_norm(centered, dim=dim, keepdim=True)
    noise = 1e-6 * torch.linalg.vector_norm(values.detach(), dim=dim, keepdim=True) + 1e-12
    flat = spread <= noise
    return (centered / spread.masked_fill(flat, 1.0)).masked_fill(flat, 0.0)
