"""The weights with which the teachers' errors cancel best on the validation images.  After Perrone and Cooper 1993.

    C_kl = mean_n e_kn e_ln      C -> (1 - shrinkage) C + shrinkage mean_k C_kk I
    w minimizes w'Cw, w >= 0, sum 1            unconstrained: w = C^-1 1 / (1' C^-1 1), which may be negative

e is 1 where a teacher is wrong on an image, else 0, as in their When Networks Disagree. Errors are not centered: a
teacher that is always wrong would have no variance. `matrix` gives C instead. Shrinkage toward equal and independent
teachers is after Ledoit and Wolf 2004, with a given strength. The weights are the same for all samples and the whole
run. The equation of the loss stands in `_weighted.py`.
"""

from typing import Literal

from pydantic import Field, model_validator

from kd_methods._constant import ConstantMethod, require_count
from kd_methods._simplex import shortest_combination
from kd_methods._torch import Tensor, torch
from kd_methods._weighted import WeightedConfig


class Config(WeightedConfig):
    uses_labels = False

    constant = ("shrinkage",)

    type: Literal["covariance"] = "covariance"
    shrinkage: float = Field(
        default=0.1, ge=0, le=1, description="from 0, the measured matrix, to 1, equal and independent teachers"
    )
    unconstrained: bool = Field(default=False, description="the closed form, whose weights may be negative")
    matrix: list[list[float]] | None = Field(
        default=None, description="mean product of the errors of each two teachers; null: from the validation images"
    )

    @model_validator(mode="after")
    def _is_symmetric(self) -> "Config":
        rows = self.matrix
        if rows is not None and (not rows or rows != [list(column) for column in zip(*rows, strict=False)]):
            raise ValueError(f"matrix: {rows} is not symmetric, with one row and one column for each teacher")
        return self

    @property
    def instead_of_errors(self) -> str | None:
        return "kd.matrix, their mean products" if self.matrix is None else None

    def check_teachers(self, num_teachers: int) -> None:
        super().check_teachers(num_teachers)
        if self.matrix is not None:
            require_count("kd.matrix: rows", len(self.matrix), num_teachers)


class Method(ConstantMethod):
    config: Config
    words = "error-covariance weight"

    def constant(self, errors: Tensor | None) -> Tensor | None:
        config = self.config
        if config.matrix is not None:
            matrix = torch.tensor(config.matrix, dtype=torch.float64)
            if torch.linalg.eigvalsh(matrix)[0] < -1e-9 * matrix.abs().max():
                raise ValueError("kd.matrix: has a negative eigenvalue, which mean products of errors do not have")
        elif errors is not None:
            matrix = errors @ errors.T / errors.shape[1]
        else:
            return None
        identity = torch.eye(len(matrix), dtype=torch.float64)
        size = matrix.diagonal().mean()
        size = torch.where(size > 0, size, torch.ones_like(size))  # of teachers without errors any: all are equal
        matrix = (1 - config.shrinkage) * matrix + config.shrinkage * size * identity
        return closed_form(matrix) if config.unconstrained else shortest_combination(matrix)


def closed_form(matrix: Tensor) -> Tensor:
    """C^-1 1 / (1' C^-1 1) for C [K,K]. Raises ValueError if C has no inverse."""
    if torch.linalg.matrix_rank(matrix, hermitian=True) < len(matrix):
        raise ValueError(
            "kd.unconstrained: the teachers' errors are not independent, so the closed form has no solution; "
            "raise kd.shrinkage"
        )
    weights = torch.linalg.solve(matrix, torch.ones(len(matrix), dtype=matrix.dtype))
    return weights / weights.sum()
