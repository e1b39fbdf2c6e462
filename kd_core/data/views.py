"""Crops and flips of images, as functions of (seed, epoch, row), computed on the device.

A view is one integer, `flip * G * G + dy * G + dx` with G = 2 * crop_padding + 1 crop offsets per axis.  It holds all
the randomness of the augmentation, so a view can be replayed, cached, and rendered at another size for another model.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_core.data.operations import windows
from kd_core.errors import UserError

if TYPE_CHECKING:
    from kd_core.config import DataConfig
    from kd_core.data.preprocess import Preprocess
    from kd_core.data.recipes import Recipe

MASK = (1 << 64) - 1
FLOAT_RESIZE = 2  # version of resizing in floats; changing it invalidates the cached logits that depend on it
GOLDEN = 0x9E3779B97F4A7C15
MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


# ---------------------------------------------------------------------------------------------- randomness


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit integer: torch has no full uint64 arithmetic."""
    value &= MASK
    return value - (1 << 64) if value >> 63 else value


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical shift of int64: the arithmetic shift's copies of the sign bit are masked off."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def random_bits(seed: int, stream: int, rows: Tensor) -> Tensor:
    """64 random bits per row, as int64 with the shape of `rows`; the same on every device, forever.

    Counter-based: splitmix64 (Steele, Lea, Flood, OOPSLA 2014) of the row, on a sequence chosen by
    (seed, stream), so a row's bits depend neither on the other rows of a call nor on the library's generators.
    """
    return _mix(rows * _signed(GOLDEN) + _key(seed, stream))


@lru_cache(maxsize=1024)
def _key(seed: int, stream: int) -> int:
    """In Python's integers: reading a tensor in the middle of an epoch would look like waiting for the device."""
    key = 0
    for part in (seed, stream):
        key = (key + GOLDEN * (part + 1)) & MASK
        key = ((key ^ (key >> 30)) * MULTIPLIERS[0]) & MASK
        key = ((key ^ (key >> 27)) * MULTIPLIERS[1]) & MASK
        key ^= key >> 31
    return _signed(key)


def _mix(value: Tensor) -> Tensor:
    """splitmix64's output function on int64, whose products wrap as unsigned ones do."""
    value = (value ^ _shift_right(value, 30)) * _signed(MULTIPLIERS[0])
    value = (value ^ _shift_right(value, 27)) * _signed(MULTIPLIERS[1])
    return value ^ _shift_right(value, 31)


# -------------------------------------------------------------------------------------------------- resizing


def resized(pixels: Tensor, side: int, interpolation: str) -> Tensor:
    """Pixels [B,C,H,W] in [0, 255] -> [B,C,side,side]: whole gray levels, within two of Pillow's.

    uint8 stays uint8 on the CPU.  Everything else is computed and returned in float32, since PyTorch resizes bytes on
    the CPU only.  Pillow resizes horizontally first and rounds to bytes between the two passes, which clips bicubic
    overshoot; without that, hard edges would be up to 31 levels off.
    """
    options: dict[str, Any] = {"mode": interpolation, "align_corners": False, "antialias": True}
    if pixels.device.type == "cpu" and pixels.dtype == torch.uint8:  # ten times as fast as floats
        return F.interpolate(pixels, (side, side), **options)
    across = _as_bytes(F.interpolate(pixels.float(), (pixels.shape[2], side), **options))
    return _as_bytes(F.interpolate(across, (side, side), **options))


def _as_bytes(pixels: Tensor) -> Tensor:
    """Rounded and clipped to byte values, halves upward as in Pillow; in place."""
    return pixels.add_(0.5).floor_().clamp_(0, 255)


# --------------------------------------------------------------------------------------------------- views


