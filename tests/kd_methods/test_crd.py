"""CRD: reference values, its negatives, its banks, resuming, several processes."""

from typing import Any

import grid
import pytest
import torch
from grid_features import crd_case
from torch import Tensor
from torch.func import functional_call

from kd_methods.feature_losses import Batch, crd

every_dtype = pytest.mark.parametrize("dtype", grid.DTYPES)
FIRST, SECOND, SCALE, ROWS = (
    "crd/first_batch (Z set from it)",
    "crd/second_batch (same batch again: Z kept, bank updated)",
    "crd/Z_after_first_batch [student, teacher]",
    "crd/bank_row_of_first_index_after_first_batch [student row, teacher row]",
)


def build(labels: Tensor, own: int = 5, other: int = 7, seed: int = 3, **settings: Any) -> crd.Loss:
    return crd.Loss(crd.Config(**settings), [(own,)], [(other,)], train_labels=labels, seed=seed)


def batch_of(rows: Tensor) -> Batch:
    nothing = torch.zeros(len(rows), 2)
    return Batch(torch.zeros_like(rows), nothing, nothing, 1.0, rows)


@every_dtype
@pytest.mark.parametrize("key", [FIRST, SECOND, SCALE, ROWS])
@pytest.mark.parametrize("case", grid.cases())
def test_reference_values(case: str, key: str, dtype: torch.dtype) -> None:
    def value(tensors: dict[str, Tensor]) -> Tensor:
        loss, parameters, inputs = crd_case(tensors)
        values = functional_call(loss, parameters, inputs)
        if key == SECOND:
            values = functional_call(loss, parameters, inputs)
        if key == SCALE:
            return loss.log_scale.exp()
        return loss.banks[:, tensors["crd_index"][0]] if key == ROWS else values.mean()

    assert {FIRST, SECOND, SCALE, ROWS} == {name for name in grid.entries(case) if name.startswith("crd/")}
    grid.check(case, key, value, dtype)


@pytest.mark.parametrize("negatives", [1, 7, 29, 1000])
def test_negatives_are_other_rows_of_other_classes(negatives: int) -> None:
    labels = torch.tensor([2, 0, 1, 2, 2, 0, 1, 0, 2, 2] * 6)  # 30 of the largest class
    loss, rows = build(labels, negatives=negatives), torch.arange(60)
    drawn = loss.draw(rows)
    assert drawn.shape == (60, min(negatives, 30)) and drawn.dtype == torch.int64
    assert 0 <= drawn.min() and drawn.max() < 60
    assert (labels[drawn] != labels[:, None]).all()
    assert all(len(set(row)) == len(row) for row in drawn.tolist())
    if negatives == 1000:
        of_largest = drawn[labels == 2]
        assert (of_largest.sort(1).values == (labels != 2).nonzero().flatten()).all(), "all there are"


def test_negatives_depend_on_seed_row_and_update_alone() -> None:
    labels = torch.arange(50) % 5
    loss, rows = build(labels, negatives=20), torch.arange(50)
    drawn = loss.draw(rows)
    order = torch.randperm(50)
    assert torch.equal(loss.draw(rows[order[:7]]), drawn[order[:7]]), "not of the batch"
    torch.manual_seed(99)
    assert torch.equal(build(labels, negatives=20).draw(rows), drawn), "not of the global generator"
    others = [build(labels, negatives=20, seed=4).draw(rows)]
    loss.updates.add_(1)
    others.append(loss.draw(rows))
    for other in others:
        assert (other == drawn).float().mean() < 0.2
    for one, two in ((0, 5), (1, 6)):  # of the same class
        assert not torch.equal(drawn[one], drawn[two])


