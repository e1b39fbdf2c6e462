"""Which weights of an epoch are exported: the student's own or, with `training.ema`, their average, the better of both.

A row of metrics.jsonl holds both: val/NAME of the student, val/ema_NAME of the average.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kd_core.files import read_object

AVERAGED = ("accuracy", "auroc", "loss_ce")  # what is measured of the average, too
AVERAGE = "average"  # its folder in a checkpoint, and its mark in the metrics of an export


def takes_average(row: dict[str, Any]) -> bool:
    """Whether the average is exported: unless the student is better by validation."""
    return bool(row.get("val/ema_accuracy", 0.0) >= row.get("val/accuracy", 0.0))


def of_average(row: dict[str, Any]) -> dict[str, Any]:
    """The row as metrics of the average: its own val/NAME, marked as `weights`."""
    kept = {name: value for name, value in row.items() if name != "val/loss_total"}  # which is the student's alone
    own = {f"val/{name}": row[f"val/ema_{name}"] for name in AVERAGED if f"val/ema_{name}" in row}
    return {**kept, **own, "weights": AVERAGE}


def of_export(row: dict[str, Any]) -> dict[str, Any]:
    """The row as metrics of the weights that are exported."""
    return of_average(row) if takes_average(row) else row


def selected(checkpoint: Path) -> Path:
    """The folder in a checkpoint with the export that counts."""
    student, average = checkpoint / "student", checkpoint / AVERAGE
    return average if average.is_dir() and takes_average(read_object(student / "metrics.json")) else student
