"""What every feature loss promises, tested for all of them; a new one needs an edit at most in feature_cases.py."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from feature_cases import (
    ALL,
    CLASSES,
    EMBEDDING,
    ENTRIES,
    GATHERING,
    MAPS,
    STUDENT,
    TEACHERS,
    TOKENS,
    Case,
    case,
    gradients,
)
from kernels import CountKernels
from method_variants import SWITCHES, variants
from torch import Tensor

import kd_methods
from kd_methods import StudentOutput, TeacherOutputs, feature_losses
from kd_methods.feature_losses._base import FeatureLoss, with_own_rows

every_entry = pytest.mark.parametrize("entry", ALL, ids=json.dumps)
first_entries = [next(entry for entry in ALL if entry["loss"] == name) for name in feature_losses.names()]
every_loss = pytest.mark.parametrize("entry", first_entries, ids=lambda entry: entry["loss"])
OWN_WEIGHTS = {"ca_mkd"}  # losses with their own weights of teachers
BY_ORDER = {"cc"}  # losses that depend on the order of the batch
# Each method with its choices; what concerns logits alone, and terms that are switched off, change no weights.
GIVEN = {"best": {"teacher": 1}, "covariance": {"matrix": [[2.0, 1.0, 0.0], [1.0, 3.0, 0.0], [0.0, 0.0, 1.0]]}}
WEIGHTINGS = [
    {**variant, **GIVEN.get(name, {})}
    for name in kd_methods.names()
    if name != kd_methods.LABEL_ONLY
    for variant in variants(name)
    if not variant.keys() & SWITCHES and variant.get("loss", "kd") == "kd"
    and not any(value is False for value in variant.values())
]


def losses_of(entry: dict[str, Any]) -> Any:
    return feature_losses.loss_class(entry["loss"])


@every_entry
@pytest.mark.parametrize("num_teachers", [1, 2, 3, 10])
def test_loss_metrics_and_gradients(entry: dict[str, Any], num_teachers: int) -> None:
    sample = case(entry, num_teachers)
    for features in sample.teachers.features:
        for values in features:
            values.requires_grad_()
    loss, metrics = sample.call()
    assert loss.shape == () and loss.isfinite()
    loss.backward()
    for place in sample.used:
        gradient = sample.features[place].grad
        assert gradient is not None and gradient.isfinite().all() and gradient.abs().sum() > 0, place
    for parameter in sample.method.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()
    assert all(values.grad is None for features in sample.teachers.features for values in features)
    for name in ("loss_features", f"feature/{entry['loss']}"):
        assert metrics[name].shape == () and not metrics[name].requires_grad and metrics[name] != 0
    torch.testing.assert_close(metrics["loss_features"], metrics[f"feature/{entry['loss']}"])


@every_loss
@pytest.mark.parametrize("settings", WEIGHTINGS, ids=json.dumps)
def test_the_term_is_added_with_the_weights_that_are_logged(entry: dict[str, Any], settings: dict[str, Any]) -> None:
    sample = case({**entry, "weight": 2.0}, **settings)
    loss, metrics = sample.call()
    if entry["loss"] in OWN_WEIGHTS:
        pytest.skip("the loss weights the teachers itself")
    without = kd_methods.build(settings)
    student, teachers = StudentOutput(sample.logits), TeacherOutputs(sample.teachers.logits)
    plain, _ = without(student, teachers, sample.labels)
    torch.testing.assert_close(loss - plain, metrics["loss_features"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(metrics["loss_features"], 2 * metrics[f"feature/{entry['loss']}"])
    weights = without.teacher_weights(student, teachers, sample.labels, 1.0)
    for k, mean in enumerate(weights.mean(1)):
        torch.testing.assert_close(mean, metrics[f"teacher/{k}/weight"])
    parts, again = [], case(entry, **settings)
    for k, weight in enumerate(weights):
        value = per_teacher(again, k)
        assert value.shape == (() if losses_of(entry).of_batch else sample.labels.shape)
        parts.append((weight * value).mean())
    torch.testing.assert_close(torch.stack(parts).sum(), metrics[f"feature/{entry['loss']}"])


def per_teacher(sample: Case, k: int) -> Tensor:
    """What the one loss of `sample` gives for teacher k."""
    term = sample.method.feature_term
    assert term is not None and sample.teachers.logits is not None and sample.teachers.classifiers is not None
    batch = feature_losses.Batch(
        sample.labels, sample.logits, sample.teachers.logits[k], 1.0, sample.rows,
        sample.classifier, sample.teachers.classifiers[k],
    )  # fmt: skip
    kept = term.keep(sample.teachers.features)
    return term.losses[0][k](tuple(sample.features[place] for place in sample.used), kept[0][k], batch)


@every_loss
def test_maps_meet_tokens(entry: dict[str, Any]) -> None:
    if entry["loss"] in ENTRIES or not {"map", "tokens"} <= set(losses_of(entry).kinds):
        pytest.skip("the loss compares other features")
    for own, other in ((MAPS[-1:], TOKENS[-1:]), (TOKENS[-1:], MAPS[-1:])):
        sample = case({**entry, "student": own, "teacher": other})
        loss, metrics = sample.call()
        assert loss.isfinite() and metrics["loss_features"] != 0
        assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients(sample, loss)[:1])


@every_loss
def test_the_loss_grows_over_its_warmup(entry: dict[str, Any]) -> None:
    values = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        sample = case({**entry, "warmup": 0.5})
        sample.progress = progress
        values.append(sample.call()[1]["loss_features"])
    torch.testing.assert_close(torch.stack(values), torch.tensor([0.0, 0.5, 1.0, 1.0]) * values[-1])
    assert "growing from 0 over the first 0.5" in sample.method.feature_term.entries[0].describe()


@every_entry
def test_what_is_kept_is_all_that_the_loss_needs(entry: dict[str, Any]) -> None:
    online, cached = case(entry), case(entry)
    kept = cached.method.feature_term.keep(cached.teachers.features)
    for teacher in kept[0]:
        assert all(len(values) == len(online.labels) and values.is_floating_point() for values in teacher)
    cached.teachers = TeacherOutputs(cached.teachers.logits, kept=kept, classifiers=cached.teachers.classifiers)
    expected, actual = online.call()[0], cached.call()[0]
    assert torch.equal(actual, expected)
    for one, other in zip(gradients(cached, actual), gradients(online, expected), strict=True):
        assert torch.equal(one, other)


def test_the_teachers_layers_are_the_students_unless_they_are_given() -> None:
    def entry(**values: Any) -> Any:
        return kd_methods.config_class("average").model_validate({"features": [values]}).features[0]

    assert entry(loss="fitnet", student=["layer1"]).teacher == ["layer1"]
    assert entry(loss="fitnet").teacher == [-2] and entry(loss="ofa", student=[0]).teacher == []


@every_loss
def test_losses_that_keep_the_same_by_their_words_do(entry: dict[str, Any]) -> None:
    """Under every setting, and for students with other channels, sizes, or both: a cache is found by these words."""
    name = entry["loss"]
    fields = feature_losses.config_class(name).model_fields
    numbers = {key: field for key, field in fields.items() if field.annotation in (int, float) and key != "warmup"}
    changes: list[dict[str, Any]] = [{}]
    changes += [{key: f.default / 2 if f.annotation is float else f.default + 1} for key, f in numbers.items()]
    changes += [{"scales": [1, 2]}] * ("scales" in fields)
    known: dict[tuple[str, int], tuple[tuple[Tensor, ...], ...]] = {}
    shared = 0
    for own in (one for one in ALL if one["loss"] == name):
        for change in changes:
            for student in (STUDENT, [(2 * shape[0], *shape[1:]) if len(shape) == 3 else shape for shape in STUDENT],
                            [(*shape[:-2], 2, 2) if len(shape) == 3 else shape for shape in STUDENT]):  # fmt: skip
                sample = case({**own, **change}, student=student)
                term = sample.method.feature_term
                kept = term.keep(sample.teachers.features)[0]
                for teacher, values in enumerate(kept):
                    words = json.dumps([own.get("teacher"), term.kept_as(teacher)[0]])
                    shared += (words, teacher) in known
                    before = known.setdefault((words, teacher), values)
                    assert len(before) == len(values) and all(map(torch.equal, before, values)), (own, change, words)
    assert shared


@every_entry
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_give_the_fp32_loss(entry: dict[str, Any], dtype: torch.dtype) -> None:
    def rounded(sample: Case, target: torch.dtype) -> Case:
        sample.features = tuple(f.detach().to(dtype).to(target).requires_grad_() for f in sample.features)
        sample.logits = sample.logits.detach().to(dtype).to(target)
        logits, features, classifiers, *_ = sample.teachers
        features = tuple(tuple(f.to(dtype).to(target) for f in teacher) for teacher in features)
        sample.teachers = TeacherOutputs(logits.to(dtype).to(target), features, classifiers)
        return sample

    single, half = rounded(case(entry), torch.float32), rounded(case(entry), dtype)
    expected, _ = single.call()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, _ = half.call()
    assert actual.dtype == torch.float32 and torch.equal(actual, expected)
    for one, other in zip(gradients(half, actual), gradients(single, expected), strict=True):
        torch.testing.assert_close(one, other.to(one.dtype))


DEGENERATE = {
    "student of zeros": lambda own, other: (own * 0, other),
    "teacher of zeros": lambda own, other: (own, other * 0),
    "zeros": lambda own, other: (own * 0, other * 0),
    "one image of zeros": lambda own, other: (torch.cat([own[:1] * 0, own[1:]]), other),
    "equal images": lambda own, other: (own[:1].expand_as(own), other[:1].expand_as(other)),
    "equal images of the student": lambda own, other: (own[:1].expand_as(own), other),
    "one image": lambda own, other: (own[:1], other[:1]),
    "ones": lambda own, other: (own * 0 + 1, other * 0 + 1),
}


@every_entry
@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_features_have_finite_losses_and_gradients(entry: dict[str, Any], kind: str) -> None:
    sample = case(entry, batch=4)
    own = [DEGENERATE[kind](values.detach(), values)[0].clone().requires_grad_() for values in sample.features]
    others = tuple(tuple(DEGENERATE[kind](v, v)[1].clone() for v in features) for features in sample.teachers.features)
    size = len(own[0])
    sample.features, sample.labels, sample.rows = tuple(own), sample.labels[:size], sample.rows[:size]
    sample.logits = sample.logits.detach()[:size]
    sample.teachers = TeacherOutputs(sample.teachers.logits[:, :size], others, sample.teachers.classifiers)
    loss, metrics = sample.call()
    assert loss.isfinite() and metrics["loss_features"].isfinite()
    if metrics["loss_features"].requires_grad or loss.requires_grad:
        for gradient in gradients(sample, loss):
            assert gradient.isfinite().all() and gradient.abs().max() < 1e5


@every_entry
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_small_and_large_features_stay_finite(entry: dict[str, Any], scale: float) -> None:
    sample = case(entry, scale=scale)
    loss, _ = sample.call()
    assert loss.isfinite() and all(gradient.isfinite().all() for gradient in gradients(sample, loss))


@every_entry
def test_order_of_images_does_not_matter(entry: dict[str, Any]) -> None:
    if entry["loss"] in BY_ORDER:
        pytest.skip("the loss compares neighbors in the batch")
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    sample, permuted = case(entry), case(entry)
    permuted.features = tuple(f.detach()[order].requires_grad_() for f in permuted.features)
    permuted.logits, permuted.labels, permuted.rows = (
        values[order] for values in (permuted.logits.detach(), permuted.labels, permuted.rows)
    )
    logits, features, classifiers, *_ = permuted.teachers
    features = tuple(tuple(f[order] for f in teacher) for teacher in features)
    permuted.teachers = TeacherOutputs(logits[:, order], features, classifiers)
    expected, actual = sample.call()[0], permuted.call()[0]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)
    pairs = list(zip(gradients(permuted, actual), gradients(sample, expected), strict=True))
    for place, (one, other) in enumerate(pairs):
        other = other[order] if place < len(sample.used) else other
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@every_entry
def test_projectors_depend_on_the_seed_alone_and_are_resumed(entry: dict[str, Any]) -> None:
    before = torch.get_rng_state()
    first, same, other = case(entry), case(entry), case(entry, seed=5)
    assert torch.equal(before, torch.get_rng_state())
    states = [sample.method.state_dict() for sample in (first, same, other)]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    if any(parameter.ndim > 1 for parameter in first.method.parameters()):
        assert any(not torch.equal(value, states[2][name]) for name, value in states[0].items())
    first.call()  # changes running statistics and the like
    for copied in (copy.deepcopy(first.method), pickle.loads(pickle.dumps(first.method))):
        assert copied.state_dict().keys() == first.method.state_dict().keys()
    other.method = kd_methods.build(
        first.method.config, num_classes=CLASSES, student_shapes=STUDENT, teacher_shapes=TEACHERS,
        train_labels=torch.arange(200) % CLASSES, seed=0,
    ) if entry["loss"] not in NEGATIVES else copy.deepcopy(first.method)  # fmt: skip
    other.method.load_state_dict(first.method.state_dict())
    assert torch.equal(other.call()[0], first.call()[0])


@pytest.mark.parametrize("name", feature_losses.names())
def test_the_docs_have_a_section_for_every_loss(name: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / "features.md").read_text()
    assert f"\n## `{name}`\n" in text
    section = text.partition(f"\n## `{name}`\n")[2].partition("\n## ")[0]
    for key, field in feature_losses.config_class(name).model_fields.items():
        assert field.description or key == "loss", key
        assert f"| `{key}` |" in (text if key in COMMON else section), key


COMMON = {"loss", "weight", "student", "teacher", "warmup", "gather"}  # keys that losses share
NEGATIVES = {"crd"}  # losses that depend on the labels of the training split


@every_loss
def test_without_features_an_evaluation_gives_the_rest_of_the_loss(entry: dict[str, Any]) -> None:
    sample = case(entry)
    student, teachers = StudentOutput(sample.logits), TeacherOutputs(sample.teachers.logits)
    with pytest.raises(ValueError, match="kd.features needs StudentOutput.features and TeacherOutputs.features"):
        sample.method(student, teachers, sample.labels)
    sample.method.eval()
    loss, metrics = sample.method(student, teachers, sample.labels)
    expected, _ = kd_methods.build({"type": "average"})(student, teachers, sample.labels)
    assert torch.equal(loss, expected) and "loss_features" not in metrics
    assert sample.call()[1]["loss_features"].isfinite()


def kernels(entry: dict[str, Any], num_teachers: int, batch: int) -> int:
    sample = case(entry, num_teachers, batch, alike=True)
    sample.call()  # what is made once
    with CountKernels() as counter:
        sample.call()
    return counter.counts.total()


@every_entry
def test_kernels_grow_linearly_with_teachers_and_not_with_the_batch(entry: dict[str, Any]) -> None:
    one, two, three = (kernels(entry, num_teachers, 3) for num_teachers in (1, 2, 3))
    assert three - two <= two - one
    assert kernels(entry, 2, 12) == two
    if len(entry["student"]) == 3 and losses_of(entry).number is None:
        layers = [[0], [0, 1], [0, 1, 2]]
        one, two, three = (kernels({**entry, "student": own, "teacher": own}, 1, 3) for own in layers)
        assert three - two <= two - one


class TwoProcesses:
    """Gathers values of two processes in one: each runs twice, first to give its values, then to read the other's."""

    def __init__(self) -> None:
        self.sent: list[list[Tensor]] = [[], []]
        self.reading = False

    def join(self, sample: Case, process: int) -> None:
        seen = iter(range(10**6))

        def gather(values: Tensor) -> Tensor:
            number = next(seen)
            if not self.reading:
                self.sent[process].append(values.detach())
                return torch.cat([values, values])
            everyone = torch.cat([self.sent[0][number], self.sent[1][number]])
            return with_own_rows(everyone, values, process)

        for module in sample.method.modules():
            if isinstance(module, FeatureLoss):
                module.gather = gather


