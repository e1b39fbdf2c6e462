"""The loss of each method, forward and backward, against a plain loop over teachers that follows the formula.

Three teachers, batches of 128 and 1024, 100 and 1000 classes.  Both must agree before they are timed.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import kd_methods
from benchmarks._measure import Note, Options, Result, compare, interleave, seconds_of
from kd_methods import StudentOutput, TeacherOutputs

TEACHERS, TEMPERATURE = 3, 4.0
SIZES = ((128, 100), (128, 1000), (1024, 100), (1024, 1000))


def run(options: Options) -> list[Result]:
    results: list[Result] = []
    for method in kd_methods.names():
        loop = LOOPS.get(method)
        if loop is None:
            if method != kd_methods.LABEL_ONLY:
                results.append(Note(f"{method}: no loop to compare with"))
            continue
        for batch, classes in SIZES[: options.size(len(SIZES), 1)]:
            own, name = stacked(method), f"{method} B={batch} C={classes}"
            inputs = random_inputs(batch, classes)
            torch.testing.assert_close(own(*inputs), loop(*inputs), rtol=1e-4, atol=1e-5)
            repeats = options.size(max(4, 2_000_000 // (batch * classes)), 2)
            contestants = {
                name: seconds_of(lambda own=own, inputs=inputs: step(own, inputs), repeats),  # type: ignore[misc]
                "loop": seconds_of(lambda loop=loop, inputs=inputs: step(loop, inputs), repeats),  # type: ignore[misc]
            }
            results.append(compare(interleave(contestants, options.pairs), name, "loop", "s"))
    return results


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # of student [B,C], teachers [K,B,C] and labels [B]


def random_inputs(batch: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(batch, classes, generator=generator).requires_grad_()
    labels = torch.randint(classes, (batch,), generator=generator)
    teachers = torch.randn(TEACHERS, batch, classes, generator=generator)
    teachers[:, torch.arange(batch), labels] += 4  # teachers are usually right
    return student, teachers, labels


def step(loss: Loss, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    inputs[0].grad = None
    loss(*inputs).backward()


def stacked(method: str) -> Loss:
    module = kd_methods.build({"type": method, "temperature": TEMPERATURE})
    return lambda student, teachers, labels: module(StudentOutput(student), TeacherOutputs(teachers), labels)[0]


# ------------------------------------------------------------------------------- loops, from docs/methods.md


def soft_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """T^2 KL(teacher || student) for one teacher: []."""
    log_s, p_t = F.log_softmax(student / TEMPERATURE, 1), F.softmax(teacher / TEMPERATURE, 1)
    return F.kl_div(log_s, p_t, reduction="batchmean") * TEMPERATURE**2


def confidence_weights(teachers: Tensor, labels: Tensor) -> Tensor:
    """Weight of each teacher per sample: [K,B]."""
    losses = torch.stack([F.cross_entropy(teacher, labels, reduction="none") for teacher in teachers])
    return (1 - F.softmax(losses, 0)) / (len(teachers) - 1)


def label_probabilities(teachers: Tensor, labels: Tensor) -> Tensor:
    """Each teacher's probability of the label: [K,B]."""
    rows = torch.arange(len(labels))
    return torch.stack([F.softmax(teacher, 1)[rows, labels] for teacher in teachers])


def average(student: Tensor, teachers: Tensor, labels: Tensor) -> Tensor:
    loss = F.cross_entropy(student, labels)
    for teacher in teachers:
        loss = loss + soft_loss(student, teacher) / len(teachers)
    return loss


def ca_weighted(student: Tensor, teachers: Tensor, labels: Tensor) -> Tensor:
    weights = confidence_weights(teachers, labels)
    loss = F.cross_entropy(student, labels)
    for teacher, weight in zip(teachers, weights, strict=True):
        loss = loss + weight.mean() * soft_loss(student, teacher)
    return loss


def dynamic(student: Tensor, teachers: Tensor, labels: Tensor) -> Tensor:
    gate = torch.sigmoid(10.0 * (label_probabilities(teachers, labels).mean(0) - 0.5)).mean()
    weights = confidence_weights(teachers, labels)
    soft = student.new_zeros(())
    for teacher, weight in zip(teachers, weights, strict=True):
        soft = soft + weight.mean() * soft_loss(student, teacher)
    return gate * soft + (1 - gate) * 0.5 * F.cross_entropy(student, labels)


def confidence(student: Tensor, teachers: Tensor, labels: Tensor) -> Tensor:
    """Loops over samples, since each sample follows one teacher."""
    probability, best = label_probabilities(teachers, labels).max(0)
    chosen = torch.stack([teachers[int(teacher), row] for row, teacher in enumerate(best)])
    alpha = probability.mean()
    return alpha * soft_loss(student, chosen) + (1 - alpha) * F.cross_entropy(student, labels)


LOOPS: dict[str, Loss] = {
    "average": average,
    "ca_weighted": ca_weighted,
    "confidence": confidence,
    "dynamic": dynamic,
}
