"""Data sets that the Hugging Face `datasets` library reads: of the Hub, parquet files, saved with save_to_disk."""

from __future__ import annotations

import glob
import json
import os
import re
import shlex
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import huggingface_hub.constants
import pyarrow.compute
import pyarrow.parquet

from kd_core.data import folder_layout as layout
from kd_core.data.folder_layout import IMAGE
from kd_core.data.raw import (
    LABEL_WORDS,
    MAX_CLASSES,
    RawSplit,
    Source,
    about_splits,
    digest,
    file_facts,
    named_splits,
    walk,
)
from kd_core.errors import UserError, first_line
from kd_core.files import local_path, read_object

if TYPE_CHECKING:
    from kd_core.config import DataConfig

MIN_IMAGE_BYTES = 16  # on average, in a compressed file; with fewer, all images would be the same
LABEL_TYPES = r"u?int\d+|float\d+|bool|(large_)?string(_view)?"  # of plain columns
IMAGE_WORDS = ("image", "img")
WAYS_OUT = """three ways out:
  1. download it on a machine with network, copy that machine's Hugging Face cache and set HF_HOME to the copy
  2. use local files: --data.source=parquet --data.path=FOLDER (or imagefolder, disk, cifar_python)
  3. use the data set that needs no download: --data.source=digits"""


def open_hub(config: DataConfig, labels: bool = True) -> Source:
    where = config.name if config.subset is None else f"{config.name} ({config.subset})"
    local, parts = local_path(config.name, "data.name"), config.name.split("/")
    if local.exists() or local.is_absolute() or {".", ".."} & set(parts):
        missing = "" if local.exists() else " (and there is nothing there)"
        raise UserError(
            f"data.name: {config.name!r} is a path{missing}, not the name of a Hub data set; for local files give "
            f"--data.path={shlex.quote(config.name)} and --data.source=imagefolder (folders of images), parquet, or "
            "disk (what save_to_disk wrote)"
        )
    try:
        found = datasets.load_dataset(config.name, config.subset, revision=config.revision)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise UserError(
            f"data.name: {config.name!r} (revision {config.revision or 'main'}): {first_line(error)}; right is "
            "the name of a public Hub data set, or of one that `hf auth login` gives access to"
        ) from None
    except ConnectionError as error:
        raise UserError(
            f"data.name: {config.name!r} is not in the local cache and the Hub cannot be reached "
            f"({first_line(error)}); {WAYS_OUT}"
        ) from None
    except (ValueError, RuntimeError, OSError, ImportError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"data.name, data.subset: {where}: {first_line(error, 300)}; right is the name of a Hub data set, "
            "ORG/NAME, and files on this machine are read with data.source and data.path"
        ) from None
    return Source(where, list(found), lambda name: _from_dataset(found[name], name, where, config, labels))


def open_parquet(folder: Path, config: DataConfig, labels: bool = True) -> Source:
    """Files named by split (train-00000-of-00003.parquet), or in folders named by split; else all is training."""
    listing = walk(folder)
    found = layout.tables(listing.kinds, named=named_splits(config), where=str(folder))

    def open_split(name: str) -> RawSplit:
        files = [folder / file for file in found.splits[name][None]]
        for file in files:
            _check_parquet(file)
        groups = _alike(files)
        parts = [_from_dataset(_load_parquet(folder, group), name, str(folder), config, labels) for group in groups]
        raw = parts[0] if len(parts) == 1 else _joined(parts, groups)
        raw.key = digest(raw.key, file_facts(files))
        return raw

    return Source(str(folder), list(found.splits), open_split, found.notes + layout.ignored_note(found.ignored))


def _alike(files: list[Path]) -> list[list[Path]]:
    """Runs of files with equal columns and class names: `datasets` uses the first file's for all of a call."""

    def columns(file: Path) -> str:
        try:
            features = datasets.Features.from_arrow_schema(pyarrow.parquet.read_schema(file))
        except (pyarrow.ArrowException, OSError, ValueError, TypeError, KeyError, AttributeError):
            return ""  # damaged: opening it reports that
        return repr(sorted(features.items(), key=lambda item: item[0]))

    return [list(group) for _, group in groupby(files, key=columns)]


