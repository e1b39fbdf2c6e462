"""CIFAR's original archives of pickles, read without running what they name."""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kd_core.data.raw import RawSplit, Source, digest, file_facts
from kd_core.errors import UserError, first_line

if TYPE_CHECKING:
    from kd_core.config import DataConfig


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
        for opcode, argument, _ in pickletools.genops(content):  # fails if the content is truncated
            if opcode.name.endswith("PUT") and (argument or 0) > len(content):  # it would allocate that many
                raise pickle.UnpicklingError("asks for too much memory")
        found = _CifarUnpickler(io.BytesIO(content), encoding="latin1").load()
    except OSError as error:
        raise UserError(f"data.path: {file}: cannot be read: {error.strerror}") from None
    except Exception as error:  # a damaged or hostile pickle can raise anything
        raise UserError(f"data.path: {file}: is no CIFAR file: {first_line(error)}") from None
    if not isinstance(found, dict):
        raise UserError(f"data.path: {file}: is no CIFAR file: holds a {type(found).__name__}, not a dict")
    return {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in found.items()}


def open_archive(folder: Path, config: DataConfig) -> Source:
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
            key=digest(file_facts([*files, base / meta]), column),
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
