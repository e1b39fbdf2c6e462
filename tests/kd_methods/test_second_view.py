"""The second, strongly augmented view: what settings say of it, `crld`, `mlkd`, both cross-entropies, and bad input."""

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from method_variants import RANDOM, WITH_TEACHERS, method_for
from torch import Tensor

import kd_methods
from kd_methods import KDMethod, StudentOutput, TeacherOutputs

B, C, K = 6, 5, 3
NEEDED = [config for config in WITH_TEACHERS if config.get("loss") == "crld"]  # one for each method
Outputs = tuple[StudentOutput, TeacherOutputs, Tensor]


def inputs(dtype: torch.dtype = torch.float64, scale: float = 2.0, batch: int = B) -> Outputs:
    """Outputs with two views that require gradient, and labels."""
    generator = torch.Generator().manual_seed(3)

    def leaf(*shape: int) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator, dtype=dtype)).requires_grad_()

    student = StudentOutput(leaf(batch, C), second=leaf(batch, C))
    teachers = TeacherOutputs(leaf(K, batch, C), second=leaf(K, batch, C))
    return student, teachers, torch.randint(C, (batch,), generator=generator)


def divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    p, q = (teacher / temperature).softmax(0), (student / temperature).softmax(0)
    return temperature**2 * sum(p[c] * (p[c].log() - q[c].log()) for c in range(len(p)))


# ------------------------------------------------------------------------------------------------------- settings


def test_settings_say_whether_a_second_view_is_used() -> None:
    said = {}
    for name in kd_methods.names():
        cls = kd_methods.config_class(name)
        losses = kd_methods.losses() if "loss" in cls.model_fields else [None]
        for loss in losses:
            config = cls.model_validate({"loss": loss} if loss else {})
            said.setdefault(loss, set()).add(config.second_view)
    assert said.pop(None) == said.pop("mlkd") == {"optional"} and said.pop("crld") == {"required"}
    assert len(said) > 8 and set.union(*said.values()) == {"unused"}


def test_recorded_settings_of_one_view_stay_as_they_were() -> None:
    dumped = kd_methods.build({"type": "average", "loss": "mlkd"}).config.model_dump()
    weights = {f"{part}_weight": 1.0 for part in ("instance", "class", "batch")}
    assert dumped["mlkd"] == {"temperatures": [3.0, 5.0, 2.0, 6.0], **weights}
    changed = kd_methods.build({"type": "average", "loss": "mlkd", "mlkd": {"second": "every"}}).config
    assert changed.model_dump()["mlkd"]["second"] == "every"
    assert type(changed).model_validate(changed.model_dump()) == changed


# ----------------------------------------------------------------------------------------------------------- crld


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("temperatures", [None, [2.0, 3.0, 4.0]])
def test_crld(standardize: bool, temperatures: list[float] | None) -> None:
    student, teachers, labels = inputs()
    params = {"within_weight": 1.5, "cross_weight": 0.25, "weak_threshold": 0.7, "strong_threshold": 0.6}
    config = {"type": "average", "loss": "crld", "temperature": 4.0, "standardize": standardize, "crld": params}
    if temperatures:
        config |= {"teacher_temperatures": temperatures}
        del config["temperature"]
    method = kd_methods.build(config)
    actual = method.logit_loss(student, teachers, labels)

    def seen(logits: Tensor) -> Tensor:
        return (logits - logits.mean()) / (logits.std() + 1e-7) if standardize else logits

    kept = torch.zeros(2)
    for k in range(K):
        for b in range(B):
            weak_t, strong_t = teachers.logits[k, b], teachers.second[k, b]
            pairs = [(seen(t), seen(s)) for t in (weak_t, strong_t) for s in (student.logits[b], student.second[b])]
            ww, ws, sw, ss = (divergence(*pair, temperatures[k] if temperatures else 4.0) for pair in pairs)
            sure = [weak_t.softmax(0).max() >= 0.7, strong_t.softmax(0).max() >= 0.6]
            kept += torch.tensor(sure)
            torch.testing.assert_close(actual[k, b], 1.5 * sure[0] * (ww + ss) + 0.25 * sure[1] * (ws + sw))
    assert 0 < kept[0] < K * B and 0 < kept[1] < K * B, "both masks have to matter"


