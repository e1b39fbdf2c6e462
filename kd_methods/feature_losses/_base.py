"""What feature losses share: their settings, their inputs, and feature maps of the same size."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kd_methods._module import LazyModule, identity
from kd_methods._torch import Tensor, torch
from kd_methods._warmup import WARMUP, growth_in_words

Layer = int | str  # a stage's index, -1 the last one; a module's name; or "embedding", what the classifier sees
LAST: list[Layer] = [-1]  # layers of losses on the last map
Shape = tuple[int, ...]  # of one image: (C,H,W) a map, (N,D) tokens, (D,) an embedding
Classifier = tuple[Tensor, Tensor]  # weight [C,D] and bias [C] of the last linear layer
STAGES: list[Layer] = [-3, -2, -1]
EMBEDDING: list[Layer] = ["embedding"]
MOST_PREFIX_TOKENS = 8  # class, distillation and register tokens before those of the image
GATHER = "compare the images of all processes with each other, not those of each process alone"


class FeatureConfig(BaseModel):
    """One entry of `kd.features`: a loss, its layers, and how much it counts."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    equation: ClassVar[str]  # in words, with the parameters as `{config.NAME:g}`
    uses_labels: ClassVar[bool] = False  # whether it needs the label of every image

    loss: str
    weight: float = Field(default=1.0, ge=0, description="factor of this loss")
    student: list[Layer] = Field(default=EMBEDDING, min_length=1, description="layers of the student")
    teacher: list[Layer] | list[list[Layer]] = Field(
        default=EMBEDDING, min_length=1, description="layers of every teacher, or one list for each teacher"
    )
    warmup: float = Field(default=0.0, ge=0, le=1, description=WARMUP)

    @model_validator(mode="before")
    @classmethod
    def _same_layers(cls, values: Any) -> Any:
        """Where the student's layers alone are given, the teachers' are the same; not for a loss that needs none."""
        layers = values.get("student") if isinstance(values, dict) and "teacher" not in values else None
        fine = isinstance(layers, list) and layers and all(isinstance(layer, (int, str)) for layer in layers)
        if fine and cls.model_fields["teacher"].default:
            return {**values, "teacher": layers}
        return values

    def teacher_layers(self, index: int) -> list[Any]:
        """The layers of teacher `index`."""
        return self.teacher[index] if self.teacher and isinstance(self.teacher[0], list) else self.teacher

    def describe(self) -> str:
        """The entry in words, with its numbers."""
        return f"{self.weight:g} x {self.equation.format(config=self)}{growth_in_words(self.warmup)}"


class MapConfig(FeatureConfig):
    """An entry whose loss compares feature maps, by default those of the last three stages."""

    student: list[Layer] = Field(default=STAGES, min_length=1, description="layers of the student")
    teacher: list[Layer] | list[list[Layer]] = Field(
        default=STAGES, min_length=1, description="layers of every teacher, or one list for each teacher"
    )


class Batch(NamedTuple):
    """What a feature loss may use besides features. One teacher; floats are fp32 at least, the teacher's detached."""

    labels: Tensor  # int64 [B], or soft [B,C]
    student_logits: Tensor  # [B,C]
    teacher_logits: Tensor  # [B,C]
    progress: float  # fraction of training done, in [0,1]
    rows: Tensor | None = None  # int64 [B], each image's row in the training split
    student_classifier: Classifier | None = None
    teacher_classifier: Classifier | None = None


