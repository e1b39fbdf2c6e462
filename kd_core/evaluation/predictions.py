"""Predictions of a run's networks on its images: the student, its teachers, and the same student trained alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from kd_core.data.dataset import Data, Split
from kd_core.data.views import epoch_order
from kd_core.evaluation.figures import Predictions
from kd_core.models.network import Network
from kd_core.models.predict import Images, Predictor, image_weights
from kd_core.teachers.logits import TeacherLogits
from kd_methods import KDMethod

SAMPLE = 2000  # training images that are evaluated where all would take too long


@dataclass
class Observer:
    """Evaluates all networks of a run on a split; all processes call it together.

    Args:
        alone: the same student trained without teachers, if there is one.
    """

    predict: Predictor
    data: Data
    student: Network
    teachers: TeacherLogits
    method: KDMethod
    alone: Network | None = None

    def __call__(
        self,
        name: str,
        split: Split,
        *,
        images: Images | None = None,
        teacher_logits: Tensor | None = None,
        keep: bool = True,
    ) -> Predictions:
        """The predictions of all networks on a split; `images` are its own, if they are on the device already.

        `teacher_logits` [K,n,C]: those of the teachers, if they are known; else they are read or computed, and `keep`
        is that of `TeacherLogits.clean_logits`.
        """
        predict = self.predict
        if images is None:
            images = Images(split, predict.accelerator.device, predict.config.data.store)

        def logits_of(network: Network, who: str) -> Tensor:
            return predict(network.model, images, network.views, f"{who} on {name}")

        logits, labels = logits_of(self.student, "student"), images.labels
        if teacher_logits is None:
            teacher_logits = self.teachers.clean_logits(images, f"on {name}:", keep=keep)
        alone = logits_of(self.alone, "student alone").cpu() if self.alone else None
        weights = image_weights(self.method, logits, teacher_logits, labels)
        return Predictions(
            split=name,
            labels=labels.cpu(),
            student=logits.cpu(),
            class_names=self.data.class_names,
            teachers=None if teacher_logits is None else teacher_logits.cpu(),
            teacher_names=[teacher.name for teacher in self.teachers.members],
            alone=alone,
            weights=None if weights is None else weights.cpu(),
            pixels=lambda positions: split.images[split.rows[positions]],
        )

    def sample(self) -> Predictions:
        """The predictions on some training images, without augmentation."""
        split = self.data.train
        return self("train", replace(split, rows=epoch_order(0, 0, split.rows)[:SAMPLE]), keep=False)
