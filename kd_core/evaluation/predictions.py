"""Predictions of a run's networks on its images: the student, its teachers, and the same student trained alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate.utils import gather_object
from torch import Tensor

from kd_core import metrics
from kd_core.data.dataset import Data, Split
from kd_core.data.plan import epoch_order
from kd_core.errors import UserError
from kd_core.evaluation.alone import Alone
from kd_core.evaluation.figures import Predictions
from kd_core.models.method_on_split import image_weights, score
from kd_core.models.network import Network
from kd_core.models.predict import Images, Predictor
from kd_core.teachers.logits import TeacherLogits
from kd_methods import KDMethod

TRAIN = "train"  # of which some images are evaluated, ...
SAMPLE = 2000  # ... so many, since all would take too long


@dataclass
class Observer:
    """Evaluates all networks of a run on a split; all processes call it together.

    Args:
        alone: gives the logits float32 [n,C] of the same student, trained without teachers, for images and the name of
            their split.
    """

    predict: Predictor
    data: Data
    student: Network
    teachers: TeacherLogits
    method: KDMethod
    alone: Callable[[Images, str], Tensor] | None = None

    def __call__(
        self,
        name: str,
        split: Split,
        *,
        images: Images | None = None,
        logits: Tensor | None = None,
        teacher_logits: Tensor | None = None,
    ) -> Predictions:
        """The predictions of all networks on a split.

        Args:
            images: its images, if they are on the device already.
            logits: [n,C] of the student, if they are known.
            teacher_logits: [K,n,C] of the teachers, if they are known; else they are read or computed.
        """
        predict = self.predict
        if images is None:
            images = Images(split, predict.accelerator.device, predict.config.data.store)
        labels, batch_size, is_sample = images.labels, predict.config.part, name == TRAIN
        if logits is None:
            logits = predict(self.student.model, images, self.student.views, f"student on {name}")
        logits = logits.to(labels.device)
        if teacher_logits is None:
            teacher_logits = self.teachers.clean_logits(images, f"on {name}:", apart=is_sample)
        # Nothing looks at the student alone on training images.
        alone = self.alone(images, name).cpu() if self.alone and not is_sample else None
        weights = image_weights(self.method, logits, teacher_logits, labels, batch_size=batch_size)
        return Predictions(
            split=name,
            labels=labels.cpu(),
            student=logits.cpu(),
            class_names=self.data.class_names,
            teachers=None if teacher_logits is None else teacher_logits.cpu(),
            teacher_names=[teacher.name for teacher in self.teachers.members],
            alone=alone,
            weights=None if weights is None else weights.cpu(),
            digest=split.digest,
            pixels=lambda positions: split.images[split.rows[positions]],
        )

    def sample(self) -> Predictions:
        """The predictions on some training images, without augmentation."""
        split = self.data.truth
        return self(TRAIN, replace(split, rows=epoch_order(0, 0, split.rows)[:SAMPLE]))


def observer(
    predict: Predictor, data: Data, student: Network, teachers: TeacherLogits, method: KDMethod, alone: Path | None
) -> Observer:
    """Evaluates the student beside its teachers and, from run folder `alone`, the same student trained without them."""
    return Observer(predict, data, student, teachers, method, Alone(alone, data, predict) if alone else None)


Row = dict[str, float]


def observe_splits(
    observe: Observer,
    val: Tensor | None,
    val_teachers: Tensor | None,
    epochs: dict[int, Path],
    say: Callable[[str], None],
) -> tuple[dict[str, Predictions], Row, list[Row]]:
    """Predictions of the selected student and its teachers by split name, the metrics test/*, and test_epochs/* of
    `epochs`, the exported students of each.

    `val` and `val_teachers` are the logits [n,C] of the student and [K,n,C] of the teachers on the validation split, if
    they are known.  The test split is opened only with `evaluation.test_at_end`.  All processes call this together.
    """
    data, test, rows = observe.data, Row(), list[Row]()
    seen = {"val": observe("val", data.val, logits=val, teacher_logits=val_teachers)} if data.val else {}
    if observe.predict.config.evaluation.test_at_end and (opened := open_test_split(observe, epochs, say)):
        seen["test"], test, rows = opened
    return seen, test, rows


def open_test_split(
    observe: Observer, epochs: dict[int, Path], say: Callable[[str], None]
) -> tuple[Predictions, Row, list[Row]] | None:
    """Predictions of the selected student and its teachers on the test split, test/*, and a row of test_epochs/* for
    each student of `epochs`; None without a test split.

    The only place where training reads the test split, after selection.
    """
    split, mistake = None, ""
    try:
        split = observe.data.test()
    except UserError as error:  # the trained student is kept
        mistake = str(error)
    if mistake := _of_any(mistake):
        say(f"evaluation.test_at_end: nothing was tested: {mistake}")
        return None
    if split is None:
        say("evaluation.test_at_end: the data have no test split, so nothing was tested (data.test_size makes one)")
        return None
    try:
        for teacher in observe.teachers.members:
            if teacher.file:
                teacher.file.require(split)
    except UserError as error:
        mistake = str(error)
    if mistake := _of_any(mistake):
        say(f"the student is tested without its teachers beside it: {mistake}")
        observe = replace(observe, teachers=TeacherLogits([], observe.predict))
    found = observe("test", split)
    device = observe.predict.accelerator.device
    taught = None if found.teachers is None else found.teachers.to(device)
    batch_size = observe.predict.config.part
    logits, labels = found.student.to(device), found.labels.to(device)
    row = score(observe.method, logits, taught, labels, batch_size=batch_size, progress=1.0)
    say(f"test accuracy {row['accuracy']:.2%} on {len(labels)} images")
    rows = _test_epochs(observe, Images(split, device, observe.predict.config.data.store), epochs) if epochs else []
    return found, {f"test/{name}": value for name, value in row.items()}, rows


def _of_any(mistake: str) -> str:
    """The first mistake of any process, so that all go on alike: one alone would wait for the others."""
    return next(filter(None, gather_object([mistake])), "")


def _test_epochs(observe: Observer, images: Images, epochs: dict[int, Path]) -> list[Row]:
    """A row of test_epochs/* for the exported student of each epoch."""
    network, rows = replace(observe.student, model=copy.deepcopy(observe.student.model)), list[Row]()
    for epoch, export in epochs.items():
        network.load_weights(export)
        logits = observe.predict(network.model, images, network.views, f"epoch {epoch} on test")
        found = metrics.classification(logits, images.labels)
        rows.append({"epoch": epoch, **{f"test_epochs/{name}": found[name] for name in ("accuracy", "loss_ce")}})
    return rows


def sample(observe: Observer, say: Callable[[str], None]) -> Predictions | None:
    """Predictions on some training images; None, with a printed reason, if a teacher is no longer available."""
    try:
        return observe.sample()
    except UserError as error:  # only the report lacks them; the finished run is kept
        say(f"teachers are not evaluated on training images: {error}")
        return None
