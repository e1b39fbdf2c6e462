"""Equal teachers; with one, plain KD.  Hinton et al. 2015, arXiv:1503.02531; You et al., KDD 2017.

    loss = hard_weight CE(s, y) + soft_weight mean_b mean_k l(s_b, t_kb)         average_of="losses"
    loss = hard_weight CE(s, y) + soft_weight mean_b l(s_b, T log mean_k p_kb)   average_of="probabilities"
l is the configured logit loss and p_k = softmax(t_k / T): the second takes the ensemble for one teacher.
"""

import math
from typing import Literal

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from kd_methods import _losses
from kd_methods._base import (
    KDMethod,
    LogitConfig,
    Metrics,
    StudentOutput,
    TeacherOutputs,
    common_metrics,
    count,
)


class Config(LogitConfig):
    balance = ("soft_weight", "hard_weight")

    type: Literal["average"] = "average"
    hard_weight: float = Field(default=1.0, ge=0, description="weight of the label cross-entropy")
    soft_weight: float = Field(default=1.0, ge=0, description="weight of the distillation term")
    average_of: Literal["losses", "probabilities"] = Field(
        default="losses",
        description="average the losses to all teachers, or distil the averaged probabilities",
    )

    @model_validator(mode="after")
    def _some_loss(self) -> "Config":
        if self.hard_weight == self.soft_weight == 0:
            raise ValueError("hard_weight and soft_weight are both 0, which leaves no loss; raise one")
        return self


class Method(KDMethod):
    config: Config

    def compute(
        self, student: StudentOutput, teachers: TeacherOutputs, labels: Tensor, progress: float
    ) -> tuple[Tensor, Metrics]:
        config, targets = self.config, teachers.logits
        assert targets is not None
        num_teachers = len(targets)
        if config.average_of == "probabilities":
            targets = mean_distribution(targets, config.temperature)
        loss_kl = self.logit_loss(student.logits, targets, labels, progress).mean()
        loss_ce = self.label_loss(student.logits, labels).mean()
        loss = config.hard_weight * loss_ce + config.soft_weight * loss_kl
        share = loss_ce.new_full((), config.soft_weight / (config.hard_weight + config.soft_weight))
        weights = loss_ce.new_full((num_teachers,), 1 / num_teachers)
        common = common_metrics(loss_ce, loss_kl, share, weights)
        return loss, {**common, "loss_kl": loss_kl, "loss_ce": loss_ce}

    def describe(self, num_teachers: int) -> str:
        config = self.config
        over = {"losses": "mean over", "probabilities": "to the averaged probabilities of"}[config.average_of]
        return (
            f"loss = {config.hard_weight:g} x cross-entropy + {config.soft_weight:g} x "
            f"{_losses.describe(config)}, {over} {count(num_teachers)}"
        )


def mean_distribution(teachers: Tensor, temperature: float) -> Tensor:
    """Logits [1,B,C] whose softmax at temperature T is the mean over k of softmax(t_k / T), t [K,B,C]."""
    log_p = F.log_softmax(teachers / temperature, -1)
    return temperature * (log_p.logsumexp(0, keepdim=True) - math.log(len(teachers)))
