"""DIST: correlations in place of equal probabilities.  Huang et al. 2022, arXiv:2205.10536.

    l_kb = T^2 [beta (1 - rho_kb) + gamma (1 - mean_c rho_kc)],  q = softmax(. / T)

rho_kb is Pearson's correlation of q_s and q_t over the classes of sample b, rho_kc over the samples of the batch for
class c. beta and gamma 1. The second term belongs to the batch as a whole, so each sample carries it in full; it sees
the batch of one process, with `gather` that of all.
"""

from collections.abc import Callable

from pydantic import Field

from kd_methods._torch import Tensor
from kd_methods.logit_losses._base import LossConfig, Temperature, correlation, soften


class Config(LossConfig):
    equation = "T^2 ({config.beta:g} inter-class + {config.gamma:g} intra-class DIST)"
    uses_labels = False
    of_batch = True
    terms = ("beta", "gamma")
    later = ("gather",)

    beta: float = Field(default=1.0, ge=0, description="weight of the correlation over classes, within each sample")
    gamma: float = Field(default=1.0, ge=0, description="weight of the correlation over samples, within each class")
    gather: bool = Field(default=False, description="correlate over the images of all processes within each class")


def loss(
    student: Tensor,
    teachers: Tensor,
    labels: Tensor,
    temperature: Temperature,
    progress: float,
    config: Config,
    gather: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    p_s = soften(student, temperature).softmax(-1)
    p_t = soften(teachers, temperature).softmax(-1)
    inter = 1 - correlation(p_s, p_t, -1)  # [K,B]
    if gather:  # of [B,C] or [K,B,C], along B
        p_s, p_t = (gather(p.movedim(-2, 0)).movedim(0, -2) for p in (p_s, p_t))
    intra = 1 - correlation(p_s, p_t, -2).mean(-1, keepdim=True)  # [K,1]
    return temperature**2 * (config.beta * inter + config.gamma * intra)
