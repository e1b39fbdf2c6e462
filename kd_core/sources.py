"""Where labelled images come from: each source lists its splits, and opens one without reading the others."""

from __future__ import annotations

import glob
import hashlib
import io
import json
import os
import pickle
import pickletools
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import huggingface_hub.constants
import numpy as np
import pyarrow.parquet
import torch.nn.functional as F
from torch import from_numpy

from kd_core.errors import UserError, first_line
from kd_core.files import local_path, read_object
from kd_core.stratify import stratified

if TYPE_CHECKING:
    from kd_core.config import DataConfig

SPLIT_WORDS = {
    "train": ("train", "training"),
    "val": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
MAX_CLASSES = 100_000
MIN_IMAGE_BYTES = 16  # on average, in a compressed file; fewer would be one image over and over
LABEL_WORDS = ("fine_label", "label", "labels", "class", "target")
IMAGE_WORDS = ("image", "img")
WAYS_OUT = """three ways out:
  1. download it on a machine with network, copy that machine's Hugging Face cache and set HF_HOME to the copy
  2. use local files: --data.source=parquet --data.path=FOLDER (or imagefolder, disk, cifar_python)
  3. use the data set that needs no download: --data.source=digits"""


@dataclass
class RawSplit:
    """One split, not decoded.

    key: changes whenever the split's content or the choice of columns does.
    labels: reads one label a row (class numbers or names) and, where the source has them, the class names.
    images: reads the images of rows start to stop: encoded bytes, paths, or decoded uint8 arrays [H,W,3].
    notes: what was guessed, one line each.
    """

    name: str
    key: str
    labels: Callable[[], tuple[list[Any], list[str] | None]]
    images: Callable[[int, int], list[Any]]
    notes: list[str]


@dataclass
class Source:
    """where: how messages name it."""

    where: str
    split_names: list[str]
    open: Callable[[str], RawSplit]

    def find(self, role: str, named: str | None) -> str | None:
        """The name of the split that plays `role` ("train", "val" or "test"); UserError if `named` is none."""
        if named is not None:
            if named not in self.split_names:
                raise UserError(
                    f"data.{role}_split: {self.where} has no split {named!r}; it has: " + ", ".join(self.split_names)
                )
            return named
        by_word = {name.lower(): name for name in self.split_names}
        return next((by_word[word] for word in SPLIT_WORDS[role] if word in by_word), None)


def open_source(config: DataConfig) -> Source:
    """The source that `data.source` names.

    Raises:
        UserError: a path that is missing or of the wrong kind, a Hub data set that cannot be had.
    """
    if config.source == "hub":
        return _hub(config)
    if config.source == "digits":
        return Source("digits", ["train", "test"], _digits)
    folder = Path(config.path or "").expanduser()
    if not folder.is_dir():
        found = "a file, and a folder is needed" if folder.exists() else "no such folder"
        raise UserError(f"data.path: {folder}: {found} (data.source={config.source})")
    local = {"parquet": _parquet, "imagefolder": _imagefolder, "disk": _disk, "cifar_python": _cifar_python}
    return local[config.source](folder, config)


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _listing(files: list[Path]) -> list[tuple[str, int, int]]:
    """What tells, without reading the files, whether they have changed."""
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


# -------------------------------------------------------------------------------- Hugging Face data sets


def _hub(config: DataConfig) -> Source:
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
    except (ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"data.name, data.subset: {where}: {first_line(error)}") from None
    return Source(where, list(found), lambda name: _from_dataset(found[name], name, where, config))


def _parquet(folder: Path, config: DataConfig) -> Source:
    """Files named by split (train-00000-of-00003.parquet), or in folders named by split; else all is training."""
    splits: dict[str, list[Path]] = {}
    named = [config.train_split, config.val_split, config.test_split]
    known = {*(word for words in SPLIT_WORDS.values() for word in words), *filter(None, named)}
    for file in sorted(folder.rglob("*.parquet")):
        parents = [parent.name for parent in file.relative_to(folder).parents if parent.name]
        candidates = [file.stem, re.split(r"[-_.]", file.stem)[0], *parents]
        splits.setdefault(next((word for word in candidates if word in known), "other"), []).append(file)
    if not splits:
        raise UserError(f"data.path: {folder}: holds no .parquet file (data.source=parquet)")
    if set(splits) == {"other"}:
        splits = {"train": splits["other"]}

    def open_split(name: str) -> RawSplit:
        for file in splits[name]:
            _check_parquet(file)
        dataset = _load(folder, "parquet", data_files=[glob.escape(str(file)) for file in splits[name]])
        return _from_dataset(dataset, name, str(folder), config)

    return Source(str(folder), list(splits), open_split)


def _imagefolder(folder: Path, config: DataConfig) -> Source:
    """Folders named by class, within folders named by split if there are such.

    A class may be called "train" (CIFAR-100 has one): a split's folder is one that holds folders.
    """
    words = {*(word for words in SPLIT_WORDS.values() for word in words), *filter(None, [config.train_split])}
    children = sorted(child for child in folder.iterdir() if child.is_dir() and child.name[0] != ".")
    by_split = any(child.name in words and any(g.is_dir() for g in child.iterdir()) for child in children)
    splits = {child.name: child for child in children} if by_split else {"train": folder}

    def open_split(name: str) -> RawSplit:
        files = glob.escape(str(splits[name])) + "/**"
        dataset = _load(folder, "imagefolder", data_files=files, drop_labels=False)
        return _from_dataset(dataset, name, str(folder), config)

    return Source(str(folder), list(splits), open_split)


def _load(folder: Path, builder: str, **options: Any) -> datasets.Dataset:
    datasets.disable_progress_bars()  # they speak of downloading; decoding has a bar of its own
    try:
        return datasets.load_dataset(builder, split="train", **options)
    except Exception as error:  # damaged files and what they say of themselves make it fail in any of a dozen ways
        cause = error.__cause__ or error  # datasets wraps what went wrong
        raise UserError(f"data.path: {folder}: cannot be read as {builder}: {first_line(cause, 160)}") from None
    finally:
        datasets.enable_progress_bars()


def _disk(folder: Path, config: DataConfig) -> Source:
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
        raw = _from_dataset(dataset, name, str(folder), config)
        raw.key = _digest(raw.key, _listing(sorted(folders[name].glob("*"))))
        return raw

    return Source(str(folder), list(folders), open_split)


def _inside(name: str, folder: Path) -> str:
    """`name`, if it is that of something directly in `folder`; else UserError."""
    if Path(name).name != name or name == "..":
        raise UserError(f"data.path: {folder}: names {name!r}, which does not lie in it")
    return name


def _check_parquet(file: Path) -> None:
    """UserError for a file that would unfold into more than its size allows for."""
    try:
        metadata = pyarrow.parquet.read_metadata(file)
    except (pyarrow.ArrowException, OSError):  # opening it says so
        return
    if metadata.num_rows > file.stat().st_size // MIN_IMAGE_BYTES:
        raise UserError(
            f"data.path: {file}: claims {metadata.num_rows:,} rows in {file.stat().st_size:,} bytes, less than "
            f"{MIN_IMAGE_BYTES} bytes an image"
        )
    about = (metadata.metadata or {}).get(b"huggingface", b"")
    if any(int(count) > MAX_CLASSES for count in re.findall(rb'"num_classes": *(\d{1,18})', about)):
        raise UserError(f"data.path: {file}: claims more than {MAX_CLASSES:,} classes")


def _from_dataset(dataset: datasets.Dataset, name: str, where: str, config: DataConfig) -> RawSplit:
    """folders: those in which the images may lie that the data set names by their paths."""
    try:
        dataset.data.validate(full=True)  # unchecked, Arrow reads wherever damaged offsets point, and dies there
    except ValueError as error:
        raise UserError(f"data.path: {where}: split {name!r} is damaged: {first_line(error, 160)}") from None
    caches = [datasets.config.HF_DATASETS_CACHE, huggingface_hub.constants.HF_HUB_CACHE]
    folders = [Path(folder).expanduser().absolute() for folder in (caches if config.source == "hub" else [where])]
    image_column = _image_column(dataset, where, config.image_column)
    label_column = _label_column(dataset, where, config.label_column)
    feature = dataset.features[label_column]
    others = [column for column in _label_columns(dataset) if column != label_column]
    note = f"{name}: images are column {image_column!r}, labels {label_column!r}"
    images = dataset.select_columns([image_column]).with_format("arrow")

    def read_labels() -> tuple[list[Any], list[str] | None]:
        column = dataset.select_columns([label_column]).with_format("arrow")[:].column(0)
        return column.to_pylist(), list(feature.names) if isinstance(feature, datasets.ClassLabel) else None

    def read_images(start: int, stop: int) -> list[Any]:
        cells = images[start:stop].column(0).to_pylist()  # as stored: nothing is decoded here
        return [_encoded(cell, folders) for cell in cells]

    return RawSplit(
        name=name,
        key=_digest(dataset._fingerprint, image_column, label_column),
        labels=read_labels,
        images=read_images,
        notes=[note + (f" (there is also {', '.join(others)})" if others else "")],
    )


def _encoded(cell: Any, folders: list[Path]) -> Any:
    """The bytes or the path in a cell of an image column; None where there is neither, or a path elsewhere."""
    if not isinstance(cell, dict):
        return cell
    if cell["bytes"] is not None or cell["path"] is None:
        return cell["bytes"]
    for folder in folders:  # absolute ones
        path = os.path.normpath(folder / cell["path"])
        if Path(path).is_relative_to(folder):
            return path
    return None


def _image_columns(dataset: datasets.Dataset) -> list[str]:
    """Columns of images, also as plain parquet files spell them: a struct of bytes and path."""
    return [
        name
        for name, feature in dataset.features.items()
        if isinstance(feature, datasets.Image) or (isinstance(feature, dict) and feature.keys() >= {"bytes", "path"})
    ]


def _label_columns(dataset: datasets.Dataset) -> list[str]:
    return [name for name, feature in dataset.features.items() if _may_be_label(feature)]


def _may_be_label(feature: Any) -> bool:
    plain = isinstance(feature, datasets.Value)
    return isinstance(feature, datasets.ClassLabel) or (
        plain and ("int" in feature.dtype or feature.dtype in ("string", "large_string"))
    )


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
    problem = f"column {named!r} does not exist or holds no {kind}s" if named else "cannot be guessed"
    return UserError(
        f"data.{kind}_column: {problem}; {where} has {', '.join(dataset.column_names)}; "
        f"images are in: {', '.join(_image_columns(dataset)) or 'none'}; "
        f"labels could be: {', '.join(_label_columns(dataset)) or 'none'}"
    )


# -------------------------------------------------------------------------------- CIFAR's original files


class _CifarUnpickler(pickle.Unpickler):
    """Reads arrays, lists, dicts, strings and numbers; any other name in the file is refused, never imported."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
            ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): _latin1,  # how Python 3 writes bytes in protocol 2
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"asks for {module}.{name}, which CIFAR's files do not contain")
        return allowed[module, name]


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"asks for the encoding {encoding!r}")
    return text.encode("latin1")


def _read_pickle(file: Path) -> dict[str, Any]:
    try:
        content = file.read_bytes()
        for opcode, argument, _ in pickletools.genops(content):  # which fails where the content ends too early
            if opcode.name.endswith("PUT") and (argument or 0) > len(content):  # it would make room for as many
                raise pickle.UnpicklingError("asks for too much memory")
        found = _CifarUnpickler(io.BytesIO(content), encoding="latin1").load()
    except OSError as error:
        raise UserError(f"data.path: {file}: cannot be read: {error.strerror}") from None
    except Exception as error:  # a damaged or hostile pickle can raise anything
        raise UserError(f"data.path: {file}: is no CIFAR file: {first_line(error)}") from None
    if not isinstance(found, dict):
        raise UserError(f"data.path: {file}: is no CIFAR file: holds a {type(found).__name__}, not a dict")
    return {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in found.items()}


def _cifar_python(folder: Path, config: DataConfig) -> Source:
    """cifar-100-python or cifar-10-batches-py, or the folder that holds it."""
    layouts = {
        "cifar-100-python": ({"train": ["train"], "test": ["test"]}, "meta"),
        "cifar-10-batches-py": (
            {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]},
            "batches.meta",
        ),
    }
    for name, (splits, meta) in layouts.items():
        for base in (folder, folder / name):
            if all((base / file).is_file() for file in [meta, *splits["train"]]):
                return Source(str(base), list(splits), _cifar_opener(base, splits, meta, config))
    wanted = "; ".join(f"{name}: {meta}, {', '.join(s['train'])}" for name, (s, meta) in layouts.items())
    raise UserError(f"data.path: {folder}: CIFAR's python files are not there; wanted is one of: {wanted}")


def _cifar_opener(base: Path, splits: dict[str, list[str]], meta: str, config: DataConfig) -> Callable[[str], RawSplit]:
    columns = {"labels": "label_names"}
    if meta == "meta":
        columns = {"fine_labels": "fine_label_names", "coarse_labels": "coarse_label_names"}
    column = config.label_column or next(iter(columns))
    column = column if column.endswith("s") else f"{column}s"  # as the Hub's columns are called
    if column not in columns:
        allowed = ", ".join(name.removesuffix("s") for name in columns)
        raise UserError(f"data.label_column: {base} has no {config.label_column!r}; it has: {allowed}")

    def open_split(name: str) -> RawSplit:
        files = [base / file for file in splits[name]]
        for file in files:
            if not file.is_file():
                raise UserError(f"data.path: {file}: no such file, and the {name} split needs it")

        @cache
        def batches() -> list[tuple[np.ndarray, list[Any]]]:
            return [_cifar_batch(file, column) for file in files]

        def labels() -> tuple[list[Any], list[str] | None]:
            names = _read_pickle(base / meta).get(columns[column])
            if not isinstance(names, list):
                raise UserError(f"data.path: {base / meta}: has no list {columns[column]!r}")
            texts = [name.decode("latin1") if isinstance(name, bytes) else str(name) for name in names]
            return [label for _, labels in batches() for label in labels], texts

        def images(start: int, stop: int) -> list[Any]:
            rows = islice(chain.from_iterable(planes for planes, _ in batches()), start, stop)
            return [row.reshape(3, 32, 32).transpose(1, 2, 0) for row in rows]

        return RawSplit(
            name=name,
            key=_digest(_listing([*files, base / meta]), column),
            labels=labels,
            images=images,
            notes=[f"{name}: labels are {column.removesuffix('s')!r}"],
        )

    return open_split


def _cifar_batch(file: Path, column: str) -> tuple[np.ndarray, list[Any]]:
    batch = _read_pickle(file)
    data, labels = batch.get("data"), batch.get(column)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise UserError(f"data.path: {file}: 'data' is not uint8 [N, 3072]")
    if data.nbytes > file.stat().st_size:
        raise UserError(f"data.path: {file}: 'data' is larger than the file")
    if not isinstance(labels, list) or len(labels) != len(data):
        raise UserError(f"data.path: {file}: {column!r} is not a list of {len(data)} labels")
    return data, labels


# ------------------------------------------------------------------------------------------------- digits


def _digits(name: str) -> RawSplit:
    """scikit-learn's 1,797 digits: 8x8 grey, enlarged to 32x32x3; a fixed 15% per class are the test split."""
    from sklearn.datasets import load_digits

    found = load_digits()
    labels = found.target.astype(np.int64)
    test = stratified(labels, np.arange(len(labels)), round(0.15 * len(labels)), seed=0, stream=0)
    rows = test if name == "test" else np.setdiff1d(np.arange(len(labels)), test)
    grey = from_numpy(found.images[rows] * (255 / 16)).float()[:, None]
    large = F.interpolate(grey, (32, 32), mode="bicubic", align_corners=False).clamp(0, 255).round()
    pixels = large.byte().permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
    return RawSplit(
        name=name,
        key=_digest("digits", name),
        labels=lambda: (labels[rows].tolist(), [str(digit) for digit in range(10)]),
        images=lambda start, stop: list(pixels[start:stop]),
        notes=[],
    )
