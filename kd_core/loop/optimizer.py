"""Optimizer and learning rate.  The rate is a pure function of the step, so a resumed run has the same schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers, param_groups_weight_decay
from torch import Tensor, nn

from kd_core.config import TrainingConfig
from kd_core.errors import UserError, did_you_mean


def learning_rate_at(step: int, *, total_steps: int, steps_per_epoch: int, training: TrainingConfig) -> float:
    """Learning rate of optimizer step `step` (0-based) of `total_steps`.

    Warmup rises linearly over `warmup_epochs` and reaches the peak on the step after it; cosine (Loshchilov and
    Hutter, arXiv:1608.03983, one cycle) falls from the peak to `min_learning_rate` at the last step; multistep
    multiplies by `decay_factor` after each of `milestones` (epochs); constant keeps the peak.
    """
    peak = training.learning_rate
    warmup = round(training.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if training.schedule == "cosine":
        floor = min(training.min_learning_rate, peak)
        progress = (step - warmup) / max(1, total_steps - 1 - warmup)
        return floor + (peak - floor) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
    if training.schedule == "multistep":
        epoch = step // steps_per_epoch
        return peak * training.decay_factor ** sum(epoch >= milestone for milestone in training.milestones)
    return peak


def create_optimizer(
    model: nn.Module, training: TrainingConfig, device: torch.device, method: nn.Module | None = None
) -> torch.optim.Optimizer:
    """The configured optimizer over `model`'s parameters, fused where PyTorch has a fused version for `device`.

    The parameters of `method` come after them, with weight decay in the same way.

    UserError if timm has no such optimizer, if it rejects `training.optimizer_args`, or if it needs second derivatives.
    """
    name, known = training.optimizer, list_optimizers()
    if name not in known:
        raise UserError(
            f"training.optimizer: unknown optimizer {name!r}{did_you_mean(name, known, cutoff=0.55)}; "
            f"timm has {len(known)}, such as adamw, sgd, lamb"
        )
    if name == "sgd" and not training.nesterov:
        name = "momentum"  # timm's plain SGD; its "sgd" is Nesterov's
    fused = {"fused": True} if name in ("adamw", "adam", "sgd", "momentum") and device.type in ("cpu", "cuda") else {}
    try:
        optimizer = create_optimizer_v2(
            model,
            opt=name,
            lr=training.learning_rate,
            weight_decay=training.weight_decay,
            momentum=training.momentum,
            filter_bias_and_bn=not training.decay_norms_and_biases,
            **{**fused, **training.optimizer_args},
        )
    except (TypeError, ValueError, AssertionError, RuntimeError, ImportError) as error:
        raise UserError(
            f"training.optimizer: {training.optimizer!r} cannot be built: {error}; see training.optimizer_args"
        ) from None
    if getattr(optimizer, "is_second_order", False):  # timm's mark
        raise UserError(
            f"training.optimizer: {training.optimizer!r} needs second derivatives, which training does not compute; "
            "take another, such as adamw"
        )
    for group in _groups(method, training) if method else ():
        optimizer.add_param_group(group)
    if training.skip_nonfinite and not getattr(optimizer, "_step_supports_amp_scaling", False):
        raise UserError(f"training.skip_nonfinite: needs adamw, adam or sgd, fused; {training.optimizer!r} is not")
    for group in optimizer.param_groups:
        # Fused SGD allocates its buffers uninitialized, and keeps them if the first step is skipped, which the loss
        # scaling of fp16 often does.  Starting from zeros, the first step is the same.
        if group.get("fused") and group.get("momentum") and not group.get("dampening"):
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _groups(method: nn.Module, training: TrainingConfig) -> list[dict[str, Any]]:
    """The groups of a method's parameters, none of them empty."""
    exclude = not training.decay_norms_and_biases
    groups = param_groups_weight_decay(method, training.weight_decay, weight_decay_exclude_1d=exclude)
    return [group for group in groups if group["params"]]


class NonFiniteSteps:
    """Skips steps of a fused optimizer whose gradients are not finite, without waiting for the device.

    A skipped step leaves parameters and the optimizer's state unchanged, and restores `buffers`, which the forward
    pass has changed; `take_back(skipped)` restores others.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, buffers: list[Tensor], take_back: Callable[[Tensor], None] | None = None
    ):
        self._optimizer, self._buffers, self._take_back = optimizer, buffers, take_back

    def begin(self) -> None:
        """Call before the forward pass."""
        self._before = [buffer.clone() for buffer in self._buffers]

    def skip(self, norm: Tensor) -> Tensor:
        """Skip the coming step if the norm [] of all gradients is not finite; returns whether it did, bool []."""
        skipped = norm.isfinite().logical_not()
        self._optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(torch.where(skipped, before, buffer))
        if self._take_back:
            self._take_back(skipped)
        return skipped


def take_step(optimizer: Any, scaler: torch.amp.GradScaler | None) -> Tensor | None:
    """Step; returns whether fp16's loss scaling skipped it, bool [] on the device, None without a scaler.

    A fused optimizer skips it there, and nothing on the host learns of it; but the scale shrinks then, and only then.
    `GradScaler.get_scale` would wait for the device.
    """
    scale = scaler._get_scale_async() if scaler is not None else None
    if scale is None:
        optimizer.step()
        return None
    before = scale.clone()
    optimizer.step()
    return scale < before


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value * group.get("lr_scale", 1.0)
