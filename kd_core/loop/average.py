"""The exponential moving average of a student's weights (EMA), which often generalizes better than the last ones."""

from __future__ import annotations

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from kd_core.config import EmaConfig


class WeightAverage:
    """An exponential moving average of a network's weights over optimizer steps, in fp32.

        average <- d_n average + (1 - d_n) weights      the n-th update, after step n * every
        d_n = min(decay, 1 - n^(-2/3)) with warmup, else decay; d_1 = 0, so the first update copies

    Averages of iterates: Polyak and Juditsky, SIAM Journal on Control and Optimization 1992.  Copy and decay are those
    of timm's ModelEmaV3.  Its update takes every step; this one takes a step that only the device knows to be skipped.

    BatchNorm's means and variances are averaged with the weights, its counters copied.  `model` is the bare network:
    what compilers and Accelerate wrap around it shares its tensors.  All processes have the same weights; BatchNorm's
    averages differ between them within an epoch, as its statistics do.
    """

    def __init__(self, model: nn.Module, settings: EmaConfig):
        self._every = settings.every
        self._timm = ModelEmaV3(model, settings.decay, use_warmup=settings.warmup, dtype=torch.float32)
        self.model: nn.Module = self._timm.module.requires_grad_(False)
        # Each tensor once, also where a network ties some; a state_dict would list those several times.
        pairs = zip(_tensors(self.model), _tensors(model), strict=True)
        averaged, copied = [], []
        for own, current in pairs:
            (averaged if own.is_floating_point() else copied).append((own, current.detach()))
        self._means, self._weights = [own for own, _ in averaged], [current for _, current in averaged]
        self._copies, self._counters = [own for own, _ in copied], [current for _, current in copied]
        self._fp32 = all(current.dtype == torch.float32 for current in self._weights)

    @torch.no_grad()
    def update(self, step: int, skipped: Tensor | None = None) -> None:
        """Take in the weights after step `step` (0-based) of the run, if it is time to.

        `skipped`, bool [] on the device: whether the step was skipped, which changes nothing.  Never waits for the
        device.
        """
        count, rest = divmod(step + 1, self._every)
        if rest:
            return
        share = 1 - self._timm.get_decay(count)
        if skipped is None and self._fp32:
            torch._foreach_lerp_(self._means, self._weights, share)
        else:
            change = torch._foreach_sub(self._weights, self._means)
            torch._foreach_mul_(change, share if skipped is None else share * skipped.logical_not())
            torch._foreach_add_(self._means, change)
        if self._copies:
            torch._foreach_copy_(self._copies, self._counters)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
