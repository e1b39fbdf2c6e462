"""Small image data sets in the layouts that a run reads."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from kd_core.config import DataConfig
from kd_core.data.dataset import Data, load_data
from kd_core.errors import UserError


def load(tmp_path: Path, model_sizes: tuple[int, ...] = (32,), **settings: Any) -> Data:
    config = DataConfig(**settings)
    return load_data(config, model_sizes=model_sizes, cache_dir=tmp_path / "cache", show_progress=False)


def refuse(tmp_path: Path, **settings: Any) -> str:
    with pytest.raises(UserError) as error:
        load(tmp_path, **settings)
    return str(error.value)


def pixels(seed: int, height: int = 32, width: int | None = None) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width or height, 3), dtype=np.uint8)


def encoded(array: np.ndarray, kind: str = "png", mode: str | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def rows_of(count: int, classes: int = 3, first: int = 0) -> dict[str, list[Any]]:
    return {
        "image": [{"bytes": encoded(pixels(first + row)), "path": None} for row in range(count)],
        "label": [row % classes for row in range(count)],
    }


def features(classes: int = 3, names: list[str] | None = None) -> datasets.Features:
    names = names or [f"class {number}" for number in range(classes)]
    return datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))


def parquet(folder: Path, **splits: int) -> Path:
    folder.mkdir(parents=True)
    for name, count in splits.items():
        table = datasets.Dataset.from_dict(rows_of(count), features=features())
        table.to_parquet(folder / f"{name}-00000-of-00001.parquet")
    return folder


def image_tree(folder: Path, *names: str, copies: int = 4) -> Path:
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for copy in range(copies):
            (folder / name / f"{copy}.png").write_bytes(encoded(pixels(10 * number + copy)))
    return folder


def cifar_python(folder: Path, per_class: int = 2) -> Path:
    """CIFAR-100's original layout, with `per_class` images of each of four fine and two coarse classes."""
    folder.mkdir(parents=True)
    for name, first in (("train", 0), ("test", 50)):
        count = 4 * per_class
        planes = np.stack([pixels(first + row).transpose(2, 0, 1).reshape(-1) for row in range(count)])
        fine = [row % 4 for row in range(count)]
        batch = {b"data": planes, b"fine_labels": fine, b"coarse_labels": [label // 2 for label in fine]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    names = {b"fine_label_names": [b"a", b"b", b"c", b"d"], b"coarse_label_names": [b"ab", b"cd"]}
    (folder / "meta").write_bytes(pickle.dumps(names, protocol=2))
    return folder
