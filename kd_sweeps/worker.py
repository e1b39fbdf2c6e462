"""Runs trials as processes until the study has enough of them."""

from __future__ import annotations

import math
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from kd_sweeps.display import Display, number
from kd_sweeps.forked import ForkServer
from kd_sweeps.results import write_results
from kd_sweeps.samplers import draw
from kd_sweeps.study import LOST_RACE, TOUCH_EVERY, SharedStudy, done
from kd_sweeps.trial import KILL_AFTER, Process, Running, Separate, Signals, TrialMetrics
from kd_sweeps.trial_command import MAX_EPOCHS, expand, grid_run_id, hashed, words_to_fork

POLL_EVERY = 0.3  # seconds
STOPPED = {130, 138, 143, -signal.SIGINT, -signal.SIGTERM, -signal.SIGUSR1}  # exit statuses of a trial that can resume
MAX_STOPS = 3  # times that a trial is continued at once after a signal that this worker did not send


class Worker:
    """Runs trials until the study has enough."""

    def __init__(
        self, shared: SharedStudy, output_dir: Path, limit: int, parallel: int, display: Display, *, fork: bool = True
    ):
        self.fork = fork  # whether trials may be forked; no longer once that has failed
        self.server: ForkServer | None = None
        self.shared, self.output_dir, self.limit, self.parallel = shared, output_dir, limit, parallel
        self.sweep, self.study, self.display = shared.sweep, shared.study, display
        self.running: list[Running] = []
        self.failures = self.successes = 0

    def run(self, signals: Signals) -> str:
        """Work; returns why it ended: 'done', 'failures' or 'stopped'."""
        try:
            return self._run(signals)
        finally:
            if self.server:
                self.server.close()

    def _run(self, signals: Signals) -> str:
        next_look, waiting = 0.0, False
        while True:
            if signals.count:
                self.stop(signals)
                return "stopped"
            if self.failures >= 3 and not self.successes:
                self.stop(signals)
                return "failures"
            if len(self.running) < self.parallel and time.monotonic() >= next_look:
                trial = self.shared.next_trial(self.limit)
                if trial:
                    self.begin(trial)
                    continue
                if not self.running and sum(map(done, self.shared.trials())) >= self.limit:
                    return "done"
                if not self.running and not waiting:
                    waiting = True
                    self.display.say("waiting for the trials of other workers")
                next_look = time.monotonic() + (2 if not self.running else TOUCH_EVERY)
            if self.poll():
                next_look = 0.0
            self.display.update(self.shared, self.running)
            time.sleep(POLL_EVERY)

    def stop(self, signals: Signals) -> None:
        """End the trials gracefully, or at once on a second signal; they are continued later."""
        seen = signals.count
        if self.running:
            ids = ", ".join(run.run_id for run in self.running)
            self.display.say(f"stopping {ids} (at most {KILL_AFTER:.0f} s; a second signal stops at once)")
        while self.running:
            for run in self.running:
                run.stop("interrupted")
                if signals.count > seen:
                    run.kill_at = 0.0
            self.poll()
            time.sleep(0.05)

    def begin(self, trial: optuna.Trial) -> None:
        """Start a trial's process; where its run has finished already, that finds so and ends."""
        index = trial.user_attrs["index"]
        if self.sweep.method == "grid" and index >= self.sweep.grid_size():  # this worker stalled while deciding
            trial.set_user_attr("surplus", True)
            self.study.tell(trial, state=TrialState.FAIL)
            return
        run_id = trial.user_attrs.get("run_id")
        if not run_id and self.sweep.method == "grid":
            run_id = grid_run_id(self.sweep, self.shared.extra, index)
        elif not run_id:
            run_id = hashed(self.sweep.content, self.shared.id, index)
        try:
            values = draw(self.sweep, trial)
            trial.set_user_attr("run_id", run_id)
            trial.set_user_attr("values", values)
        except LOST_RACE:
            return
        metrics = TrialMetrics(self.sweep, self.output_dir, run_id)
        folder = self.shared.storage.parent
        command = [*expand(self.sweep, values, folder / f"args/{run_id}.json"), *self.shared.extra]
        log = folder / "logs" / f"{index:03d}-{run_id}.log"
        log.parent.mkdir(exist_ok=True)
        start_of_log = log.stat().st_size if log.exists() else 0
        try:
            process = self.start(command, run_id, log)
        except OSError as error:
            self.conclude(trial, metrics, f"{command[0]}: {error.strerror}")
            return
        epochs, judged = values.get(MAX_EPOCHS, self.shared.max_epochs), self.shared.last_row_before(trial)
        if metrics.finished:  # the process only finds that
            metrics.update()
            judged = len(metrics.values)
        self.running.append(Running(trial, index, run_id, values, metrics, log, process, start_of_log, epochs, judged))
        with suppress(*LOST_RACE):
            trial.set_user_attr("lease", self.shared.lease(process.pid))
        again = " again" if "continues" in trial.user_attrs else ""
        self.display.say(f"trial {index} ({run_id}) starts{again}: {self.display.described(values)}")

    def start(self, command: list[str], run_id: str, log: Path) -> Process:
        """A trial's process, forked if that is possible; OSError if there is no such command."""
        words = words_to_fork(self.sweep, command)
        if self.fork and not words:
            self.display.say("each trial is a process of its own, since it is more than 'python train_kd.py' on Linux")
            self.fork = False
        if self.fork:
            try:
                if not self.server:
                    self.display.say("importing once what all trials need (--separate lets each import it itself)")
                    self.server = ForkServer(log.parent / "fork-server.log")
                return self.server.start(words, run_id, log)
            except OSError as error:
                self.display.say(f"{error}; each trial is a process of its own from here on")
                self.fork = False
        return Separate(command, run_id, log)

    def poll(self) -> bool:
        """Check the running trials; whether one has ended."""
        ended = []
        touched = self.shared.touch()
        states = {t.number: t.state for t in self.shared.trials()} if touched and self.running else {}
        for run in self.running:
            status = run.process.poll()
            run.metrics.update()
            if states.get(run.trial.number, TrialState.RUNNING) != TrialState.RUNNING and run.stopping != "lost":
                run.stopping = ""
                run.stop("lost")
            if run.stopping != "lost":
                self.report(run)
            if status is not None:
                ended.append(run)
                self.end(run, status)
            elif time.monotonic() > run.kill_at:
                run.process.send(signal.SIGKILL)
        self.running = [run for run in self.running if run not in ended]
        return bool(ended)

    def report(self, run: Running) -> None:
        """Report new rows to Optuna, and stop the trial if they are poor, unless its process has ended by itself.

        A trial that continues has passed its old rows: against all that came there since it is not judged again.
        """
        for step in range(run.reported + 1, len(run.metrics.values) + 1):
            run.reported = step
            with suppress(*LOST_RACE):  # another worker took it over; the next touch notices
                # the best so far, as in W&B's hyperband, not the epoch's own value
                best = run.metrics.best_of(step)
                run.trial.report(math.nan if best is None else best, step)
                saves = run.epochs is None or step < run.epochs  # after the last epoch nothing is saved
                judged = saves and step > run.judged and self.sweep.early_terminate and not run.stopping
                if judged and run.trial.should_prune() and run.process.poll() is None:
                    run.stop("pruned")
                    return

    def end(self, run: Running, status: int) -> None:
        """Record how a trial's process ended."""
        stops = run.trial.user_attrs.get("stops", 0)
        if run.stopping == "lost":
            self.display.say(f"trial {run.index} ({run.run_id}) was taken over by another worker")
        elif status == 0:
            self.conclude(run.trial, run.metrics, None)
        elif run.stopping == "pruned":
            self.tell(run.trial, TrialState.PRUNED, best=run.metrics.best)
            self.successes += 1
            self.display.say(f"trial {run.index} stopped early: {number(run.metrics.best)}")
        elif run.stopping or (status in STOPPED and stops < MAX_STOPS):
            with suppress(*LOST_RACE):
                run.trial.set_user_attr("stops", stops + (not run.stopping))
            self.shared.continue_later(run.trial.number)
            self.display.say(f"trial {run.index} ({run.run_id}) was interrupted")
        else:
            ending = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
            self.conclude(run.trial, run.metrics, run.last_line() or ending)

    def conclude(self, trial: optuna.Trial, metrics: TrialMetrics, error: str | None) -> None:
        """Record the result of a trial that ran to its end, or its error."""
        index = trial.user_attrs["index"]
        metrics.update()
        if error is None and metrics.best is None and metrics.values:
            error = f"{self.sweep.metric} was never finite"
        elif error is None and metrics.best is None:
            where = f"the metric of {self.sweep.path.name}"
            error = f"{self.sweep.metric!r}, {where}, was not measured{metrics.measured()}"
        if error is None:
            self.tell(trial, TrialState.COMPLETE, value=metrics.best, best=metrics.best)
            self.successes += 1
            self.display.say(f"trial {index} done: {number(metrics.best)}")
        else:
            self.tell(trial, TrialState.FAIL, error=error)
            self.failures += 1
            self.display.say(f"trial {index} failed: {error}")

    def tell(self, trial: optuna.Trial, state: TrialState, value: float | None = None, **attributes: Any) -> None:
        with suppress(*LOST_RACE):  # another worker took it over
            for key, attribute in attributes.items():
                trial.set_user_attr(key, attribute)
            self.study.tell(trial, value, state=state)
        write_results(self.shared, self.output_dir)
