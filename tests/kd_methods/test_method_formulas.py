"""Losses against slow, obvious float64 loops, and the mistakes that this field's code is known for."""

import math
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from method_variants import ONE_VIEW
from torch import Tensor

import kd_methods
from kd_methods import StudentOutput, TeacherOutputs
from kd_methods._weights import label_confidence_weights, label_probability
from kd_methods.feature_losses._base import with_own_rows
from kd_methods.logit_losses import abkd, dist, dkd, kd, mlkd, nkd, rld, skd, ttm, wttm
from kd_methods.logit_losses._base import LossConfig, correct, correlation, standardize

B, C, K = 5, 7, 3


def inputs(num_teachers: int = K) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    student = 2 * torch.randn(B, C, generator=generator, dtype=torch.float64)
    teachers = 2 * torch.randn(num_teachers, B, C, generator=generator, dtype=torch.float64)
    return student, teachers, torch.randint(C, (B,), generator=generator)


def logit_loss(
    module: Any,
    student: Tensor,
    teachers: Tensor,
    labels: Tensor,
    temperature: float,
    config: LossConfig | None = None,
    progress: float = 1.0,
) -> Tensor:
    """The loss [K,B] of a file in kd_methods/logit_losses, with its default parameters unless `config` has others."""
    return module.loss(student, teachers, labels, temperature, progress, config or module.Config())


def run(config: dict[str, Any], num_teachers: int = K, **kwargs: Any) -> tuple[float, dict[str, Tensor]]:
    student, teachers, labels = inputs(num_teachers)
    loss, metrics = kd_methods.build(config, **kwargs)(
        StudentOutput(student), TeacherOutputs(teachers), labels
    )
    return loss.item(), metrics


def softmax(logits: Tensor, temperature: float = 1.0) -> list[float]:
    exponentials = [math.exp(z / temperature) for z in logits.tolist()]
    return [e / sum(exponentials) for e in exponentials]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def pearson(x: list[float], y: list[float]) -> float:
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    # 1e-8 as in the code of DIST's authors
    return covariance / (math.sqrt(sum((a - mean_x) ** 2 for a in x) * sum((b - mean_y) ** 2 for b in y)) + 1e-8)


def cross_entropies(logits: Tensor, labels: Tensor) -> list[float]:
    return [-math.log(softmax(row)[label]) for row, label in zip(logits, labels.tolist(), strict=True)]


def ca_weights(teachers: Tensor, labels: Tensor, b: int) -> list[float]:
    ces = [cross_entropies(teacher, labels)[b] for teacher in teachers]
    return [(1 - math.exp(ce) / sum(map(math.exp, ces))) / (len(ces) - 1) for ce in ces]


def kd_loss(student: Tensor, teacher: Tensor, temperature: float) -> float:
    return temperature**2 * kl(softmax(teacher, temperature), softmax(student, temperature))


def test_kd_sums_over_classes_and_averages_over_the_batch() -> None:  # not the mean over B * C
    student, teachers, labels = inputs()
    expected = [[kd_loss(s, t, 4.0) for s, t in zip(student, teacher, strict=True)] for teacher in teachers]
    torch.testing.assert_close(
        logit_loss(kd, student, teachers, labels, 4.0), torch.tensor(expected, dtype=torch.float64)
    )


