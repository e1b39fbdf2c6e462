"""Image classification data: decoded once, memory-mapped, split by class, and stored where batches are made."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, from_numpy
from tqdm import tqdm

from kd_core.data import decoding
from kd_core.data.decoding import Classes, Stored
from kd_core.data.sources import MAX_CLASSES, RawSplit, Source, open_source
from kd_core.data.splits import roles_in, split_for
from kd_core.data.stratify import stratified
from kd_core.errors import UserError
from kd_core.files import writable_folder

if TYPE_CHECKING:
    from kd_core.config import DataConfig

VAL, TRAIN_SIZE, TEST = range(3)  # streams of data.split_seed
CIFAR_CLASSES = (10, 20, 100)  # with 50,000 training images of 32 pixels: CIFAR, wherever it comes from


@dataclass
class Split:
    """Some rows of a source split.

    images: uint8 [N,H,W,3], all rows of the source split, backed by a memory map.
    labels: int64 [N].
    rows: int64 [n], the rows that belong to this split, ascending.
    fingerprint: of the whole source split's content, the same wherever it was read from.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor
    name: str
    fingerprint: str

    def __len__(self) -> int:
        return len(self.rows)


@dataclass
class Data:
    """A data set that is ready for training.

    mean, std: per channel over the training rows, in [0,1], rounded to 4 decimals.
    image_size: side of the stored square images.
    notes: what was guessed, cut or dropped, one line each.
    fingerprint: of the content of the training split and, if it is a source split of its own, the validation split.
    cut_from: int64 [n], the labels of the images that validation is cut from: readable, and not cut for the test split.
    """

    train: Split
    val: Split | None
    num_classes: int
    class_names: list[str]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int
    notes: list[str]
    fingerprint: str
    cut_from: np.ndarray
    _open_test: Callable[[], Split | None]
    _test: list[Split | None] = field(default_factory=list)

    def describe(self) -> dict[str, Any]:
        """What identifies the data set in a record of a run: its digest and its sizes."""
        return {
            "fingerprint": self.fingerprint,
            "train_images": len(self.train),
            "val_images": len(self.val) if self.val else 0,
            "num_classes": self.num_classes,
            "image_size": self.image_size,
        }

    def test(self) -> Split | None:
        """The test split, None if there is none.  Nothing of it is read before the first call, and no other split, mean
        or deviation has any of it, also where `data.test_size` cuts it from training.

        Raises:
            UserError: it cannot be read, or its labels are not those of the training split.
        """
        if not self._test:
            self._test.append(self._open_test())
        return self._test[0]


