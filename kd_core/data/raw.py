"""What all sources of images share: `Source` and `RawSplit`, the listing of a folder, digests of files."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_core.data import decoding
from kd_core.data import folder_layout as layout
from kd_core.data.folder_layout import IMAGE
from kd_core.errors import UserError
from kd_core.files import json_sha256, reading

if TYPE_CHECKING:
    from kd_core.config import DataConfig

MAX_CLASSES = 100_000
LABEL_WORDS = ("fine_label", "label", "labels", "class", "target")
COLUMNS_OF_SPLITS = {"split", "splits", "set", "subset", "partition", "usage", "phase", "fold"}  # words in their names
FEW = 20  # most distinct values of a column that may name splits


@dataclass
class RawSplit:
    """One split, not decoded.

    key: changes whenever the split's content or the choice of columns changes.
    labels: reads one label per row (class numbers or names) and the class names, if the source has them.
    images: reads the images of rows start to stop: encoded bytes, paths, or decoded uint8 arrays [H,W,3].
    notes: what was guessed, one line each.
    columns: of images and labels, if the source is a table.
    """

    name: str
    key: str
    labels: Callable[[], tuple[list[Any], list[str] | None]]
    images: Callable[[int, int], list[Any]]
    notes: list[str]
    columns: tuple[str, ...] = ()


@dataclass
class Source:
    """where: its name in messages.  notes: what was guessed or left out, one line each."""

    where: str
    split_names: list[str]
    open: Callable[[str], RawSplit]
    notes: list[str] = field(default_factory=list)


def digest(*parts: object) -> str:
    return json_sha256(parts)


Fact = tuple[str, int, int, int]


def fact(name: str, about: os.stat_result) -> Fact:
    """The state of a file, by which a change shows without reading it: name, size, mtime and ctime.

    ctime also shows a copy that keeps its mtime.
    """
    return name, about.st_size, about.st_mtime_ns, about.st_ctime_ns


def file_facts(files: Iterable[str | Path]) -> list[Fact]:
    """The state of each file.  Missing files are reported by whoever reads them."""
    return [fact(str(file), os.stat(file)) if os.path.exists(file) else (str(file), -1, -1, -1) for file in files]


def named_splits(config: DataConfig) -> dict[str, str | None]:
    return {"train": config.train_split, "val": config.val_split, "test": config.test_split}


@dataclass
class Listing:
    """All files below a folder, by their paths within it: kind, state, and identity (device and inode)."""

    kinds: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Fact] = field(default_factory=dict)
    identities: dict[str, tuple[int, int]] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)


def walk(folder: Path) -> Listing:
    """The content of `folder`; links are followed."""
    listing = Listing()

    def look(inside: str, around: tuple[tuple[int, int], ...]) -> None:
        with reading(f"data.path: {folder / inside}"):
            entries = sorted(os.scandir(folder / inside), key=lambda entry: entry.name)
        if inside and not entries:
            listing.empty.append(inside)
        for entry in entries:
            name = f"{inside}/{entry.name}" if inside else entry.name
            try:
                about = entry.stat()
            except OSError:
                listing.kinds[name] = "with a broken link" if entry.is_symlink() else "without permission to read"
                continue
            identity = (about.st_dev, about.st_ino)
            if stat.S_ISDIR(about.st_mode) and identity in around:
                listing.kinds[name] = "linking to a folder around it"
            elif stat.S_ISDIR(about.st_mode):
                look(name, (*around, identity))
            elif not stat.S_ISREG(about.st_mode):
                listing.kinds[name] = "of a special kind (no regular file)"
            else:
                listing.kinds[name] = layout.kind_of(name) or _kind_by_content(folder / name)
                listing.facts[name] = fact(name, about)
                listing.identities[name] = identity

    about = folder.stat()
    look("", ((about.st_dev, about.st_ino),))
    return listing


def _kind_by_content(file: Path) -> str:
    """The kind of a file whose name does not show it."""
    if decoding.size_of(str(file)) is not None:
        return IMAGE
    return file.suffix.lower() or "without a suffix"


def about_splits(column: str, values: list[Any], where: str) -> list[str]:
    """A note on a column that may name the split of each row; none for other columns.

    UserError if it does, and the rows belong to several splits: `split` with train and test, `is_train` with two
    values.
    """
    values = [value for value in values if value not in (None, "")]
    if not 1 < len(values) <= FEW:
        return []
    roles = [role for role in map(layout.roles_in, map(str, values)) if role]
    named = bool(set(re.findall("[a-z]+", column.lower())) & COLUMNS_OF_SPLITS)
    all_name = len(roles) == len(values) and len(set().union(*roles)) > 1
    words = set(re.findall("[a-z]+", column.lower())) - {"is", "in"}  # `covid_test` is a test of another kind
    flags = bool(words) and all(map(layout.roles_in, words)) and len(values) == 2
    if all_name or (named and roles) or flags:
        raise UserError(
            f"data.path: {where}: column {column!r} says that the rows of this split belong to several, "
            f"{', '.join(map(repr, values[:4]))}; write the rows of each split into files or folders of their own"
        )
    shown = ", ".join(map(repr, values[:4])) + (", ..." if len(values) > 4 else "")
    return [f"column {column!r} ({shown}) is not read: rows of all its values are taken together"] if named else []
