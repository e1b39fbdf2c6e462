"""Which weights of an epoch are exported: the student's own or, with `training.ema`, their average, the better of both.

A row of metrics.jsonl holds the metrics of both, under the names in `AVERAGED`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kd_core.files import read_object
from kd_core.models.average import AVERAGED, takes_average

AVERAGE = "average"  # its folder in a checkpoint, and its mark in the metrics of an export


def of_average(row: dict[str, Any]) -> dict[str, Any]:
    """The row as metrics of the average, which are its own, marked as `weights`."""
    kept = {name: value for name, value in row.items() if name != "val/loss_total"}  # which is the student's alone
    own = {name: row[average] for name, average in AVERAGED.items() if average in row}
    return {**kept, **own, "weights": AVERAGE}


def of_export(row: dict[str, Any]) -> dict[str, Any]:
    """The row as metrics of the weights that are exported."""
    return of_average(row) if takes_average(row) else row


def selected(checkpoint: Path) -> Path:
    """The folder in a checkpoint with the export that counts."""
    student, average = checkpoint / "student", checkpoint / AVERAGE
    return average if average.is_dir() and takes_average(read_object(student / "metrics.json")) else student
