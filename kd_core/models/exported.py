"""Exported students: where a run folder keeps its own, else a checkpoint, and whether its classes fit the data."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from kd_core.data.dataset import Data
from kd_core.data.superclasses import in_one_spelling
from kd_core.errors import UserError, printable
from kd_core.loop.ranks import is_first_process


def export_in(folder: Path) -> Path:
    """The exported student in a run folder, or `folder` itself if it is an export.

    If `student/` or one of its files is missing, the best or else the latest checkpoint is used, and a line says so.
    """
    places = [folder / part / "student" for part in ("", "checkpoints/best", "checkpoints/latest")] + [folder]
    for names in (("config.json", "model.safetensors"), ("config.json",)):  # loading reports missing weights by name
        for path in places:
            if all((path / name).is_file() for name in names):
                if path in places[1:3]:
                    _report_checkpoint(folder, path)
                return path
    raise UserError(f"{folder}: holds no exported student (student/config.json) and is none itself")


@cache
def _report_checkpoint(folder: Path, path: Path) -> None:
    """Say once that a checkpoint is used."""
    if is_first_process():
        kind = path.parent.name
        tqdm.write(printable(f"{folder}: has no whole student/, its {kind} checkpoint is taken: {path}"))


class HasClasses(Protocol):
    @property
    def num_classes(self) -> int: ...

    @property
    def class_names(self) -> list[str] | None: ...


def check_classes(known: HasClasses, data: Data, where: str, outputs: list[int] | None = None) -> None:
    """UserError unless a network has as many classes as the data, in the same order as far as both have names.

    `outputs`: for a teacher, which of its outputs stands for each class.
    """
    if known.num_classes != data.num_classes:
        raise UserError(f"{where}: has {known.num_classes} classes, the data have {data.num_classes}")
    names, wanted = in_one_spelling(known.class_names or []), in_one_spelling(data.class_names)
    if sorted(names) != sorted(wanted):
        return
    ordered = names if outputs is None else [names[number] for number in outputs]
    if ordered != wanted:
        hint = "" if outputs is None else f"; set class_order: {[names.index(name) for name in wanted]}"
        raise UserError(
            f"{where}: knows the same classes in another order: {ordered[0]!r} comes first, "
            f"in the data it is {wanted[0]!r}{hint}"
        )