def load_data(config: DataConfig, *, model_sizes: Sequence[int], cache_dir: Path, show_progress: bool = True) -> Data:
    """Open the data set that `config` describes; the first time it is decoded into `cache_dir`.

    Args:
        model_sizes: input sides of all models; images of mixed sizes are stored for the largest.
        show_progress: of decoding.  With several processes the caller lets the main process go first.

    Raises:
        UserError: anything about the data that the user can mend.
    """
    writable_folder(Path(cache_dir), "cache.dir")
    source = open_source(config)
    train_name, val_name, test_name = _split_names(source, config)
    unused = [name for name in source.split_names if name not in (train_name, val_name, test_name)]
    largest = config.store_size or round(max(model_sizes) * 8 / 7)
    notes = [*source.notes, *(f"split {name!r} is not used{_why_unused(name, config)}" for name in unused)]

    def open_split(name: str, training: Classes | None, side: int | None) -> tuple[RawSplit, Stored]:
        raw = source.open(name)
        return raw, decoding.store(
            raw,
            lambda values, names: class_numbers(
                values, names, training, source.where, split=name, train_split=train_name
            ),
            meaning=json.dumps([training.names, training.kind] if training else None),
            side=side,
            largest=largest,
            folder=Path(cache_dir) / "images",
            threads=config.num_workers,
            allow_unreadable=config.allow_unreadable,
            show_progress=show_progress,
            notify=tqdm.write,
        )

    # ------------------------------------------------------------------------------------------- training
    raw, stored = open_split(train_name, None, None)
    classes, names, side = stored.classes, stored.classes.names, stored.side
    notes += [*raw.notes, f"train: split {raw.name!r}, {len(stored.labels):,} images, {len(names)} classes"]
    notes += [
        f"train: classes {first!r} and {second!r} differ by capital letters alone, and are two classes"
        for first, second in _alike(names, str.lower)
    ]
    rows = _readable(stored, "train", notes)
    labels = stored.labels
    present = len(np.unique(labels[rows]))
    if present < len(names):
        notes.append(f"train: {len(names) - present} of the classes have no image")
    if present < 2:
        raise UserError(f"data.label_column: all training images of {source.where} are of one class; two are needed")

    # ----------------------------------------------------------------------------- test, cut before the others
    test_note = (
        f"test: split {test_name!r}, not opened before evaluation"
        if test_name
        else "test: none found, so there will be no test figures (data.test_split names it, data.test_size cuts it)"
    )
    test_rows: np.ndarray | None = None
    if config.test_size is not None:
        if test_name is not None:
            raise UserError(
                f"data.test_size: {source.where} has a test split of its own, {test_name!r}, so none is cut from "
                "training; remove data.test_size"
            )
        count = _count("test_size", config.test_size, labels[rows])
        test_rows = stratified(labels[rows], rows, count, seed=config.split_seed, stream=TEST)
        rows = np.setdiff1d(rows, test_rows)
        test_note = (
            f"test: {count:,} images cut from training, stratified by class, split_seed {config.split_seed}, not used "
            "before evaluation"
        )

    # ----------------------------------------------------------------------------------------- validation
    val: Split | None = None
    fingerprint, cut_from = stored.fingerprint, labels[rows]
    if val_name is not None:
        _, own = open_split(val_name, classes, side)
        val = _split(own, _readable(own, "val", notes), "val")
        notes.append(f"val: split {val_name!r}, {len(val):,} images")
        fingerprint = hashlib.sha256(f"{fingerprint} {own.fingerprint}".encode()).hexdigest()
    else:
        count = _val_count(config, cut_from, side, len(names))
        if count:
            cut = stratified(cut_from, rows, count, seed=config.split_seed, stream=VAL)
            rows = np.setdiff1d(rows, cut)
            val = _split(stored, cut, "val")
            notes.append(
                f"val: {count:,} images cut from training, stratified by class, split_seed {config.split_seed}"
            )
        else:
            notes.append("val: none")
    if config.train_size is not None:
        count = _count("train_size", config.train_size, labels[rows])
        left_out = stratified(labels[rows], rows, len(rows) - count, seed=config.split_seed, stream=TRAIN_SIZE)
        rows = np.setdiff1d(rows, left_out)
        notes.append(f"train: a stratified subset of {len(rows):,} images")

    # ----------------------------------------------------------------------------------------------- test
    def open_test() -> Split | None:
        if test_rows is not None:
            return _split(stored, test_rows, "test")
        if test_name is None:
            return None
        _, own = open_split(test_name, classes, side)
        dropped: list[str] = []
        split = _split(own, _readable(own, "test", dropped), "test")
        for note in dropped:
            tqdm.write(note)
        return split

    notes.append(test_note)
    mean, std = _statistics(stored, rows, source)
    return Data(
        train=_split(stored, rows, "train"),
        val=val,
        num_classes=len(names),
        class_names=names,
        mean=mean,
        std=std,
        image_size=side,
        notes=notes,
        fingerprint=fingerprint,
        cut_from=cut_from,
        _open_test=open_test,
    )