@dataclass(frozen=True)
class Augmentation:
    """Random crops of the image padded by `crop_padding` pixels on each side, and random horizontal flips."""

    crop_padding: int
    flip: bool

    @classmethod
    def of(cls, data: DataConfig) -> Augmentation:
        """The augmentation that the settings `data` ask for."""
        return cls(data.crop_padding, data.flip)

    @property
    def num_views(self) -> int:
        """How many views an image has: 162 for padding 4 with flips."""
        return (2 * self.crop_padding + 1) ** 2 * (2 if self.flip else 1)

    def view_of(self, bits: Tensor) -> Tensor:
        """The view that random bits int64 [B] stand for: int64 [B] in [0, num_views)."""
        return _shift_right(bits, 32) % self.num_views


NO_AUGMENTATION = Augmentation(crop_padding=0, flip=False)


def view_ids(seed: int, epoch: int, rows: Tensor, augmentation: Augmentation | Recipe) -> Tensor:
    """The view of each row in an epoch: int64 [B], from rows int64 [B], on their device."""
    return augmentation.view_of(random_bits(seed, 2 * epoch + 1, rows))


@dataclass(frozen=True)
class View:
    """The views of a batch: `ids` int64 [B]; `numbers` int64 [B] are their keys in a teacher's cache."""

    ids: Tensor
    numbers: Tensor


def draw_views(
    seed: int,
    epoch: int,
    rows: Tensor,
    augmentation: Augmentation | Recipe,
    *,
    fixed: int | None = None,
    keys: Tensor | None = None,
) -> View:
    """The view of each row int64 [B] in an epoch, on their device: one of all, or one of the row's `fixed` views.

    A row's fixed views are the same for every seed, so their logits can be computed once.  keys int64 [B]: what the
    views are drawn by in place of the rows, where a row comes several times.
    """
    keys = rows if keys is None else keys
    if fixed is None:
        ids = view_ids(seed, epoch, keys, augmentation)
        return View(ids, ids)
    numbers = _shift_right(random_bits(seed, 2 * epoch + 1, keys), 32) % fixed
    return View(fixed_views(rows, numbers, augmentation), numbers)


def fixed_views(rows: Tensor, numbers: Tensor, augmentation: Augmentation | Recipe) -> Tensor:
    """The view ids int64 [B] of each row's fixed view with that number."""
    bits = random_bits(0, -1, rows * (1 << 20) + numbers)  # a sequence of its own: epochs' streams are not negative
    return augmentation.view_of(bits)


def fixed_view_ids(rows: Tensor, numbers: Tensor, *, crop_padding: int, flip: bool) -> Tensor:
    """`fixed_views` of crops and flips."""
    return fixed_views(rows, numbers, Augmentation(crop_padding, flip))