def test_each_row_is_drawn_as_often_as_any_other() -> None:
    labels = torch.tensor([0] * 10 + [1] * 25 + [2] * 7)
    loss, counts, draws = build(labels, negatives=12), torch.zeros(42), 3000
    pairs = torch.zeros(42, 42)
    rows = torch.arange(10)  # class 0: 32 others, 12 of them
    for _ in range(draws // 10):
        drawn = loss.draw(rows)
        hot = torch.zeros(10, 42).scatter_(1, drawn, 1.0)
        counts += hot.sum(0)
        pairs += hot.T @ hot
        loss.updates.add_(1)
    assert (counts[:10] == 0).all()
    expected = draws * 12 / 32
    deviation = (draws * 12 / 32 * (1 - 12 / 32)) ** 0.5
    assert ((counts[10:] - expected).abs() < 4.5 * deviation).all(), counts
    together = pairs[10:, 10:][~torch.eye(32, dtype=torch.bool)] / draws  # 12 * 11 / (32 * 31) on average
    assert together.min() > 0 and together.max() < 0.25, "no two rows always or never come together"


def slow_loss(loss: crd.Loss, student: Tensor, teacher: Tensor, rows: Tensor) -> Tensor:
    """The paper's formula, one image, network and negative after the other, with Z of this batch."""
    banks, negatives = loss.banks.clone(), loss.draw(rows).tolist()
    embedded = [layer(values) for layer, values in zip(loss.embed, (student, teacher), strict=True)]
    embedded = [values / values.norm(dim=1, keepdim=True) for values in embedded]
    total = student.new_zeros(())
    for side in (0, 1):
        scores = [
            [(embedded[side][b] @ banks[1 - side][j] / 0.07).exp() for j in [row, *negatives[b]]]
            for b, row in enumerate(rows.tolist())
        ]
        z = sum(sum(row) for row in scores).detach() / (len(rows) * len(scores[0])) * len(loss.classes)
        noise = (len(scores[0]) - 1) / len(loss.classes)
        for positive, *others in scores:
            total = total - (positive / z / (positive / z + noise + 1e-7)).log()
            total = total - sum((noise / (other / z + noise + 1e-7)).log() for other in others)
    return total / len(rows)


def test_slow_loop_and_gradients() -> None:
    loss = build(torch.arange(30) % 3, negatives=11, width=6).double()
    rows = torch.tensor([4, 0, 17, 29])
    student = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 7, dtype=torch.float64)
    leaves = [student, *loss.parameters()]
    expected = slow_loss(loss, student, teacher, rows)
    wanted = torch.autograd.grad(expected, leaves)
    actual = loss((student,), (teacher,), batch_of(rows))
    assert actual.shape == (4,)
    torch.testing.assert_close(actual.mean(), expected)
    torch.testing.assert_close(torch.autograd.grad(actual.mean(), leaves), wanted)


def test_weights_of_images_reach_their_own_gradients_alone() -> None:
    loss = build(torch.arange(30) % 3, width=6)
    student = torch.randn(4, 5, requires_grad=True)
    weights = torch.tensor([0.0, 1.0, 0.0, 3.0])
    values = loss((student,), (torch.randn(4, 7),), batch_of(torch.arange(4)))
    (gradient,) = torch.autograd.grad((weights * values).sum(), student)
    assert (gradient[[0, 2]] == 0).all() and (gradient[[1, 3]].abs().sum(1) > 0).all()


def test_banks_are_of_unit_length_and_updated_in_place() -> None:
    loss = build(torch.arange(30) % 3, width=6)
    torch.testing.assert_close(loss.banks.norm(dim=2), torch.ones(2, 30))
    before, place = loss.banks.clone(), loss.banks.data_ptr()
    rows = torch.tensor([4, 0, 17])
    for _ in range(3):
        loss((torch.randn(3, 5),), (torch.randn(3, 7),), batch_of(rows))
    assert loss.banks.data_ptr() == place
    changed = (loss.banks != before).any(2)
    assert changed[:, rows].all() and changed.sum() == 2 * len(rows)
    torch.testing.assert_close(loss.banks.norm(dim=2), torch.ones(2, 30))
    assert loss.updates == 3


