"""How certain a metric is: intervals of accuracies, differences on the same images, and verdicts on differences.

Sources: docs/comparing.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

CONFIDENCE = 0.95
BEYOND_DOUBT = 3.0  # standard errors of a difference
BETTER, WORSE, INCONCLUSIVE = "better", "worse", "inconclusive"


def verdict(difference: float, p: float | None, *, higher: bool = True, confidence: float = CONFIDENCE) -> str:
    """BETTER or WORSE if the p-value of a difference is at most 1 - confidence, otherwise or without p INCONCLUSIVE."""
    if p is None or p > 1 - confidence:
        return INCONCLUSIVE
    return BETTER if (difference > 0) == higher else WORSE


def wilson(correct: int, count: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The interval (low, high) of the accuracy correct / count, which lies within 0 and 1 (Wilson, JASA 1927).

    ValueError without an image.
    """
    if count < 1:
        raise ValueError("no images")
    from scipy import special  # not above: takes a second

    z = float(special.ndtri((1 + confidence) / 2))
    share, weight = correct / count, z * z / count
    middle = share + weight / 2
    half = z * math.sqrt(share * (1 - share) / count + weight / (4 * count))
    low, high = (middle - half) / (1 + weight), (middle + half) / (1 + weight)
    return max(0.0, min(low, share)), min(1.0, max(high, share))  # against rounding errors at 0 and 1


@dataclass(frozen=True)
class PairedDifference:
    """Two networks on the same images: only the first is right on `gained` of `count`, only the second on `lost`."""

    gained: int
    lost: int
    count: int

    @property
    def images(self) -> int:
        """On how many more images the first is right."""
        return self.gained - self.lost

    @property
    def error(self) -> float:
        """Standard error of the difference of accuracies, sqrt(b + c - (b - c)^2 / n) / n (McNemar 1947).

        If no image differs, or every one in the same way, that would be 0, which no sample can show: then it is that of
        one image, 1 / n.
        """
        spread = self.gained + self.lost - self.images**2 / self.count
        return math.sqrt(spread if spread > 0 else 1.0) / self.count

    @property
    def p(self) -> float:
        """Two-sided p-value of McNemar's exact test, whose null hypothesis is that each has half of those right."""
        from scipy import special

        differ = self.gained + self.lost
        return min(1.0, 2 * float(special.bdtr(min(self.gained, self.lost), differ, 0.5))) if differ else 1.0

    @property
    def verdict(self) -> str:
        """Whether the first is better on these images; it says nothing about other seeds."""
        return verdict(self.images, self.p)


def paired_difference(right: Tensor, other: Tensor) -> PairedDifference:
    """Two networks by whether each is right about the same images, bool [N] both; ValueError without an image."""
    if not len(right):
        raise ValueError("no images")
    return PairedDifference(int((right & ~other).sum()), int((~right & other).sum()), len(right))
