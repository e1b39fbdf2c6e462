"""What the rows of docs/results.md cost: passes of the networks over an image, and their arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from kd_core.comparison.runs import Run
from kd_core.config import Config, TeacherConfig
from kd_core.evaluation.cost import count_multiply_adds, in_evaluation_mode
from kd_core.models.build import create_model

IMAGES, CLASSES, SIDE = 50_000, 100, 32  # of CIFAR-100's training split
STEP = 3  # forward passes that one step of training is worth: a backward pass takes the arithmetic of two


@dataclass(frozen=True)
class Cost:
    """Passes over one image, and 10^12 multiply-adds of all passes over all images."""

    student_passes: int
    teacher_passes: int  # of all teachers together, with an empty cache; those behind a file of logits are not known
    student: float
    teachers: float

    @property
    def total(self) -> float:
        return self.student + self.teachers


def of(run: Run) -> Cost:
    config = run.config
    epochs, passes = config.training.max_epochs, [_passes(config, teacher) for teacher in config.teachers]
    student = epochs * STEP * multiply_adds(config.model.name)
    taught = zip(config.teachers, passes, strict=True)
    teachers = sum(count * multiply_adds(teacher.model) for teacher, count in taught if count)
    return Cost(epochs, sum(passes), student * IMAGES / 1e12, teachers * IMAGES / 1e12)


def _passes(config: Config, teacher: TeacherConfig) -> int:
    """A teacher's passes over an image: as many as there are views of it that it sees, since all are cached."""
    if teacher.logits:
        return 0
    if teacher.view == "clean":
        return 1
    if config.cache.mode != "fixed":
        raise ValueError(f"{config.name}: its teachers see a new view in every epoch, which this page has no row of")
    return config.cache.views


@cache
def multiply_adds(model: str) -> int:
    """Of one forward pass over one image."""
    network = create_model(model, num_classes=CLASSES)
    with in_evaluation_mode(network):
        return count_multiply_adds(network, torch.zeros(1, 3, SIDE, SIDE))
