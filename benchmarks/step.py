"""A complete training step against a bare one: forward, cross-entropy, backward, optimizer.

The complete steps are those of train_kd.py's epochs: views, three cached teachers, the method's loss, metrics, W&B
offline, a row logged every 25 steps (twice as often as by default).  The bare ones train the same network with the
same optimizer and memory format on one fixed batch, in a loop of as many steps that alternates with the epochs.
"""

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks import _runs
from benchmarks._data import write_parquet
from benchmarks._measure import Figure, Options, Result, Target, compare, interleave, seconds_of
from kd_core.config import TrainingConfig
from kd_core.loop.optimizer import create_optimizer
from kd_core.models import build as models
from kd_core.run.precision import TYPES

BATCH, CLASSES, VAL, LOG_EVERY = 128, 100, 200, 25
STUDENTS = ("cifar_resnet8", "cifar_resnet20")
TEACHERS = ("cifar_resnet8", "cifar_wrn_16_1", "cifar_resnet8")
CPU = torch.device("cpu")


def run(options: Options) -> list[Result]:
    steps, epochs = options.size(25, 2), options.pairs + 2
    data = write_parquet(options.folder("data"), steps * BATCH + VAL, CLASSES)
    networks = [{"name": name} if not options.quick else _runs.TINY for name in TEACHERS]
    teachers = _runs.trained_teachers(options.scratch, data, networks, val=VAL)

    def words(name: str, student: Mapping[str, Any]) -> list[str]:
        more = ["--cache.mode=lazy", f"--training.log_every={LOG_EVERY}"]
        return _runs.words(
            options.scratch, name, data, student=student, teachers=teachers, epochs=epochs, batch=BATCH, val=VAL,
            method="dynamic", more=more,
        )  # fmt: skip

    def measured(student: Mapping[str, Any]) -> dict[str, list[float]]:
        """Seconds per step of train_kd.py and of the bare loop."""
        name = student["name"]
        with _runs.turns({name: words(name, student)}) as runs:
            runs[name].epoch()
            contestants = {name: runs[name].step_seconds, "bare": seconds_of(bare_step(student), steps)}
            return interleave(contestants, options.pairs)

    _runs.train([*words("fill", _runs.TINY), "--no-wandb"])  # fills the cache: views depend on epoch and seed only
    results: list[Result] = []
    for name in STUDENTS if not options.quick else ():
        results.append(compare(measured({"name": name}), name, "bare", "s per step", Target(1.05)))
    tiny, values = _runs.TINY["name"], measured(_runs.TINY)
    results.append(compare(values, tiny, "bare", "s per step"))
    extra = [own - bare for own, bare in zip(values[tiny], values["bare"], strict=True)]
    results.append(Figure("time per step besides network and optimizer", statistics.median(extra), "s"))
    return results


def bare_step(
    student: Mapping[str, Any], batch: int = BATCH, device: torch.device = CPU, precision: str = "no"
) -> Callable[[], None]:
    """A minimal training step of this network; on a GPU it returns before its work is done."""
    images = torch.randn(batch, 3, 32, 32).to(device).to(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (batch,)).to(device)
    more = {key: student[key] for key in ("img_size", "args") if key in student}
    model = models.create_model(student["name"], num_classes=CLASSES, **more).to(device)
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = create_optimizer(model, TrainingConfig(), device)

    def step() -> None:
        with torch.autocast(device.type, TYPES.get(precision), enabled=precision in TYPES):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
