"""Overhaul of feature distillation (OFD).  Heo et al. 2019, arXiv:1904.01866.

    l_b = sum over layers l of L of 2^(l + 1 - L) sum over channels and positions of [s > t' or t' > 0] (s - t')^2

s: the student's map after a 1x1 convolution and BatchNorm; t' = max(t, margin). Both are maps before the ReLU. The
teacher's is average-pooled to the student's size, or repeated. Kept of a teacher: the map, pooled.

margin of each channel: the mean of the negative values of a normal distribution, whose mean and standard deviation are
the bias and weight of the teacher's last BatchNorm where `use_norms` gave them. Else they are estimated from the maps,
as BatchNorm does: the mean over the first 10 batches, then a moving average.
"""

import math
from typing import Any, Literal

from pydantic import Field

from kd_methods._torch import Tensor, torch
from kd_methods.feature_losses._base import Batch, FeatureLoss, MapConfig, as_map, pooled, smaller, sum_layers
from kd_methods.feature_losses._projectors import conv_bn, seeded

MOMENTUM = 0.1


class Config(MapConfig):
    equation = "overhaul of feature distillation"

    loss: Literal["ofd"] = "ofd"
    weight: float = Field(default=1e-3, ge=0, description="factor of this loss")


class Loss(FeatureLoss):
    config: Config
    kept_by = ("student",)
    batches: Tensor

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        pairs = self.map_pairs()
        with seeded(self.seed):
            self.connectors = torch.nn.ModuleList(conv_bn(own[0], other[0], 1) for own, other in pairs)
        for layer, (_, teacher) in enumerate(pairs):
            self.register_buffer(f"mean{layer}", torch.zeros(teacher[0]))
            self.register_buffer(f"std{layer}", torch.ones(teacher[0]))
        self.register_buffer("batches", torch.zeros(()))  # that mean and std are made of; infinite: they are given

    def use_norms(self, norms: list[tuple[Tensor, Tensor]]) -> None:
        """Take mean and standard deviation from (weight [C], bias [C]) of the teacher's BatchNorm before each layer.

        Raises ValueError where numbers or shapes are not those of the layers.
        """
        shapes = [(teacher[0],) for _, teacher in self.map_pairs()]
        if [(tuple(weight.shape), tuple(bias.shape)) for weight, bias in norms] != [(shape, shape) for shape in shapes]:
            raise ValueError(f"the norms must be one (weight, bias) for each layer, of shapes {shapes}")
        for layer, (weight, bias) in enumerate(norms):
            getattr(self, f"mean{layer}").copy_(bias.detach())
            getattr(self, f"std{layer}").copy_(weight.detach().abs())
        self.batches.fill_(math.inf)

    def keep(self, teacher: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        layers = zip(teacher, self.map_pairs(), strict=True)
        return tuple(pooled(as_map(map_), smaller(*shapes)) for map_, shapes in layers)

    def forward(self, student: tuple[Tensor, ...], kept: tuple[Tensor, ...], batch: Batch) -> Tensor:
        if self.training:
            self.observe(kept)
        losses = []
        for layer, (connector, map_, target) in enumerate(zip(self.connectors, student, kept, strict=True)):
            own = connector(as_map(map_))
            least = margin(getattr(self, f"std{layer}"), getattr(self, f"mean{layer}"))[:, None, None]
            bound = pooled(target, (own.shape[-2], own.shape[-1])).maximum(least.to(target.dtype))
            counts = (own > bound) | (bound > 0)
            errors = torch.where(counts, own - bound, 0.0).square().sum((1, 2, 3))
            losses.append(errors / 2 ** (len(kept) - 1 - layer))
        return sum_layers(losses)

    def observe(self, kept: tuple[Tensor, ...]) -> None:
        """Move mean and standard deviation towards those of a batch of maps [B,C,H,W]; not if they are given."""
        with torch.no_grad():
            self.batches += 1
            share = self.batches.reciprocal().clamp(min=MOMENTUM) * self.batches.isfinite()
            for layer, map_ in enumerate(kept):
                std, mean = torch.std_mean(map_, dim=(0, 2, 3), correction=0)
                for name, value in ((f"mean{layer}", mean), (f"std{layer}", std)):
                    buffer = getattr(self, name)
                    buffer.lerp_(value.to(buffer.dtype), share)


def margin(weight: Tensor, bias: Tensor) -> Tensor:
    """The mean [C] of the negative values of N(bias, |weight|); -3 |weight| where hardly any value is negative.

    That is where their probability is at most 0.001, as in the authors' code.
    """
    std = weight.abs().clamp(min=1e-12)
    z = bias / std
    ratio = math.sqrt(2 / math.pi) / torch.special.erfcx(z / math.sqrt(2))  # of density to probability at 0, stable
    return torch.where(torch.special.ndtr(-z) <= 1e-3, -3 * weight.abs(), bias - std * ratio)
