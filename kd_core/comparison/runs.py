"""Finished runs, in folders, records or at W&B: found, loaded, checked, which have the same data, and their metrics."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import kd_methods
from kd_core.comparison import recorded
from kd_core.config import (
    MAX_NESTING,
    PLACE_OF_DATA,
    Config,
    Layer,
    NotImported,
    identity_of,
    own_code,
    read_record,
    resolve,
    without_echoes,
)
from kd_core.config.privacy import redacted
from kd_core.config.schema import REST
from kd_core.errors import UserError
from kd_core.files import local_path, read_object
from kd_core.models.exported import export_in
from kd_core.run import artifacts
from kd_core.run.folder import RunFolder, lookup, read_metrics
from kd_core.run.selection import AVERAGE, of_average, of_export
from kd_core.teachers.load import ON_DEMAND

# metrics that a run's summary has under other names
STATED = {"val/accuracy": "best_val_accuracy", "val/auroc": "val_auroc", "test/accuracy": "final_test_accuracy"}
WANDB_NAME = re.compile(r"[\w.-]+/[\w.-]+(/[\w.-]+)?")


@dataclass
class Run:
    """A finished run.

    name: the run folder, or ENTITY/PROJECT/ID.
    identity: all settings that shaped it, with the content of the files that they name.
    summary, rows: what summary.json and metrics.jsonl hold, or W&B's summary and history.
    created: when it began, in seconds since the epoch.
    """

    name: str
    run_id: str
    config: Config
    identity: dict[str, Any]
    summary: dict[str, Any]
    rows: list[dict[str, Any]]
    created: float
    folder: Path | None = None

    @property
    def seed(self) -> int:
        return self.config.training.seed

    @property
    def teachers(self) -> list[str]:
        """The teachers' names, from the run's summary, otherwise from its settings."""
        stated = self.summary.get("teachers")
        names = [row.get("name") for row in stated if isinstance(row, dict)] if isinstance(stated, list) else []
        if len(names) == len(self.config.teachers) and all(isinstance(name, str) for name in names):
            return [str(name) for name in names]
        return [teacher.model or teacher.weights or str(teacher.logits) for teacher in self.config.teachers]

    @property
    def pair(self) -> str:
        """'TEACHER + TEACHER -> STUDENT'; without teachers the student alone."""
        teachers = " + ".join(self.teachers)
        return f"{teachers} -> {self.config.model.name}" if teachers else self.config.model.name

    def figure(self, name: str) -> float | None:
        """A number of the selected student, None if there is none of that name or it is not finite.

        SPLIT/NAME is looked for in the evaluation of the split (further parts after dots), then in the rows of
        metrics: of the best epoch, or of the test.  Any other name is one of the summary's, with dots for its parts.
        """
        split, _, rest = name.partition("/")
        candidates = [
            lookup(self.summary, f"evaluation.{split}.{rest}") if rest else None,
            self.summary.get(STATED.get(name, "")),
            *(row[name] for row in reversed(self._rows_of_weights) if name in row and self._is_of_result(row)),
            lookup(self.summary, name),
        ]
        return next((value for value in map(number, candidates) if value is not None), None)

    @property
    def _rows_of_weights(self) -> list[dict[str, Any]]:
        """The rows, with the metrics of the weights that the run exports."""
        stated = self.summary.get("weights")
        if stated is None and self.config.training.ema:  # W&B's summary does not say
            return [of_export(row) for row in self.rows]
        return [of_average(row) for row in self.rows] if stated == AVERAGE else self.rows

    def _is_of_result(self, row: dict[str, Any]) -> bool:
        return any(key.startswith("test/") for key in row) or row.get("epoch") == self.summary.get("best_epoch")

    def figures(self) -> list[str]:
        """Names that `figure` knows, for messages."""
        names = {name for row in self.rows for name in row if "/" in name and self.figure(name) is not None}
        evaluation = self.summary.get("evaluation")
        for split, values in evaluation.items() if isinstance(evaluation, dict) else ():
            if isinstance(values, dict):
                names |= {f"{split}/{name}" for name, value in values.items() if number(value) is not None}
        return sorted(names | {name for name in STATED if self.figure(name) is not None})

    @property
    def training_seconds(self) -> float | None:
        """The time that all epochs took together, training and validation."""
        times = [time for row in self.rows if (time := number(row.get("perf/epoch_time"))) is not None]
        return sum(times) if times else None


def number(value: Any) -> float | None:
    """`value` if it is a finite number, else None."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < 1e300 and math.isfinite(value) else None


# ---------------------------------------------------------------------------------------------------- finding them


@dataclass
class Found:
    """Runs that can be compared, (name, reason) of those that were left out, and further notes."""

    runs: list[Run]
    left_out: list[tuple[str, str]]
    notes: list[str] = field(default_factory=list)


