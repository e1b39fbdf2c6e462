"""CA-MKD's feature term, CAT-KD, OFA-KD, ReviewKD, SDD and SimKD: reference values, slow loops, and bad input."""

from typing import Any

import grid
import pytest
import torch
import torch.nn.functional as F
from grid_features import batch_of, build, ca_mkd_losses, ca_mkd_parameters, ca_mkd_values, evaluate, last_maps, review
from pydantic import ValidationError
from torch import Tensor
from torch.func import functional_call

import kd_methods
from kd_methods import StudentOutput, TeacherOutputs, feature_losses
from kd_methods._feature_term import FeatureTerm
from kd_methods._weights import confidence_weights
from kd_methods.feature_losses import Batch, FeatureLoss, cat_kd, ofa, reviewkd
from kd_methods.logit_losses import dkd, kd

CASES = [(case, dtype) for case in grid.cases() for dtype in grid.DTYPES]
every_dtype = pytest.mark.parametrize("dtype", grid.DTYPES)
REFERENCE = "ca_mkd_feature/reference (gradient through the weights, chained resizing, divided by B*K)"


def pairs(*prefixes: str) -> Any:
    found = [(case, key) for case, key in grid.pairs(*prefixes) if grid.entries(case)[key].get("value") != "nan"]
    assert found
    return pytest.mark.parametrize(("case", "key"), found)


# ReviewKD


@every_dtype
@pairs("reviewkd/")
def test_reviewkd(case: str, key: str, dtype: torch.dtype) -> None:
    def value(tensors: dict[str, Tensor]) -> Tensor:
        loss, student, teacher, parameters = review(tensors)
        assert parameters.keys() == dict(loss.named_parameters()).keys()
        if key.startswith("reviewkd/all_levels"):
            return evaluate(loss, student, teacher, batch_of(tensors), parameters).mean()
        loss.load_state_dict(parameters, strict=False)
        assert isinstance(loss, reviewkd.Loss)
        return torch.stack([level.norm() for level in loss.fused(tuple(student))])

    grid.check(case, key, value, dtype)


def test_reviewkd_of_one_image_and_its_embedding() -> None:
    features = [torch.randn(1, 4, 2, 2, requires_grad=True), torch.randn(1, 6, requires_grad=True)]
    loss = build("reviewkd", features, [torch.randn(1, 5, 4, 4), torch.randn(1, 3)])
    batch = Batch(torch.tensor([0]), torch.randn(1, 3), torch.randn(1, 3), 1.0)
    gradients = torch.autograd.grad(
        evaluate(loss, features, [torch.randn(1, 5, 4, 4), torch.randn(1, 3)], batch).sum(), features
    )
    assert all(gradient.isfinite().all() and gradient.abs().sum() > 0 for gradient in gradients)
    assert all(buffer.isfinite().all() for buffer in loss.buffers())


@every_dtype
@pairs("hcl/")
def test_hierarchical_context_loss(case: str, key: str, dtype: torch.dtype) -> None:
    def value(tensors: dict[str, Tensor]) -> Tensor:
        if "stage" in key.split(" ")[0]:
            stage = key.removeprefix("hcl/stage")
            return reviewkd.hcl(tensors[f"feat_s{stage}"], tensors[f"feat_t0_{stage}"]).mean()
        kind = "tokens" if "tokens_s0" in tensors else "feat"
        maps = [reviewkd.as_level(values) for name, values in tensors.items() if name.startswith(f"{kind}_t0_")]
        return sum((reviewkd.hcl(2 * map_, map_).mean() for map_ in maps), torch.zeros(()))

    grid.check(case, key, value, dtype)


# SimKD


SIMKD = {"0.weight": "w", "1.norm.weight": "bn_w", "1.norm.bias": "bn_b"}


@every_dtype
@pairs("simkd/")
def test_simkd(case: str, key: str, dtype: torch.dtype) -> None:
    def value(tensors: dict[str, Tensor]) -> Tensor:
        student, teacher = last_maps(tensors)
        loss = build("simkd", [student], [teacher])
        parameters = {
            f"projector.{layer}.{ours}": tensors[f"simkd_{theirs}{layer}"]
            for layer in range(3)
            for ours, theirs in SIMKD.items()
        }
        assert parameters.keys() == dict(loss.named_parameters()).keys()
        if key == "simkd/last_stage":
            return evaluate(loss, [student], [teacher], batch_of(tensors), parameters).mean()
        loss.load_state_dict(parameters, strict=False)
        classifier = tensors["simkd_cls_w"], tensors["simkd_cls_b"]
        return loss.logits((student,), classifier)[0]  # type: ignore[operator]

    grid.check(case, key, value, dtype)


