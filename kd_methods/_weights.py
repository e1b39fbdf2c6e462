"""How much to trust each teacher on each sample, by its logits at temperature 1, without gradient."""

from kd_methods._torch import Tensor, torch


def label_probability(logits: Tensor, labels: Tensor) -> Tensor:
    """p(y) of logits [K,B,C] at T = 1: [K,B]. For soft labels [B,C] the inner product of labels and p."""
    return at_label(torch.softmax(logits.detach(), -1), labels)


def label_confidence_weights(logits: Tensor, labels: Tensor) -> Tensor:
    """Confidence-aware weights [K,B] of teacher logits [K,B,C], summing to 1 over the teachers.

    w_kb = (1 - softmax_k CE(t_kb, y_b)) / (K - 1), and 1 if there is one teacher.
    Zhang, Chen, Wang, ICASSP 2022, arXiv:2201.00007.
    """
    num_teachers = len(logits)
    if num_teachers == 1:
        return logits.new_ones(logits.shape[:2])
    cross_entropy = -at_label(torch.log_softmax(logits.detach(), -1), labels)
    return (1 - torch.softmax(cross_entropy, 0)) / (num_teachers - 1)


def at_label(values: Tensor, labels: Tensor) -> Tensor:
    """values [K,B,C] at the label: [K,B]. labels int64 [B], or soft [B,C]: the inner product."""
    if labels.ndim == 1:
        return values.gather(-1, labels.expand(values.shape[:-1]).unsqueeze(-1)).squeeze(-1)
    return (values * labels).sum(-1)