def _joined(parts: list[RawSplit], groups: list[list[Path]]) -> RawSplit:
    """The rows of all parts, one after another; labels are translated by class name."""
    files = [group[0].name for group in groups]
    if len({part.columns for part in parts}) > 1:
        found = "; ".join(f"{file}: {', '.join(part.columns)}" for file, part in zip(files, parts, strict=True))
        raise UserError(f"data.image_column, data.label_column: the files of one split have different columns: {found}")

    @cache
    def read() -> list[tuple[list[Any], list[str] | None]]:
        return [part.labels() for part in parts]

    def labels() -> tuple[list[Any], list[str] | None]:
        kinds = {file: _kind_of_labels(*each) for file, each in zip(files, read(), strict=True)}
        if len({kind for kind in kinds.values() if kind != "names"}) > 1 or set(kinds.values()) == {"names", "numbers"}:
            found = ", ".join(f"{file} has {kind}" for file, kind in kinds.items())
            raise UserError(f"data.label_column: the files of one split have labels of different kinds: {found}")
        if "names" not in kinds.values():
            return [value for values, _ in read() for value in values], None
        known = list(dict.fromkeys(name for _, names in read() for name in names or []))
        number = {name: index for index, name in enumerate(known)}
        everything: list[Any] = []
        for file, (values, names) in zip(files, read(), strict=True):
            for value in values:
                name = names[value] if names is not None and value is not None and 0 <= value < len(names) else value
                if isinstance(name, str) and name not in number:
                    raise UserError(f"data.label_column: {file}: class {name!r} does not occur in the other files")
                everything.append(number.get(name, value) if isinstance(name, str) else value)
        return everything, known

    def images(start: int, stop: int) -> list[Any]:
        found, offset = [], 0
        for part, (values, _) in zip(parts, read(), strict=True):
            first, last = max(start - offset, 0), min(stop - offset, len(values))
            found += part.images(first, last) if first < last else []
            offset += len(values)
        return found

    note = f"{parts[0].name}: class names differ between its files, and are translated by name"
    if len({json.dumps(names) for _, names in read()}) == 1:
        note = f"{parts[0].name}: its files have the same labels, but other columns or column types"
    key = digest([part.key for part in parts])
    return RawSplit(parts[0].name, key, labels, images, [*parts[0].notes, note], parts[0].columns)


def _kind_of_labels(values: list[Any], names: list[str] | None) -> str:
    if names is not None:
        return "names"
    return "text" if any(isinstance(value, str) for value in values) else "numbers"


def _load_parquet(folder: Path, files: list[Path]) -> datasets.Dataset:
    """The rows of these files, one after another."""
    datasets.disable_progress_bars()  # they mention downloads; decoding has its own bar
    try:
        return datasets.load_dataset(
            "parquet",
            # `datasets` caches by the files' names and times, and would reuse that for a file of another size.  The
            # configuration's name is part of the cache's path.
            name=digest(file_facts(files))[:16],
            split="train",
            data_files=[glob.escape(str(file)) for file in files],
        )
    except Exception as error:  # damaged files and metadata raise a dozen kinds of errors
        cause = error.__cause__ or error  # `datasets` wraps the cause
        raise UserError(f"data.path: {folder}: cannot be read as parquet: {first_line(cause, 160)}") from None
    finally:
        datasets.enable_progress_bars()


