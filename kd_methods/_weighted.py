"""What weightings share: a label term and a distillation term with numbers of their own, and weights of the teachers.

    loss = hard_weight mean_b CE_b + soft_weight mean_b sum_k r w_kb l_kb

The weights w sum to 1 over the teachers. r is 1, or with `normalize: reference` what the weights of the authors' code
sum to. With one teacher its weight is 1.
"""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from kd_methods._base import KDMethod, Metrics, StudentOutput, TeacherOutputs, common_metrics
from kd_methods._config import SCOPE_WORDS, LogitConfig, Scope
from kd_methods._torch import Tensor


class BalancedConfig(LogitConfig):
    """Hyperparameters of a method whose two terms have coefficients of their own."""

    balance = ("soft_weight", "hard_weight")

    hard_weight: float = Field(default=1.0, ge=0, description="weight of the label cross-entropy")
    soft_weight: float = Field(default=1.0, ge=0, description="weight of the distillation term")

    @property
    def soft_share(self) -> float:
        """The distillation term's part of both coefficients; 0 if features are the whole loss."""
        return self.soft_weight / (self.hard_weight + self.soft_weight or 1.0)

    @model_validator(mode="after")
    def _some_loss(self) -> "BalancedConfig":
        features = getattr(self, "features", [])
        if self.hard_weight == self.soft_weight == 0 and not any(entry.weight for entry in features):
            raise ValueError("hard_weight and soft_weight are both 0, which leaves no loss; raise one")
        return self


class WeightedConfig(BalancedConfig):
    """Hyperparameters of a weighting."""

    scope: Scope = "sample"


class PublishedConfig(WeightedConfig):
    """Hyperparameters of a weighting that the authors' code may scale in another way."""

    normalize: Literal["sum1", "reference"] = Field(
        default="sum1", description="sum1: weights sum to 1 over the teachers; reference: as in the authors' code"
    )


class WeightedMethod(KDMethod):
    """A weighting. Subclasses write `weigh` and name their weights in `words`."""

    config: WeightedConfig
    words: ClassVar[str]
    equation = (
        "loss = {config.hard_weight:g} x cross-entropy + {config.soft_weight:g} x sum over {teachers} of "
        "({weight}) x {logit_loss}"
    )

    def weigh(self, student: StudentOutput, teachers: TeacherOutputs, labels: Tensor, progress: float) -> Tensor:
        """Weights [K,B], or [K,1] if the method has `shared_weights`, that sum to 1; K > 1."""
        raise NotImplementedError

    def reference_sum(self, num_teachers: int) -> float:
        """What the weights sum to in the authors' code."""
        return 1.0

    def teacher_weights(
        self, student: StudentOutput, teachers: TeacherOutputs, labels: Tensor, progress: float
    ) -> Tensor:
        assert teachers.logits is not None
        per_sample = self.config.scope == "sample" and not self.shared_weights
        if len(teachers.logits) == 1:
            return teachers.logits.new_ones(1, len(labels) if per_sample else 1)
        weights = self.weigh(student, teachers, labels, progress)
        return weights if per_sample or self.shared_weights else self.batch_means(weights)[0]

    def compute(
        self, student: StudentOutput, teachers: TeacherOutputs, labels: Tensor, progress: float
    ) -> tuple[Tensor, Metrics]:
        assert teachers.logits is not None
        config = self.config
        per_teacher = self.logit_loss(student, teachers, labels, progress)  # [K,B]
        weights = self.teacher_weights(student, teachers, labels, progress)
        loss_kl = (weights * per_teacher).sum(0).mean()
        if (total := self._sum_of_weights(len(weights))) != 1:
            loss_kl = total * loss_kl
        loss_ce = self.label_loss(student, labels).mean()
        loss = config.hard_weight * loss_ce + config.soft_weight * loss_kl
        share = loss_ce.new_full((), config.soft_share)
        common = common_metrics(loss_ce, loss_kl, share, weights.mean(1))
        return loss, {**common, "loss_kl": loss_kl, "loss_ce": loss_ce}

    def _sum_of_weights(self, num_teachers: int) -> float:
        reference = getattr(self.config, "normalize", "sum1") == "reference"
        return self.reference_sum(num_teachers) if reference else 1.0

    def describe(self, num_teachers: int) -> str:
        weight = self.words if self.shared_weights else f"{SCOPE_WORDS[self.config.scope]} {self.words}"
        if (total := self._sum_of_weights(num_teachers)) != 1:
            weight += f" x {total:.3g}"
        return self.fill_in(self.equation, num_teachers, weight=weight)