def test_dkd() -> None:
    student, teachers, labels = inputs()
    params = dkd.Config(alpha=1.5, beta=3.0, warmup=0.0)
    actual = logit_loss(dkd, student, teachers, labels, 2.0, params, progress=0.0)
    for k in range(K):
        for b in range(B):
            y, p_s, p_t = int(labels[b]), softmax(student[b], 2.0), softmax(teachers[k, b], 2.0)
            tckd = kl([p_t[y], 1 - p_t[y]], [p_s[y], 1 - p_s[y]])
            rest_t = [p / (1 - p_t[y]) for c, p in enumerate(p_t) if c != y]
            rest_s = [p / (1 - p_s[y]) for c, p in enumerate(p_s) if c != y]
            assert actual[k, b].item() == pytest.approx(4 * (1.5 * tckd + 3.0 * kl(rest_t, rest_s)), rel=1e-9)
            # the paper's identity: KD = TCKD + (1 - p_y^t) NCKD
            whole = 4 * (tckd + (1 - p_t[y]) * kl(rest_t, rest_s))
            plain = logit_loss(kd, student, teachers, labels, 2.0)
            assert plain[k, b].item() == pytest.approx(whole, rel=1e-9)


def test_dkd_warms_up_by_progress() -> None:
    student, teachers, labels = inputs()

    def value(progress: float, **params: float) -> float:
        method = kd_methods.build({"type": "average", "loss": "dkd", "dkd": params, "hard_weight": 0.0})
        return method(StudentOutput(student), TeacherOutputs(teachers), labels, progress)[0].item()

    full = value(1.0)
    assert value(0.0) == 0
    assert value(10 / 240) == pytest.approx(full / 2)
    assert value(20 / 240) == pytest.approx(full)  # by default 20 of 240 epochs
    assert value(0.0, warmup=0.0) == pytest.approx(full)


def test_dist() -> None:
    student, teachers, labels = inputs()
    actual = logit_loss(dist, student, teachers, labels, 3.0, dist.Config(beta=2.0, gamma=0.5))
    p_s = [softmax(row, 3.0) for row in student]
    for k in range(K):
        p_t = [softmax(row, 3.0) for row in teachers[k]]
        columns = [pearson([row[c] for row in p_s], [row[c] for row in p_t]) for c in range(C)]
        for b in range(B):
            expected = 2.0 * (1 - pearson(p_s[b], p_t[b])) + 0.5 * (1 - sum(columns) / C)
            assert actual[k, b].item() == pytest.approx(9 * expected, rel=1e-9)


def test_nkd() -> None:
    student, teachers, labels = inputs()
    actual = logit_loss(nkd, student, teachers, labels, 2.0, nkd.Config(gamma=0.7))
    for k in range(K):
        for b in range(B):
            y = int(labels[b])
            target = softmax(teachers[k, b])[y] * math.log(softmax(student[b])[y])
            rest_t, rest_s = (without(softmax(row, 2.0), y) for row in (teachers[k, b], student[b]))
            others = sum(p * math.log(q) for p, q in zip(rest_t, rest_s, strict=True))
            assert actual[k, b].item() == pytest.approx(-target - 0.7 * 4 * others, rel=1e-9)


def without(p: list[float], *classes: int) -> list[float]:
    """Probabilities of the other classes, that sum to 1 again."""
    rest = [value for c, value in enumerate(p) if c not in classes]
    return [value / sum(rest) for value in rest]


def test_ttm_and_wttm() -> None:
    student, teachers, labels = inputs()
    plain = logit_loss(ttm, student, teachers, labels, 4.0, ttm.Config(exponent=0.3))
    weighted = logit_loss(wttm, student, teachers, labels, 4.0, wttm.Config(exponent=0.3))
    for k in range(K):
        for b in range(B):
            powers = [p**0.3 for p in softmax(teachers[k, b])]
            expected = kl([power / sum(powers) for power in powers], softmax(student[b]))
            assert plain[k, b].item() == pytest.approx(expected, rel=1e-9)
            assert weighted[k, b].item() == pytest.approx(sum(powers) * expected, rel=1e-9)


