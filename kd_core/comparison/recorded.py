"""Finished runs in one small JSON file, to keep beside a paper and to compare again (compare_kd.py --record).

A record holds of each run what a comparison needs: settings, identity, epochs' rows, and the numbers of summary.json.
Left out are rows within epochs, times but those of epochs and of the run's begin, tables of classes but for their
accuracies, the machine, and the folders that paths name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from kd_core.config.privacy import redacted
from kd_core.errors import UserError
from kd_core.files import json_text, mapped, read_object, write_text

if TYPE_CHECKING:
    from kd_core.comparison.runs import Run

FORMAT = "kd runs, version 1"
UNRECORDED = ("environment", "findings", "config_digest", "exit_status", "baseline_run")  # of a summary
COUNTED = ("parameters", "multiply_adds")  # of a cost, the rest of which is measured
TABLES = ("superclasses", "most_confused", "per_class")  # of an evaluation
MEASURED = re.compile(r"(time|_seconds|per_second|memory\w*|bytes)$")  # ends of names: differ from run to run
EPOCH_TIME = "perf/epoch_time"
NAMES = {dict: "an object {...}", list: "a list", str: "text"}


def write(path: Path, runs: Iterable[Run]) -> None:
    """Record these runs, a line for each, in order of experiment and seed; an existing record is replaced."""
    ordered = sorted(runs, key=lambda run: (run.config.experiment, run.config.kd.type, run.seed, run.run_id))
    lines = ",\n".join(json_text(_record(run)) for run in ordered)
    write_text(path, f'{{"format": {json_text(FORMAT)}, "runs": [\n{lines}\n]}}\n')


def is_record(path: Path) -> bool:
    """Whether a file may be one, by its name."""
    return path.suffix == ".json" and path.is_file()


def read(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(name, values) of each run in a record.  UserError if it is none."""
    values = read_object(path)
    found = values.get("runs")
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found) or values.get("format") != FORMAT:
        raise UserError(f"{path}: is no record of runs ({FORMAT!r}), which compare_kd.py RUN ... --record writes")
    return [(f"{path}#{str(one.get('run_id'))[:40]}", one) for one in found]


def checked(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a run in a record.  UserError if they are damaged."""
    kinds = {"config": dict, "identity": dict, "summary": dict, "rows": list, "run_id": str, "name": str}
    for key, kind in kinds.items():
        if not isinstance(values.get(key), kind):
            raise UserError(f"{key}: damaged, expected {NAMES[kind]}")
    if not all(isinstance(row, dict) for row in values["rows"]):
        raise UserError("rows: damaged, expected a list of objects")
    return values


def _record(run: Run) -> dict[str, Any]:
    training = run.config.training
    values = {
        "group": run.config.experiment,
        "seed": training.seed,
        "epochs": training.max_epochs,
        "name": PurePath(run.name).name,
        "run_id": run.run_id,
        "created": round(run.created),
        "config": run.config.model_dump(mode="json"),
        "identity": run.identity,
        "summary": mapped(_summary(run.summary), _seven_digits),
        "rows": [mapped(row, _seven_digits) for row in map(_row, run.rows) if row],
    }
    return mapped(redacted(values), _name_of_path)


def _summary(summary: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in summary.items() if key not in UNRECORDED and not MEASURED.search(key)}
    if isinstance(cost := kept.get("cost"), dict):
        kept["cost"] = {key: cost[key] for key in COUNTED if key in cost}
    if isinstance(splits := kept.get("evaluation"), dict):
        kept["evaluation"] = {name: _split(values) for name, values in splits.items() if isinstance(values, dict)}
    return kept


def _split(values: dict[str, Any]) -> dict[str, Any]:
    """The evaluation of a split, its table of classes as their accuracies."""
    kept = {key: value for key, value in values.items() if key not in TABLES}
    classes = values.get("per_class")
    return kept | ({"class_accuracy": [row.get("accuracy") for row in classes]} if isinstance(classes, list) else {})


def _row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of an epoch or of the test; of a row within an epoch nothing."""
    if any(key.startswith("train_step/") for key in row):
        return {}
    kept = {key: value for key, value in row.items() if not MEASURED.search(key)}
    taken = row.get(EPOCH_TIME)
    return kept | ({EPOCH_TIME: round(taken, 1)} if isinstance(taken, (int, float)) else {})


def _seven_digits(value: Any) -> Any:
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _name_of_path(value: Any) -> Any:
    is_path = isinstance(value, str) and re.match(r"(/|~/|[A-Za-z]:\\)", value)
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if is_path else value
