"""Confidence-aware weights as published (CA-MKD).  Zhang, Chen, Wang, ICASSP 2022, arXiv:2201.00007.

    w_kb = (1 - softmax_k CE(t_kb, y_b)) / (K - 1)      CE at T = 1

Per sample, or with `scope: batch` its mean over the batch; the equation of the loss stands in `_weighted.py`. It has
the weights of `ca_weighted`, with coefficients for both terms. `normalize: reference` is the scale of the authors'
code, which divides by K once more.
"""

from typing import Literal

from kd_methods._base import StudentOutput, TeacherOutputs
from kd_methods._torch import Tensor
from kd_methods._weighted import PublishedConfig, WeightedMethod
from kd_methods._weights import label_confidence_weights


class Config(PublishedConfig):
    type: Literal["ca_mkd"] = "ca_mkd"


class Method(WeightedMethod):
    config: Config
    words = "label-confidence weight"

    def weigh(self, student: StudentOutput, teachers: TeacherOutputs, labels: Tensor, progress: float) -> Tensor:
        assert teachers.logits is not None
        return label_confidence_weights(teachers.logits, labels)

    def reference_sum(self, num_teachers: int) -> float:
        return 1 / num_teachers
