"""Files of logits, with which models of any framework can be teachers.

A safetensors file with one tensor per source split, under any name (such as "train"):

    [N,C]    logits of the images without augmentation; row i belongs to row i of the source
    [N,V,C]  logits of the V fixed views of each image (`kd_core.views.fixed_view_ids`), for cache.mode=fixed

The metadata holds, under the same name, the fingerprint of that split; for views also "crop_padding" and "flip", as in
the configuration.  "store_size", the side of the images in pixels, is for messages alone.  `evaluate_kd.py
--dump-logits` writes such files.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kd_core.data.dataset import Split
from kd_core.data.views import Augmentation
from kd_core.errors import UserError, first_line
from kd_core.files import writable_folder, writing
from kd_core.metrics import ensemble_logits

FP16_MAX = torch.finfo(torch.float16).max


def no_such_file(path: Path, where: str) -> str | None:
    """What is wrong if there is no such file."""
    return None if path.is_file() else f"{where}: {path}: no such file; evaluate_kd.py --dump-logits writes one"


class LogitsFile:
    """An opened file of logits, with all tensors checked.

    Raises:
        UserError: beginning with `where`; no such file, no safetensors file, a tensor of another kind or number of
            classes, values that are not finite or too large for fp16.
    """

    def __init__(self, path: Path, where: str, num_classes: int):
        self.path, self._where = path, f"{where}: {path}"
        if problem := no_such_file(path, where):
            raise UserError(problem)
        try:
            with safe_open(path, framework="pt") as file:
                self.about: dict[str, str] = file.metadata() or {}
                self._tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as error:
            raise UserError(f"{self._where}: damaged, or not a safetensors file ({first_line(error, 160)})") from None
        for name, tensor in self._tensors.items():
            if tensor.ndim not in (2, 3) or not tensor.is_floating_point() or tensor.shape[-1] != num_classes:
                raise UserError(
                    f"{self._where}: {name!r} is {tensor.dtype} of shape {list(tensor.shape)}; logits are floats "
                    f"[images,{num_classes}] or [images,views,{num_classes}]"
                )
            if not all(bool((part.abs() <= FP16_MAX).all()) for part in tensor.split(1 << 16)):
                raise UserError(f"{self._where}: {name!r} has logits that are not finite, or too large for fp16")

    def require(self, split: Split) -> None:
        """UserError unless the file has logits of the split's images."""
        names = [name for name in self._tensors if self.about.get(name) == split.fingerprint]
        if not names:
            stated = ", ".join(f"{name!r} for {self.about.get(name, 'unknown images')}" for name in self._tensors)
            raise UserError(
                f"{self._where}: has no logits of split {split.name!r}, whose images have the fingerprint "
                f"{split.fingerprint}; it has {stated or 'none at all'}. {self._remedy(split)}"
            )
        for name in names:
            if len(self._tensors[name]) != len(split.labels):
                raise UserError(
                    f"{self._where}: {name!r} has {len(self._tensors[name]):,} rows, the images are "
                    f"{len(split.labels):,}"
                )

    def _remedy(self, split: Split) -> str:
        """What to do where the file is for other images than those of a split."""
        side, own = self.about.get("store_size", ""), split.images.shape[1]
        if side.isdecimal() and int(side) != own:
            return (
                f"It was made from images stored at {side} pixels, here they are stored at {own}: give "
                f"--data.store_size={side}"
            )
        return "The metadata must say the fingerprint under the tensor's name"

    def _of(self, split: Split, dimensions: int) -> Tensor | None:
        self.require(split)
        found = (name for name in self._tensors if self.about.get(name) == split.fingerprint)
        return next((self._tensors[name] for name in found if self._tensors[name].ndim == dimensions), None)

    def views(self, split: Split) -> int:
        """How many fixed views of each image the file has; 0 if it has the clean view only."""
        tensor = self._of(split, 3)
        return 0 if tensor is None else tensor.shape[1]

    def check_views(self, split: Split, augmentation: Augmentation, fixed: int | None) -> None:
        """UserError if the file has views of the images, but not those that the student sees in training."""
        views = self.views(split)
        wanted = about_views(augmentation)
        stated = {key: self.about.get(key) for key in wanted}
        if views and fixed != views:
            raise UserError(
                f"{self._where}: has logits of {views} fixed views of each image; training must show these: "
                f"--cache.mode=fixed --cache.views={views}"
            )
        if views and stated != wanted:
            raise UserError(
                f"{self._where}: its views were made with data.crop_padding={stated['crop_padding']} and "
                f"data.flip={stated['flip']}, here they are {wanted['crop_padding']} and {wanted['flip']}"
            )

    def clean(self, split: Split) -> Tensor:
        """Logits fp16 [n,C] of the split's images without augmentation; if there are only views, their ensemble's."""
        clean = self._of(split, 2)
        if clean is not None:
            return clean[split.rows].half()
        views = self._of(split, 3)
        assert views is not None
        return ensemble_logits(views[split.rows].transpose(0, 1)).half()

    def store(self, split: Split) -> FileStore:
        """The logits for training: of the views if the file has them, else of the clean images."""
        logits = self._of(split, 3)
        if logits is None:
            clean = self._of(split, 2)
            assert clean is not None
            logits = clean[:, None]
        return FileStore(self.path.parent, logits)


class FileStore:
    """Logits [rows,views,C] of a file, read by slot like those of a `kd_core.teachers.cache.Store`; all are filled."""

    def __init__(self, folder: Path, logits: Tensor):
        self.folder, self._logits = folder, logits
        self.rows, self.views, self.classes = logits.shape

    def read(self, slots: Tensor) -> Tensor:
        """Logits fp16 [n,C] of slots int64 [n]."""
        return self._logits[slots % self.rows, slots // self.rows].half()

    def sound(self, slots: Tensor) -> Tensor:
        return torch.ones(len(slots), dtype=torch.bool)

    def damaged(self, slots: Tensor) -> int:
        return 0

    def write(self, slots: Tensor, logits: Tensor) -> None:
        raise AssertionError("nothing is missing in a file of logits")


def about_views(augmentation: Augmentation) -> dict[str, str]:
    """The metadata for views of this augmentation."""
    return {key: str(value).lower() for key, value in asdict(augmentation).items()}


def write_logits(path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    """Write logits by split name, with `about` as metadata; atomic.  Equal logits give equal bytes.

    UserError if the folder cannot be written or its disk is full.
    """
    writable_folder(path.parent, "--dump-logits")
    fresh = path.with_name(f".{path.name}.partial")
    try:
        with writing(path):
            save_file({name: tensor.half().contiguous() for name, tensor in tensors.items()}, fresh, metadata=about)
            _sort_metadata(fresh)
            fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def _sort_metadata(path: Path) -> None:
    """Put a file's metadata, which safetensors writes in random order, into that of its keys.

    Else runs with the same logits, written twice, would count as runs with other teachers: a run's identity has the
    file's digest.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")  # of the header, JSON that spaces may follow
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        assert len(text) == length, "the header has changed its size"
        file.seek(8)
        file.write(text)
