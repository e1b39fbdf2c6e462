"""What all runs of one process share: the accelerator, the data, the signals."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from accelerate import Accelerator
from torch import nn

from kd_core.config import in_trial, trial_run_id
from kd_core.data.dataset import Data
from kd_core.loop import log
from kd_core.loop.processes import share_buffers
from kd_core.loop.signals import Stopped, StopSignals
from kd_core.loop.timing import wait_for

STEPS_TOGETHER = 10  # steps between two agreements of all processes on whether to stop or to save


@contextmanager
def handled_signals() -> Iterator[StopSignals]:
    """Handle SIGTERM, SIGUSR1 and Ctrl-C; where the loop defers them, at the end of a step.  Main thread only."""
    signals = StopSignals()
    with signals.installed():
        yield signals


@dataclass
class Job:
    """What all runs of one process share."""

    accelerator: Accelerator
    data: Data
    use_wandb: bool
    signals: StopSignals
    is_student: bool = True  # otherwise a teacher or the baseline, which is not part of a sweep's trial
    _said: set[str] = field(default_factory=set)

    @property
    def prescribed_run_id(self) -> str | None:
        """The run id that a sweep prescribes for its trial, under which an interrupted trial is resumed."""
        return trial_run_id() if self.is_student else None

    def say(self, text: str) -> None:
        """Print `text` on the main process."""
        log.say(text)

    def say_once(self, text: str) -> None:
        """Print `text` unless an earlier part of this process has: teachers are checked before all runs and by each."""
        if text not in self._said:
            self._said.add(text)
            self.say(text)

    def reset_device(self) -> None:
        """Free the memory and reset the loss scale that an earlier run of this process left behind."""
        self.accelerator.free_memory()
        if self.accelerator.device.type == "cuda":
            gc.collect()  # once more, without what Accelerate held
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        if self.accelerator.scaler is not None and self.accelerator.scaler.is_enabled():
            fresh = torch.amp.GradScaler(self.accelerator.device.type)
            self.accelerator.scaler.load_state_dict(fresh.state_dict())

    def side_job(self) -> Job:
        """A job for a teacher or for the baseline, which are not trials of a sweep."""
        return replace(self, use_wandb=self.use_wandb and not in_trial(), is_student=False)

    def stop_if_asked(self) -> None:
        """Raise `Stopped` if a signal has come; all processes call this together."""
        number, _ = self.signals.agreed(self.accelerator, together=True)
        if number:
            raise Stopped(number)

    def share_buffers(self, model: nn.Module) -> None:
        """Broadcast the first process's buffers, such as BatchNorm statistics, to all."""
        share_buffers(model, self.accelerator)

    def wait_for_device(self) -> None:
        """Wait until the device has finished its work."""
        wait_for(self.accelerator.device)
