"""Operations on batches of images in bytes, each image with a strength of its own.

Images are uint8 [n,3,H,W]; `amounts` are integers, int32 [n] or [n,6].  All arithmetic is in
integers, with fractions in units of 1/65536, so that an image comes out the same on every device and in a batch of any
size.  Choices between bytes are made by masks of bits: `torch.where` on bytes takes ten times as long on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BITS = 16
ONE = 1 << BITS
GRAY = (19595, 38470, 7471)  # the shares of red, green and blue in Pillow's gray, of 65536
THIRTEENTH = 80660  # of 2^20: exact for the sums of 13 bytes


def _column(amounts: Tensor) -> Tensor:
    return amounts[:, None, None, None]


def _bytes(values: Tensor) -> Tensor:
    """uint8 of int32 in units of 1/65536, rounded down and clipped; in place."""
    return values.bitwise_right_shift_(BITS).clamp_(0, 255).to(torch.uint8)


def chosen(mask: Tensor, images: Tensor, others: Tensor) -> Tensor:
    """Bytes of `images` where the bool `mask` is set, else those of `others`; all broadcast."""
    bits = mask.to(torch.uint8) * 255
    return (images & bits) | (others & ~bits)


# ------------------------------------------------------------------------------------------------- positions


def _taken(canvas: Tensor, places: Tensor) -> Tensor:
    """The pixels of canvas uint8 [n,3,h,w] at places int32 [n,H,W], counted in rows: uint8 [n,3,H,W]."""
    wanted = places.flatten(1)[:, None].long().expand(-1, 3, -1)
    return canvas.flatten(2).gather(2, wanted).unflatten(2, places.shape[1:])


def crops(images: Tensor, boxes: Tensor, padding: int) -> Tensor:
    """Crops of stored images uint8 [n,H,W,3], of their size, after black padding: uint8 [n,3,H,W].

    boxes int32 [n,4]: the offsets from the top and the left come first.
    """
    canvas = F.pad(images, (0, 0, *[padding] * 4)) if padding else images
    return planar(windows(canvas, boxes[:, 0], boxes[:, 1], *images.shape[1:3]).view(images.shape))


def windows(canvas: Tensor, top: Tensor, left: Tensor, height: int, width: int) -> Tensor:
    """The window of each of canvas [n,H,W,3] at its integer offsets [n], as rows of pixels: [n,height,width*3].

    Every run of width*3 values that starts at a pixel is a row of one overlapping strided tensor; selecting such rows
    copies whole runs, where indexing by pixel would copy values one by one.
    """
    canvas = canvas.contiguous()
    count, tall, wide, _ = canvas.shape
    runs = canvas.as_strided((count * tall * wide - width + 1, width * 3), (3, 1))
    steps = torch.arange(max(count, height), device=canvas.device)
    first = (steps[:count] * tall + top) * wide + left
    return runs.index_select(0, (first[:, None] + steps[:height] * wide).flatten()).view(count, height, width * 3)


def planar(images: Tensor) -> Tensor:
    """[n,H,W,3] -> [n,3,H,W]."""
    return _stacked(images.unbind(3), 1)


def interleaved(planes: Tensor) -> Tensor:
    """[n,3,H,W] -> [n,H,W,3]."""
    return _stacked(planes.unbind(1), 3)


def _stacked(parts: Sequence[Tensor], dimension: int) -> Tensor:
    """Bytes stacked.  On a CPU NumPy does it, which takes a third of torch's time where they are not contiguous."""
    if parts[0].device.type != "cpu":
        return torch.stack(list(parts), dimension)
    return torch.from_numpy(np.stack([part.numpy() for part in parts], dimension))