# CAT-KD


@every_dtype
@pairs("cat_kd/")
def test_cat_kd(case: str, key: str, dtype: torch.dtype) -> None:
    def value(tensors: dict[str, Tensor]) -> Tensor:
        student, teacher = tensors["cam_s"], tensors["cam_t"]
        classes = student.shape[1]  # each channel is a class, so the classifier changes nothing
        same = torch.eye(classes, dtype=dtype), torch.full((classes,), 3.0, dtype=dtype)
        batch = batch_of(tensors, student_classifier=same, teacher_classifier=same)
        return evaluate(build("cat_kd", [student], [teacher]), [student], [teacher], batch).mean()

    grid.check(case, key, value, dtype)


@pytest.mark.parametrize("case", grid.cases())
def test_cat_kd_is_the_slow_loop(case: str) -> None:
    tensors = grid.inputs(case)
    student, teacher = last_maps(tensors)
    maps = [reviewkd.as_level(values) for values in (student, teacher)]
    weights = [torch.randn(5, map_.shape[1], dtype=torch.float64) for map_ in maps]
    own, other = [], []
    for image in range(len(student)):
        for label in range(5):
            for into, map_, weight in zip((own, other), maps, weights, strict=True):
                activation = (map_[image] * weight[label][:, None, None]).sum(0)
                cell = F.adaptive_avg_pool2d(activation[None], 2).flatten()
                into.append(cell / cell.norm())
    expected = (torch.stack(own) - torch.stack(other)).square().mean(1).view(-1, 5).mean(1)
    classifiers = [(weight, torch.randn(5, dtype=torch.float64)) for weight in weights]
    batch = batch_of(tensors, student_classifier=classifiers[0], teacher_classifier=classifiers[1])
    actual = evaluate(build("cat_kd", [student], [teacher]), [student], [teacher], batch)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("whose", [0, 1])
def test_cat_kd_takes_no_map_of_one_position(whose: int) -> None:
    """Scaled to length 1 it says nothing."""
    maps = [torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)]
    maps[whose] = maps[whose][..., :1, :1]
    with pytest.raises(ValueError, match=rf"{('student', 'teacher')[whose]}\[0\] is a map of one position"):
        build("cat_kd", maps[:1], maps[1:])
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        cat_kd.Config(resolution=1)


def test_cat_kd_of_zero_maps_is_finite() -> None:
    zeros = torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = cat_kd.between_maps(zeros, torch.randn(2, 3, 4, 4))
    (gradient,) = torch.autograd.grad(loss.sum(), zeros)
    assert loss.isfinite().all() and gradient.isfinite().all()


# OFA-KD


@every_dtype
@pairs("ofa/")
def test_ofa(case: str, key: str, dtype: torch.dtype) -> None:
    eps = 1.5 if "eps1.5" in key else 1.0
    student = "ofa_branch_logits" if key.endswith("branches") else "logits_s"

    def value(tensors: dict[str, Tensor]) -> Tensor:
        values = ofa.adapted(tensors[student], tensors["logits_t"][0], tensors["labels"], eps)
        return values.mean(-1).sum()  # of branches

    grid.check(case, key, value, dtype)


def test_ofa_is_the_loss_of_its_branches_and_of_the_logits() -> None:
    tensors = grid.inputs("same_b8_c10_k3")
    student = [tensors[f"feat_s{level}"] for level in range(3)]
    expected = {True: tensors["logits_s"].new_zeros(()), False: tensors["logits_s"].new_zeros(())}
    for logits in (True, False):
        loss = build("ofa", student, [], num_classes=10, eps=1.5, logits=logits)
        branches = [part(map_) for part, map_ in zip(loss.branches, student, strict=True)]
        for values in branches + [tensors["logits_s"]] * logits:
            for image, label in enumerate(tensors["labels"].tolist()):
                probabilities = tensors["logits_t"][0, image].softmax(0)
                for c in range(10):
                    target = float(c == label)
                    factor = (probabilities[c] + target) ** 1.5 - target
                    expected[logits] = expected[logits] - factor * values[image].log_softmax(0)[c] / 8
        actual = evaluate(loss, student, [], batch_of(tensors)).mean()
        torch.testing.assert_close(actual, expected[logits])