class Views:
    """Views of stored images for one model: cropped, flipped, at its size and with its normalization.

    Args:
        preprocess: the model's `size`, `resize`, `interpolation`, `mean` and `std`.
        image_size: side of the stored square images.
        augmentation: gives view ids their meaning.

    A model of the stored size sees a crop of the image with the crop padding, black pixels, around it.  For any
    other size the image is resized to 8/7 of the model's side, and the crop is a box at one of G evenly
    spaced offsets per axis.  Without crops (padding 0) the whole image is resized.

    Raises:
        UserError: the model's resize is smaller than its crop.
    """

    def __init__(self, preprocess: Preprocess, image_size: int, augmentation: Augmentation):
        if preprocess.resize < preprocess.size:
            raise UserError(
                f"preprocessing: resize {preprocess.resize} is smaller than the crop size {preprocess.size}"
            )
        self.size, self.resize = preprocess.size, preprocess.resize
        self._recipe = {**asdict(preprocess), "image_size": image_size}
        self._of = preprocess, image_size
        self.interpolation = preprocess.interpolation
        crop_padding, self.flip = augmentation.crop_padding, augmentation.flip
        self.offsets = 2 * crop_padding + 1
        self.padding = crop_padding if image_size == self.size else 0
        if image_size == self.size or crop_padding == 0:
            self.canvas = self.size + 2 * self.padding
        else:
            self.canvas = round(self.size * 8 / 7)
        self._resizes = not image_size == self.resize == self.canvas - 2 * self.padding
        mean = torch.tensor(preprocess.mean, dtype=torch.float64)
        std = torch.tensor(preprocess.std, dtype=torch.float64)
        # Repeated for whole rows of pixels: an inner loop over three channels would be slow.
        self._scale = (1 / (255 * std)).float().repeat(self.size)
        self._shift = (-mean / std).float().repeat(self.size)
        slack = self.canvas - self.size
        self._offset = torch.tensor([round(step * slack / max(self.offsets - 1, 1)) for step in range(self.offsets)])

    def without_crops(self) -> Views:
        """Views for images that a recipe has cropped and flipped."""
        return Views(*self._of, NO_AUGMENTATION)

    def recipe(self, device: torch.device) -> dict[str, Any]:
        """Everything besides the image that a clean view depends on, for cache keys."""
        in_floats = self._resizes and device.type != "cpu"
        return {**self._recipe, **({"float_resize": FLOAT_RESIZE} if in_floats else {})}

    def train(
        self,
        images: Tensor,
        view_ids: Tensor,
        out_dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> Tensor:
        """Augmented views: float [B,3,size,size] of uint8 images [B,H,W,3] and view ids int64 [B]."""
        return self._normalized(self.crops(images, view_ids), out_dtype, channels_last)

    def crops(self, images: Tensor, view_ids: Tensor) -> Tensor:
        """The same as rows of pixels, [B,size,size*3] in [0, 255]."""
        self._to(images.device)
        view_ids = view_ids.to(images.device, non_blocking=True)
        plane, slack = self.offsets**2, self.canvas - self.size
        top = self._offset[view_ids % plane // self.offsets]
        left = self._offset[view_ids % self.offsets]
        if self.flip:  # mirror the stored bytes before the crop; the crop's left offset is mirrored too
            mirror = view_ids >= plane
            images = _mirrored_where(mirror, images)
            left = torch.where(mirror, slack - left, left)
        if self.padding:
            canvas = F.pad(images, (0, 0, *[self.padding] * 4))
        else:
            canvas = self._resized(images, self.canvas)
        if self.canvas == self.size:
            return canvas.flatten(2)
        return windows(canvas, top, left, self.size, self.size)

    def clean(self, images: Tensor, out_dtype: torch.dtype = torch.float32, channels_last: bool = False) -> Tensor:
        """The model's own evaluation view, float [B,3,size,size], of uint8 images [B,H,W,3]."""
        self._to(images.device)
        start = round((self.resize - self.size) / 2)
        stop = start + self.size
        view = self._resized(images, self.resize)[:, start:stop, start:stop]
        return self._normalized(view.flatten(2), out_dtype, channels_last)

    def _to(self, device: torch.device) -> None:
        if self._scale.device != device:
            self._scale, self._shift, self._offset = (
                constant.to(device) for constant in (self._scale, self._shift, self._offset)
            )

    def _resized(self, images: Tensor, side: int) -> Tensor:
        """[B,H,W,3] -> [B,side,side,3]."""
        if images.shape[1] == side:
            return images
        return resized(images.permute(0, 3, 1, 2), side, self.interpolation).permute(0, 2, 3, 1)

    def _normalized(self, view: Tensor, dtype: torch.dtype, channels_last: bool) -> Tensor:
        """Rows of pixels [B,size,size*3] in [0, 255] -> normalized [B,3,size,size]."""
        values = torch.addcmul(self._shift, view.float(), self._scale).to(dtype)
        image = values.unflatten(2, (self.size, 3)).permute(0, 3, 1, 2)
        return image if channels_last else image.contiguous()


def _mirrored_where(mirror: Tensor, images: Tensor) -> Tensor:
    """Images [B,H,W,3], those where `mirror` (bool [B]) is set with left and right exchanged."""
    both = torch.cat([images, images.flip(2)])
    return both.index_select(0, torch.arange(len(images), device=images.device) + mirror * len(images))
