"""What every method promises, tested for all of them; a new file in kd_methods needs no edit here."""

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kernels import CountKernels
from method_variants import (
    FIXED,
    GROWING,
    RANDOM,
    SWITCHES,
    VARIANTS,
    WHOLE_BATCH,
    every_teacher_variant,
    every_variant,
    method_for,
    outputs,
)
from torch import Tensor

import kd_methods
from kd_methods import KDMethod, StudentOutput, TeacherOutputs

CLASSES = 10


def inputs(num_teachers: int = 3, batch: int = 6, scale: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student = scale * torch.randn(batch, CLASSES, generator=generator)
    teachers = scale * torch.randn(num_teachers, batch, CLASSES, generator=generator)
    return student, teachers, torch.randint(CLASSES, (batch,), generator=generator)


def call(
    method: KDMethod, student: Tensor, teachers: Tensor, labels: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    return method(*outputs(method, student, teachers), labels)


def loss_and_gradient(
    method: KDMethod, student: Tensor, teachers: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    student = student.detach().requires_grad_()
    loss, _ = call(method, student, teachers, labels)
    (gradient,) = torch.autograd.grad(loss, student)
    return loss.detach(), gradient


@every_variant
@pytest.mark.parametrize("num_teachers", [1, 2, 3, 10])
def test_loss_metrics_and_gradients(config: dict[str, Any], num_teachers: int) -> None:
    student, teachers, labels = inputs(num_teachers)
    student.requires_grad_()
    teachers.requires_grad_()
    method = method_for(config, num_teachers)
    loss, metrics = call(method, student, teachers, labels)
    assert loss.shape == () and loss.isfinite() and loss > 0
    loss.backward()
    assert student.grad is not None and student.grad.isfinite().all() and student.grad.abs().sum() > 0
    assert teachers.grad is None
    assert all(parameter.numel() == 0 for parameter in method.parameters()), (
        "nothing to train in a logit method"
    )

    assert {"loss_label", "loss_distill", "kd_weight"} <= metrics.keys()
    for name, value in metrics.items():
        assert value.shape == () and value.isfinite() and not value.requires_grad, name
        assert value.dtype == torch.float32, name
    assert 0 <= metrics["kd_weight"] <= 1
    weights = [metrics[name] for name in sorted(metrics) if name.startswith("teacher/")]
    assert len(weights) == (num_teachers if method.requires_teachers else 0)
    if weights:
        torch.testing.assert_close(sum(weights), torch.tensor(1.0))


@every_variant
def test_order_and_repetition_of_samples_do_not_matter(config: dict[str, Any]) -> None:
    if config["type"] == RANDOM:
        pytest.skip("every step has other weights")
    student, teachers, labels = inputs()
    method = method_for(config, 3)
    loss, gradient = loss_and_gradient(method, student, teachers, labels)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    permuted = loss_and_gradient(method, student[order], teachers[:, order], labels[order])
    torch.testing.assert_close(permuted, (loss, gradient[order]), rtol=1e-4, atol=1e-6)
    if config.get("loss") in GROWING:
        return
    twice = loss_and_gradient(method, student.repeat(2, 1), teachers.repeat(1, 2, 1), labels.repeat(2))
    torch.testing.assert_close(twice, (loss, gradient.repeat(2, 1) / 2), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", kd_methods.names())
def test_settings_that_balance_the_terms_do(name: str) -> None:
    student, teachers, labels = inputs()
    _, usual = call(method_for({"type": name}, 3), student, teachers, labels)
    for key in kd_methods.config_class(name).balance:
        _, changed = call(method_for({"type": name, key: 0.1}, 3), student, teachers, labels)
        assert abs(changed["kd_weight"] - usual["kd_weight"]) > 0.05, key


@every_teacher_variant
def test_order_of_teachers_does_not_matter(config: dict[str, Any]) -> None:
    if config["type"] in (*FIXED, RANDOM):
        pytest.skip("the weights belong to the teachers' numbers")
    student, teachers, labels = inputs()
    method = method_for(config, 3)
    order = [2, 0, 1]
    torch.testing.assert_close(
        loss_and_gradient(method, student, teachers[order], labels),
        loss_and_gradient(method, student, teachers, labels),
        rtol=1e-4,
        atol=1e-6,
    )
    _, metrics = call(method, student, teachers, labels)
    _, permuted = call(method, student, teachers[order], labels)
    for new, old in enumerate(order):
        torch.testing.assert_close(permuted[f"teacher/{new}/weight"], metrics[f"teacher/{old}/weight"])


@every_variant
def test_one_hot_soft_labels_equal_hard_labels(config: dict[str, Any]) -> None:
    if config["type"] == RANDOM:
        pytest.skip("every step has other weights")
    student, teachers, labels = inputs()
    method = method_for(config, 3, label_smoothing=0.1)
    soft = F.one_hot(labels, CLASSES).float()
    torch.testing.assert_close(
        loss_and_gradient(method, student, teachers, soft),
        loss_and_gradient(method, student, teachers, labels),
    )
    mixed = 0.7 * soft + 0.3 * soft.roll(1, 0)
    loss, gradient = loss_and_gradient(method, student, teachers, mixed)
    assert loss.isfinite() and gradient.isfinite().all()


@every_variant
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_give_the_fp32_loss(config: dict[str, Any], dtype: torch.dtype) -> None:
    if config["type"] == RANDOM:
        pytest.skip("every step has other weights")
    student, teachers, labels = (x.to(dtype) if x.is_floating_point() else x for x in inputs())
    method = method_for(config, 3)
    expected, gradient = loss_and_gradient(method, student.float(), teachers.float(), labels)
    student.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, _ = call(method, student, teachers, labels)
    # Outside, as in training: autocast would reach the products of the backward pass.
    (half_gradient,) = torch.autograd.grad(actual, student)
    assert actual.dtype == torch.float32 and torch.equal(actual, expected)
    torch.testing.assert_close(half_gradient, gradient.to(dtype))


def test_autocast_is_off_inside_a_method() -> None:
    class Product(KDMethod):
        def compute(self, student: StudentOutput, *_: Any) -> tuple[Tensor, dict[str, Tensor]]:
            assert not torch.is_autocast_enabled("cpu")
            return (student.logits @ student.logits.T).sum(), {}

    student, teachers, labels = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = call(Product(kd_methods.build({"type": "average"}).config), student, teachers, labels)
    assert loss.dtype == torch.float32


@every_variant
def test_evaluation_gives_the_same_loss(config: dict[str, Any]) -> None:
    if config["type"] == RANDOM:
        pytest.skip("every step has other weights")
    method = method_for(config, 3)
    loss, _ = call(method, *inputs())
    with torch.inference_mode():
        evaluated, _ = call(method.eval(), *inputs())
    assert torch.equal(evaluated, loss.detach())


@every_variant
def test_one_packed_reduction_at_most(config: dict[str, Any]) -> None:
    student, teachers, labels = inputs()
    method = method_for(config, 3)
    seen: list[Tensor] = []

    def record(values: Tensor) -> Tensor:
        seen.append(values)
        return values

    method.reduce_mean = record
    call(method, student.requires_grad_(), teachers, labels)
    assert len(seen) <= 1
    assert all(values.ndim == 1 and not values.requires_grad for values in seen)
    if config.get("scope") == "sample" and config["type"] != "aekd":
        assert not seen


@pytest.mark.parametrize("config", [v for v in VARIANTS if v.get("loss") not in WHOLE_BATCH], ids=json.dumps)
def test_two_processes_with_a_shared_mean_train_as_one(config: dict[str, Any]) -> None:
    if config["type"] == RANDOM:
        pytest.skip("every step has other weights")
    # Left out are terms of the whole batch, which see one process's batch, as docs/methods.md says.
    student, teachers, labels = inputs(batch=8)
    method = method_for(config, 3)
    whole = loss_and_gradient(method, student, teachers, labels)
    halves = [(student[rows], teachers[:, rows], labels[rows]) for rows in (slice(0, 4), slice(4, 8))]

    sent: list[Tensor] = []

    def send(values: Tensor) -> Tensor:
        sent.append(values)
        return values

    method.reduce_mean = send
    for half in halves:
        call(method, *half)
    method.reduce_mean = lambda _: torch.stack(sent).mean(0)
    (loss_a, gradient_a), (loss_b, gradient_b) = (loss_and_gradient(method, *half) for half in halves)
    together = (loss_a + loss_b) / 2, torch.cat([gradient_a, gradient_b]) / 2
    torch.testing.assert_close(together, whole, rtol=1e-4, atol=1e-6)
    if sent:
        method.reduce_mean = lambda values: values
        alone = loss_and_gradient(method, *halves[0])[1]
        assert not torch.allclose(alone, gradient_a, rtol=1e-4), "the shared mean has to matter"


def kernels(method: KDMethod, num_teachers: int, batch: int) -> int:
    student, teachers, labels = inputs(num_teachers, batch)
    with CountKernels() as counter:
        call(method, student, teachers, labels)
    return counter.counts.total()


@every_variant
def test_kernels_do_not_grow_with_batch_or_teachers(config: dict[str, Any]) -> None:
    few, many = (method_for(config, number) for number in (2, 10))
    count = kernels(few, num_teachers=2, batch=3)
    if config["type"] == "aekd":  # its minimum takes more for more teachers
        assert count == kernels(few, num_teachers=2, batch=64) and kernels(many, num_teachers=10, batch=3) < 2000
        return
    assert count == kernels(many, num_teachers=10, batch=64)
    loss = config.get("loss", "kd")
    of_a_sample = loss not in WHOLE_BATCH and config.get("average_of") == "losses"
    if not config.keys() & SWITCHES and (loss == "kd" or of_a_sample):
        assert count <= 40


@every_variant
def test_label_smoothing_is_in_the_label_loss_only(config: dict[str, Any]) -> None:
    student, teachers, labels = inputs()
    _, plain = call(method_for(config, 3), student, teachers, labels)
    _, smooth = call(method_for(config, 3, label_smoothing=0.2), student, teachers, labels)
    label_terms = {"loss_label", "loss_ce", "loss_hard"}
    for name in plain.keys() - label_terms:
        assert torch.equal(plain[name], smooth[name]), name
    if config.get("use_hard_loss", True):
        own, _ = outputs(method_for(config, 3), student, teachers)
        expected = F.cross_entropy(student, labels, label_smoothing=0.2)
        if own.second is not None:
            expected = expected + F.cross_entropy(own.second, labels, label_smoothing=0.2)
        torch.testing.assert_close(smooth["loss_label"], expected)


@every_teacher_variant
def test_mismatched_inputs_are_named(config: dict[str, Any]) -> None:
    student, teachers, labels = inputs()
    method = method_for(config, 3, num_classes=CLASSES)
    with pytest.raises(ValueError, match="needs teacher logits"):
        method(StudentOutput(student), TeacherOutputs(), labels)
    with pytest.raises(
        ValueError, match=r"teacher logits have shape \(6, 10\); they must be \[teachers, 6, 10\]"
    ):
        call(method, student, teachers[0], labels)
    with pytest.raises(ValueError, match="torch.stack"):
        call(method, student, teachers[:0], labels)
    with pytest.raises(ValueError, match="labels are torch.float32"):
        call(method, student, teachers, labels.float())
    with pytest.raises(ValueError, match="labels are torch.int64"):
        call(method, student, teachers, labels[:3])
    with pytest.raises(ValueError, match="7 classes; the method expects 10"):
        call(method, student[:, :7], teachers[..., :7], labels)


@every_teacher_variant
def test_logged_weights_are_the_batch_means_of_teacher_weights(config: dict[str, Any]) -> None:
    student, teachers, labels = inputs()
    method = method_for(config, 3)
    given = outputs(method, student.requires_grad_(), teachers)
    _, metrics = method(*given, labels, 0.5)
    weights = method.teacher_weights(*given, labels, 0.5)
    assert weights.shape in ((3, 6), (3, 1)) and not weights.requires_grad
    torch.testing.assert_close(weights.sum(0), torch.ones(weights.shape[1]))
    logged = torch.stack([metrics[f"teacher/{index}/weight"] for index in range(3)])
    torch.testing.assert_close(logged, weights.mean(1))


def test_a_method_without_weights_of_teachers_says_so() -> None:
    method = kd_methods.build({"type": kd_methods.LABEL_ONLY})
    with pytest.raises(NotImplementedError, match=r"kd\.type 'baseline' gives teachers no weights"):
        method.teacher_weights(StudentOutput(torch.zeros(2, 4)), TeacherOutputs(), torch.zeros(2).long(), 1.0)


@pytest.mark.parametrize(
    ("loss", "zeros"),
    [
        ("dkd", ("alpha", "beta")), ("dist", ("beta", "gamma")), ("rld", ("alpha", "beta")),
        ("mlkd", ("instance_weight", "class_weight", "batch_weight")),
        ("crld", ("within_weight", "cross_weight")),
    ],
)  # fmt: skip
def test_a_logit_loss_of_nothing_is_refused(loss: str, zeros: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=f"{zeros[0]}.* 0, which leaves no loss; raise one"):
        kd_methods.build({"type": "average", "loss": loss, loss: dict.fromkeys(zeros, 0.0)})


def test_features_with_a_method_that_weights_no_teachers_are_refused() -> None:
    class Unweighted(kd_methods.KDMethod):
        pass

    entries = [{"loss": "mse", "student": [0], "teacher": [0]}]
    config = kd_methods.config_class("average").model_validate({"features": entries})
    with pytest.raises(ValueError, match=r"kd.type 'average' gives teachers no weights: its Method needs a function"):
        Unweighted(config, student_shapes=[(4,)], teacher_shapes=[[(4,)]])