def test_crld_on_the_first_view_alone_in_evaluation() -> None:
    student, teachers, labels = inputs()
    method = kd_methods.build({"type": "average", "loss": "crld", "crld": {"weak_threshold": 0.7}}).eval()
    actual = method.logit_loss(student.logits, teachers.logits, labels)
    for k in range(K):
        for b in range(B):
            target = teachers.logits[k, b]
            expected = 2 * (target.softmax(0).max() >= 0.7) * divergence(target, student.logits[b], 4.0)
            torch.testing.assert_close(actual[k, b], expected)
    whole, _ = method(student._replace(second=None), teachers._replace(second=None), labels)
    torch.testing.assert_close(whole, F.cross_entropy(student.logits, labels) + actual.mean())


def test_crld_without_weights_is_named() -> None:
    with pytest.raises(ValueError, match=r"kd\.crld: within_weight and cross_weight are both 0"):
        kd_methods.build({"type": "average", "loss": "crld", "crld": {"within_weight": 0.0, "cross_weight": 0.0}})


# ----------------------------------------------------------------------------------------------------------- mlkd


def test_mlkd_of_two_views() -> None:
    """tests/golden/grid.json has the authors' values with their temperatures; here an odd number of others."""
    student, teachers, labels = inputs()
    others = [2.0, 3.0, 5.0]
    terms = {"temperatures": others, "instance_weight": 0.5}

    def value(*given: Any, second: str = "reference") -> Tensor:
        config = {"type": "average", "loss": "mlkd", "mlkd": {**terms, "second": second}}
        return kd_methods.build(config).logit_loss(*given, labels)

    one_view = value(student.logits, teachers.logits)
    for second, on_second in (("reference", [4.0, 2.0, 3.0]), ("every", [4.0, *others])):
        more = value(student, teachers, second=second) - one_view
        for k in range(K):
            for b in range(B):
                expected = sum(divergence(teachers.second[k, b], student.second[b], t) for t in on_second)
                rest = [t for t in others if t not in on_second]
                expected = expected + sum(divergence(teachers.logits[k, b], student.logits[b], t) for t in rest)
                torch.testing.assert_close(more[k, b], 0.5 * expected)


# ----------------------------------------------------------------------------------------------- every method, both


@pytest.mark.parametrize("config", NEEDED, ids=json.dumps)
@pytest.mark.parametrize("loss", ["crld", "mlkd"])
@pytest.mark.parametrize("scale", [2.0, 1e4])
def test_gradients_reach_both_views_of_the_student(config: dict[str, Any], loss: str, scale: float) -> None:
    student, teachers, labels = inputs(torch.float32, scale)
    value, metrics = method_for({**config, "loss": loss}, K)(student, teachers, labels)
    value.backward()
    assert value.isfinite() and all(measure.isfinite() for measure in metrics.values())
    for logits in (student.logits, student.second):
        assert logits.grad.isfinite().all() and logits.grad.any()
    assert teachers.logits.grad is None and teachers.second.grad is None


@pytest.mark.parametrize("config", [{"type": kd_methods.LABEL_ONLY}, *NEEDED], ids=json.dumps)
def test_the_label_term_is_the_sum_of_both_views(config: dict[str, Any]) -> None:
    student, teachers, labels = inputs()
    method = method_for(config, K, label_smoothing=0.1)
    soft = 0.7 * F.one_hot(labels, C).double() + 0.3 * F.one_hot(labels.roll(1), C).double()
    for given in (labels, soft):
        _, metrics = method(student, teachers if method.requires_teachers else TeacherOutputs(), given)
        both = [F.cross_entropy(logits, given, label_smoothing=0.1) for logits in (student.logits, student.second)]
        torch.testing.assert_close(metrics["loss_label"], sum(both).detach())


@pytest.mark.parametrize("config", NEEDED, ids=json.dumps)
@pytest.mark.parametrize("loss", ["crld", "mlkd"])
def test_one_hot_labels_and_soft_labels(config: dict[str, Any], loss: str) -> None:
    if config["type"] == RANDOM:
        pytest.skip("every step has other weights")
    student, teachers, labels = inputs()
    method = method_for({**config, "loss": loss}, K)
    hard = F.one_hot(labels, C).double()
    torch.testing.assert_close(method(student, teachers, hard)[0], method(student, teachers, labels)[0])
    assert method(student, teachers, 0.6 * hard + 0.4 * hard.roll(1, 0))[0].isfinite()


