"""Entropy-based weights (EBKD): a teacher that is sure counts more.  Kwon, Na, Lee, Kim, ICASSP 2020.

    w_kb = (1 - H_kb / sum_j H_jb) / (K - 1)      H_kb: entropy of softmax(t_kb), at T = 1

Per sample, or with `scope: batch` its mean over the batch; the equation of the loss stands in `_weighted.py`. The
labels play no part. Where all teachers are certain, they count the same. `normalize: reference` is the scale of the
code that compared it with others (CA-MKD's): the weights sum to (K - 1) / K, which leaves one teacher no loss.
"""

from typing import Literal

from kd_methods._base import StudentOutput, TeacherOutputs
from kd_methods._torch import Tensor, torch
from kd_methods._weighted import PublishedConfig, WeightedMethod
from kd_methods._weights import entropy


class Config(PublishedConfig):
    uses_labels = False

    type: Literal["ebkd"] = "ebkd"

    def check_run(self, num_teachers: int) -> None:
        super().check_run(num_teachers)
        if num_teachers == 1 and self.normalize == "reference":
            raise ValueError(
                "kd.normalize: 'reference' multiplies the loss of one teacher by 0, as the authors' code does; "
                "set kd.normalize=sum1"
            )


class Method(WeightedMethod):
    config: Config
    words = "entropy weight"

    def weigh(self, student: StudentOutput, teachers: TeacherOutputs, labels: Tensor, progress: float) -> Tensor:
        assert teachers.logits is not None
        return entropy_weights(teachers.logits)

    def reference_sum(self, num_teachers: int) -> float:
        return (num_teachers - 1) / num_teachers


def entropy_weights(logits: Tensor) -> Tensor:
    """Weights [K,B] of logits [K,B,C], K > 1, that sum to 1 over the teachers and fall with a teacher's entropy."""
    own = entropy(logits)
    total = own.sum(0)
    share = torch.where(total > 0, own / total, 1 / len(logits))
    return (1 - share) / (len(logits) - 1)
