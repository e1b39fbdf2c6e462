"""The feature term of CA-MKD.  Zhang, Chen and Wang, ICASSP 2022, arXiv:2201.00007.

    loss = mean_b sum_k v_kb ||r_k(F_s) - F_t_k||^2 / elements,  v_kb = (1 - softmax_k CE(h_k(r_k(F_s)), y_b)) / (K - 1)

r_k resizes the student's last map to the teacher's side (average pooling, or bilinear if it is smaller), then 1x1
with bias, BatchNorm and ReLU; h_k is the teacher's last linear layer on the spatial mean. So the teachers' weights
are this loss's own: a teacher counts where its classifier can read what the student's map becomes. They sum to 1, are
detached, and are 1 for one teacher.

`form: reference` is what the authors' code does: the sum is divided by K once more, gradients reach the student
through the weights, and each teacher resizes the map that was made for the one before it, by pooling or interpolation
as the student's own side asks. Their weight is 50, their term starts after the first of 240 epochs; `warmup` grows it
instead. Kept of a teacher: its last map.
"""

from typing import Any, Literal

from pydantic import Field

from kd_methods._torch import Tensor, torch
from kd_methods._weights import at_label, confidence_weights
from kd_methods.feature_losses._base import (
    LAST,
    Batch,
    FeatureConfig,
    FeatureLoss,
    Layer,
    Shape,
    as_map,
    map_shape,
    pooled,
)
from kd_methods.feature_losses._projectors import class_maps, conv_bn, seeded


class Config(FeatureConfig):
    equation = "feature term of CA-MKD (form {config.form})"
    uses_labels = True

    loss: Literal["ca_mkd"] = "ca_mkd"
    weight: float = Field(default=50.0, ge=0, description="factor of this loss")
    student: list[Layer] = Field(default=LAST, min_length=1, description="layer of the student: its last map")
    teacher: list[Layer] | list[list[Layer]] = Field(
        default=LAST, min_length=1, description="last map of every teacher, or one list for each teacher"
    )
    form: Literal["sum1", "reference"] = Field(
        default="sum1", description="sum1: weights sum to 1 and are detached; reference: as in the authors' code"
    )


class Loss(FeatureLoss):
    config: Config
    kept_by = ()
    number = 1
    needs_teacher_classifier = True
    regressor: Any

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        ((own, other),) = self.map_pairs()
        before = self.earlier if self.config.form == "reference" else ()
        self.side = own[1:]
        self.sizes = [size(shape) for shape in (*(map_shape(shapes[0]) for shapes in before), other)]
        with seeded(self.seed):
            self.regressor = conv_bn(own[0], other[0], 1, bias=True, relu=True)

    def keep(self, teacher: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (as_map(teacher[0]),)

    def forward(self, student: tuple[Tensor, ...], kept: tuple[Tensor, ...], batch: Batch) -> Tensor:
        """[2,B]: the mean squared error, and the cross-entropy of the teacher's classifier on the regressed map."""
        maps = as_map(student[0])
        for size_ in self.sizes:
            maps = resized(maps, self.side, size_)
        regressed = self.regressor(maps)
        error = (regressed - kept[0]).square().mean((1, 2, 3))
        logits = class_maps(regressed.mean((2, 3), keepdim=True), batch.teacher_classifier).flatten(1)  # [B,C]
        return torch.stack([error, -at_label(torch.log_softmax(logits, -1)[None], batch.labels)[0]])

    def combine(self, values: list[Tensor], weights: Tensor) -> Tensor:
        errors, cross_entropy = torch.stack(values, 1)  # [K,B] each
        own = confidence_weights(cross_entropy)
        if self.config.form == "reference":
            return (own * errors).mean()  # over teachers too
        return (own.detach() * errors).sum(0).mean()


def size(shape: Shape) -> tuple[int, int]:
    """(h,w) of a map of `shape` (C,H,W)."""
    _, height, width = shape
    return height, width


def resized(maps: Tensor, side: tuple[int, ...], size: tuple[int, int]) -> Tensor:
    """Maps at `size`: pooled where `side`, the student's, is at least that; interpolated where it is smaller."""
    if maps.shape[-2:] == tuple(size):
        return maps
    if side[0] >= size[0] and side[1] >= size[1]:
        return pooled(maps, size)
    return torch.nn.functional.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)
