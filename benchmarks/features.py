"""Feature losses from the cache, against constant teachers, teachers in every step, and a textbook loop.

AT, CRD, RKD, FitNet and ReviewKD, each on its own, ResNet-32x4 to ResNet-8x4, batch 64, 2,000 images in one clean view.
`constant` is the same run of train_kd.py whose teachers give the first batch's tensors in every step, so nothing is
read; student, loss and CRD's negatives stay.  With three teachers both are compared by their steps' time, and teachers
in every step on 512 of the images; with one teacher, AT and ReviewKD against a loop as mdistiller's: see part
`textbook`, in bf16 too where the CPU computes in it.  A bound is the ratio of counted operations.
"""

import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch.utils.flop_counter import FlopCounterMode

import kd_methods
import train_kd
from benchmarks import _runs
from benchmarks._data import write_parquet
from benchmarks._measure import Comparison, Figure, Options, Result, Target, compare, interleave
from benchmarks.textbook import batches, forget_precision, in_own_process, plain_sgd, speeds, student_network
from kd_core.models import WithFeatures
from kd_core.models import build as models
from kd_methods import StudentOutput, TeacherOutputs, feature_losses

BATCH, CLASSES, VAL, IMAGES = 64, 100, 200, 2000
TEACHER, STUDENT, TEACHERS = {"name": "cifar_resnet32x4"}, {"name": "cifar_resnet8x4"}, 3
LOSSES = ("at", "crd", "rkd", "fitnet", "reviewkd")
CACHED, ONLINE = Target(1.08), Target(2.5, at_least=True)
# Against the textbook loop, by loss and precision; bf16 counts on a CPU that computes in it.
TEXTBOOK = "textbook"
IN_THE_LOOP = {("at", "no"): 3.0, ("at", "bf16"): None, ("reviewkd", "no"): 1.7, ("reviewkd", "bf16"): 2.8}


def run(options: Options) -> Iterator[Result]:
    quick = options.quick
    data = write_parquet(options.folder("data"), options.size(IMAGES, 2 * BATCH) + VAL, CLASSES, noise=0)
    student, network = (_runs.TINY, _runs.TINY) if quick else (STUDENT, TEACHER)
    forget_precision()
    # Many small steps on an image per class or little more: a better network than chance, soon.
    fastest = "bf16" if computes_in_bf16() else "no"
    few = [f"--training.mixed_precision={fastest}", f"--data.train_size={2 * BATCH}", f"--data.batch_size={BATCH // 4}"]
    epochs = options.size(8, 30)
    [taught] = _runs.trained_teachers(options.scratch, data, [network], val=VAL, epochs=epochs, more=few)
    teachers = [taught, *(altered(taught, number) for number in range(1, options.size(TEACHERS, 1)))]

    def words(
        name: str, *losses: str, count: int, epochs: int, mode: str = "clean", more: Iterable[str] = ()
    ) -> list[str]:
        features = ", ".join(f"{{loss: {loss}}}" for loss in losses)
        own = [
            f"--cache.mode={mode}", f"--kd.features=[{features}]", "--kd.soft_weight=0", "--training.optimizer=sgd",
            "--no-wandb",
        ]  # fmt: skip
        return _runs.words(
            options.scratch, name, data, student=student, teachers=teachers[:count], view="clean", epochs=epochs,
            val=VAL, batch=BATCH, more=[*own, *more],
        )  # fmt: skip

    losses = LOSSES[: options.size(len(LOSSES), 2)]
    forget_precision()
    _runs.train(words("fill", *losses, count=len(teachers), epochs=1))  # what all of them need, in one pass
    for loss in losses:
        yield from three_teachers(loss, options, partial(words, count=len(teachers)))
        if not quick:
            yield bound(loss, len(teachers))
    for loss in dict.fromkeys(loss for loss, _ in IN_THE_LOOP):
        yield from against_textbook(loss, options, data, teachers[0], student, partial(words, count=1))
        if not quick:
            yield bound(loss, 1)
    forget_precision()


def three_teachers(loss: str, options: Options, words: Callable[..., list[str]]) -> list[Result]:
    """Epochs from the cache against those on constant tensors, and against those with teachers in every step."""
    pairs, slow, part = options.pairs, options.few(3), [f"--data.train_size={options.size(8, 2) * BATCH}"]
    runs = {f"{name}-{loss}": words(f"{name}-{loss}", loss, epochs=pairs + 1) for name in ("cached", CONSTANT)}
    with constant_where_named(), _runs.turns(runs) as turns:
        cached, constant = turns.values()
        values = interleave({"cached": cached.step_seconds, CONSTANT: constant.step_seconds}, pairs)
        assert cached.row["perf/teacher_cache_hit_rate"] == 1, cached.row
    results: list[Result] = [named(loss, compare(values, "cached", CONSTANT, "s per step", CACHED))]
    runs = {
        "cached": words(f"again-{loss}", loss, epochs=slow + 1, more=part),
        "online": words(f"online-{loss}", loss, epochs=slow + 1, mode="off", more=part),
    }
    with _runs.turns(runs) as turns:
        values = interleave({name: turn.step_seconds for name, turn in turns.items()}, slow)
    return [*results, named(loss, compare(values, "online", "cached", "s per step", ONLINE))]


def named(loss: str, found: Comparison) -> Comparison:
    found.name = f"{loss}: {found.name}"
    return found


