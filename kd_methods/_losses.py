"""Logit losses: student [B,C] and teachers [K,B,C] to one value per teacher and sample, [K,B].

Each value carries the factor temperature squared, which keeps the gradient's scale about constant in the
temperature (Hinton et al. 2015), and `mean` over B is the loss that the paper states.
"""

import math
import re
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from torch import Tensor

if TYPE_CHECKING:
    from kd_methods._base import LogitConfig


OWN = ("kd", "dkd", "dist")
# student [B,C], teachers [K,B,C], labels int64 [B] or soft [B,C], temperature, progress in [0,1] -> [K,B]
LogitLoss = Callable[[Tensor, Tensor, Tensor, float, float], Tensor]
_added: dict[str, LogitLoss] = {}


def names() -> list[str]:
    """Names of all logit losses: those of this file, and those that were added."""
    return [*OWN, *_added]


def add(name: str, function: LogitLoss) -> None:
    """Make `function` the logit loss `name`, which every method with teachers can use.

    It is called as function(student [B,C], teachers [K,B,C], labels, temperature, progress) and returns [K,B], the
    factor temperature squared included; labels are int64 [B] or soft [B,C]. Raises ValueError for a name that is taken
    or what is no function.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise ValueError(f"loss {name!r}: a name consists of lower-case letters, digits and _")
    if name in names():
        raise ValueError(f"loss {name!r}: there is one of this name already; choose another name")
    if not callable(function):
        raise ValueError(f"loss {name!r}: needs a function, not a {type(function).__name__}")
    _added[name] = function


def check_name(value: Any) -> Any:
    """`value` if it names a logit loss, pydantic's error for a choice otherwise."""
    return _choice(*names()).validate_python(value)


@cache
def _choice(*allowed: str) -> TypeAdapter[Any]:
    choice: Any = Literal[allowed]
    return TypeAdapter(choice)


class LossConfig(BaseModel):
    """Parameters of one logit loss."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DKD(LossConfig):
    alpha: float = Field(default=1.0, ge=0, description="weight of the target-class term (TCKD)")
    beta: float = Field(default=8.0, ge=0, description="weight of the non-target-class term (NCKD)")
    warmup: float = Field(
        default=20 / 240,
        ge=0,
        le=1,
        description="fraction of training in which the loss grows from 0; 0: none",
    )


class DIST(LossConfig):
    beta: float = Field(
        default=1.0, ge=0, description="weight of the correlation over classes, within each sample"
    )
    gamma: float = Field(
        default=1.0, ge=0, description="weight of the correlation over samples, within each class"
    )


def logit_loss(
    config: "LogitConfig", student: Tensor, teachers: Tensor, labels: Tensor, progress: float
) -> Tensor:
    """The loss [K,B] that `config` selects; labels int64 [B] or soft [B,C], progress in [0,1]."""
    if config.standardize:
        student, teachers = standardize(student), standardize(teachers)
    if function := _added.get(config.loss):
        loss = function(student, teachers, labels, config.temperature, progress)
        if loss.shape != teachers.shape[:2]:
            raise ValueError(
                f"kd.loss {config.loss!r} gives shape {tuple(loss.shape)}; it must be [teachers, batch], here "
                f"{tuple(teachers.shape[:2])}"
            )
        return loss
    match config.loss:
        case "kd":
            return kd(student, teachers, config.temperature)
        case "dkd":
            return dkd(student, teachers, labels, config.temperature, config.dkd, progress)
        case "dist":
            return dist(student, teachers, config.temperature, config.dist)

def kd(student: Tensor, teachers: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(t/T) || softmax(s/T)), summed over classes: [K,B].  Hinton et al., arXiv:1503.02531."""
    log_s = F.log_softmax(student / temperature, -1)
    log_t = F.log_softmax(teachers / temperature, -1)
    return temperature**2 * (log_t.exp() * (log_t - log_s)).sum(-1)


