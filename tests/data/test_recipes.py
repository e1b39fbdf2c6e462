"""Recipes against torchvision, one image at a time; what they draw; and that a view can be replayed."""

from __future__ import annotations

import hashlib
import io
import math
import os
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from scipy import stats
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from kd_core.config import Config
from kd_core.data import operations, recipes
from kd_core.data.dataset import Data, Split
from kd_core.data.image_store import ImageStore
from kd_core.data.plan import EpochPlan, Sampler
from kd_core.data.preprocess import Preprocess
from kd_core.data.recipes import LEVELS, MOVES, NAMES, NUMBER, POLICY, Recipe, amounts_of, strengths
from kd_core.data.views import Augmentation, Views, draw_views, fixed_views, view_ids
from kd_core.errors import UserError
from kd_core.export.dump_logits import dump_logits
from kd_core.models.predict import Images

CPU = torch.device("cpu")

SIDE = 32
COLORS = list(operations.COLORS)


@lru_cache(maxsize=1)
def photos() -> Tensor:
    """Real images uint8 [n,3,32,32]: pieces of scikit-learn's two photos, and 480 of CIFAR-100 where it is at hand."""
    pieces = []
    for photo in load_sample_images().images:
        planes = torch.tensor(photo).permute(2, 0, 1)
        pieces.append(planes.unfold(1, SIDE, SIDE).unfold(2, SIDE, SIDE).permute(1, 2, 0, 3, 4).flatten(0, 1))
    if folder := os.environ.get("KD_CIFAR100"):
        column = pyarrow.parquet.read_table(next(Path(folder).rglob("*test*.parquet")), columns=["img"])["img"]
        images = [Image.open(io.BytesIO(one["bytes"])) for one in column.slice(0, 480).to_pylist()]
        pieces.append(torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2))
    return torch.cat(pieces).contiguous()


def gap(found: Tensor, expected: Tensor) -> int:
    """The largest difference in gray levels."""
    return int((found.int() - expected.int()).abs().max())


def recipe(data: Data | None = None, *, crop_padding: int = 4, flip: bool = True, **augment) -> Recipe:
    values = {"data": {"source": "digits", "crop_padding": crop_padding, "flip": flip}, "augment": augment}
    return Recipe(Config.model_validate(values), data or data_of(photos()))


def data_of(planes: Tensor, classes: int = 10) -> Data:
    images = planes.permute(0, 2, 3, 1).contiguous()
    labels = torch.arange(len(images)) % classes
    rows = torch.arange(0, len(images), 2)  # a split leaves out rows of its source
    split = Split(images, labels, rows, "train", "f00d")
    return Data(
        split, None, classes, [], (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), images.shape[1], [], "f00d", labels.numpy(), list
    )


def store_of(data: Data) -> ImageStore:
    return ImageStore(data.train, CPU, on_device="host")


# -------------------------------------------------------------------------------------------- the operations


def apply(name: str, images: Tensor, values: Tensor | list[float], fill: tuple[int, ...] = (7, 8, 9)) -> Tensor:
    """An operation on images [n,3,H,W] with one strength each."""
    given = np.array([*map(float, values)], np.float32)
    amounts = torch.from_numpy(amounts_of(np.full(len(images), NUMBER[name]), given, SIDE))
    if name in MOVES:
        return operations.affine(images, amounts, torch.tensor(fill, dtype=torch.uint8))
    return operations.COLORS[name](images, amounts[:, 0])


def torchvisions(name: str, image: Tensor, value: float, fill: tuple[float, ...] = (7.0, 8.0, 9.0)) -> Tensor:
    """The same by torchvision, as its RandAugment calls it."""
    shear = math.degrees(math.atan(value))
    still = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], "fill": list(fill)}
    options = {
        "shear_x": {"shear": [shear, 0.0], "center": [0, 0]},
        "shear_y": {"shear": [0.0, shear], "center": [0, 0]},
        "translate_x": {"translate": [int(value), 0]},
        "translate_y": {"translate": [0, int(value)]},
    }
    if name in options:
        return TF.affine(image, **{**still, **options[name]})
    if name == "rotate":
        return TF.rotate(image, value, fill=list(fill))
    if name in ("brightness", "contrast", "saturation", "hue", "sharpness"):
        return getattr(TF, f"adjust_{name}")(image, value)
    if name == "posterize":
        return TF.posterize(image, int(value))
    if name == "solarize":
        return TF.solarize(image, value)
    return {"autocontrast": TF.autocontrast, "equalize": TF.equalize}[name](image)


