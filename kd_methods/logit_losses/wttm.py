"""Weighted transformed teacher matching (WTTM).  Zheng and Yang, ICLR 2024, arXiv:2402.11148.

    l = U KL(r || softmax(s)),  U = sum_c softmax(t)[c]^exponent,  r = softmax(t)^exponent / U

`ttm` with a weight for each sample: U is 1 for a teacher that is sure of one class, and classes^(1 - exponent) for one
that knows nothing. There is no temperature but the exponent, and no other factor.
"""

from pydantic import Field

from kd_methods._torch import Tensor
from kd_methods.logit_losses._base import LossConfig, Temperature


class Config(LossConfig):
    equation = "weighted KL of teacher probabilities to the power {config.exponent:g} to the student's at T=1 (WTTM)"
    uses_labels = False
    uses_temperature = False

    exponent: float = Field(default=0.2, gt=0, description="power of the teacher's probabilities")


def loss(
    student: Tensor, teachers: Tensor, labels: Tensor, temperature: Temperature, progress: float, config: Config
) -> Tensor:
    powers = config.exponent * teachers.log_softmax(-1)  # logs
    log_u = powers.logsumexp(-1, keepdim=True)
    log_t = powers - log_u
    divergence = (log_t.exp() * (log_t - student.log_softmax(-1))).sum(-1)
    return log_u.squeeze(-1).exp() * divergence
