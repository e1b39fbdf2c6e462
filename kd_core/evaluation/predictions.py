"""What a run's networks say about its images: the student, its teachers, and the same student trained alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from kd_core.config import Config
from kd_core.data.dataset import Data, Split
from kd_core.data.views import Augmentation, Views, epoch_order
from kd_core.evaluation.figures import Predictions
from kd_core.models import build as models
from kd_core.models.predict import Images, Predictor, image_weights
from kd_core.teachers.load import check_classes, export_in
from kd_core.teachers.logits import Panel
from kd_methods import KDMethod

SAMPLE = 2000  # training images that are looked at where all would take too long


@dataclass
class Pupil:
    """A network and what it sees."""

    model: nn.Module
    views: Views


@dataclass
class Observer:
    """Shows images to all networks of a run, in evaluation mode; all processes call it together."""

    predict: Predictor
    data: Data
    student: Pupil
    panel: Panel
    method: KDMethod
    alone: Pupil | None = None  # the same student trained without teachers, where there is one

    def __call__(
        self, name: str, split: Split, *, taught: Tensor | None = None, keep: bool = True
    ) -> Predictions:
        """What all of them say about a split.

        `taught`: the teachers' logits [K,n,C] if they are known already; else `keep` is as in `Panel.logits`.
        """
        predict = self.predict
        images = Images(split, predict.accelerator.device, predict.config.data.store)

        def ask(pupil: Pupil, who: str) -> Tensor:
            return predict(pupil.model, images, pupil.views, f"{who} on {name}")

        logits, labels = ask(self.student, "student"), images.labels
        if taught is None:
            taught = self.panel.logits(images, f"on {name}:", keep=keep)
        alone = ask(self.alone, "student alone").cpu() if self.alone else None
        weights = image_weights(self.method, logits, taught, labels)
        return Predictions(
            split=name,
            labels=labels.cpu(),
            student=logits.cpu(),
            class_names=self.data.class_names,
            teachers=None if taught is None else taught.cpu(),
            teacher_names=[teacher.name for teacher in self.panel.members],
            alone=alone,
            weights=None if weights is None else weights.cpu(),
            pixels=lambda positions: split.images[split.rows[positions]],
        )

    def sample(self) -> Predictions:
        """The same of some training images, un-augmented."""
        split = self.data.train
        return self("train", replace(split, rows=epoch_order(0, 0, split.rows)[:SAMPLE]), keep=False)


def load_pupil(folder: Path, config: Config, data: Data, predict: Predictor, where: str) -> Pupil:
    """The exported student in `folder`; UserError, which begins with `where`, if it does not fit the data."""
    export = export_in(folder)
    loaded = models.load_export(export)
    check_classes(loaded, data, f"{where}: {export}")
    return pupil_of(loaded, config, data, predict)


def pupil_of(loaded: models.LoadedModel, config: Config, data: Data, predict: Predictor) -> Pupil:
    """A network that was read from an export, ready to be shown the data's images."""
    views = Views(loaded.preprocess, data.image_size, Augmentation.of(config.data))
    return Pupil(predict.prepare(loaded.model), views)
