"""A paper's table: a cell for each pair of values of any settings, and the commands that train the cells it lacks."""

from __future__ import annotations

import json
import shlex
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import BaseModel, TypeAdapter

import kd_methods
from kd_core.comparison.compare import (
    ALONE,
    Group,
    compare,
    differing,
    group,
    higher_is_better,
    label,
    limits,
    settings_key,
    short,
)
from kd_core.comparison.runs import Found, Run, number
from kd_core.comparison.significance import difference, spread
from kd_core.config import IMPORTS, import_words
from kd_core.errors import UserError
from kd_core.run.folder import lookup

PLAIN = TypeAdapter(Any)  # writes values as JSON
PAIR = "pair"  # a key of the table's rows and columns: TEACHERS -> STUDENT


def _keys(text: str, runs: list[Run], option: str) -> list[str]:
    keys = [key.strip() for key in text.split(",") if key.strip()]
    if "training.seed" in keys:
        raise UserError(f"{option}: training.seed: over the seeds cells are averaged; take another key")
    for key in keys:
        if key != PAIR and not any(_has(run, key) for run in runs):
            raise UserError(
                f"{option}: {key}: no run has such a setting; expected '{PAIR}' or a key of config.yaml, such as "
                "kd.type, kd.loss, model.name, training.learning_rate; several are separated by commas"
            )
    if not keys:
        raise UserError(f"{option}: is {text!r}, expected keys of config.yaml, or '{PAIR}'")
    return keys


def _has(run: Run, key: str) -> bool:
    section, _, last = key.rpartition(".")
    values = run.config.model_dump(mode="json")
    found = lookup(values, section) if section else values
    return isinstance(found, dict) and last in found


def _value(run: Run, key: str) -> str | None:
    """A run's value of a key of rows or columns, None if its method has no such setting."""
    value = run.pair if key == PAIR else lookup(run.config.model_dump(mode="json"), key)
    return None if value is None else short(value)


def pivot(
    found: Found,
    rows: str,
    cols: str,
    *,
    metric: str | None = None,
    confidence: float = 0.95,
    force: bool = False,
) -> dict[str, Any]:
    """A paper's table, ready for JSON: a cell for each pair of values of the settings `rows` and `cols`.

    `rows` and `cols` are keys of the configuration or 'pair', several separated by commas.  The students alone and the
    teachers make rows of their own.  UserError if a cell would hold several experiments, or if those of a column differ
    in more than their methods and are not `force`d together.
    """
    compared = compare(found, metric=metric, confidence=confidence, force=force)
    chosen = compared["metric"]
    every = group(found.runs)[0]
    groups, unmeasured = ([one for one in every if bool(one.values(chosen)) is has] for has in (True, False))
    label(groups)
    distilled = [one for one in groups if not one.is_alone]
    examples = [one.first for one in distilled or groups]
    row_keys, col_keys = _keys(rows, examples, "--rows"), _keys(cols, examples, "--cols")

    cells = _cells(distilled, row_keys, col_keys)
    names = list(dict.fromkeys(row for row, _ in cells))
    columns = list(dict.fromkeys(column for _, column in cells))
    warnings = [*compared["notes"], *_mixed_columns(cells, force)]
    alone, unclear, more = _students_alone(cells, groups, col_keys)
    warnings += more
    columns += [column for column in alone if column not in columns]

    table = [[_cell(cells.get((row, column)), chosen, confidence) for column in columns] for row in names]
    for index, column in enumerate(columns):
        rivals: list[Rival] = [(alone[column], None)] if column in alone else []
        rivals += [(cells[name, column], row[index]) for name, row in zip(names, table, strict=True) if row[index]]
        _mark(rivals, chosen, confidence)
    return {
        "metric": chosen,
        "higher_is_better": compared["higher_is_better"],
        "confidence_level": confidence,
        "row_keys": row_keys,
        "col_keys": col_keys,
        "rows": names,
        "cols": columns,
        "teachers": [_teachers(cells, column, chosen) for column in columns],
        "alone": [_cell(alone.get(column), chosen, confidence) for column in columns],
        "cells": table,
        "missing": _missing(names, columns, cells, alone, unclear, unmeasured, row_keys, col_keys, chosen),
        "warnings": warnings,
        "left_out": compared["left_out"],
    }


