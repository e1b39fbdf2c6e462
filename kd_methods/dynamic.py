"""Confidence-gated distillation: trust the teachers where they are right, the labels elsewhere.

The equations stand in `Method`. The label-confidence weight of teacher k on sample b is w_kb of ca_weighted, and a
teacher's confidence is p_kb(y_b) at T = 1. Weights and gate are per sample, or by default their means over the batch,
as in the original experiments. With one teacher there is no gate. The logit loss includes the factor temperature
squared.
"""

from functools import partial
from typing import Literal

from pydantic import Field, model_validator

from kd_methods._base import KDMethod, Metrics, StudentOutput, TeacherOutputs, common_metrics
from kd_methods._config import LogitConfig, Scope
from kd_methods._torch import Tensor, torch
from kd_methods._weights import label_confidence_weights, label_probability


class Config(LogitConfig):
    balance = ("alpha", "threshold")

    type: Literal["dynamic"] = "dynamic"
    scope: Scope = "batch"
    gamma: float = Field(default=10.0, ge=0, description="steepness of the gate")
    threshold: float = Field(
        default=0.5, ge=0, le=1, description="mean teacher p(y) at which the gate is half open"
    )
    alpha: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="scales the label loss; with one teacher the weight of the soft loss",
    )
    use_soft_loss: bool = Field(default=True, description="off: alpha x label loss only")
    use_hard_loss: bool = Field(default=True, description="off: distillation only")

    @model_validator(mode="after")
    def _some_loss(self) -> "Config":
        if not self.use_soft_loss and not (self.use_hard_loss and self.alpha > 0):
            raise ValueError(
                "use_soft_loss is off, and use_hard_loss is off or alpha is 0, which leaves no loss"
            )
        return self


class Method(KDMethod):
    config: Config
    soft = "sum over {teachers} of ({mean} label-confidence weight) x {logit_loss}"
    several_teachers = (
        f"loss = g x [{soft}] + (1 - g) x {{config.alpha:g}} x cross-entropy, where g is the {{mean}} "
        "sigmoid({config.gamma:g} x (mean teacher confidence - {config.threshold:g}))"
    )
    one_teacher = "loss = {config.alpha:g} x {logit_loss} + {rest:g} x cross-entropy"  # rest: 1 - alpha
    soft_only = f"loss = {soft}"
    hard_only = "loss = {config.alpha:g} x cross-entropy"

    def compute(
        self, student: StudentOutput, teachers: TeacherOutputs, labels: Tensor, progress: float
    ) -> tuple[Tensor, Metrics]:
        assert teachers.logits is not None
        config, constant = self.config, partial(student.logits.new_full, ())
        confidence = label_probability(teachers.logits, labels)  # [K,B]
        average_confidence = confidence.mean()
        weights = label_confidence_weights(teachers.logits, labels)  # [K,B]
        gate = torch.sigmoid(config.gamma * (confidence.mean(0) - config.threshold))  # [B]
        if config.scope == "batch" and config.use_soft_loss:
            weights, gate = self.batch_means(weights, gate)  # [K,1], [1]

        if config.use_soft_loss:
            per_teacher = self.logit_loss(student, teachers, labels, progress)  # [K,B]
            soft = (weights * per_teacher).sum(0)  # [B]
        else:
            soft = constant(0)
        hard = self.label_loss(student, labels) if config.use_hard_loss else constant(0)  # [B]
        loss_soft, loss_hard = soft.mean(), hard.mean()

        if not config.use_hard_loss:
            loss, gate, kd_weight = loss_soft, constant(1), constant(1)
        elif not config.use_soft_loss:
            loss, gate, kd_weight, average_confidence = config.alpha * loss_hard, *map(constant, (0, 0, 0))
        elif len(teachers.logits) == 1:
            loss = torch.lerp(loss_hard, loss_soft, config.alpha)
            gate, kd_weight = constant(1), constant(config.alpha)
        else:
            loss = torch.lerp(config.alpha * hard, soft, gate).mean()  # gate soft + (1 - gate) alpha hard
            if config.alpha > 0:
                share = gate / torch.add(gate, 1 - gate, alpha=config.alpha)  # gate + alpha (1 - gate)
            else:
                share = (gate > 0).to(gate.dtype)  # without a label term; 0 where a shut gate leaves no loss at all
            # A mean of shares, not a share of means: that is what adds up over processes.
            gate, kd_weight = gate.mean(), share.mean()
        return loss, {
            **common_metrics(loss_hard, loss_soft, kd_weight, weights.mean(1)),
            "loss_soft": loss_soft,
            "loss_hard": loss_hard,
            "gate": gate,
            "avg_teacher_conf": average_confidence,
        }

    def teacher_weights(
        self, student: StudentOutput, teachers: TeacherOutputs, labels: Tensor, progress: float
    ) -> Tensor:
        assert teachers.logits is not None
        weights = label_confidence_weights(teachers.logits, labels)  # [K,B]
        return self.batch_means(weights)[0] if self.config.scope == "batch" else weights

    def describe(self, num_teachers: int) -> str:
        config = self.config.in_words()
        if config.use_soft_loss and config.use_hard_loss:
            equation = self.one_teacher if num_teachers == 1 else self.several_teachers
        else:
            equation = self.soft_only if config.use_soft_loss else self.hard_only
        return self.fill_in(equation, num_teachers, rest=1 - config.alpha)
