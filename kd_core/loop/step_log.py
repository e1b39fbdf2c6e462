"""The progress bar of an epoch, and the rows of metrics within it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm

from kd_core.loop.meter import Meter, require_scale
from kd_core.loop.timing import clock


class StepLog:
    """Every `every` steps a row of running means, which is the only wait for the device within an epoch."""

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
        """The positions of the epoch's steps that are left, behind a progress bar."""
        self._began, self._steps = time.perf_counter(), 0
        hidden = not self._accelerator.is_main_process
        self._bar = tqdm(range(done, steps), title, steps, False, initial=done, disable=hidden or None)
        return self._bar

    def after(self, step: int, learning_rate: float) -> bool:
        """To be called after `step` steps of the run; whether a row was due.  NonFinite as `Meter.reading`."""
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
