"""Sources of labeled images: each lists its splits and opens one without reading the others."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.nn.functional as F
from torch import from_numpy

from kd_core.config import own_code, registry
from kd_core.data import cifar_python, image_folders
from kd_core.data.raw import RawSplit, Source, digest
from kd_core.data.stratify import stratified
from kd_core.errors import UserError

if TYPE_CHECKING:
    from kd_core.config import DataConfig

Opener = Callable[["DataConfig"], Source]


def add(name: str, opener: Opener) -> None:
    """Make `opener`, which gives a Source for the settings `data`, the data source `name`.

    Its images may be encoded bytes, paths, or uint8 arrays [H,W,3].  ValueError for a name in use.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise ValueError(f"data source {name!r}: a name consists of lower-case letters, digits and _")
    if name in registry.sources():
        raise ValueError(f"data source {name!r}: there is one of this name already; choose another name")
    registry.added_sources[name] = opener


def added() -> list[str]:
    """Names of the data sources that were added."""
    return list(registry.added_sources)


def open_source(config: DataConfig, *, labels: bool = True) -> Source:
    """The source that `data.source` names; without `labels` it need not have any.

    Raises:
        UserError: a path that is missing or of the wrong kind, a Hub data set that is not available.
    """
    if config.source in registry.added_sources:
        return _added_source(config)
    if config.source == "hub":
        from kd_core.data import hf_datasets  # not above: `datasets` takes a second to import, and few sources need it

        return hf_datasets.open_hub(config, labels)
    if config.source == "digits":
        return Source("digits", ["train", "test"], _digits)
    folder = Path(config.path or "").expanduser()
    if not folder.is_dir():
        found = "a file, and a folder is needed" if folder.exists() else "no such folder"
        raise UserError(f"data.path: {folder}: {found} (data.source={config.source})")
    if config.source == "imagefolder":
        return image_folders.open_folder(folder, config) if labels else image_folders.open_images(folder)
    if config.source == "cifar_python":
        return cifar_python.open_archive(folder, config)
    from kd_core.data import hf_datasets

    return (hf_datasets.open_parquet if config.source == "parquet" else hf_datasets.open_disk)(folder, config, labels)


def _added_source(config: DataConfig) -> Source:
    """A source of the user's own, checked."""
    name: str = config.source
    file = own_code.provider(own_code.SOURCE, name)

    def require(found: Any, kind: type) -> None:
        if not isinstance(found, kind):
            given = f"{type(found).__module__}.{type(found).__name__}"
            raise UserError(f"data.source {name!r}: must give a kd_core.data.sources.{kind.__name__}, gave {given}")

    def open_split(split: str) -> RawSplit:
        raw = source.open(split)
        require(raw, RawSplit)

        def images(start: int, stop: int) -> list[Any]:
            found = list(raw.images(start, stop))
            if len(found) != stop - start:
                raise UserError(f"data.source {name!r}: gave {len(found)} images for rows {start} to {stop}")
            for image in found:
                if isinstance(image, np.ndarray) and (
                    image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3
                ):
                    raise UserError(
                        f"data.source {name!r}: gave an array {image.dtype} {list(image.shape)}; images are uint8 "
                        "[height, width, 3], or encoded bytes, or paths"
                    )
            return found

        def labels() -> tuple[list[Any], list[str] | None]:
            values, names = raw.labels()
            return [value.item() if isinstance(value, np.generic) else value for value in values], names

        # Decoded images are cached by this key, and changed code may give other images.
        return replace(raw, labels=labels, images=images, key=digest("added", file.digest if file else "", raw.key))

    source = registry.added_sources[name](config)
    require(source, Source)
    return replace(source, open=open_split)


def _digits(name: str) -> RawSplit:
    """scikit-learn's 1,797 digits; a fixed 15% per class are the test split."""
    return RawSplit(
        name=name,
        key=digest("digits", name),
        labels=lambda: (_read_digits(name)[1].tolist(), [str(digit) for digit in range(10)]),
        images=lambda start, stop: list(_read_digits(name)[0][start:stop]),
        notes=[],
    )


@cache
def _read_digits(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n,32,32,3], enlarged from 8x8 gray, and labels int64 [n] of a split."""
    from sklearn.datasets import load_digits  # not above: takes seconds, and decoded images are read without it

    found = load_digits()
    labels = found.target.astype(np.int64)
    test = stratified(labels, np.arange(len(labels)), round(0.15 * len(labels)), seed=0, stream=0)
    rows = test if name == "test" else np.setdiff1d(np.arange(len(labels)), test)
    gray = from_numpy(found.images[rows] * (255 / 16)).float()[:, None]
    large = F.interpolate(gray, (32, 32), mode="bicubic", align_corners=False).clamp(0, 255).round()
    return large.byte().permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy(), labels[rows]
