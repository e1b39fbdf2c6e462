"""Strong augmentation: what `augment` asks for, as a function of one number per image.

A view of a recipe is 64 random bits.  Every parameter is drawn from them and nothing else, each by a sequence of its
own: so a view can be replayed, cached and shared, and another operation in the recipe changes nothing of the others.
Even the image that mixup and cutmix add is drawn from them, out of all training images, with a view of its own.

An image goes through these stages at the stored size, in bytes: crop and flip, colors, random operations, cutout,
erasing, mixing.  Each model then resizes and normalizes the same image.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kd_core.config import Config, RecipeConfig
from kd_core.data import operations
from kd_core.data.dataset import Data
from kd_core.data.image_store import ImageStore
from kd_core.data.operations import ONE
from kd_core.data.views import NO_AUGMENTATION, Augmentation, random_bits
from kd_core.errors import UserError

VERSION = 1  # of drawing and of the operations; changing it invalidates cached logits
TRIES = 10  # to draw a box that fits, as in torchvision
LEVELS = 31  # of magnitude, as in RandAugment
QUANTILES = 1 << 16

# The operations by number.
MOVES = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
NAMES = ("identity", *MOVES, *operations.COLORS)
NUMBER = {name: number for number, name in enumerate(NAMES)}
# RandAugment's and TrivialAugment's, in torchvision's order
POLICY = (
    "identity", *MOVES, "brightness", "saturation", "contrast", "sharpness", "posterize", "solarize", "autocontrast",
    "equalize",
)  # fmt: skip
# The sequences of random bits, one per decision.  Their numbers are part of what a view means.
CROP, JITTER, ORDER, OPERATION, SIGN, LEVEL, CUTOUT, ERASING, ERASED, MIXED, PARTNER, BOX, SECOND = range(13)


# ------------------------------------------------------------------------------------------------ randomness


def _bits(ids: Tensor, purpose: int, number: int = 0) -> Tensor:
    """Random bits int64 [n] for a decision about views int64 [n]."""
    return random_bits(0, -2 - 64 * purpose - number, ids)  # -1 is the sequence of fixed views


def _uniform(ids: Tensor, purpose: int, number: int = 0) -> Tensor:
    """float64 [n] in [0, 1)."""
    return (_bits(ids, purpose, number) >> 11 & (1 << 53) - 1) * 2.0**-53


def _below(ids: Tensor, count: int | Tensor, purpose: int, number: int = 0) -> Tensor:
    """int64 [n], each from 0 to `count` - 1, all alike."""
    return (_bits(ids, purpose, number) >> 32 & 0xFFFFFFFF) * count >> 32


@lru_cache(maxsize=8)
def _beta_quantiles(alpha: float) -> np.ndarray:
    """The values of Beta(alpha, alpha) that split it into QUANTILES equal parts, at their middles: float64."""
    from scipy.special import betaincinv  # not above: takes a second, and most runs mix nothing

    values: np.ndarray = betaincinv(alpha, alpha, (np.arange(QUANTILES) + 0.5) / QUANTILES)
    return values


def _beta(ids: Tensor, alpha: float, purpose: int) -> Tensor:
    """Draws from Beta(alpha, alpha): float64 [n]."""
    return torch.from_numpy(_beta_quantiles(alpha))[_below(ids, QUANTILES, purpose)]


def _boxes(
    ids: Tensor, scale: list[float], ratio: list[float], side: int, purpose: int, *, whole: bool
) -> tuple[Tensor, Tensor]:
    """Boxes int64 [n,4] = (top, left, height, width), and whether there is one: bool [n].

    A share of the area uniform in `scale`, and height by width in `ratio`, uniform in its logarithm; drawn again, up to
    TRIES times, where it does not fit.  `whole`: a box as large as the image fits.
    """
    found = torch.zeros(len(ids), dtype=torch.bool)
    sizes = torch.zeros(len(ids), 2, dtype=torch.int64)
    low, high = (math.log(value) for value in ratio)
    for number in range(TRIES):
        area = side**2 * (scale[0] + (scale[1] - scale[0]) * _uniform(ids, purpose, 2 * number))
        stretch = torch.exp(low + (high - low) * _uniform(ids, purpose, 2 * number + 1))
        drawn = torch.stack([(area * stretch).sqrt(), (area / stretch).sqrt()], 1).round().long()
        fits = ((drawn > 0) & (drawn < side + whole)).all(1) & ~found
        sizes[fits] = drawn[fits]
        found |= fits
    corners = [_below(ids, side + 1 - size, purpose, 2 * TRIES + n) for n, size in enumerate(sizes.unbind(1))]
    return torch.stack([*corners, *sizes.unbind(1)], 1), found


# --------------------------------------------------------------------------------------------- what is drawn


class Look(NamedTuple):
    """How n images are rendered; numpy on the host, n in front.

    rows, ids: int64, the images and their views.  boxes: int32 [n,4], the crop as (top, left, height, width), of the
    padded image or, for resized crops, of the image.  mirrored: bool.  operations: int8 [n,L], numbers of NAMES, and
    their strengths float32 [n,L].  cutout, erased: int32 [n,4], boxes; without height: none.
    """

    rows: np.ndarray
    ids: np.ndarray
    boxes: np.ndarray
    mirrored: np.ndarray
    operations: np.ndarray
    strengths: np.ndarray
    cutout: np.ndarray
    erased: np.ndarray

    def part(self, index: Any) -> Look:
        return Look(*(values[index] for values in self))

    def joined(self, other: Look) -> Look:
        return Look(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))


class Draws(NamedTuple):
    """All that a recipe draws for n images.

    partners: how the image is rendered that is added.  shares: float32 [n], the image's own share, 1 where nothing is
    added.  pasted: int32 [n,4], the box that the partner fills; without height: both images everywhere.
    """

    own: Look
    partners: Look | None
    shares: np.ndarray
    pasted: np.ndarray

    def part(self, index: Any) -> Draws:
        partners = None if self.partners is None else self.partners.part(index)
        return Draws(self.own.part(index), partners, self.shares[index], self.pasted[index])


@dataclass(frozen=True)
class Pixels:
    """Images of a batch, uint8 [B,H,W,3] at the stored size: as stored, and as training shows them to all models.

    Without a recipe both are the same, and each model crops and flips them by itself.
    """

    stored: Tensor
    shown: Tensor

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, positions: Tensor) -> Pixels:
        """Those at positions int64 [n]."""
        stored = self.stored[positions]
        return Pixels(stored, stored if self.shown is self.stored else self.shown[positions])

    @property
    def device(self) -> torch.device:
        return self.stored.device


# ----------------------------------------------------------------------------------------------- the recipe


class Recipe:
    """What `augment` asks for, or with `second` what it asks for of the second view, for the training images of `data`.

    Raises:
        UserError: a cutout larger than the images.
    """

    def __init__(self, config: Config, data: Data, *, second: bool = False):
        settings = config.augment.second if second else config.augment
        assert settings is not None
        self.settings, self.side, self.classes = settings, data.image_size, data.num_classes
        self._second, self._rows, self._weak = second, data.train.rows, Augmentation.of(config.data)
        if self.settings.cutout and self.settings.cutout > self.side:
            key = f"augment.{'second.' * second}cutout"
            raise UserError(
                f"{key}: {self.settings.cutout} is larger than the stored images, of {self.side} pixels"
            )
        mean = data.mean if self.settings.fill == "mean" else (0.0, 0.0, 0.0)
        self._fill = torch.tensor([round(255 * value) for value in mean], dtype=torch.uint8)

    @classmethod
    def of(cls, config: Config, data: Data) -> Recipe | None:
        """The recipe that the settings ask for; None if that is crops and flips alone, which `Views` make."""
        return cls(config, data) if config.augment.operations else None

    @classmethod
    def of_second(cls, config: Config, data: Data) -> Recipe | None:
        """The recipe of the second view; None without one.  Its crops and flips are its own."""
        return cls(config, data, second=True) if config.augment.second is not None else None

    def key(self) -> dict[str, Any]:
        """All that a view depends on besides the images of the source, for cache keys."""
        settings = self.settings.model_dump(include=set(RecipeConfig.model_fields))
        key = {"version": VERSION, **settings, **asdict(self._weak), "color": self._fill.tolist()}
        if self._second:
            key["second"] = True
        if self.settings.mixes:
            key["rows"] = hashlib.sha256(self._rows.numpy().tobytes()).hexdigest()[:16]
        return key

    def view_of(self, bits: Tensor) -> Tensor:
        """The view that random bits int64 [B] stand for: one of 2^64, of another sequence for second views."""
        return _bits(bits, SECOND) if self._second else bits

    # ---------------------------------------------------------------------------------------------- drawing

    def draws(self, rows: Tensor, ids: Tensor) -> Draws:
        """What is drawn for views int64 [n] of rows int64 [n], both on the host."""
        count, settings = len(ids), self.settings
        pasted = torch.zeros(count, 4, dtype=torch.int64)
        shares = torch.ones(count, dtype=torch.float64)
        if settings.mixup:
            shares = (_beta(ids, settings.mixup.alpha, MIXED) * ONE).round() / ONE  # in steps that bytes are mixed in
        if settings.cutmix:
            chosen = _uniform(ids, BOX, 3) < settings.cutmix.probability
            boxes = self._pasted(ids, settings.cutmix.alpha)
            pasted = torch.where(chosen[:, None], boxes, pasted)
            shares = torch.where(chosen, 1 - boxes[:, 2] * boxes[:, 3] / self.side**2, shares)
        partners = None
        if settings.mixes:
            others = self._rows[_below(ids, len(self._rows), PARTNER)]
            partners = self._look(others, _bits(ids, PARTNER, 1))
        return Draws(self._look(rows, ids), partners, shares.float().numpy(), pasted.int().numpy())

    def _pasted(self, ids: Tensor, alpha: float) -> Tensor:
        """CutMix's boxes int64 [n,4]: area from Beta(alpha, alpha), a uniform center, cut off at the border."""
        half = (self.side * (1 - _beta(ids, alpha, BOX)).sqrt()).long() // 2
        centers = [_below(ids, self.side, BOX, 1 + axis) for axis in range(2)]
        starts = [(center - half).clamp(min=0) for center in centers]
        stops = [(center + half).clamp(max=self.side) for center in centers]
        return torch.stack([*starts, *(stop - start for start, stop in zip(starts, stops, strict=True))], 1)

    def _look(self, rows: Tensor, ids: Tensor) -> Look:
        count, settings = len(ids), self.settings
        none = np.zeros((count, 4), np.int32)
        cutout, erased = none, none
        view, offsets = self._weak.view_of(ids), 2 * self._weak.crop_padding + 1
        if settings.resized_crop:
            boxes = self._crop_boxes(ids)
        else:
            sizes = torch.full_like(view, self.side)
            boxes = torch.stack([view // offsets % offsets, view % offsets, sizes, sizes], 1)
        if settings.cutout:
            corners = [_below(ids, self.side, CUTOUT, axis) - settings.cutout // 2 for axis in range(2)]
            sizes = torch.full((count, 2), settings.cutout)
            cutout = torch.cat([torch.stack(corners, 1), sizes], 1).int().numpy()
        if settings.erasing:
            drawn, found = _boxes(ids, settings.erasing.scale, settings.erasing.ratio, self.side, ERASED, whole=False)
            found &= _uniform(ids, ERASING) < settings.erasing.probability
            erased = (drawn * found[:, None]).int().numpy()
        slots = [*self._jitter(ids), *self._policy(ids)]
        numbers, strengths = (
            torch.stack([slot[part] for slot in slots], 1) if slots else torch.zeros(count, 0) for part in range(2)
        )
        return Look(
            rows.numpy(),
            ids.numpy(),
            boxes.int().numpy(),
            (view >= offsets**2).numpy(),
            numbers.to(torch.int8).numpy(),
            strengths.float().numpy(),
            cutout,
            erased,
        )

    def _crop_boxes(self, ids: Tensor) -> Tensor:
        """Boxes int64 [n,4] of resized crops; where none fits, the largest central one of an allowed shape."""
        settings = self.settings.resized_crop
        assert settings is not None
        shapes = sorted(1 / value for value in settings.ratio)  # theirs is width by height
        boxes, found = _boxes(ids, settings.scale, shapes, self.side, CROP, whole=True)
        height = min(self.side, round(self.side * shapes[1]))
        width = min(self.side, round(self.side / shapes[0]))
        central = torch.tensor([(self.side - height) // 2, (self.side - width) // 2, height, width])
        return torch.where(found[:, None], boxes, central)

    def _jitter(self, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Color jitter as slots: the number int64 [n] of an operation and its strength float64 [n]."""
        settings = self.settings.color_jitter
        if settings is None:
            return []
        given = settings.model_dump()
        ranges = {name: value for name, value in given.items() if value}
        drawn = [
            (name != "hue") + value * (2 * _uniform(ids, JITTER, list(given).index(name)) - 1)
            for name, value in ranges.items()
        ]
        order = torch.stack([_uniform(ids, ORDER, number) for number in range(len(drawn))]).argsort(0)
        numbers = torch.tensor([NUMBER[name] for name in ranges])
        return list(zip(numbers[order], torch.stack(drawn).gather(0, order), strict=True))

    def _policy(self, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
        """RandAugment or TrivialAugment as slots."""
        settings = self.settings
        if settings.trivialaugment:
            table, levels, count = strengths(wide=True, side=self.side), [_below(ids, LEVELS, LEVEL)], 1
        elif settings.randaugment:
            table, count = strengths(wide=False, side=self.side), settings.randaugment.ops
            levels = [torch.full_like(ids, settings.randaugment.magnitude)] * count
        else:
            return []
        numbers = torch.tensor([NUMBER[name] for name in POLICY])
        slots = []
        for slot, level in zip(range(count), levels, strict=True):
            chosen = _below(ids, len(POLICY), OPERATION, slot)
            side = (_bits(ids, SIGN, slot) < 0).long()
            slots.append((numbers[chosen], table[chosen, side, level]))
        return slots

    # -------------------------------------------------------------------------------------------- rendering

    def show(self, store: ImageStore, draws: Draws) -> tuple[Pixels, Tensor]:
        """The images of n views, and their labels on the device: int64 [n], or float32 [n,C] where images are mixed.

        Only the partners that are needed are read and rendered.  Nothing waits for the device.
        """
        count = len(draws.own.ids)
        added = np.flatnonzero(draws.shares < 1)
        looks = draws.own if draws.partners is None else draws.own.joined(draws.partners.part(added))
        stored, labels = store.gather(_sent(looks.rows, store.index_device))
        planes = self.render(stored, looks)
        if draws.partners is not None:
            planes, labels = self._mixed(planes, labels, draws, added)
        return Pixels(stored[:count], operations.interleaved(planes)), labels

    def _mixed(self, planes: Tensor, labels: Tensor, draws: Draws, added: np.ndarray) -> tuple[Tensor, Tensor]:
        """The images with their partners in them, uint8 [n,3,H,W], and labels float32 [n,C].

        After the n images come the partners of those numbered `added`.
        """
        count, device = len(draws.own.ids), planes.device
        shares, at = _sent(draws.shares, device)[:, None], _sent(added, device)
        index = _sent(_with(count, added), device)
        own, others = planes[:count].index_select(0, at), planes[count:]
        both = own
        if self.settings.cutmix:
            boxes = _sent(draws.pasted[added], device)
            both = operations.chosen(operations.inside(boxes, self.side, self.side), others, own)
        if self.settings.mixup:
            everywhere = operations.mixed(own, others, (shares.index_select(0, at)[:, 0] * ONE).int())
            boxed = (boxes[:, 2] > 0)[:, None, None, None] if self.settings.cutmix else None
            both = everywhere if boxed is None else operations.chosen(boxed, both, everywhere)
        classes = torch.arange(self.classes, device=device)
        first, second = ((part[:, None] == classes).float() for part in (labels[:count], labels.index_select(0, index)))
        planes[count:] = both
        return planes.index_select(0, index), shares * first + (1 - shares) * second

    def render(self, images: Tensor, looks: Look) -> Tensor:
        """Images uint8 [n,H,W,3] -> [n,3,H,W], cropped, flipped and changed as `looks` says, not yet mixed."""
        device, side = images.device, self.side
        if self._fill.device != device:  # once: copying it waits for the device
            self._fill = self._fill.to(device)
        fill = self._fill
        place = np.argsort(looks.mirrored, kind="stable")  # of each image: those of an operation are brought together
        images, boxes = images.index_select(0, _sent(place, device)), _sent(looks.boxes[place], device)
        if self.settings.resized_crop:
            images = operations.resized_crops(operations.planar(images), boxes)
        else:
            images = operations.crops(images, boxes, self._weak.crop_padding)
        mirrored = slice(len(images) - int(np.count_nonzero(looks.mirrored)), None)
        images[mirrored] = images[mirrored].flip(3)
        for slot in range(looks.operations.shape[1]):
            order = np.argsort(looks.operations[place, slot], kind="stable")
            place = place[order]
            images = images.index_select(0, _sent(order, device))
            self._operate(images, looks.operations[place, slot], looks.strengths[place, slot], fill)
        images = images.index_select(0, _sent(np.argsort(place), device))
        if self.settings.cutout:
            hole = operations.inside(_sent(looks.cutout, device), side, side)
            images = operations.chosen(hole, fill[:, None, None], images)
        if self.settings.erasing and len(erased := np.flatnonzero(looks.erased[:, 2])):
            at, hole = _sent(erased, device), operations.inside(_sent(looks.erased[erased], device), side, side)
            noise = self._noise(_sent(looks.ids[erased], device))
            noisy = torch.cat([images, operations.chosen(hole, noise, images.index_select(0, at))])
            images = noisy.index_select(0, _sent(_with(len(images), erased), device))
        return images

    def _operate(self, images: Tensor, numbers: np.ndarray, strengths: np.ndarray, fill: Tensor) -> None:
        """One operation on each of images uint8 [n,3,H,W], in place; they are sorted by the operations' numbers."""
        amounts = _sent(amounts_of(numbers, strengths, self.side), images.device)
        starts = np.searchsorted(numbers, np.arange(len(NAMES) + 1)).tolist()  # of each operation, and the end
        first = 1 + len(MOVES)
        moved = slice(starts[1], starts[first])
        if moved.start < moved.stop:
            images[moved] = operations.affine(images[moved], amounts[moved], fill)
        for name, (start, stop) in zip(operations.COLORS, pairwise(starts[first:]), strict=True):
            if start < stop:
                part = slice(start, stop)
                images[part] = operations.COLORS[name](images[part], amounts[part, 0])

    def _noise(self, ids: Tensor) -> Tensor:
        """Random bytes uint8 [n,3,H,W] for views int64 [n]."""
        count = 3 * self.side**2
        words = torch.arange(-(-count // 8), device=ids.device)
        bits = random_bits(0, -2 - 64 * ERASED - 63, ids[:, None] + words)
        return bits.view(torch.uint8)[:, :count].unflatten(1, (3, self.side, self.side))


def crops_of(config: Config) -> Augmentation:
    """What is left to the views of each model: nothing with a recipe, which crops and flips for all of them."""
    return NO_AUGMENTATION if config.augment.operations else Augmentation.of(config.data)


# ---------------------------------------------------------------------------------------------- strengths


@lru_cache(maxsize=4)
def strengths(*, wide: bool, side: int) -> Tensor:
    """The strength of each operation of POLICY, of both signs, at each level: float64 [14,2,31], as in torchvision.

    Degrees of rotations, tangents of shears, whole pixels of translations, factors, bits that are kept, the lowest
    value that is inverted.  `wide`: TrivialAugment's ranges.
    """
    top, level = LEVELS - 1, torch.arange(LEVELS)
    share = level.double() / top
    shear, turn, factor, bits = (0.99, 135, 0.99, 6) if wide else (0.3, 30, 0.9, 4)
    pixels = 32 * level // top if wide else 150 * side * level // (331 * top)
    signed = dict.fromkeys(MOVES, shear * share) | {"rotate": turn * share}
    signed |= dict.fromkeys(("translate_x", "translate_y"), pixels)
    factors = {name: factor * share for name in ("brightness", "saturation", "contrast", "sharpness")}
    unsigned = {"posterize": 8 - (bits * share).round(), "solarize": 255 - 255 * level // top}
    table = torch.zeros(len(POLICY), 2, LEVELS, dtype=torch.float64)
    for place, name in enumerate(POLICY):
        if name in signed:
            table[place] = torch.stack([signed[name], -signed[name]])
        elif name in factors:
            table[place] = torch.stack([1 + factors[name], 1 - factors[name]])
        elif name in unsigned:
            table[place] = unsigned[name]
    return table


def amounts_of(numbers: np.ndarray, strengths: np.ndarray, side: int) -> np.ndarray:
    """What `operations` take, int32 [n,6], for operations int8 [n] of NAMES and strengths float32 [n]."""
    units = np.zeros((len(numbers), 6))
    value = strengths.astype(np.float64)
    units[:, 0] = value * ONE
    is_plain = (numbers == NUMBER["posterize"]) | (numbers == NUMBER["solarize"])
    bits = np.where(numbers == NUMBER["posterize"], 256 - 2.0 ** (8 - value), value)
    units[is_plain, 0] = bits[is_plain]
    units[numbers == NUMBER["hue"], 0] *= 6
    moves = np.flatnonzero((numbers > 0) & (numbers <= len(MOVES)))
    units[moves] = _matrices(numbers[moves], value[moves], side) * ONE
    return np.rint(units).astype(np.int32)


def _matrices(numbers: np.ndarray, strengths: np.ndarray, side: int) -> np.ndarray:
    """Where each pixel comes from, float64 [n,6] as in `operations.affine`, for MOVES by their numbers.

    Shears leave the upper left corner where it is, rotations the center, as in torchvision.
    """
    amount = {name: np.where(numbers == NUMBER[name], strengths, 0.0) for name in MOVES}
    angle = np.deg2rad(amount["rotate"])
    cosine, sine = np.cos(angle), np.sin(angle)
    matrix = [
        [cosine, amount["shear_x"] - sine, -amount["translate_x"]],
        [amount["shear_y"] + sine, cosine, -amount["translate_y"]],
    ]
    center = np.where(numbers == NUMBER["rotate"], side / 2, 0.0)
    for row in matrix:  # from positions of pixels' centers about `center` to indices, which are rounded down
        row[2] = row[2] + (row[0] + row[1]) * (0.5 - center) + center
    return np.stack([*matrix[0], *matrix[1]], 1)


def _with(count: int, places: np.ndarray) -> np.ndarray:
    """Numbers of `count` rows, with those of the rows that follow them at `places`: int64 [count]."""
    index = np.arange(count)
    index[places] = np.arange(count, count + len(places))
    return index


def _sent(values: np.ndarray, device: torch.device) -> Tensor:
    """Values of the host on a device, without waiting for it."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
