"""Images without labels beside those of training: the rest of the training split, or any source, as further rows."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from kd_core.config import UnlabeledConfig
from kd_core.data.decoding import Classes, Stored
from kd_core.data.folder_layout import roles_in, split_for
from kd_core.data.raw import RawSplit, Source, digest
from kd_core.data.sources import open_source
from kd_core.errors import UserError

NONE = -1  # the label of an image that has none
# Keys of `data`, and what they are called here.
KEYS = {key: key for key in UnlabeledConfig.model_fields} | {"train_split": "split"}


def open_unlabeled(config: UnlabeledConfig) -> RawSplit:
    """The split of images that `data.unlabeled` names.

    Raises:
        UserError: as `open_source`, about the keys of `data.unlabeled`.
    """
    try:
        source = open_source(config.as_data(), labels=False)
        names = source.split_names
        name = split_for("train", names, config.split, source.where)
        if name is None and len(names) == 1 and not roles_in(names[0]):
            name = names[0]
        if name is None:
            raise UserError(f"data.train_split: cannot be guessed; {source.where} has: {', '.join(names)}")
        return source.open(name)
    except UserError as error:
        message = re.sub(rf"\bdata\.({'|'.join(KEYS)})\b(?=[:,=])", _renamed, str(error))
        raise UserError(message) from None


def _renamed(found: re.Match[str]) -> str:
    return f"data.unlabeled.{KEYS[found[1]]}"


def require_apart_from(source: Source, held_out: list[str], raw: RawSplit) -> None:
    """UserError if folders of images without labels hold those of validation and test, splits of `source`."""
    theirs = set(map(os.path.abspath, raw.images(0, sys.maxsize)))
    for name in held_out:
        files = source.open(name).images(0, sys.maxsize)
        if shared := [file for file in files if os.path.abspath(file) in theirs]:
            raise UserError(
                f"data.unlabeled.path: holds {len(shared):,} images of split {name!r} of {source.where}, such as "
                f"{shared[0]}; name a folder without them"
            )


def require_unlike(stored: Stored, held_out: np.ndarray, more: np.ndarray) -> None:
    """UserError if images without labels, rows `more`, are among the rows that were cut for validation and test.

    Images are taken for equal if the sums of their pixels and of the squares are, in every channel.
    """
    sums = np.ascontiguousarray(stored.sums.reshape(len(stored.sums), -1))
    keys = sums.view(np.dtype((np.void, sums.itemsize * sums.shape[1]))).ravel()  # one for each image
    if seen := int(np.isin(keys[more], keys[held_out]).sum()):
        raise UserError(
            f"data.unlabeled: {seen:,} of its images are among the {len(held_out):,} that are cut from training for "
            "validation and test; name images without them, or data.unlabeled={} for the rest of the training split"
        )


def joined(training: RawSplit, unlabeled: RawSplit, count: int) -> RawSplit:
    """The `count` images of training, then those without labels."""

    def images(start: int, stop: int) -> list[Any]:
        first = training.images(start, min(stop, count)) if start < count else []
        return first + (unlabeled.images(max(start - count, 0), stop - count) if stop > count else [])

    def labels() -> tuple[list[Any], list[str] | None]:
        return training.labels()[0] + [NONE] * len(unlabeled.labels()[0]), None

    key = digest("with unlabeled images", training.key, unlabeled.key)
    return RawSplit(f"{training.name} and unlabeled", key, labels, images, [])


def reader_of(stored: Stored) -> Callable[[list[Any], list[str] | None], tuple[np.ndarray, Classes]]:
    """Reads the labels of `joined`: those of `stored`, the training images, then none."""

    def read(values: list[Any], names: list[str] | None) -> tuple[np.ndarray, Classes]:
        more = np.full(len(values) - len(stored.labels), NONE, dtype=np.int64)
        return np.concatenate([stored.labels, more]), stored.classes

    return read


def require_same_size(config: UnlabeledConfig, own: int | None, side: int, training: int | None) -> None:
    """UserError where training images all have one size, and those without labels another.

    own, training: the common side of the images without labels and of training's; None if they have several sizes.
    side: that at which images are stored.
    """
    if training == side != own and not config.resize:
        found = f"are {own} pixels wide and high" if own else "have several sizes, or are no squares"
        raise UserError(
            f"data.unlabeled: its images {found}, those of training {side}; data.unlabeled.resize=true brings them to "
            "that size"
        )