def affine(images: Tensor, amounts: Tensor, fill: Tensor) -> Tensor:
    """Each pixel from the one that `amounts` [n,6] = (a, b, c, d, e, f) names, or `fill` uint8 [3] outside.

    The pixel in column x and row y is the one in column a*x + b*y + c and row d*x + e*y + f, rounded down.
    """
    height, width = images.shape[2:]
    x = torch.arange(width, dtype=torch.int32, device=images.device)
    y = torch.arange(height, dtype=torch.int32, device=images.device)[:, None]
    a, b, c, d, e, f = amounts[:, :, None, None].unbind(1)
    # a frame of one pixel stands for all that lies outside
    column = (a * x + (b * y + c)).bitwise_right_shift_(BITS).clamp_(-1, width)
    row = (d * x + (e * y + f)).bitwise_right_shift_(BITS).clamp_(-1, height)
    framed = fill[:, None, None].expand(len(images), 3, height + 2, width + 2).clone()
    framed[:, :, 1:-1, 1:-1] = images
    return _taken(framed, row.add_(1).mul_(width + 2).add_(column).add_(1))


def resized_crops(images: Tensor, boxes: Tensor) -> Tensor:
    """The boxes int32 [n,4] = (top, left, height, width) of square images, resized to all of it, bilinearly.

    No box is larger than the image, so none shrinks and needs smoothing.  Rounded to bytes between columns and rows, as
    in Pillow.
    """
    side = images.shape[2]
    top, left, height, width = boxes[:, :, None].unbind(1)
    first, second, share = _taps(left, width, side)
    across = _between(images, first[:, None, None], second[:, None, None], share[:, None, None], 3)
    first, second, share = _taps(top, height, side)
    return _between(across, first[:, None, :, None], second[:, None, :, None], share[:, None, :, None], 2)


