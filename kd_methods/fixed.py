"""Given weights: the same for all samples and the whole run.

`weights` holds one number for each teacher, in their order; they are divided by their sum. Without any, all teachers
count the same. The equation stands in `_weighted.py`.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kd_methods._constant import ConstantMethod, normalized, require_count
from kd_methods._torch import Tensor
from kd_methods._weighted import WeightedConfig


class Config(WeightedConfig):
    uses_labels = False

    type: Literal["fixed"] = "fixed"
    weights: list[Annotated[float, Field(ge=0)]] = Field(
        default=[], description="one number for each teacher, in their order, divided by their sum; []: equal"
    )

    @model_validator(mode="after")
    def _some_weight(self) -> "Config":
        if self.weights and sum(self.weights) == 0:
            raise ValueError("weights: are all 0; raise one")
        return self

    def check_teachers(self, num_teachers: int) -> None:
        super().check_teachers(num_teachers)
        if self.weights:
            require_count("kd.weights", len(self.weights), num_teachers)


class Method(ConstantMethod):
    config: Config
    words = "given weight"

    def constant(self, errors: Tensor | None) -> Tensor | None:
        return normalized(self.config.weights) if self.config.weights else None