@pytest.mark.parametrize(("side", "halvings"), [(2, 0), (8, 0), (14, 1), (28, 2), (56, 3), (57, 3)])
def test_a_branch_of_ofa_halves_maps_until_they_are_small(side: int, halvings: int) -> None:
    module = ofa.map_branch((4, side, side), 6, 10)
    strided = [layer for layer in module if getattr(layer, "stride", None) == (2, 2)]
    assert len(strided) == halvings
    assert module(torch.randn(2, 4, side, side)).shape == (2, 10)


@pytest.mark.parametrize(("side", "prefix", "merges"), [(4, 1, 0), (8, 0, 0), (14, 1, 1), (32, 2, 2), (9, 0, 0)])
def test_a_branch_of_ofa_merges_patches_until_they_are_few(side: int, prefix: int, merges: int) -> None:
    tokens = torch.randn(2, side * side + prefix, 6)
    module = ofa.TokenBranch(tuple(tokens.shape[1:]), 2, 10)
    assert len(module.merging) == merges and len(module.blocks) == 2
    assert module(tokens).shape == (2, 10)
    seen: list[Tensor] = []
    module.blocks.register_forward_hook(lambda _, args, out: seen.extend([*args, out]))
    module(tokens)
    (mixed, out), few = seen, side // 2**merges
    assert mixed.shape == (2, few * few + prefix, 6)
    torch.testing.assert_close(module(tokens), module.head(out[:, 0] if prefix else out.mean(1)))
    if merges == 1:  # the first merged patch is of the 2 x 2 patches in the corner
        corner = torch.cat([tokens[:, prefix + i] for i in (0, 1, side, side + 1)], 1)
        torch.testing.assert_close(mixed[:, prefix], module.merging[0](corner))


def test_ofa_is_stable_at_large_logits() -> None:
    student = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = ofa.adapted(student, torch.tensor([[-1e4, 1e4, 0.0]]), torch.tensor([0]), 1.5)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert loss.isfinite().all() and gradient.isfinite().all()


# CA-MKD


@every_dtype
@pairs("ca_mkd_feature/")
def test_ca_mkd(case: str, key: str, dtype: torch.dtype) -> None:
    form = "reference" if key == REFERENCE else "sum1"

    def value(tensors: dict[str, Tensor]) -> Tensor:
        losses = ca_mkd_losses(tensors, form)
        values = ca_mkd_values(losses, tensors)
        errors, cross_entropy = torch.stack(values, 1)
        weights = confidence_weights(cross_entropy)
        if "weights" in key.removeprefix(REFERENCE):
            return weights
        if key.endswith("not_detached"):  # offered in the authors' form alone
            return (weights * errors).sum(0).mean()
        return losses[0].combine(values, weights.detach())

    grid.check(case, key, value, dtype)


def test_one_teacher_of_ca_mkd_has_weight_1() -> None:
    tensors = grid.inputs("tlarge_b12_c100_k1")
    assert grid.entries("tlarge_b12_c100_k1")[REFERENCE]["value"] == "nan"
    for form in ("sum1", "reference"):
        losses = ca_mkd_losses(tensors, form)
        (values,) = ca_mkd_values(losses, tensors)
        torch.testing.assert_close(losses[0].combine([values], torch.ones(1, 1)), values[0].mean())


@every_dtype
@pairs("feature_given_weights")
def test_given_weights_with_the_regressors_of_ca_mkd(case: str, key: str, dtype: torch.dtype) -> None:
    """MMKD's feature term, put together of parts: it pools the larger map and takes any weights."""

    def value(tensors: dict[str, Tensor]) -> Tensor:
        losses, errors = ca_mkd_losses(tensors, "sum1"), []
        for k, loss in enumerate(losses):
            student, teacher = (reviewkd.as_level(values) for values in last_maps(tensors, k))
            size = min(student.shape[-1], teacher.shape[-1])
            student, teacher = (F.adaptive_avg_pool2d(values, size) for values in (student, teacher))
            parameters = {name.partition(".")[2]: values for name, values in ca_mkd_parameters(tensors, k).items()}
            regressed = functional_call(loss.regressor, parameters, (student,))
            errors.append((regressed - teacher).square().mean((1, 2, 3)))
        return FeatureLoss.combine(losses[0], errors, tensors["weights_given"].T)

    grid.check(case, key, value, dtype)