def altered(folder: Path, number: int) -> Path:
    """A copy of a run whose network differs from it in the biases of the last layer: another teacher of its kind."""
    copy = shutil.copytree(folder, folder.with_name(f"copy{number}-{folder.name}"))
    file = copy / "student" / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    name = max(key for key in weights if key.endswith("bias") and len(weights[key]) == CLASSES)
    safetensors.torch.save_file({**weights, name: weights[name] + 1e-3 * number}, file, metadata={"format": "pt"})
    return copy


# ----------------------------------------------------------------------------------------------- constant teachers

CONSTANT = "constant"


@contextmanager
def constant_where_named() -> Iterator[None]:
    """Runs whose names begin with `constant` get the teachers' tensors of their first batch in every step."""
    prepare = train_kd.prepare

    def prepared(config: Any, *arguments: Any, **more: Any) -> train_kd.Setup:
        setup = prepare(config, *arguments, **more)
        if config.experiment.startswith(CONSTANT):
            setup.teachers.outputs = first_alone(setup.teachers.outputs)  # type: ignore[method-assign]
        return setup

    train_kd.prepare = prepared
    try:
        yield
    finally:
        train_kd.prepare = prepare


def first_alone(function: Callable[..., Any]) -> Callable[..., Any]:
    """What `function` returned first, always."""
    kept: list[Any] = []

    def first(*arguments: Any) -> Any:
        if not kept:
            kept.append(function(*arguments))
        return kept[0]

    return first


# --------------------------------------------------------------------------------------------------- textbook loop


def against_textbook(
    loss: str, options: Options, data: Path, folder: Path, student: dict[str, Any], words: Callable[..., list[str]]
) -> list[Result]:
    """Images per second of whole runs from the cache against those of `in_the_loop`."""

    def images_per_second(precision: str) -> float:
        forget_precision()
        name = f"one-{loss}-{precision}-{time.monotonic_ns()}"
        own = words(name, loss, epochs=2, more=[f"--training.mixed_precision={precision}"])
        return statistics.median(row["perf/images_per_second"] for row in _runs.epochs_of(_runs.train(own)))

    loop = in_own_process(data, folder, student, options.size(6, 2), loss, loop="features.in_the_loop")
    contestants: dict[str, Callable[[], float]] = {TEXTBOOK: partial(next, loop)}
    targets: dict[str, Target | None] = {}
    for (own, precision), limit in IN_THE_LOOP.items():
        if own == loss and (precision == "no" or computes_in_bf16()):
            name = f"cached {'fp32' if precision == 'no' else precision}"
            contestants[name] = partial(images_per_second, precision)
            targets[name] = Target(limit, at_least=True) if limit else None
    values = interleave(contestants, options.few(3))
    return [named(loss, compare(values, name, TEXTBOOK, "images/s", target)) for name, target in targets.items()]


def computes_in_bf16() -> bool:
    """Whether the CPU has instructions for bf16."""
    try:
        return "bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def in_the_loop(data: Path, folder: Path, student: dict[str, Any], steps: int, loss: str) -> Iterator[float]:
    """Images per second of a loop that runs the teacher in every step, in fp32, and reads loss and accuracy back."""
    own, teacher, method = loss_parts(loss, student_network(student), [models.load_export(folder / "student").model])
    optimizer, stream = plain_sgd(torch.nn.ModuleList([own, method])), batches(data)

    def step() -> tuple[float, float]:
        images, labels = next(stream)
        logits, features = own(images)
        with torch.no_grad():
            taught, theirs = teacher[0](images)
        output = TeacherOutputs(taught[None], (theirs,))
        total, _ = method(StudentOutput(logits, features), output, labels)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        return total.item(), (logits.argmax(1) == labels).float().mean().item()

    yield from speeds(step, steps)


def loss_parts(
    loss: str, student: torch.nn.Module, teachers: list[torch.nn.Module]
) -> tuple[WithFeatures, list[WithFeatures], kd_methods.KDMethod]:
    """Student and teachers with their features, and the label loss with the feature loss."""
    entry = feature_losses.config_class(loss).model_validate({"loss": loss})
    own = WithFeatures(student, entry.student, 32, "student")
    others = [WithFeatures(teacher.eval(), entry.teacher_layers(0), 32, "teacher") for teacher in teachers]
    places = list(range(len(entry.student)))
    features = [{"loss": loss, "student": places, "teacher": places}]
    method = kd_methods.build(
        {"type": "average", "soft_weight": 0.0, "features": features}, num_classes=CLASSES, student_shapes=own.shapes,
        teacher_shapes=[other.shapes for other in others], train_labels=torch.arange(IMAGES) % CLASSES,
    )  # fmt: skip
    return own, others, method


# ------------------------------------------------------------------------------------------------------ operations


def bound(loss: str, count: int) -> Figure:
    """How much faster a step without the teachers' passes can be, if time goes with operations."""
    own, teachers, method = loss_parts(
        loss, student_network(STUDENT), [student_network(TEACHER) for _ in range(count)]
    )
    images, labels = torch.rand(BATCH, 3, 32, 32), torch.arange(BATCH)
    with FlopCounterMode(display=False) as of_teachers, torch.no_grad():
        found = [teacher(images) for teacher in teachers]
        outputs = TeacherOutputs(torch.stack([logits for logits, _ in found]), tuple(maps for _, maps in found))
    with FlopCounterMode(display=False) as of_rest:
        logits, features = own(images)
        total, _ = method(StudentOutput(logits, features), outputs, labels, rows=torch.arange(BATCH))
        total.backward()
    rest = of_rest.get_total_flops()
    name = f"{loss}: bound by operations, {count} teacher{'s' * (count > 1)}"
    return Figure(name, (of_teachers.get_total_flops() + rest) / rest, "times")


if __name__ == "__main__":
    from benchmarks._measure import hand_over

    hand_over("features")