Cells = dict[tuple[str, str], Group]  # by (row, column)


def _heading_of(one: Group, keys: list[str]) -> str:
    """The name of a group's row or column: its values of these keys."""
    values = [(key, value) for key in keys if (value := _value(one.first, key)) is not None]
    plain = (PAIR, "kd.type", "model.name")
    parts = [value if key in plain else f"{key.rpartition('.')[2]}={value}" for key, value in values]
    return ", ".join(parts) or "none"


def _cells(distilled: list[Group], row_keys: list[str], col_keys: list[str]) -> Cells:
    """The group of each cell; UserError if two belong into one."""
    cells: Cells = {}
    for one in distilled:
        place = (_heading_of(one, row_keys), _heading_of(one, col_keys))
        _require_same(cells.setdefault(place, one), one, *place)
    return cells


def _require_same(there: Group, one: Group, row: str, column: str) -> None:
    """UserError unless the group of a cell is the one that is to be put into it."""
    if there is not one:
        keys = ", ".join(differing([there.settings, one.settings]))
        raise UserError(
            f"--rows, --cols: the cell of {row!r} and {column!r} would hold experiments that differ in "
            f"{keys}; add such a key to --rows or --cols, or leave runs out"
        )


def _by_column(cells: Cells) -> dict[str, list[Group]]:
    found: dict[str, list[Group]] = {}
    for (_, column), one in cells.items():
        found.setdefault(column, []).append(one)
    return found


def _mixed_columns(cells: Cells, force: bool) -> list[str]:
    """A warning for each column whose groups differ in more than the method; without `force` a UserError."""
    warnings = []
    for column, members in _by_column(cells).items():
        apart = differing([{**one.surroundings, **one.panel} for one in members])
        if apart:
            values = "; ".join(f"{key}: {', '.join(dict.fromkeys(map(short, each)))}" for key, each in apart.items())
            warning = f"in column {column!r} more differs than the method: {values}"
            if not force:
                raise UserError(f"--cols: {warning}. Add such a key to --cols, leave runs out, or give --force")
            warnings.append(warning)
    return warnings


def _students_alone(
    cells: Cells, groups: list[Group], col_keys: list[str]
) -> tuple[dict[str, Group], set[str], list[str]]:
    """The student without teachers of each column, the columns that several fit, and warnings about those left out.

    Those that fit no column have one of their own, for a student that has no teachers yet.  UserError if two would
    share it.
    """
    without_teachers = [one for one in groups if one.is_alone]
    alone: dict[str, Group] = {}
    unclear: set[str] = set()
    warnings = []
    fit: set[int] = set()
    by_column = _by_column(cells)
    for column, members in by_column.items():
        kinds = {settings_key(one.surroundings) for one in members}
        fitting = [one for one in without_teachers if settings_key(one.surroundings) in kinds]
        fit |= set(map(id, fitting))
        if len(fitting) == 1:
            alone[column] = fitting[0]
        elif fitting:
            unclear.add(column)
            warnings.append(f"column {column!r}: several students alone fit, none is shown")
    for one in (one for one in without_teachers if id(one) not in fit):
        column = _heading_of(one, col_keys)
        if column in by_column:
            apart = [list(differing([other.surroundings, one.surroundings])) for other in by_column[column]]
            fewest = min(apart, key=len)
            warnings.append(f"left out: {one.label} differs from the column {column!r} in {', '.join(fewest)}")
        else:
            _require_same(alone.setdefault(column, one), one, f"student {ALONE}", column)
    return alone, unclear, warnings


Rival = tuple[Group, dict[str, Any] | None]  # and its cell, which the student alone has elsewhere


def _mark(rivals: list[Rival], metric: str, confidence: float) -> None:
    """Mark the best cell of a column and then the second, each only if it is significantly better than the next one.

    That is so if the interval of the difference between the two leaves 0 out.  The student alone is a rival like the
    others, and is not marked itself.
    """
    higher = bool(higher_is_better(metric))
    if sum(cell is not None for _, cell in rivals) < 2:
        return
    ranked = sorted(rivals, key=lambda rival: fmean(rival[0].values(metric).values()), reverse=higher)
    # At most two are marked, however many there are.
    for mark, ((own, cell), (rival, _)) in zip(("best", "second"), pairwise(ranked), strict=False):
        interval = difference(own.values(metric), rival.values(metric), confidence)["interval"]
        if cell is None or interval is None or not (interval[0] > 0 if higher else interval[1] < 0):
            return
        cell["mark"] = mark


