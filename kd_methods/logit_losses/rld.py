"""Refined logit distillation (RLD): nothing that contradicts the label is taught.  Sun et al., arXiv:2408.07703.

    l = alpha A^2 SCD + beta T^2 MCD,  A = alpha_temperature
    SCD = KL((max_c p_t[c], rest) || (p_s[y], rest)),  p = softmax(. / A)
    MCD = KL of softmax(. / T) over the classes that the teacher ranks below y, normalized to sum to 1; 0 if none is

Where the teacher is right and A = T this is DKD. alpha 1, beta 8, A 1 and T 4 in the authors' code, which the loss
grows into over 20 of 240 epochs; here over the same fraction of training, step by step. A soft label [B,C] counts as
its most probable class.
"""

import math

from pydantic import Field

from kd_methods._torch import Tensor, torch
from kd_methods._warmup import WARMUP, warmed_up
from kd_methods._weights import most_probable
from kd_methods.logit_losses._base import LossConfig, Temperature, hide, soften


class Config(LossConfig):
    equation = "({config.alpha:g} SCD at T={config.alpha_temperature:g} + {config.beta:g} T^2 MCD)"
    terms = ("alpha", "beta")

    alpha: float = Field(default=1.0, ge=0, description="weight of the sample confidence term (SCD)")
    beta: float = Field(default=8.0, ge=0, description="weight of the masked correlation term (MCD)")
    alpha_temperature: float = Field(default=1.0, gt=0, description="temperature of the sample confidence term")
    warmup: float = Field(default=20 / 240, ge=0, le=1, description=WARMUP)


def loss(
    student: Tensor, teachers: Tensor, labels: Tensor, temperature: Temperature, progress: float, config: Config
) -> Tensor:
    target = most_probable(labels)
    binary_s, binary_t = _binary(student, teachers, target, config.alpha_temperature)
    scd = (binary_t.exp() * (binary_t - binary_s)).sum(-1)

    of_label = teachers.gather(-1, target.expand(teachers.shape[:-1]).unsqueeze(-1))
    is_out = teachers >= of_label  # [K,B,C]
    log_t = hide(soften(teachers, temperature), is_out).log_softmax(-1)
    log_s = hide(soften(student, temperature), is_out).log_softmax(-1)
    mcd = (log_t.exp() * (log_t - log_s)).sum(-1)
    scale = warmed_up(progress, config.warmup)
    return scale * config.alpha * config.alpha_temperature**2 * scd + scale * config.beta * temperature**2 * mcd


def _binary(student: Tensor, teachers: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Logs of (p, 1 - p): the student's of the label [1,B,2], the teachers' of their top classes [K,B,2].

    1 - p is a log-sum-exp over the other classes: the subtraction would round to 0 for a confident network.
    """
    logits = torch.cat([student[None], teachers])  # one pass for both
    index = torch.cat([target[None], teachers.argmax(-1)])
    is_class = torch.arange(student.shape[-1], device=student.device) == index[..., None]
    log_p = (logits / temperature if temperature != 1 else logits).log_softmax(-1)
    rest = log_p.masked_fill(is_class, -math.inf).logsumexp(-1)
    of_student, of_teachers = torch.stack([(log_p * is_class).sum(-1), rest], -1).split([1, len(teachers)])
    return of_student, of_teachers
