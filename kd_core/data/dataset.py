"""The data of a run: a source decoded, validation and test images cut where it has none, subsets of training taken."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, from_numpy
from tqdm import tqdm

from kd_core.config.schema import REST
from kd_core.data import decoding, unlabeled
from kd_core.data.class_weights import require_all_classes
from kd_core.data.decoding import Classes, LabelReader, Stored
from kd_core.data.folder_layout import roles_in, split_for
from kd_core.data.label_noise import with_noise
from kd_core.data.labels import alike, class_numbers
from kd_core.data.raw import RawSplit, Source, named_splits
from kd_core.data.sources import open_source
from kd_core.data.stratify import stratified
from kd_core.errors import UserError
from kd_core.files import writable_folder

if TYPE_CHECKING:
    from kd_core.config import DataConfig

VAL, TRAIN_SIZE, TEST = range(3)  # random streams of data.split_seed
CIFAR_CLASSES = (10, 20, 100)  # with 50,000 training images of 32 pixels, a data set is CIFAR


@dataclass
class Split:
    """Some rows of a source split.

    images: uint8 [N,H,W,3], all rows of the source split, backed by a memory map.
    labels: int64 [N].
    rows: int64 [n], the rows that belong to this split, ascending.
    fingerprint: of the content of the whole source split; independent of where it was read from.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor
    name: str
    fingerprint: str

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def digest(self) -> str:
        """Of its rows, in their order, and of the whole source split."""
        chosen = hashlib.sha256(self.rows.numpy().tobytes()).hexdigest()
        return hashlib.sha256(f"{self.fingerprint} {chosen}".encode()).hexdigest()

    def apart(self) -> Split:
        """Copies of these rows alone, in their order, as a split of its own."""
        return Split(self.images[self.rows], self.labels[self.rows], torch.arange(len(self)), self.name, self.digest)


@dataclass
class Data:
    """A data set, ready for training.

    mean, std: per channel over the training rows, in [0,1], rounded to 4 decimals.
    image_size: side of the stored square images.
    notes: what was guessed, cut or dropped; one line each.
    fingerprint: of the content of the training split and, if it is a source split of its own, the validation split.
    cut_from: int64 [n], the labels of the images that validation is cut from: readable, and not cut for the test split.
    pool: the training images with those of `data.unlabeled`, whose label is -1; None without such.
    true_labels: int64 [N], those of the source, where `data.label_noise` has changed some of `shown`.
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
    pool: Split | None = None
    true_labels: Tensor | None = None
    _test: list[Split | None] = field(default_factory=list)

    @property
    def shown(self) -> Split:
        """All images that training shows."""
        return self.pool or self.train

    @property
    def truth(self) -> Split:
        """The training images with the labels of the source, as rows of `shown`."""
        labels = self.shown.labels if self.true_labels is None else self.true_labels
        return replace(self.shown, labels=labels, rows=self.train.rows, name="train")

    def fingerprint_of(self, config: DataConfig) -> str:
        """The fingerprint of all images that a run with these settings shows: unlabeled ones make it another run."""
        if config.unlabeled is None or self.pool is None or self.pool.fingerprint == self.train.fingerprint:
            return self.fingerprint
        return hashlib.sha256(f"{self.fingerprint} {self.pool.fingerprint}".encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Identifies the data set in the record of a run: fingerprint and sizes."""
        return {
            "fingerprint": self.fingerprint,
            "train_images": len(self.train),
            "val_images": len(self.val) if self.val else 0,
            "num_classes": self.num_classes,
            "image_size": self.image_size,
        }

    def test(self) -> Split | None:
        """The test split; None if there is none.

        It is not read before the first call.  The other splits, the mean and the standard deviation never contain it,
        even if `data.test_size` cuts it from training.

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
        show_progress: of decoding.  With several processes, the caller lets the main process go first.

    Raises:
        UserError: anything about the data that the user can fix.
    """
    writable_folder(Path(cache_dir), "cache.dir")
    source = open_source(config)
    train_name, val_name, test_name = _split_names(source, config)
    largest = config.store_size or round(max(model_sizes) * 8 / 7)
    reader = _Reader(source, config, train_name, largest, Path(cache_dir) / "images", show_progress)
    unused = [name for name in source.split_names if name not in (train_name, val_name, test_name)]
    notes = [*source.notes, *(f"split {name!r} is not used{_why_unused(name, config)}" for name in unused)]

    stored, rows = _read_training(reader, notes)
    classes, labels = stored.classes, stored.labels
    rows, test_rows = _cut_test(config, source, labels, rows, test_name)  # before the others
    cut_from = labels[rows]
    val: Split | None
    if val_name is not None:
        val, fingerprint = _read_validation(reader, val_name, stored, notes)
    else:
        rows, val = _cut_validation(config, stored, rows, notes)
        fingerprint = stored.fingerprint
    all_rows, rows = rows, _train_subset(config, labels, rows, notes)
    notes.append(_test_note(config, test_name, test_rows))

    def open_test() -> Split | None:
        if test_rows is not None:
            return _split(stored, test_rows, "test")
        return None if test_name is None else _read_test(reader, test_name, stored)

    mean, std = _statistics(stored, rows, source)
    train = _split(stored, rows, "train")
    if config.label_noise:
        train = _with_noise(train, config, len(classes.names), notes)
    if config.sampler == "balanced":
        require_all_classes("data.sampler: balanced", labels[rows], classes.names)
    held_out = [name for name in (val_name, test_name) if name]
    pool = _with_unlabeled(reader, train, stored, all_rows, held_out, notes) if config.unlabeled else None
    return Data(
        train=train,
        val=val,
        num_classes=len(classes.names),
        class_names=classes.names,
        mean=mean,
        std=std,
        image_size=stored.side,
        notes=notes,
        fingerprint=fingerprint,
        cut_from=cut_from,
        _open_test=open_test,
        pool=pool,
        true_labels=_true_labels(pool or train, train.rows, stored) if config.label_noise else None,
    )