def one_by_one(name: str, images: Tensor, values: Tensor) -> Tensor:
    """torchvision's results for images with a strength each; those with the same one in one call, for speed."""
    expected = torch.empty_like(images)
    for value in values.unique():
        expected[values == value] = torchvisions(name, images[values == value], float(value))
    return expected


def all_strengths(name: str) -> Tensor:
    """Those of both policies, of both signs, or color jitter's."""
    if name == "hue":
        return torch.linspace(-0.5, 0.5, 41, dtype=torch.float64)
    tables = [strengths(wide=wide, side=SIDE)[POLICY.index(name)].flatten() for wide in (False, True)]
    return torch.cat(tables).unique()


@pytest.mark.parametrize("name", COLORS)
def test_colors_are_torchvisions(name: str) -> None:
    """At most one gray level apart: torchvision's floats fall short of whole levels, and its gray is rounded down."""
    images = photos()
    values = all_strengths(name)[torch.arange(len(images)) % len(all_strengths(name))]
    found = apply(name, images, values)
    expected = one_by_one(name, images, values)
    different = (found != expected).double().mean()
    print(f"{name}: {different:.2%} of the values differ, by {gap(found, expected)} at most")
    assert gap(found, expected) <= 1 and found.dtype == torch.uint8
    if name in ("posterize", "solarize", "equalize"):
        assert not different


@pytest.mark.parametrize("name", MOVES)
def test_moves_are_torchvisions(name: str) -> None:
    """The same pixel, except where its position is within rounding of the border between two."""
    images = photos()
    values = all_strengths(name)[torch.arange(len(images)) % len(all_strengths(name))]
    found = apply(name, images, values)
    expected = one_by_one(name, images, values)
    different = (found != expected).any(1).double().mean()
    print(f"{name}: {different:.3%} of the pixels differ")
    assert different < 0.005
    if name.startswith("translate"):
        assert found.equal(expected)


def test_resized_crops_are_torchvisions() -> None:
    images, generator = photos(), torch.Generator().manual_seed(0)
    sizes = torch.randint(1, SIDE + 1, (len(images), 2), generator=generator)
    corners = (torch.rand(len(images), 2, generator=generator) * (SIDE + 1 - sizes)).long()
    boxes = torch.cat([corners, sizes], 1).int()
    found = operations.resized_crops(images, boxes)
    for image, box, view in zip(images, boxes.tolist(), found, strict=True):
        assert gap(view, TF.resized_crop(image, *box, [SIDE, SIDE], antialias=True)) <= 1
    whole = torch.tensor([[0, 0, SIDE, SIDE]], dtype=torch.int32).expand(len(images), 4)
    assert operations.resized_crops(images, whole).equal(images)


@pytest.mark.parametrize("side", [1, 2, 3, 7])
def test_small_images_and_those_of_one_color_work(side: int) -> None:
    for value in (0, 128, 255):
        images = torch.full((4, 3, side, side), value, dtype=torch.uint8)
        for name in COLORS:
            found = apply(name, images, [{"posterize": 4.0, "solarize": 100.0, "hue": 0.3}.get(name, 1.5)] * 4)
            expected = torchvisions(name, images[0], {"posterize": 4, "solarize": 100.0, "hue": 0.3}.get(name, 1.5))
            assert gap(found[0], expected) <= 1, name