# SDD


def slow_sdd(
    student: Tensor, teacher: Tensor, labels: Tensor, classifiers: Any, scales: list[int], base: Any
) -> Tensor:
    """Equations of the authors' code, region by region: [B]."""
    (ws, bs), (wt, bt) = classifiers
    finest = max(scales)
    total = []
    for image, label in enumerate(labels.tolist()):
        maps = [F.adaptive_avg_pool2d(map_[image], finest) for map_ in (student, teacher)]
        whole = wt @ maps[1].mean((1, 2)) + bt
        right, sum_, count = int(whole.argmax()) == label, torch.zeros(()), 0
        for side in scales:
            step = finest // side
            for row in range(side):
                for column in range(side):
                    cut = (slice(row * step, (row + 1) * step), slice(column * step, (column + 1) * step))
                    s = ws @ maps[0][:, cut[0], cut[1]].mean((1, 2)) + bs
                    t = wt @ maps[1][:, cut[0], cut[1]].mean((1, 2)) + bt
                    factor = 1.0 if (int(t.argmax()) == label) == right else 2.0
                    sum_ = sum_ + factor * base(s, t, label)
                    count += 1
        total.append(sum_ / count)
    return torch.stack(total)


def slow_kd(student: Tensor, teacher: Tensor, label: int) -> Tensor:
    p = (teacher / 4).softmax(0)
    return 16 * (p * (p.log() - (student / 4).log_softmax(0))).sum()


def slow_dkd(student: Tensor, teacher: Tensor, label: int) -> Tensor:
    args = student[None], teacher[None, None], torch.tensor([label]), 4.0, 1.0
    return dkd.loss(*args, dkd.Config())[0, 0]


