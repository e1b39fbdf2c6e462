"""Confidence-aware teacher weighting (CA-WKD).  After Zhang, Chen, Wang, ICASSP 2022, arXiv:2201.00007.

    w_kb = (1 - softmax_k CE(t_kb, y_b)) / (K - 1)          w = 1 if K = 1; weights sum to 1 over teachers
    loss = CE(s, y) + sum_k mean_b(w_kb) * mean_b l_kb      scope="batch", as in the original experiments
    loss = CE(s, y) + mean_b sum_k w_kb * l_kb              scope="sample", as in the paper
l is the configured logit loss (temperature squared included).
"""

from typing import Literal

from torch import Tensor

from kd_methods import _losses
from kd_methods._base import (
    KDMethod,
    LogitConfig,
    Metrics,
    Scope,
    StudentOutput,
    TeacherOutputs,
    common_metrics,
    count,
)
from kd_methods._weights import label_confidence_weights


class Config(LogitConfig):
    type: Literal["ca_weighted"] = "ca_weighted"
    scope: Scope = "batch"


class Method(KDMethod):
    config: Config

    def compute(
        self, student: StudentOutput, teachers: TeacherOutputs, labels: Tensor, progress: float
    ) -> tuple[Tensor, Metrics]:
        assert teachers.logits is not None
        per_teacher = self.logit_loss(student.logits, teachers.logits, labels, progress)  # [K,B]
        weights = label_confidence_weights(teachers.logits, labels)  # [K,B]
        if self.config.scope == "batch":
            (weights,) = self.batch_means(weights)  # [K,1]
        loss_kl = (weights * per_teacher).sum(0).mean()
        loss_ce = self.label_loss(student.logits, labels).mean()
        half = loss_ce.new_full((), 0.5)  # both terms have coefficient 1
        common = common_metrics(loss_ce, loss_kl, half, weights.mean(1))
        return loss_ce + loss_kl, {**common, "loss_kl": loss_kl, "loss_ce": loss_ce}

    def describe(self, num_teachers: int) -> str:
        weight = {"batch": "batch-mean", "sample": "per-sample"}[self.config.scope]
        return (
            f"loss = 1 x cross-entropy + sum over {count(num_teachers)} of "
            f"({weight} label-confidence weight) x {_losses.describe(self.config)}"
        )