@pytest.mark.parametrize("config", NEEDED, ids=json.dumps)
def test_weights_are_those_of_the_first_view(config: dict[str, Any]) -> None:
    if config["type"] in (RANDOM, "aekd"):
        pytest.skip("drawn, or of the gradients of both views")
    student, teachers, labels = inputs()
    method = method_for(config, K)
    weights = method.teacher_weights(student, teachers, labels, 1.0)
    first = method.teacher_weights(student._replace(second=None), teachers._replace(second=None), labels, 1.0)
    assert torch.equal(weights, first)


@pytest.mark.parametrize("temperatures", [None, [2.0, 3.0, 4.0]])
def test_aekd_compares_the_gradients_of_both_views(temperatures: list[float] | None) -> None:
    student, teachers, labels = inputs()
    config = {"type": "aekd", "loss": "crld", "teacher_temperatures": temperatures}
    method: Any = kd_methods.build(config)
    views = [(student.logits.detach(), teachers.logits.detach()), (student.second.detach(), teachers.second.detach())]
    actual = method._gradients(views, labels, 1.0)
    losses = method.logit_loss(student, teachers, labels)
    for k in range(K):
        gradients = torch.autograd.grad(losses[k].sum(), (student.logits, student.second), retain_graph=True)
        torch.testing.assert_close(actual[k], torch.cat(gradients, 1))


def test_the_ensemble_has_two_views() -> None:
    student, teachers, labels = inputs()
    method = kd_methods.build({"type": "average", "average_of": "probabilities", "loss": "crld", "temperature": 2.0})
    _, metrics = method(student, teachers, labels)
    first, second = ((logits / 2).softmax(-1).mean(0).log() * 2 for logits in (teachers.logits, teachers.second))
    alone = kd_methods.build({"type": "average", "loss": "crld", "temperature": 2.0})
    _, expected = alone(student, TeacherOutputs(first[None], second=second[None]), labels)
    torch.testing.assert_close(metrics["loss_kl"], expected["loss_kl"])


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(("loss", "own", "others", "wrong"), [
    ("crld", None, None, r"kd\.loss 'crld' needs a second view: StudentOutput\.second \[batch, classes\]"),
    ("mlkd", (B, C), None, r"StudentOutput\.second is given and TeacherOutputs\.second is not"),
    ("crld", None, (K, B, C), r"TeacherOutputs\.second is given and StudentOutput\.second is not"),
    ("kd", (B, C), (K, B, C), r"StudentOutput\.second is given, and kd\.loss 'kd' does not use a second view"),
    ("mlkd", (B - 1, C), (K, B, C), r"StudentOutput\.second has shape \(5, 5\); it must be \(6, 5\)"),
    ("mlkd", (B, C), (1, B, C), r"TeacherOutputs\.second has shape \(1, 6, 5\); it must be \(3, 6, 5\)"),
])  # fmt: skip
def test_what_does_not_fit_is_named(loss: str, own: Any, others: Any, wrong: str) -> None:
    student, teachers, labels = inputs()
    student = student._replace(second=None if own is None else torch.zeros(own))
    teachers = teachers._replace(second=None if others is None else torch.zeros(others))
    with pytest.raises(ValueError, match=wrong):
        kd_methods.build({"type": "average", "loss": loss})(student, teachers, labels)


def test_a_method_that_passes_logits_alone_cannot_have_a_loss_of_two_views() -> None:
    class Own(KDMethod):
        def compute(self, student: StudentOutput, teachers: TeacherOutputs, labels: Tensor, progress: float) -> Any:
            return self.logit_loss(student.logits, teachers.logits, labels, progress).mean(), {}

    student, teachers, labels = inputs()
    method = Own(kd_methods.build({"type": "average", "loss": "crld"}).config)
    with pytest.raises(ValueError, match="needs a second view"):
        method(student, teachers, labels)