def _taps(start: Tensor, length: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which two pixels of [start, start + length) make each new one, int64 [n,side], and the second's share."""
    center = torch.arange(1, 2 * side, 2, device=start.device) * length.long() * ONE // (2 * side) - ONE // 2
    place = torch.minimum(center.clamp(min=0), (length.long() - 1) * ONE)
    first = place >> BITS
    second = torch.minimum(first + 1, length.long() - 1)
    return start + first, start + second, (place & (ONE - 1)).int()


def _between(images: Tensor, first: Tensor, second: Tensor, share: Tensor, dimension: int) -> Tensor:
    """Bytes between those at two places along a dimension."""
    low, high = (images.gather(dimension, place.expand_as(images)).int() for place in (first, second))
    return _bytes((high - low).mul_(share).add_(low.mul_(ONE)).add_(ONE // 2))


# ------------------------------------------------------------------------------------------------- colors


def brightness(images: Tensor, amounts: Tensor) -> Tensor:
    """`amounts` times the image."""
    return _bytes(images.int().mul_(_column(amounts)))


def contrast(images: Tensor, amounts: Tensor) -> Tensor:
    """`amounts` times the image, and the rest its mean gray level."""
    levels = gray(images).flatten(1)
    mean = levels.sum(1) * (ONE - amounts).long() // levels.shape[1]
    return _bytes(images.int().mul_(_column(amounts)).add_(_column(mean.int())))


def posterize(images: Tensor, amounts: Tensor) -> Tensor:
    """The highest bits alone, those of the mask `amounts`."""
    return images & _column(amounts).to(torch.uint8)


def solarize(images: Tensor, amounts: Tensor) -> Tensor:
    """Values of at least `amounts` inverted."""
    # The difference is negative for them, and its sign in all bits inverts a byte.
    return images ^ (_column(amounts) - 1 - images.int()).bitwise_right_shift_(31).to(torch.uint8)


def autocontrast(images: Tensor, amounts: Tensor) -> Tensor:
    """Each channel stretched to all of 0 to 255; one of a single value stays."""
    least, most = (edge(images, (2, 3), keepdim=True).int() for edge in (torch.amin, torch.amax))
    span = most - least
    # rounded up: the highest value becomes 255
    factor = torch.where(span > 0, (255 * ONE + span - 1) // span.clamp(min=1), ONE)
    return _bytes(images.int().sub_(torch.where(span > 0, least, 0)).mul_(factor))


def equalize(images: Tensor, amounts: Tensor) -> Tensor:
    """Each channel with an even histogram, by Pillow's table."""
    places = images.flatten(2).flatten(0, 1).long()
    values = torch.arange(256, dtype=torch.int32, device=images.device)
    one = values.new_ones(1, 1).expand_as(places)
    counts = values.new_zeros(len(places), 256).scatter_add_(1, places, one)
    last = counts.gather(1, places.amax(1, keepdim=True))
    step = (places.shape[1] - last) // 255
    tables = counts.cumsum(1, dtype=torch.int32).sub_(counts).add_(step // 2) // step.clamp(min=1)
    tables = torch.where(step > 0, tables.clamp_(0, 255), values).to(torch.uint8)
    return tables.gather(1, places).view_as(images)


def gray(images: Tensor) -> Tensor:
    """Gray levels int32 [n,H,W], as Pillow converts to them."""
    red, green, blue = (plane.int() for plane in images.unbind(1))
    levels = red.mul_(GRAY[0]).add_(green.mul_(GRAY[1])).add_(blue.mul_(GRAY[2]))
    return levels.add_(ONE // 2).bitwise_right_shift_(BITS)


def saturation(images: Tensor, amounts: Tensor) -> Tensor:
    """`amounts` times the image, and the rest its gray."""
    rest = gray(images).mul_((ONE - amounts)[:, None, None])
    return _bytes(images.int().mul_(_column(amounts)).add_(rest[:, None]))


def sharpness(images: Tensor, amounts: Tensor) -> Tensor:
    """`amounts` times the image, and the rest its blurred form (5/13 center, 1/13 each neighbor); not on its border."""
    if min(images.shape[2:]) < 3:
        return images
    # Neighbors are found at fixed distances in one run of all pixels, which is wrong on the border alone.
    width, values = images.shape[3], images.short().flatten()
    rows = values[:-2] + values[1:-1] + values[2:]
    total = (rows[: -2 * width] + rows[width:-width] + rows[2 * width :]).int()
    center = values[width + 1 : -width - 1].int()
    blurred = total.add_(4 * center).add_(6).mul_(THIRTEENTH).bitwise_right_shift_(20)
    factors = _column(amounts).expand_as(images).flatten()[width + 1 : -width - 1]
    changed = torch.empty_like(images)
    changed.flatten()[width + 1 : -width - 1] = _bytes(center.sub_(blurred).mul_(factors).add_(blurred.mul_(ONE)))
    sharp = images.clone()
    sharp[..., 1:-1, 1:-1] = changed[..., 1:-1, 1:-1]
    return sharp


def hue(images: Tensor, amounts: Tensor) -> Tensor:
    """Colors turned by `amounts` sixths of the color circle; the highest and the lowest channel keep their values.

    An angle is counted in units of the range of the channels, so that nothing is divided by it.
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
    for start in (5, 3, 1):  # sixths from which red, green and blue fall and rise again
        distance = (angle + start * span * ONE).remainder(6 * ONE * span.clamp(min=1))
        below = torch.minimum(distance, 4 * span * ONE - distance).clamp(min=0)
        turned.append(highest * ONE - torch.minimum(below, span * ONE) + ONE // 2)
    return _bytes(torch.stack(turned, 1))


# By name.  Their order is that of the numbers in what a recipe draws.
COLORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    operation.__name__: operation
    for operation in (
        brightness, contrast, posterize, solarize, autocontrast, equalize, saturation, sharpness, hue,
    )
}  # fmt: skip


# ------------------------------------------------------------------------------------------- parts of images


def inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Which pixels lie in boxes int32 [n,4] = (top, left, height, width): bool [n,1,H,W]."""
    top, left, tall, wide = boxes[:, :, None].unbind(1)
    y, x = torch.arange(height, device=boxes.device), torch.arange(width, device=boxes.device)
    rows, columns = (y >= top) & (y < top + tall), (x >= left) & (x < left + wide)
    return (rows[:, :, None] & columns[:, None])[:, None]


def mixed(images: Tensor, others: Tensor, amounts: Tensor) -> Tensor:
    """`amounts` times the images and the rest of the others, rounded to the nearest byte."""
    others = others.int()
    return _bytes(images.int().sub_(others).mul_(_column(amounts)).add_(others.mul_(ONE)).add_(ONE // 2))
