"""Knowledge distillation: the KL divergence of softened probabilities.  Hinton et al. 2015, arXiv:1503.02531.

    l = T^2 KL(softmax(t / T) || softmax(s / T))

Summed over classes. No parameters but the temperature.
"""

from kd_methods._torch import Tensor
from kd_methods.logit_losses._base import LossConfig, Temperature, soften


class Config(LossConfig):
    equation = "T^2 KL"
    uses_labels = False


def loss(
    student: Tensor, teachers: Tensor, labels: Tensor, temperature: Temperature, progress: float, config: Config
) -> Tensor:
    log_s = soften(student, temperature).log_softmax(-1)
    log_t = soften(teachers, temperature).log_softmax(-1)
    return temperature**2 * (log_t.exp() * (log_t - log_s)).sum(-1)
