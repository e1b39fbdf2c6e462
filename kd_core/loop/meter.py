"""Running means that stay on the device, metrics logged within an epoch, and speeds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from kd_core.errors import NonFinite
from kd_core.loop.timing import Stopwatch, clock, peak_device_memory_mb

SMALLEST_SCALE = 2.0**-14  # fp16's smallest normal number; loss scaling starts at 2^16


def itself(tensor: Tensor) -> Tensor:
    return tensor


class Meter:
    """Means of named scalars over steps, summed in float64 on the device.

    `reading()` covers the steps since the last reading, `epoch()` all steps since `start_epoch()`.  Both reduce over
    processes with `reduce_sum`; if a mean is not finite, they raise NonFinite, naming the first bad step and metric,
    found with `gather`.  Skipped steps are counted but not averaged; more than `may_skip` per run raise NonFinite.
    """

    def __init__(
        self,
        reduce_sum: Callable[[Tensor], Tensor] = itself,
        gather: Callable[[Tensor], Tensor] = itself,
        may_skip: int = 0,
    ):
        self._reduce_sum, self._gather, self._may_skip = reduce_sum, gather, may_skip
        self.skipped_before = 0  # steps skipped before this epoch
        self._sums: Tensor | None = None  # [2, M or M + 1]: since the last reading, since the start of the epoch
        self.start_epoch()

    def start_epoch(self) -> None:
        self.skipped_before = self.skipped
        self.names: list[str] = []
        self._sums = None
        self._steps = [0, 0]

    def add(self, step: int, values: dict[str, Tensor], skipped: Tensor | None = None) -> None:
        """Add the 0-d tensors of one step; `skipped`, bool [], is equal on all processes.

        The host only queues a few kernels.
        """
        packed = torch.stack([value.detach() for value in values.values()]).double()
        if self._sums is None:
            self.names = list(values)
            self._sums = packed.new_zeros(2, len(packed) + (skipped is not None))
            self._first_bad = torch.full_like(packed, torch.inf)
        elif self.names != list(values):
            raise AssertionError(f"metric names changed within an epoch: {self.names} -> {list(values)}")
        self._first_bad = torch.where(packed.isfinite(), self._first_bad, self._first_bad.clamp(max=step))
        if skipped is not None:
            packed = torch.cat([packed.masked_fill(skipped, 0), skipped.view(1)])
        self._sums += packed
        self._steps = [count + 1 for count in self._steps]

    def state(self) -> dict[str, Any]:
        """This process's sums within the epoch, for a checkpoint: plain values and tensors."""
        if self._sums is None:
            return {}
        return {
            "names": self.names,
            "steps": self._steps,
            "sums": self._sums.cpu(),
            "first_bad": self._first_bad.cpu(),
        }

    def load_state(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore what `state` returned."""
        self.start_epoch()
        if state:
            self.names, self._steps = list(state["names"]), list(state["steps"])
            self._sums, self._first_bad = state["sums"].to(device), state["first_bad"].to(device)

    @property
    def skipped(self) -> int:
        """Steps skipped in the run.  Waits for the device if steps may be skipped."""
        counted = self._sums is not None and self._sums.shape[1] > len(self.names)
        return self.skipped_before + (int(self._sums[1, -1]) if counted else 0)  # type: ignore[index]

    def reading(self) -> dict[str, float]:
        """Means since the last reading."""
        means = self._read(0)
        if self._sums is not None:
            self._sums[0] = 0
            self._steps[0] = 0
        return means

    def epoch(self) -> dict[str, float]:
        """Means since the start of the epoch."""
        return self._read(1)

    def _read(self, row: int) -> dict[str, float]:
        steps = self._steps[row]
        if self._sums is None or not steps:
            return {}
        summed = self._reduce_sum(torch.cat([self._sums[row], self._sums.new_ones(1)]))
        means = (summed[:-1] / (summed[-1] * steps)).tolist()  # waits for the device
        if not all(map(math.isfinite, means)):
            raise NonFinite(self._first_offence())
        if len(means) == len(self.names):
            return dict(zip(self.names, means, strict=True))
        if self.skipped > self._may_skip:
            allowed = f"training.skip_nonfinite allows {self._may_skip}"
            raise NonFinite(f"{self._first_offence()}, and {self.skipped} steps were skipped: {allowed}")
        count = round(means.pop() * steps)
        kept = {n: mean * (steps / (steps - count)) for n, mean in zip(self.names, means, strict=True) if count < steps}
        return {**kept, "skipped_steps": float(count)}

    def _first_offence(self) -> str:
        """Names the metrics that were not finite and the first such step on any process; all call this together."""
        first = self._gather(self._first_bad).view(-1, len(self.names)).amin(0).tolist()
        bad = [name for name, step in zip(self.names, first, strict=True) if step < math.inf]
        return f"{', '.join(bad)} not finite at step {int(min(first)) + 1}"


def require_finite(
    model: nn.Module, optimizer: torch.optim.Optimizer, when: str, reduce_sum: Callable[[Tensor], Tensor] = itself
) -> None:
    """NonFinite, naming the first offender, unless weights, buffers and the optimizer's state are finite everywhere.

    All processes call this together.  Waits for the device.
    """
    tensors = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.ndim and value.is_floating_point():
                tensors[f"{key} of {name}"] = value
    if not tensors:
        return
    broken = reduce_sum(torch.stack([tensor.isfinite().all().logical_not() for tensor in tensors.values()]).float())
    bad = [name for name, count in zip(tensors, broken.tolist(), strict=True) if count]
    if bad:
        raise NonFinite(f"{bad[0]} not finite {when}")


def require_scale(scaler: torch.amp.GradScaler | None) -> None:
    """NonFinite if fp16's loss scale has shrunk too far: no scale gives finite gradients, and every step is skipped.

    Waits for the device.
    """
    if scaler is not None and scaler.is_enabled() and scaler.get_scale() < SMALLEST_SCALE:
        raise NonFinite(f"gradients not finite in the last steps, at any loss scale down to {scaler.get_scale():.1g}")


class StepLog:
    """Logs running means every `every` steps, the only time the host waits for the device within an epoch."""

    def __init__(
        self,
        accelerator: Accelerator,
        meter: Meter,
        write: Callable[[dict[str, Any]], None],
        *,
        every: int,
        total_steps: int,
    ):
        self._accelerator, self._meter, self._write = accelerator, meter, write
        self._every, self._total_steps = every, total_steps

    def start_epoch(self, title: str, done: int, steps: int) -> tqdm:
        """The positions of the epoch's remaining steps, wrapped in a progress bar."""
        self._began, self._steps = time.perf_counter(), 0
        hidden = not self._accelerator.is_main_process
        self._bar = tqdm(range(done, steps), title, steps, False, initial=done, disable=hidden or None)
        return self._bar

    def after(self, step: int, learning_rate: float) -> bool:
        """Call after step `step` of the run; returns whether a row was logged.  NonFinite as in `Meter.reading`."""
        self._steps += 1
        if step % self._every:
            return False
        means = self._meter.reading()  # waits for the device
        require_scale(self._accelerator.scaler)
        now = time.perf_counter()
        step_time = (now - self._began) / self._steps
        self._began, self._steps = now, 0
        self._write(
            {
                "train_step/step": step,
                "train_step/learning_rate": learning_rate,
                "train_step/step_time": step_time,
                **{f"train_step/{name}": value for name, value in means.items()},
            }
        )
        self._bar.set_postfix(
            loss=f"{means.get('loss_total', math.nan):.3f}",
            acc=f"{means.get('accuracy', math.nan):.1%}",
            lr=f"{learning_rate:.2g}",
            left=clock((self._total_steps - step) * step_time),
            refresh=False,
        )
        return True


class Speed:
    """The speed of an epoch, and the time spent on data and teachers."""

    def __init__(self, device: torch.device):
        self._device, self.data, self.teachers = device, Stopwatch(device), Stopwatch(device)

    def row(self, *, seconds: float, steps: int, images: int, hit_rate: float) -> dict[str, float]:
        """Speeds of an epoch of `steps` steps on `images` images in total, which took `seconds`.

        `hit_rate`: the fraction of the teachers' logits that were read from the cache.
        """
        return {
            "train/step_time": seconds / steps,
            "perf/data_time": self.data.read(),
            "perf/teacher_time": self.teachers.read(),
            "perf/teacher_cache_hit_rate": hit_rate,
            "perf/images_per_second": images / seconds,
            "perf/gpu_memory_peak_mb": peak_device_memory_mb(self._device),
        }
