"""Features of a student and of unlike teachers, on which every feature loss is tested.

A loss is covered by being there: its sample entries follow from the features that it takes and from the choices and
switches of its settings. `ENTRIES` is the place for those of a loss that needs something else.

    case = feature_cases.case(entry, num_teachers=3)
    loss, metrics = case.call()
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import torch
from torch import Tensor

import kd_methods
from kd_methods import KDMethod, StudentOutput, TeacherOutputs, feature_losses

CLASSES, ROWS = 10, 200
MAPS, TOKENS, EMBEDDING = [0, 1, 2], [3, 4], [5]  # places of the features
STUDENT = [(6, 8, 8), (8, 4, 4), (10, 4, 4), (17, 10), (17, 10), (10,)]
TEACHERS = [  # of equal size, half the size, and twice the size; after the third again the first
    [(6, 8, 8), (8, 4, 4), (10, 4, 4), (17, 10), (17, 10), (10,)],
    [(8, 4, 4), (12, 2, 2), (14, 2, 2), (5, 14), (5, 14), (14,)],
    [(5, 16, 16), (7, 8, 8), (9, 8, 8), (66, 9), (66, 9), (9,)],
]
Entry = dict[str, Any]

ENTRIES: dict[str, list[Entry]] = {  # loss: entries without `loss` and `weight`, in place of the usual ones
    "crd": [{"student": EMBEDDING, "teacher": EMBEDDING, "width": 8}],
    "ofa": [{"student": own, "teacher": []} for own in (MAPS, TOKENS)] + [{"student": MAPS, "logits": False}],
    "reviewkd": [{"student": own, "teacher": own} for own in (MAPS + EMBEDDING, TOKENS + EMBEDDING)],
    "sdd": [{"student": own, "teacher": own} for own in (MAPS[-1:], TOKENS[-1:])]
    + [{"student": MAPS[-1:], "teacher": MAPS[-1:], "base": "dkd", "scales": [1, 2]}],
}


def entries(name: str) -> list[Entry]:
    """Sample entries of the loss `name`: on maps, on tokens and on embeddings, and with each choice of its settings."""
    if name in ENTRIES:
        return [{"loss": name, "weight": 1.0, **entry} for entry in ENTRIES[name]]
    loss, fields = feature_losses.loss_class(name), feature_losses.config_class(name).model_fields
    places = [
        group[-loss.number :] if loss.number else group
        for kind, group in (("map", MAPS), ("tokens", TOKENS), ("embedding", EMBEDDING))
        if kind in loss.kinds
    ]
    choices = [(key, get_args(f.annotation)) for key, f in fields.items() if get_origin(f.annotation) is Literal]
    choices += [(key, (False, True)) for key, f in fields.items() if f.annotation is bool and key != "gather"]
    others = [{key: value} for key, values in choices for value in values if value != fields[key].default]
    combined = itertools.product(places, [{}, *others])
    return [{"loss": name, "weight": 1.0, "student": own, "teacher": own, **more} for own, more in combined]


ALL = [entry for name in feature_losses.names() for entry in entries(name)]
GATHERING = [
    {**entry, "gather": True}
    for entry in ALL
    if "gather" in feature_losses.config_class(entry["loss"]).model_fields
]


@dataclass
class Case:
    """A method with features, and inputs for it. Tensors are new ones; the student's require gradient."""

    method: KDMethod
    logits: Tensor
    features: tuple[Tensor, ...]
    classifier: tuple[Tensor, Tensor]
    teachers: TeacherOutputs
    labels: Tensor
    rows: Tensor
    progress: float = 1.0
    used: tuple[int, ...] = ()  # places of the student's features that the loss uses

    def call(self) -> tuple[Tensor, dict[str, Tensor]]:
        student = StudentOutput(self.logits, self.features, self.classifier)
        return self.method(student, self.teachers, self.labels, self.progress, self.rows)


def case(
    entry: Entry,
    num_teachers: int = 3,
    batch: int = 6,
    *,
    scale: float = 1.0,
    seed: int = 0,
    alike: bool = False,
    student: Sequence[tuple[int, ...]] = tuple(STUDENT),
    **settings: Any,
) -> Case:
    """A method with the one feature loss `entry`; `alike`: all teachers have the shapes of the second one.

    `student`: the shapes of its features.
    """
    kinds = [TEACHERS[1 if alike else k % len(TEACHERS)] for k in range(num_teachers)]
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return scale * torch.randn(*shape, generator=generator)

    labels = torch.randint(CLASSES, (ROWS,), generator=generator)
    rows = torch.randperm(ROWS, generator=generator)[:batch]
    method = kd_methods.build(
        {"type": "average", **settings, "features": [entry]},
        num_classes=CLASSES, student_shapes=list(student), teacher_shapes=kinds, train_labels=labels, seed=seed,
    )  # fmt: skip
    teachers = TeacherOutputs(
        random(num_teachers, batch, CLASSES) / scale,
        tuple(tuple(random(batch, *shape) for shape in shapes) for shapes in kinds),
        tuple((random(CLASSES, shapes[-1][0]) / scale, random(CLASSES) / scale) for shapes in kinds),
    )
    return Case(
        method,
        (random(batch, CLASSES) / scale).requires_grad_(),
        tuple(random(batch, *shape).requires_grad_() for shape in student),
        (random(CLASSES, STUDENT[-1][0]) / scale, random(CLASSES) / scale),
        teachers,
        labels[rows],
        rows,
        used=tuple(entry["student"]),
    )


def gradients(case: Case, loss: Tensor) -> list[Tensor]:
    """The gradients of `loss` with respect to the student's features that are used, and to parameters."""
    leaves = [case.features[place] for place in case.used] + list(case.method.parameters())
    return list(torch.autograd.grad(loss, leaves))
