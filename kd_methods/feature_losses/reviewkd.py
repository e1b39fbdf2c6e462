"""Knowledge review (ReviewKD).  Chen et al., CVPR 2021, arXiv:2104.09044, as in the authors' code.

    l_b = sum over levels of HCL(g_l(f_l), F_t_l)

From the deepest level to the shallowest, the student's map becomes f_l = BN(1x1(F_s_l)); but for the deepest level it
is mixed with what came from the level above, resized, by a sigmoid attention of two channels; resized to the
teacher's side it goes on to the next level, and g_l = BN(3x3(.)) compares it. HCL is the mean squared error at full
size, plus 1/2, 1/4 and 1/8 of that of maps pooled to sides 4, 2 and 1, over the sum of these weights.

The levels are the stages and then the embedding as a map of one position. Weight 1; the authors use 0.6 to 8 by the
pair of networks, and grow it over the first 20 of 240 epochs. Their teacher's maps are those before the last ReLU of
a stage: name that module where the network has one, a stage's index gives the map after it. Kept of a teacher: its
maps.
"""

from typing import Any, Literal

from pydantic import Field

from kd_methods._torch import Tensor, torch
from kd_methods._warmup import WARMUP
from kd_methods.feature_losses._base import Batch, FeatureLoss, Layer, MapConfig, Shape, as_map, map_shape, sum_layers
from kd_methods.feature_losses._projectors import conv_bn, seeded

LEVELS: list[Layer] = [-3, -2, -1, "embedding"]
POOLED = (4, 2, 1)  # sides of the pooled maps of HCL; each counts half of the one before


class Config(MapConfig):
    equation = "knowledge review (width {config.width})"

    loss: Literal["reviewkd"] = "reviewkd"
    student: list[Layer] = Field(default=LEVELS, min_length=1, description="layers of the student, shallow to deep")
    teacher: list[Layer] | list[list[Layer]] = Field(
        default=LEVELS, min_length=1, description="layers of every teacher, or one list for each"
    )
    warmup: float = Field(default=20 / 240, ge=0, le=1, description=WARMUP)
    width: int = Field(default=512, ge=1, description="most channels of the fused maps; at most the deepest level's")


class Loss(FeatureLoss):
    config: Config
    kept_by = ()
    kinds = ("map", "tokens", "embedding")
    enter: Any  # of each level, shallow to deep: to the common width
    leave: Any  # to the teacher's channels
    attention: Any  # of each level but the deepest

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        own, other = ([level_shape(shape) for shape in shapes] for shapes in (self.student_shapes, self.teacher_shapes))
        width = min(self.config.width, own[-1][0])
        self.sizes = [shape[1:] for shape in other]
        modules = torch.nn.ModuleList
        with seeded(self.seed):
            self.enter = modules(conv_bn(shape[0], width, 1) for shape in own)
            self.leave = modules(conv_bn(width, shape[0], 3) for shape in other)
            self.attention = modules(torch.nn.Conv2d(2 * width, 2, 1) for _ in own[1:])

    def keep(self, teacher: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(map(as_level, teacher))

    def fused(self, student: tuple[Tensor, ...]) -> list[Tensor]:
        """The student's maps [B,Ct,Ht,Wt] of each level, shallow to deep, each fused with the levels above it."""
        maps: list[Tensor] = []
        above: Tensor | None = None
        for level in reversed(range(len(student))):
            fused = self.enter[level](as_level(student[level]))
            if above is not None:
                above = resized(above, fused.shape[-2:])
                mix = torch.sigmoid(self.attention[level](torch.cat([fused, above], 1)))
                fused = fused * mix[:, :1] + above * mix[:, 1:]
            above = resized(fused, self.sizes[level])
            maps.append(self.leave[level](above))
        return maps[::-1]

    def forward(self, student: tuple[Tensor, ...], kept: tuple[Tensor, ...], batch: Batch) -> Tensor:
        return sum_layers(hcl(own, other) for own, other in zip(self.fused(student), kept, strict=True))


def hcl(student: Tensor, teacher: Tensor) -> Tensor:
    """Hierarchical context loss [B] of maps [B,C,H,W]: the weighted mean of their squared errors at several sizes."""
    loss = (student - teacher).square().mean((1, 2, 3))
    weight = total = 1.0
    for side in POOLED:
        if side >= student.shape[-2]:
            continue
        weight /= 2
        difference = torch.nn.functional.adaptive_avg_pool2d(student - teacher, side)
        loss = loss + weight * difference.square().mean((1, 2, 3))
        total += weight
    return loss / total


def as_level(features: Tensor) -> Tensor:
    """Features as a map: an embedding [B,D] becomes [B,D,1,1]."""
    return features[:, :, None, None] if features.ndim == 2 else as_map(features)


def level_shape(shape: Shape) -> Shape:
    return (*shape, 1, 1) if len(shape) == 1 else map_shape(shape)


def resized(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Maps at `size` (h,w), each position that of the nearest one."""
    if maps.shape[-2:] == tuple(size):
        return maps
    return torch.nn.functional.interpolate(maps, tuple(size), mode="nearest")