def test_rld() -> None:
    student, teachers, labels = inputs()
    labels[0] = teachers[0, 0].argmin()  # no class is below it
    labels[1] = teachers[0, 1].argmax()  # a teacher that is right
    params = rld.Config(alpha=1.5, beta=3.0, alpha_temperature=2.0)
    actual = logit_loss(rld, student, teachers, labels, 3.0, params)
    for k in range(K):
        for b in range(B):
            y, t = int(labels[b]), teachers[k, b].tolist()
            top, own = max(softmax(teachers[k, b], 2.0)), softmax(student[b], 2.0)[y]
            out = [c for c in range(C) if t[c] >= t[y]]
            masked = 0.0
            if len(out) < C:
                rest_t, rest_s = (without(softmax(row, 3.0), *out) for row in (teachers[k, b], student[b]))
                masked = kl(rest_t, rest_s)
            expected = 1.5 * 4 * kl([top, 1 - top], [own, 1 - own]) + 3.0 * 9 * masked
            assert actual[k, b].item() == pytest.approx(expected, rel=1e-9)


def test_rld_is_dkd_where_the_teacher_is_right() -> None:
    student, teachers, _ = inputs(1)
    labels = teachers[0].argmax(-1)
    params = rld.Config(alpha=1.0, beta=8.0, alpha_temperature=4.0)
    actual = logit_loss(rld, student, teachers, labels, 4.0, params)
    torch.testing.assert_close(actual, logit_loss(dkd, student, teachers, labels, 4.0))


def test_rld_warms_up_by_progress() -> None:
    student, teachers, labels = inputs()
    full = logit_loss(rld, student, teachers, labels, 4.0)
    for progress, share in ((0.0, 0.0), (10 / 240, 0.5), (20 / 240, 1.0)):
        actual = logit_loss(rld, student, teachers, labels, 4.0, progress=progress)
        torch.testing.assert_close(actual, share * full)


@pytest.mark.parametrize(("alpha", "beta"), [(0.8, 0.3), (1.2, -0.2), (-0.5, 1.0), (1.0, 0.0), (0.0, 1.0), (0.5, 0.0)])
def test_abkd(alpha: float, beta: float) -> None:
    """The limits are those of the general formula close by."""
    student, teachers, labels = inputs()
    actual = logit_loss(abkd, student, teachers, labels, 2.0, abkd.Config(alpha=alpha, beta=beta))
    a, b, close = alpha or 1e-7, beta or 1e-7, 1e-9 if alpha and beta else 1e-5
    for k in range(K):
        for i in range(B):
            p_t, p_s = softmax(teachers[k, i], 2.0), softmax(student[i], 2.0)
            terms = [
                p ** (a + b) / (b * (a + b)) + q ** (a + b) / (a * (a + b)) - p**a * q**b / (a * b)
                for p, q in zip(p_t, p_s, strict=True)
            ]
            assert actual[k, i].item() == pytest.approx(sum(terms), rel=close)
            if (alpha, beta) == (1.0, 0.0):
                assert actual[k, i].item() == pytest.approx(kl(p_t, p_s), rel=1e-9)
            if (alpha, beta) == (0.0, 1.0):
                assert actual[k, i].item() == pytest.approx(kl(p_s, p_t), rel=1e-9)


def gram(rows: list[list[float]]) -> list[list[float]]:
    return [[sum(a * b for a, b in zip(x, y, strict=True)) for y in rows] for x in rows]


def squares(x: list[list[float]], y: list[list[float]]) -> float:
    return sum((a - b) ** 2 for p, q in zip(x, y, strict=True) for a, b in zip(p, q, strict=True))


def up_to_median(values: list[float]) -> float:
    return sum(value <= statistics.median(values) for value in values) / len(values)