def test_strengths_are_torchvisions() -> None:
    """Every level of both policies, of both signs."""
    spelled = {"Color": "saturation", "AutoContrast": "autocontrast", "ShearX": "shear_x", "ShearY": "shear_y"}
    spelled |= {"TranslateX": "translate_x", "TranslateY": "translate_y"}
    for policy, wide in ((v2.RandAugment, False), (v2.TrivialAugmentWide, True)):
        table = strengths(wide=wide, side=SIDE)
        assert tuple(spelled.get(name, name.lower()) for name in policy._AUGMENTATION_SPACE) == POLICY
        for name, (values, signed) in policy._AUGMENTATION_SPACE.items():
            own = spelled.get(name, name.lower())
            magnitudes = values(LEVELS, SIDE, SIDE)
            if magnitudes is None:
                continue
            for sign, found in zip((1, -1), table[POLICY.index(own)], strict=True):
                expected = magnitudes.double() * (sign if signed else 1)
                if own in ("brightness", "saturation", "contrast", "sharpness"):
                    expected = 1 + expected
                elif own.startswith("translate"):
                    expected = (expected * (1 + 1e-6)).trunc()  # torchvision's 16 pixels are 15.99... and so 15
                elif own == "solarize":
                    expected = (255 * expected - 1e-3).ceil()  # torchvision's shares are floats
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------ what is drawn


def drawn(count: int, own: Recipe) -> recipes.Draws:
    ids = view_ids(0, 3, torch.arange(count), own)
    return own.draws(torch.arange(count), ids)


def assert_uniform(counts: np.ndarray) -> None:
    assert stats.chisquare(counts).pvalue > 1e-4


def test_randaugment_draws_each_operation_alike_and_each_sign() -> None:
    own = recipe(randaugment={"ops": 3, "magnitude": 9})
    looks = drawn(20_000, own).own
    assert looks.operations.shape == looks.strengths.shape == (20_000, 3)
    for slot in range(3):
        assert_uniform(np.bincount(looks.operations[:, slot], minlength=len(NAMES))[[NUMBER[name] for name in POLICY]])
    pairs = looks.operations[:, 0].astype(int) * 32 + looks.operations[:, 1]  # slots are independent
    values, counts = np.unique(pairs, return_counts=True)
    assert_uniform(counts)
    assert len(values) == 14**2
    turned = looks.strengths[looks.operations == NUMBER["rotate"]]
    assert set(np.abs(turned).tolist()) == {9.0}
    assert_uniform(np.array([(turned > 0).sum(), (turned < 0).sum()]))
    brighter = looks.strengths[looks.operations == NUMBER["brightness"]]
    assert np.unique(brighter).tolist() == pytest.approx([0.73, 1.27])


def test_trivialaugment_draws_one_operation_and_each_level_alike() -> None:
    looks = drawn(20_000, recipe(trivialaugment=True)).own
    assert looks.operations.shape == (20_000, 1)
    assert_uniform(np.bincount(looks.operations[:, 0], minlength=len(NAMES))[[NUMBER[name] for name in POLICY]])
    turned = looks.strengths[looks.operations == NUMBER["rotate"]]
    values, counts = np.unique(turned, return_counts=True)
    assert len(values) == 2 * LEVELS - 1 and values.max() == 135
    assert_uniform(np.concatenate([counts[:30], counts[31:]]))


def test_color_jitter_draws_uniform_factors_in_every_order() -> None:
    looks = drawn(24_000, recipe(color_jitter={"brightness": 0.4, "hue": 0.1})).own
    four = drawn(24_000, recipe(color_jitter={"hue": 0.2})).own.operations
    orders, counts = np.unique(four, axis=0, return_counts=True)
    assert_uniform(counts)
    assert len(orders) == 24
    for name, low, high in (("brightness", 0.6, 1.4), ("hue", -0.1, 0.1), ("contrast", 0.6, 1.4)):
        values = looks.strengths[looks.operations == NUMBER[name]]
        assert len(values) == 24_000
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-4


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixup_shares_are_from_the_beta_distribution(alpha: float) -> None:
    draws = drawn(20_000, recipe(mixup={"alpha": alpha}))
    points = np.linspace(0.001, 0.999, 333)  # beyond, a share is rounded to 0 or 1, of steps of 1/65536
    found = np.searchsorted(np.sort(draws.shares), points) / 20_000
    assert np.abs(found - stats.beta(alpha, alpha).cdf(points)).max() < 1.95 / 20_000**0.5  # Kolmogorov, 1 in 1000
    assert not draws.pasted.any() and draws.partners is not None
    assert set(draws.partners.rows.tolist()) == set(data_of(photos()).train.rows.tolist())  # training rows, all of them
    assert_uniform(np.bincount(draws.partners.rows)[::2])


