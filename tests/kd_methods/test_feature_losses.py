"""Feature losses against loops that are too simple to be wrong, at their edges, and what is said of wrong entries."""

import itertools
import math
import re
from typing import Any

import pytest
import torch
from feature_cases import CLASSES, STUDENT, TEACHERS
from torch import Tensor

import kd_methods
from kd_methods import feature_losses
from kd_methods.feature_losses import Batch, FeatureLoss, nst, ofd, rkd
from kd_methods.feature_losses._base import as_map, map_shape, with_own_rows


def build(name: str, student: list[Tensor], teacher: list[Tensor], **settings: Any) -> FeatureLoss:
    layers = list(range(len(student)))
    config = feature_losses.config_class(name)(student=layers, teacher=layers, **settings)
    shapes = [[tuple(values.shape[1:]) for values in features] for features in (student, teacher)]
    loss: FeatureLoss = feature_losses.loss_class(name)(config, *shapes)
    return loss.to(student[0].dtype)


def call(loss: FeatureLoss, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    size = len(student[0])
    batch = Batch(torch.zeros(size, dtype=torch.long), torch.zeros(size, 3), torch.zeros(size, 3), 1.0)
    return loss(tuple(student), loss.keep(tuple(teacher)), batch)


def value(name: str, student: Tensor, teacher: Tensor, **settings: Any) -> Tensor:
    return call(build(name, [student], [teacher], **settings), [student], [teacher])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dot(a: Any, b: Any) -> float:
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("width", [5, 7])
def test_cosine(width: int) -> None:
    student, teacher = random(4, 5), random(4, width, seed=1)
    loss = build("cosine", [student], [teacher])
    own = loss.projector(student).detach() if width != 5 else student
    expected = [1 - dot(s, t) / math.sqrt(dot(s, s) * dot(t, t)) for s, t in zip(own, teacher, strict=True)]
    torch.testing.assert_close(call(loss, [student], [teacher]), torch.tensor(expected, dtype=torch.float64))
    assert sum(parameter.numel() for parameter in loss.parameters()) == (5 * 7 + 7 if width == 7 else 0)


def slow_rkd(embedding: Tensor) -> tuple[dict[Any, float], dict[Any, float]]:
    """Distances over their mean by pair, and cosines by triple."""
    numbers = range(len(embedding))
    length = {(i, j): math.sqrt(dot(*[embedding[j] - embedding[i]] * 2)) for i in numbers for j in numbers}
    mean = sum(length.values()) / (len(embedding) * (len(embedding) - 1)) or 1.0
    cosine = {}
    for i, j, k in itertools.product(numbers, repeat=3):
        lengths = length[i, j] * length[i, k]
        product = dot(embedding[j] - embedding[i], embedding[k] - embedding[i])
        cosine[i, j, k] = product / lengths if lengths else 0.0
    return {pair: distance / mean for pair, distance in length.items()}, cosine


def huber(a: dict[Any, float], b: dict[Any, float]) -> float:
    gaps = [abs(a[key] - b[key]) for key in a]
    return sum(gap**2 / 2 if gap < 1 else gap - 0.5 for gap in gaps) / len(gaps)


@pytest.mark.parametrize("equal", [[], [0, 1], [0, 1, 2, 3]])
def test_rkd_with_equal_embeddings(equal: list[int]) -> None:
    student, teacher = random(4, 3), random(4, 5, seed=1)
    student[equal] = student[equal[:1]]
    student.requires_grad_()
    (d_s, a_s), (d_t, a_t) = slow_rkd(student.detach()), slow_rkd(teacher)
    actual = value("rkd", student, teacher, distance=2.0, angle=3.0)
    assert actual.item() == pytest.approx(2 * huber(d_s, d_t) + 3 * huber(a_s, a_t), rel=1e-12)
    (gradient,) = torch.autograd.grad(actual, student)
    assert gradient.abs().max() < 100  # not a difference over a length of 0


def test_rkd_of_embeddings_that_are_close_to_each_other_is_exact() -> None:
    near = 100 + 1e-3 * random(5, 8).float()  # squares would cancel
    exact, single = near.double(), near
    for part in (rkd.distances, rkd.angles):
        torch.testing.assert_close(
            part(rkd.differences(single)).double(), part(rkd.differences(exact)), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("name", ["rkd", "cc", "sp", "pkt"])
def test_losses_of_relations_are_zero_for_one_image(name: str) -> None:
    shape = (3, 2, 2) if name == "sp" else (3,)
    student = random(1, *shape).requires_grad_()
    loss = value(name, student, random(1, *shape, seed=1))
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss == 0 and gradient.abs().max() < 1e-20


def test_pkt_gives_an_embedding_of_zeros_no_gradient() -> None:
    student = torch.cat([torch.zeros(1, 3, dtype=torch.float64), random(3, 3)]).requires_grad_()
    (gradient,) = torch.autograd.grad(value("pkt", student, random(4, 5, seed=1)), student)
    assert not gradient[0].any() and gradient[1:].isfinite().all() and gradient[1:].any()


@pytest.mark.parametrize("positions", [2, 9])  # fewer than channels, and more
def test_nst_kernel(positions: int) -> None:
    a, b = random(2, 4, positions), random(2, 3, positions, seed=1)
    expected = [
        sum(dot(x, y) ** 2 for x in one for y in other) / (len(one) * len(other))
        for one, other in zip(a, b, strict=True)
    ]
    torch.testing.assert_close(nst.kernel(a, b), torch.tensor(expected, dtype=torch.float64))


def test_fitnet_pools_where_no_regressor_fits() -> None:
    student, teacher = random(3, 4, 9, 9), random(3, 5, 3, 3, seed=1)
    loss = build("fitnet", [student], [teacher])
    small = torch.nn.functional.avg_pool2d(student, 3)
    errors = (loss.regressors[0](small) - teacher).square()
    torch.testing.assert_close(call(loss, [student], [teacher]), errors.mean((1, 2, 3)))
    loss = build("fitnet", [small], [random(3, 5, 9, 9)])
    assert loss.keep((random(3, 5, 9, 9),))[0].shape == (3, 5, 3, 3)
    for side, kernel in ((8, (1, 1)), (4, (3, 3)), (16, (4, 4))):  # of the teacher
        loss = build("fitnet", [random(3, 4, 8, 8)], [random(3, 5, side, side)])
        assert loss.regressors[0][0].kernel_size == kernel
        assert loss.keep((random(3, 5, side, side),))[0].shape == (3, 5, side, side)


def test_ofd_estimates_the_margins_that_batch_norm_gives() -> None:
    weight, bias = torch.tensor([1.0, 0.5, 2.0]), torch.tensor([0.3, -1.0, 0.0])
    maps = [random(64, 3, 8, 8, seed=seed).float() * weight[:, None, None] + bias[:, None, None] for seed in range(5)]
    student = random(64, 4, 8, 8).float()
    loss = build("ofd", [student], [maps[0]])
    for map_ in maps:
        call(loss, [student], [map_])
    assert loss.batches == 5
    estimated = ofd.margin(loss.std0, loss.mean0)
    torch.testing.assert_close(estimated, ofd.margin(weight, bias), rtol=0.02, atol=0.02)
    torch.testing.assert_close(loss.mean0, torch.stack([map_.mean((0, 2, 3)) for map_ in maps]).mean(0))
    loss.eval()
    call(loss, [student], [maps[0] + 5])
    assert loss.batches == 5
    loss.train().use_norms([(-weight, bias)])
    call(loss, [student], [maps[0] + 5])
    assert torch.equal(loss.mean0, bias) and torch.equal(loss.std0, weight)
    restored = build("ofd", [student], [maps[0]])
    restored.load_state_dict(loss.state_dict())
    call(restored, [student], [maps[0] + 5])
    assert torch.equal(restored.mean0, bias)
    with pytest.raises(ValueError, match=r"one \(weight, bias\) for each layer, of shapes \[\(3,\)\]"):
        loss.use_norms([(weight[:2], bias[:2])])


def test_ofd_margin_of_channels_without_spread() -> None:
    weight, bias = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0]), torch.tensor([-1.0, 0.0, 1.0, -50.0, 50.0])
    expected = torch.tensor([-1.0, 0.0, 0.0, -50.0, -3.0])
    torch.testing.assert_close(ofd.margin(weight, bias), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["fitnet", "ickd", "ofd"])
