"""The exponential moving average of a student's weights (EMA), which often generalizes better than the last ones."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from kd_core.config import EmaConfig

# What is measured of the average, too: the student's metric -> the average's.
AVERAGED = {"val/accuracy": "val/ema_accuracy", "val/auroc": "val/ema_auroc", "val/loss_ce": "val/ema_loss_ce"}


def takes_average(row: dict[str, Any]) -> bool:
    """Whether the average is exported, by an epoch's row of metrics: unless the student is better by validation."""
    return bool(row.get("val/ema_accuracy", 0.0) >= row.get("val/accuracy", 0.0))


Pairs = tuple[list[Tensor], list[Tensor]]


class WeightAverage:
    """An exponential moving average of a network's weights over optimizer steps, in fp32.

        average <- d_n average + (1 - d_n) weights      the n-th update, after step n * every
        d_n = min(decay, 1 - n^(-2/3)) with warmup, else decay; d_1 = 0, so the first update copies

    Averages of iterates: Polyak and Juditsky, SIAM Journal on Control and Optimization 1992.  Copy and decay are those
    of timm's ModelEmaV3.  Its update takes every step; this one takes a step that only the device knows to be skipped.

    BatchNorm's means and variances are averaged with the weights, its counters copied.  `model` is the bare network,
    before compilers and Accelerate wrap it.  All processes have the same weights; BatchNorm's averages differ between
    them within an epoch, as its statistics do.
    """

    def __init__(self, model: nn.Module, settings: EmaConfig):
        self._student, self._every = model, settings.every
        self._timm = ModelEmaV3(model, settings.decay, use_warmup=settings.warmup, dtype=torch.float32)
        self.model: nn.Module = self._timm.module.requires_grad_(False)

    @cached_property
    def _pairs(self) -> tuple[Pairs, Pairs]:
        """(of the average, of the student): what is averaged, and counters, which are copied.

        Found at the first update, since Accelerate may replace tensors when it wraps a network.  Each is there once,
        also where a network ties some; a state_dict lists those several times.
        """
        own, current = ([*model.parameters(), *model.buffers()] for model in (self.model, self._student))
        kinds = [tensor.is_floating_point() for tensor in own]

        def of(kind: bool) -> Pairs:
            chosen = [place for place, is_float in enumerate(kinds) if is_float is kind]
            return [own[place] for place in chosen], [current[place].detach() for place in chosen]

        return of(True), of(False)

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
        (means, weights), (copies, counters) = self._pairs
        if skipped is None and all(weight.dtype == torch.float32 for weight in weights):
            torch._foreach_lerp_(means, weights, share)
        else:
            change = torch._foreach_sub(weights, means)
            torch._foreach_mul_(change, share if skipped is None else share * skipped.logical_not())
            torch._foreach_add_(means, change)
        if copies:
            torch._foreach_copy_(copies, counters)