def test_cutmix_boxes_have_the_papers_areas_and_lie_everywhere() -> None:
    draws = drawn(40_000, recipe(cutmix={"alpha": 1.0, "probability": 0.5}))
    top, left, height, width = draws.pasted.T.astype(int)
    there = height * width > 0
    # half of the images are chosen, and a box of less than two pixels is none
    assert there.mean() == pytest.approx(0.5 * (1 - 1 / 16**2), abs=0.01)
    assert ((draws.shares < 1) == there).all()
    np.testing.assert_allclose(draws.shares, 1 - height * width / SIDE**2, atol=1e-6)
    whole = there & (top > 0) & (left > 0) & (top + height < SIDE) & (left + width < SIDE)
    assert (height[whole] == width[whole]).all() and (height[whole] % 2 == 0).all()
    assert_uniform(np.bincount(top[whole & (height == 2)], minlength=30)[1:])
    # The side is 32 times the root of a uniform number, rounded down to even; a center within the border is one of 31
    # less the side, in each direction.
    half = np.arange(1, 16)
    expected = ((half + 1) ** 2 - half**2) / 16**2 * ((31 - 2 * half) / 32) ** 2
    counts = np.bincount(height[whole] // 2, minlength=16)[1:16]
    assert stats.chisquare(counts, expected / expected.sum() * counts.sum()).pvalue > 1e-4
    both = recipe(mixup={"alpha": 1.0}, cutmix={"alpha": 1.0, "probability": 0.3})
    shares = drawn(20_000, both)
    assert (shares.pasted[:, 2] > 0).mean() == pytest.approx(0.3, abs=0.02)
    assert (shares.shares < 1).mean() > 0.99  # the others are mixed up


def test_resized_crops_have_torchvisions_areas_and_shapes() -> None:
    looks = drawn(4_000, recipe(resized_crop={"scale": [0.2, 0.9], "ratio": [0.75, 4 / 3]})).own
    there = v2.RandomResizedCrop(SIDE, scale=(0.2, 0.9))
    torch.manual_seed(0)
    example = photos()[0]
    expected = np.array([[one[key] for key in ("top", "left", "height", "width")]
                         for one in (there.make_params([example]) for _ in range(4_000))])  # fmt: skip
    for part in range(4):
        assert stats.ks_2samp(looks.boxes[:, part], expected[:, part]).pvalue > 1e-4
    area = [box[:, 2] * box[:, 3] for box in (looks.boxes, expected)]
    assert stats.ks_2samp(*area).pvalue > 1e-4
    narrow = drawn(50, recipe(resized_crop={"scale": [1.0, 1.0], "ratio": [2.0, 2.0]})).own  # never fits
    assert (narrow.boxes == [8, 0, 16, 32]).all()


def test_erased_boxes_have_torchvisions_areas_and_shapes() -> None:
    looks = drawn(16_000, recipe(erasing={"probability": 0.25})).own
    there = looks.erased[:, 2] > 0
    assert there.mean() == pytest.approx(0.25, abs=0.015)
    torch.manual_seed(0)
    erasing, example = v2.RandomErasing(p=1.0, scale=(0.02, 1 / 3), ratio=(0.3, 10 / 3)), photos()[0]
    found = [erasing.make_params([example]) for _ in range(4_000)]
    expected = np.array([[one[key] for key in "ijhw"] for one in found])
    for part in range(4):
        assert stats.ks_2samp(looks.erased[there, part], expected[:, part]).pvalue > 1e-4


def test_cutouts_are_centered_anywhere() -> None:
    looks = drawn(20_000, recipe(cutout=8)).own
    for axis in range(2):
        assert_uniform(np.bincount(looks.cutout[:, axis] + 4, minlength=SIDE))
    assert (looks.cutout[:, 2:] == 8).all()


def test_another_operation_changes_nothing_of_the_others() -> None:
    alone = drawn(200, recipe(randaugment={}, mixup={}))
    more = drawn(200, recipe(randaugment={}, mixup={}, erasing={}, cutout=4, resized_crop={}, color_jitter={}))
    assert (more.own.operations[:, 3:] == alone.own.operations).all()
    assert (more.shares == alone.shares).all() and (more.partners.rows == alone.partners.rows).all()


def test_crop_and_flip_are_those_without_a_recipe() -> None:
    data = data_of(photos())
    own = recipe(data, erasing={"probability": 1.0})
    rows = data.train.rows
    weak = view_ids(5, 2, rows, Augmentation(4, True))
    ids = view_ids(5, 2, rows, own)
    assert own._weak.view_of(ids).equal(weak)
    looks = own.draws(rows, ids).own
    assert (looks.mirrored == (weak >= 81).numpy()).all()
    pixels, _ = own.show(store_of(data), own.draws(rows, ids))
    views = Views(Preprocess(SIDE, SIDE, "bicubic", (0.0,) * 3, (1 / 255,) * 3), SIDE, Augmentation(4, True))
    same = (pixels.shown == views.train(pixels.stored, weak).permute(0, 2, 3, 1)).all(3)
    erased = operations.inside(torch.from_numpy(looks.erased), SIDE, SIDE)[:, 0]
    assert bool(same[~erased].all()) and same[erased].double().mean() < 0.01


# --------------------------------------------------------------------------------------------------- replaying

EVERYTHING = {
    "resized_crop": {}, "color_jitter": {"hue": 0.1}, "randaugment": {}, "cutout": 6, "erasing": {}, "mixup": {},
    "cutmix": {},
}  # fmt: skip


def shown(own: Recipe, data: Data, rows: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    pixels, labels = own.show(store_of(data), own.draws(rows, ids))
    return pixels.shown, labels


@pytest.mark.parametrize(
    "augment", [{name: value} for name, value in EVERYTHING.items()] + [{"trivialaugment": True}, EVERYTHING],
    ids=lambda augment: "+".join(augment),
)  # fmt: skip
def test_a_view_is_the_same_in_every_batch(augment: dict) -> None:
    data = data_of(photos())
    own, again = recipe(data, **augment), recipe(data, **augment)
    rows = data.train.rows[:41]
    ids = view_ids(1, 2, rows, own)
    images, labels = shown(own, data, rows, ids)
    assert images.dtype == torch.uint8 and images.shape == (41, SIDE, SIDE, 3)
    order = torch.randperm(41, generator=torch.Generator().manual_seed(0))
    for size in (1, 7, 30):
        parts = [shown(again, data, rows[part], ids[part]) for part in order.split(size)]
        assert torch.cat([part for part, _ in parts]).equal(images[order])
        assert torch.cat([part for _, part in parts]).equal(labels[order])
    other, _ = shown(own, data, rows, view_ids(1, 3, rows, own))
    assert (other != images).flatten(1).any(1).double().mean() > 0.3


def test_images_and_what_is_drawn_never_change() -> None:
    """A view that is stored in caches means the same for ever; `recipes.VERSION` says when it does not."""
    images = torch.randint(0, 256, (120, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    data = data_of(images // 2 + images[:1] // 2)
    own, rows = recipe(data, **EVERYTHING), data.train.rows
    images, labels = shown(own, data, rows, fixed_views(rows, torch.full_like(rows, 3), own))
    digest = hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()[:16]
    assert (recipes.VERSION, digest) == (1, "231a85652a07eff7")


@pytest.mark.parametrize("fixed", [None, 3])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_processes_show_what_one_shows(world_size: int, fixed: int | None) -> None:
    data = data_of(photos())
    own, store = recipe(data, randaugment={}, cutmix={}), store_of(data)
    options = {"seed": 4, "epoch": 1, "batch_size": 20, "augmentation": own, "fixed": fixed}
    whole = EpochPlan(Sampler(data.train.rows), CPU, rank=0, world_size=1, **options)
    sampler = Sampler(data.train.rows)
    plans = [EpochPlan(sampler, CPU, rank=rank, world_size=world_size, **options) for rank in range(world_size)]
    for step in (0, 5):
        expected, labels = own.show(store, whole.draws(range(step, step + 1)))
        parts = [own.show(store, plan.draws(range(step, step + 1))) for plan in plans]
        assert torch.cat([pixels.shown for pixels, _ in parts]).equal(expected.shown)
        assert torch.cat([part for _, part in parts]).equal(labels)


def test_a_step_is_the_same_alone_and_within_a_block_of_steps() -> None:
    data = data_of(photos())
    own = recipe(data, randaugment={}, mixup={})
    sampler = Sampler(data.train.rows)
    plan = EpochPlan(sampler, CPU, seed=0, epoch=0, batch_size=9, rank=0, world_size=1, augmentation=own)
    images = Images(data.train, CPU, "host", own)
    steps = [*range(len(plan))]
    assert len(plan) * 9 > 0.9 * len(data.train)
    for step in (*steps, 0, steps[-1], 3):
        pixels, labels = images.show(plan, step)
        expected, others = own.show(images.store, plan.draws(range(step, step + 1)))
        assert pixels.shown.equal(expected.shown) and pixels.stored.equal(expected.stored) and labels.equal(others)


def test_fixed_views_do_not_depend_on_the_seed() -> None:
    data = data_of(photos())
    own, rows = recipe(data, randaugment={}, mixup={}), data.train.rows
    for seed in range(3):
        view = draw_views(seed, 7, rows, own, fixed=4)
        assert view.ids.equal(fixed_views(rows, view.numbers, own)) and set(view.numbers.tolist()) == {0, 1, 2, 3}


# ------------------------------------------------------------------------------------------------------ mixing


def test_mixed_images_and_labels_are_those_of_both() -> None:
    data = data_of(photos())
    rows = data.train.rows[:200]
    plain = recipe(data, cutout=1)  # crops and flips alone, and one pixel
    for augment in ({"mixup": {"alpha": 1.0}}, {"cutmix": {"probability": 1.0}}):
        own = recipe(data, cutout=1, **augment)
        draws = own.draws(rows, view_ids(0, 0, rows, own))
        pixels, labels = own.show(store_of(data), draws)
        first, second = (
            plain.show(store_of(data), plain.draws(torch.from_numpy(look.rows), torch.from_numpy(look.ids)))[0].shown
            for look in (draws.own, draws.partners)
        )
        shares = torch.from_numpy(draws.shares)
        wide = shares[:, None, None, None].double()
        if "mixup" in augment:
            assert gap(pixels.shown, (wide * first + (1 - wide) * second).add(0.5).floor()) <= 0
        else:
            inside = operations.inside(torch.from_numpy(draws.pasted), SIDE, SIDE)[:, 0, :, :, None]
            assert pixels.shown.equal(torch.where(inside, second, first))
            torch.testing.assert_close(1 - shares, inside.flatten(1).float().mean(1))
        hot = [torch.nn.functional.one_hot(data.train.labels[torch.from_numpy(look.rows)], 10) for look in draws[:2]]
        assert labels.dtype == torch.float32
        torch.testing.assert_close(labels, shares[:, None] * hot[0] + (1 - shares[:, None]) * hot[1])
        torch.testing.assert_close(labels.sum(1), torch.ones(200))


def test_the_store_is_left_alone() -> None:
    data = data_of(photos())
    before, own = data.train.images.clone(), recipe(data, **EVERYTHING)
    rows = data.train.rows
    pixels, _ = own.show(store_of(data), own.draws(rows, view_ids(0, 0, rows, own)))
    assert data.train.images.equal(before) and pixels.stored.equal(before[rows])


def test_files_of_logits_hold_no_views_of_a_recipe() -> None:
    config = Config.model_validate({"data": {"source": "digits"}, "augment": {"erasing": {}}})
    predict = SimpleNamespace(config=config, accelerator=None)
    with pytest.raises(UserError, match=r"--dump-views: 2: files of logits hold crops and flips.* augment.erasing"):
        dump_logits(Path("logits.safetensors"), 2, None, None, predict)  # type: ignore[arg-type]


def test_a_cutout_larger_than_the_images_is_refused() -> None:
    with pytest.raises(UserError, match=r"augment.cutout: 33 is larger than the stored images, of 32 pixels"):
        recipe(cutout=33)
