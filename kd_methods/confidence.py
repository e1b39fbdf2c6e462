"""Most confident teacher: each sample follows the teacher that is surest of its label.

    k*_b = argmax_k p_kb(y_b),   a_b = max_k p_kb(y_b), both at T = 1
    loss = mean_b [a_b l_k*b + (1 - a_b) CE_b]          scope="sample"
    scope="batch", as in the original experiments: a is replaced by its mean over the batch.
l is the configured logit loss (temperature squared included). Equal confidences go to the first such teacher.
"""

from functools import partial
from typing import Literal

import torch
from pydantic import Field, model_validator
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
from kd_methods._weights import label_probability


class Config(LogitConfig):
    type: Literal["confidence"] = "confidence"
    scope: Scope = "batch"
    use_soft_loss: bool = Field(default=True, description="off: label loss only")
    use_hard_loss: bool = Field(default=True, description="off: distillation only")

    @model_validator(mode="after")
    def _some_loss(self) -> "Config":
        if not (self.use_soft_loss or self.use_hard_loss):
            raise ValueError("use_soft_loss and use_hard_loss are both off, which leaves no loss")
        return self


class Method(KDMethod):
    config: Config

    def compute(
        self, student: StudentOutput, teachers: TeacherOutputs, labels: Tensor, progress: float
    ) -> tuple[Tensor, Metrics]:
        assert teachers.logits is not None
        config, constant = self.config, partial(student.logits.new_full, ())
        confidence, best = label_probability(teachers.logits, labels).max(0)  # [B], [B]
        index = torch.arange(len(teachers.logits), device=best.device)
        chosen = (index[:, None] == best).to(confidence.dtype)  # [K,B], one 1 per sample
        usage = chosen.mean(1)

        if config.use_soft_loss:
            per_teacher = self.logit_loss(student.logits, teachers.logits, labels, progress)  # [K,B]
            soft = (chosen * per_teacher).sum(0)  # [B]
        else:
            soft = constant(0)
        hard = self.label_loss(student.logits, labels) if config.use_hard_loss else constant(0)  # [B]

        if not config.use_hard_loss:
            alpha = constant(1)
        elif not config.use_soft_loss:
            alpha = constant(0)
        elif config.scope == "batch":
            (alpha,) = self.batch_means(confidence)  # [1]
        else:
            alpha = confidence
        loss = torch.lerp(hard, soft, alpha).mean()  # alpha soft + (1 - alpha) hard

        loss_soft, loss_hard, dynamic_alpha = soft.mean(), hard.mean(), alpha.mean()
        return loss, {
            **common_metrics(loss_hard, loss_soft, dynamic_alpha, usage),
            "loss_soft": loss_soft,
            "loss_hard": loss_hard,
            "dynamic_alpha": dynamic_alpha,
            "max_teacher_conf_mean": confidence.mean(),
            **{f"teacher_{i}_usage_fraction": fraction for i, fraction in enumerate(usage.unbind())},
        }

    def describe(self, num_teachers: int) -> str:
        config = self.config
        soft = f"{_losses.describe(config)} to each sample's most confident of {count(num_teachers)}"
        if not config.use_hard_loss:
            return f"loss = {soft}"
        if not config.use_soft_loss:
            return "loss = 1 x cross-entropy"
        mean = {"batch": "batch-mean", "sample": "per-sample"}[config.scope]
        return f"loss = a x {soft} + (1 - a) x cross-entropy, where a is that teacher's {mean} p(label)"