def _split_names(source: Source, config: DataConfig) -> tuple[str, str | None, str | None]:
    """Which of the source's splits are for training, validation and test."""
    named = {"train": config.train_split, "val": config.val_split, "test": config.test_split}

    def find(role: str) -> str | None:
        """The split of a role; for validation and test none is guessed that the settings give to another role."""
        taken = {name for other, name in named.items() if other != role != "train" and named[role] is None}
        return split_for(role, [name for name in source.split_names if name not in taken], named[role], source.where)

    train = find("train")
    if train is None and len(source.split_names) == 1 and not roles_in(source.split_names[0]):
        train = source.split_names[0]
    if train is None:
        raise UserError(f"data.train_split: cannot be guessed; {source.where} has: {', '.join(source.split_names)}")
    # A val_size asks for none, or for images cut from training, unless a split is named as well.
    cut = config.val_split is None and config.val_size is not None
    val = None if cut else find("val")
    test = find("test")
    for role, name, others in (("val", val, (train, test)), ("test", test, (train,))):
        if name is not None and name in others:
            raise UserError(f"data.{role}_split: {name!r} has another role already; name another split")
    return train, val, test


def _why_unused(name: str, config: DataConfig) -> str:
    cut = roles_in(name) == {"val"} and config.val_size is not None
    return f", since data.val_size is {config.val_size}" if cut else ""


def _split(stored: Stored, rows: np.ndarray, name: str) -> Split:
    return Split(from_numpy(stored.images), from_numpy(stored.labels), from_numpy(rows), name, stored.fingerprint)


def _readable(stored: Stored, name: str, notes: list[str]) -> np.ndarray:
    """The rows that could be decoded, int64."""
    if stored.unreadable:
        listed = "; ".join(list(stored.unreadable.values())[:20])
        notes.append(f"{name}: {len(stored.unreadable)} unreadable images dropped: {listed}")
    return np.setdiff1d(np.arange(len(stored.labels)), np.array(list(stored.unreadable), dtype=np.int64))


