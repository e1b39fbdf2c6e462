"""Alpha-beta divergence (ABKD), between and beyond the two KL divergences.  Wang et al., ICML 2025, arXiv:2505.04560.

    l = sum_c p^(a+b) / (b (a+b)) + q^(a+b) / (a (a+b)) - p^a q^b / (a b)

p = softmax(t / T) and q = softmax(s / T), a and b alpha and beta. Where one of them is 0 the limit is taken:

    b = 0: l = sum_c [p^a log(p^a / q^a) - p^a + q^a] / a^2        a = 0: the same with p and q, a and b exchanged

so (1, 0) is KL(p || q) and (0, 1) is KL(q || p). No factor T^2: the authors weigh the loss, by 32 to 64. alpha 0.8 and
beta 0.3 in the paper. A negative beta divides by q and overflows where the student is sure of another class.
"""

from pydantic import Field, model_validator

from kd_methods._torch import Tensor
from kd_methods.logit_losses._base import LossConfig, Temperature, soften


class Config(LossConfig):
    equation = "alpha-beta divergence ({config.alpha:g}, {config.beta:g})"
    uses_labels = False
    constant = ("alpha", "beta")  # whose sum may be 0 between two ends that are allowed

    alpha: float = Field(default=0.8, description="power of the teacher's probabilities; 0: a limit")
    beta: float = Field(default=0.3, description="power of the student's probabilities; 0: a limit")

    @model_validator(mode="after")
    def _sum_is_not_zero(self) -> "Config":
        if self.alpha + self.beta == 0:
            raise ValueError(f"alpha {self.alpha:g} and beta {self.beta:g} add up to 0; the divergence divides by that")
        return self


def loss(
    student: Tensor, teachers: Tensor, labels: Tensor, temperature: Temperature, progress: float, config: Config
) -> Tensor:
    log_q = soften(student, temperature).log_softmax(-1)
    log_p = soften(teachers, temperature).log_softmax(-1)
    a, b = config.alpha, config.beta
    if b == 0:
        return _limit(log_p, log_q, a)
    if a == 0:
        return _limit(log_q, log_p, b)
    total = a + b
    teacher, both = (total * log_p).exp(), (a * log_p + b * log_q).exp()
    return (teacher / (b * total) + (total * log_q).exp() / (a * total) - both / (a * b)).sum(-1)


def _limit(log_p: Tensor, log_q: Tensor, power: float) -> Tensor:
    p, q = (power * log_p).exp(), (power * log_q).exp()
    return (p * (power * (log_p - log_q)) - p + q).sum(-1) / power**2
