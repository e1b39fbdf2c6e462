"""What a worker prints: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from kd_sweeps.study import STATES, SharedStudy, done, failed, ranking
from kd_sweeps.sweep_file import Sweep
from kd_sweeps.trial import Running
from kd_sweeps.trial_command import MAX_EPOCHS


class Display:
    """A live table on a terminal, plain lines elsewhere."""

    def __init__(self, sweep: Sweep, max_epochs: int | None):
        self.sweep, self.max_epochs = sweep, max_epochs
        terminal = sys.stdout.isatty()
        self.console = Console(highlight=False, emoji=False, width=None if terminal else 120, soft_wrap=not terminal)
        self._live = Live(console=self.console, auto_refresh=False, transient=True) if terminal else None
        self._next = 0.0
        names = [parameter.name for parameter in sweep.varied]
        last = [name.rpartition(".")[2] for name in names]
        self._short = {n: s if last.count(s) == 1 else n for n, s in zip(names, last, strict=True)}

    def __enter__(self) -> Display:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()

    def say(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)  # users copy commands from here
        sys.stdout.flush()

    def described(self, values: dict[str, Any]) -> str:
        """The values that vary, under names as short as they are unique."""
        return " ".join(f"{short}={written(values.get(name))}" for name, short in self._short.items())

    def update(self, shared: SharedStudy, running: list[Running]) -> None:
        if not self._live or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + 1
        self._live.update(self.table(shared.trials(), running), refresh=True)

    def table(self, trials: Sequence[FrozenTrial], running: Sequence[Running] = ()) -> Table:
        """Running trials first, then the best finished ones."""
        mine = {run.trial.number: run for run in running}
        ranked = ranking(self.sweep, trials)
        counts = f"{sum(map(done, trials))} finished, {sum(map(failed, trials))} failed"
        table = Table(title=f"{self.sweep.path.name}: {self.sweep.metric}, {counts}", title_justify="left")
        for heading in ("trial", "state", "parameters", "epochs", "last", "best", "time"):
            table.add_column(heading, justify="left" if heading in ("state", "parameters") else "right")
        for trial in [*(t for t in trials if t.state == TrialState.RUNNING), *ranked[: 10 if running else None]]:
            run = mine.get(trial.number)
            reported = trial.intermediate_values
            values = run.metrics.values if run else [reported[step] for step in sorted(reported)]
            finite = [value for value in values if math.isfinite(value)]
            began, ended = trial.datetime_start or datetime.now(), trial.datetime_complete or datetime.now()
            given = trial.user_attrs.get("values", {})
            state = STATES.get(trial.state, (run.stopping or "running") if run else "elsewhere")
            table.add_row(
                str(trial.user_attrs.get("index", "")),
                state,
                escape(self.described(given)),
                f"{len(values)}/{given.get(MAX_EPOCHS, self.max_epochs) or '?'}",
                number(values[-1] if values else None),
                number(trial.user_attrs.get("best", self.sweep.better(finite) if finite else None)),
                str(timedelta(seconds=int((ended - began).total_seconds()))),
            )
        return table

    def closing(self, shared: SharedStudy) -> None:
        """The result: all trials, best first, and the errors of those that failed."""
        trials = shared.trials()
        if any(map(done, trials)):
            self.console.print(self.table([t for t in trials if done(t)]), soft_wrap=False)
        for trial in filter(failed, trials):
            self.say(f"trial {trial.user_attrs['index']} failed: {trial.user_attrs['error']}")


def written(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"
