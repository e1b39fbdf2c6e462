"""One pass before training, which finds networks that cannot be trained or evaluated."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn

from kd_core.config import Config
from kd_core.data.dataset import Data
from kd_core.data.image_store import ImageStore
from kd_core.errors import UserError, first_line
from kd_core.loop.processes import random_state, set_random_state
from kd_core.models.interface import require_logits
from kd_core.models.layer_features import WithFeatures, build_method, layers_of
from kd_core.models.network import Network
from kd_core.models.predict import Predictor
from kd_core.teachers.load import Reordered, Teacher
from kd_methods import KDMethod, StudentOutput, TeacherOutputs
from kd_methods._feature_term import FeatureTerm
from kd_methods.feature_losses import Shape
from kd_methods.feature_losses._base import Classifier

TRAINED = "be trained on"


@dataclass(frozen=True)
class Subject:
    """The network that is tried; `model`, `img_size`, `args` and `batch_size` are the keys of its settings."""

    name: str
    size: int  # side of its input in pixels
    usual_size: int | None  # the side that it was made for; None if unknown
    model: str = "model.name"
    img_size: str = "model.img_size"
    args: str = "model.args"
    batch_size: str = "data.batch_size"

    def __str__(self) -> str:
        return f"{self.model} {self.name!r}"


def train_once(
    student: Network,
    config: Config,
    data: Data,
    predict: Predictor,
    subject: Subject,
    teacher_shapes: Sequence[list[Shape]] = (),
    classifiers: tuple[Classifier, ...] | None = None,
) -> FeatureTerm | None:
    """Run forward, loss and backward on this process's share of one batch or of its part, and evaluate one image.

    Uses the first training images, with the run's precision and memory format, and makes no optimizer step.  The states
    of the random generators are restored.  Weights and statistics are not: do not use `student` afterwards.
    Returns the method's part on features, with `kd.features`.

    Args:
        teacher_shapes, classifiers: with `kd.features`, of each teacher the shapes of one image's features and the last
            linear layer, if a loss needs that.

    Raises:
        UserError: naming the key to change; the network fails on images of this size, BatchNorm sees one value, the
            output is not one tensor of logits [B,C], a layer of `kd.features` does not exist or does not fit the loss,
            the device is out of memory.
    """
    accelerator, share = predict.accelerator, config.part // predict.accelerator.num_processes
    explained = partial(_explained, subject, config=config, predict=predict)
    before = random_state(accelerator.device)
    try:
        predict.prepare(student.model)
        student.share_batch_norm(accelerator, config.training)
        model, layers = student.model, layers_of(config.kd, len(teacher_shapes))
        split = data.shown if config.data.unlabeled else data.train
        pixels, labels = ImageStore(split, accelerator.device, on_device="host").gather(split.rows[:share])
        if config.augment.mixes:
            labels = torch.nn.functional.one_hot(labels, data.num_classes).float()
        view = student.views.clean(pixels, channels_last=config.training.channels_last)
        source = None
        if layers:
            with explained(TRAINED, share):
                source = WithFeatures(
                    model, layers.student, student.preprocess.size, str(subject), layers.student_head
                )
        errors = torch.eye(len(config.teachers))  # of any teachers
        method = build_method(config, data, layers, source, teacher_shapes, errors).to(accelerator.device)
        _require_undoing(method, config)
        model.train()
        with explained(TRAINED, share):
            own = _student_output(source or model, view, subject, data.num_classes, predict)
        theirs = _teacher_outputs(own, method, predict, teacher_shapes, classifiers)
        more: dict[str, Any] = {"rows": torch.arange(share, device=view.device)} if source else {}
        loss, _ = method(own, theirs, labels, progress=0.0, **more)
        with explained(TRAINED, share):
            loss.backward()
        if accelerator.num_processes > 1:
            _require_all_weights(nn.ModuleList([model, method]), subject)
        del own, theirs, loss
        model.eval()
        with torch.no_grad(), explained("be evaluated on", 1), accelerator.autocast():
            _require_logits(model(view[:1]), subject, 1, data.num_classes, "in evaluation")
        return method.feature_term
    finally:
        set_random_state(before, accelerator.device)


def _student_output(
    network: nn.Module, view: Tensor, subject: Subject, num_classes: int, predict: Predictor
) -> StudentOutput:
    """What a method gets of the student for views [B,3,h,w] and, with `augment.second`, for the same as second ones.

    UserError unless the network, or the one in a WithFeatures, gives logits.
    """
    count, second = len(view), predict.config.augment.second is not None
    source = network if isinstance(network, WithFeatures) else None
    views = torch.cat([view, view]) if second else view
    with predict.accelerator.autocast():
        output, features = source(views) if source else (network(views), None)
    _require_logits(output, subject, len(views), num_classes, "in training")
    classifier = source.classifier if source else None
    if not second:
        return StudentOutput(output.float(), features, classifier)
    firsts = features and tuple(values[:count] for values in features)
    return StudentOutput(output[:count].float(), firsts, classifier, output[count:].float())


def _teacher_outputs(
    student: StudentOutput,
    method: KDMethod,
    predict: Predictor,
    shapes: Sequence[list[Shape]],
    classifiers: tuple[Classifier, ...] | None,
) -> TeacherOutputs:
    """The outputs of any teachers: the student's logits and, where it gives features, random ones of these shapes."""
    logits = student.logits.detach().expand(len(predict.config.teachers), -1, -1)
    needed = logits if method.requires_teachers else None
    seconds = needed if predict.config.augment.second is not None else None
    if student.features is None:
        return TeacherOutputs(needed, second=seconds)
    count, device = len(student.logits), student.logits.device
    drawn = tuple(tuple(torch.rand(count, *shape, device=device) for shape in own) for own in shapes)
    return TeacherOutputs(logits, drawn, classifiers, second=seconds)


