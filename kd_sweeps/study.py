"""The Optuna study that the workers of a sweep share: which sweep it belongs to, and its trials."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from kd_core.errors import UserError
from kd_sweeps.fork_server import start_time
from kd_sweeps.samplers import create_pruner, create_sampler
from kd_sweeps.sweep_file import Sweep
from kd_sweeps.trial_command import hashed

STALE_AFTER = 60.0  # seconds without a touch after which a worker on another host counts as dead
TOUCH_EVERY = 3.0
LOST_RACE = (ValueError, optuna.exceptions.UpdateFinishedTrialError)  # what Optuna raises if a trial has already ended
STATES = {TrialState.COMPLETE: "done", TrialState.PRUNED: "stopped early", TrialState.FAIL: "failed"}


def failed(trial: FrozenTrial) -> bool:
    """Whether a trial ended with an error."""
    return trial.state == TrialState.FAIL and "error" in trial.user_attrs


def interrupted(trial: FrozenTrial) -> bool:
    """Whether another trial continues this one, or will: its state is FAIL, but it had no error."""
    return trial.state == TrialState.FAIL and not {"error", "surplus"} & trial.user_attrs.keys()


def done(trial: FrozenTrial) -> bool:
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or failed(trial)


def ranking(sweep: Sweep, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Ended trials, best first: completed ones, then those stopped early, then failures."""

    def key(trial: FrozenTrial) -> tuple[int, float]:
        best = trial.user_attrs.get("best")
        if best is None:
            return 2, 0.0
        return int(trial.state != TrialState.COMPLETE), -best if sweep.maximize else best

    return sorted(filter(done, trials), key=key)


def index_of(trial_number: int, trials: Sequence[FrozenTrial]) -> int:
    """Zero-based index of the trial within the sweep: its number less the earlier trials that continue others.

    Optuna assigns numbers atomically, so no two trials get the same point of a grid, whichever worker starts them.
    """
    return trial_number - sum(trial.number < trial_number and "continues" in trial.user_attrs for trial in trials)