@pytest.mark.parametrize(("base", "slow"), [("kd", slow_kd), ("dkd", slow_dkd)])
@pytest.mark.parametrize("scales", [[1], [1, 2], [1, 2, 4], [2, 4]])
def test_sdd_is_the_slow_loop(base: str, slow: Any, scales: list[int]) -> None:
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    student, teacher, labels = random(6, 5, 8, 8), random(6, 7, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    student.requires_grad_()
    classifiers = (3 * random(3, 5), random(3)), (3 * random(3, 7), random(3))
    loss = build("sdd", [student], [teacher], base=base, scales=scales)
    batch = Batch(labels, random(6, 3), random(6, 3), 1.0, None, *classifiers)
    actual = evaluate(loss, [student], [teacher], batch)
    expected = slow_sdd(student, teacher, labels, classifiers, scales, slow)
    torch.testing.assert_close(actual, expected)
    gradients = [torch.autograd.grad(values.mean(), student)[0] for values in (actual, expected)]
    torch.testing.assert_close(*gradients)
    if scales == [1]:
        logits = [F.linear(map_.mean((2, 3)), *c) for map_, c in zip((student, teacher), classifiers, strict=True)]
        if base == "kd":  # at scale 1 it is the logit loss of the whole map
            whole = kd.loss(logits[0], logits[1][None], labels, 4.0, 1.0, kd.Config())[0]
            torch.testing.assert_close(actual, whole)


# All of them


SETTINGS: dict[str, dict[str, Any]] = {
    "ca_mkd": {}, "cat_kd": {}, "ofa": {}, "reviewkd": {}, "sdd": {}, "simkd": {},
    "crd": {"width": 4},
}  # fmt: skip
every_loss = pytest.mark.parametrize("name", SETTINGS)


def term_and_inputs(name: str, teachers: int, images: int = 4, **settings: Any) -> tuple[FeatureTerm, Any, Any, Any]:
    """A term of this loss alone, with unlike teachers: a smaller map, a larger one, and tokens."""
    generator = torch.Generator().manual_seed(2)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    entry: dict[str, Any] = {**SETTINGS[name], **settings}
    embedding = name == "crd"
    own = random(images, 6) if embedding else random(images, 6, 8, 8)
    shapes = [(9,), (7,), (5,)] if embedding else [(9, 4, 4), (7, 16, 16), (17, 5)]
    features = [random(images, *shape) for shape in shapes[:teachers]]
    entry |= {"student": [0], "teacher": [0]}
    config = feature_losses.config_class(name)(**entry)
    labels = torch.arange(images) % 3
    term = FeatureTerm(
        [config], [tuple(own.shape[1:])], [[shape] for shape in shapes[:teachers]],
        num_classes=3, train_labels=torch.arange(12) % 3, seed=5,
    )  # fmt: skip
    widths = [shape[-1] if len(shape) < 3 else shape[0] for shape in shapes]
    student = StudentOutput(random(images, 3), (own,), (random(3, 6), random(3)))
    given = TeacherOutputs(
        random(teachers, images, 3),
        tuple((values,) for values in features),
        tuple((random(3, width), random(3)) for width in widths[:teachers]),
    )
    return term, student, given, labels


def value_of(term: FeatureTerm, student: Any, teachers: Any, labels: Tensor) -> Tensor:
    weights = torch.full((len(teachers.logits), 1), 1 / len(teachers.logits))
    total, parts = term(student, teachers, weights, labels, 1.0, torch.arange(len(labels)))
    assert len(parts) == 1
    assert isinstance(total, Tensor)
    return total


@every_loss
@pytest.mark.parametrize("teachers", [1, 2, 3])
@pytest.mark.parametrize("images", [1, 4])
def test_unlike_teachers_and_one_image(name: str, teachers: int, images: int) -> None:
    term, student, given, labels = term_and_inputs(name, teachers, images)
    own = student.features[0].requires_grad_()
    total = value_of(term, student, given, labels)
    assert total.shape == () and total.isfinite()
    total.backward()
    assert own.grad.isfinite().all() and own.grad.abs().sum() > 0
    for parameter in term.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()


@every_loss
def test_zero_maps_are_finite(name: str) -> None:
    term, student, given, labels = term_and_inputs(name, 3)
    own = torch.zeros_like(student.features[0]).requires_grad_()
    nothing = tuple((torch.zeros_like(values),) for (values,) in given.features)
    total = value_of(term, student._replace(features=(own,)), given._replace(features=nothing), labels)
    total.backward()
    assert total.isfinite() and own.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in term.parameters())


@every_loss
def test_what_is_kept_stands_for_the_features(name: str) -> None:
    term, student, given, labels = term_and_inputs(name, 3)
    again, *_ = term_and_inputs(name, 3)
    kept = term.keep(given.features)
    expected = value_of(term, student, given, labels)
    torch.testing.assert_close(value_of(again, student, given._replace(kept=kept), labels), expected, rtol=0, atol=0)


@every_loss
def test_projectors_depend_on_the_seed_alone(name: str) -> None:
    before = torch.get_rng_state()
    first, *_ = term_and_inputs(name, 2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    second, *_ = term_and_inputs(name, 2)
    for (key, one), other in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other), key


@every_loss
def test_a_missing_classifier_is_named(name: str) -> None:
    term, student, given, labels = term_and_inputs(name, 2)
    loss = term.losses[0][0]
    if not (loss.needs_student_classifier or loss.needs_teacher_classifier):
        value_of(term, student._replace(classifier=None), given._replace(classifiers=None), labels)
        return
    for missing in (None, (given.classifiers[0], None)):
        with pytest.raises(ValueError, match=rf"kd.features\[0\] \({name}\) needs the weight .* of teacher"):
            value_of(term, student, given._replace(classifiers=missing), labels)
    if loss.needs_student_classifier:
        with pytest.raises(ValueError, match="of the student"):
            value_of(term, student._replace(classifier=None), given, labels)


@pytest.mark.parametrize("name", ["cat_kd", "sdd"])
def test_the_students_classifier_is_trained_and_no_teachers(name: str) -> None:
    term, student, given, labels = term_and_inputs(name, 2)
    for classifier in (student.classifier, *given.classifiers):
        for values in classifier:
            values.requires_grad_()
    method = kd_methods.build({"type": "average"}, num_classes=3)
    method.feature_term = term
    method(student, given, labels)[0].backward()
    weight, bias = student.classifier
    assert weight.grad.abs().sum() > 0 and (bias.grad is None) == (name == "cat_kd")
    assert all(values.grad is None for classifier in given.classifiers for values in classifier)


