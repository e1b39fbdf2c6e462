"""Transformed teacher matching (TTM): only the teacher is tempered.  Zheng and Yang, ICLR 2024, arXiv:2402.11148.

    l = KL(r || softmax(s)),  r = softmax(t)^exponent, normalized to sum to 1

The exponent is the paper's gamma, 1 over the teacher's temperature, 0.1 to 0.4 by the pair of networks. There is no
temperature but that, and no factor: the authors weigh the loss, by 45 for vgg13 -> vgg8. `wttm` weighs its samples.
"""

from pydantic import Field

from kd_methods._torch import Tensor
from kd_methods.logit_losses._base import LossConfig, Temperature


class Config(LossConfig):
    equation = "KL of teacher probabilities to the power {config.exponent:g} to the student's at T=1 (TTM)"
    uses_labels = False
    uses_temperature = False

    exponent: float = Field(default=0.1, gt=0, description="power of the teacher's probabilities")


def loss(
    student: Tensor, teachers: Tensor, labels: Tensor, temperature: Temperature, progress: float, config: Config
) -> Tensor:
    log_t = (config.exponent * teachers).log_softmax(-1)  # that of the powers: normalizing first changes nothing
    return (log_t.exp() * (log_t - student.log_softmax(-1))).sum(-1)