class SharedStudy:
    """The study in its journal file, and what workers need to share it.

    A worker decides while it holds a lock: a file, as reliable on network file systems as the journal's own.  If a
    worker stalls for longer than the lock lives, `index_of` and the study, which accepts one result per trial, still
    keep workers from running a point twice.
    """

    def __init__(self, sweep: Sweep, extra: list[str], storage: Path, max_epochs: int | None):
        self.sweep, self.extra, self.storage, self.max_epochs = sweep, extra, storage, max_epochs
        storage.parent.mkdir(parents=True, exist_ok=True)
        backend = JournalFileBackend(str(storage), lock_obj=JournalFileOpenLock(str(storage)))
        journal = JournalStorage(backend)
        fingerprint = hashed(sweep.content, extra, sweep.metric, sweep.maximize, sweep.early_terminate)
        direction = StudyDirection.MAXIMIZE if sweep.maximize else StudyDirection.MINIMIZE
        names = optuna.get_all_study_names(journal)
        if not names:
            optuna.create_study(storage=journal, study_name=fingerprint, direction=direction, load_if_exists=True)
            names = optuna.get_all_study_names(journal)
        if not names[0].startswith(fingerprint):
            raise UserError(
                f"{storage}: holds another sweep (other parameters, settings, command, metric or words after --); "
                f"name another file with --storage, or delete this one"
            )
        self.study = optuna.load_study(
            study_name=names[0],
            storage=journal,
            sampler=create_sampler(sweep),
            pruner=create_pruner(sweep, max_epochs),
        )
        self._lock = JournalFileOpenLock(f"{storage}.decide")
        pid_namespace = "/proc/self/ns/pid"  # containers may share a host name, but not process ids
        self._host = socket.gethostname() + (os.readlink(pid_namespace) if os.path.exists(pid_namespace) else "")
        self._workers = storage.with_name(f"{storage.name}.workers")
        self._workers.mkdir(exist_ok=True)
        self._touched = self._workers / f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._next_touch = 0.0
        with self.deciding():
            if "id" not in self.study.user_attrs:
                self.study.set_user_attr("id", secrets.token_hex(8))
        self.id: str = self.study.user_attrs["id"]  # of this study alone: the same sweep elsewhere draws other values

    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    @contextmanager
    def deciding(self) -> Iterator[None]:
        self._lock.acquire()
        try:
            yield
        finally:
            with suppress(RuntimeError):  # another worker considered this one dead and took the lock
                self._lock.release()

    def touch(self) -> bool:
        """Show that this worker is alive; whether it was time to do so."""
        if time.monotonic() < self._next_touch:
            return False
        self._touched.touch()
        self._next_touch = time.monotonic() + TOUCH_EVERY
        return True

    def leave(self) -> None:
        self._touched.unlink(missing_ok=True)

    def lease(self, child: int | None) -> dict[str, Any]:
        """Who runs a trial: this worker, and the trial's process once there is one."""
        began = start_time(child) if child else None
        return {"host": self._host, "pid": os.getpid(), "child": child, "began": began, "file": self._touched.name}

    def next_trial(self, limit: int) -> optuna.Trial | None:
        """A new trial, or one that continues an interrupted one; None if none is to be started now."""
        with self.deciding():
            self._take_over()
            trials = self.trials()
            if sum(done(t) or t.state == TrialState.RUNNING for t in trials) >= limit:
                return None
            self.touch()
            trial = self.study.ask()
            try:
                if "index" not in trial.user_attrs:
                    trial.set_user_attr("index", index_of(trial.number, self.trials()))
                trial.set_user_attr("lease", self.lease(None))
            except LOST_RACE:  # this worker stalled for so long that others considered it dead
                return None
            return trial

    def last_row_before(self, trial: optuna.Trial) -> int:
        """The last row that the trials which this one continues have reported; 0 if it is new."""
        trials, last, before = self.trials(), 0, trial.user_attrs.get("continues")
        while before is not None:
            last = max(last, trials[before].last_step or 0)
            before = trials[before].user_attrs.get("continues")
        return last

    def continue_later(self, number: int) -> None:
        """Hand back an interrupted trial: this or another worker continues it, under the same run id."""
        with self.deciding():
            with suppress(*LOST_RACE):  # another worker took it over
                self.study.tell(number, state=TrialState.FAIL)
            self._enqueue_interrupted()

    def _take_over(self) -> None:
        for trial in self.trials():
            if trial.state == TrialState.RUNNING and self._stale(trial.user_attrs.get("lease"), trial):
                with suppress(*LOST_RACE):  # its worker is alive after all and has reported its end
                    self.study.tell(trial.number, state=TrialState.FAIL)
        self._enqueue_interrupted()

    def _enqueue_interrupted(self) -> None:
        trials = self.trials()
        continued = {trial.user_attrs.get("continues") for trial in trials}
        for trial in trials:
            if interrupted(trial) and trial.number not in continued:
                kept = {k: v for k, v in trial.user_attrs.items() if k in ("index", "run_id", "stops")}
                if "index" not in kept:  # its worker died before it set one
                    kept["index"] = index_of(trial.number, trials)
                self.study.enqueue_trial(trial.params, user_attrs={**kept, "continues": trial.number})

    def _stale(self, lease: dict[str, Any] | None, trial: FrozenTrial) -> bool:
        """Whether the worker of a running trial is dead."""
        if lease is None:  # it is written under the lock, so its worker died there
            return True
        if lease["host"] == self._host:
            if lease["child"] and is_trial(lease["child"], lease.get("began"), trial.user_attrs.get("run_id", "")):
                return False  # the worker may be dead, but its trial is still shutting down
            if not alive(lease["pid"]):
                return True
        try:
            # opening makes network file systems ask the server for the time; touching our own file tells its clock now
            with open(self._workers / lease["file"]) as file:
                touched = os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return True
        self._touched.touch()
        return self._touched.stat().st_mtime - touched > STALE_AFTER


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def is_trial(pid: int, began: int | None, run_id: str) -> bool:
    """Whether process `pid` is the trial `run_id`, not a later process with the same number.

    Known by its start time; a lease that lacks it, by its environment, where a forked trial's id does not show.
    """
    if began is not None:
        return start_time(pid) == began
    if not alive(pid):
        return False
    try:
        return f"KD_TRIAL={run_id}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return not Path("/proc/self/environ").exists()