def test_mlkd() -> None:
    student, teachers, labels = inputs()
    params = mlkd.Config(temperatures=[2.0], instance_weight=0.5, class_weight=2.0, batch_weight=3.0)
    actual = logit_loss(mlkd, student, teachers, labels, 4.0, params)
    for k in range(K):
        probabilities = [softmax(row) for row in teachers[k]]
        samples = up_to_median([max(p) for p in probabilities])
        classes = up_to_median([sum(column) for column in zip(*probabilities, strict=True)])
        whole = 0.0
        for temperature in (4.0, 2.0):
            q_s, q_t = ([softmax(row, temperature) for row in rows] for rows in (student, teachers[k]))
            columns_s, columns_t = (list(map(list, zip(*q, strict=True))) for q in (q_s, q_t))
            whole += 2.0 * classes * squares(gram(columns_s), gram(columns_t)) / C
            whole += 3.0 * samples * squares(gram(q_s), gram(q_t)) / B
        for b in range(B):
            instance = sum(kd_loss(student[b], teachers[k, b], temperature) for temperature in (4.0, 2.0))
            assert actual[k, b].item() == pytest.approx(0.5 * samples * instance + whole, rel=1e-9)


def test_mlkd_standardizes_its_instance_term_alone() -> None:
    student, teachers, labels = inputs()

    def value(standardize: bool, **weights: float) -> Tensor:
        config = {"type": "average", "loss": "mlkd", "standardize": standardize, "mlkd": weights}
        return kd_methods.build(config)(StudentOutput(student), TeacherOutputs(teachers), labels)[1]["loss_kl"]

    off = {"instance_weight": 0.0, "class_weight": 0.0, "batch_weight": 0.0}
    for part in off:
        same = torch.equal(value(True, **{**off, part: 1.0}), value(False, **{**off, part: 1.0}))
        assert same == (part != "instance_weight"), part


def test_skd() -> None:
    student, teachers, labels = inputs()
    actual = logit_loss(skd, student, teachers, labels, 4.0, skd.Config(ridge=0.2))

    def directions(logits: Tensor) -> Tensor:
        unit = [[value / math.hypot(*row) for value in row] for row in logits.tolist()]
        return torch.tensor(gram(unit), dtype=torch.float64) / C

    for k in range(K):
        difference = directions(student) - directions(teachers[k])
        covariance = torch.cov(difference.T) + 0.2 * torch.eye(B, dtype=torch.float64)
        for b, row in enumerate(difference):
            distance = math.sqrt(row @ covariance.inverse() @ row)
            expected = kd_loss(student[b], teachers[k, b], 4.0) + distance
            assert actual[k, b].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("loss", [loss for loss in ONE_VIEW if loss != "mlkd"])
def test_standardize_is_the_loss_of_standardized_logits(loss: str) -> None:
    student, teachers, labels = inputs()
    config = {"type": "average", "loss": loss}

    def z_score(logits: Tensor) -> Tensor:
        return (logits - logits.mean(-1, keepdim=True)) / (logits.std(-1, keepdim=True) + 1e-7)

    raw = StudentOutput(student), TeacherOutputs(teachers)
    standardized = StudentOutput(z_score(student)), TeacherOutputs(z_score(teachers))
    actual = kd_methods.build({**config, "standardize": True})(*raw, labels)[1]["loss_kl"]
    torch.testing.assert_close(actual, kd_methods.build(config)(*standardized, labels)[1]["loss_kl"])
    assert not torch.allclose(actual, kd_methods.build(config)(*raw, labels)[1]["loss_kl"])


@pytest.mark.parametrize("loss", ["kd", "dkd"])
def test_norm_temperature(loss: str) -> None:
    """T times the deviation of each logits is the temperature; the factor is the square of the teacher's."""
    student, teachers, labels = inputs()
    config = {"type": "average", "loss": loss, "temperature": 2.0, "norm_temperature": True}
    actual = kd_methods.build(config).logit_loss(student, teachers, labels)
    module: Any = {"kd": kd, "dkd": dkd}[loss]
    for k in range(K):
        for b in range(B):
            of_s, of_t = 2 * student[b].std(), 2 * teachers[k, b].std()
            one = slice(b, b + 1)
            value = logit_loss(module, student[one] / of_s, teachers[k : k + 1, one] / of_t, labels[one], 1.0)
            assert actual[k, b].item() == pytest.approx(of_t.item() ** 2 * value.item(), rel=1e-6)  # deviation + 1e-7