def _cell(one: Group | None, metric: str, confidence: float) -> dict[str, Any] | None:
    if one is None:
        return None
    values = one.values(metric)
    return {**spread(list(values.values()), confidence, limits(metric)), "seeds": list(values), "mark": None}


def _teachers(cells: Cells, column: str, metric: str) -> list[dict[str, Any]]:
    """Name and value of each teacher of a column; the value is None if the runs did not record it."""
    one = next((found for place, found in cells.items() if place[1] == column), None)
    if one is None:
        return []
    split, _, rest = metric.partition("/")
    found = []
    for index, name in enumerate(one.first.teachers):
        keys = (f"evaluation.{split}.teachers.{index}.{rest}", f"teachers.{index}.{split}_{rest}")
        values = [value for key in keys if (value := number(lookup(one.first.summary, key))) is not None]
        found.append({"name": name, "value": values[0] if values else None})
    return found


def _missing(
    names: list[str],
    columns: list[str],
    cells: Cells,
    alone: dict[str, Group],
    unclear: set[str],
    unmeasured: list[Group],
    row_keys: list[str],
    col_keys: list[str],
    metric: str,
) -> list[dict[str, Any]]:
    """The cells and seeds that the table lacks, each with the command that measures or trains them.

    `unclear`: columns with several students alone, of which none is shown and none is missing.  `unmeasured`: groups
    whose runs have no value of the metric.
    """
    missing = []
    for column in columns:
        models = [one for place, one in cells.items() if place[1] == column]
        there = [*models, *([alone[column]] if column in alone else [])]
        wanted = sorted({seed for one in there for seed in one.values(metric)})
        for row in [None, *names]:
            if (row is not None and not models) or (row is None and column in unclear):
                continue  # of a student without teachers no run says which to give it
            own = alone.get(column) if row is None else cells.get((row, column))
            if own is None:
                fitting = [one for one in unmeasured if _fits(one, row, column, models, row_keys, col_keys)]
                own = fitting[0] if len(fitting) == 1 else None
            like = None if row is None else own or next(one for place, one in cells.items() if place[0] == row)
            changes = _overrides((own or models[0]).first, like.first if like else None, row_keys, col_keys)
            if changes is None:
                continue
            lacking = [seed for seed in wanted if own is None or seed not in own.values(metric)]
            commands = _evaluations(own, lacking, metric) if own else []
            local = {seed for seed, run in own.runs.items() if run.folder} if own else set()  # which have finished
            if seeds := [seed for seed in lacking if seed not in local]:
                commands.append((seeds, _training(own or models[0], like, changes, seeds, metric)))
            missing += [
                {"row": row or f"student {ALONE}", "column": column, "seeds": seeds, "finished": own is not None,
                 "command": shlex.join(words)}
                for seeds, words in commands
            ]  # fmt: skip
    return missing


def _fits(
    one: Group, row: str | None, column: str, models: list[Group], row_keys: list[str], col_keys: list[str]
) -> bool:
    """Whether a group belongs into the cell of a row, None for the student alone, in a column of these models."""
    if one.is_alone or row is None:
        of_kind = any(settings_key(one.surroundings) == settings_key(other.surroundings) for other in models)
        return one.is_alone and row is None and of_kind
    if (_heading_of(one, row_keys), _heading_of(one, col_keys)) != (row, column):
        return False
    return not all(differing([{**each.surroundings, **each.panel} for each in (one, other)]) for other in models)


def _evaluations(one: Group, seeds: list[int], metric: str) -> list[tuple[list[int], list[str]]]:
    """([seed], command that measures its finished run) of these seeds; runs without a folder cannot be measured."""
    split, _, rest = metric.partition("/")
    commands = []
    for seed in seeds:
        run = one.runs.get(seed)
        if run and run.folder and rest and split in ("val", "test"):
            command = ["python", "evaluate_kd.py", *_own_code_of(one), "--checkpoint", str(run.folder)]
            reported = [] if run.config.evaluation.report else ["--evaluation.report=true"]  # which compare_kd.py reads
            commands.append(([seed], [*command, "--split", split, *reported]))
    return commands


