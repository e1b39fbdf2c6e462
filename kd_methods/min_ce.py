"""Per sample the teacher with the least cross-entropy, at T = 1.

It is the teacher that `confidence` chooses, without that method's mix with the label loss. Of equal ones the first
counts. With `scope: batch` each teacher's weight is the share of samples for which it is chosen. The equation of the
loss stands in `_weighted.py`; `normalize` changes nothing, as the weights sum to 1 anyway.
"""

from typing import Literal

from kd_methods._base import StudentOutput, TeacherOutputs
from kd_methods._torch import Tensor, torch
from kd_methods._weighted import PublishedConfig, WeightedMethod
from kd_methods._weights import at_label


class Config(PublishedConfig):
    type: Literal["min_ce"] = "min_ce"


class Method(WeightedMethod):
    config: Config
    words = "1 for the teacher with the least cross-entropy"

    def weigh(self, student: StudentOutput, teachers: TeacherOutputs, labels: Tensor, progress: float) -> Tensor:
        assert teachers.logits is not None
        best = at_label(torch.log_softmax(teachers.logits, -1), labels).max(0).indices  # [B]
        index = torch.arange(len(teachers.logits), device=best.device)
        return (index[:, None] == best).to(teachers.logits.dtype)