@pytest.mark.parametrize("standardized", [False, True])
def test_entropy_weight(standardized: bool) -> None:
    """Of the raw logits at temperature 3, whatever the loss sees, and without gradient."""
    student, teachers, labels = inputs()
    student.requires_grad_()
    config = {"type": "average", "standardize": standardized}
    plain = kd_methods.build(config).logit_loss(student, teachers, labels)
    actual = kd_methods.build({**config, "entropy_weight": True}).logit_loss(student, teachers, labels)
    weights = torch.empty(K, B, dtype=torch.float64)
    for k in range(K):
        for b in range(B):
            of_s, of_t = (-sum(p * math.log(p) for p in softmax(row, 3.0)) for row in (student[b], teachers[k, b]))
            weights[k, b] = (of_t + of_t * of_s / math.log(C)) / 2
    torch.testing.assert_close(actual, plain * weights)
    (gradient,), (expected,) = (torch.autograd.grad(x.sum(), student) for x in (actual, plain * weights))
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("how", ["swap", "raise"])
@pytest.mark.parametrize("soft", [False, True])
def test_correct_labels(how: str, soft: bool) -> None:
    student, teachers, labels = inputs()
    labels[1] = teachers[0, 1].argmax()
    expected = teachers.clone()
    for k in range(K):
        for b in range(B):
            y, top = int(labels[b]), int(teachers[k, b].argmax())
            expected[k, b, y] = teachers[k, b, top]
            if how == "swap":
                expected[k, b, top] = teachers[k, b, y]
    given = 0.6 * F.one_hot(labels, C) + 0.4 / C if soft else labels
    assert torch.equal(correct(teachers, given, how), expected)
    assert torch.equal(expected[0, 1], teachers[0, 1]) and not torch.equal(expected, teachers)
    for loss in ("kd", "rld"):
        config = {"type": "average", "loss": loss}
        corrected = kd_methods.build({**config, "correct_labels": how}).logit_loss(student, teachers, given)
        assert torch.equal(corrected, kd_methods.build(config).logit_loss(student, expected, given))


@pytest.mark.parametrize("loss", [loss for loss in ONE_VIEW if loss not in ("ttm", "wttm")])
def test_a_temperature_per_teacher(loss: str) -> None:
    student, teachers, labels = inputs()
    temperatures = [1.0, 2.5, 8.0]
    method = kd_methods.build({"type": "average", "loss": loss, "teacher_temperatures": temperatures})
    actual = method.logit_loss(student, teachers, labels)
    for k, temperature in enumerate(temperatures):
        alone = kd_methods.build({"type": "average", "loss": loss, "temperature": temperature})
        torch.testing.assert_close(actual[k : k + 1], alone.logit_loss(student, teachers[k : k + 1], labels))
    assert "at T=1, 2.5, 8" in method.describe(3)


