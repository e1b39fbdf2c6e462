"""Cross-view consistency (CRLD) of a weak and a strong view.  Zhang et al., ACM Multimedia 2024, arXiv:2412.16493.

    l = within_weight 1[c(t_w) >= weak_threshold] (KD(s_w, t_w) + KD(s_s, t_s))
      + cross_weight 1[c(t_s) >= strong_threshold] (KD(s_s, t_w) + KD(s_w, t_s))
    KD(s, t) = T^2 KL(softmax(t / T) || softmax(s / T)),  c(t) = max_c softmax(t)[c]

w is the weak view, the first one, and s the strong one; c is the teacher's confidence at temperature 1. The mean is
over all samples, those without confidence included. Weights 2 and 0.5, thresholds 0.9 and 0.2 and T 4 in the authors'
code, beside the cross-entropies of both views. On the first view alone, as in evaluation, it is the term
within_weight 1[c(t_w) >= weak_threshold] KD(s_w, t_w).
"""

from pydantic import Field

from kd_methods._torch import Tensor, torch
from kd_methods.logit_losses._base import LossConfig, SecondView, Temperature, soften


class Config(LossConfig):
    equation = (
        "CRLD of two views ({config.within_weight:g} T^2 KL within views from confidence {config.weak_threshold:g}, "
        "{config.cross_weight:g} T^2 KL across from {config.strong_threshold:g})"
    )
    uses_labels = False
    terms = ("within_weight", "cross_weight")
    takes_raw = True
    second_view = "required"

    within_weight: float = Field(default=2.0, ge=0, description="weight of the divergences within each view")
    cross_weight: float = Field(default=0.5, ge=0, description="weight of the divergences across views")
    weak_threshold: float = Field(
        default=0.9, ge=0, le=1, description="teacher's confidence on the weak view from which the first term counts"
    )
    strong_threshold: float = Field(
        default=0.2, ge=0, le=1, description="teacher's confidence on the strong view from which the second term counts"
    )


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
    sure_of = raw[1] if raw is not None else teachers
    weak = (sure_of.softmax(-1).amax(-1) >= config.weak_threshold).to(student.dtype)  # [K,B]
    students, targets = [student], [teachers]
    if second is not None:
        students, targets = [student, second.student], [teachers, second.teachers]
    log_s = torch.stack([soften(of_view, temperature) for of_view in students], -3).log_softmax(-1).unsqueeze(-4)
    log_t = torch.stack([soften(of_view, temperature) for of_view in targets], -3).log_softmax(-1).unsqueeze(-3)
    between = (log_t.exp() * (log_t - log_s)).sum(-1)  # [K,views of the teacher,views of the student,B]
    if second is None:
        return temperature**2 * config.within_weight * weak * between[:, 0, 0]
    strong = (second.raw[1].softmax(-1).amax(-1) >= config.strong_threshold).to(student.dtype)
    within, across = between[:, 0, 0] + between[:, 1, 1], between[:, 0, 1] + between[:, 1, 0]
    return temperature**2 * (config.within_weight * weak * within + config.cross_weight * strong * across)
