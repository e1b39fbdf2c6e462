"""Views against a slow reference, one sample and one pixel row at a time; their randomness; the sampler."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from kd_core.data.plan import EpochPlan, Sampler, epoch_order
from kd_core.data.preprocess import Preprocess
from kd_core.data.views import Augmentation, Views, draw_views, random_bits, resized, view_ids
from kd_core.errors import UserError

MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
MASK = (1 << 64) - 1


def preprocess(size: int, resize: int | None = None, interpolation: str = "bicubic") -> Preprocess:
    return Preprocess(size, resize or size, interpolation, MEAN, STD)


def random_images(count: int, side: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, side, side, 3), generator=generator, dtype=torch.uint8)


def normalized(image: Tensor) -> Tensor:
    """[3,h,w] in [0, 255], the textbook way, in float64."""
    mean, std = (torch.tensor(value, dtype=torch.float64)[:, None, None] for value in (MEAN, STD))
    return (image.double() / 255 - mean) / std


def pillow_resized(image: Tensor, side: int, interpolation: str = "bicubic") -> Tensor:
    """Image uint8 [h,w,3] as Pillow, and so timm's and torchvision's transforms, resize it: [3,side,side]."""
    mode = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[interpolation]
    return torch.tensor(np.asarray(Image.fromarray(image.numpy()).resize((side, side), mode))).permute(2, 0, 1).double()


def assert_same_grays(view: Tensor, expected: Tensor) -> None:
    """Nearly all values are equal, and the others are two gray levels apart at most."""
    difference = (view.double() - expected).abs() * 255 * torch.tensor(STD, dtype=torch.float64)[:, None, None]
    assert difference.max() < 2.01 and (difference < 0.01).double().mean() > 0.99


def slow_view(image: Tensor, view: int, size: int, padding: int) -> Tensor:
    """One view of one image uint8 [h,w,3], with nothing batched."""
    grid = 2 * padding + 1
    flip, dy, dx = view // grid**2, view // grid % grid, view % grid
    chw = image.permute(2, 0, 1).double()
    if image.shape[0] == size:
        canvas = torch.zeros(3, size + 2 * padding, size + 2 * padding, dtype=torch.float64)
        canvas[:, padding : padding + size, padding : padding + size] = chw
    else:
        side = round(size * 8 / 7) if padding else size
        canvas = pillow_resized(image, side)
    slack = canvas.shape[1] - size
    top, left = (round(offset * slack / max(grid - 1, 1)) for offset in (dy, dx))
    crop = canvas[:, top : top + size, left : left + size]
    return normalized(crop.flip(2) if flip else crop)


# ------------------------------------------------------------------------------------------------ the pixels


def test_every_native_view_equals_the_reference() -> None:
    ids = torch.arange(Augmentation(4, True).num_views)
    images = random_images(len(ids), 32)
    views = Views(preprocess(32), 32, Augmentation(4, True)).train(images, ids)
    assert len(ids) == 162 and views.shape == (162, 3, 32, 32) and views.is_contiguous()
    for image, view_id, view in zip(images, ids.tolist(), views, strict=True):
        torch.testing.assert_close(view.double(), slow_view(image, view_id, 32, 4), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("stored", "size"), [(32, 56), (64, 28), (32, 48), (40, 35)])
def test_every_resized_view_equals_the_reference(stored: int, size: int) -> None:
    ids = torch.arange(Augmentation(4, True).num_views)
    images = random_images(3, stored)[torch.arange(len(ids)) % 3]
    views = Views(preprocess(size), stored, Augmentation(4, True)).train(images, ids)
    for image, view_id, view in zip(images, ids.tolist(), views, strict=True):
        assert_same_grays(view, slow_view(image, view_id, size, 4))


@pytest.mark.parametrize(("stored", "size", "padding"), [(32, 32, 0), (16, 24, 0), (8, 8, 2), (5, 5, 3)])
def test_other_paddings_and_odd_sizes(stored: int, size: int, padding: int) -> None:
    ids = torch.arange(Augmentation(padding, True).num_views)
    images = random_images(len(ids), stored)
    views = Views(preprocess(size), stored, Augmentation(padding, True)).train(images, ids)
    for image, view_id, view in zip(images, ids.tolist(), views, strict=True):
        assert_same_grays(view, slow_view(image, view_id, size, padding))


def test_the_same_id_shows_the_same_region_at_two_sizes() -> None:
    """Colors give the position away: red grows to the right, green downwards."""
    ramp = torch.linspace(0, 255, 64).round().to(torch.uint8)
    image = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64), torch.zeros_like(ramp).expand(64, 64)], -1)
    ids = torch.arange(Augmentation(4, True).num_views)
    images = image.expand(len(ids), 64, 64, 3)
    plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    small, large = (
        Views(Preprocess(size, size, "bicubic", **plain), 64, Augmentation(4, True)).train(images, ids)
        for size in (28, 112)
    )
    for corner in ((0, 0), (-1, -1), (0, -1)):
        difference = small[:, :2, *corner] - large[:, :2, *corner]
        assert difference.abs().max() < 0.035  # the two grids of offsets are rounded to whole pixels
    assert (small[:, 0, 0, 0] > small[:, 0, 0, -1]).equal(ids >= 81)  # red falls where flipped


def test_images_stored_at_the_right_size_are_cropped_without_resizing() -> None:
    images, views = random_images(1, 32), Views(preprocess(28), 32, Augmentation(4, True))
    expected = normalized(images[0].permute(2, 0, 1))[:, :28, 4:]
    assert torch.allclose(views.train(images, torch.tensor([8]))[0].double(), expected, rtol=0, atol=1e-6)


def test_center_view_is_the_clean_view() -> None:
    images, views = random_images(4, 32), Views(preprocess(32), 32, Augmentation(4, True))
    ids = torch.full((4,), 4 * 9 + 4)
    assert views.train(images, ids).equal(views.clean(images))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("stored", "size", "resize"), [(64, 56, 64), (80, 32, 37), (32, 56, 64), (32, 32, 32)])
def test_clean_view_is_that_of_timms_transforms(stored: int, size: int, resize: int, interpolation: str) -> None:
    images = random_images(2, stored)
    clean = Views(preprocess(size, resize, interpolation), stored, Augmentation(4, True)).clean(images)
    for image, view in zip(images, clean, strict=True):
        resized = pillow_resized(image, resize, interpolation)
        assert_same_grays(view, normalized(TF.center_crop(resized, [size, size])))


def hard_images(side: int) -> Tensor:
    """Black and white, where an error is largest: stripes, a chessboard, dots, blocks, noise; and random colors."""
    generator = torch.Generator().manual_seed(side)
    row, column = torch.arange(side)[:, None], torch.arange(side)[None]
    noise = torch.rand(4, side, side, generator=generator)
    blocks = torch.rand(side // 4 + 1, side // 4 + 1, generator=generator).gt(0.5)
    white = [
        (column % 2 == 0).expand(side, side), (row % 3 == 0).expand(side, side), (row + column) % 2 == 0,
        (column < side // 2).expand(side, side), (row == side // 2) & (column == side // 2),
        blocks.repeat_interleave(4, 0).repeat_interleave(4, 1)[:side, :side],
        noise[0] > 0.5, noise[1] > 0.9, noise[2] < 0.9,
    ]  # fmt: skip
    planes = 255 * torch.stack([*white, *(~one for one in white)]).to(torch.uint8)
    return torch.cat([planes[..., None].expand(-1, -1, -1, 3), random_images(4, side)])


DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
    ),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("stored", "side"), [(32, 224), (224, 32), (32, 36), (64, 48), (48, 64), (33, 32), (120, 105), (7, 96), (96, 7)]
)
def test_a_resize_is_within_two_levels_of_pillows(stored, side, interpolation, dtype, device) -> None:
    """Bytes on the CPU and floats, as other devices have them, whatever the type that they come in."""
    images = hard_images(stored)
    pixels = images.permute(0, 3, 1, 2).to(device)
    found = resized(pixels.to(dtype), side, interpolation).cpu()
    assert found.dtype == (torch.uint8 if pixels.device.type == "cpu" and dtype == torch.uint8 else torch.float32)
    assert found.double().frac().eq(0).all()
    expected = torch.stack([pillow_resized(image, side, interpolation) for image in images])
    difference = (found.double() - expected).abs()
    assert difference.max() <= 2 and difference.ne(0).double().mean() < 0.1


def test_autocast_does_not_reach_the_pixels() -> None:
    images, ids = hard_images(32), torch.arange(22)
    views = Views(preprocess(56), 32, Augmentation(4, True))
    for pixels in (images, images.float()):
        expected = views.train(pixels, ids), views.clean(pixels)
        with torch.autocast("cpu", torch.bfloat16):
            for view, other in zip((views.train(pixels, ids), views.clean(pixels)), expected, strict=True):
                assert view.dtype == torch.float32 and view.equal(other)


@pytest.mark.parametrize(("size", "resize"), [(48, 48), (28, 32), (32, 36)])
def test_views_of_floats_are_those_of_bytes(size: int, resize: int) -> None:
    """The resize of other devices, which have no resize of bytes, through clean and augmented views."""
    images, ids = hard_images(32), torch.arange(22) * 7
    views = Views(preprocess(size, resize), 32, Augmentation(4, True))
    for of_bytes, of_floats in (
        (views.clean(images), views.clean(images.float())),
        (views.train(images, ids), views.train(images.float(), ids)),
    ):
        assert_same_grays(of_floats, of_bytes.double())


def test_what_a_gpu_has_resized_otherwise_is_not_read_from_the_cache() -> None:
    """The version of the resize is part of the key where pixels are resized in floats, and only there."""
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    for stored, size, resize, resizes in ((32, 32, 32, False), (32, 32, 36, True), (32, 48, 48, True)):
        views = Views(preprocess(size, resize), stored, Augmentation(4, True))
        assert (views.recipe(gpu) != views.recipe(cpu)) is resizes and "float_resize" not in views.recipe(cpu)
        assert not resizes or views.recipe(gpu) == {**views.recipe(cpu), "float_resize": 2}
    whole = Views(preprocess(28, 32), 32, Augmentation(0, True))  # augmented views are resized, clean ones are not
    assert whole.recipe(gpu) != whole.recipe(cpu)
    cropped = Views(preprocess(28, 32), 32, Augmentation(4, True))  # its canvas has the stored size
    assert cropped.recipe(gpu) == cropped.recipe(cpu)


def test_normalization_is_exact_for_every_byte() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    clean = Views(preprocess(16), 16, Augmentation(4, True)).clean(images)
    torch.testing.assert_close(clean[0].double(), normalized(images[0].permute(2, 0, 1)), rtol=0, atol=1e-6)


def test_memory_format_and_type_change_no_value() -> None:
    images, ids = random_images(6, 32), torch.tensor([0, 80, 81, 161, 40, 121])
    views = Views(preprocess(32), 32, Augmentation(4, True))
    plain, last = views.train(images, ids), views.train(images, ids, channels_last=True)
    assert last.is_contiguous(memory_format=torch.channels_last) and last.equal(plain)
    assert views.train(images, ids, torch.bfloat16).equal(plain.bfloat16())


def test_images_are_left_alone() -> None:
    images = random_images(3, 32)
    before = images.clone()
    for size in (32, 28):
        views = Views(preprocess(size), 32, Augmentation(4, True))
        views.train(images, torch.tensor([0, 100, 161]))
        views.clean(images)
    assert images.equal(before)


def test_resize_smaller_than_crop_is_refused() -> None:
    with pytest.raises(UserError, match="resize 24 is smaller than the crop size 32"):
        Views(preprocess(32, 24), 32, Augmentation(4, True))


# -------------------------------------------------------------------------------------------- the randomness


def splitmix64(state: int) -> int:
    """The published generator's next output, in Python's own integers."""
    z = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_random_bits_are_splitmix64() -> None:
    assert splitmix64(0) == 0xE220A8397B1DCDAF  # the published first output for seed 0
    for seed, stream, row in [(0, 0, 0), (1, 2, 3), (2**31, 7, 49_999), (5, 400, 1_281_166)]:
        # `splitmix64` makes one step itself, so `part + 1` steps from the last key are `part` more
        key = 0
        for part in (seed, stream):
            key = splitmix64(key + 0x9E3779B97F4A7C15 * part)
        expected = splitmix64(key + 0x9E3779B97F4A7C15 * (row - 1))
        assert int(random_bits(seed, stream, torch.tensor([row]))) & MASK == expected


def chi_square(counts: Tensor) -> float:
    """Distance from uniform in standard deviations of the statistic."""
    expected = counts.sum() / len(counts)
    freedom = len(counts) - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom))


def test_views_are_uniform_over_rows_and_over_epochs() -> None:
    options = {"augmentation": Augmentation(4, True)}
    over_rows = view_ids(3, 7, torch.arange(50_000), **options)
    row = torch.tensor([17])
    over_epochs = torch.cat([view_ids(3, epoch, row, **options) for epoch in range(5_000)])
    for ids in (over_rows, over_epochs):
        assert 0 <= int(ids.min()) and int(ids.max()) < 162
        assert abs(chi_square(ids.bincount(minlength=162).double())) < 5
    pairs = over_rows * 162 + view_ids(3, 8, torch.arange(50_000), **options)  # successive epochs: independent
    assert abs(chi_square(pairs.bincount(minlength=162**2).double())) < 5


def test_views_do_not_depend_on_the_batch_and_can_be_replayed() -> None:
    options = {"augmentation": Augmentation(4, True)}
    rows = torch.arange(1_000)
    ids = view_ids(1, 2, rows, **options)
    shuffled = torch.randperm(1_000, generator=torch.Generator().manual_seed(0))
    assert view_ids(1, 2, shuffled, **options).equal(ids[shuffled])
    assert view_ids(1, 2, rows[500:501], **options).equal(ids[500:501])
    for other in (
        view_ids(2, 2, rows, **options),
        view_ids(1, 3, rows, **options),
        view_ids(2, 1, rows, **options),
    ):
        assert (other == ids).double().mean() < 0.05


def test_fewer_views_without_flip_or_crop() -> None:
    rows = torch.arange(10_000)
    for padding, flip, count in [(4, False, 81), (0, True, 2), (0, False, 1), (2, True, 50)]:
        assert Augmentation(padding, flip).num_views == count
        assert view_ids(0, 0, rows, Augmentation(padding, flip)).unique().equal(torch.arange(count))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_views_on_the_gpu_equal_those_on_the_cpu() -> None:
    rows, images = torch.arange(162), random_images(162, 32)
    ids = view_ids(1, 2, rows, Augmentation(4, True))
    assert view_ids(1, 2, rows.cuda(), Augmentation(4, True)).cpu().equal(ids)
    assert epoch_order(1, 2, rows.cuda()).cpu().equal(epoch_order(1, 2, rows))
    for size, tolerance in ((32, 1e-6), (48, 2.01 / (255 * min(STD)))):  # two gray levels
        views = Views(preprocess(size), 32, Augmentation(4, True))
        expected = views.train(images, ids)
        actual = views.train(images.cuda(), ids.cuda()).cpu()
        torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


# ----------------------------------------------------------------------------------------------- the sampler


def test_epoch_order_is_a_permutation_of_its_own_per_epoch_and_seed() -> None:
    rows = torch.arange(0, 3_000, 3)
    order = epoch_order(0, 5, rows)
    assert order.sort().values.equal(rows) and not order.equal(rows)
    assert order.equal(epoch_order(0, 5, rows))
    assert not order.equal(epoch_order(0, 6, rows)) and not order.equal(epoch_order(1, 5, rows))


def test_order_is_independent_of_views() -> None:
    """What an epoch shows first is not augmented in a special way."""
    order = epoch_order(0, 0, torch.arange(50_000))
    ids = view_ids(0, 0, order[:20_000], Augmentation(4, True))
    assert abs(chi_square(ids.bincount(minlength=162).double())) < 5


def plan(rows: Tensor, rank: int = 0, world_size: int = 1, **changes) -> EpochPlan:
    settings = {"seed": 0, "epoch": 3, "batch_size": 20, "augmentation": Augmentation(4, True), **changes}
    return EpochPlan(Sampler(rows), torch.device("cpu"), rank=rank, world_size=world_size, **settings)


@pytest.mark.parametrize("fixed", [None, 3])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_processes_share_the_global_batch(world_size: int, fixed: int | None) -> None:
    """Images, order and views are those of one process; the remainder is no batch."""
    rows, cpu = torch.arange(0, 206, 2), torch.device("cpu")
    order = epoch_order(0, 3, rows)
    drawn = draw_views(0, 3, order, Augmentation(4, True), fixed=fixed)
    plans = [plan(rows, rank, world_size, fixed=fixed) for rank in range(world_size)]
    assert {len(part) for part in plans} == {5}
    for step in range(5):
        parts = [part.batch(step, cpu) for part in plans]
        assert {len(part.rows) for part in parts} == {20 // world_size}
        whole = slice(20 * step, 20 * step + 20)
        for name, values in (("rows", order), ("ids", drawn.ids), ("numbers", drawn.numbers)):
            assert torch.cat([getattr(part, name) for part in parts]).equal(values[whole])


def test_an_epoch_of_less_than_a_batch_has_no_step() -> None:
    assert len(plan(torch.arange(19))) == 0