def halved(sample: Case, process: int) -> Case:
    half = slice(4 * process, 4 * process + 4)
    sample.features = tuple(f.detach()[half].requires_grad_() for f in sample.features)
    sample.logits, sample.labels, sample.rows = sample.logits.detach()[half], sample.labels[half], sample.rows[half]
    logits, features, classifiers, *_ = sample.teachers
    features = tuple(tuple(f[half] for f in teacher) for teacher in features)
    sample.teachers = TeacherOutputs(logits[:, half], features, classifiers)
    return sample


@pytest.mark.parametrize("entry", GATHERING, ids=json.dumps)
def test_two_processes_that_gather_train_as_one(entry: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"type": "ca_weighted", "scope": "sample"}
    whole = case(entry, 2, batch=8, **settings)
    expected = whole.call()[1]["loss_features"]
    own_gradients = gradients(whole, whole.call()[0])
    together, values, parts = TwoProcesses(), [], []
    for together.reading in (False, True):
        samples = [halved(case(entry, 2, batch=8, **settings), process) for process in (0, 1)]
        for process, sample in enumerate(samples):
            together.join(sample, process)
            loss, metrics = sample.call()
            if together.reading:
                values.append(metrics["loss_features"])
                parts.append(gradients(sample, loss))
    for value in values:
        torch.testing.assert_close(value, expected)
    used = len(whole.used)
    for place in range(used):  # DDP takes the mean over processes
        actual = torch.cat([part[place] for part in parts]) / 2
        torch.testing.assert_close(actual, own_gradients[place], rtol=1e-4, atol=1e-7)
    for number in range(used, len(own_gradients)):
        actual = (parts[0][number] + parts[1][number]) / 2
        torch.testing.assert_close(actual, own_gradients[number], rtol=1e-4, atol=1e-6)
    alone = halved(case({**entry, "gather": False}, 2, batch=8, **settings), 0)
    assert not torch.allclose(alone.call()[1]["loss_features"], expected, rtol=1e-3), "the gathering has to matter"