def test_one_image_of_one_position_is_normalized_by_the_running_statistics(name: str) -> None:
    student, teacher = random(1, 3, 1, 1).requires_grad_(), random(1, 4, 1, 1, seed=1)
    loss = build(name, [student], [teacher])
    before = {key: part.clone() for key, part in loss.named_buffers() if "running" in key}
    actual = call(loss, [student], [teacher])
    (gradient,) = torch.autograd.grad(actual.sum(), student)
    assert actual.isfinite().all() and gradient.isfinite().all()
    if name != "ofd":  # whose estimate of margins differs
        torch.testing.assert_close(call(loss.eval(), [student], [teacher]), actual)
    assert before and all(torch.equal(part, before[key]) for key, part in loss.named_buffers() if key in before)


def test_vid_starts_at_its_variance() -> None:
    loss = build("vid", [random(2, 3, 4, 4)], [random(2, 5, 4, 4)], variance=2.0)
    variance = torch.nn.functional.softplus(loss.log_scales[0]) + 1e-5
    torch.testing.assert_close(variance, torch.full((5,), 2.0, dtype=torch.float64), rtol=1e-6, atol=0)


def test_own_rows_have_the_gradient_of_all_processes() -> None:
    own = random(2, 3).requires_grad_()
    everyone = torch.cat([random(2, 3, seed=1), own, random(2, 3, seed=2)])
    rows = with_own_rows(everyone, own, 1)
    assert torch.equal(rows, everyone)
    (gradient,) = torch.autograd.grad(rows.sum(), own)
    assert torch.equal(gradient, torch.full_like(own, 3.0))