class FeatureLoss(LazyModule):
    """The loss between the student and one teacher, with its projectors as parameters. Subclasses write `forward`.

    Built from the shapes of one image's features at the layers of `config`, in their order. `keep` says what of a
    teacher's features is needed for each image: that is what a cache holds.
    """

    kinds: ClassVar[tuple[Literal["map", "tokens", "embedding"], ...]] = ("map", "tokens")  # features it takes
    number: ClassVar[int | None] = None  # of layers that it compares; None: any
    of_batch: ClassVar[bool] = False  # the loss is of the whole batch, not a mean over its images
    of_teacher_logits: ClassVar[bool] = False  # it needs no features of the teacher; layers that are named are ignored
    needs_student_classifier: ClassVar[bool] = False
    needs_teacher_classifier: ClassVar[bool] = False
    kept_by: ClassVar[tuple[str, ...] | None] = None  # what `keep` depends on, see `kept_as`
    large: ClassVar[tuple[str, ...]] = ()  # buffers that `take_back` restores, as copying them in every step takes long
    config: Any

    def __init__(
        self,
        config: FeatureConfig,
        student_shapes: list[Shape],
        teacher_shapes: list[Shape],
        *,
        num_classes: int | None = None,
        train_labels: Tensor | None = None,
        seed: int = 0,
        earlier: Sequence[list[Shape]] = (),
    ) -> None:
        """train_labels int64 [N]; earlier: what `teacher_shapes` is for each of the teachers before this one."""
        super().__init__()
        self.config, self.num_classes, self.seed, self.earlier = config, num_classes, seed, earlier
        self.student_shapes, self.teacher_shapes = student_shapes, [] if self.of_teacher_logits else teacher_shapes
        self.gather: Callable[[Tensor], Tensor] = identity  # a loop with several processes replaces it, see `gathered`
        if not self.of_teacher_logits and len(student_shapes) != len(teacher_shapes):
            raise ValueError(
                f"{len(student_shapes)} layers of the student and {len(teacher_shapes)} of the teacher; the loss "
                "compares them one by one"
            )
        if self.number is not None and len(student_shapes) != self.number:
            raise ValueError(f"{len(student_shapes)} layers; the loss compares {self.number}")
        for whose, shapes in (("student", student_shapes), ("teacher", self.teacher_shapes)):
            for number, shape in enumerate(shapes):
                if kind_of(shape) not in self.kinds:
                    raise ValueError(
                        f"{whose}[{number}] gives {kind_of(shape)} of shape {list(shape)}; the loss takes "
                        f"{' or '.join(self.kinds)}"
                    )

    def map_pairs(self) -> list[tuple[Shape, Shape]]:
        """(C,H,W) of the student's and of the teacher's map at each layer; tokens count as maps."""
        pairs = zip(self.student_shapes, self.teacher_shapes, strict=True)
        return [(map_shape(own), map_shape(other)) for own, other in pairs]

    def common_maps(self, features: tuple[Tensor, ...]) -> list[Tensor]:
        """Each layer's map [B,C,h,w], average-pooled where the other network's is smaller."""
        layers = zip(features, self.map_pairs(), strict=True)
        return [pooled(as_map(values), smaller(*shapes)) for values, shapes in layers]

    def gathered(self, values: Tensor) -> Tensor:
        """Values [B,...] of all processes [P*B,...] if the setting `gather` is on, else as they are.

        `gather` is the identity until a loop with several processes replaces it, for example by `with_own_rows` of an
        all-gather. Projectors are applied before, so that each process has the gradient of its own rows alone.
        """
        return self.gather(values) if getattr(self.config, "gather", False) else values

    def keep(self, teacher: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What the loss needs of the teacher's features, each [B,...]: here the features themselves.

        A function of each image's features alone, in floats.
        """
        return teacher

    def kept_as(self) -> dict[str, Any]:
        """What `keep` makes of the layers, in words for a cache's key: losses with equal words keep the same.

        Empty where the features are kept as they are. A class with a `keep` of its own lists in `kept_by` the settings
        on which it depends, and "student" if it depends on the sizes of the student's features; without a list it
        counts as depending on all of them.
        """
        if type(self).keep is FeatureLoss.keep:
            return {}
        settings = self.config.model_dump(mode="json", exclude={"loss", "weight", "student", "teacher", "warmup"})
        sizes: list[Any] = [list(shape) for shape in self.student_shapes]
        if self.kept_by is None:
            return {"loss": self.config.loss, "student": sizes, **settings}
        own = {name: settings[name] for name in self.kept_by if name != "student"}
        if "student" in self.kept_by:
            own["student"] = [list(map_shape(shape)[1:]) for shape in self.student_shapes]
        return {"loss": self.config.loss, **own}

    def forward(self, student: tuple[Tensor, ...], kept: tuple[Tensor, ...], batch: Batch) -> Tensor:
        """The loss of each image [B], or [] for a loss of the batch.

        student: features [B,...] at its layers; kept: what `keep` made of the teacher's. fp32 at least.
        """
        raise NotImplementedError

    def take_back(self, skipped: Tensor) -> None:
        """Undo what the last `forward` has changed in the `large` buffers, if `skipped`, bool []."""

    def combine(self, values: list[Tensor], weights: Tensor) -> Tensor:
        """The loss of all teachers [], of what `forward` gave for each of them and their weights [K,B] or [K,1].

        mean_b sum_k w_kb l_kb. Called on the loss of the first teacher.
        """
        terms = [
            (weight * value).mean() if value.ndim else self.gathered(weight).mean() * value
            for weight, value in zip(weights, values, strict=True)
        ]
        return torch.stack(terms).sum()


def with_own_rows(everyone: Tensor, own: Tensor, process: int) -> Tensor:
    """The rows of all processes [P*B,...], in their order, with gradient to the rows of this `process`: own [B,...].

    The gradient is multiplied by P: every process has the same loss and the part of its gradient that comes from its
    own rows, so the mean over processes, as DDP takes it, is the gradient of the loss of the whole batch.
    """
    start, processes = process * len(own), len(everyone) // len(own)
    mine = own + (processes - 1) * (own - own.detach())  # the same values
    return torch.cat([everyone[:start].detach(), mine, everyone[start + len(own) :].detach()])


def kind_of(shape: Shape) -> str:
    """What features of one image's `shape` are."""
    return {1: "embedding", 2: "tokens", 3: "map"}.get(len(shape), f"{len(shape)}-dimensional")


def as_map(features: Tensor) -> Tensor:
    """Maps [B,C,H,W] as they are; tokens [B,N,D] as maps [B,D,H,H], without the tokens before those of the image."""
    if features.ndim == 4:
        return features
    channels, side, _ = map_shape(tuple(features.shape[1:]))
    return features[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))