def test_evaluation_changes_nothing() -> None:
    loss = build(torch.arange(30) % 3, width=6).eval()
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    inputs = (torch.randn(3, 5),), (torch.randn(3, 7),), batch_of(torch.arange(3))
    values = loss(*inputs)
    with torch.no_grad():
        torch.testing.assert_close(loss(*inputs), values)
    with torch.inference_mode():
        torch.testing.assert_close(loss(*inputs), values)
    for name, value in loss.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_resumed_in_the_middle_it_continues_bit_for_bit() -> None:
    labels = torch.arange(30) % 3
    generator = torch.Generator().manual_seed(0)
    steps = [
        (torch.randn(4, 5, generator=generator), torch.randn(4, 7, generator=generator),
         torch.randperm(30, generator=generator)[:4])
        for _ in range(6)
    ]  # fmt: skip

    def run(loss: crd.Loss, part: Any) -> list[Tensor]:
        return [loss((student,), (teacher,), batch_of(rows)).detach() for student, teacher, rows in part]

    whole = build(labels, width=6)
    expected = run(whole, steps)
    first = build(labels, width=6)
    run(first, steps[:3])
    state = {name: value.clone() for name, value in first.state_dict().items()}
    assert {"banks", "log_scale", "updates"} <= state.keys()
    resumed = build(labels, width=6)
    resumed.load_state_dict(state)
    torch.testing.assert_close(run(resumed, steps[3:]), expected[3:], rtol=0, atol=0)
    assert torch.equal(resumed.banks, whole.banks)


def test_two_processes_keep_the_banks_of_one() -> None:
    """Each has half of the batch; what they gather is the whole, so banks and Z are those of one process."""
    labels = torch.arange(30) % 3
    student, teacher, rows = torch.randn(6, 5), torch.randn(6, 7), torch.randperm(30)[:6]
    alone = build(labels, width=6)
    expected = alone((student,), (teacher,), batch_of(rows)).detach()
    halves = [slice(0, 3), slice(3, 6)]
    sent: list[list[Tensor]] = [[], []]
    for process, half in enumerate(halves):  # what each sends; the calls come in the same order in both
        loss = build(labels, width=6)
        loss.gather = lambda values, to=sent[process]: (to.append(values), values)[1]  # type: ignore[misc]
        loss((student[half],), (teacher[half],), batch_of(rows[half]))
    assert [len(calls) for calls in sent] == [2, 2]
    for half in halves:
        loss, together = build(labels, width=6), iter([torch.cat(pair) for pair in zip(*sent, strict=True)])
        loss.gather = lambda values, all_=together: next(all_)  # type: ignore[misc]
        values = loss((student[half],), (teacher[half],), batch_of(rows[half])).detach()
        torch.testing.assert_close(values, expected[half])
        torch.testing.assert_close(loss.banks, alone.banks)
        torch.testing.assert_close(loss.log_scale, alone.log_scale)


def test_embeddings_of_zero_and_small_tau_are_finite() -> None:
    loss = build(torch.arange(30) % 3, width=6, tau=0.001)
    student = torch.zeros(3, 5, requires_grad=True)
    with torch.no_grad():
        for layer in loss.embed:
            layer.bias.zero_()
    for values in (torch.zeros(3, 7), torch.randn(3, 7)):
        loss((student,), (values,), batch_of(torch.arange(3))).mean().backward()
    assert student.grad is not None and student.grad.isfinite().all()
    assert all(value.isfinite().all() for value in (loss.banks, loss.log_scale))


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="needs train_labels"):
        crd.Loss(crd.Config(), [(5,)], [(7,)])
    with pytest.raises(ValueError, match="all train_labels are the same"):
        build(torch.zeros(9, dtype=torch.int64))
    with pytest.raises(ValueError, match="needs rows"):
        loss = build(torch.arange(30) % 3, width=6)
        loss((torch.randn(3, 5),), (torch.randn(3, 7),), batch_of(torch.arange(3))._replace(rows=None))