def _training(base: Group, like: Group | None, changes: list[str], seeds: list[int], metric: str) -> list[str]:
    """The command that trains these seeds of a cell, from the configuration of `base` with `changes`."""
    words = [*_own_code_of(base, like), *changes]
    tested = ["--evaluation.test_at_end=true"] if metric.startswith("test/") else []
    return ["python", "train_kd.py", "--config", _config_of(base), *words, *tested, _seeds(seeds)]


def _config_of(one: Group) -> str:
    local = next((run for run in one.runs.values() if run.folder), None)
    return str(local.folder / "config.yaml") if local and local.folder else "resolved_config.yaml"


def _own_code_of(*groups: Group | None) -> list[str]:
    """The arguments that import the own code of the groups' runs, of files of one name the first."""
    files: dict[str, Path] = {}
    for one in filter(None, groups):
        local = next((run.folder for run in one.runs.values() if run.folder), None)
        for file in sorted((local / IMPORTS).glob("*.py")) if local else []:
            files.setdefault(file.name, file)
    return import_words(files.values())


def _seeds(seeds: list[int]) -> str:
    return f"--seeds={','.join(map(str, seeds))}" if len(seeds) > 1 else f"--training.seed={seeds[0]}"


def _overrides(base: Run, like: Run | None, row_keys: list[str], col_keys: list[str]) -> list[str] | None:
    """The arguments that give `base`'s configuration the method and row of `like`; no teachers if it is None.

    None if no method has the settings of both row and column.
    """
    if like is None:
        return [f"--kd.type={kd_methods.LABEL_ONLY}"] if base.config.teachers else []
    method = _method_of_cell(base, like, row_keys, col_keys)
    if method is None:
        return None
    changed = _changed_method(base, method)
    for key in row_keys:
        if key.split(".")[0] not in ("kd", PAIR) and _value(base, key) != _value(like, key):
            changed[key] = lookup(like.config.model_dump(mode="json"), key)
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changed.items()]


def _method_of_cell(column: Run, row: Run, row_keys: list[str], col_keys: list[str]) -> dict[str, Any] | None:
    """All settings of a cell's method: of the run whose heading names it, but for those that the other's names.

    None if only one of the two methods has such a setting.
    """
    by_column = not {"kd", "kd.type"}.isdisjoint(col_keys)
    own, other, keys = (column, row, row_keys) if by_column else (row, column, col_keys)
    method, theirs = (_complete(type(run.config.kd), run.config.kd.model_dump(mode="json")) for run in (own, other))
    for name, *parts in (key.split(".")[1:] for key in keys if key.startswith("kd.") and key != "kd.type"):
        if (name in method) != (name in theirs):
            return None
        if name in method:
            _take(method, theirs, name, *parts)
        if name == "loss" and theirs[name] in theirs:
            _take(method, theirs, theirs[name])
    return method


def _take(settings: dict[str, Any], theirs: dict[str, Any], name: str, *parts: str) -> None:
    """Give one setting, by the parts of its name, their value; what is no section in both is taken as a whole."""
    sections = settings[name], theirs[name]
    if parts and all(isinstance(one, dict) and parts[0] in one for one in sections):
        _take(*sections, *parts)
    else:
        settings[name] = theirs[name]


def _changed_method(base: Run, wanted: dict[str, Any]) -> dict[str, Any]:
    """{kd.NAME: value} of the settings of the method `wanted` that `base`'s configuration does not already give.

    Values are whole, since an item of a list that is not there, or is of another loss, cannot be given alone.
    """
    here = _complete(kd_methods.config_class(wanted["type"]), base.config.kd.model_dump(mode="json"))
    here["type"] = base.config.kd.type
    return {f"kd.{key}": value for key, value in wanted.items() if here[key] != value}


def _complete(section: type[BaseModel], recorded: dict[str, Any]) -> dict[str, Any]:
    """All settings of a section as JSON: those of `recorded`, and of what is not recorded the defaults.

    A mapping that names each key replaces the one of a lower layer, with which it is merged.
    """
    found = {}
    for name, info in section.model_fields.items():
        kind: Any = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found[name] = _complete(kind, recorded.get(name, {}))
        elif name in recorded:
            found[name] = recorded[name]
        else:
            found[name] = PLAIN.dump_python(info.get_default(call_default_factory=True), mode="json")
    return found