# --------------------------------------------------------------------------------------- stages of load_data


@dataclass(frozen=True)
class _Reader:
    """Reads the splits of a source; each is decoded into `folder` the first time."""

    source: Source
    config: DataConfig
    train_split: str
    largest: int
    folder: Path
    show_progress: bool

    def read(self, name: str, training: Stored | None = None) -> tuple[RawSplit, Stored]:
        """A split; `training` is the training split, whose classes and side another split takes over."""
        classes = training.classes if training else None
        raw = self.source.open(name)

        def labels(values: list[Any], names: list[str] | None) -> tuple[np.ndarray, Classes]:
            found = class_numbers(values, names, classes, self.source.where, split=name, train_split=self.train_split)
            if training is None:
                _require_two_classes(found[0], self.source)  # before hours of decoding
            return found

        meaning = json.dumps([classes.names, classes.kind] if classes else None)
        return raw, self._store(raw, labels, meaning, training.side if training else None)

    def join(self, more: RawSplit, training: Stored, notes: list[str]) -> Stored:
        """The training split, as it is stored, with further images without labels."""
        raw, config = self.source.open(self.train_split), self.config.unlabeled
        assert config
        own, common = (
            decoding.common_side(each, json.dumps(None), self.folder, self.config.num_workers) for each in (more, raw)
        )
        unlabeled.require_same_size(config, own, training.side, common)
        notes += [f"unlabeled: {note}" for note in more.notes]
        both = unlabeled.joined(raw, more, len(training.labels))
        return self._store(both, unlabeled.reader_of(training), json.dumps(None), training.side)

    def _store(self, raw: RawSplit, labels: LabelReader, meaning: str, side: int | None) -> Stored:
        return decoding.store(
            raw,
            labels,
            meaning=meaning,
            side=side,
            largest=self.largest,
            folder=self.folder,
            threads=self.config.num_workers,
            allow_unreadable=self.config.allow_unreadable,
            show_progress=self.show_progress,
            notify=tqdm.write,
        )


