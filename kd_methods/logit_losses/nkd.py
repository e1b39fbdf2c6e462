"""Normalized knowledge distillation (NKD).  Yang et al., ICCV 2023, arXiv:2303.13005.

    l = -p_t[y] log p_s[y] - gamma T^2 sum_{c != y} q_t[c] log q_s[c]

p = softmax(.) is at temperature 1; q = softmax(. / T) over the classes other than y. Both terms are cross-entropies,
so the loss is not 0 where student and teacher agree. gamma 1.5 and T 1 in the paper. A soft label [B,C] counts as its
most probable class.
"""

from pydantic import Field

from kd_methods._torch import Tensor
from kd_methods.logit_losses._base import LossConfig, Temperature, hide, one_hot, soften


class Config(LossConfig):
    equation = "(target-class cross-entropy at T=1 + {config.gamma:g} T^2 non-target cross-entropy)"

    gamma: float = Field(default=1.5, ge=0, description="weight of the cross-entropy over the non-target classes")


def loss(
    student: Tensor, teachers: Tensor, labels: Tensor, temperature: Temperature, progress: float, config: Config
) -> Tensor:
    is_target = one_hot(labels, student)  # [B,C]
    target = ((teachers.softmax(-1) * student.log_softmax(-1)) * is_target).sum(-1)
    others_t = hide(soften(teachers, temperature), is_target).softmax(-1)
    others_s = hide(soften(student, temperature), is_target).log_softmax(-1)
    return -target - config.gamma * temperature**2 * (others_t * others_s).sum(-1)
