"""The progress of a run and its checkpoints: when they are written, what they hold, and how a run resumes."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from kd_core.config import TrainingConfig
from kd_core.errors import UserError
from kd_core.loop.meter import Meter, require_finite
from kd_core.loop.processes import random_state, set_random_state
from kd_core.loop.signals import Stopped
from kd_core.models.average import WeightAverage
from kd_core.models.network import Network
from kd_core.run.folder import ANEW, RunFolder, load_latest, save_latest
from kd_core.run.job import STEPS_TOGETHER, Job
from kd_core.run.selection import AVERAGE, of_average, of_export, selected


@dataclass
class Progress:
    """The progress of a run: the fields of a checkpoint's state.json."""

    epoch: int = 0  # completed epochs
    position: int = 0  # steps done in the next epoch, for a checkpoint within an epoch
    seconds: float = 0.0  # that they took
    waited: int = 0  # epochs since the best one
    metrics: dict[str, Any] = field(default_factory=dict)  # of the last epoch
    best: dict[str, Any] = field(default_factory=dict)  # of the selected epoch, as `selection.of_export` has them
    metrics_offset: int = 0  # bytes of metrics.jsonl at the checkpoint
    run_id: str = ""
    processes: int = 1
    log_every: int = 50
    skipped_steps: int = 0

    def add_epoch(self, row: dict[str, Any], *, offset: int, skipped: int, averaged: bool = False) -> bool:
        """Record the metrics of an epoch; returns whether it is the best so far.

        Without a validation split every epoch counts as the best, so the last one is selected.  `averaged`: whether
        there is an average of the weights, too; then the better of both counts.
        """
        found = of_export(row) if averaged else row
        better = "val/accuracy" not in found or found["val/accuracy"] > self.best.get("val/accuracy", -1.0)
        self.epoch, self.metrics, self.metrics_offset, self.skipped_steps = row["epoch"], row, offset, skipped
        self.best, self.waited = (found, 0) if better else (self.best, self.waited + 1)
        return better