def build(entry: dict[str, Any], **more: Any) -> Any:
    labels = torch.arange(20) % CLASSES
    shapes = {"student_shapes": STUDENT, "teacher_shapes": TEACHERS, "num_classes": CLASSES, "train_labels": labels}
    return kd_methods.build({"type": "average", "features": [entry]}, **{**shapes, **more})


@every_loss
def test_layers_that_do_not_fit_are_named(entry: dict[str, Any]) -> None:
    where = rf"kd.features\[0\] \({entry['loss']}\), teacher 0: "
    loss = losses_of(entry)
    if entry["loss"] in OWN_LAYERS:
        pytest.skip("layers of another kind")
    with pytest.raises(ValueError, match=where + "the student has no features at place 17; there are 6"):
        build({**entry, "student": [17]})
    with pytest.raises(ValueError, match=where + "2 layers of the student and 1 of the teacher"):
        build({**entry, "student": MAPS[:2], "teacher": MAPS[:1]})
    wrong = EMBEDDING if "embedding" not in loss.kinds else TOKENS[:1]
    takes = " or ".join(loss.kinds)
    kind = "embedding of shape" if "embedding" not in loss.kinds else "tokens of shape"
    with pytest.raises(ValueError, match=where + rf"student\[0\] gives {kind} .*takes {takes}"):
        build({**entry, "student": wrong, "teacher": wrong})
    right = entry["student"][:1]
    with pytest.raises(ValueError, match=where + r"teacher\[0\] gives"):
        build({**entry, "student": right, "teacher": wrong})
    if loss.number == 1:
        with pytest.raises(ValueError, match=where + "2 layers; the loss compares 1"):
            build({**entry, "student": EMBEDDING * 2, "teacher": EMBEDDING * 2})
    with pytest.raises(ValueError, match=r"teacher has layers for 2 teachers, and there are 3; give a list for each"):
        build({**entry, "teacher": [right, right]})
    build({**entry, "student": right, "teacher": [right] * 3})
    with pytest.raises(ValueError, match="needs the shapes of the features: student_shapes and teacher_shapes"):
        build(entry, student_shapes=None)


OWN_LAYERS = {"ofa", "reviewkd"}  # losses whose layers are not compared one by one
