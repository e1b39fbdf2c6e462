"""The best teacher alone: the one with the fewest errors on the validation images, or a given one.

The baseline that says what several teachers add. Of equally good teachers it is the first. Only its loss counts; the
others are measured and logged with weight 0.
"""

from typing import Literal

from pydantic import Field

from kd_methods._base import StudentOutput, TeacherOutputs
from kd_methods._constant import ConstantMethod
from kd_methods._torch import Tensor, torch
from kd_methods._weighted import WeightedConfig


class Config(WeightedConfig):
    uses_labels = False

    type: Literal["best"] = "best"
    teacher: int | None = Field(
        default=None, ge=0, description="number of the teacher, from 0; null: the best on the validation images"
    )

    @property
    def instead_of_errors(self) -> str | None:
        return "kd.teacher, the number of the best teacher" if self.teacher is None else None

    def check_teachers(self, num_teachers: int) -> None:
        super().check_teachers(num_teachers)
        if self.teacher is not None and self.teacher >= num_teachers:
            raise ValueError(f"kd.teacher: {self.teacher} is no teacher's number; those are 0 to {num_teachers - 1}")


class Method(ConstantMethod):
    config: Config
    words = "1 for the best teacher, 0 for others"

    def constant(self, errors: Tensor | None) -> Tensor | None:
        if errors is None or self.config.teacher is not None:
            return None
        return torch.nn.functional.one_hot(errors.mean(1).argmin(), len(errors)).double()

    def teacher_weights(
        self, student: StudentOutput, teachers: TeacherOutputs, labels: Tensor, progress: float
    ) -> Tensor:
        if self.config.teacher is None:
            return super().teacher_weights(student, teachers, labels, progress)
        assert teachers.logits is not None
        self.config.check_teachers(len(teachers.logits))
        numbers = torch.arange(len(teachers.logits), device=teachers.logits.device)
        return (numbers == self.config.teacher).to(teachers.logits.dtype).unsqueeze(1)
