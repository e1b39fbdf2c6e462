"""Operations on batches of images in bytes, each image with a strength of its own.

Images are uint8 [n,3,H,W]; `amounts` are integers, int32 [n] or [n,6].  All arithmetic is in integers, with fractions in
units of 1/65536, so that an image comes out the same on every device and in a batch of any size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BITS = 16
ONE = 1 << BITS
GRAY = (19595, 38470, 7471)  # the shares of red, green and blue in Pillow's gray, of 65536
THIRTEENTH = 80660  # of 2^20: exact for the sums of 13 bytes


# ------------------------------------------------------------------------------------------------- positions


def affine(images: Tensor, amounts: Tensor, fill: Tensor) -> Tensor:
    """Each pixel from the one that `amounts` [n,6] = (a, b, c, d, e, f) names, or `fill` uint8 [3] outside.

    The pixel in column x and row y is the one in column a*x + b*y + c and row d*x + e*y + f, rounded down.
    """
    count, _, height, width = images.shape
    x = torch.arange(width, dtype=torch.int32, device=images.device)
    y = torch.arange(height, dtype=torch.int32, device=images.device)[:, None]
    a, b, c, d, e, f = amounts[:, :, None, None].unbind(1)
    column = (a * x + (b * y + c)) >> BITS
    row = (d * x + (e * y + f)) >> BITS
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    place = (row * width + column).where(inside, 0).view(count, 1, -1).long()
    found = images.flatten(2).gather(2, place.expand(-1, 3, -1)).view_as(images)
    return torch.where(inside[:, None], found, fill[:, None, None])


def resized_crops(images: Tensor, boxes: Tensor, mirrored: Tensor) -> Tensor:
    """The boxes int32 [n,4] = (top, left, height, width) of square images, resized to all of it, bilinearly.

    `mirrored` bool [n] exchanges left and right.  No box is larger than the image, so none shrinks and needs smoothing.
    Rounded to bytes between columns and rows, as in Pillow.
    """
    side = images.shape[-1]
    top, left, height, width = boxes[:, :, None].unbind(1)
    first, second, share = _taps(left, width, side)
    first, second, share = (torch.where(mirrored[:, None], values.flip(1), values) for values in (first, second, share))
    across = _between(images, first[:, None, None], second[:, None, None], share[:, None, None], 3)
    first, second, share = _taps(top, height, side)
    return _between(across, first[:, None, :, None], second[:, None, :, None], share[:, None, :, None], 2)


def _taps(start: Tensor, length: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which two of the pixels [start, start + length) make each of `side` new ones: int64 [n,side]; the second's share."""
    center = torch.arange(1, 2 * side, 2, device=start.device) * length.long() * ONE // (2 * side) - ONE // 2
    place = torch.minimum(center.clamp(min=0), (length.long() - 1) * ONE)
    first = place >> BITS
    second = torch.minimum(first + 1, length.long() - 1)
    return start + first, start + second, (place & (ONE - 1)).int()


