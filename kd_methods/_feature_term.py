"""The feature term of a method: every entry of `kd.features` against every teacher, built from features' shapes."""

from typing import TYPE_CHECKING, Any

from kd_methods import feature_losses
from kd_methods._module import LazyModule
from kd_methods._torch import Tensor, torch
from kd_methods._warmup import warmed_up
from kd_methods.feature_losses import Batch, FeatureConfig, FeatureLoss, Shape

if TYPE_CHECKING:
    from kd_methods._base import StudentOutput, TeacherOutputs

SEED_STRIDE = 1009  # between the seeds of two entries


class FeatureTerm(LazyModule):
    """The sum over entries of weight x growth x mean_b sum_k w_kb l_kb; projectors are its parameters.

    student_shapes, teacher_shapes[k]: shapes of one image's features, (C,H,W), (N,D) or (D,), at the places that the
    entries name. Raises ValueError that names the entry and what is wrong.
    """

    losses: Any  # ModuleList of entries, each a ModuleList of teachers

    def __init__(
        self,
        entries: list[FeatureConfig],
        student_shapes: list[Shape],
        teacher_shapes: list[list[Shape]],
        **more: Any,
    ) -> None:
        super().__init__()
        self.entries, self._teacher_shapes = entries, teacher_shapes
        for number, entry in enumerate(entries):
            if entry.teacher and isinstance(entry.teacher[0], list) and len(entry.teacher) != len(teacher_shapes):
                raise ValueError(
                    f"kd.features[{number}] ({entry.loss}): teacher has layers for {len(entry.teacher)} teachers, and "
                    f"there are {len(teacher_shapes)}; give a list for each, or one list for all"
                )
        self.losses = torch.nn.ModuleList(
            torch.nn.ModuleList(
                self._loss(number, teacher, student_shapes, teacher_shapes, **more)
                for teacher in range(len(teacher_shapes))
            )
            for number in range(len(entries))
        )

    def _loss(
        self, number: int, teacher: int, student_shapes: list[Shape], teacher_shapes: list[list[Shape]], **more: Any
    ) -> FeatureLoss:
        entry = self.entries[number]
        more["seed"] = more.get("seed", 0) + SEED_STRIDE * number + teacher  # other projectors for each
        try:
            own = [at_place(student_shapes, place, "student") for place in entry.student]
            *earlier, others = [
                [at_place(shapes, place, f"teacher {k}") for place in entry.teacher_layers(k)]
                for k, shapes in enumerate(teacher_shapes[: teacher + 1])
            ]
            entry = entry.model_copy(update={"teacher": entry.teacher_layers(teacher)})  # of this teacher
            loss: FeatureLoss = feature_losses.loss_class(entry.loss)(entry, own, others, earlier=earlier, **more)
        except (ValueError, IndexError) as error:
            raise ValueError(f"kd.features[{number}] ({entry.loss}), teacher {teacher}: {error}") from None
        return loss

    def keep(self, features: tuple[tuple[Tensor, ...], ...]) -> tuple[tuple[tuple[Tensor, ...], ...], ...]:
        """What each entry needs of each teacher's features: [entry][teacher], tuples of [B,...]."""
        return tuple(zip(*(self.keep_of(teacher, own) for teacher, own in enumerate(features)), strict=True))

    def keep_of(self, teacher: int, features: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], ...]:
        """What each entry needs of one teacher's features, fp32 at least: [entry], tuples of [B,...]."""
        return tuple(
            per_teacher[teacher].keep(tuple(features[place] for place in entry.teacher_layers(teacher)))
            for entry, per_teacher in zip(self.entries, self.losses, strict=True)
        )

    def kept_shapes(self, teacher: int) -> list[list[Shape]]:
        """The shapes of one image of what `keep_of` gives of a teacher: of each entry, those of its tensors."""
        with torch.no_grad():
            kept = self.keep_of(teacher, tuple(torch.zeros(1, *shape) for shape in self._teacher_shapes[teacher]))
        return [[tuple(values.shape[1:]) for values in own] for own in kept]

    def kept_as(self, teacher: int) -> list[dict[str, Any]]:
        """What each entry keeps of a teacher, for a cache's key: with the same layers and words, the same."""
        return [per_teacher[teacher].kept_as() for per_teacher in self.losses]

    def forward(
        self,
        student: "StudentOutput",
        teachers: "TeacherOutputs",
        weights: Tensor,
        labels: Tensor,
        progress: float,
        rows: Tensor | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The term [] and each entry's part of it before weight and growth; weights [K,B] or [K,1] sum to 1."""
        assert student.features is not None and teachers.logits is not None
        kept = teachers.kept
        if kept is None:
            assert teachers.features is not None
            kept = self.keep(teachers.features)
        total, parts = weights.new_zeros(()), dict[str, Tensor]()
        for number, (entry, per_teacher) in enumerate(zip(self.entries, self.losses, strict=True)):
            own = tuple(at_place(student.features, place, "student") for place in entry.student)
            values = []
            for k, loss in enumerate(per_teacher):
                _check_classifiers(number, k, loss, student, teachers)
                batch = Batch(
                    labels, student.logits, teachers.logits[k], progress, rows,
                    student.classifier, teachers.classifiers[k] if teachers.classifiers else None,
                )  # fmt: skip
                values.append(loss(own, kept[number][k], batch))
            part = per_teacher[0].combine(values, weights)
            total = total + entry.weight * warmed_up(progress, entry.warmup) * part
            same = sum(other.loss == entry.loss for other in self.entries[:number])
            parts[f"feature/{entry.loss}" + f"_{same + 1}" * bool(same)] = part
        return total, parts


def _check_classifiers(
    number: int, teacher: int, loss: FeatureLoss, student: "StudentOutput", teachers: "TeacherOutputs"
) -> None:
    """ValueError where the last linear layer that `loss` needs was not given."""
    given = teachers.classifiers is not None and teachers.classifiers[teacher] is not None
    for needed, there, what in (
        (loss.needs_student_classifier, student.classifier is not None, "the student: StudentOutput.classifier"),
        (loss.needs_teacher_classifier, given, f"teacher {teacher}: TeacherOutputs.classifiers[{teacher}]"),
    ):
        if needed and not there:
            entry = f"kd.features[{number}] ({loss.config.loss})"
            raise ValueError(f"{entry} needs the weight and bias of the last linear layer of {what}")


def at_place(values: Any, place: Any, whose: str) -> Any:
    """`values[place]`, an error that names the place where there is none."""
    if not isinstance(place, int) or not -len(values) <= place < len(values):
        raise IndexError(f"the {whose} has no features at place {place!r}; there are {len(values)}")
    return values[place]


def per_image(shapes: list[Any]) -> list[Shape]:
    """`shapes` without the batch, where one of them, of a map, has it: [B,C,H,W]."""
    if any(len(shape) == 4 for shape in shapes):
        return [tuple(shape)[1:] for shape in shapes]
    return [tuple(shape) for shape in shapes]