def _statistics(
    stored: Stored, rows: np.ndarray, source: Source
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation per channel over all pixels of `rows`, from exact integer sums."""
    total, squares = stored.sums[rows].sum(axis=0) / (len(rows) * stored.side**2)
    mean, std = total / 255, np.sqrt(np.maximum(squares - total**2, 0)) / 255
    if std.max() < 1e-4:
        raise UserError(f"data.image_column: all training images of {source.where} are one even color")
    std = np.where(std < 1e-4, 1.0, std)  # a channel that never changes, as in fluorescence images
    red, green, blue = ((round(float(m), 4), round(float(s), 4)) for m, s in zip(mean, std, strict=True))
    return (red[0], green[0], blue[0]), (red[1], green[1], blue[1])


# --------------------------------------------------------------------------------------------- labels, sizes


def class_numbers(
    values: list[Any],
    names: list[str] | None,
    training: Classes | None,
    where: str,
    *,
    split: str = "train",
    train_split: str = "train",
) -> tuple[np.ndarray, Classes]:
    """Labels as class numbers int64 [N], and the classes.

    Args:
        values: what the source has, all of one kind: class numbers (also as whole floats), names, or true and false.
        names: what the source calls its class numbers, if it does.
        training: the training split's classes, to which another split's labels are translated by name; None: this is
            the training split.
        where: how messages call the source; split, train_split: the names of this split and of the training split.

    Raises:
        UserError: a missing label, one that is no whole number or outside the range, one that training does not know,
            labels of another kind than training has, class names that look the same.
    """
    here = f"data.label_column: {where}, split {split}"
    if not values:
        raise UserError(f"data.path: {where}, split {split}: has no images")
    for row, value in enumerate(values):
        if value is None or value == -1 or value != value or (isinstance(value, str) and not value.strip()):
            raise UserError(f"{here}: row {row} has no label ({value!r})")
    kind = _kind(values, names, here)
    if kind == "boolean":
        values, names = [int(value) for value in values], ["false", "true"]
    elif kind == "text":
        names = sorted(set(values))
        position = {name: number for number, name in enumerate(names)}
        values = [position[value] for value in values]
    if names is not None:
        count = len(names)
    elif training and training.kind == kind:
        count = len(training.names)
    else:
        count = max(int(max(values)) + 1, 1)
    if count > MAX_CLASSES:
        shown = f"{count:,}" if count < 1e20 else "more than 1e20"
        raise UserError(f"{here}: {shown} classes, at most {MAX_CLASSES:,} are possible")
    names = names or [str(number) for number in range(count)]
    _check_range(values, count, here)
    numbers = np.array(values, dtype=np.int64)
    if training is None:
        for first, second in _alike(names, _as_seen):
            raise UserError(
                f"{here}: classes {ascii(first)} and {ascii(second)} differ by spaces or Unicode forms alone; "
                "give one class one name"
            )
        return numbers, Classes(names, kind)
    if not _comparable(Classes(names, kind), training):
        raise UserError(
            f"data.label_column: {where}: in split {train_split} {_KINDS[training.kind]} (such as "
            f"{training.names[0]!r}), in split {split} {_KINDS[kind]} (such as {names[numbers[0]]!r}); which class is "
            "which cannot be known, so write both in the same way"
        )
    return _translated(numbers, names, training.names, here), training


_KINDS = {
    "text": "labels are class names",
    "named": "labels are numbers of named classes",
    "number": "labels are class numbers without names",
    "boolean": "labels are true and false",
}


def _kind(values: list[Any], names: list[str] | None, here: str) -> str:
    """How labels are written, one of `_KINDS`.  UserError for what is neither number, text nor truth value."""
    types = {type(value) for value in values}
    if types == {str}:
        return "text"
    if types == {bool}:
        return "boolean"
    if not types <= {int, float}:
        listed = ", ".join(sorted(kind.__name__ for kind in types))
        raise UserError(f"{here}: labels are of type {listed}; expected whole numbers, text, or true/false")
    row = next((row for row, v in enumerate(values) if isinstance(v, float) and not v.is_integer()), None)
    if row is not None:
        raise UserError(
            f"{here}: row {row} has label {values[row]!r}, of type float; class numbers must be whole, class names text"
        )
    return "number" if names is None else "named"


def _check_range(values: list[Any], count: int, here: str) -> None:
    row = next((row for row, value in enumerate(values) if not 0 <= value < count), None)
    if row is not None:
        shown = repr(values[row]) if abs(values[row]) < 1e20 else "beyond 1e20"
        raise UserError(f"{here}: row {row} has label {shown}, outside the range 0 to {count - 1}")


def _comparable(own: Classes, training: Classes) -> bool:
    """Whether a name means the same class in both: names do, and numbers where they are also called by them."""
    kinds = {own.kind, training.kind}
    if len(kinds) == 1 or kinds == {"text", "named"}:
        return True
    named = own if own.kind == "named" else training
    return kinds == {"named", "number"} and named.names == [str(number) for number in range(len(named.names))]


def _translated(numbers: np.ndarray, names: list[str], classes: list[str], here: str) -> np.ndarray:
    """Class numbers int64 [N] that mean `names`, as numbers that mean `classes`; UserError if one is not among them."""
    position = {name: number for number, name in enumerate(classes)}
    for name in (names[number] for number in np.unique(numbers)):
        if name not in position:
            alike = next((other for other in classes if _as_seen(other).casefold() == _as_seen(name).casefold()), None)
            hint = "" if alike is None else f", which has {ascii(alike)}: give one class one name"
            shown = repr(name) if alike is None else ascii(name)
            raise UserError(f"{here}: class {shown} does not occur in training{hint}")
    return np.array([position.get(name, -1) for name in names], dtype=np.int64)[numbers]


def _as_seen(name: str) -> str:
    """A class name without what cannot be seen: spaces, invisible characters, and how an accent is composed."""
    composed = unicodedata.normalize("NFC", name)
    return "".join(letter for letter in composed if not letter.isspace() and unicodedata.category(letter) != "Cf")


def _alike(names: list[str], form: Callable[[str], str]) -> list[tuple[str, str]]:
    """Pairs of different names that `form` makes equal: each with the first of its kind."""
    first: dict[str, str] = {}
    return [(there, name) for name in names if (there := first.setdefault(form(name), name)) != name]


def _val_count(config: DataConfig, labels: np.ndarray, side: int, num_classes: int) -> int:
    if config.val_size == 0:
        return 0
    if config.val_size is not None:
        return _count("val_size", config.val_size, labels)
    if len(labels) == 50_000 and side == 32 and num_classes in CIFAR_CLASSES:
        return 5_000
    return _count("val_size", max(round(0.1 * len(labels)), len(np.unique(labels))), labels)


def validation_size(config: DataConfig, data: Data) -> int:
    """How many validation images `config` cuts from the source's training images, those of `data`.

    UserError if they cannot be cut.
    """
    return _val_count(config, data.cut_from, data.image_size, data.num_classes)


def _count(key: str, size: int | float, labels: np.ndarray) -> int:
    """How many of the images a count or a fraction means; UserError if that cannot be stratified."""
    classes = len(np.unique(labels))
    count = round(size * len(labels)) if isinstance(size, float) and size < 1 else int(size)
    most = len(labels) - (classes if key in ("val_size", "test_size") else 0)
    if most < classes:
        raise UserError(
            f"data.{key}: nothing can be cut from {len(labels)} training images of {classes} classes: each class needs "
            "two; is data.label_column the right one?"
        )
    if not classes <= count <= most:
        raise UserError(
            f"data.{key}: {size} means {count} of the {len(labels)} training images; with {classes} classes it "
            f"must be {classes} to {most} images" + (", or 0 for no validation" if key == "val_size" else "")
        )
    return count


# -------------------------------------------------------------------------------------------------- the store


class ImageStore:
    """A split's images where batches are made from them.

    Args:
        on_device: "device" copies the split's images to the device (on a CPU: into memory); "host" leaves them
            memory-mapped; "auto" copies if they take less than 40% of a GPU's free memory.  On a CPU auto leaves
            them: a memory map in the page cache is as fast, and shared by all processes.

    index_device: where `gather` wants its rows; from elsewhere they are copied, which waits for the device.
    """

    def __init__(self, split: Split, device: torch.device, *, on_device: Literal["auto", "device", "host"]):
        self.device = torch.device(device)
        if on_device == "auto":
            size = split.images[0].numel() * len(split)
            free = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else 0
            on_device = "device" if size < 0.4 * free else "host"
        if on_device == "device":
            self.index_device = self.device
            # Of a split cut from another only its own rows are copied; `_position` says where they went.
            self._images = torch.empty((len(split), *split.images.shape[1:]), dtype=torch.uint8, device=self.device)
            for start in range(0, len(split), 1024):
                rows = split.rows[start : start + 1024]
                self._images[start : start + len(rows)] = split.images.index_select(0, rows).to(self.device)
            position = torch.full((len(split.labels),), -1)
            position[split.rows] = torch.arange(len(split))
            self._position: Tensor | None = position.to(self.device)
        else:
            self.index_device = torch.device("cpu")
            self._images, self._position = split.images, None
        self._labels = split.labels.to(self.index_device)

    def gather(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Images uint8 [B,H,W,3] and labels int64 [B] of rows int64 [B], all on the device.

        From host memory the copy is asynchronous.  Rows that are not the split's are an error.
        """
        rows = rows.to(self.index_device)
        labels = self._labels.index_select(0, rows)
        if self._position is not None:
            return self._images.index_select(0, self._position.index_select(0, rows)), labels
        pinned = self.device.type == "cuda"  # a fresh buffer each time: the allocator knows when a copy is done
        images = torch.empty((len(rows), *self._images.shape[1:]), dtype=torch.uint8, pin_memory=pinned)
        torch.index_select(self._images, 0, rows, out=images)
        labels = labels.pin_memory() if pinned else labels
        return images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
