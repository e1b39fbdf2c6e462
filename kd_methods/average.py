"""Equal teachers; with one teacher, plain KD.  Hinton et al. 2015, arXiv:1503.02531; You et al., KDD 2017.

The equations stand in `Method`. The averaged probabilities are mean_k softmax(t_k / T): the ensemble as one teacher.
The logit loss includes the factor temperature squared.
"""

import math
from typing import Literal

from pydantic import Field, model_validator

from kd_methods._base import KDMethod, Metrics, StudentOutput, TeacherOutputs, common_metrics
from kd_methods._torch import Tensor, torch
from kd_methods._weighted import BalancedConfig
from kd_methods._weights import equal_weights


class Config(BalancedConfig):
    uses_labels = False

    type: Literal["average"] = "average"
    average_of: Literal["losses", "probabilities"] = Field(
        default="losses",
        description="average the losses to all teachers, or distill the averaged probabilities",
    )

    @model_validator(mode="after")
    def _one_temperature(self) -> "Config":
        if self.average_of == "probabilities" and self.teacher_temperatures:
            raise ValueError("average_of probabilities has one temperature; leave teacher_temperatures out")
        return self


class Method(KDMethod):
    config: Config
    both = "loss = {config.hard_weight:g} x cross-entropy + {config.soft_weight:g} x {logit_loss}"
    equations = {
        "losses": both + ", mean over {teachers}",
        "probabilities": both + ", to the averaged probabilities of {teachers}",
    }

    def compute(
        self, student: StudentOutput, teachers: TeacherOutputs, labels: Tensor, progress: float
    ) -> tuple[Tensor, Metrics]:
        config, targets = self.config, teachers
        if config.average_of == "probabilities":
            targets = ensemble(teachers, config.temperature_of(0))
        loss_kl = self.logit_loss(student, targets, labels, progress).mean()
        loss_ce = self.label_loss(student, labels).mean()
        loss = config.hard_weight * loss_ce + config.soft_weight * loss_kl
        share = loss_ce.new_full((), config.soft_share)
        weights = self.teacher_weights(student, teachers, labels, progress)
        common = common_metrics(loss_ce, loss_kl, share, weights.squeeze(1))
        return loss, {**common, "loss_kl": loss_kl, "loss_ce": loss_ce}

    def teacher_weights(
        self, student: StudentOutput, teachers: TeacherOutputs, labels: Tensor, progress: float
    ) -> Tensor:
        assert teachers.logits is not None
        return equal_weights(teachers.logits)

    def describe(self, num_teachers: int) -> str:
        return self.fill_in(self.equations[self.config.average_of], num_teachers)


def ensemble(teachers: TeacherOutputs, temperature: float) -> TeacherOutputs:
    """The teachers as one, with the mean of their probabilities at the temperature, on both views."""
    assert teachers.logits is not None
    second = None if teachers.second is None else mean_distribution(teachers.second, temperature)
    return TeacherOutputs(mean_distribution(teachers.logits, temperature), second=second)


def mean_distribution(teachers: Tensor, temperature: float) -> Tensor:
    """Logits [1,B,C] whose softmax at temperature T is the mean over k of softmax(t_k / T), t [K,B,C]."""
    log_p = torch.log_softmax(teachers / temperature, -1)
    return temperature * (log_p.logsumexp(0, keepdim=True) - math.log(len(teachers)))