def open_disk(folder: Path, config: DataConfig, labels: bool = True) -> Source:
    """A folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""
    if (folder / "dataset_dict.json").is_file():
        listed = read_object(folder / "dataset_dict.json")
        if not isinstance(listed.get("splits"), list):
            raise UserError(f"data.path: {folder / 'dataset_dict.json'}: has no list 'splits'")
        folders = {_inside(str(name), folder): folder / str(name) for name in listed["splits"]}
    elif (folder / "state.json").is_file():
        folders = {"train": folder}
    else:
        raise UserError(f"data.path: {folder}: was not written by save_to_disk (no dataset_dict.json, state.json)")

    def open_split(name: str) -> RawSplit:
        for listed in read_object(folders[name] / "state.json").get("_data_files") or []:
            _inside(str(listed["filename"]) if isinstance(listed, dict) else "", folders[name])
        try:
            dataset = datasets.load_from_disk(str(folders[name]))
        except Exception as error:  # as above
            raise UserError(f"data.path: {folders[name]}: cannot be read: {first_line(error, 160)}") from None
        raw = _from_dataset(dataset, name, str(folder), config, labels)
        raw.key = digest(raw.key, file_facts(sorted(folders[name].glob("*"))))
        return raw

    return Source(str(folder), list(folders), open_split)


def _inside(name: str, folder: Path) -> str:
    """`name` if it is an entry directly in `folder`; else UserError."""
    if Path(name).name != name or name == "..":
        raise UserError(f"data.path: {folder}: names {name!r}, which does not lie in it")
    return name


def _check_parquet(file: Path) -> None:
    """UserError for a file that claims more rows or classes than its size allows."""
    try:
        metadata = pyarrow.parquet.read_metadata(file)
    except (pyarrow.ArrowException, OSError):  # opening it reports that
        return
    if metadata.num_rows > file.stat().st_size // MIN_IMAGE_BYTES:
        raise UserError(
            f"data.path: {file}: claims {metadata.num_rows:,} rows in {file.stat().st_size:,} bytes, less than "
            f"{MIN_IMAGE_BYTES} bytes per image"
        )
    about = (metadata.metadata or {}).get(b"huggingface", b"")
    if any(int(count) > MAX_CLASSES for count in re.findall(rb'"num_classes": *(\d{1,18})', about)):
        raise UserError(f"data.path: {file}: claims more than {MAX_CLASSES:,} classes")


def _from_dataset(
    dataset: datasets.Dataset, name: str, where: str, config: DataConfig, labels: bool
) -> RawSplit:
    """A split of a data set in memory; images named by paths must lie in `where` or, for the Hub, in its caches.

    Without `labels` no column of them is looked for, and each is -1.
    """
    try:
        dataset.data.validate(full=True)  # unchecked, Arrow follows damaged offsets and crashes
    except ValueError as error:
        raise UserError(f"data.path: {where}: split {name!r} is damaged: {first_line(error, 160)}") from None
    caches = [datasets.config.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE]
    folders = [Path(folder).expanduser().absolute() for folder in (caches if config.source == "hub" else [where])]
    image_column = _image_column(dataset, where, config.image_column)
    label_column = _label_column(dataset, where, config.label_column) if labels else None
    others = [column for column in _label_columns(dataset) if column != label_column]
    mixed = [
        note
        for column, kind in dataset.features.items()
        if column not in (image_column, label_column) and _may_be_label(kind)
        for note in about_splits(column, _named_values(dataset.unique(column), kind), where)
    ]
    note = f"{name}: images are column {image_column!r}, labels {label_column!r}"
    if not labels:
        note, mixed, others = f"{name}: images are column {image_column!r}", [], []
    images = dataset.select_columns([image_column]).with_format("arrow")
    first = images[:1].column(0).to_pylist() if len(images) else []
    if first and isinstance(first[0], dict) and first[0]["bytes"] is None and first[0]["path"] is not None:
        path = _encoded(first[0], folders)
        if path is None or not os.path.isfile(path):
            raise _paths_only(image_column, first[0]["path"], where)

    def read_labels() -> tuple[list[Any], list[str] | None]:
        if label_column is None:
            return [-1] * len(dataset), None
        feature = dataset.features[label_column]
        column = dataset.select_columns([label_column]).with_format("arrow")[:].column(0)
        return column.to_pylist(), list(feature.names) if isinstance(feature, datasets.ClassLabel) else None

    def read_images(start: int, stop: int) -> list[Any]:
        cells = images[start:stop].column(0).to_pylist()  # as stored: nothing is decoded here
        return [_encoded(cell, folders) for cell in cells]

    return RawSplit(
        name=name,
        key=digest(dataset._fingerprint, image_column, label_column, file_facts(_named_files(images, folders))),
        labels=read_labels,
        images=read_images,
        notes=[note + (f" (there is also {', '.join(others)})" if others else ""), *mixed],
        columns=(image_column, *filter(None, [label_column])),
    )


def _named_values(values: list[Any], kind: Any) -> list[Any]:
    """Values of a column; class numbers as class names."""
    names = kind.names if isinstance(kind, datasets.ClassLabel) else None
    return [names[v] if names and isinstance(v, int) and 0 <= v < len(names) else v for v in values]


def _encoded(cell: Any, folders: list[Path]) -> Any:
    """The bytes or the path in a cell of an image column; None if there is neither, or a path outside `folders`."""
    if not isinstance(cell, dict):
        return cell
    if cell["bytes"] is not None or cell["path"] is None:
        return cell["bytes"]
    for folder in folders:  # absolute ones
        path = os.path.normpath(folder / cell["path"])
        if Path(path).is_relative_to(folder):
            return path
    return None


def _paths_only(column: str, path: str, where: str) -> UserError:
    return UserError(
        f"data.image_column: {where}: column {column!r} holds paths such as {path!r} instead of images; write the "
        "images' bytes into it, or keep them as files with data.source=imagefolder and a metadata.csv with the columns "
        "file_name and label"
    )


def _named_files(images: datasets.Dataset, folders: list[Path]) -> list[str]:
    """The files that a column of images, in Arrow format, names instead of holding their bytes."""
    column = images[:].column(0)
    if not pyarrow.types.is_struct(column.type):
        return []
    without = column.filter(pyarrow.compute.is_null(pyarrow.compute.struct_field(column, "bytes")))
    return [path for cell in without.to_pylist() if (path := _encoded(cell, folders))]


def _image_columns(dataset: datasets.Dataset) -> list[str]:
    """Columns of images, including those of plain parquet files: a struct of bytes and path."""
    return [
        name
        for name, feature in dataset.features.items()
        if isinstance(feature, datasets.Image) or (isinstance(feature, dict) and feature.keys() >= {"bytes", "path"})
    ]


def _label_columns(dataset: datasets.Dataset) -> list[str]:
    return [name for name, feature in dataset.features.items() if _may_be_label(feature)]


def _may_be_label(feature: Any) -> bool:
    """Class numbers (floats if pandas converted them), class names, or true and false; the values are read later."""
    return isinstance(feature, datasets.ClassLabel) or (
        isinstance(feature, datasets.Value) and bool(re.fullmatch(LABEL_TYPES, feature.dtype))
    )


def _type_name(feature: Any) -> str:
    """A column's type in messages."""
    if isinstance(feature, datasets.Value):
        return str(feature.dtype)
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        return f"list of {_type_name(feature.feature)}"
    return f"struct of {', '.join(feature)}" if isinstance(feature, dict) else type(feature).__name__


