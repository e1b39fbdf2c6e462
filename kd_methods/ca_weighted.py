"""Confidence-aware teacher weighting (CA-WKD).  After Zhang, Chen, Wang, ICASSP 2022, arXiv:2201.00007.

    w_kb = (1 - softmax_k CE(t_kb, y_b)) / (K - 1)      w = 1 if K = 1; weights sum to 1 over teachers

is the label-confidence weight in `Method.equation`, per sample, as in the paper, or by default its mean over the batch,
as in the original experiments. The logit loss includes the factor temperature squared.
"""

from typing import Literal

from kd_methods._base import KDMethod, Metrics, StudentOutput, TeacherOutputs, common_metrics
from kd_methods._config import LogitConfig, Scope
from kd_methods._torch import Tensor
from kd_methods._weights import label_confidence_weights


class Config(LogitConfig):
    type: Literal["ca_weighted"] = "ca_weighted"
    scope: Scope = "batch"


class Method(KDMethod):
    config: Config
    equation = "loss = 1 x cross-entropy + sum over {teachers} of ({mean} label-confidence weight) x {logit_loss}"

    def compute(
        self, student: StudentOutput, teachers: TeacherOutputs, labels: Tensor, progress: float
    ) -> tuple[Tensor, Metrics]:
        assert teachers.logits is not None
        per_teacher = self.logit_loss(student, teachers, labels, progress)  # [K,B]
        weights = self.teacher_weights(student, teachers, labels, progress)
        loss_kl = (weights * per_teacher).sum(0).mean()
        loss_ce = self.label_loss(student, labels).mean()
        half = loss_ce.new_full((), 0.5)  # both terms have coefficient 1
        common = common_metrics(loss_ce, loss_kl, half, weights.mean(1))
        return loss_ce + loss_kl, {**common, "loss_kl": loss_kl, "loss_ce": loss_ce}

    def teacher_weights(
        self, student: StudentOutput, teachers: TeacherOutputs, labels: Tensor, progress: float
    ) -> Tensor:
        assert teachers.logits is not None
        weights = label_confidence_weights(teachers.logits, labels)  # [K,B]
        if self.config.scope == "batch":
            (weights,) = self.batch_means(weights)  # [K,1]
        return weights

    def describe(self, num_teachers: int) -> str:
        return self.fill_in(self.equation, num_teachers)