def test_tokens_are_maps_without_those_before_the_image() -> None:
    tokens = random(2, 1 + 4, 3)
    map_ = as_map(tokens)
    assert map_.shape == (2, 3, 2, 2) and map_shape((5, 3)) == (3, 2, 2)
    for row, column in itertools.product(range(2), repeat=2):
        assert torch.equal(map_[:, :, row, column], tokens[:, 1 + 2 * row + column])
    assert map_shape((8 + 9 * 9, 3)) == (3, 9, 9)
    with pytest.raises(ValueError, match="95 tokens are not a square of patches after at most 8 other tokens"):
        map_shape((95, 3))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"loss": "att"}, "kd.features[0].loss: 'att' is not a feature loss, did you mean 'at'?; feature losses: at, "),
        ({}, "kd.features[0].loss: is missing; feature losses: at, "),
        ({"loss": 3}, "kd.features[0].loss: 3 is not a feature loss; "),
        (3, "kd.features[0]: 3 is wrong: an entry is a section with the key loss"),
        ({"loss": "at", "q": 1}, "kd.features[0].q: unknown key; keys: loss, weight, student, teacher, warmup, p"),
        ({"loss": "fitnet", "regresor": 1}, "kd.features[0].regresor: unknown key, did you mean 'regressor'?; keys: "),
        ({"loss": "at", "p": "2"}, "kd.features[0].p: '2' is wrong: Input should be a valid number"),
        ({"loss": "at", "p": 0.5}, "kd.features[0].p: 0.5 is wrong: Input should be greater than or equal to 1"),
        ({"loss": "at", "weight": -1.0}, "kd.features[0].weight: -1.0 is wrong: Input should be greater than or equal"),
        ({"loss": "at", "student": []}, "kd.features[0].student: [] is wrong: layers are a list of stage numbers"),
        ({"loss": "at", "student": [None]}, "kd.features[0].student: None is wrong: layers are a list"),
        ({"loss": "at", "teacher": "x"}, "kd.features[0].teacher: 'x' is wrong: layers are a list of stage numbers, "
         "names of modules or 'embedding', or one such list for each teacher"),
        ({"loss": "at", "teacher": [[1], 2]}, "kd.features[0].teacher: is wrong: layers are a list"),
        ({"loss": "rkd", "distance": 0.0, "angle": 0.0}, "kd.features[0]: distance and angle are both 0, which leaves"),
    ],
)  # fmt: skip
def test_a_wrong_entry_is_explained_in_one_line(entry: Any, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)) as error:
        kd_methods.build({"type": "average", "features": [entry]}, student_shapes=STUDENT, teacher_shapes=TEACHERS)
    assert "\n" not in str(error.value)


def test_mistakes_in_several_entries_are_reported_at_once() -> None:
    entries = [{"loss": "at", "q": 1}, {"loss": "att"}, {"loss": "sp", "weight": "3", "gather": 1}]
    with pytest.raises(ValueError) as error:
        kd_methods.build({"type": "average", "temperature": 0.0, "features": entries})
    keys = [line.split(":")[0] for line in str(error.value).splitlines()]
    assert keys == [
        "kd.temperature", "kd.features[0].q", "kd.features[1].loss", "kd.features[2].weight", "kd.features[2].gather",
    ]  # fmt: skip


def test_entries_of_the_same_loss_are_logged_apart() -> None:
    entries = [{"loss": "at", "student": [layer], "teacher": [layer]} for layer in (0, 1)]
    method = kd_methods.build({"type": "average", "features": entries}, student_shapes=STUDENT, teacher_shapes=TEACHERS)
    features = [random(2, *shape).float() for shape in STUDENT]
    teachers = [[random(2, *shape).float() for shape in shapes] for shapes in TEACHERS]
    _, metrics = method(
        kd_methods.StudentOutput(torch.zeros(2, CLASSES), tuple(features)),
        kd_methods.TeacherOutputs(torch.zeros(3, 2, CLASSES), tuple(map(tuple, teachers))),
        torch.tensor([0, 1]),
    )
    total = 1000 * (metrics["feature/at"] + metrics["feature/at_2"])
    torch.testing.assert_close(metrics["loss_features"], total)
