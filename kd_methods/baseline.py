"""No distillation: label cross-entropy only, the reference that every method has to beat."""

from typing import Literal

from kd_methods._base import KDMethod, Metrics, StudentOutput, TeacherOutputs, common_metrics
from kd_methods._config import MethodConfig
from kd_methods._torch import Tensor
from kd_methods.logit_losses._base import UseOfSecondView


class Config(MethodConfig):
    uses_labels = False

    type: Literal["baseline"] = "baseline"

    @property
    def second_view(self) -> UseOfSecondView:
        return "optional"  # so that it can be compared with losses of two views


class Method(KDMethod):
    requires_teachers = False
    config: Config
    equation = "loss = 1 x cross-entropy (no teachers)"

    def compute(
        self, student: StudentOutput, teachers: TeacherOutputs, labels: Tensor, progress: float
    ) -> tuple[Tensor, Metrics]:
        loss_ce = self.label_loss(student, labels).mean()
        zero = loss_ce.new_zeros(())
        return loss_ce, {**common_metrics(loss_ce, zero, zero, loss_ce.new_zeros(0)), "loss_ce": loss_ce}

    def describe(self, num_teachers: int) -> str:
        return self.equation
