"""What every method shares: its inputs, and the module around its formula."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from kd_methods import logit_losses
from kd_methods._config import SCOPE_WORDS, LogitConfig, MethodConfig
from kd_methods._feature_term import FeatureTerm, per_image
from kd_methods._module import LazyModule, identity
from kd_methods._schedule import Schedule
from kd_methods._torch import Tensor, torch
from kd_methods._weights import entropy_adaptive_weights
from kd_methods.feature_losses._base import Classifier, FeatureLoss
from kd_methods.logit_losses._base import SecondView, correct, standardize

Metrics = dict[str, Tensor]
Logits = tuple[Tensor, Tensor]  # of one view: the student's [B,C] and the teachers' [K,B,C]


class StudentOutput(NamedTuple):
    """What the student gave: logits [B,C]; features and classifier only for `kd.features`.

    features: a map [B,C,H,W], tokens [B,N,D] or an embedding [B,D] for each layer that is asked for. classifier: weight
    [C,D] and bias [C] of its last linear layer, with gradient. second: logits [B,C] of a second, strongly augmented
    view of the same images, for settings whose `second_view` says that they use it.
    """

    logits: Tensor
    features: tuple[Tensor, ...] | None = None
    classifier: Classifier | None = None
    second: Tensor | None = None


class TeacherOutputs(NamedTuple):
    """What the K teachers gave, stacked: logits [K,B,C], None for a method without teachers; the rest as above.

    kept: in place of features, what `FeatureTerm.keep` made of them, as a cache returns it. second: logits [K,B,C] of
    the student's second view.
    """

    logits: Tensor | None = None
    features: tuple[tuple[Tensor, ...], ...] | None = None
    classifiers: tuple[Classifier, ...] | None = None
    kept: tuple[tuple[tuple[Tensor, ...], ...], ...] | None = None
    second: Tensor | None = None


def views_of(student: StudentOutput, teachers: TeacherOutputs) -> list[Logits]:
    """The logits of the first view and, where it is given, of the second."""
    assert teachers.logits is not None
    first = student.logits, teachers.logits
    if student.second is None or teachers.second is None:
        return [first]
    return [first, (student.second, teachers.second)]


class KDMethod(LazyModule):
    """A distillation method: outputs and labels in, loss and metrics out. Subclasses write `compute`.

    Its instances are nn.Modules: buffers, `to`, `state_dict` and the like work as usual. Parameters are trained only
    with `features`, whose losses have some.

    `reduce_mean` maps a 1-d tensor of batch means to their mean over all processes. It is the identity until a training
    loop with several processes replaces it; a step calls it at most once, and once more for `kd.features`. `gather`
    maps values [B,...] to those of all processes [P*B,...], as `with_own_rows` of an all-gather does, for logit losses
    that ask for it.
    """

    requires_teachers: ClassVar[bool] = True
    shared_weights: ClassVar[bool] = False  # whether all samples of a batch have the same weights, whatever `scope` is
    reduce_mean: Callable[[Tensor], Tensor]
    gather: Callable[[Tensor], Tensor]
    _temperatures: Tensor | None
    _class_weights: Tensor | None
    config: Any  # each subclass narrows this to its own Config; of the last call where settings change over training
    settings: MethodConfig  # as they were given

    def __init__(
        self,
        config: MethodConfig,
        *,
        num_classes: int | None = None,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
        unlabeled: bool = False,
        student_shapes: list[Any] | None = None,
        teacher_shapes: list[list[Any]] | None = None,
        train_labels: Tensor | None = None,
        teacher_errors: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing: {label_smoothing!r} is not in [0, 1)")
        self.settings = self.config = config
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.unlabeled = unlabeled
        if unlabeled and (needing := config.needing_labels()):
            raise ValueError(f"{needing[0]} needs the label of every image; images without labels are for others")
        self.register_buffer("_class_weights", class_weights, persistent=False)
        self.seed = seed
        self.reduce_mean = self.gather = identity
        given = getattr(config, "teacher_temperatures", None)
        temperatures = torch.tensor(given)[:, None] if given else None  # [K,1]
        self.register_buffer("_temperatures", temperatures, persistent=False)
        self.feature_term: FeatureTerm | None = None
        if entries := getattr(config, "features", []):
            if student_shapes is None or teacher_shapes is None:
                raise ValueError("kd.features needs the shapes of the features: student_shapes and teacher_shapes")
            if type(self).teacher_weights is KDMethod.teacher_weights:
                raise ValueError(
                    f"kd.features weights each teacher's loss, and kd.type '{config.type}' gives teachers no weights: "
                    "its Method needs a function teacher_weights, see docs/own_code.md"
                )
            own, others = per_image(student_shapes), [per_image(shapes) for shapes in teacher_shapes]
            more = {"num_classes": num_classes, "train_labels": train_labels, "seed": seed}
            self.feature_term = FeatureTerm(entries, own, others, **more)

    def forward(
        self,
        student: StudentOutput,
        teachers: TeacherOutputs,
        labels: Tensor,
        progress: float = 1.0,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, Metrics]:
        """The loss of one batch.

        student.logits [B,C] and teachers.logits [K,B,C] of any float type; labels int64 [B], or soft labels
        [B,C] that sum to 1; progress is the fraction of training done, in [0,1]. Returns the loss [],
        differentiable with respect to the student alone, and metrics {name: detached []}. The math is fp32
        (fp64 for fp64 logits), under autocast too. Raises ValueError where shapes do not fit together.

        rows int64 [B], the images' places in the training split, and features are for `kd.features`. In evaluation
        mode without features, the loss is the part without them; without the second view that it needs in training, it
        is the part of the first.
        """
        if self.settings.is_scheduled:
            self.config = self.settings.at(progress)
            if self.feature_term is not None:
                self.feature_term.entries = self.config.features
        self._check(student, teachers, labels)
        dtype = torch.promote_types(student.logits.dtype, torch.float32)
        student = student._replace(logits=student.logits.to(dtype))
        if teachers.logits is not None:
            teachers = teachers._replace(logits=teachers.logits.detach().to(dtype))
        if student.second is not None:
            student = student._replace(second=student.second.to(dtype))
        if teachers.second is not None:
            teachers = teachers._replace(second=teachers.second.detach().to(dtype))
        if labels.ndim == 2:
            labels = labels.to(dtype)
        with torch.autocast(device_type=student.logits.device.type, enabled=False):
            loss, metrics = self.compute(student, teachers, labels, progress)
            if self.feature_term is not None and (self.training or student.features is not None):
                own, others = self._features(student, teachers, dtype)
                weights = self.teacher_weights(student, teachers, labels, progress)
                term, parts = self.feature_term(own, others, weights, labels, progress, rows)
                loss, metrics = loss + term, {**metrics, "loss_features": term, **parts}
        return loss, {name: value.detach() for name, value in metrics.items()}

    def copied_buffers(self) -> list[Tensor]:
        """All buffers but the large ones, which `take_back` restores."""
        return [
            value
            for module in self.modules()
            for name, value in module.named_buffers(recurse=False)
            if name not in getattr(module, "large", ())
        ]

    def take_back(self, skipped: Tensor) -> None:
        """Undo what the last `forward` has changed in large buffers, if `skipped`, bool []."""
        for module in self.modules():
            if isinstance(module, FeatureLoss):
                module.take_back(skipped)

    def _features(
        self, student: StudentOutput, teachers: TeacherOutputs, dtype: Any
    ) -> tuple[StudentOutput, TeacherOutputs]:
        """Both with features of `dtype`, the teachers' detached. Raises ValueError where they are missing."""
        if student.features is None or (teachers.features is None and teachers.kept is None):
            raise ValueError("kd.features needs StudentOutput.features and TeacherOutputs.features")

        def cast(values: Any, fixed: bool = False) -> Any:
            if isinstance(values, (tuple, list)):
                return tuple(cast(value, fixed) for value in values)
            if values is None or not values.is_floating_point():
                return values
            return (values.detach() if fixed else values).to(dtype)

        others = {name: cast(getattr(teachers, name), fixed=True) for name in ("features", "classifiers", "kept")}
        own = {"features": cast(student.features), "classifier": cast(student.classifier)}
        return student._replace(**own), teachers._replace(**others)

    def compute(
        self, student: StudentOutput, teachers: TeacherOutputs, labels: Tensor, progress: float
    ) -> tuple[Tensor, Metrics]:
        """The formula. Called by `forward` with logits that are fp32 at least and, for teachers, detached."""
        raise NotImplementedError

    def teacher_weights(
        self, student: StudentOutput, teachers: TeacherOutputs, labels: Tensor, progress: float
    ) -> Tensor:
        """How much each teacher counts: [K,B], or [K,1] where all samples share one weight.

        They sum to 1 over the teachers, have no gradient, and are what `teacher/{i}/weight` is the batch mean of.
        The inputs are those of `compute`. Raises NotImplementedError for a method that weights no teachers.
        """
        raise NotImplementedError(
            f"kd.type '{self.config.type}' gives teachers no weights: its Method has no function teacher_weights"
        )

    def describe(self, num_teachers: int) -> str:
        """The loss in words, with its numbers: `fill_in` an equation that stands beside `compute`."""
        raise NotImplementedError

    def fill_in(self, equation: str, num_teachers: int, **numbers: float | str | Schedule) -> str:
        """`equation`, a format string, with its numbers.

        It may hold `{config.NAME:g}`, `{logit_loss}`, `{teachers}` for how many they are, `{mean}` for the scope, and
        the names of `numbers`.
        """
        config = self.settings.in_words()
        words: dict[str, Any] = {"config": config, "teachers": count(num_teachers), **numbers}
        if hasattr(config, "scope"):
            words["mean"] = SCOPE_WORDS[config.scope]
        if isinstance(config, LogitConfig):
            words["logit_loss"] = config.describe_loss()
        terms = [entry.describe() for entry in getattr(config, "features", [])]
        return " + ".join([equation.format(**words), *terms])

    def label_loss(self, student: Tensor | StudentOutput, labels: Tensor) -> Tensor:
        """Cross-entropy [B] of the student with labels int64 [B] or soft [B,C], label smoothing included.

        student: its output, whose two views' cross-entropies are added, or logits [B,C]. Label smoothing s makes labels
        (1 - s) y + s / C, soft ones too, as in torch.nn.functional.cross_entropy. With class weights w, class c counts
        w_c times: minus the sum over c of w_c y_c log p_c; means over samples divide by their number, not by weights.
        Where a label is -1 (with `unlabeled`) it is 0, and the others are scaled so that the mean over B is theirs.
        """
        logits = student.logits if isinstance(student, StudentOutput) else student
        of = functools.partial(
            torch.nn.functional.cross_entropy,
            weight=None if self._class_weights is None else self._class_weights.to(logits.dtype),
            reduction="none",
            label_smoothing=self.label_smoothing,
            ignore_index=-1 if self.unlabeled else -100,
        )
        loss = of(logits, labels)
        if isinstance(student, StudentOutput) and student.second is not None:
            loss = loss + of(student.second, labels)
        if self.unlabeled and labels.ndim == 1:
            loss = loss * (len(labels) / (labels >= 0).sum().clamp(min=1))
        return loss

    def logit_loss(
        self,
        student: Tensor | StudentOutput,
        teachers: Tensor | TeacherOutputs,
        labels: Tensor,
        progress: float = 1.0,
    ) -> Tensor:
        """The configured logit loss [K,B], T squared included, of the student to each teacher.

        student and teachers: their outputs, or the logits [B,C] and [K,B,C] of one view. Raises ValueError in training
        where the loss needs the second view and does not get it.
        """
        if isinstance(student, StudentOutput) and isinstance(teachers, TeacherOutputs):
            return self.loss_of_views(views_of(student, teachers), labels, progress)
        assert not isinstance(student, StudentOutput) and not isinstance(teachers, TeacherOutputs)
        return self.loss_of_views([(student, teachers)], labels, progress)

    def loss_of_views(self, views: list[Logits], labels: Tensor, progress: float) -> Tensor:
        """`logit_loss` of one view or two."""
        config = self.config
        if self.training and len(views) == 1 and config.second_view == "required":
            raise ValueError(
                f"kd.loss {config.loss!r} needs a second view: StudentOutput.second [batch, classes] and "
                "TeacherOutputs.second [teachers, batch, classes]"
            )
        raw = views
        if config.correct_labels != "none":
            raw = [(own, correct(others, labels, config.correct_labels)) for own, others in raw]
        views = raw
        if config.standardize or config.norm_temperature:
            views = [(standardize(own), standardize(others)) for own, others in raw]
        values = self._plain_loss(views, labels, progress, raw)
        first = raw[0]
        if values.shape != first[1].shape[:2]:
            raise ValueError(
                f"kd.loss {config.loss!r} gives shape {tuple(values.shape)}; it must be [teachers, batch], here "
                f"{tuple(first[1].shape[:2])}"
            )
        if config.norm_temperature:  # T^2 becomes that of the teacher's own temperature
            values = values * first[1].var(-1)
        if config.entropy_weight:
            values = values * entropy_adaptive_weights(*first)
        return values

    def _plain_loss(self, views: list[Logits], labels: Tensor, progress: float, raw: list[Logits]) -> Tensor:
        """The logit loss without the switches, which are in the logits already; `raw` are those without."""
        config = self.config
        parameters = config.loss_config
        loss = logit_losses.function(config.loss, parameters)
        student, teachers = views[0]
        if parameters is not None and parameters.takes_raw:
            loss = functools.partial(loss, raw=raw[0])
        if getattr(parameters, "gather", False):
            loss = functools.partial(loss, gather=self.gather)
        if parameters is not None and parameters.second_view != "unused" and len(views) == 2:
            loss = functools.partial(loss, second=SecondView(*views[1], raw[1]))
        if self._temperatures is None:
            return loss(student, teachers, labels, config.temperature, progress)
        if parameters is None:  # a loss of the user's own knows numbers alone
            each = zip(teachers.split(1), config.teacher_temperatures, strict=True)
            return torch.cat([loss(student, one, labels, temperature, progress) for one, temperature in each])
        return loss(student, teachers, labels, self._temperatures.to(student), progress)

    def batch_means(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Means over the batch, and over all processes by one `reduce_mean`: each [...,B] becomes [...,1].

        The trailing 1 broadcasts, so one formula serves both scopes.
        """
        batch = values[0].shape[-1]
        rows = [value.reshape(-1, batch) for value in values]
        packed = self.reduce_mean(torch.cat(rows).detach().mean(1))
        parts = packed.split([len(row) for row in rows])
        return tuple(part.view(*value.shape[:-1], 1) for part, value in zip(parts, values, strict=True))

    def _check(self, student: StudentOutput, teachers: TeacherOutputs, labels: Tensor) -> None:
        shape = tuple(student.logits.shape)
        if len(shape) != 2:
            raise ValueError(f"student logits have shape {shape}; they must be [batch, classes]")
        if self.num_classes is not None and shape[1] != self.num_classes:
            raise ValueError(f"student logits have {shape[1]} classes; the method expects {self.num_classes}")
        if tuple(labels.shape) not in (shape[:1], shape) or labels.is_floating_point() != (labels.ndim == 2):
            raise ValueError(
                f"labels are {labels.dtype} of shape {tuple(labels.shape)}; they must be integers of shape "
                f"{shape[:1]}, or soft labels (floats) of shape {shape}"
            )
        if not self.requires_teachers:
            self._check_second(student, teachers)
            return
        if teachers.logits is None:
            raise ValueError(f"kd.type '{self.config.type}' needs teacher logits [teachers, batch, classes]")
        given = tuple(teachers.logits.shape)
        if len(given) != 3 or given[1:] != shape or given[0] == 0:
            raise ValueError(
                f"teacher logits have shape {given}; they must be [teachers, {shape[0]}, {shape[1]}], "
                "for example torch.stack of one tensor per teacher"
            )
        self.config.check_teachers(given[0])
        self._check_second(student, teachers)

    def _check_second(self, student: StudentOutput, teachers: TeacherOutputs) -> None:
        """ValueError where only one side has the second view, nothing uses it, or it has another shape."""
        given: dict[str, tuple[Tensor | None, Tensor | None]] = {
            "StudentOutput.second": (student.second, student.logits)
        }
        if self.requires_teachers:
            given["TeacherOutputs.second"] = teachers.second, teachers.logits
        there = [name for name, (second, _) in given.items() if second is not None]
        if not there:
            return
        if missing := given.keys() - there:
            raise ValueError(f"{there[0]} is given and {missing.pop()} is not; a second view needs both")
        if self.config.second_view == "unused":
            loss = getattr(self.config, "loss", None)
            which = f"kd.loss {loss!r}" if loss else f"kd.type {self.config.type!r}"
            raise ValueError(f"{there[0]} is given, and {which} does not use a second view; leave it out")
        for name, (second, first) in given.items():
            assert second is not None and first is not None
            if second.shape != first.shape:
                raise ValueError(f"{name} has shape {tuple(second.shape)}; it must be {tuple(first.shape)}")


def count(num_teachers: int) -> str:
    return "1 teacher" if num_teachers == 1 else f"{num_teachers} teachers"


def common_metrics(label: Tensor, distill: Tensor, kd_weight: Tensor, teacher_weights: Tensor) -> Metrics:
    """The metrics that every method logs.

    label [], distill []: the two terms before they are mixed. kd_weight []: the distillation term's
    coefficient divided by the sum of both. teacher_weights [K]: mean weight of each teacher, summing to 1.
    """
    return {
        "loss_label": label,
        "loss_distill": distill,
        "kd_weight": kd_weight,
        **{f"teacher/{i}/weight": weight for i, weight in enumerate(teacher_weights.unbind())},
    }
