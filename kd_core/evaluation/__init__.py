"""How good a student and its teachers are, and what a run's own numbers say went wrong."""

from kd_core.evaluation.alone import keep_logits
from kd_core.evaluation.figures import evaluate
from kd_core.evaluation.predictions import observe_splits, observer, sample
from kd_core.evaluation.preflight import check_everything, check_members, start
from kd_core.evaluation.teacher_check import TeacherCheck, check_teachers, errors_of

__all__ = [
    "TeacherCheck", "check_everything", "check_members", "check_teachers", "errors_of", "evaluate", "keep_logits",
    "observe_splits", "observer", "sample", "start",
]  # fmt: skip