def test_a_temperature_per_teacher_with_a_loss_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets numbers, one call for each teacher."""
    student, teachers, labels = inputs()
    seen = []

    def own(student: Tensor, teachers: Tensor, labels: Tensor, temperature: float, progress: float) -> Tensor:
        seen.append(temperature)
        return temperature**2 * (teachers - student).square().mean(-1)

    monkeypatch.setattr("kd_methods.logit_losses._added", {"own": own})
    method = kd_methods.build({"type": "average", "loss": "own", "teacher_temperatures": [1, 2, 3]})
    expected = torch.stack([(k + 1) ** 2 * (teachers[k] - student).square().mean(-1) for k in range(K)])
    torch.testing.assert_close(method.logit_loss(student, teachers, labels), expected)
    assert seen == [1, 2, 3] and all(type(each) is float for each in seen)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e4])
def test_constant_vectors_have_no_correlation_and_no_gradient(constant: float) -> None:
    values = torch.full((3, 100), constant, requires_grad=True)
    ramp = torch.arange(100.0)
    for result in (standardize(values), correlation(values, ramp.expand(3, 100), -1)):
        (gradient,) = torch.autograd.grad((result * ramp[: result.shape[-1]]).sum(), values)
        assert torch.equal(result, torch.zeros_like(result)) and torch.equal(gradient, torch.zeros(3, 100))


def test_average_of_probabilities_teaches_the_ensemble() -> None:
    student, teachers, labels = inputs()
    loss, _ = run({"type": "average", "average_of": "probabilities", "hard_weight": 0.1, "soft_weight": 0.9})
    expected = 0.1 * sum(cross_entropies(student, labels)) / B
    for b in range(B):
        p_t = [softmax(teacher[b], 4.0) for teacher in teachers]
        mean = [sum(p[c] for p in p_t) / K for c in range(C)]
        expected += 0.9 * 16 * kl(mean, softmax(student[b], 4.0)) / B
    assert loss == pytest.approx(expected, rel=1e-9)


def test_ca_weighted_per_sample() -> None:
    student, teachers, labels = inputs()
    expected = 0.0
    for b, ce in enumerate(cross_entropies(student, labels)):
        weights = ca_weights(teachers, labels, b)
        soft = (w * kd_loss(student[b], teachers[k, b], 4.0) for k, w in enumerate(weights))
        expected += (ce + sum(soft)) / B
    assert run({"type": "ca_weighted", "scope": "sample"})[0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("num_teachers", [1, K])
def test_dynamic_per_sample(num_teachers: int) -> None:
    student, teachers, labels = inputs(num_teachers)
    config = {"type": "dynamic", "scope": "sample", "gamma": 2.0, "threshold": 0.3, "alpha": 0.4}
    expected, gates = 0.0, []
    for b, ce in enumerate(cross_entropies(student, labels)):
        y = int(labels[b])
        losses = [kd_loss(student[b], teacher[b], 4.0) for teacher in teachers]
        if num_teachers == 1:
            expected += (0.4 * losses[0] + 0.6 * ce) / B
            continue
        confidence = sum(softmax(teacher[b])[y] for teacher in teachers) / num_teachers
        gates.append(1 / (1 + math.exp(-2.0 * (confidence - 0.3))))
        soft = sum(w * x for w, x in zip(ca_weights(teachers, labels, b), losses, strict=True))
        expected += (gates[-1] * soft + (1 - gates[-1]) * 0.4 * ce) / B
    loss, metrics = run(config, num_teachers)
    assert loss == pytest.approx(expected, rel=1e-9)
    gate = sum(gates) / B if gates else 1.0
    assert metrics["gate"].item() == pytest.approx(gate)
    share = sum(g / (g + (1 - g) * 0.4) for g in gates) / B if gates else 0.4
    assert metrics["kd_weight"].item() == pytest.approx(share)


def test_confidence_per_sample() -> None:
    student, teachers, labels = inputs()
    expected, usage = 0.0, [0] * K
    for b, ce in enumerate(cross_entropies(student, labels)):
        confidences = [softmax(teacher[b])[int(labels[b])] for teacher in teachers]
        best = confidences.index(max(confidences))
        usage[best] += 1
        alpha = confidences[best]
        expected += (alpha * kd_loss(student[b], teachers[best, b], 4.0) + (1 - alpha) * ce) / B
    loss, metrics = run({"type": "confidence", "scope": "sample"})
    assert loss == pytest.approx(expected, rel=1e-9)
    for k in range(K):
        assert metrics[f"teacher_{k}_usage_fraction"].item() == pytest.approx(usage[k] / B)
        assert metrics[f"teacher/{k}/weight"].item() == pytest.approx(usage[k] / B)


def test_hard_only_variants_are_the_label_loss() -> None:
    student, _, labels = inputs()
    ce = sum(cross_entropies(student, labels)) / B
    loss, metrics = run({"type": "dynamic", "use_soft_loss": False, "alpha": 0.25})
    assert loss == pytest.approx(0.25 * ce)
    assert [metrics[key].item() for key in ("gate", "avg_teacher_conf", "loss_soft", "kd_weight")] == [0] * 4
    assert metrics["loss_hard"].item() == pytest.approx(ce)
    loss, metrics = run({"type": "confidence", "use_soft_loss": False})
    assert loss == pytest.approx(ce) and metrics["dynamic_alpha"] == 0


def test_one_teacher_is_plain_kd() -> None:
    _, average = run({"type": "average"}, 1)
    for name in ("ca_weighted", "dynamic", "confidence"):  # 1 / (K - 1) is not reached; no term vanishes
        for scope in ("batch", "sample"):
            _, metrics = run({"type": name, "scope": scope}, 1)
            assert metrics["teacher/0/weight"] == 1
            if name != "confidence" or scope == "batch":
                torch.testing.assert_close(metrics["loss_distill"], average["loss_kl"])


def test_temperature_squared_keeps_the_gradient_scale() -> None:
    student, teachers, labels = inputs()
    norms = []
    for temperature in (8.0, 16.0):
        leaf = student.clone().requires_grad_()
        logit_loss(kd, leaf, teachers, labels, temperature).mean().backward()
        assert leaf.grad is not None
        norms.append(leaf.grad.norm().item())
    assert norms[1] == pytest.approx(norms[0], rel=0.1)  # without the factor they would differ fourfold


def test_weights_and_confidences_ignore_the_temperature() -> None:
    for name, keys in {
        "ca_weighted": ["teacher/0/weight"],
        "dynamic": ["teacher/0/weight", "gate", "avg_teacher_conf"],
        "confidence": ["dynamic_alpha", "max_teacher_conf_mean"],
    }.items():
        cold, hot = (run({"type": name, "temperature": t})[1] for t in (1.0, 16.0))
        assert all(torch.equal(cold[key], hot[key]) for key in keys)
        assert not torch.allclose(cold["loss_distill"], hot["loss_distill"])


def test_weights_are_detached() -> None:
    _, teachers, labels = inputs()
    teachers.requires_grad_()
    assert not label_confidence_weights(teachers, labels).requires_grad
    assert not label_probability(teachers, labels).requires_grad


@pytest.mark.parametrize("name", ["ca_weighted", "dynamic"])
def test_scopes_differ_in_the_link_of_weight_and_loss(name: str) -> None:
    """Reordering the teachers of single samples is nothing to per-sample weights, but changes batch means."""
    student, teachers, labels = inputs()
    shuffled = teachers.clone()
    for b in range(B):
        shuffled[:, b] = teachers[:, b].roll(b % K, 0)
    losses = {
        scope: [
            kd_methods.build({"type": name, "scope": scope})(
                StudentOutput(student), TeacherOutputs(t), labels
            )[0]
            for t in (teachers, shuffled)
        ]
        for scope in ("batch", "sample")
    }
    torch.testing.assert_close(losses["sample"][1], losses["sample"][0])
    assert not torch.allclose(losses["batch"][1], losses["batch"][0], rtol=1e-4)
    assert not torch.allclose(losses["batch"][0], losses["sample"][0], rtol=1e-4)


def test_dkd_of_overconfident_half_precision_teachers() -> None:
    """1 - p_y rounds to 0 and its log to -inf unless it is a log-sum-exp over the other classes."""
    teacher = torch.zeros(1, 2, C, dtype=torch.float16)
    teacher[..., 0] = 60_000
    student = torch.randn(2, C, generator=torch.Generator().manual_seed(0)).half().requires_grad_()
    for labels in (torch.tensor([0, 0]), torch.tensor([0, 3])):
        method = kd_methods.build({"type": "average", "loss": "dkd"})
        loss, _ = method(StudentOutput(student), TeacherOutputs(teacher), labels)
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss.isfinite() and gradient.isfinite().all()
    exact = logit_loss(
        dkd,
        torch.tensor([[50.0, 1.0, 0.0]]),
        torch.tensor([[[60.0, 0.0, 2.0]]]),
        torch.tensor([0]),
        1.0,
        dkd.Config(alpha=0.0, beta=1.0),
    )
    q_t, q_s = F.softmax(torch.tensor([0.0, 2.0]), 0), F.softmax(torch.tensor([1.0, 0.0]), 0)
    torch.testing.assert_close(exact.squeeze(), (q_t * (q_t / q_s).log()).sum())


def gather_of(everyone: list[Tensor], process: int) -> Callable[[Tensor], Tensor]:
    """What gathers the rows of two processes: of the values [2B,...] in `everyone` those that hold a process's own."""

    def gather(own: Tensor) -> Tensor:
        assert not torch._C._functorch.is_batchedtensor(own), "as torch.vmap makes them, which no all-gather takes"
        rows = slice(process * len(own), (process + 1) * len(own))
        alike = [all_ for all_ in everyone if all_.dtype == own.dtype and all_[rows].shape == own.shape]
        return with_own_rows(next(all_ for all_ in alike if torch.allclose(all_[rows], own)), own, process)

    return gather


