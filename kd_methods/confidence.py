"""Most confident teacher: each sample follows the teacher with the highest probability of its label.

The equations stand in `Method`. p(label) is that probability at T = 1; of equal ones the first teacher's counts. It
weighs the two losses per sample, or by default as its mean over the batch, as in the original experiments. The logit
loss includes the factor temperature squared.
"""

from functools import partial
from typing import Literal

from pydantic import Field, model_validator

from kd_methods._base import KDMethod, Metrics, StudentOutput, TeacherOutputs, common_metrics
from kd_methods._config import LogitConfig, Scope
from kd_methods._torch import Tensor, torch
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
    soft = "{logit_loss} to each sample's most confident of {teachers}"
    equations = {  # by use_soft_loss, use_hard_loss
        (True, True): f"loss = a x {soft} + (1 - a) x cross-entropy, where a is that teacher's {{mean}} p(label)",
        (True, False): f"loss = {soft}",
        (False, True): "loss = 1 x cross-entropy",
    }

    def compute(
        self, student: StudentOutput, teachers: TeacherOutputs, labels: Tensor, progress: float
    ) -> tuple[Tensor, Metrics]:
        assert teachers.logits is not None
        config, constant = self.config, partial(student.logits.new_full, ())
        confidence, chosen = most_confident(teachers.logits, labels)  # [B], [K,B]
        usage = chosen.mean(1)

        if config.use_soft_loss:
            per_teacher = self.logit_loss(student, teachers, labels, progress)  # [K,B]
            soft = (chosen * per_teacher).sum(0)  # [B]
        else:
            soft = constant(0)
        hard = self.label_loss(student, labels) if config.use_hard_loss else constant(0)  # [B]

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

    def teacher_weights(
        self, student: StudentOutput, teachers: TeacherOutputs, labels: Tensor, progress: float
    ) -> Tensor:
        assert teachers.logits is not None
        return most_confident(teachers.logits, labels)[1]

    def describe(self, num_teachers: int) -> str:
        switches = self.config.use_soft_loss, self.config.use_hard_loss
        return self.fill_in(self.equations[switches], num_teachers)


def most_confident(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The highest p(label) [B] among teachers' logits [K,B,C], and [K,B] with a 1 at the first teacher that has it."""
    confidence, best = label_probability(logits, labels).max(0)
    index = torch.arange(len(logits), device=best.device)
    return confidence, (index[:, None] == best).to(confidence.dtype)
