"""What weightings share whose weights stay the same for a whole run."""

from collections.abc import Sequence
from typing import Any

from kd_methods._base import StudentOutput, TeacherOutputs, count
from kd_methods._torch import Tensor, torch
from kd_methods._weighted import WeightedConfig, WeightedMethod
from kd_methods._weights import equal_weights


def require_count(key: str, given: int, num_teachers: int) -> None:
    """ValueError that names `key` unless it holds something for each of the teachers."""
    if given != num_teachers:
        raise ValueError(f"{key}: {given} given for {count(num_teachers)}; give one for each, in their order")


class ConstantMethod(WeightedMethod):
    """A weighting with one weight per teacher. Subclasses write `constant`.

    The weights are a buffer, so that a resumed run goes on with its own.
    """

    shared_weights = True
    weights: Tensor | None

    def __init__(self, config: WeightedConfig, *, teacher_errors: Tensor | None = None, **more: Any) -> None:
        super().__init__(config, teacher_errors=teacher_errors, **more)
        if teacher_errors is not None and (teacher_errors.ndim != 2 or 0 in teacher_errors.shape):
            shape = tuple(teacher_errors.shape)
            raise ValueError(f"teacher_errors: have shape {shape}; they must be [teachers, images], none of it empty")
        # On the host, once, when the method is built: fp64 everywhere, and no step waits for it.
        errors = None if teacher_errors is None else teacher_errors.detach().double().cpu()
        self.register_buffer("weights", self.constant(errors))

    def constant(self, errors: Tensor | None) -> Tensor | None:
        """Weights fp64 [K] that sum to 1, from errors fp64 [K,N]; None if nothing says how many teachers there are."""
        raise NotImplementedError

    def teacher_weights(
        self, student: StudentOutput, teachers: TeacherOutputs, labels: Tensor, progress: float
    ) -> Tensor:
        assert teachers.logits is not None
        num_teachers = len(teachers.logits)
        self.config.check_teachers(num_teachers)
        if self.weights is not None:
            require_count("teacher_errors", len(self.weights), num_teachers)
            return self.weights.to(teachers.logits.dtype).unsqueeze(1)
        if num_teachers > 1 and self.config.instead_of_errors:
            raise ValueError(
                f"kd.type '{self.config.type}' needs the teachers' errors on validation images, "
                f"build(..., teacher_errors=[teachers, images]), or {self.config.instead_of_errors}"
            )
        return equal_weights(teachers.logits)


def normalized(weights: Sequence[float]) -> Tensor:
    """Numbers as fp64 [K] that sum to 1."""
    values = torch.tensor(weights, dtype=torch.float64)
    return values / values.sum()
