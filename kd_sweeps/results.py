"""trials.csv and best.yaml beside the storage."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from kd_core.files import write_bytes, write_text
from kd_sweeps.study import STATES, SharedStudy, ranking
from kd_sweeps.trial import TrialMetrics


def write_results(shared: SharedStudy, output_dir: Path) -> Path | None:
    """Write trials.csv, and best.yaml if the best trial's run folder is on this machine; that folder.

    Else best.yaml stays as it is: the second best would silently take the place of the best.
    """
    sweep, folder = shared.sweep, shared.storage.parent
    ranked = ranking(sweep, shared.trials())
    text = io.StringIO()
    names = [parameter.name for parameter in sweep.parameters]
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["trial", "state", sweep.metric, *names, "seconds", "run_id", "error"])
    for trial in ranked:
        attrs, values = trial.user_attrs, trial.user_attrs.get("values", {})
        seconds = f"{trial.duration.total_seconds():.1f}" if trial.duration else ""
        table.writerow(
            [attrs["index"], STATES[trial.state], attrs.get("best", ""), *(values.get(name) for name in names), seconds,
             attrs.get("run_id"), attrs.get("error", "")]
        )  # fmt: skip
    write_text(folder / "trials.csv", text.getvalue())
    best = best_of(ranked)
    run = TrialMetrics(sweep, output_dir, best.user_attrs["run_id"]).folder if best else None
    if not run or not (run / "config.yaml").is_file():
        return None
    write_bytes(folder / "best.yaml", (run / "config.yaml").read_bytes())
    return run


def best_of(ranked: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """The first trial of a ranking that ran to its end."""
    return next((trial for trial in ranked if trial.state == TrialState.COMPLETE), None)
