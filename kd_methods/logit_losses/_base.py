"""What logit losses share: the base of their Config, softened and corrected logits, classes apart, correlations."""

import math
from typing import Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer, model_validator

from kd_methods._torch import Tensor, torch
from kd_methods._warmup import growth_in_words
from kd_methods._weights import most_probable

Temperature = float | Tensor  # of all samples and teachers, or [K,1], [1,B] or [K,B]
UseOfSecondView = Literal["unused", "optional", "required"]


class SecondView(NamedTuple):
    """The logits of the second view, and both as they are before they are standardized."""

    student: Tensor  # [B,C]
    teachers: Tensor  # [K,B,C]
    raw: tuple[Tensor, Tensor]


class LossConfig(BaseModel):
    """Parameters of one logit loss, and its equation in words.

    equation: format string with the parameters as `{config.NAME:g}`.
    uses_labels: whether it needs the label of every image; off for a loss that images without labels can have.
    uses_temperature: off for a loss that has no temperature; setting one is a mistake then.
    of_batch: on for a loss whose value of a sample depends on the others of its batch.
    takes_raw: on for a loss whose last argument is `raw`, the student's logits and the teachers' as they are before
    they are standardized.
    second_view: whether the loss has a part on a second, strongly augmented view of the images. Its last argument is
    then `second`, a SecondView or, where there is none, None. "required": in training it has to be there.
    A parameter `gather` that is on: the last argument is `gather`, which maps values [B,...] to those of all processes.
    terms: the weights of its terms, not all of which may be 0.
    constant: numbers that cannot change over training.
    later: parameters that were added after a release, left out of recorded settings while they have their defaults.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    equation: ClassVar[str]
    uses_labels: ClassVar[bool] = True
    uses_temperature: ClassVar[bool] = True
    of_batch: ClassVar[bool] = False
    takes_raw: ClassVar[bool] = False
    second_view: ClassVar[UseOfSecondView] = "unused"
    later: ClassVar[tuple[str, ...]] = ()
    terms: ClassVar[tuple[str, ...]] = ()
    constant: ClassVar[tuple[str, ...]] = ("warmup",)

    @model_validator(mode="after")
    def _some_loss(self) -> Self:
        if self.terms and not any(getattr(self, name) for name in self.terms):
            *others, last = self.terms
            how_many = "both" if len(self.terms) == 2 else "all"
            raise ValueError(f"{', '.join(others)} and {last} are {how_many} 0, which leaves no loss; raise one")
        return self

    def describe(self, conditions: str) -> str:
        """The equation with its numbers, followed by `conditions`, such as "at T=4"."""
        words = f"{self.equation.format(config=self)} {conditions}".rstrip()
        return words + growth_in_words(getattr(self, "warmup", 0.0))

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """All parameters but those of `later` that have their defaults, so that known runs keep their digests."""
        values: dict[str, Any] = serialize(self)
        for name in self.later:
            if getattr(self, name) == type(self).model_fields[name].default:
                del values[name]
        return values


def soften(logits: Tensor, temperature: Temperature) -> Tensor:
    """logits [B,C] or [K,B,C] divided by the temperature of each teacher or sample: [B,C] or [K,B,C]."""
    return logits / (temperature if isinstance(temperature, (int, float)) else temperature[..., None])


def one_hot(labels: Tensor, classes: Tensor) -> Tensor:
    """Where the label is: bool of the shape of `classes` [...,C]; a soft label [B,C] is its most probable class."""
    return torch.arange(classes.shape[-1], device=classes.device) == most_probable(labels)[:, None]


def correct(teachers: Tensor, labels: Tensor, how: str) -> Tensor:
    """Teachers' logits [K,B,C] in which no class is above the label's.

    how: "swap" exchanges the label's logit with the largest one, as label augmentation and swapped logit distillation
    do (arXiv:2504.20108); "raise" sets it to the largest one. Where the label is on top nothing changes.
    """
    is_label = one_hot(labels, teachers)  # [B,C]
    top, index = teachers.max(-1, keepdim=True)
    if how == "swap":
        is_top = torch.arange(teachers.shape[-1], device=teachers.device) == index  # [K,B,C]
        teachers = torch.where(is_top, (teachers * is_label).sum(-1, keepdim=True), teachers)
    return torch.where(is_label, top, teachers)


def hide(logits: Tensor, is_out: Tensor) -> Tensor:
    """Logits with the classes `is_out` so low that their probability is 0, and finite: 0 log 0 is 0 then.

    Where all classes are out, all are equal.
    """
    return logits.masked_fill(is_out, torch.finfo(logits.dtype).min / 2)


def standardize(logits: Tensor) -> Tensor:
    """Logits with mean 0 and (unbiased) standard deviation 1 over the classes.  Sun et al. 2024, arXiv:2403.01427.

    As in the authors' code 1e-7 is added to the deviation.
    """
    centered, length, flat = _centered(logits, -1)
    deviation = length / math.sqrt(max(logits.shape[-1] - 1, 1)) + 1e-7
    return (centered / deviation.masked_fill(flat, 1.0)).masked_fill(flat, 0.0)


def correlation(x: Tensor, y: Tensor, dim: int) -> Tensor:
    """Pearson's correlation along `dim`; as in the code of DIST's authors 1e-8 is added to the product of lengths."""
    (x, length_x, flat_x), (y, length_y, flat_y) = _centered(x, dim), _centered(y, dim)
    flat = flat_x | flat_y
    length = (length_x * length_y + 1e-8).masked_fill(flat, 1.0)
    return ((x * y).sum(dim, keepdim=True) / length).masked_fill(flat, 0.0).squeeze(dim)


def _centered(values: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Values minus their mean along `dim`, the length of that, and where it is rounding noise.

    Constant logits, a batch of one and a class of probability 0 are such: callers make them 0 with gradient 0, instead
    of noise divided by noise.
    """
    centered = values - values.mean(dim, keepdim=True)
    length = torch.linalg.vector_norm(centered, dim=dim, keepdim=True)
    noise = 1e-6 * torch.linalg.vector_norm(values.detach(), dim=dim, keepdim=True) + 1e-12
    return centered, length, length <= noise
