"""Random weights, drawn anew for every step: what any other weighting has to beat.

    w_k = log u_k / sum_j log u_j,  u uniform in (0,1): uniform over all weights that sum to 1

All samples of a step share them, and all processes draw the same. A draw is a function of the seed and the number of
the step, a buffer, so that a resumed run goes on with the draws that it would have had. In evaluation each teacher has
its mean weight, 1 / K. The equation of the loss stands in `_weighted.py`.
"""

from hashlib import sha256
from typing import Any, Literal

from kd_methods._base import StudentOutput, TeacherOutputs
from kd_methods._torch import Tensor, torch
from kd_methods._weighted import WeightedConfig, WeightedMethod
from kd_methods._weights import equal_weights

GOLDEN, FIRST, SECOND = -7046029254386353131, -4658895280553007687, -7723592293110705685  # splitmix64, as int64


class Config(WeightedConfig):
    uses_labels = False

    type: Literal["random"] = "random"


class Method(WeightedMethod):
    shared_weights = True
    config: Config
    words = "random weight of the step"
    steps: Tensor

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, *args: Any, **more: Any) -> Any:
        if self.training:
            self.steps += 1
        return super().forward(*args, **more)

    def weigh(self, student: StudentOutput, teachers: TeacherOutputs, labels: Tensor, progress: float) -> Tensor:
        assert teachers.logits is not None
        count, dtype = len(teachers.logits), teachers.logits.dtype
        if not self.training:
            return equal_weights(teachers.logits)
        logs = uniform(self.seed, self.steps, count).log()
        return (logs / logs.sum()).to(dtype).unsqueeze(1)


def uniform(seed: int, step: Tensor, count: int) -> Tensor:
    """Numbers fp64 [count] in (0,1) of (seed, step), the same on every device; step int64 [].

    A variant of splitmix64 (Steele, Lea, Flood, OOPSLA 2014), counted from a hash of the seed, of which these are the
    numbers from step * count on: its shifts are those of int64, which repeat the sign, and the last xor is left out.
    """
    first = int.from_bytes(sha256(str(seed).encode()).digest()[:7])
    value = torch.arange(first, first + count, device=step.device).add(step, alpha=count) * GOLDEN
    value = (value ^ value >> 30) * FIRST
    value = (value ^ value >> 27) * SECOND
    return ((value >> 11 & 2**53 - 1).double() + 0.5) / 2**53
