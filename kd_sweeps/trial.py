"""One trial: its process, its signals, and the metric in its run folder."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kd_core.errors import UserError
from kd_sweeps.fork_server import end_with_parent, signal_child
from kd_sweeps.sweep_file import Sweep
from kd_sweeps.trial_command import environment, expand, grid_run_id, probe

if TYPE_CHECKING:
    import optuna

KILL_AFTER = 120.0  # seconds between SIGTERM and SIGKILL: a trial finishes its step and writes its summary


class TrialMetrics:
    """The sweep's metric in one run's metrics.jsonl, read again as the run goes on."""

    def __init__(self, sweep: Sweep, output_dir: Path, run_id: str):
        self.sweep, self.output_dir, self.run_id = sweep, output_dir, run_id
        self.values: list[float] = []  # one per row that has the metric; may hold NaN
        self._seen: tuple[int, int] | None = None
        self._folder: Path | None = None

    @property
    def folder(self) -> Path | None:
        """The run folder, once there is one."""
        if not self._folder:
            self._folder = next((path for path in self.output_dir.glob(f"*-{self.run_id}") if path.is_dir()), None)
        return self._folder

    @property
    def finished(self) -> bool:
        try:
            return bool(json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))["status"] == "finished")  # type: ignore[operator]
        except (OSError, ValueError, KeyError, TypeError):
            return False

    @property
    def best(self) -> float | None:
        return self.best_of(len(self.values))

    def best_of(self, rows: int) -> float | None:
        """The best finite value of the first `rows`; None if there is none."""
        values = [value for value in self.values[:rows] if math.isfinite(value)]
        return self.sweep.better(values) if values else None

    def measured(self) -> str:
        """The names in the last row, for the message that the metric is not among them."""
        try:
            row = json.loads((self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])  # type: ignore[operator]
            return f"; {self.folder}/metrics.jsonl has {', '.join(row)}"
        except (OSError, ValueError, TypeError, IndexError):
            return f"; there is no metrics.jsonl in {self.folder or f'{self.output_dir}/*-{self.run_id}'}"

    def update(self) -> None:
        """Read the whole file again if it has changed: a run that resumes cuts it back."""
        folder = self.folder
        try:
            state = (folder / "metrics.jsonl").stat() if folder else None
            if not folder or not state or (state.st_size, state.st_mtime_ns) == self._seen:
                return
            lines = (folder / "metrics.jsonl").read_bytes().split(b"\n")
        except OSError:
            return
        self._seen = (state.st_size, state.st_mtime_ns)
        self.values = []
        name = json.dumps(self.sweep.metric).encode()
        for line in lines[:-1]:  # the last one is empty or incomplete
            if name in line:
                with suppress(ValueError, TypeError, KeyError):
                    value = json.loads(line)[self.sweep.metric]
                    if value is None or isinstance(value, (int, float)):  # null stands for a value that is not finite
                        self.values.append(math.nan if value is None else float(value))


class Process(Protocol):
    """A trial's process, in a process group of its own, which Ctrl-C at the terminal does not reach."""

    pid: int

    def poll(self) -> int | None:
        """The exit status, negative after a signal; None while it runs."""

    def send(self, number: int) -> None:
        """Send a signal: see `signal_child`."""


class Separate:
    """A process that begins as a command does."""

    def __init__(self, command: list[str], run_id: str, log: Path | None):
        """OSError if there is no such command."""
        with ExitStack() as cleanup:
            file = cleanup.enter_context(open(log, "ab")) if log else None
            self._process = subprocess.Popen(
                command,
                env=environment(run_id),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT if file else None,
                process_group=0,
                # so that no trial is left behind when this script is killed
                preexec_fn=partial(end_with_parent, os.getpid()) if sys.platform == "linux" else None,
            )
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.poll()

    def send(self, number: int) -> None:
        with suppress(ProcessLookupError):
            if self._process.poll() is None:
                signal_child(self.pid, number)


@dataclass
class Running:
    """A trial that this worker runs."""

    trial: optuna.Trial
    index: int
    run_id: str
    values: dict[str, Any]
    metrics: TrialMetrics
    log: Path
    process: Process
    log_start: int = 0
    epochs: int | None = None  # after the last one a trial is not stopped early
    judged: int = 0  # rows at which it was judged before it was interrupted, or that it had when it finished
    started: float = field(default_factory=time.monotonic)
    reported: int = 0
    stopping: str = ""  # why it was sent SIGTERM: pruned, interrupted, or lost to another worker
    kill_at: float = math.inf

    def stop(self, why: str) -> None:
        if not self.stopping:
            self.stopping, self.kill_at = why, time.monotonic() + KILL_AFTER
            self.process.send(signal.SIGTERM)

    def last_line(self) -> str:
        """The last line of the log that this process wrote."""
        with open(self.log, "rb") as file:
            file.seek(max(self.log_start, self.log.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


class Signals:
    """Notes SIGINT, SIGTERM and SIGUSR1 within a `with` block."""

    def __init__(self) -> None:
        self.number = 0
        self.count = 0

    def __enter__(self) -> Signals:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        self.number, self.count = number, self.count + 1


def default_storage(sweep: Sweep, output_dir: Path) -> Path:
    return output_dir / "sweeps" / sweep.path.stem / "study.journal"


def run_one(sweep: Sweep, index: int, extra: list[str]) -> int:
    """Run the grid's point `index` in the foreground, without a study; the exit status."""
    if sweep.method != "grid":
        raise UserError(f"--trial: {sweep.path} has method {sweep.method}; only the points of a grid have numbers")
    if not 0 <= index < sweep.grid_size():
        raise UserError(f"--trial {index}: {sweep.path} has the trials 0 to {sweep.grid_size() - 1}")
    sweep, output_dir, _ = probe(sweep, extra)
    run_id = grid_run_id(sweep, extra, index)
    values = sweep.grid_values(index)
    storage = default_storage(sweep, output_dir).absolute()
    os.environ["KD_SWEEP"] = str(storage)  # which need not exist: see run_sweep
    command = [*expand(sweep, values, storage.parent / f"args/{run_id}.json"), *extra]
    with Signals() as signals:
        process = Separate(command, run_id, None)
        sent = 0
        while (status := process.poll()) is None:
            if signals.count > sent:
                sent = signals.count
                process.send(signals.number)
            time.sleep(0.05)
    return status if status >= 0 else 128 - status