def _require_all_weights(trained: nn.Module, subject: Subject) -> None:
    """UserError if a weight got no gradient, which several processes would wait for."""
    unused = [name for name, weight in trained.named_parameters() if weight.requires_grad and weight.grad is None]
    if unused:
        raise UserError(
            f"{subject}: {len(unused)} weight(s), such as {unused[0][2:]!r}, have no part in the logits; several "
            "processes cannot train such a network (DistributedDataParallel): take one, or another network"
        )


@torch.no_grad()
def check_teacher(network: nn.Module, teacher: Teacher, predict: Predictor) -> None:
    """Run a teacher's network on two images; UserError that names the key to change if it gives no logits [2,C]."""
    assert teacher.views is not None
    where = f"teachers[{teacher.index}]"
    side = teacher.views.recipe(predict.accelerator.device)["image_size"]
    subject = Subject(
        teacher.name, teacher.views.size, None, where, f"{where}.img_size", f"{where}.args", "data.batch_size"
    )
    images = torch.zeros(2, side, side, 3, dtype=torch.uint8, device=predict.accelerator.device)
    view = teacher.views.clean(images, channels_last=predict.config.training.channels_last)
    plain = network.network if isinstance(network, Reordered) else network
    with _explained(subject, "run on", 2, predict.config, predict), predict.accelerator.autocast():
        _require_logits(plain(view), subject, 2, teacher.num_classes, "in evaluation")


def _require_undoing(method: KDMethod, config: Config) -> None:
    """UserError where a step may be skipped of which only the last part could be undone."""
    large = len(method.copied_buffers()) < sum(1 for _ in method.buffers())
    if large and config.training.accumulate > 1 and config.training.skip_nonfinite:
        raise UserError(
            "training.accumulate: must be 1 with training.skip_nonfinite and a feature loss that keeps all images' "
            "features (kd.features), since what several parts have changed there is not undone"
        )


def _require_logits(output: Any, subject: Subject, count: int, num_classes: int, when: str) -> None:
    """UserError unless `output` is one tensor of logits [count,num_classes]."""
    remedy = f"check {subject.args}"
    if not isinstance(output, Tensor):
        remedy = (
            "a network with further outputs (auxiliary classifiers, distillation tokens, features) is needed without "
            f"them; {subject.args} may switch them off, as aux_logits: false does for timm's inception_v3"
        )
    require_logits(output, count, num_classes, str(subject), when, remedy)


@contextmanager
def _explained(subject: Subject, doing: str, count: int, config: Config, predict: Predictor) -> Iterator[None]:
    """Turn exceptions of the network within the block into a UserError that names the key to change."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(_explanation(error, subject, doing, count, config, predict)) from error


def _explanation(
    error: Exception, subject: Subject, doing: str, count: int, config: Config, predict: Predictor
) -> str:
    message, size = first_line(error, 200), f"{subject.size} x {subject.size} pixels"
    if isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error):
        remedies = [f"a smaller {subject.img_size}"]
        if count > 2:
            remedies.insert(0, f"a smaller {subject.batch_size} (now {config.data.batch_size})")
        if predict.accelerator.mixed_precision == "no":
            remedies.append("training.mixed_precision=bf16")
        return (
            f"{subject}: {count} images of {size} do not fit into the device's memory ({message}); try "
            f"{' or '.join(remedies)}"
        )
    processes = predict.accelerator.num_processes
    if "Expected more than 1 value per channel" in message and doing == TRAINED:
        many = f" over {processes} processes" if processes > 1 else ""
        parts = config.training.accumulate
        many += f" in {parts} parts (training.accumulate)" if parts > 1 else ""
        return (
            f"{subject.batch_size}: {config.data.batch_size}{many} is one image per step, too few for BatchNorm in "
            f"{subject}, which gets one value per channel at {size}; give at least {2 * processes * parts}"
        )
    kind = type(error).__name__
    words = kind if message == kind else f"{kind}: {message}"
    problem = f"{subject}: cannot {doing} images of {size}: {words} ({_place(error)})"
    if "does not have a deterministic implementation" in message:
        return f"{problem}; set training.deterministic=false, or take another network"
    if "not implemented for 'BFloat16'" in message or "not implemented for 'Half'" in message:
        return f"{problem}; set training.mixed_precision=no, or take another network"
    if subject.usual_size is None:
        return f"{problem}; usual cause: a size that it was not made for, {subject.img_size}"
    if subject.usual_size != subject.size:
        return f"{problem}; it was made for {subject.usual_size}: try {subject.img_size}={subject.usual_size}"
    return f"{problem}; that is the size that it was made for: check {subject.args}, or take another network"


def _place(error: Exception) -> str:
    """File and line where the code of a network failed, outside of torch."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/torch/" not in frame.filename.replace("\\", "/")]
    frame = (own or frames)[-1]
    return f"{frame.filename.replace(chr(92), '/').rsplit('/', 1)[-1]}, line {frame.lineno}"
