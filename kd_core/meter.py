"""Running means that stay on the device: one addition a step, one wait for the device a reading."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kd_core.errors import UserError


class NonFinite(UserError):
    """A loss or metric became NaN or infinite."""


class Meter:
    """Means of named scalars over steps, summed in float64 on the device.

    `reading()` covers the steps since the last reading, `epoch()` all steps since `start_epoch()`.  Both reduce over
    processes through `reduce_sum` and raise NonFinite naming the first bad step and metric.
    """

    def __init__(self, reduce_sum: Callable[[Tensor], Tensor] = lambda tensor: tensor):
        self._reduce_sum = reduce_sum
        self.start_epoch()

    def start_epoch(self) -> None:
        self.names: list[str] = []
        self._sums: Tensor | None = None  # [2, M]: since the last reading, since the start of the epoch
        self._steps = [0, 0]

    def add(self, step: int, values: dict[str, Tensor]) -> None:
        """Add 0-d tensors of one step.  No host work beyond queueing three kernels."""
        packed = torch.stack([value.detach() for value in values.values()]).double()
        if self._sums is None:
            self.names = list(values)
            self._sums = packed.new_zeros(2, len(packed))
            self._first_bad = torch.full_like(packed, torch.inf)
        elif self.names != list(values):
            raise AssertionError(f"metric names changed within an epoch: {self.names} -> {list(values)}")
        self._sums += packed
        self._first_bad = torch.where(packed.isfinite(), self._first_bad, self._first_bad.clamp(max=step))
        self._steps = [count + 1 for count in self._steps]

    def state(self) -> dict[str, Any]:
        """What this process has summed up within the epoch, for a checkpoint: plain values and tensors."""
        if self._sums is None:
            return {}
        return {
            "names": self.names,
            "steps": self._steps,
            "sums": self._sums.cpu(),
            "first_bad": self._first_bad.cpu(),
        }

    def load_state(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from what `state` gave."""
        self.start_epoch()
        if state:
            self.names, self._steps = list(state["names"]), list(state["steps"])
            self._sums, self._first_bad = state["sums"].to(device), state["first_bad"].to(device)

    def reading(self) -> dict[str, float]:
        """Means since the last reading."""
        return self._read(0)

    def epoch(self) -> dict[str, float]:
        """Means since the start of the epoch."""
        return self._read(1)

    def _read(self, row: int) -> dict[str, float]:
        if self._sums is None or not self._steps[row]:
            return {}
        summed = self._reduce_sum(torch.cat([self._sums[row], self._sums.new_ones(1)]))
        means = (summed[:-1] / (summed[-1] * self._steps[row])).tolist()  # the wait for the device
        self._sums[0] = 0
        self._steps[0] = 0
        if not all(mean == mean and abs(mean) != float("inf") for mean in means):
            self._raise_non_finite(means)
        return dict(zip(self.names, means, strict=True))

    def _raise_non_finite(self, means: list[float]) -> None:
        first = self._first_bad.tolist()
        bad = [
            name
            for name, mean, step in zip(self.names, means, first, strict=True)
            if not torch.isfinite(torch.tensor(mean)) or step < float("inf")
        ]
        steps = [step for step in first if step < float("inf")]
        when = f"at step {int(min(steps)) + 1}" if steps else "on another process"
        raise NonFinite(f"{', '.join(bad)} not finite {when}")


def require_finite(model: nn.Module, figures: dict[str, float]) -> None:
    """NonFinite, naming the first offender, unless weights, buffers and losses are finite.  Waits for the device."""
    tensors = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    fine = torch.stack([tensor.isfinite().all() for tensor in tensors.values()]).tolist()
    bad = [name for name, ok in zip(tensors, fine, strict=True) if not ok]
    bad += [name for name, value in figures.items() if "loss" in name and not math.isfinite(value)]
    if bad:
        raise NonFinite(f"{bad[0]} not finite at the end of the epoch")