GATHERED = [
    {"type": "average"},
    {"type": "fixed", "weights": [3.0, 1.0]},
    {"type": "average", "teacher_temperatures": [4.0, 2.0]},
    {"type": "aekd"},
    {"type": "aekd", "aekd": {"gradient": "flat"}, "teacher_temperatures": [4.0, 2.0]},
]


@pytest.mark.parametrize("kind", GATHERED, ids=lambda kind: "-".join(kind))
def test_dist_gathers_the_global_batch(kind: dict[str, Any]) -> None:
    """Two processes of half a batch have, in the mean, the loss and the gradient of the whole one."""
    generator = torch.Generator().manual_seed(0)
    logits, taught = torch.randn(8, 5, generator=generator), 3 * torch.randn(2, 8, 5, generator=generator)
    labels = torch.arange(8) % 5
    temperatures = torch.tensor(kind.get("teacher_temperatures", [4.0, 4.0]))[:, None, None]
    p_s, p_t = ((of / temperatures).softmax(-1).transpose(0, 1) for of in (logits, taught))  # [8,2,5]
    everyone = [values[:, part] for values in (p_s, p_t) for part in (0, slice(0, 1), slice(1, 2), slice(2))]
    everyone = [*everyone, *(values.double() for values in everyone)]  # AEKD's own, in fp64
    shared: list[Tensor] = []

    def outcome(
        part: slice, process: int | None, gather: bool = True, mean: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        method = kd_methods.build({**kind, "loss": "dist", "hard_weight": 0.0, "dist": {"gather": gather}})
        if process is not None:
            method.gather = gather_of(everyone, process)
            method.reduce_mean = lambda values: (shared.append(values), values if mean is None else mean)[1]
        own = logits[part].clone().requires_grad_()
        loss, _ = method(StudentOutput(own), TeacherOutputs(taught[:, part]), labels[part], 1.0)
        loss.backward()
        return loss.detach(), own.grad

    whole, gradient = outcome(slice(8), None)
    halves = [(slice(4), 0), (slice(4, 8), 1)]
    parts = [outcome(*half) for half in halves]
    if kind["type"] == "aekd":  # the weights are known once all processes have told their part
        mean = torch.stack(shared).mean(0)
        parts = [outcome(*half, mean=mean) for half in halves]
    torch.testing.assert_close((parts[0][0] + parts[1][0]) / 2, whole)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]) / 2, gradient)
    assert not torch.allclose(outcome(slice(4), 0, gather=False)[0], parts[0][0], rtol=1e-3)
