"""How much each class counts in the label loss (`training.class_weights`), and a check that no class is empty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kd_core.errors import UserError


def require_all_classes(key: str, labels: np.ndarray, names: Sequence[str]) -> None:
    """UserError, beginning with `key`, unless labels int64 [n] hold every class."""
    if missing := [names[number] for number in np.setdiff1d(np.arange(len(names)), labels)]:
        shown = ", ".join(map(repr, missing[:5])) + ", ..." * (len(missing) > 5)
        raise UserError(f"{key}: no training image is of class {shown}; remove the class, or the setting")


def class_weights(
    wanted: Literal["balanced"] | list[float] | None, labels: Tensor, names: Sequence[str]
) -> Tensor | None:
    """Factors float32 [C] of the label loss of each class, as `training.class_weights` asks for; None for none.

    Balanced: n / (C n_c) with n_c the number of class c among training labels int64 [n], so their mean over the images
    is 1.

    Raises:
        UserError: another number of factors than classes; balanced, and a class has no image.
    """
    if wanted is None:
        return None
    if wanted == "balanced":
        require_all_classes("training.class_weights: balanced", labels.numpy(), names)
        return len(labels) / (len(names) * labels.bincount(minlength=len(names)).float())
    if len(wanted) != len(names):
        raise UserError(
            f"training.class_weights: has {len(wanted)} factors, and the data have {len(names)} classes; give one for "
            "each, or balanced"
        )
    return torch.tensor(wanted)