class Checkpoints:
    """The checkpoints of one run.  All processes call its methods together; the main process writes."""

    def __init__(
        self,
        folder: RunFolder,
        job: Job,
        training: TrainingConfig,
        *,
        network: Network,
        optimizer: Any,
        method: nn.Module,
        meter: Meter,
        average: WeightAverage | None = None,
        keep_epochs: bool = False,
    ):
        self.folder, self._job, self._training = folder, job, training
        self._network, self._optimizer, self._method, self._meter = network, optimizer, method, meter
        self._average = replace(network, model=average.model) if average else None
        self._keep_epochs = keep_epochs
        self._within: dict[str, Any] | None = None  # this process's own state, when a run resumes within an epoch
        self._saved_at = time.monotonic()
        self._began = time.perf_counter()  # when the steps of the epoch began, earlier by what they took before a stop

    @property
    def _accelerator(self) -> Accelerator:
        return self._job.accelerator

    @property
    def _buffers(self) -> dict[str, Tensor]:
        """Those of student, method and average, which differ between processes within an epoch."""
        method = {f"method.{name}": buffer for name, buffer in self._method.named_buffers()}
        average = self._average.model.named_buffers() if self._average else ()
        return dict(self._network.model.named_buffers()) | method | {f"average.{name}": own for name, own in average}

    def load(self) -> Progress | None:
        """Restore student, average, optimizer, method and scaler from the last checkpoint; None if there is none.

        UserError if it was written by another number of processes.
        """
        found = load_latest(self.folder, self._job.say)
        if found is None:
            return None
        path, tensors, state = found
        progress, accelerator = Progress(**state), self._accelerator
        if progress.processes != accelerator.num_processes:
            raise UserError(
                f"{self.folder.path}: was trained by {progress.processes} process(es), this is "
                f"{accelerator.num_processes}: not the same run. Start as many as before; {ANEW}"
            )
        ended = progress.epoch > 0 and progress.position == 0
        if accelerator.is_main_process and ended:  # in case the last attempt ended between the writes
            self._keep(path, progress.epoch, better=progress.best["epoch"] == progress.epoch)
        self._network.load_weights(path / "student")
        if self._average:
            self._average.load_weights(path / AVERAGE)
        self._optimizer.load_state_dict(tensors["optimizer"])
        self._method.load_state_dict(tensors["method"])
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(tensors["scaler"])
        if tensors["within_epoch"]:
            self._within = tensors["within_epoch"][accelerator.process_index]
        self._meter.skipped_before = progress.skipped_steps
        return progress

    def continue_epoch(self, progress: Progress) -> int:
        """Restore this process's state from a checkpoint within the epoch; returns the number of steps done."""
        if self._within:
            buffers = self._buffers
            for name, value in self._within["buffers"].items():
                buffers[name].copy_(value)
            set_random_state(self._within["random"], self._accelerator.device)
            self._meter.load_state(self._within["meter"], self._accelerator.device)
        done, progress.position, self._within = progress.position, 0, None
        self._began, progress.seconds = time.perf_counter() - progress.seconds, 0.0
        return done

    def after_step(self, progress: Progress, step: int, *, steps_per_epoch: int, logged: bool, offset: int) -> None:
        """After `step` steps of the run, save if it is time to or if a signal has come, and then raise `Stopped`.

        Processes must save and stop at the same step.  They agree where they are in step anyway (`logged`), and every
        few steps.  `offset`: length of metrics.jsonl in bytes.
        """
        every, minutes = self._training.save_every_steps, self._training.save_every_minutes
        due = bool(every and step % every == 0)
        due = due or bool(minutes and time.monotonic() - self._saved_at > 60 * minutes)
        together = logged or step % STEPS_TOGETHER == 0 or step % (every or STEPS_TOGETHER) == 0
        stop, save = self._job.signals.agreed(self._accelerator, together=together, due=due)
        if stop or save:
            self.save_within_epoch(progress, step - progress.epoch * steps_per_epoch, step, offset)
        if stop:
            raise Stopped(stop)

    def require_sound(self, step: int) -> None:
        """NonFinite unless everything that a checkpoint after step `step` holds is finite."""
        average = [self._average.model] if self._average else []
        for module in (self._network.model, self._method, *average):
            require_finite(module, self._optimizer, f"after step {step}", self._accelerator.reduce)

    def save_within_epoch(self, progress: Progress, position: int, step: int, offset: int) -> None:
        """Save after `position` steps of the epoch, `step` of the run.  Each process adds its own state."""
        self._meter.epoch()  # NonFinite before anything is written
        self.require_sound(step)
        own = {
            "buffers": {name: buffer.cpu() for name, buffer in self._buffers.items()},
            "random": random_state(self._accelerator.device),
            "meter": self._meter.state(),
        }
        progress.position, progress.metrics_offset = position, offset
        progress.seconds = time.perf_counter() - self._began
        self._save(progress, gather_object([own]))
        progress.position, progress.seconds = 0, 0.0

    def save_epoch(self, progress: Progress, *, better: bool) -> None:
        """Save at the end of an epoch; the checkpoint becomes `best` if it is `better`."""
        self._save(progress, None)
        if self._accelerator.is_main_process:
            self._keep(self.folder.checkpoint("latest"), progress.epoch, better=better)

    def _keep(self, checkpoint: Path, epoch: int, *, better: bool) -> None:
        """Copy what is kept of an epoch's checkpoint beyond the next one."""
        with self.folder.writing():
            if better:
                self.folder.keep_best(selected(checkpoint))
            if self._keep_epochs:
                self.folder.keep_epoch(selected(checkpoint), epoch)

    def _save(self, progress: Progress, within_epoch: list[dict[str, Any]] | None) -> None:
        self._saved_at = time.monotonic()
        if not self._accelerator.is_main_process:
            return
        scaler = self._accelerator.scaler
        tensors = {
            "optimizer": self._optimizer.state_dict(),
            "method": self._method.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "within_epoch": within_epoch,
        }

        def export(student: Path) -> None:
            self._network.export(student, progress.metrics)
            if self._average:
                self._average.export(student.with_name(AVERAGE), of_average(progress.metrics))

        with self.folder.writing():
            save_latest(self.folder, export, tensors, asdict(progress))
