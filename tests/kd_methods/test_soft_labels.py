"""Soft labels [B,C], as each loss and weighting takes them. Every method with every loss: test_method_contract.py."""

import json
from typing import Any

import feature_cases
import pytest
import torch
import torch.nn.functional as F
from method_variants import TURNED_ON, method_for, outputs
from torch import Tensor

import kd_methods
from kd_methods import StudentOutput, TeacherOutputs, feature_losses
from kd_methods._weights import label_confidence_weights, label_probability, most_probable

B, C, K = 6, 5, 3
SINGLE_OUT = {"dkd", "nkd", "rld"}  # logit losses that set one class apart
FEATURES_WITH_LABELS = {"ca_mkd": "mean", "ofa": "class", "sdd": "class"}


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Student, teachers and soft labels as of mixed images, fp64."""
    generator = torch.Generator().manual_seed(5)
    student = 2 * torch.randn(B, C, generator=generator, dtype=torch.float64)
    teachers = 2 * torch.randn(K, B, C, generator=generator, dtype=torch.float64)
    first, second = torch.randint(C, (2, B), generator=generator)
    share = torch.rand(B, 1, generator=generator, dtype=torch.float64)
    return student, teachers, share * F.one_hot(first, C) + (1 - share) * F.one_hot(second, C)


def test_labels_are_mixed() -> None:
    *_, labels = inputs()
    torch.testing.assert_close(labels.sum(1), torch.ones(B, dtype=torch.float64))
    assert (labels.amax(1) < 0.9).sum() >= 3


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_label_loss(smoothing: float) -> None:
    student, _, labels = inputs()
    method = kd_methods.build({"type": kd_methods.LABEL_ONLY}, label_smoothing=smoothing)
    loss, _ = method(StudentOutput(student), TeacherOutputs(), labels)
    expected = 0.0
    for b in range(B):
        log_p = student[b].log_softmax(0)
        expected -= sum(((1 - smoothing) * labels[b, c] + smoothing / C) * log_p[c] for c in range(C)) / B
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("switch", [{}, *TURNED_ON], ids=json.dumps)
@pytest.mark.parametrize("loss", kd_methods.losses())
def test_a_logit_loss_sees_the_class_of_the_largest_share(loss: str, switch: dict[str, Any]) -> None:
    student, teachers, labels = inputs()
    method = method_for({"type": "average", "loss": loss, **switch}, K)
    given = outputs(method, student, teachers)
    of_soft = method.logit_loss(*given, labels)
    assert torch.equal(of_soft, method.logit_loss(*given, labels.argmax(1)))
    changed = not torch.equal(of_soft, method.logit_loss(*given, (labels.argmax(1) + 1) % C))
    assert changed == (loss in SINGLE_OUT or "correct_labels" in switch)


def test_of_equal_shares_the_first_class_counts() -> None:
    assert most_probable(torch.tensor([[0.0, 0.5, 0.0, 0.5], [0.25, 0.25, 0.25, 0.25]])).tolist() == [1, 0]


def test_confidences_are_means_over_the_label() -> None:
    """The weights of `ca_weighted`, `ca_mkd` and `dynamic`, and the p(y) of `dynamic` and `confidence`."""
    _, teachers, labels = inputs()
    for b in range(B):
        p = [teacher[b].softmax(0) for teacher in teachers]
        cross_entropy = torch.stack([-sum(labels[b, c] * each[c].log() for c in range(C)) for each in p])
        weights = (1 - cross_entropy.softmax(0)) / (K - 1)
        torch.testing.assert_close(label_confidence_weights(teachers, labels)[:, b], weights)
        mean = torch.stack([sum(labels[b, c] * each[c] for c in range(C)) for each in p])
        torch.testing.assert_close(label_probability(teachers, labels)[:, b], mean)
        least = F.one_hot(cross_entropy.argmin(), K).double()
        for name, expected in (("min_ce", least), ("confidence", F.one_hot(mean.argmax(), K).double())):
            given = StudentOutput(torch.zeros(B, C)), TeacherOutputs(teachers)
            weights = method_for({"type": name}, K).teacher_weights(*given, labels, 1.0)
            torch.testing.assert_close(weights[:, b], expected)


@pytest.mark.parametrize("name", [name for name in kd_methods.names() if name != kd_methods.LABEL_ONLY])
def test_other_weights_do_not_depend_on_labels(name: str) -> None:
    student, teachers, labels = inputs()
    given = StudentOutput(student), TeacherOutputs(teachers)
    more = {"teacher": 0} if name == "best" else {}
    weights = [method_for({"type": name, **more}, K).teacher_weights(*given, y, 1.0) for y in (labels, labels.flip(0))]
    by_label = {"ca_mkd", "ca_weighted", "confidence", "dynamic", "min_ce"}
    assert torch.equal(*weights) == (name not in by_label)


@pytest.mark.parametrize("entry", feature_cases.ALL, ids=json.dumps)
def test_feature_losses(entry: dict[str, Any]) -> None:
    def terms(labels: Tensor) -> tuple[Tensor, list[Tensor]]:
        sample = feature_cases.case(entry)
        sample.labels = labels
        loss, metrics = sample.call()
        return metrics["loss_features"], feature_cases.gradients(sample, loss)

    if entry["loss"] == "ofa":
        entry = {**entry, "eps": 1.5}  # at 1 the label cancels out
    labels = feature_cases.case(entry).labels
    hard = F.one_hot(labels, feature_cases.CLASSES).float()
    torch.testing.assert_close(terms(hard), terms(labels))
    mixed = 0.6 * hard + 0.4 * hard.roll(1, 0)
    term, gradients = terms(mixed)
    assert term.isfinite() and all(gradient.isfinite().all() for gradient in gradients)
    kind = FEATURES_WITH_LABELS.get(entry["loss"])
    assert torch.equal(term, terms(labels)[0]) == (kind != "mean")
    assert torch.equal(term, terms(mixed.roll(1, 1))[0]) == (kind is None)


def test_names_are_losses() -> None:
    assert set(kd_methods.losses()) >= SINGLE_OUT and set(feature_losses.names()) >= FEATURES_WITH_LABELS.keys()
