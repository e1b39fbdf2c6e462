"""Weightings of teachers: against other projects' values, slow loops and an exhaustive solver; what they refuse."""

import copy
import itertools
import math
import re
from typing import Any

import grid
import pytest
import torch
from method_variants import ONE_VIEW, method_for
from torch import Tensor

import kd_methods
from kd_methods import StudentOutput, TeacherOutputs
from kd_methods._simplex import ENUMERATED, shortest_combination

K, B, C = 3, 7, 5
ALONE = {"hard_weight": 0.0, "soft_weight": 1.0, "temperature": 4.0, "loss": "kd"}  # the distillation term
AEKD = {
    f"{gradient}_gradient{'_normalised' * normalized}": {"cap": 0.6, "gradient": gradient, "normalized": normalized}
    for gradient in ("batch_mean", "flat")
    for normalized in (False, True)
}
LOSSES: dict[str, dict[str, Any]] = {
    "uniform_mean_of_losses_T4": {"type": "average"},
    "uniform_mean_of_probabilities_T4": {"type": "average", "average_of": "probabilities"},
    "ebkd_T4/sum1": {"type": "ebkd"},
    "ebkd_T4/reference_scale": {"type": "ebkd", "normalize": "reference"},
    "ca_mkd_T4/sum1": {"type": "ca_mkd"},
    "ca_mkd_T4/reference_scale": {"type": "ca_mkd", "normalize": "reference"},
    "min_ce_T4": {"type": "min_ce"},
    **{f"aekd_T4_C0.6/{key}/loss_at_exact_weights": {"type": "aekd", "aekd": own} for key, own in AEKD.items()},
}
GIVEN = "given_weights_T4 (MMKD's logit term)"  # weights per sample, which no method takes: a class below does
WEIGHTS: dict[str, dict[str, Any]] = {
    "ebkd_T4/weights [K,B]": {"type": "ebkd"},
    "ca_mkd_T4/weights [K,B]": {"type": "ca_mkd"},
    "min_ce_T4/chosen_teacher [B]": {"type": "min_ce"},
    **{f"aekd_T4_C0.6/{key}/weights": {"type": "aekd", "aekd": own} for key, own in AEKD.items()},
}
PAIRS = [(case, key.removeprefix("weighting/")) for case, key in grid.pairs("weighting/")]
PAIRS = [(case, key) for case, key in PAIRS if "reference_code" not in key]