def _between(images: Tensor, first: Tensor, second: Tensor, share: Tensor, dimension: int) -> Tensor:
    """Bytes between those at two places along a dimension."""
    low, high = (images.gather(dimension, place.expand_as(images)).int() for place in (first, second))
    return _bytes(low * ONE + (high - low) * share + ONE // 2)


# ---------------------------------------------------------------------------------------------------- colors


def _bytes(values: Tensor) -> Tensor:
    """uint8 of int32 in units of 1/65536, rounded down and clipped."""
    return (values >> BITS).clamp_(0, 255).to(torch.uint8)


def _column(amounts: Tensor) -> Tensor:
    return amounts[:, None, None, None]


def gray(images: Tensor) -> Tensor:
    """Gray levels int32 [n,1,H,W], as Pillow converts to them."""
    red, green, blue = images.int().split(1, 1)
    return (red * GRAY[0] + green * GRAY[1] + blue * GRAY[2] + ONE // 2) >> BITS


def brightness(images: Tensor, amounts: Tensor) -> Tensor:
    """`amounts` times the image."""
    return _bytes(images.int() * _column(amounts))


def contrast(images: Tensor, amounts: Tensor) -> Tensor:
    """`amounts` times the image, and the rest its mean gray level."""
    levels = gray(images).flatten(1)
    mean = levels.sum(1) * (ONE - amounts).long() // levels.shape[1]
    return _bytes(images.int() * _column(amounts) + _column(mean.int()))


def saturation(images: Tensor, amounts: Tensor) -> Tensor:
    """`amounts` times the image, and the rest its gray."""
    return _bytes(images.int() * _column(amounts) + gray(images) * (ONE - _column(amounts)))


def sharpness(images: Tensor, amounts: Tensor) -> Tensor:
    """`amounts` times the image, and the rest its blurred form (5/13 center, 1/13 each neighbor), borders left alone."""
    if min(images.shape[-2:]) < 3:
        return images
    values = images.int()
    center = values[..., 1:-1, 1:-1]
    rows = values[..., :-2, :] + values[..., 1:-1, :] + values[..., 2:, :]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * center
    blurred = ((total + 6) * THIRTEENTH) >> 20
    sharp = images.clone()
    sharp[..., 1:-1, 1:-1] = _bytes(center * _column(amounts) + blurred * (ONE - _column(amounts)))
    return sharp


def hue(images: Tensor, amounts: Tensor) -> Tensor:
    """Colors turned by `amounts` sixths of the color circle; lightest and darkest channel keep their values.

    Hue is counted in units of the range of the three channels, so nothing is divided.
    """
    values = images.int()
    red, green, blue = values.unbind(1)
    highest = values.amax(1)
    span = highest - values.amin(1)
    angle = torch.where(
        highest == red,
        green - blue,
        torch.where(highest == green, blue - red + 2 * span, red - green + 4 * span),
    )
    angle = angle * ONE + span * amounts[:, None, None]
    turned = []
    for corner in (5, 3, 1):  # where red, green and blue are lowest, less two sixths
        distance = (angle + corner * span * ONE).remainder(6 * ONE * span.clamp(min=1))
        below = torch.minimum(distance, 4 * span * ONE - distance).clamp(min=0)
        turned.append(highest * ONE - torch.minimum(below, span * ONE) + ONE // 2)
    return _bytes(torch.stack(turned, 1))


def posterize(images: Tensor, amounts: Tensor) -> Tensor:
    """The highest bits alone, those of the mask `amounts`."""
    return images & _column(amounts.to(torch.uint8))


def solarize(images: Tensor, amounts: Tensor) -> Tensor:
    """Values of at least `amounts` inverted."""
    return torch.where(images >= _column(amounts), 255 - images, images)


def autocontrast(images: Tensor, amounts: Tensor) -> Tensor:
    """Each channel stretched to all of 0 to 255."""
    least, most = images.amin((2, 3), keepdim=True).int(), images.amax((2, 3), keepdim=True).int()
    span = most - least
    factor = (255 * ONE + span - 1) // span.clamp(min=1)  # rounded up: the highest value becomes 255
    constant = span == 0
    return _bytes((images - least.where(~constant, 0)) * factor.where(~constant, ONE))


def equalize(images: Tensor, amounts: Tensor) -> Tensor:
    """Each channel with an even histogram, by Pillow's table."""
    flat = images.flatten(2).flatten(0, 1).long()
    counts = flat.new_zeros(len(flat), 256).scatter_add_(1, flat, flat.new_ones(1, 1).expand_as(flat))
    last = counts.gather(1, flat.amax(1, keepdim=True))
    step = (flat.shape[1] - last) // 255
    below = counts.cumsum(1) - counts
    table = ((below + step // 2) // step.clamp(min=1)).clamp_(0, 255)
    table = table.where(step > 0, torch.arange(256, device=images.device)).to(torch.uint8)
    return table.gather(1, flat).view_as(images)


COLORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    operation.__name__: operation
    for operation in (
        brightness, contrast, saturation, hue, sharpness, posterize, solarize, autocontrast, equalize
    )
}  # fmt: skip


# ------------------------------------------------------------------------------------------- parts of images


def inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Which pixels lie in boxes int32 [n,4] = (top, left, height, width): bool [n,H,W]."""
    top, left, tall, wide = boxes[:, :, None].unbind(1)
    y, x = torch.arange(height, device=boxes.device), torch.arange(width, device=boxes.device)
    rows, columns = (y >= top) & (y < top + tall), (x >= left) & (x < left + wide)
    return rows[:, :, None] & columns[:, None]


def mixed(images: Tensor, others: Tensor, amounts: Tensor) -> Tensor:
    """`amounts` times the images and the rest of the others, rounded to the nearest byte."""
    share = _column(amounts)
    return _bytes(images.int() * share + others.int() * (ONE - share) + ONE // 2)