@every_loss
def test_soft_labels_that_are_sure_are_labels(name: str) -> None:
    values = []
    for soft in (False, True):
        term, student, given, labels = term_and_inputs(name, 3)
        weights = torch.full((3, 1), 1 / 3)
        wanted = F.one_hot(labels, 3).float() if soft else labels
        values.append(term(student, given, weights, wanted, 1.0, torch.arange(len(labels)))[0])
    torch.testing.assert_close(*values)


@pytest.mark.parametrize("name", ["ca_mkd", "cat_kd", "sdd"])
def test_a_classifier_of_another_width_is_named(name: str) -> None:
    term, student, given, labels = term_and_inputs(name, 1)
    narrow = ((torch.zeros(3, 4), torch.zeros(3)),)
    with pytest.raises(ValueError, match="takes 4 features and the map has 9 channels"):
        value_of(term, student, given._replace(classifiers=narrow), labels)


def test_two_teachers_have_projectors_of_their_own() -> None:
    maps = torch.randn(2, 6, 4, 4)
    config = feature_losses.config_class("simkd")(student=[0], teacher=[0])
    term = FeatureTerm([config, config], [(6, 4, 4)], [[(6, 4, 4)], [(6, 4, 4)]], seed=0)
    outputs = [loss.project((maps,)) for entry in term.losses for loss in entry]
    assert all(not torch.equal(one, other) for i, one in enumerate(outputs) for other in outputs[:i])


def test_layers_of_another_kind_are_named() -> None:
    shapes = {"student_shapes": [(6,), (4, 8, 8)], "teacher_shapes": [[(6,), (4, 8, 8)]], "num_classes": 3}

    def built(entry: dict[str, Any], **more: Any) -> Any:
        return kd_methods.build({"type": "average", "features": [entry]}, **{**shapes, **more})

    where = r"kd.features\[0\] \(ofa\), teacher 0: "
    with pytest.raises(ValueError, match=where + r"student\[0\] gives embedding of shape \[6\]"):
        built({"loss": "ofa", "student": [0]})
    with pytest.raises(ValueError, match=where + "the loss needs num_classes"):
        built({"loss": "ofa", "student": [1]}, num_classes=None)
    for teacher in ([], [0], [[1]], [0, 1]):  # no layer of the teacher is needed, and any is fine
        built({"loss": "ofa", "student": [1], "teacher": teacher})
    where = r"kd.features\[0\] \(reviewkd\), teacher 0: "
    with pytest.raises(ValueError, match=where + "2 layers of the student and 1 of the teacher"):
        built({"loss": "reviewkd", "student": [1, 0], "teacher": [1]})


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"loss": "ofa", "eps": 0.0}, r"kd.features\[0\].eps: 0.0 is wrong: Input should be greater than 0"),
        ({"loss": "crd", "negatives": 0}, r"kd.features\[0\].negatives: 0 is wrong"),
        ({"loss": "sdd", "scales": [0]}, r"kd.features\[0\].scales\[0\]: 0 is wrong"),
        ({"loss": "sdd", "scales": []}, r"kd.features\[0\].scales: .* is wrong"),
        ({"loss": "sdd", "base": "hint"}, r"kd.features\[0\].base: 'hint' is wrong: .*'dkd'"),
        ({"loss": "sdd", "base": "dist"}, r"kd.features\[0\].base: is 'dist', and .*one sample and one view.* kd, nkd"),
        ({"loss": "sdd", "base": "crld"}, r"kd.features\[0\].base: is 'crld', and .*one sample and one view"),
        ({"loss": "sdd", "base": "ttm", "temperature": 2.0}, r"base 'ttm' has no temperature; remove"),
        ({"loss": "ca_mkd", "form": "paper"}, r"kd.features\[0\].form: 'paper' is wrong: .*'sum1' or 'reference'"),
    ],
)
def test_settings_out_of_range_are_named(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kd_methods.build({"type": "average", "features": [entry]})
