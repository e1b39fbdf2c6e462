"""Refined logit distillation (RLD): nothing that contradicts the label is taught.  Sun et al., arXiv:2408.07703.

    l = alpha A^2 SCD + beta T^2 MCD,  A = alpha_temperature
    SCD = KL((max_c p_t[c], rest) || (p_s[y], rest)),  p = softmax(. / A)
    MCD = KL of softmax(. / T) over the classes that the teacher ranks below y, normalized to sum to 1; 0 if there is none

Where the teacher is right and A = T this is DKD. alpha 1, beta 8, A 1 and T 4 in the authors' code, which the loss
grows into over 20 of 240 epochs; here over the same fraction of training, step by step. A soft label [B,C] counts as
its most probable class.
"""

import math

from pydantic import Field

from kd_methods._torch import Tensor, torch
from kd_methods.logit_losses._base import LossConfig, Temperature, log_ratio, one_hot, soften, split, warmed_up


class Config(LossConfig):
    equation = "({config.alpha:g} SCD at T={config.alpha_temperature:g} + {config.beta:g} T^2 MCD)"

    alpha: float = Field(default=1.0, ge=0, description="weight of the sample confidence term (SCD)")
    beta: float = Field(default=8.0, ge=0, description="weight of the masked correlation term (MCD)")
    alpha_temperature: float = Field(default=1.0, gt=0, description="temperature of the sample confidence term")
    warmup: float = Field(
        default=20 / 240,
        ge=0,
        le=1,
        description="fraction of training in which the loss grows from 0; 0: none",
    )

    def describe(self, conditions: str) -> str:
        growth = f", growing from 0 over the first {self.warmup:.3g} of training" if self.warmup else ""
        return super().describe(conditions) + growth


def loss(
    student: Tensor, teachers: Tensor, labels: Tensor, temperature: Temperature, progress: float, config: Config
) -> Tensor:
    is_target = one_hot(labels, student)  # [B,C]
    is_top = torch.arange(student.shape[-1], device=student.device) == teachers.argmax(-1, keepdim=True)  # [K,B,C]
    binary_t, _ = split(teachers / config.alpha_temperature, is_top)
    binary_s, _ = split(student / config.alpha_temperature, is_target)
    scd = (binary_t.exp() * (binary_t - binary_s)).sum(-1)

    is_out = teachers >= (teachers * is_target).sum(-1, keepdim=True)  # [K,B,C]
    hidden = is_out & ~is_out.all(-1, keepdim=True)  # no row of -inf alone, which has no softmax
    others_t = soften(teachers, temperature).masked_fill(hidden, -math.inf)
    others_s = soften(student, temperature).masked_fill(hidden, -math.inf)
    mcd = (others_t.softmax(-1) * log_ratio(others_t, others_s, is_out)).sum(-1)
    scale = warmed_up(progress, config.warmup)
    return scale * (config.alpha * config.alpha_temperature**2 * scd + config.beta * temperature**2 * mcd)
