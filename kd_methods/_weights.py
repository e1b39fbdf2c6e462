"""How much to trust each teacher on each sample, and how much each sample has to teach, without gradient."""

import math

from kd_methods._torch import Tensor, torch


def label_probability(logits: Tensor, labels: Tensor) -> Tensor:
    """p(y) of logits [K,B,C] at T = 1: [K,B]. For soft labels [B,C] the inner product of labels and p."""
    return at_label(torch.softmax(logits.detach(), -1), labels)


def label_confidence_weights(logits: Tensor, labels: Tensor) -> Tensor:
    """Confidence-aware weights [K,B] of teacher logits [K,B,C], summing to 1 over the teachers.

    w_kb = (1 - softmax_k CE(t_kb, y_b)) / (K - 1), and 1 if there is one teacher.
    Zhang, Chen, Wang, ICASSP 2022, arXiv:2201.00007.
    """
    if len(logits) == 1:
        return logits.new_ones(logits.shape[:2])
    return confidence_weights(-at_label(torch.log_softmax(logits.detach(), -1), labels))


def confidence_weights(cross_entropy: Tensor) -> Tensor:
    """The same of the teachers' cross-entropies [K,B], with their gradient; 1 if there is one teacher."""
    if len(cross_entropy) == 1:
        return torch.ones_like(cross_entropy)
    return (1 - torch.softmax(cross_entropy, 0)) / (len(cross_entropy) - 1)


def equal_weights(logits: Tensor) -> Tensor:
    """1/K for each teacher of logits [K,B,C]: [K,1]."""
    return logits.new_full((len(logits), 1), 1 / len(logits))


def entropy_adaptive_weights(student: Tensor, teachers: Tensor, temperature: float = 3.0) -> Tensor:
    """Entropy-adaptive weights [K,B] of student logits [B,C] and teacher logits [K,B,C].

    w_kb = H(t_kb) (1 + H(s_b) / log C) / 2, entropies in nats at the temperature, 3 in the authors' code: high where
    the teacher is unsure of a sample, more so where the student is too.  EA-KD, Su et al., ICCV 2025, arXiv:2311.13621.
    """
    of_student = entropy(student.detach() / temperature) / math.log(max(student.shape[-1], 2))
    return entropy(teachers.detach() / temperature) * (1 + of_student) / 2


def entropy(logits: Tensor) -> Tensor:
    """In nats, of softmax(logits): [...,C] gives [...]."""
    log_p = torch.log_softmax(logits, -1)
    return -(log_p.exp() * log_p).sum(-1)


def most_probable(labels: Tensor) -> Tensor:
    """Labels int64 [B] as they are; soft labels [B,C] as the classes of the largest share, the first of equals."""
    return labels if labels.ndim == 1 else labels.argmax(-1)


def at_label(values: Tensor, labels: Tensor) -> Tensor:
    """values [K,B,C] at the label: [K,B]. labels int64 [B], or soft [B,C]: the inner product."""
    if labels.ndim == 1:
        return values.gather(-1, labels.expand(values.shape[:-1]).unsqueeze(-1)).squeeze(-1)
    return (values * labels).sum(-1)