def inputs(num_teachers: int = K, seed: int = 0) -> tuple[StudentOutput, TeacherOutputs, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student = 3 * torch.randn(B, C, generator=generator, dtype=torch.float64)
    teachers = 3 * torch.randn(num_teachers, B, C, generator=generator, dtype=torch.float64)
    return StudentOutput(student), TeacherOutputs(teachers), torch.randint(C, (B,), generator=generator)


# ------------------------------------------------------------------------------------------- other projects' values


def test_every_value_is_compared() -> None:
    assert {key for _, key in PAIRS} == {*LOSSES, *WEIGHTS, GIVEN} and len({case for case, _ in PAIRS}) == 4


@pytest.mark.parametrize("dtype", grid.DTYPES, ids=str)
@pytest.mark.parametrize(("case", "key"), [pair for pair in PAIRS if pair[1] in LOSSES])
def test_losses_are_those_of_other_projects(case: str, key: str, dtype: torch.dtype) -> None:
    if grid.entries(case)[f"weighting/{key}"]["value"] == "nan":
        pytest.skip("the authors' code divides 0 by 0 for one teacher")
    method = kd_methods.build({**ALONE, **LOSSES[key]})

    def loss(tensors: dict[str, Tensor]) -> Tensor:
        outputs = StudentOutput(tensors["logits_s"]), TeacherOutputs(tensors["logits_t"])
        return method(*outputs, tensors["labels"])[0]

    grid.check(case, f"weighting/{key}", loss, dtype)


@pytest.mark.parametrize("dtype", grid.DTYPES, ids=str)
@pytest.mark.parametrize(("case", "key"), [pair for pair in PAIRS if pair[1] in WEIGHTS])
def test_weights_are_those_of_other_projects(case: str, key: str, dtype: torch.dtype) -> None:
    tensors = grid.inputs(case, dtype)
    outputs = StudentOutput(tensors["logits_s"]), TeacherOutputs(tensors["logits_t"])
    weights = kd_methods.build({**ALONE, **WEIGHTS[key]}).teacher_weights(*outputs, tensors["labels"], 1.0)
    if "chosen" in key:
        weights = weights.argmax(0)
    elif "aekd" in key:
        weights = weights.squeeze(1)
    elif "ebkd" in key:
        weights = weights * (len(weights) - 1)  # theirs sum to K - 1
    grid.compare(f"weighting/{key}", grid.entries(case)[f"weighting/{key}"], weights, {}, dtype)


class Given(kd_methods._module("ca_mkd").Method):  # type: ignore[misc]
    """Weights [K,B] from elsewhere."""

    def weigh(self, *_: Any) -> Tensor:
        return self.given


@pytest.mark.parametrize("dtype", grid.DTYPES, ids=str)
@pytest.mark.parametrize("case", grid.cases())
def test_a_weighting_of_ones_own_is_the_weighted_sum(case: str, dtype: torch.dtype) -> None:
    method = Given(kd_methods.build({**ALONE, "type": "ca_mkd"}).config)

    def loss(tensors: dict[str, Tensor]) -> Tensor:
        method.given = tensors["weights_given"].T
        return method(StudentOutput(tensors["logits_s"]), TeacherOutputs(tensors["logits_t"]), tensors["labels"])[0]

    grid.check(case, f"weighting/{GIVEN}", loss, dtype)


# ------------------------------------------------------------------------------------------------------- slow loops


def softmax(logits: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(z / temperature) for z in logits]
    return [power / sum(powers) for power in powers]


def slow_weights(name: str, teachers: list[list[float]], label: int) -> list[float]:
    """The weights of K teachers on one sample."""
    p = [softmax(logits) for logits in teachers]
    if name == "ebkd":
        entropy = [-sum(q * math.log(q) for q in own) for own in p]
        return [(1 - h / sum(entropy)) / (len(p) - 1) for h in entropy]
    cross_entropy = [-math.log(own[label]) for own in p]
    if name == "ca_mkd":
        return [(1 - share) / (len(p) - 1) for share in softmax(cross_entropy)]
    return [float(k == cross_entropy.index(min(cross_entropy))) for k in range(len(p))]


@pytest.mark.parametrize("scope", ["sample", "batch"])
@pytest.mark.parametrize("name", ["ebkd", "ca_mkd", "min_ce"])
def test_weights_per_sample_equal_a_loop(name: str, scope: str) -> None:
    student, teachers, labels = inputs()
    weights = torch.tensor(
        [slow_weights(name, teachers.logits[:, b].tolist(), int(labels[b])) for b in range(B)], dtype=torch.float64
    ).T
    if scope == "batch":
        weights = weights.mean(1, keepdim=True)
    config = {"type": name, "scope": scope, "hard_weight": 0.3, "soft_weight": 0.7, "temperature": 2.0}
    loss, metrics = kd_methods.build(config)(student, teachers, labels)
    soft = hard = 0.0
    for b in range(B):
        p_s = softmax(student.logits[b].tolist(), 2.0)
        hard -= math.log(softmax(student.logits[b].tolist())[int(labels[b])]) / B
        for k in range(K):
            p_t = softmax(teachers.logits[k, b].tolist(), 2.0)
            kl = 4 * sum(q * math.log(q / p) for q, p in zip(p_t, p_s, strict=True))
            soft += float(weights[k, b if scope == "sample" else 0]) * kl / B
    assert loss.item() == pytest.approx(0.3 * hard + 0.7 * soft, rel=1e-9)
    assert metrics["loss_distill"].item() == pytest.approx(soft) and metrics["kd_weight"].item() == pytest.approx(0.7)
    for k in range(K):
        assert metrics[f"teacher/{k}/weight"].item() == pytest.approx(weights[k].mean().item())


def test_the_scale_of_the_authors_code_leaves_logged_weights_alone() -> None:
    for name, total in {"ebkd": 2 / 3, "ca_mkd": 1 / 3, "min_ce": 1.0, "aekd": 1.0}.items():
        usual, theirs = ({**ALONE, "type": name, "normalize": how} for how in ("sum1", "reference"))
        (loss, metrics), (other, others) = (kd_methods.build(config)(*inputs()) for config in (usual, theirs))
        assert other.item() == pytest.approx(total * loss.item())
        assert all(metrics[f"teacher/{k}/weight"] == others[f"teacher/{k}/weight"] for k in range(K))


def test_teachers_that_are_all_certain_get_equal_weights() -> None:
    certain = torch.zeros(K, B, C)
    certain[..., 1] = 1e4
    weights = kd_methods.build({"type": "ebkd"}).teacher_weights(
        StudentOutput(torch.zeros(B, C)), TeacherOutputs(certain), torch.zeros(B).long(), 1.0
    )
    torch.testing.assert_close(weights, torch.full((K, B), 1 / K))


# ------------------------------------------------------------------------------------------- the minimum, and AEKD


def exhaustive(gram: Tensor, cap: float) -> Tensor:
    """The minimum over all choices of weights at 0, at the cap and between, one after another."""
    found: list[tuple[float, Tensor]] = []
    for choice in itertools.product(("zero", "cap", "free"), repeat=len(gram)):
        weights = torch.tensor([cap if word == "cap" else 0.0 for word in choice], dtype=gram.dtype)
        free = [k for k, word in enumerate(choice) if word == "free"]
        if not free:
            continue
        system = torch.ones(len(free) + 1, len(free) + 1, dtype=gram.dtype)
        system[:-1, :-1], system[-1, -1] = gram[free][:, free], 0
        right = torch.cat([-(gram @ weights)[free], 1 - weights.sum()[None]])
        weights[free] = torch.linalg.solve(system, right)[:-1]
        if weights.min() > -1e-12 and weights.max() < cap + 1e-12:
            found.append((float(weights @ gram @ weights), weights))
    return min(found, key=lambda pair: pair[0])[1]


@pytest.mark.parametrize("cap", [0.35, 0.5, 0.6, 1.0])
def test_the_shortest_combination_is_the_exact_minimum(cap: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for count, size in itertools.product((2, 3, 4, 5), (6, 40)):
        vectors = torch.randn(count, size, generator=generator, dtype=torch.float64)
        vectors = vectors * 10.0 ** torch.randn(count, 1, generator=generator).double() + vectors.mean(0)
        gram = 1e-8 * vectors @ vectors.T
        bound = max(cap, 1 / count)
        if count * cap > 1:
            torch.testing.assert_close(shortest_combination(gram, cap), exhaustive(gram, bound), rtol=0, atol=1e-6)
        else:
            torch.testing.assert_close(shortest_combination(gram, cap), torch.full((count,), 1 / count).double())


@pytest.mark.parametrize("count", [3, ENUMERATED, ENUMERATED + 1, 10, 64])
def test_no_weight_can_be_moved_to_make_it_shorter(count: int) -> None:
    """The conditions of a minimum, for both solvers: the gradient is least where a weight may still grow."""
    generator = torch.Generator().manual_seed(count)
    for size, cap in itertools.product((2, 100), (0.2, 0.6, 1.0)):
        vectors = 2 + torch.randn(count, size, generator=generator, dtype=torch.float64)
        gram = vectors @ vectors.T
        weights, cap = shortest_combination(gram, cap), max(cap, 1 / count)
        assert weights.min() >= 0 and weights.max() <= cap + 1e-9 and weights.sum().item() == pytest.approx(1)
        gradient = gram @ weights / gram.diagonal().mean()
        can_grow, can_shrink = weights < cap - 1e-5, weights > 1e-5
        if can_grow.any():
            assert gradient[can_shrink].max() <= gradient[can_grow].min() + 1e-5


@pytest.mark.parametrize("count", [2, 3, ENUMERATED + 2])
def test_vectors_that_are_equal_or_nothing_get_equal_weights(count: int) -> None:
    same = torch.ones(count, 4, dtype=torch.float64)
    for gram in (same @ same.T, 0 * (same @ same.T), 1e-30 * (same @ same.T)):
        torch.testing.assert_close(
            shortest_combination(gram, 0.6), torch.full((count,), 1 / count).double(), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("gradient", ["batch_mean", "flat"])
@pytest.mark.parametrize("loss", [{"loss": name} for name in ONE_VIEW] + [{"standardize": True}])
def test_aekd_follows_the_gradient_of_any_loss(loss: dict[str, Any], gradient: str) -> None:
    student, teachers, labels = inputs()
    temperature = 1.0 if loss.get("loss") in ("ttm", "wttm") else 2.0  # which have none
    config = {"type": "aekd", **loss, "temperature": temperature, "aekd": {"gradient": gradient}}
    method = kd_methods.build(config)
    gradients = []
    for k in range(K):
        own = student.logits.clone().requires_grad_()
        method.logit_loss(own, teachers.logits[k : k + 1], labels, 0.5).mean().backward()
        assert own.grad is not None
        gradients.append(own.grad.mean(0) if gradient == "batch_mean" else own.grad.flatten())
    vectors = torch.stack(gradients)
    expected = exhaustive(vectors @ vectors.T / vectors.square().sum(1).mean(), 0.6)
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with context():
            weights = method.teacher_weights(*inputs(), 0.5).squeeze(1)
        torch.testing.assert_close(weights, expected, rtol=0, atol=1e-6)
        assert not weights.requires_grad


def test_a_student_that_equals_a_teacher_follows_it() -> None:
    """Its gradient is 0, which no division by a length may turn into nan."""
    for normalized in (False, True):
        student, teachers, labels = inputs()
        teachers = TeacherOutputs(torch.cat([student.logits[None], teachers.logits[1:]]))
        method = kd_methods.build({"type": "aekd", "aekd": {"normalized": normalized}})
        weights = method.teacher_weights(student, teachers, labels, 1.0)
        assert weights.isfinite().all() and weights.argmax() == 0
        same = method.teacher_weights(student, TeacherOutputs(student.logits.expand(K, -1, -1)), labels, 1.0)
        torch.testing.assert_close(same, torch.full((K, 1), 1 / K).double())


# --------------------------------------------------------------------------------------------- weights of a whole run


ERRORS = torch.tensor([[1, 0, 0, 0, 1, 0], [0, 0, 1, 0, 0, 0], [0, 1, 1, 0, 0, 1]]).bool()


def weights_of(config: dict[str, Any], num_teachers: int = K, **more: Any) -> Tensor:
    """One weight per teacher."""
    return kd_methods.build(config, **more).teacher_weights(*inputs(num_teachers), 1.0)[:, 0]


def test_given_weights() -> None:
    expected = torch.tensor([0.2, 0.3, 0.5]).double()
    torch.testing.assert_close(weights_of({"type": "fixed", "weights": [2, 3, 5.0]}), expected, rtol=1e-7, atol=0)
    torch.testing.assert_close(weights_of({"type": "fixed"}), torch.full((K,), 1 / K).double())
    assert weights_of({"type": "fixed", "weights": [7.0]}, 1) == 1
    with pytest.raises(ValueError, match=r"kd\.weights: 2 given for 3 teachers; give one for each"):
        weights_of({"type": "fixed", "weights": [1.0, 2.0]})
    with pytest.raises(ValueError, match=r"kd: weights: are all 0"):
        kd_methods.build({"type": "fixed", "weights": [0.0, 0.0]})
    with pytest.raises(ValueError, match=r"kd\.weights\[1\]: -1\.0 is wrong"):
        kd_methods.build({"type": "fixed", "weights": [1.0, -1.0]})


def test_the_best_teacher() -> None:
    assert weights_of({"type": "best"}, teacher_errors=ERRORS).tolist() == [0, 1, 0]
    assert weights_of({"type": "best"}, teacher_errors=ERRORS[[0, 2]].float(), num_teachers=2).tolist() == [1, 0]
    assert weights_of({"type": "best"}, teacher_errors=torch.zeros(K, 4)).tolist() == [1, 0, 0]
    assert weights_of({"type": "best", "teacher": 2}).tolist() == [0, 0, 1]
    assert weights_of({"type": "best", "teacher": 2}, teacher_errors=ERRORS).tolist() == [0, 0, 1]
    with pytest.raises(ValueError, match=r"kd\.teacher: 3 is no teacher's number; those are 0 to 2"):
        weights_of({"type": "best", "teacher": 3})


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 1.0])
def test_covariance(shrinkage: float) -> None:
    errors = ERRORS.double()
    matrix = errors @ errors.T / 6
    assert matrix.diagonal().tolist() == errors.mean(1).tolist()  # not centered
    shrunk = (1 - shrinkage) * matrix + shrinkage * matrix.diagonal().mean() * torch.eye(K)
    config = {"type": "covariance", "shrinkage": shrinkage}
    found = weights_of(config, teacher_errors=ERRORS)
    torch.testing.assert_close(found, exhaustive(shrunk, 1.0), rtol=0, atol=1e-7)
    torch.testing.assert_close(weights_of({**config, "matrix": matrix.tolist()}), found)
    inverse = shrunk.inverse().sum(1)
    closed = weights_of({**config, "unconstrained": True}, teacher_errors=ERRORS)
    torch.testing.assert_close(closed, inverse / inverse.sum())
    if shrinkage == 1:
        torch.testing.assert_close(found, torch.full((K,), 1 / K).double())


def test_covariance_may_be_negative_without_constraint_and_is_refused_without_solution() -> None:
    matrix = [[1.0, 1.9], [1.9, 4.0]]
    own = {"type": "covariance", "shrinkage": 0.0}
    assert weights_of({**own, "matrix": matrix}, 2).tolist() == pytest.approx([1, 0])
    closed = weights_of({**own, "matrix": matrix, "unconstrained": True}, 2)
    assert closed[1] < 0 and closed.sum().item() == pytest.approx(1)
    with pytest.raises(ValueError, match=r"kd\.unconstrained: the teachers' errors are not independent.*kd\.shrinkage"):
        kd_methods.build({**own, "unconstrained": True}, teacher_errors=torch.ones(2, 5))
    torch.testing.assert_close(weights_of({"type": "covariance"}, teacher_errors=torch.zeros(K, 4)).sum().item(), 1.0)
    for wrong in ([[1.0, 0.5], [0.4, 1.0]], [[1.0, 0.5]], [], [[]]):
        with pytest.raises(ValueError, match=r"matrix: .* is not symmetric"):
            kd_methods.build({"type": "covariance", "matrix": wrong})
    with pytest.raises(ValueError, match=r"kd\.matrix: has a negative eigenvalue"):
        kd_methods.build({"type": "covariance", "matrix": [[1.0, 2.0], [2.0, 1.0]]})
    with pytest.raises(ValueError, match=r"kd\.matrix: rows: 2 given for 3 teachers"):
        weights_of({"type": "covariance", "matrix": matrix})


@pytest.mark.parametrize(("name", "key"), [("best", "kd.teacher"), ("covariance", "kd.matrix")])
def test_errors_are_needed_checked_and_kept(name: str, key: str) -> None:
    method = kd_methods.build({"type": name})
    with pytest.raises(ValueError, match=rf"kd\.type '{name}' needs the teachers' errors.*teacher_errors.*{key}"):
        method(*inputs())
    assert method(*inputs(1))[1]["teacher/0/weight"] == 1
    for wrong in (torch.zeros(3), torch.zeros(3, 0)):
        with pytest.raises(ValueError, match=re.escape(f"teacher_errors: have shape {tuple(wrong.shape)}")):
            kd_methods.build({"type": name}, teacher_errors=wrong)
    with pytest.raises(ValueError, match="teacher_errors: 3 given for 2 teachers"):
        weights_of({"type": name}, 2, teacher_errors=ERRORS)
    first = kd_methods.build({"type": name}, teacher_errors=ERRORS)
    resumed = kd_methods.build({"type": name}, teacher_errors=~ERRORS)
    resumed.load_state_dict(first.state_dict())
    assert resumed(*inputs())[0] == first(*inputs())[0] and set(first.state_dict()) == {"weights"}


# ------------------------------------------------------------------------------------------------------------ random


def drawn(method: Any, steps: int) -> Tensor:
    """The logged weights [steps,K] of the next steps."""
    rows = [method(*inputs())[1] for _ in range(steps)]
    return torch.stack([torch.stack([row[f"teacher/{k}/weight"] for k in range(K)]) for row in rows])


def test_random_weights_are_those_of_the_seed_and_the_step() -> None:
    method = kd_methods.build({"type": "random"}, seed=3)
    first = drawn(method, 4)
    state, rest = copy.deepcopy(method.state_dict()), drawn(method, 3)
    resumed = kd_methods.build({"type": "random"}, seed=3)  # as another process, whatever torch's generators hold
    torch.manual_seed(99)
    assert torch.equal(drawn(resumed, 4), first)
    resumed.load_state_dict(state)
    assert torch.equal(drawn(resumed, 3), rest)
    assert not torch.isclose(drawn(kd_methods.build({"type": "random"}, seed=4), 4), first).any()
    assert len(torch.cat([first, rest]).unique()) == 7 * K  # each step draws anew
    weights = method.teacher_weights(*inputs(), 1.0)
    assert torch.equal(weights, method.teacher_weights(*inputs(), 1.0))  # asking does not draw
    torch.testing.assert_close(weights.squeeze(1), rest[-1])


def test_random_weights_are_uniform_over_the_simplex_and_equal_in_evaluation() -> None:
    method = kd_methods.build({"type": "random"})
    weights = drawn(method, 2000)
    torch.testing.assert_close(weights.sum(1), torch.ones(2000).double())
    torch.testing.assert_close(weights.mean(0), torch.full((K,), 1 / K).double(), rtol=0, atol=0.02)
    torch.testing.assert_close(weights.var(0), torch.full((K,), 1 / 18).double(), rtol=0.1, atol=0)
    for bound in (0.2, 0.5, 0.8):  # P(w > x) = (1 - x)^(K - 1)
        assert (weights > bound).double().mean().item() == pytest.approx((1 - bound) ** 2, abs=0.02)
    steps = method.steps.clone()
    torch.testing.assert_close(drawn(method.eval(), 2), torch.full((2, K), 1 / K).double())
    assert method.steps == steps == 2000


# ---------------------------------------------------------------------------------------------------- one teacher


@pytest.mark.parametrize("name", [name for name in kd_methods.names() if name != kd_methods.LABEL_ONLY])
def test_one_teacher_has_all_the_weight(name: str) -> None:
    usual, _ = kd_methods.build({**ALONE, "type": "average"})(*inputs(1))
    method = method_for({"type": name}, 1)
    assert (method.teacher_weights(*inputs(1), 1.0) == 1).all()
    if "hard_weight" in type(method.config).model_fields:
        torch.testing.assert_close(method_for({**ALONE, "type": name}, 1)(*inputs(1))[0], usual)


def test_the_scale_of_the_authors_code_for_one_teacher() -> None:
    config = {**ALONE, "type": "ca_mkd", "normalize": "reference"}
    assert kd_methods.build(config)(*inputs(1))[0] > 0
    own = kd_methods.build({**config, "type": "ebkd"})
    assert own(*inputs(1))[0] == 0  # as theirs: so training refuses it
    with pytest.raises(ValueError, match=r"kd\.normalize: 'reference' multiplies the loss of one teacher by 0"):
        own.config.check_run(1)
    own.config.check_run(2)


def test_describe() -> None:
    def text(config: dict[str, Any]) -> str:
        return method_for(config, K).describe(K)

    assert text({"type": "ebkd", "normalize": "reference", "hard_weight": 0.5}) == (
        "loss = 0.5 x cross-entropy + 1 x sum over 3 teachers of (per-sample entropy weight x 0.667) x T^2 KL at T=4"
    )
    assert "(batch-mean label-confidence weight) x" in text({"type": "ca_mkd", "scope": "batch"})
    assert "(AEKD weight of the step) x" in text({"type": "aekd"})