def dkd(
    student: Tensor, teachers: Tensor, labels: Tensor, temperature: float, params: DKD, progress: float
) -> Tensor:
    """Decoupled KD: T^2 (alpha TCKD + beta NCKD), [K,B].  Zhao et al. 2022, arXiv:2203.08679.

    TCKD is the KL of (p_y, 1 - p_y), NCKD the KL of the distributions over the other classes. A soft label
    [B,C] counts as its most probable class.
    """
    target = labels if labels.ndim == 1 else labels.argmax(-1)
    is_target = torch.arange(student.shape[-1], device=student.device) == target[:, None]  # [B,C]
    binary_t, others_t = _split_target(teachers / temperature, is_target)
    binary_s, others_s = _split_target(student / temperature, is_target)
    tckd = (binary_t.exp() * (binary_t - binary_s)).sum(-1)
    nckd = (others_t.softmax(-1) * _log_ratio(others_t, others_s, is_target)).sum(-1)
    scale = temperature**2 * (min(progress / params.warmup, 1.0) if params.warmup else 1.0)
    return scale * params.alpha * tckd + scale * params.beta * nckd


def _split_target(logits: Tensor, is_target: Tensor) -> tuple[Tensor, Tensor]:
    """Log of (p_y, 1 - p_y) [...,B,2], and the logits with the target class at -inf [...,B,C].

    1 - p_y is a log-sum-exp over the other classes: the subtraction would round to 0 for a confident network.
    """
    others = logits.masked_fill(is_target, -math.inf)
    target = (logits * is_target).sum(-1)
    return F.log_softmax(torch.stack([target, others.logsumexp(-1)], -1), -1), others


def _log_ratio(others_t: Tensor, others_s: Tensor, is_target: Tensor) -> Tensor:
    """log q_t - log q_s over the non-target classes, 0 at the target, where both logs are -inf."""
    return (F.log_softmax(others_t, -1) - F.log_softmax(others_s, -1)).masked_fill(is_target, 0.0)


def dist(student: Tensor, teachers: Tensor, temperature: float, params: DIST) -> Tensor:
    """T^2 [beta (1 - rho over classes) + gamma (1 - mean_c rho over samples)], [K,B].

    rho is Pearson's correlation of the softmax outputs.  Huang et al. 2022, arXiv:2205.10536. The second term
    belongs to the batch as a whole, so each sample carries it in full; it sees one process's batch.
    """
    p_s = F.softmax(student / temperature, -1)
    p_t = F.softmax(teachers / temperature, -1)
    inter = 1 - (unit(p_s, -1) * unit(p_t, -1)).sum(-1)  # [K,B]
    intra = 1 - (unit(p_s, -2) * unit(p_t, -2)).sum(-2).mean(-1, keepdim=True)  # [K,1]
    return temperature**2 * (params.beta * inter + params.gamma * intra)


def standardize(logits: Tensor) -> Tensor:
    """Logits with mean 0 and (unbiased) deviation 1 over the classes.  Sun et al. 2024, arXiv:2403.01427."""
    return unit(logits, -1) * math.sqrt(logits.shape[-1] - 1)


def unit(values: Tensor, dim: int) -> Tensor:
    """Values centred and scaled to length 1 along `dim`: two such vectors' product is Pearson's correlation.

    Where the spread is rounding noise (constant logits, a batch of one, a class of probability 0) the result
    is 0 with gradient 0, instead of noise divided by noise.
    """
    centred = values - values.mean(dim, keepdim=True)
    spread = torch.linalg.vector_norm(centred, dim=dim, keepdim=True)
    noise = 1e-6 * torch.linalg.vector_norm(values.detach(), dim=dim, keepdim=True) + 1e-12
    flat = spread <= noise
    return (centred / spread.masked_fill(flat, 1.0)).masked_fill(flat, 0.0)


def describe(config: "LogitConfig") -> str:
    """The configured logit loss in words, with its numbers."""
    text = f"loss {config.loss}"  # of one that was added no more is known
    match config.loss:
        case "kd":
            text = "T^2 KL"
        case "dkd":
            text = f"T^2 ({config.dkd.alpha:g} TCKD + {config.dkd.beta:g} NCKD)"
        case "dist":
            text = f"T^2 ({config.dist.beta:g} inter-class + {config.dist.gamma:g} intra-class DIST)"
    text += f" at T={config.temperature:g}"
    if config.standardize:
        text += " on standardised logits"
    if config.loss == "dkd" and config.dkd.warmup:
        text += f", growing from 0 over the first {config.dkd.warmup:.3g} of training"
    return text