def map_shape(shape: Shape) -> Shape:
    """(C,H,W) of what `as_map` makes of one image's features; ValueError where tokens are no square of patches."""
    if len(shape) == 3:
        return shape
    count, width = shape
    side = math.isqrt(count)
    if count - side * side > MOST_PREFIX_TOKENS or side == 0:
        raise ValueError(f"{count} tokens are not a square of patches after at most {MOST_PREFIX_TOKENS} other tokens")
    return width, side, side


def pooled(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [B,C,H,W] average-pooled to `size` (h,w); as they are where that is their size."""
    if features.shape[-2:] == tuple(size):
        return features
    return torch.nn.functional.adaptive_avg_pool2d(features, size)


def smaller(student: Shape, teacher: Shape) -> tuple[int, int]:
    """The size (h,w) at which two maps are compared: the smaller one's, so that the larger one is pooled."""
    return min(student[-2], teacher[-2]), min(student[-1], teacher[-1])


def unit(values: Tensor, dim: int) -> Tensor:
    """Values scaled to length 1 along `dim`; where the length is 0, zeros without gradient."""
    length = torch.linalg.vector_norm(values, dim=dim, keepdim=True)
    return values / length.masked_fill(length == 0, math.inf)


def sum_layers(values: Iterable[Tensor]) -> Tensor:
    """The sum of each layer's loss, [B] or []."""
    return torch.stack(list(values)).sum(0)