def _why_no_label(feature: Any) -> str:
    """Why a column cannot be labels, whose type `_may_be_label` does not accept."""
    name = _type_name(feature)
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        return f"{name}: several labels per image, which is not supported"
    if name == "null":
        return "null: all values are missing"
    return name


def _image_column(dataset: datasets.Dataset, where: str, named: str | None) -> str:
    columns = _image_columns(dataset)
    binary = [
        name
        for name, feature in dataset.features.items()
        if isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")
    ]
    if named is not None:
        if named in columns or named in binary:
            return named
        raise _no_column("image", named, dataset, where)
    preferred = [word for word in IMAGE_WORDS if word in columns] or columns
    for name in [] if preferred else dataset.column_names:
        text = dataset[:1][name]
        if text and isinstance(text[0], str) and layout.kind_of(text[0]) == IMAGE:
            raise _paths_only(name, text[0], where)
    if not preferred or (len(columns) > 1 and preferred == columns):
        raise _no_column("image", None, dataset, where)
    return preferred[0]


def _label_column(dataset: datasets.Dataset, where: str, named: str | None) -> str:
    columns = _label_columns(dataset)
    if named is not None:
        if named in columns:
            return named
        raise _no_column("label", named, dataset, where)
    class_labels = [name for name in columns if isinstance(dataset.features[name], datasets.ClassLabel)]
    preferred = [word for word in LABEL_WORDS if word in columns]
    if not preferred and len(class_labels) == 1:
        preferred = class_labels
    if not preferred:
        raise _no_column("label", None, dataset, where)
    return preferred[0]


def _no_column(kind: str, named: str | None, dataset: datasets.Dataset, where: str) -> UserError:
    features = dataset.features
    meant = [named] if named else [word for word in LABEL_WORDS if kind == "label" and word in features]
    if named and named not in features:
        problem = f"column {named!r} does not exist"
    elif kind == "image":
        problem = f"column {named!r} is {_type_name(features[named])}, not images" if named else "cannot be guessed"
    else:
        reasons = [f"column {name!r} is {_why_no_label(features[name])}" for name in meant]
        right = "expected per image: one class number (whole), one class name (text), or true/false"
        problem = "; ".join([*(reasons or ["cannot be guessed"]), right])
    labels, images = _label_columns(dataset), _image_columns(dataset)
    others = [f"{name} is {_type_name(features[name])}" for name in features if name not in (*labels, *images)]
    return UserError(
        f"data.{kind}_column: {problem}; {where} has {', '.join(features)}; images are in: "
        f"{', '.join(images) or 'none'}; labels could be: {', '.join(labels) or 'none'}"
        + (f"; neither: {', '.join(others)}" if others else "")
    )