def find(names: Iterable[str]) -> Found:
    """The finished runs under `names`: run folders, folders of run folders, records, runs or projects of W&B.

    Unfinished or damaged runs are left out, with the reason; so are teachers that other runs trained on demand, unless
    they are named themselves or a record holds them.  UserError if there is nothing under a name, if W&B cannot be
    reached, or if a run needs own code that the command does not name.
    """
    readers: dict[str, Callable[[], Run]] = {}
    named = set()
    for name in names:
        path = local_path(name, "RUN")
        is_record = recorded.is_record(path)  # which has no teachers but those that were named
        for place, read in _places(name):
            readers[place] = read
            if is_record or Path(place) == path:
                named.add(place)
    found = Found([], [])
    for place, read in readers.items():
        try:
            run = read()
        except NotImported as error:  # not left out: the command lacks an option, the run is fine
            raise UserError(f"{place}: {error}") from None
        except UserError as error:
            found.left_out.append((place, str(error)))
            continue
        same = next((other for other in found.runs if other.run_id == run.run_id), None)
        if run.config.wandb.group == ON_DEMAND and place not in named:
            found.left_out.append((place, "a teacher that was trained on demand; name it itself to compare it"))
        elif same:
            found.left_out.append((place, f"the same run as {same.name}"))
        else:
            found.runs.append(run)
    return found


def as_same_data(found: Found, pairs: Iterable[tuple[str, str]]) -> None:
    """Treat each pair of fingerprints, or of their first characters, as one data set, wherever its images were stored.

    UserError if no data set, or more than one, has a fingerprint with these first characters.
    """
    known = sorted({str(run.identity.get("images")) for run in found.runs})

    def whole(part: str) -> str:
        fitting = [fingerprint for fingerprint in known if fingerprint.startswith(part)]
        if len(fitting) != 1:
            there = ", ".join(fingerprint[:16] for fingerprint in fitting or known) or "none"
            wrong = "several data have such a fingerprint" if fitting else "no run's data have such a fingerprint"
            raise UserError(f"--same-data: {part}: {wrong}; there are {there}")
        return fitting[0]

    same = {fingerprint: fingerprint for fingerprint in known}
    named = set()
    for pair in pairs:
        first, second = map(whole, pair)
        named |= {first, second}
        kept, gone = same[first], same[second]
        same = {fingerprint: kept if one == gone else one for fingerprint, one in same.items()}
        found.notes.append(f"--same-data: data {first[:12]} and {second[:12]} are treated as the same")
    places: dict[tuple[str, str], dict[str, Any]] = {}

    def in_one_place(section: dict[str, Any], images: str, name: str) -> dict[str, Any]:
        place = places.setdefault((images, name), {key: section[key] for key in PLACE_OF_DATA if key in section})
        return {key: value for key, value in section.items() if key not in PLACE_OF_DATA} | place

    for run in found.runs:
        if (images := str(run.identity.get("images"))) in named:
            data = in_one_place(run.identity["data"], same[images], "data")
            other = data.get("unlabeled")  # which the fingerprint covers
            if isinstance(other, dict) and other.get("source") != REST:
                data["unlabeled"] = in_one_place(other, same[images], "unlabeled")
            run.identity = {**run.identity, "images": same[images], "data": data}


def _places(name: str) -> list[tuple[str, Callable[[], Run]]]:
    """(folder or ENTITY/PROJECT/ID, function that reads it) of the runs under `name`."""
    path = local_path(name, "RUN")
    if recorded.is_record(path):
        modified = path.stat().st_mtime
        return [(place, partial(_read_recorded, place, values, modified)) for place, values in recorded.read(path)]
    if path.is_dir():
        folders = [path] if _is_run(path) else _runs_in(path, levels=2)
        if not folders:
            raise UserError(f"{name}: holds no run folder (one with config.yaml and summary.json)")
        return [(str(folder), partial(read_folder, folder)) for folder in folders]
    if path.exists() or not WANDB_NAME.fullmatch(name) or Path(name.split("/")[0]).is_dir():
        raise UserError(f"{name}: no such folder; expected run folders, folders of them, records of them "
            "(.json), or ENTITY/PROJECT[/ID]")
    return _at_wandb(name)


def _is_run(path: Path) -> bool:
    return any((path / name).is_file() for name in ("summary.json", "config.yaml"))


def _runs_in(path: Path, levels: int) -> list[Path]:
    found = []
    for folder in sorted(path.iterdir()):
        if folder.is_dir() and not folder.name.startswith("."):
            if _is_run(folder):
                found.append(folder)
            elif levels > 1:
                found += _runs_in(folder, levels - 1)
    return found


