"""Scale-decoupled distillation (SDD).  Wei, Luo and Luo, CVPR 2024, arXiv:2403.13512, as in the authors' code.

    l_b = mean over regions r of c_br l(s_br, t_br)

Regions are the cells of the last map pooled to 1x1, 2x2 and 4x4 (`scales`), their logits what the last linear layer
makes of them; l is a logit loss at T, T squared included. A region counts c = `complementary`, 2, where the teacher
is right in it and wrong on the whole map or the reverse, 1 otherwise. A soft label counts as its most probable class.
The authors give the sum as the mean over all regions of all scales. Kept of a teacher: the map pooled to the finest
scale, of which the coarser ones are made.
"""

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from kd_methods import logit_losses
from kd_methods._torch import Tensor, torch
from kd_methods._weights import most_probable
from kd_methods.feature_losses._base import LAST, Batch, Classifier, FeatureConfig, FeatureLoss, Layer, as_map
from kd_methods.feature_losses._projectors import class_maps

if TYPE_CHECKING:
    LossName = str
else:
    LossName = Literal[logit_losses.OWN]


class Config(FeatureConfig):
    equation = "scale-decoupled {config.base} at T={config.temperature:g} (scales {config.scales})"
    uses_labels = True

    loss: Literal["sdd"] = "sdd"
    student: list[Layer] = Field(default=LAST, min_length=1, description="layer of the student: its last map")
    teacher: list[Layer] | list[list[Layer]] = Field(
        default=LAST, min_length=1, description="last map of every teacher, or one list for each teacher"
    )
    base: LossName = Field(default="kd", description="the logit loss of each region, with its default parameters")
    temperature: float = Field(default=4.0, gt=0, description="softens the logits of the regions")
    scales: list[Annotated[int, Field(ge=1)]] = Field(
        default=[1, 2, 4], min_length=1, description="sides of the grids of regions"
    )
    complementary: float = Field(
        default=2.0, ge=0, description="how much a region counts that disagrees with the whole"
    )

    @field_validator("base")
    @classmethod
    def _of_one_region(cls, value: str) -> str:
        if not _suits(value):
            allowed = ", ".join(name for name in logit_losses.OWN if _suits(name))
            raise ValueError(f"is {value!r}, and a region needs a loss of one sample and one view; choose {allowed}")
        return value

    @model_validator(mode="after")
    def _temperature_counts(self) -> Self:
        stated = type(self).model_fields["temperature"].default
        if not logit_losses.config_class(self.base).uses_temperature and self.temperature != stated:
            raise ValueError(f"base {self.base!r} has no temperature; remove `temperature`")
        return self


def _suits(name: str) -> bool:
    """Whether a logit loss can compare a region with itself alone: not with other samples, not with a second view."""
    config = logit_losses.config_class(name)
    return config.second_view == "unused" and not config.of_batch


class Loss(FeatureLoss):
    config: Config
    kept_by = ("scales",)
    number = 1
    needs_student_classifier = True
    needs_teacher_classifier = True

    def keep(self, teacher: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (torch.nn.functional.adaptive_avg_pool2d(as_map(teacher[0]), max(self.config.scales)),)

    def regions(self, finest: Tensor, classifier: Classifier | None) -> tuple[Tensor, Tensor]:
        """Logits of all regions [B,R,C] and of the whole map [B,C], of the map pooled to the finest scale."""
        pool = torch.nn.functional.adaptive_avg_pool2d
        grids = [class_maps(pool(finest, side), classifier).flatten(2) for side in (*self.config.scales, 1)]
        return torch.cat(grids[:-1], 2).transpose(1, 2), grids[-1][:, :, 0]

    def forward(self, student: tuple[Tensor, ...], kept: tuple[Tensor, ...], batch: Batch) -> Tensor:
        own, _ = self.regions(self.keep(student)[0], batch.student_classifier)
        other, whole = self.regions(kept[0], batch.teacher_classifier)
        label = most_probable(batch.labels)  # [B]
        unlike = (other.argmax(-1) == label[:, None]) != (whole.argmax(-1) == label)[:, None]  # [B,R]
        count = own.shape[1]
        loss = logit_losses.function(self.config.base, logit_losses.config_class(self.config.base)())
        repeated = batch.labels.repeat_interleave(count, 0)
        flat = own.flatten(0, 1), other.flatten(0, 1)[None]  # [BR,C], [1,BR,C]
        values = loss(*flat, repeated, self.config.temperature, batch.progress)[0].unflatten(0, (-1, count))
        return torch.where(unlike, self.config.complementary * values, values).mean(1)
