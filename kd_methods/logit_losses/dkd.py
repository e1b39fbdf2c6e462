"""Decoupled knowledge distillation (DKD).  Zhao et al. 2022, arXiv:2203.08679.

    l = T^2 (alpha TCKD + beta NCKD),  q = softmax(. / T)
    TCKD = KL((q_t[y], 1 - q_t[y]) || (q_s[y], 1 - q_s[y]))
    NCKD = KL of q over the classes other than y, normalized to sum to 1

alpha 1; beta 8, the paper's 8, 6 or 2 by the pair of networks. The loss grows linearly from 0 over the first 20 of the
paper's 240 epochs; here over the same fraction of training, step by step. A soft label [B,C] counts as its most
probable class.
"""

import math

from pydantic import Field

from kd_methods._torch import Tensor, torch
from kd_methods._warmup import WARMUP, warmed_up
from kd_methods.logit_losses._base import LossConfig, Temperature, one_hot, soften


class Config(LossConfig):
    equation = "T^2 ({config.alpha:g} TCKD + {config.beta:g} NCKD)"
    terms = ("alpha", "beta")

    alpha: float = Field(default=1.0, ge=0, description="weight of the target-class term (TCKD)")
    beta: float = Field(default=8.0, ge=0, description="weight of the non-target-class term (NCKD)")
    warmup: float = Field(default=20 / 240, ge=0, le=1, description=WARMUP)


def loss(
    student: Tensor, teachers: Tensor, labels: Tensor, temperature: Temperature, progress: float, config: Config
) -> Tensor:
    is_target = one_hot(labels, student)  # [B,C]
    binary_t, others_t = _split_target(soften(teachers, temperature), is_target)
    binary_s, others_s = _split_target(soften(student, temperature), is_target)
    tckd = (binary_t.exp() * (binary_t - binary_s)).sum(-1)
    nckd = (others_t.softmax(-1) * _log_ratio(others_t, others_s, is_target)).sum(-1)
    scale = temperature**2 * warmed_up(progress, config.warmup)
    return scale * config.alpha * tckd + scale * config.beta * nckd


def _split_target(logits: Tensor, is_target: Tensor) -> tuple[Tensor, Tensor]:
    """Log of (p_y, 1 - p_y) [...,B,2], and the logits with the target class at -inf [...,B,C].

    1 - p_y is a log-sum-exp over the other classes: the subtraction would round to 0 for a confident network.
    """
    others = logits.masked_fill(is_target, -math.inf)
    target = (logits * is_target).sum(-1)
    return torch.stack([target, others.logsumexp(-1)], -1).log_softmax(-1), others


def _log_ratio(others_t: Tensor, others_s: Tensor, is_target: Tensor) -> Tensor:
    """log q_t - log q_s over the non-target classes, 0 at the target, where both logs are -inf."""
    return (others_t.log_softmax(-1) - others_s.log_softmax(-1)).masked_fill(is_target, 0.0)
