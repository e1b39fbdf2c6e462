"""One-for-all distillation between unlike networks (OFA-KD).  Hao et al., NeurIPS 2023, arXiv:2310.19444.

    l_b = [l(s)] + sum over layers of l(branch(F_s)),  l(z) = - sum_c [(p_t,c + 1[c=y])^eps - 1[c=y]] log softmax(z)_c

p_t = softmax of the teacher's logits at T = 1. A branch makes logits of a layer of the student. eps 1; the authors
take 1 to 1.5. With `logits` the student's own logits count too, as in the paper. A soft label counts as its most
probable class. The teacher's features are not needed: nothing is kept but its logits.

The branch of a map: separable convolutions of stride 2, each with BatchNorm and ReLU, until its side is at most 8 (a
1x1 if it is already), mean over positions, linear layer. Stages of 56, 28, 14 and 7 get three, two, one and none, as
in the authors' code. It ends in as many channels as the student's deepest layer, theirs in the teacher's if these are
more. The branch of tokens: 2x2 patches are merged until their side is at most 8, then as many transformer blocks as
there are deeper layers, at least one, and a linear layer on the class token, or on the mean of the patches where
there is none.
"""

import math
from typing import Any, Literal

from pydantic import Field

from kd_methods._module import LazyModule
from kd_methods._torch import Tensor, torch
from kd_methods._weights import most_probable
from kd_methods.feature_losses._base import Batch, FeatureLoss, Layer, MapConfig, Shape, map_shape
from kd_methods.feature_losses._projectors import BatchNorm, seeded

SMALL = 8  # side of a map that is halved no more
HEADS = 4  # of the attention over tokens, where the width allows it


class Config(MapConfig):
    equation = "OFA-KD (eps={config.eps:g})"
    uses_labels = True

    loss: Literal["ofa"] = "ofa"
    teacher: list[Layer] | list[list[Layer]] = Field(default=[], description="not needed: the teacher's logits are")
    eps: float = Field(default=1.0, gt=0, description="power of the teacher's probabilities")
    logits: bool = Field(default=True, description="add the loss of the student's own logits")


class Loss(FeatureLoss):
    config: Config
    kept_by = ()
    of_teacher_logits = True
    branches: Any

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        if self.num_classes is None:
            raise ValueError("the loss needs num_classes")
        width = map_shape(self.student_shapes[-1])[0]
        with seeded(self.seed):
            self.branches = torch.nn.ModuleList(
                map_branch(shape, width, self.num_classes)
                if len(shape) == 3
                else TokenBranch(shape, max(len(self.student_shapes) - 1 - place, 1), self.num_classes)
                for place, shape in enumerate(self.student_shapes)
            )

    def keep(self, teacher: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return ()

    def forward(self, student: tuple[Tensor, ...], kept: tuple[Tensor, ...], batch: Batch) -> Tensor:
        logits = [branch(features) for branch, features in zip(self.branches, student, strict=True)]
        if self.config.logits:
            logits.append(batch.student_logits)
        return adapted(torch.stack(logits), batch.teacher_logits, batch.labels, self.config.eps).sum(0)


def adapted(student: Tensor, teacher: Tensor, labels: Tensor, eps: float) -> Tensor:
    """The loss [...,B] of student logits [...,B,C] and teacher logits [B,C]; labels int64 [B] or soft [B,C]."""
    label = most_probable(labels)
    target = (torch.arange(teacher.shape[-1], device=label.device) == label[:, None]).to(teacher.dtype)  # [B,C]
    wanted = (torch.softmax(teacher, -1) + target).pow(eps) - target
    return -(wanted * torch.log_softmax(student, -1)).sum(-1)


def map_branch(shape: Shape, width: int, num_classes: int) -> Any:
    """A module that makes logits [B,num_classes] of maps [B,*shape]."""
    channels, *sides = shape
    side, layers = min(sides), []
    while side > SMALL:
        side = (side + 1) // 2
        out = 2 * channels if side > SMALL else width
        layers += halving(channels, out)
        channels = out
    layers = layers or [torch.nn.Conv2d(channels, width, 1)]
    return torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), head(width, num_classes))


def halving(channels: int, out: int) -> list[Any]:
    """Two separable 3x3 convolutions with BatchNorm and ReLU, the first of stride 2."""
    layers = []
    for inside, outside, stride in ((channels, channels, 2), (channels, out, 1)):
        depthwise = torch.nn.Conv2d(inside, inside, 3, stride, padding=1, groups=inside, bias=False)
        pointwise = torch.nn.Conv2d(inside, outside, 1, bias=False)
        for convolution in (depthwise, pointwise):
            torch.nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        layers += [depthwise, pointwise, BatchNorm(outside), torch.nn.ReLU()]
    return layers


class TokenBranch(LazyModule):
    """Logits [B,num_classes] of tokens [B,*shape], after `blocks` transformer blocks."""

    merging: Any
    blocks: Any
    head: Any

    def __init__(self, shape: Shape, blocks: int, num_classes: int) -> None:
        super().__init__()
        nn, (count, width), (_, side, _) = torch.nn, shape, map_shape(shape)
        self.side, self.prefix, merging = side, count - side * side, []
        while side > SMALL and side % 2 == 0:
            merging.append(nn.Sequential(nn.LayerNorm(4 * width), nn.Linear(4 * width, width, bias=False), nn.GELU()))
            side //= 2
        self.merging = nn.ModuleList(merging)
        heads = math.gcd(width, HEADS)
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
                )
                for _ in range(blocks)
            )
        )
        self.head = head(width, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        others, patches = tokens[:, : self.prefix], tokens[:, self.prefix :]
        side = self.side
        for merge in self.merging:
            cells = patches.unflatten(1, (side // 2, 2, side // 2, 2)).movedim(2, 3)  # [B,h,w,2,2,D]
            patches, side = merge(cells.flatten(3).flatten(1, 2)), side // 2
        mixed = self.blocks(torch.cat([others, patches], 1))
        logits: Tensor = self.head(mixed[:, 0] if self.prefix else mixed.mean(1))
        return logits


def head(width: int, num_classes: int) -> Any:
    """A linear layer with the authors' initial values."""
    layer = torch.nn.Linear(width, num_classes)
    torch.nn.init.trunc_normal_(layer.weight, std=0.02)
    torch.nn.init.zeros_(layer.bias)
    return layer
