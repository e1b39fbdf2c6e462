"""The preprocessing of a model: size, crop, interpolation and normalization, in timm's terms."""

import math
from dataclasses import dataclass
from typing import Any

from timm.data import resolve_model_data_config
from timm.data.constants import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
)
from torch import nn

# Mean and standard deviation per channel, in [0,1], with which public checkpoints are commonly trained.
NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    "cifar": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),  # CIFAR-100, as in mdistiller and RepDistiller
    "inception": (IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD),  # to [-1,1]
    "none": ((0.0,) * 3, (1.0,) * 3),  # to [0,1]
    "bytes": ((0.0,) * 3, (1 / 255,) * 3),  # to [0,255]
}


@dataclass(frozen=True)
class Preprocess:
    """Resize the short side to `resize`, crop `size` x `size` from the center, scale to [0,1], normalize."""

    size: int
    resize: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def crop_pct(self) -> float:
        """timm's `crop_pct`: a number for which floor(size / crop_pct) equals `resize`."""
        fraction = self.size / self.resize
        return fraction if resize_side(self.size, fraction) == self.resize else math.nextafter(fraction, 0.0)


def resize_side(size: int, crop_pct: float) -> int:
    """The short side before the center crop, rounded down as in timm's transform (224, 0.9: 248)."""
    return math.floor(size / crop_pct)


def preprocess_of(
    model: nn.Module,
    *,
    img_size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Preprocess:
    """The model's own preprocessing (timm's `pretrained_cfg`), with overrides.

    Args:
        img_size: the view's side; the resize keeps the model's crop fraction.
        mean, std: statistics of the data set, for models trained on it from scratch.  The crop with which an ImageNet
            checkpoint was evaluated does not apply to them, so no border is cut off: resize == size.
    """
    args: dict[str, Any] = {"img_size": img_size, "mean": mean, "std": std}
    if mean is not None or std is not None:
        args["crop_pct"] = 1.0
    config = resolve_model_data_config(model, args)
    size = int(config["input_size"][-1])
    return Preprocess(
        size=size,
        resize=resize_side(size, config["crop_pct"]),
        interpolation=config["interpolation"],
        mean=tuple(float(value) for value in config["mean"]),
        std=tuple(float(value) for value in config["std"]),
    )
