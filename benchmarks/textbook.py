"""Distilling ResNet-32x4 into ResNet-8x4, batch 64: train_kd.py against a textbook training loop.

The textbook loop runs the teacher in every step, in fp32 and NCHW, with PIL transforms per image in a DataLoader with
two workers, KL + cross-entropy, loss and accuracy read by `.item()` in every batch, and plain SGD.  It has its own
process, with glibc's default heap settings (see part `heap`).
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from torch.utils.data import DataLoader

from benchmarks import _runs
from benchmarks._data import write_parquet
from benchmarks._measure import Options, Result, Target, compare, interleave
from benchmarks.input_pipeline import ArrayDataset, open_parquet
from kd_core.models import build as models

BATCH, CLASSES, VAL, TEMPERATURE = 64, 100, 200, 4.0
TEACHER, STUDENT = "cifar_resnet32x4", "cifar_resnet8x4"
TEXTBOOK = "textbook"
TARGETS = {"cached fp32": 3.0, "cached bf16": 5.5}


def run(options: Options) -> list[Result]:
    steps, pairs = options.size(4, 2), options.few(5)
    data = write_parquet(options.folder("data"), steps * BATCH + VAL, CLASSES, noise=0)
    student: dict[str, Any] = {"name": STUDENT} if not options.quick else _runs.TINY
    teacher: dict[str, Any] = {"name": TEACHER} if not options.quick else _runs.TINY
    forget_precision()
    bf16 = ["--training.mixed_precision=bf16"]
    epochs = options.size(8, 30)
    [folder] = _runs.trained_teachers(options.scratch, data, [teacher], val=VAL, epochs=epochs, more=bf16)

    def images_per_second(cache: str, precision: str) -> float:
        """The rate of a run's median epoch; the first round fills the cache."""
        forget_precision()
        more = [f"--cache.mode={cache}", f"--training.mixed_precision={precision}", "--training.optimizer=sgd"]
        words = _runs.words(
            options.scratch, f"{cache}-{precision}-{time.monotonic_ns()}", data, student=student, teachers=[folder],
            epochs=3, val=VAL, batch=BATCH, more=[*more, "--no-wandb"],
        )  # fmt: skip
        return statistics.median(row["perf/images_per_second"] for row in _runs.epochs_of(_runs.train(words)))

    contestants: dict[str, Callable[[], float]] = {
        TEXTBOOK: partial(next, in_own_process(data, folder, student, steps)),
        "online fp32": lambda: images_per_second("off", "no"),
        "cached fp32": lambda: images_per_second("lazy", "no"),
        "online bf16": lambda: images_per_second("off", "bf16"),
        "cached bf16": lambda: images_per_second("lazy", "bf16"),
    }
    rates = interleave(contestants, pairs)
    forget_precision()
    targets = {name: Target(limit, at_least=True) for name, limit in TARGETS.items()}
    return [compare(rates, name, TEXTBOOK, "images/s", targets.get(name)) for name in contestants if name != TEXTBOOK]


def forget_precision() -> None:
    """Reset Accelerate's state, which allows one precision per process."""
    AcceleratorState._reset_state(reset_partial_state=True)


def in_own_process(
    data: Path, folder: Path, student: dict[str, Any], steps: int, *more: str, loop: str = "textbook.textbook"
) -> Iterator[float]:
    """The loop in a new process, since this project's heap settings apply to the whole process.

    loop: a module of this folder and its function, which is called with the arguments before it.
    """
    module, _, function = loop.partition(".")
    code = (
        f"import json, sys, torch; from pathlib import Path; from benchmarks.{module} import {function} as loop\n"
        "torch.set_num_threads(1)\n"
        "data, folder, *more = json.loads(sys.argv[1])\n"
        "rates = loop(Path(data), Path(folder), *more)\n"
        "for _ in sys.stdin: print(next(rates), flush=True)"
    )
    settings = json.dumps([str(data), str(folder), student, steps, *more])
    with subprocess.Popen(
        [sys.executable, "-c", code, settings], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        while True:
            child.stdin.write("\n")
            child.stdin.flush()
            yield float(child.stdout.readline())


def textbook(data: Path, teacher_folder: Path, student: dict[str, Any], steps: int) -> Iterator[float]:
    """Images per second over `steps` steps, repeatedly; the loader's workers keep running in between."""
    model = student_network(student)
    teacher = models.load_export(teacher_folder / "student").model.eval()
    optimizer = plain_sgd(model)
    stream = batches(data)

    def step() -> tuple[float, float]:
        images, labels = next(stream)
        logits = model(images)
        with torch.no_grad():
            taught = teacher(images)
        log_s, p_t = F.log_softmax(logits / TEMPERATURE, dim=1), F.softmax(taught / TEMPERATURE, dim=1)
        soft = F.kl_div(log_s, p_t, reduction="batchmean")
        loss = F.cross_entropy(logits, labels) + TEMPERATURE**2 * soft
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item(), (logits.argmax(1) == labels).float().mean().item()

    yield from speeds(step, steps)


def batches(data: Path) -> Iterator[Any]:
    """Images [64,3,32,32] and labels, from PIL transforms in two workers, without end."""
    loader = DataLoader(
        ArrayDataset(open_parquet(data)), BATCH, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True,
        multiprocessing_context="fork",
    )  # fmt: skip
    while True:
        yield from loader


def student_network(student: dict[str, Any]) -> torch.nn.Module:
    more = {key: student[key] for key in ("img_size", "args") if key in student}
    return models.create_model(student["name"], num_classes=CLASSES, **more).train()


def plain_sgd(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def speeds(step: Callable[[], Any], steps: int) -> Iterator[float]:
    """Images per second over `steps` steps, repeatedly."""
    while True:
        start = time.perf_counter()
        for _ in range(steps):
            step()
        yield steps * BATCH / (time.perf_counter() - start)