def read_folder(path: Path) -> Run:
    """The finished run in a folder.  UserError, which leaves the folder's name to the caller, if there is none."""
    for name in ("summary.json", "config.yaml"):
        if not (path / name).is_file():
            raise UserError(f"has no {name}")
    folder = RunFolder(path)
    summary = folder.summary()
    if summary.get("status") != "finished":
        raise UserError(f"has not finished (status {str(summary.get('status'))[:40]!r})")
    config = resolve([read_record((path / "config.yaml").absolute())], in_sweep=False).config
    if folder.identity_file.is_file():
        identity = read_object(folder.identity_file)
    else:  # an older run, which did not record it
        fingerprint = lookup(read_object(export_in(path) / "config.json"), "extra.data_fingerprint")
        identity = redacted(identity_of(config, str(fingerprint)))
    rows = read_metrics(folder.metrics_file) if folder.metrics_file.is_file() else []
    run_id = summary.get("run_id")
    return Run(
        name=str(path),
        run_id=run_id if isinstance(run_id, str) else str(path),
        config=config,
        identity=_checked(identity),
        summary=summary,
        rows=rows,
        created=folder.began or (path / "config.yaml").stat().st_mtime,
        folder=path,
    )


def _read_recorded(place: str, values: dict[str, Any], modified: float) -> Run:
    own = recorded.checked(values)
    created = number(own.get("created"))  # which earlier versions did not record
    settings = dict(own["config"])
    named = settings.pop("import", None)
    files = [PurePath(str(file)).name for file in named] if isinstance(named, list) else []
    return Run(
        name=own["name"],
        run_id=own["run_id"],
        config=_resolved(Layer(f"{place}, config", settings), files),
        identity=_checked(own["identity"]),
        summary=own["summary"],
        rows=own["rows"],
        created=modified if created is None else created,
    )


def _resolved(settings: Layer, files: list[str]) -> Config:
    """A run's settings; `files`: the names of the own code that it was trained with.

    NotImported if they cannot be read and the command does not import all of that code.
    """
    try:
        return resolve([settings], in_sweep=False).config
    except UserError as error:
        if {file.path.name for file in own_code.files()}.issuperset(files):
            raise
        raise NotImported(f"{error}\nit was trained with own code; add --import FILE for {', '.join(files)}") from None


def _checked(identity: Any) -> dict[str, Any]:
    """A recorded identity, validated; UserError if it is none."""

    def depth(value: Any, level: int = 0) -> int:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return level if level > MAX_NESTING else max((depth(item, level + 1) for item in inner), default=level)

    kinds = {"data": dict, "model": dict, "training": dict, "kd": dict, "teachers": list}
    whole = isinstance(identity, dict) and all(isinstance(identity.get(key), kind) for key, kind in kinds.items())
    if not whole or depth(identity) > MAX_NESTING:
        raise UserError("identity.json: damaged, not the settings of a run")
    return dict(identity)


def _at_wandb(name: str) -> list[tuple[str, Callable[[], Run]]]:
    """(ENTITY/PROJECT/ID, function that reads it) of W&B's runs under `name`."""
    import wandb

    try:
        api = wandb.Api(timeout=artifacts.API_TIMEOUT)
        found = [api.run(name)] if name.count("/") == 2 else list(api.runs(name, order="+created_at"))
    except Exception as error:  # noqa: BLE001 - every failure of the service is the same to the user
        raise UserError(f"{name}: no such folder, and as a name at W&B: {artifacts.explain(error)}") from None
    found = [run for run in found if getattr(run, "job_type", None) != "evaluation"]
    return [("/".join(run.path), partial(_read_wandb, run)) for run in found]


def _read_wandb(run: Any) -> Run:
    if run.state != "finished":
        raise UserError(f"has not finished (state {run.state!r})")
    try:
        values, summary = dict(run.config), _plain(run.summary)
        rows = [{key: value for key, value in row.items() if value is not None} for row in run.scan_history()]
        created = datetime.fromisoformat(run.created_at.replace("Z", "+00:00")).timestamp()
    except Exception as error:  # noqa: BLE001 - see above
        raise UserError(f"W&B: {artifacts.explain(error)}") from None
    fingerprint = values.get("data_fingerprint")
    if not isinstance(fingerprint, str):
        raise UserError("its configuration has no data_fingerprint: not a run of this project")
    own = values.get("own_code")
    files = list(own) if isinstance(own, dict) else []
    config = _resolved(without_echoes(Layer("its configuration", values)), files)
    identity = identity_of(config, fingerprint)
    if isinstance(own, dict):
        known = {file.digest: file for file in own_code.files()}
        codes = sorted(map(str, own.values()))
        alone = [code for code in codes if code in known and known[code].adds_methods_alone]
        if others := [code for code in codes if code not in alone]:
            identity["import"] = others
        if alone and config.kd.type != kd_methods.LABEL_ONLY:  # as identity_of does
            identity["kd"]["code"] = alone
    return Run(
        name="/".join(run.path),
        run_id=run.id,
        config=config,
        identity=_checked(redacted(identity)),
        summary={"parameters": values.get("parameters"), **summary},
        rows=rows,
        created=created,
    )


def _plain(value: Any) -> Any:
    """W&B's mapping types as plain dicts."""
    if hasattr(value, "items"):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
