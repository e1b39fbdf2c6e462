"""Folders of images as a source: their layout, and labels from a table beside them (metadata.csv) where one is."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_core.data import folder_layout as layout
from kd_core.data.raw import LABEL_WORDS, Listing, RawSplit, Source, about_splits, digest, named_splits, walk
from kd_core.errors import UserError, first_line

if TYPE_CHECKING:
    import pyarrow

    from kd_core.config import DataConfig


def open_folder(folder: Path, config: DataConfig) -> Source:
    """Folders named by class, within folders named by split if there are any; or a table of labels beside images.

    Raises:
        UserError: settings that do not fit the folder, or a layout with several readings.
    """
    listing = walk(folder)
    tables, column = _Tables(folder, listing), config.label_column
    found = layout.image_folders(
        listing.kinds,
        listing.empty,
        named=named_splits(config),
        folders=config.folders,
        by_table=_labels_are_in_tables(tables, config),
        where=str(folder),
    )
    _require_distinct(found, listing)
    if config.folders is None and column is None:
        _require_agreement(found, tables)
    found.notes += _unknown_classes(found, layout.split_for("train", found.splits, config.train_split, str(folder)))

    def open_split(name: str) -> RawSplit:
        classes = found.splits[name]
        files = [file for own in classes.values() for file in own]

        def labels() -> tuple[list[Any], list[str] | None]:
            if None in classes:
                return _labels_of(files, tables, column), None
            names = [str(one) for one in classes]
            return [number for number, own in enumerate(classes.values()) for _ in own], names

        used = tables.about(files) if None in classes else []
        return RawSplit(
            name=name,
            key=digest(str(folder.absolute()), [listing.facts[file] for file in files + used], list(classes), column),
            labels=labels,
            images=lambda start, stop: [str(folder / file) for file in files[start:stop]],
            notes=[f"{name}: labels are in {', '.join(used)}"] if None in classes else _about_classes(name, classes),
        )

    return Source(str(folder), list(found.splits), open_split, found.notes + layout.ignored_note(found.ignored))


def open_images(folder: Path) -> Source:
    """All images below a folder, whatever folders they lie in, without labels: one split, `train`.

    Raises:
        UserError: there is none.
    """
    listing = walk(folder)
    files = sorted(file for file, kind in listing.kinds.items() if kind == layout.IMAGE)
    if not files:
        raise UserError(f"data.path: {folder}: has no images")
    raw = RawSplit(
        name="train",
        key=digest(str(folder.absolute()), [listing.facts[file] for file in files]),
        labels=lambda: ([-1] * len(files), None),
        images=lambda start, stop: [str(folder / file) for file in files[start:stop]],
        notes=[],
    )
    return Source(str(folder), ["train"], lambda name: raw)


class _Tables:
    """The tables of labels beside images (metadata.csv and the like) in a folder, each read once."""

    def __init__(self, folder: Path, listing: Listing):
        self.folder = folder
        self._by_folder = layout.tables_by_folder(listing.kinds)
        self._content: dict[str, pyarrow.Table] = {}

    @property
    def names(self) -> list[str]:
        """Paths of all tables within the folder."""
        return sorted(self._by_folder.values())

    def about(self, images: Iterable[str]) -> list[str]:
        """The tables that hold the labels of these images: for each image, the nearest in its folder or above."""
        return sorted({table for image in images if (table := layout.table_of(image, self._by_folder))})

    def read(self, name: str, *, required: bool = True) -> pyarrow.Table:
        """The content of a table, without columns that have no name.

        UserError if it is damaged, has two columns of one name or, if `required`, has no column `file_name`.
        """
        file = self.folder / name
        if name not in self._content:
            self._content[name] = _named_columns(_read_table(file), file)
        table = self._content[name]
        if required and "file_name" not in table.column_names:
            raise UserError(f"data.path: {file}: has no column file_name; it has: {', '.join(table.column_names)}")
        return table


def _labels_are_in_tables(tables: _Tables, config: DataConfig) -> bool:
    """Whether `data.label_column` is a column of a table.  UserError if it, or `data.image_column`, cannot be."""
    column = config.label_column
    columns = {table: tables.read(table).column_names for table in tables.names} if column else {}
    by_table = any(column in names for names in columns.values())
    if column not in (None, "label") and not by_table:
        known = "; ".join(f"{table}: {', '.join(names)}" for table, names in columns.items())
        raise UserError(
            f"data.label_column: {tables.folder} has no column {column!r} ({known or 'and no metadata.csv'}); leave it "
            "out where the folders are the classes"
        )
    if config.image_column not in (None, "image", "file_name"):
        raise UserError(f"data.image_column: is {config.image_column!r}, but images are files here; leave it out")
    return by_table


def _require_distinct(found: layout.Layout, listing: Listing) -> None:
    """UserError if links put one file into two splits or classes."""
    seen: dict[tuple[int, int], tuple[str, str, str | None]] = {}
    for split, classes in found.splits.items():
        for label, files in classes.items():
            for file in files:
                first = seen.setdefault(listing.identities[file], (file, split, label))
                if first[1:] != (split, label):
                    raise UserError(
                        f"data.path: {found.where}: {first[0]!r} and {file!r} are the same file, by a link; an image "
                        "belongs to one split and one class"
                    )


def _unknown_classes(found: layout.Layout, train: str | None) -> list[str]:
    """A note on each split with a class that training lacks, and which cannot be evaluated."""
    trained = found.splits.get(train or "", {None: []})
    lacking = {
        name: next((label for label, files in classes.items() if label and files and not trained.get(label)), None)
        for name, classes in found.splits.items()
        if None not in trained
    }
    return [
        f"{name}: class {label!r} does not occur in training, so this split cannot be evaluated"
        for name, label in lacking.items()
        if label
    ]


def _about_classes(split: str, classes: Iterable[str | None]) -> list[str]:
    """A note on numbered classes, which other programs sort by number."""
    names = [str(name) for name in classes]
    parts = [re.fullmatch(r"(\D*)(\d+)(\D*)", name) for name in names]
    numbers = [int(part[2]) for part in parts if part]
    alike = len(numbers) == len(names) and len({(part[1], part[3]) for part in parts if part}) == 1
    if not alike or numbers == sorted(numbers):
        return []
    return [
        f"{split}: the class folders are numbered, and sorted as text: {', '.join(names[:4])}, ...; a teacher whose "
        "outputs are sorted by number needs teachers[].class_order=natural"
    ]


def _labels_of(files: list[str], tables: _Tables, column: str | None) -> list[Any]:
    """The label of each image in the nearest table of labels.

    UserError unless each image has exactly one label, and each row of the tables has an image.
    """
    import pyarrow

    folder = tables.folder
    stated: dict[str, Any] = {}
    columns: dict[str, str] = {}
    known = {os.path.normpath(file) for file in files}
    for table in tables.about(files):
        content, around = tables.read(table), Path(table).parent
        columns[table] = _column_of_labels(content.column_names, column, folder / table)
        names = [os.path.normpath(around / str(name)) for name in content.column("file_name").to_pylist()]
        own = content.filter(pyarrow.array([name in known for name in names], pyarrow.bool_()))  # of this split alone
        for other in set(content.column_names) - {"file_name", columns[table]}:
            if not _is_nested(content, other):
                about_splits(other, own.column(other).unique().to_pylist(), str(folder / table))
        for name, label in zip(names, content.column(columns[table]).to_pylist(), strict=True):
            if stated.setdefault(name, label) != label:
                raise UserError(
                    f"data.label_column: {folder / table}: {name!r} has several labels, {stated[name]!r} and "
                    f"{label!r}, and an image has one"
                )
    lacking = [file for file in files if stated.get(os.path.normpath(file)) is None]
    if lacking or not columns:
        raise UserError(
            f"data.path: {folder}: {len(lacking):,} of {len(files):,} images have no label in "
            f"{', '.join(columns) or 'a metadata.csv, which is not there'}, "
            f"such as {lacking[0]!r}; add them or remove the images"
        )
    gone = [name for name in stated if name not in known and not (folder / name).is_file()]
    if gone:
        raise UserError(
            f"data.path: {folder}: {', '.join(columns)} names {len(gone):,} images that are not there, such as "
            f"{gone[0]!r}; remove the rows or add the images"
        )
    return [stated[os.path.normpath(file)] for file in files]


def _require_agreement(found: layout.Layout, tables: _Tables) -> None:
    """UserError if a table beside class folders gives images of one folder several labels."""
    for table in tables.names:
        content = tables.read(table, required=False)
        column = next((word for word in LABEL_WORDS if word in content.column_names), None)
        if column is None or "file_name" not in content.column_names or _is_nested(content, column):
            continue
        names = [os.path.normpath(Path(table).parent / str(name)) for name in content["file_name"].to_pylist()]
        stated = dict(zip(names, content[column].to_pylist(), strict=True))
        for classes in found.splits.values():
            for name, files in classes.items():
                labels = {stated[file] for file in files if stated.get(file) is not None}
                if name is not None and len(labels) > 1:
                    raise UserError(
                        f"data.label_column: {tables.folder / table}: column {column!r} has several labels for images "
                        f"of the folder {name!r}; set data.label_column={column} to take the table's labels, or "
                        "data.folders=classes if the folders are the classes"
                    )


def _is_nested(table: pyarrow.Table, column: str) -> bool:
    """Whether a column holds lists or records, which say nothing of labels or splits here."""
    import pyarrow.types

    return bool(pyarrow.types.is_nested(table.column(column).type))


def _read_table(file: Path) -> pyarrow.Table:
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet

    names_are_text = pyarrow.csv.ConvertOptions(column_types={"file_name": pyarrow.string()})
    readers: dict[str, Callable[[Path], pyarrow.Table]] = {
        ".csv": partial(pyarrow.csv.read_csv, convert_options=names_are_text),
        ".jsonl": pyarrow.json.read_json,
        ".parquet": pyarrow.parquet.read_table,
    }
    try:
        return readers[file.suffix.lower()](file)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"data.path: {file}: cannot be read as a table of labels: {first_line(error, 160)}") from None


def _named_columns(table: pyarrow.Table, file: Path) -> pyarrow.Table:
    """A table without its columns that have no name, such as those of trailing commas; UserError if two have one."""
    names: list[str] = table.column_names
    if repeated := sorted({name for name in names if name and names.count(name) > 1}):
        raise UserError(f"data.path: {file}: has several columns of the name {', '.join(repeated)}; give each its own")
    return table.select([place for place, name in enumerate(names) if name])


def _column_of_labels(names: list[str], wanted: str | None, file: Path) -> str:
    others = [name for name in names if name != "file_name"]
    likely = [word for word in LABEL_WORDS if word in others] or (others if len(others) == 1 else [])
    if wanted in others:
        return str(wanted)
    if wanted is not None or not likely:
        problem = f"no column {wanted!r}" if wanted else "cannot be guessed"
        raise UserError(f"data.label_column: {problem}; {file} has {', '.join(others) or 'file_name alone'}")
    return likely[0]
