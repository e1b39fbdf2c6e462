"""Class attention transfer (CAT-KD).  Guo et al., CVPR 2023; the authors' code, github.com/GzyAftermath/CAT-KD.

    l_b = mean over classes and positions of (a_s - a_t)^2,  a = m / ||m||
    m = class activation map, average-pooled to resolution x resolution

The class activation map is the last map weighted by the last linear layer, without its bias, which says nothing of
positions; each class's pooled map has unit norm over positions. Kept of a teacher: its pooled map, as pooling and the
linear layer can change places.
"""

from typing import Any, Literal

from pydantic import Field

from kd_methods._torch import Tensor, torch
from kd_methods.feature_losses._base import LAST, Batch, FeatureConfig, FeatureLoss, Layer, as_map, unit
from kd_methods.feature_losses._projectors import class_maps


class Config(FeatureConfig):
    equation = "class attention transfer at {config.resolution}x{config.resolution}"

    loss: Literal["cat_kd"] = "cat_kd"
    weight: float = Field(default=400.0, ge=0, description="factor of this loss")
    student: list[Layer] = Field(default=LAST, min_length=1, description="layer of the student: its last map")
    teacher: list[Layer] | list[list[Layer]] = Field(
        default=LAST, min_length=1, description="last map of every teacher, or one list for each teacher"
    )
    resolution: int = Field(default=2, ge=2, description="side of the pooled class activation maps")


class Loss(FeatureLoss):
    config: Config
    kept_by = ("resolution",)
    number = 1
    needs_student_classifier = True
    needs_teacher_classifier = True

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        for whose, (_, height, width) in zip(("student", "teacher"), self.map_pairs()[0], strict=True):
            if height * width == 1:
                raise ValueError(f"{whose}[0] is a map of one position, which is 1 or -1 when scaled to length 1")

    def pooled(self, maps: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(maps, self.config.resolution)

    def keep(self, teacher: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (self.pooled(as_map(teacher[0])),)

    def forward(self, student: tuple[Tensor, ...], kept: tuple[Tensor, ...], batch: Batch) -> Tensor:
        own = class_maps(self.pooled(as_map(student[0])), batch.student_classifier, bias=False)
        other = class_maps(kept[0], batch.teacher_classifier, bias=False)
        return between_maps(own, other)


def between_maps(student: Tensor, teacher: Tensor) -> Tensor:
    """The loss of each image [B] of pooled class activation maps [B,C,h,w]."""
    return (unit(student.flatten(2), 2) - unit(teacher.flatten(2), 2)).square().mean((1, 2))
