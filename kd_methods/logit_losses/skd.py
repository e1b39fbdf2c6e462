"""Streamlined knowledge distillation (SKD): KD and the directions of logits.  Jeong et al., CVPR 2026.

    l_kb = T^2 KL(softmax(t / T) || softmax(s / T)) + sqrt(D_b (cov D + ridge I)^-1 D_b^T)
    D = (S S^T - Z Z^T) / C,  rows of S and Z: logits s and t, each scaled to length 1

D [B,B] compares the cosines between the samples of a batch; D_b is its row of sample b, cov D the covariance of its
columns over its rows. So a difference counts less where the batch differs much anyway. ridge 0.1 (the paper's lambda),
T 4, and weights 0.1 for the cross-entropy and 0.9 for this loss, in the authors' code (HyunJunSik/StreamLined,
Distiller/SKD.py), which also multiplies both terms by shares of samples and of classes, about a half, that the paper
does not have. The second term sees the batch of one process.
"""

from pydantic import Field

from kd_methods._torch import Tensor, torch
from kd_methods.logit_losses import kd
from kd_methods.logit_losses._base import LossConfig, Temperature


class Config(LossConfig):
    equation = "(T^2 KL + directions with ridge {config.ridge:g})"
    uses_labels = False
    of_batch = True

    ridge: float = Field(default=0.1, ge=1e-4, description="added to the diagonal of the covariance of directions")


def loss(
    student: Tensor, teachers: Tensor, labels: Tensor, temperature: Temperature, progress: float, config: Config
) -> Tensor:
    difference = (_cosines(student) - _cosines(teachers)) / student.shape[-1]  # [K,B,B]
    centered = difference - difference.mean(-2, keepdim=True)
    batch = student.shape[0]
    covariance = centered.mT @ centered / max(batch - 1, 1)
    ridge = config.ridge * torch.eye(batch, dtype=student.dtype, device=student.device)
    lower = torch.linalg.cholesky_ex(covariance + ridge).L  # no check, which would wait: ridge is large enough
    whitened = torch.linalg.solve_triangular(lower, difference.mT, upper=False)
    directions = torch.linalg.vector_norm(whitened, dim=-2)  # [K,B]; its gradient at 0 is 0
    return kd.loss(student, teachers, labels, temperature, progress, kd.Config()) + directions


def _cosines(logits: Tensor) -> Tensor:
    """Cosines between the samples of logits [...,B,C]: [...,B,B]; 0, without gradient, for logits that are all 0."""
    length = torch.linalg.vector_norm(logits, dim=-1, keepdim=True)
    zero = length == 0
    unit = (logits / length.masked_fill(zero, 1.0)).masked_fill(zero, 0.0)
    return unit @ unit.mT
