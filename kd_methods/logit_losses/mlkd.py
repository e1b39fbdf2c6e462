"""Multi-level logit distillation (MLKD) on one view or two.  Jin, Wang and Lin, CVPR 2023.

    l_kb = sum over temperatures T of
             instance_weight m_k T^2 KL(q_t || q_s)
           + class_weight c_k |Q_t^T Q_t - Q_s^T Q_s|^2 / C
           + batch_weight m_k |Q_t Q_t^T - Q_s Q_s^T|^2 / B

q = softmax(. / T), Q the matrix [B,C] of them, |.|^2 a sum of squares; the temperatures are T itself and those of
`temperatures`. m_k is the share of samples whose largest probability at temperature 1 is at most the batch's median,
c_k the share of classes whose sum of probabilities is: the authors multiply averages by a mask, which so only scales
them. `standardize` reaches the instance term alone, as in the authors' code. The terms of classes and batch belong to
the batch as a whole, so each sample carries them in full; they see the batch of one process, and grow with it.

A second, strongly augmented view adds instance_weight sum T^2 KL(q_t || q_s), without m. `second: reference` is what
the authors' code does: on the second view at T itself and the first half of `temperatures`, on the first view once
more at the other half. `every`: on the second view at all of them.
"""

from typing import Annotated, Literal

from pydantic import Field

from kd_methods._torch import Tensor, torch
from kd_methods.logit_losses import kd
from kd_methods.logit_losses._base import LossConfig, SecondView, Temperature, soften


class Config(LossConfig):
    equation = (
        "MLKD ({config.instance_weight:g} instance + {config.class_weight:g} class + "
        "{config.batch_weight:g} batch terms, at further T={config.shown_temperatures})"
    )
    uses_labels = False
    of_batch = True
    terms = ("instance_weight", "class_weight", "batch_weight")
    takes_raw = True
    second_view = "optional"
    later = ("second",)

    temperatures: list[Annotated[float, Field(gt=0)]] = Field(
        default=[3.0, 5.0, 2.0, 6.0], max_length=8, description="temperatures beside kd.temperature"
    )
    instance_weight: float = Field(default=1.0, ge=0, description="weight of the KL divergences")
    class_weight: float = Field(default=1.0, ge=0, description="weight of the correlations of classes")
    batch_weight: float = Field(default=1.0, ge=0, description="weight of the correlations of samples")
    second: Literal["reference", "every"] = Field(
        default="reference",
        description="temperatures of a second view: as in the authors' code, or every one",
    )

    @property
    def shown_temperatures(self) -> str:
        return ", ".join(f"{temperature:g}" for temperature in self.temperatures) or "none"


def loss(
    student: Tensor,
    teachers: Tensor,
    labels: Tensor,
    temperature: Temperature,
    progress: float,
    config: Config,
    raw: tuple[Tensor, Tensor] | None = None,
    second: SecondView | None = None,
) -> Tensor:
    raw_student, raw_teachers = raw if raw is not None else (student, teachers)
    samples, classes = kept_shares(raw_teachers)  # [K,1], [K,1]
    instances, of_classes, of_samples = [], [], []
    for each in (temperature, *config.temperatures):
        instances.append(kd.loss(student, teachers, labels, each, progress, kd.Config()))  # [K,B]
        q_s, q_t = soften(raw_student, each).softmax(-1), soften(raw_teachers, each).softmax(-1)
        of_classes.append(class_correlation(q_s, q_t))  # [K,1]
        of_samples.append(batch_correlation(q_s, q_t))  # [K,1]
    instance, class_term, batch_term = (torch.stack(terms).sum(0) for terms in (instances, of_classes, of_samples))
    kept = config.instance_weight * instance + config.batch_weight * batch_term
    values = samples * kept + config.class_weight * classes * class_term
    if second is None:
        return values
    first_instances, count = instances[1:], len(config.temperatures)
    own = count if config.second == "every" else (count + 1) // 2
    on_second = [
        kd.loss(second.student, second.teachers, labels, each, progress, kd.Config())
        for each in (temperature, *config.temperatures[:own])
    ]
    return values + config.instance_weight * torch.stack([*on_second, *first_instances[own:]]).sum(0)


def kept_shares(teachers: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of samples and of classes on which teachers [K,B,C] are at most as sure as on the median: two [K,1]."""
    probabilities = teachers.softmax(-1)
    return _share_up_to_median(probabilities.amax(-1)), _share_up_to_median(probabilities.sum(-2))


def class_correlation(q_s: Tensor, q_t: Tensor) -> Tensor:
    """Squared difference of Q^T Q [C,C], summed, over C: [K,1] of probabilities [B,C] or [K,B,C] and [K,B,C]."""
    return _squared_difference(q_s.mT @ q_s, q_t.mT @ q_t)


def batch_correlation(q_s: Tensor, q_t: Tensor) -> Tensor:
    """Squared difference of Q Q^T [B,B], summed, over B: [K,1] of probabilities [B,C] or [K,B,C] and [K,B,C]."""
    return _squared_difference(q_s @ q_s.mT, q_t @ q_t.mT)


def _squared_difference(of_student: Tensor, of_teachers: Tensor) -> Tensor:
    return ((of_teachers - of_student) ** 2).sum((-2, -1))[:, None] / of_teachers.shape[-1]


def _share_up_to_median(values: Tensor) -> Tensor:
    ordered, count = values.sort(-1).values, values.shape[-1]
    middle = ordered[:, (count - 1) // 2 : count // 2 + 1].mean(-1, keepdim=True)  # of one value or two
    return (values <= middle).to(values.dtype).mean(-1, keepdim=True)