def _read_training(reader: _Reader, notes: list[str]) -> tuple[Stored, np.ndarray]:
    """The training split and its readable rows.  UserError unless these have images of two classes at least."""
    raw, stored = reader.read(reader.train_split)
    names = stored.classes.names
    notes += [*raw.notes, f"train: split {raw.name!r}, {len(stored.labels):,} images, {len(names)} classes"]
    notes += [
        f"train: classes {first!r} and {second!r} differ by capital letters alone, and are two classes"
        for first, second in alike(names, str.lower)
    ]
    rows = _readable(stored, "train", notes)
    present = len(np.unique(stored.labels[rows]))
    if present < len(names):
        notes.append(f"train: {len(names) - present} of the classes have no image")
    _require_two_classes(stored.labels[rows], reader.source)
    return stored, rows


def _require_two_classes(labels: np.ndarray, source: Source) -> None:
    if len(np.unique(labels)) < 2:
        notes = "".join(f"; {note}" for note in source.notes)
        raise UserError(
            f"data.label_column: all training images of {source.where} are of one class; two are needed{notes}"
        )


def _cut_test(
    config: DataConfig, source: Source, labels: np.ndarray, rows: np.ndarray, test_name: str | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Training rows without the test images that `data.test_size` cuts from them, and the rows of these, if any."""
    if config.test_size is None:
        return rows, None
    if test_name is not None:
        raise UserError(
            f"data.test_size: {source.where} has a test split of its own, {test_name!r}, so none is cut from "
            "training; remove data.test_size"
        )
    count = _count("test_size", config.test_size, labels[rows])
    test_rows = stratified(labels[rows], rows, count, seed=config.split_seed, stream=TEST)
    return np.setdiff1d(rows, test_rows), test_rows


def _test_note(config: DataConfig, test_name: str | None, test_rows: np.ndarray | None) -> str:
    if test_rows is not None:
        return (
            f"test: {len(test_rows):,} images cut from training, stratified by class, split_seed {config.split_seed}, "
            "not used before evaluation"
        )
    if test_name:
        return f"test: split {test_name!r}, not opened before evaluation"
    return "test: none found, so there will be no test metrics (data.test_split names it, data.test_size cuts it)"


def _read_validation(reader: _Reader, name: str, stored: Stored, notes: list[str]) -> tuple[Split, str]:
    """A validation split of its own, and the fingerprint of training and validation images together."""
    _, own = reader.read(name, stored)
    val = _split(own, _readable(own, "val", notes), "val")
    notes.append(f"val: split {name!r}, {len(val):,} images")
    return val, hashlib.sha256(f"{stored.fingerprint} {own.fingerprint}".encode()).hexdigest()


def _cut_validation(
    config: DataConfig, stored: Stored, rows: np.ndarray, notes: list[str]
) -> tuple[np.ndarray, Split | None]:
    """Training rows without the validation images cut from them, and these, if there are any."""
    labels = stored.labels[rows]
    count = _val_count(config, labels, stored.side, len(stored.classes.names))
    if not count:
        notes.append("val: none")
        return rows, None
    cut = stratified(labels, rows, count, seed=config.split_seed, stream=VAL)
    notes.append(f"val: {count:,} images cut from training, stratified by class, split_seed {config.split_seed}")
    return np.setdiff1d(rows, cut), _split(stored, cut, "val")


def _train_subset(config: DataConfig, labels: np.ndarray, rows: np.ndarray, notes: list[str]) -> np.ndarray:
    """The training rows that `data.train_size` leaves."""
    if config.train_size is None:
        return rows
    count = _count("train_size", config.train_size, labels[rows])
    left_out = stratified(labels[rows], rows, len(rows) - count, seed=config.split_seed, stream=TRAIN_SIZE)
    rows = np.setdiff1d(rows, left_out)
    notes.append(f"train: a stratified subset of {len(rows):,} images")
    return rows


def _with_noise(train: Split, config: DataConfig, num_classes: int, notes: list[str]) -> Split:
    """The training split with wrong labels."""
    assert config.label_noise
    labels = with_noise(train.labels, train.rows, config.label_noise, num_classes, config.split_seed)
    notes.append(
        f"train: {int((labels != train.labels).sum()):,} labels are wrong on purpose (data.label_noise "
        f"{config.label_noise.kind} {config.label_noise.rate:g}, split_seed {config.split_seed})"
    )
    return replace(train, labels=labels)


def _true_labels(shown: Split, rows: Tensor, stored: Stored) -> Tensor:
    """The labels of `shown` with those of the source at `rows`."""
    return shown.labels.index_copy(0, rows, from_numpy(stored.labels)[rows])


def _with_unlabeled(
    reader: _Reader, train: Split, stored: Stored, all_rows: np.ndarray, held_out: list[str], notes: list[str]
) -> Split:
    """The training split and the images without labels.

    all_rows: those of training before `data.train_size` left some out.
    held_out: names of the splits for validation and test, where the source has them.
    """
    config = reader.config.unlabeled
    assert config
    if config.source == REST:
        chosen = np.setdiff1d(all_rows, train.rows.numpy())
        labels, images, fingerprint = train.labels.clone(), train.images, train.fingerprint
        labels[from_numpy(chosen)] = unlabeled.NONE
    else:
        more = unlabeled.open_unlabeled(config)
        if config.source == reader.config.source == "imagefolder":
            unlabeled.require_apart_from(reader.source, held_out, more)
        whole = reader.join(more, stored, notes)
        chosen = np.setdiff1d(np.arange(len(stored.labels), len(whole.labels)), list(whole.unreadable))
        cut = np.setdiff1d(np.arange(len(stored.labels)), [*all_rows, *stored.unreadable])
        unlabeled.require_unlike(whole, cut, chosen)
        labels, images, fingerprint = from_numpy(whole.labels), from_numpy(whole.images), whole.fingerprint
        labels = torch.cat([train.labels, labels[len(train.labels) :]])  # which may be noisy
    if not len(chosen):
        raise UserError("data.unlabeled: there is no such image; give a smaller data.train_size, or another source")
    notes.append(f"unlabeled: {len(chosen):,} images, {config.share:.0%} of each batch; their labels are not used")
    rows = from_numpy(np.union1d(train.rows.numpy(), chosen))
    return Split(images, labels, rows, "train and unlabeled", fingerprint)


def _read_test(reader: _Reader, name: str, stored: Stored) -> Split:
    """The source's test split."""
    _, own = reader.read(name, stored)
    dropped: list[str] = []
    split = _split(own, _readable(own, "test", dropped), "test")
    for note in dropped:
        tqdm.write(note)
    return split


def _split_names(source: Source, config: DataConfig) -> tuple[str, str | None, str | None]:
    """Which of the source's splits are for training, validation and test."""
    named = named_splits(config)

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
        raise UserError(f"data.image_column: all training images of {source.where} are one uniform color")
    std = np.where(std < 1e-4, 1.0, std)  # a constant channel, as in fluorescence images
    red, green, blue = ((round(float(m), 4), round(float(s), 4)) for m, s in zip(mean, std, strict=True))
    return (red[0], green[0], blue[0]), (red[1], green[1], blue[1])


# --------------------------------------------------------------------------------------------- sizes


def _val_count(config: DataConfig, labels: np.ndarray, side: int, num_classes: int) -> int:
    if config.val_size == 0:
        return 0
    if config.val_size is not None:
        return _count("val_size", config.val_size, labels)
    if len(labels) == 50_000 and side == 32 and num_classes in CIFAR_CLASSES:
        return 5_000
    return _count("val_size", max(round(0.1 * len(labels)), len(np.unique(labels))), labels)


def validation_size(config: DataConfig, data: Data) -> int:
    """The number of validation images that `config` cuts from the training images of the source of `data`.

    UserError if it cannot cut them.
    """
    return _val_count(config, data.cut_from, data.image_size, data.num_classes)


def _count(key: str, size: int | float, labels: np.ndarray) -> int:
    """The number of images that a count or a fraction stands for; UserError if it cannot be stratified."""
    classes = len(np.unique(labels))
    count = round(size * len(labels)) if isinstance(size, float) else int(size)
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
