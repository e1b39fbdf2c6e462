"""All that a user can set: typed sections, strictly checked, with the descriptions that `--help` shows."""

from __future__ import annotations

import os
import re
import types
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    field_validator,
    model_serializer,
    model_validator,
)

import kd_methods
from kd_core.config import registry
from kd_core.config.privacy import redacted
from kd_core.config.registry import OwnSource
from kd_core.config.yaml12 import MAX_INTEGER, Yaml12Dumper
from kd_core.errors import UserError
from kd_core.files import local_path


def accepts(annotation: Any) -> set[type]:
    """The plain types that a field's annotation allows."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return set().union(*(accepts(option) for option in get_args(annotation)))
    if origin is Literal:
        return {type(option) for option in get_args(annotation)}
    if hasattr(annotation, "__metadata__"):
        return accepts(get_args(annotation)[0])
    return {annotation} if isinstance(annotation, type) else {origin} if isinstance(origin, type) else set()


def _is_whole(value: float) -> bool:
    return value.is_integer() and abs(value) < MAX_INTEGER


class Section(BaseModel):
    """A strict section: unknown keys are errors; 3.0 becomes 3 and 12 becomes '12' where the field says so."""

    model_config = ConfigDict(
        extra="forbid", strict=True, validate_default=True, frozen=True, allow_inf_nan=False, serialize_by_alias=True
    )

    @model_validator(mode="before")
    @classmethod
    def _convert_scalars(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        converted = dict(values)
        for name, info in cls.model_fields.items():
            value, kinds = converted.get(name), accepts(info.annotation)
            if isinstance(value, float) and _is_whole(value) and int in kinds and (float not in kinds or value > 1):
                converted[name] = int(value)
            elif isinstance(value, (int, float)) and not isinstance(value, bool) and kinds <= {str, type(None)}:
                converted[name] = str(value)
        return converted


def _without_newer(
    section: Section, serialize: SerializerFunctionWrapHandler, names: tuple[str, ...]
) -> dict[str, Any]:
    """All settings but those of `names` that have their defaults: keys that came later keep older runs' digests."""
    values: dict[str, Any] = serialize(section)
    for name in names:
        if getattr(section, name) == type(section).model_fields[name].default:
            del values[name]
    return values


def _file_name(value: str | None) -> str | None:
    """The value with `~` expanded; ValueError if no file can have such a name."""
    try:
        local_path(value or "", "path")
    except UserError as error:
        raise ValueError(str(error).removeprefix("path: ")) from None
    return os.path.expanduser(value) if value else value


def _check_source(value: Any) -> Any:
    known = isinstance(value, str) and value in get_args(OwnSource)
    return value if known else _one_of(*registry.sources()).validate_python(value)


REST = "rest"  # data.unlabeled.source: what data.train_size leaves out


def _check_unlabeled_source(value: Any) -> Any:
    known = isinstance(value, str) and value in (REST, *get_args(OwnSource))
    return value if known else _one_of(REST, *registry.sources()).validate_python(value)


@cache
def _one_of(*allowed: str) -> TypeAdapter[Any]:
    choice: Any = Literal[allowed]
    return TypeAdapter(choice)


@cache
def _kd_settings(*methods: str) -> TypeAdapter[Any]:
    """What reads the `kd` section while these methods are there."""
    assert list(methods) == kd_methods.names()
    settings: Any = kd_methods.AnyConfig
    return TypeAdapter(settings)


class LabelNoiseConfig(Section):
    """Wrong labels on purpose, for experiments; validation and test keep theirs."""

    kind: Literal["symmetric", "pair"] = Field(
        "symmetric", description="symmetric: any other class, all alike; pair: the next class, the first after the last"
    )
    rate: float = Field(0.2, gt=0, lt=1, description="share of each class's training labels that are replaced")


class UnlabeledConfig(Section):
    """Images without labels that are trained on beside the others: teachers and student see them, no label does."""

    source: Annotated[str, PlainValidator(_check_unlabeled_source)] = Field(
        REST, description="rest: the training images that data.train_size leaves out; or a source as data.source is"
    )
    name: str | None = Field(None, description="Hub data set, for source hub")
    subset: str | None = Field(None, description="configuration of the Hub data set, where it has several")
    revision: str | None = Field(None, description="revision of the Hub data set")
    path: str | None = Field(
        None, description="local folder, for every source but hub and digits; of imagefolder all images below it"
    )
    split: str | None = Field(None, description="name of the split; null: the training split, or the only one")
    image_column: str | None = Field(None, description="column of the images; null: found by its type")
    share: float = Field(0.5, gt=0, le=1, description="share of each batch that they are; 1: all of it")
    resize: bool = Field(
        False, description="bring them to the size of the training images where they have another one"
    )

    _path_can_be = field_validator("path")(_file_name)

    @model_validator(mode="after")
    def _has_place(self) -> UnlabeledConfig:
        needed = {"hub": "name", "digits": None, REST: None}.get(self.source, "path")
        if self.source in (*get_args(OwnSource), REST):
            if needed and getattr(self, needed) is None:
                raise ValueError(f"source {self.source!r} needs unlabeled.{needed}")
            more = [key for key in ("name", "path") if key != needed and getattr(self, key) is not None]
            if more:
                raise ValueError(f"{more[0]}: source {self.source!r} has none; remove it, or name another source")
        return self

    def as_data(self) -> DataConfig:
        """The settings by which its source is opened."""
        given = {key: getattr(self, key) for key in ("name", "subset", "revision", "path", "image_column")}
        known = {key: value for key, value in given.items() if value is not None}
        return DataConfig.model_validate({"source": self.source, "train_split": self.split, **known})


class DataConfig(Section):
    source: Annotated[OwnSource, PlainValidator(_check_source), PlainSerializer(str)] = Field(
        "hub", description="where images come from: Hub data set, local folder, or scikit-learn's digits"
    )
    name: str = Field("uoft-cs/cifar100", description="Hub data set, for source hub")
    subset: str | None = Field(None, description="configuration of the Hub data set, where it has several")
    revision: str | None = Field(None, description="revision of the Hub data set")
    path: str | None = Field(None, description="local folder, for every source but hub and digits")
    folders: Literal["classes", "splits"] | None = Field(
        None,
        description="for imagefolder, whether the folders in data.path are classes, whatever their names, or splits "
        "that hold the folders of classes; null: guessed from their names",
    )
    image_column: str | None = Field(None, description="column of the images; null: found by its type")
    label_column: str | None = Field(None, description="column of the labels; null: fine_label, label, ...")
    train_split: str | None = Field(None, description="name of the training split; null: guessed and printed")
    val_split: str | None = Field(None, description="name of the validation split; null: guessed and printed")
    test_split: str | None = Field(None, description="name of the test split; null: guessed and printed")
    val_size: int | float | None = Field(
        None,
        ge=0,
        description="validation images taken from the training split: a count, a fraction, or 0; null: 5000 for CIFAR, "
        "else 0.1",
    )
    test_size: int | float | None = Field(
        None,
        gt=0,
        description="test images taken from the training split, before validation, where the source has no test split: "
        "a count or a fraction; null: none",
    )
    split_seed: int = Field(0, ge=0, description="seed of the stratified validation and test split and of train_size")
    train_size: int | float | None = Field(
        None, gt=0, description="stratified subset of the training images: a count or a fraction; null: all"
    )
    label_noise: LabelNoiseConfig | None = Field(
        None, description="replace a share of the training labels by wrong ones, chosen by split_seed"
    )
    unlabeled: UnlabeledConfig | None = Field(
        None, description="further images without labels, for the teachers' part of the loss; {}: source rest"
    )
    sampler: Literal["uniform", "balanced"] = Field(
        "uniform",
        description="uniform: every training image once per epoch; balanced: every class equally often, so images of "
        "small classes several times",
    )
    batch_size: int = Field(128, ge=1, description="images per step, over all processes together")
    crop_padding: int = Field(4, ge=0, le=32, description="pixels of zero padding before the random crop; 0: no crop")
    flip: bool = Field(True, description="mirror half of the training images")
    store_size: int | None = Field(
        None,
        ge=8,
        le=2048,
        description="side in pixels at which images of mixed sizes are kept; null: largest input x 8/7",
    )
    store: Literal["auto", "device", "host"] = Field(
        "auto", description="keep the decoded images on the device or in host memory"
    )
    allow_unreadable: int = Field(0, ge=0, description="how many unreadable image files may be skipped")
    num_workers: int | None = Field(
        None, ge=1, le=256, description="threads that decode the images, once per data set; null: all cores"
    )

    _path_can_be = field_validator("path")(_file_name)

    @field_validator("val_size", "test_size", "train_size")
    @classmethod
    def _count_or_fraction(cls, value: int | float | None) -> int | float | None:
        if isinstance(value, float) and value > 1:
            raise ValueError(f"is {value:g}: a fraction is at most 1, a count is a whole number")
        return value

    @model_serializer(mode="wrap")
    def _serialized(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_newer(self, serialize, ("label_noise", "unlabeled", "sampler"))

    @model_validator(mode="after")
    def _has_path(self) -> DataConfig:
        if self.source in get_args(OwnSource) and self.source not in ("hub", "digits") and self.path is None:
            raise ValueError(f"source {self.source!r} needs data.path, the local folder")
        if self.source == "hub" and self.path is not None:
            raise ValueError(
                "source 'hub' reads no data.path; for files on this machine set data.source to parquet, "
                "imagefolder, disk or cifar_python, for the Hub give --data.path=null"
            )
        if self.unlabeled and self.unlabeled.source == REST and self.train_size is None:
            raise ValueError(
                f"unlabeled.source: {REST!r} are the images that data.train_size leaves out, and there is none; give "
                "data.train_size, or another source"
            )
        return self


Stem = Literal["default", "cifar"]
Normalization = Literal["auto", "model", "data"]
TeacherNormalization = Literal["auto", "data", "imagenet", "cifar", "inception", "none", "bytes"]
ClassOrder = Literal["alphabetical", "natural", "numbers_as_text"]
TrainedOn = Literal["train_split", "all", "other"]


class ModelConfig(Section):
    name: str = Field("cifar_resnet20", description="student: any timm name or one of this project's cifar_ networks")
    img_size: int | None = Field(None, ge=8, le=2048, description="input side in pixels; null: the model's own")
    stem: Stem = Field("default", description="cifar: stride-1 first convolution, for ImageNet networks at 32 pixels")
    pretrained: bool = Field(False, description="start from timm's pretrained weights")
    normalization: Normalization = Field(
        "auto",
        description="mean and standard deviation of the input: the model's, the data set's, or (auto) the model's if "
        "pretrained, else the data set's",
    )
    args: dict[str, Any] = Field({}, description="further arguments of timm.create_model")


class TeacherConfig(Section):
    model: str | None = Field(None, description="timm name; not needed where the weights name it")
    weights: str | None = Field(
        None,
        description="run folder, exported student, checkpoint file, wandb:ENTITY/PROJECT/NAME:ALIAS, hf-hub:ORG/NAME "
        "or pretrained",
    )
    train: str | None = Field(
        None, description="YAML file with the settings that train this teacher if no finished run has them"
    )
    logits: str | None = Field(None, description="safetensors file of its logits, in place of a network")
    view: Literal["shared", "clean"] = Field(
        "shared", description="shared: the student's own crop and flip; clean: the image without augmentation"
    )
    img_size: int | None = Field(None, ge=8, le=2048, description="input side in pixels; null: the model's own")
    stem: Stem = Field("default", description="cifar: stride-1 first convolution")
    normalization: TeacherNormalization = Field(
        "auto",
        description="mean and standard deviation of the input: from the weights (auto), the data set's, or by name; "
        "none: pixels in [0,1], bytes: in [0,255]",
    )
    class_order: str | list[int] | None = Field(
        None,
        description="index of the output for each class of the data, in order, or how outputs are sorted; "
        "alphabetical: by class name as text, natural: by class name with numbers by value (1, 2, 10), "
        "numbers_as_text: by class number as text (0, 1, 10, 11, ...); null: as in the data",
    )
    trained_on: TrainedOn | None = Field(
        None,
        description="which images a teacher from elsewhere was trained on, and so whether its validation accuracy is "
        "biased; train_split: the training images without these validation images, all: all training images of the "
        "source, other: other images; null: unknown, unless the teacher is a run of this project",
    )
    args: dict[str, Any] = Field({}, description="further arguments of timm.create_model")

    _paths_can_be = field_validator("weights", "train", "logits")(_file_name)

    @field_validator("class_order", mode="before")
    @classmethod
    def _is_an_order(cls, value: Any) -> Any:
        permutation = isinstance(value, list) and all(type(number) is int for number in value) and len(value) > 0
        if value in (None, *get_args(ClassOrder)) or (permutation and sorted(value) == list(range(len(value)))):
            return value
        shown = repr(value)
        raise ValueError(
            f"is {shown[:60]}{'...' * (len(shown) > 60)}, allowed: {', '.join(get_args(ClassOrder))}, or a list that "
            "holds each number from 0 to the number of classes - 1 once"
        )

    @model_validator(mode="after")
    def _has_an_origin(self) -> TeacherConfig:
        if sum(origin is not None for origin in (self.weights, self.train, self.logits)) != 1:
            raise ValueError("a teacher needs exactly one of 'weights', 'train' and 'logits'")
        # a run's own config.yaml says the defaults, too
        fields = {key: info.default for key, info in type(self).model_fields.items()}
        more = [k for k, default in fields.items() if k not in ("logits", "trained_on") and getattr(self, k) != default]
        if self.logits is not None and more:
            raise ValueError(f"a teacher given by its logits has no further settings; remove {', '.join(more)}")
        if self.model is None and (self.train is not None or self.weights == "pretrained"):
            raise ValueError("this teacher needs 'model', a timm name")
        if self.train is not None and self.trained_on is not None:
            raise ValueError("a teacher that is trained here sees this run's training images; remove trained_on")
        if self.train is not None and (self.normalization not in ("auto", "data") or self.class_order is not None):
            raise ValueError(
                "a teacher that is trained here learns the data's own classes with normalization auto or data; other "
                "normalizations and class_order are for weights from elsewhere"
            )
        return self


class EmaConfig(Section):
    decay: float = Field(
        0.9998, gt=0, lt=1, description="share of the average that an update keeps; the weights get the rest"
    )
    warmup: bool = Field(True, description="at most 1 - n^(-2/3) of it in update n, so that short trainings have one")
    every: int = Field(1, ge=1, description="optimizer steps from one update to the next")


class TrainingConfig(Section):
    max_epochs: int = Field(
        100, ge=1, description="number of epochs; the learning rate schedule ends with the last one"
    )
    patience: int | None = Field(
        None, ge=1, description="stop after this many epochs without a better val/accuracy; null: never"
    )
    optimizer: str = Field("adamw", description="adamw, sgd, or any optimizer of timm's factory")
    learning_rate: float = Field(
        1e-3, gt=0, le=100, description="peak learning rate; not scaled by batch size or number of processes"
    )
    weight_decay: float = Field(1e-4, ge=0, le=10, description="weight decay")
    decay_norms_and_biases: bool = Field(True, description="false: no weight decay on one-dimensional parameters")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD-like optimizers")
    nesterov: bool = Field(False, description="Nesterov momentum, for sgd")
    optimizer_args: dict[str, Any] = Field({}, description="further arguments of the optimizer")
    schedule: Literal["cosine", "multistep", "constant"] = Field(
        "cosine", description="shape of the learning rate over training"
    )
    min_learning_rate: float = Field(1e-6, ge=0, description="learning rate of the last step under cosine")
    milestones: list[int] = Field([150, 180, 210], description="epochs after which multistep decays")
    decay_factor: float = Field(0.1, gt=0, lt=1, description="factor of one multistep decay")
    warmup_epochs: float = Field(0.0, ge=0, description="epochs of linear warm-up before the schedule")
    clip: float | None = Field(None, gt=0, description="maximum gradient norm; null: no clipping")
    skip_nonfinite: int = Field(
        0, ge=0, description="how many steps with non-finite gradients a run may skip; 0: the first one stops it"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="smoothing of the label loss")
    mixed_precision: Literal["no", "fp16", "bf16", "auto"] | None = Field(
        None,
        description="autocast type of student and teachers; auto: the fastest for the student here, measured before "
        "training; null: that of accelerate launch, else no",
    )
    compile: bool = Field(False, description="torch.compile the student (no gain was measured on CPUs)")
    compile_mode: Literal["default", "reduce-overhead", "max-autotune"] = Field(
        "default", description="mode of torch.compile; reduce-overhead: with CUDA graphs, for small networks on a GPU"
    )
    channels_last: bool = Field(True, description="memory format of images and networks; faster for convolutions")
    sync_bn: bool = Field(False, description="share BatchNorm statistics between processes (GPUs only)")
    seed: int = Field(
        0,
        ge=0,
        lt=2**31,
        description="seed of initial weights, order of images and augmentation; not of the split or the teachers",
    )
    deterministic: bool = Field(False, description="use only deterministic operations, and fail where there is none")
    log_every: int = Field(
        50, ge=1, description="steps between train_step/* rows; only there does the loop wait for the device"
    )
    save_every_steps: int | None = Field(
        None, ge=1, description="also write a checkpoint every so many steps; null: only at the end of each epoch"
    )
    save_every_minutes: float | None = Field(
        None,
        gt=0,
        description="also write a checkpoint when the last one is this old; null: only at the end of each epoch",
    )
    compare_with_baseline: bool = Field(False, description="also train the same student without teachers")
    accumulate: int = Field(
        1, ge=1, description="equal parts into which a step's batch is cut, one after another, to save memory; 1: none"
    )
    ema: EmaConfig | None = Field(
        None, description="moving average of the student's weights (docs/runs.md)"
    )
    class_weights: Literal["balanced"] | list[Annotated[float, Field(ge=0)]] | None = Field(
        None,
        description="factors of the label loss of each class, in order; balanced: inverse to its training images, 1 on "
        "average over these; null: none",
    )

    @model_serializer(mode="wrap")
    def _serialized(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_newer(self, serialize, ("accumulate", "ema", "class_weights"))

    @model_validator(mode="after")
    def _schedule_fits(self) -> TrainingConfig:
        if self.warmup_epochs >= self.max_epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs:g} must be smaller than max_epochs {self.max_epochs}")
        if self.milestones != sorted(set(self.milestones)):
            raise ValueError(f"milestones {self.milestones} must increase")
        if self.skip_nonfinite and self.mixed_precision == "fp16":
            raise ValueError("skip_nonfinite must be 0 with fp16, whose loss scaling skips such steps itself")
        if self.compile and self.accumulate > 1 and self.compile_mode != "default":
            # The gradients of one part are buffers of the graph, which the next part writes over.
            raise ValueError(f"compile_mode {self.compile_mode!r} makes CUDA graphs, in which accumulate must be 1")
        return self

    @field_validator("class_weights")
    @classmethod
    def _weighs_something(cls, value: Any) -> Any:
        if isinstance(value, list) and not any(value):
            raise ValueError(f"is {value}, which weighs no class; give one factor per class, or balanced")
        return value

    @field_validator("optimizer")
    @classmethod
    def _in_lower_case(cls, value: str) -> str:
        return value.lower()


Range = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2, max_length=2)]


class ResizedCropConfig(Section):
    scale: Range = Field([0.08, 1.0], description="least and largest share of the image's area")
    ratio: Range = Field([0.75, 4 / 3], description="least and largest width by height")

    @model_validator(mode="after")
    def _in_order(self) -> ResizedCropConfig:
        _check_ranges(self.scale, self.ratio)
        return self


class ColorJitterConfig(Section):
    brightness: float = Field(0.4, ge=0, le=1, description="factors from 1 - this to 1 + this")
    contrast: float = Field(0.4, ge=0, le=1, description="factors from 1 - this to 1 + this")
    saturation: float = Field(0.4, ge=0, le=1, description="factors from 1 - this to 1 + this")
    hue: float = Field(0.0, ge=0, le=0.5, description="turns of the color circle from minus this to this")

    @model_validator(mode="after")
    def _changes_something(self) -> ColorJitterConfig:
        if not any(self.model_dump().values()):
            raise ValueError("all of its settings are 0; remove it, or give one of them")
        return self


class RandAugmentConfig(Section):
    ops: int = Field(2, ge=1, le=16, description="how many operations each image gets")
    magnitude: int = Field(9, ge=0, le=30, description="strength of each operation, from 0 to 30")


class ErasingConfig(Section):
    probability: float = Field(0.25, gt=0, le=1, description="share of the images that are erased in part")
    scale: Range = Field([0.02, 1 / 3], description="least and largest share of the image's area")
    ratio: Range = Field([0.3, 10 / 3], description="least and largest height by width")

    @model_validator(mode="after")
    def _in_order(self) -> ErasingConfig:
        _check_ranges(self.scale, self.ratio)
        return self


class MixupConfig(Section):
    alpha: float = Field(0.2, gt=0, le=100, description="both parameters of the Beta distribution of the shares")


class CutmixConfig(Section):
    alpha: float = Field(1.0, gt=0, le=100, description="both parameters of the Beta distribution of the shares")
    probability: float = Field(0.5, gt=0, le=1, description="share of the images that get a box of another one")


def _check_ranges(scale: list[float], ratio: list[float]) -> None:
    """ValueError unless both are [least, largest] and a scale is a share."""
    for name, (least, largest) in (("scale", scale), ("ratio", ratio)):
        if least > largest or (name == "scale" and largest > 1):
            most = " and at most 1" if name == "scale" else ""
            raise ValueError(f"{name} {[least, largest]} must be [least, largest], above 0{most}")


class RecipeConfig(Section):
    """How images are changed; without any operation they are cropped and flipped as `data` says."""

    resized_crop: ResizedCropConfig | None = Field(
        None, description="a random part of the image, resized to its size, in place of the crop after padding"
    )
    color_jitter: ColorJitterConfig | None = Field(
        None, description="random brightness, contrast, saturation and hue, in random order"
    )
    randaugment: RandAugmentConfig | None = Field(
        None, description="random operations of one strength (RandAugment, arXiv:1909.13719)"
    )
    trivialaugment: bool = Field(
        False, description="one random operation of random strength (TrivialAugment, arXiv:2103.10158)"
    )
    cutout: int | None = Field(
        None, ge=1, le=2048, description="side of a square that is blotted out, in pixels of the stored image"
    )
    erasing: ErasingConfig | None = Field(None, description="a box of random pixels (random erasing, arXiv:1708.04896)")
    mixup: MixupConfig | None = Field(
        None, description="the mean of the image and another one of training, labels too (mixup, arXiv:1710.09412)"
    )
    cutmix: CutmixConfig | None = Field(
        None, description="a box of another image of training, labels too (CutMix, arXiv:1905.04899)"
    )
    fill: Literal["mean", "black"] = Field(
        "mean", description="color of what cutout, rotations, translations and shears leave empty"
    )

    @model_validator(mode="after")
    def _one_policy(self) -> Self:
        if self.randaugment and self.trivialaugment:
            raise ValueError("randaugment and trivialaugment exclude each other; choose one")
        return self

    @model_serializer(mode="wrap")
    def _without_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is set; so an operation that is added leaves the settings and digests of all other runs as they were."""
        defaults = {name: info.default for name, info in type(self).model_fields.items()}
        return {name: value for name, value in serialize(self).items() if getattr(self, name) != defaults[name]}

    @property
    def operations(self) -> list[str]:
        """The names of the operations that are on, which make a view one of endlessly many; none by default."""
        return [name for name in RecipeConfig.model_fields if name != "fill" and getattr(self, name)]

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with others, and so have soft labels."""
        return self.mixup is not None or self.cutmix is not None


class AugmentConfig(RecipeConfig):
    """A recipe for the images of training, and for a second view of each."""

    second: RecipeConfig | None = Field(
        None, description="recipe of a second view of each image, for losses of two views; {}: crop and flip as above"
    )
    passes: Literal[1, 2] = Field(
        1, description="1: both views in one pass of the student, normalized together; 2: one after the other"
    )

    @model_validator(mode="after")
    def _views_agree(self) -> AugmentConfig:
        if self.second is None and self.passes == 2:
            raise ValueError("passes: 2 is for two views; give augment.second, or leave passes out")
        if self.second and (self.mixes or self.second.mixes):
            raise ValueError("second: mixup and cutmix would give both views of an image unlike labels; remove them")
        return self


class EvaluationConfig(Section):
    test_at_end: bool = Field(
        False, description="evaluate the selected weights on the test split, once, after training"
    )
    test_epochs: Literal["all"] | None = Field(
        None,
        description="all: keep each epoch's student and evaluate them all on the test split after training, as papers "
        "that print their best test epoch did; selects nothing; needs test_at_end",
    )
    batch_size: int | None = Field(
        None, ge=1, description="images per evaluation step; null: data.batch_size, on a GPU as many as fit"
    )
    report: bool = Field(
        True, description="after training: measure the student's cost, diagnose errors, write report/index.html"
    )

    @model_validator(mode="after")
    def _opens_the_test_split(self) -> EvaluationConfig:
        if self.test_epochs and not self.test_at_end:
            raise ValueError("test_epochs: evaluates on the test split; give evaluation.test_at_end=true, too")
        return self

    @model_serializer(mode="wrap")
    def _serialized(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_newer(self, serialize, ("test_epochs",))


class CacheConfig(Section):
    dir: str | None = Field(
        None, description="folder of decoded data sets and teachers' logits; null: $KD_CACHE_DIR or ~/.cache/kd"
    )
    mode: Literal["auto", "clean", "lazy", "fixed", "off"] = Field(
        "auto",
        description="teachers' logits on disk; clean: only those of the un-augmented images; lazy: of every view, once "
        "it is used; fixed: of `views` views per image, and training uses no others; auto: lazy if that fits into "
        "max_gb, else clean",
    )
    views: int = Field(8, ge=1, le=1000, description="views per image, for mode fixed")
    max_gb: float = Field(
        20.0,
        gt=0,
        description="gigabytes of teachers' logits and features on disk; the least recently used go first, and a named "
        "mode that needs more is refused",
    )

    _path_can_be = field_validator("dir")(_file_name)

    @property
    def folder(self) -> Path:
        return Path(self.dir or os.environ.get("KD_CACHE_DIR") or Path.home() / ".cache" / "kd").expanduser()


class WandbConfig(Section):
    project: str = Field("Knowledge-Distillation-CIFAR100", description="W&B project")
    entity: str | None = Field(None, description="W&B user or team; null: your default")
    name: str | None = Field(None, description="name of the run; null: the experiment's name")
    group: str | None = Field(None, description="group of runs; null: all that differ in training.seed alone")
    tags: list[str] = Field([], description="further tags")
    notes: str | None = Field(None, description="notes shown with the run")
    mode: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto", description="auto: online if credentials exist, else offline"
    )
    log_model: bool = Field(True, description="store the best and the final student as artifact model-RUN")
    log_data: bool = Field(False, description="record the data set by its digest, as an artifact; never the images")
    log_images: bool = Field(False, description="also upload the misclassified images of the run's report")
    upload_every_minutes: float = Field(10.0, ge=0, description="minimum minutes between uploads of a better student")
    resume: Literal["allow", "must", "never"] = Field("allow", description="what W&B does when a run id exists already")


class Config(Section):
    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$",
        description="name of the experiment; null: made of method, student and number of teachers",
    )
    output_dir: str = Field("runs", description="folder that holds the run folders")
    imports: list[str] = Field(
        [],
        alias="import",
        description="files of your own code to run first, as --import FILE.py; in a YAML file relative to its folder",
    )
    data: DataConfig = Field(default_factory=DataConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    teachers: list[TeacherConfig] = Field([], max_length=64)
    kd: SerializeAsAny[kd_methods.MethodConfig] = Field(
        default_factory=lambda: kd_methods.config_class(kd_methods.LABEL_ONLY).model_validate({})
    )
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    cache: CacheConfig = Field(default_factory=CacheConfig)
    wandb: WandbConfig = Field(default_factory=WandbConfig)

    _path_can_be = field_validator("output_dir")(_file_name)

    @field_validator("kd", mode="plain")
    @classmethod
    def _is_of_a_method(cls, value: Any) -> Any:
        return _kd_settings(*kd_methods.names()).validate_python(value)

    @model_validator(mode="after")
    def _teachers_fit_the_method(self) -> Config:
        if self.kd.type != kd_methods.LABEL_ONLY and not self.teachers:
            raise ValueError(
                f"kd.type {self.kd.type!r} needs teachers: give a list, such as "
                "--teachers='[{model: cifar_resnet20, train: configs/teachers/cifar32.yaml}]', "
                f"or choose --kd.type={kd_methods.LABEL_ONLY}"
            )
        self.kd.check_run(len(self.teachers))
        return self

    @model_validator(mode="after")
    def _views_are_used(self) -> Config:
        second, use = self.augment.second, self.kd.second_view
        if use == "required" and second is None:
            raise ValueError(
                f"kd.loss: {getattr(self.kd, 'loss', '')!r} compares two views of each image; say how the second "
                "one is made, such as --augment.second='{randaugment: {}}'"
            )
        if use == "unused" and second is not None:
            raise ValueError(
                "augment.second: nothing in `kd` uses a second view; remove it, or choose kd.loss crld or mlkd"
            )
        if second is not None and self.teachers and self.cache.mode == "lazy":
            raise ValueError(
                "cache.mode: 'lazy' cannot hold second views, of which hardly one comes back; choose fixed, off or auto"
            )
        if second is not None and second.fill != "mean" and not second.operations:
            raise ValueError(f"augment.second.fill: {second.fill!r} fills nothing without an operation; remove it")
        if second is not None and (files := [index for index, teacher in enumerate(self.teachers) if teacher.logits]):
            raise ValueError(
                f"teachers[{files[0]}].logits: a file holds logits of crops and flips, not of augment.second; give the "
                "teacher's network (weights or train), or remove augment.second"
            )
        return self

    @model_validator(mode="after")
    def _unlabeled_images_can_be_used(self) -> Config:
        unlabeled = self.data.unlabeled
        if unlabeled is None:
            return self
        if needing := self.kd.needing_labels():
            raise ValueError(
                f"data.unlabeled: {needing[0]} needs the label of every image; choose one that does not "
                "(docs/methods.md lists them), or remove data.unlabeled"
            )
        if unlabeled.share == 1 and self.kd.type == kd_methods.LABEL_ONLY:
            raise ValueError(
                f"data.unlabeled.share: is 1, so no image has a label, and kd.type {self.kd.type!r} learns from labels "
                "alone; give a smaller share"
            )
        if unlabeled.share == 1 and self.training.compare_with_baseline:
            raise ValueError(
                "training.compare_with_baseline: the student without teachers learns from labels alone, and with "
                "data.unlabeled.share 1 no image has one; set it to false, or give a smaller share"
            )
        if self.augment.mixes:
            raise ValueError(
                "augment: mixup and cutmix mix labels, and the images of data.unlabeled have none; remove either"
            )
        if files := [index for index, teacher in enumerate(self.teachers) if teacher.logits]:
            raise ValueError(
                f"teachers[{files[0]}].logits: a file has no logits of the images of data.unlabeled; give the "
                "teacher's network (weights or train), or remove data.unlabeled"
            )
        return self

    @model_validator(mode="after")
    def _teachers_have_the_features(self) -> Config:
        entries = getattr(self.kd, "features", [])
        for number, entry in enumerate(entries):
            lists = len(entry.teacher) if entry.teacher and isinstance(entry.teacher[0], list) else len(self.teachers)
            if lists != len(self.teachers):
                raise ValueError(
                    f"kd.features[{number}].teacher: has layers of {lists} teachers, and there are "
                    f"{len(self.teachers)}; give one list for each, or one for all"
                )
        if entries and (files := [index for index, teacher in enumerate(self.teachers) if teacher.logits]):
            raise ValueError(
                f"teachers[{files[0]}].logits: a file of logits has no features, which kd.features needs; give its "
                "network (weights or train), or remove kd.features"
            )
        return self

    @model_validator(mode="after")
    def _each_image_has_one_place_in_a_batch(self) -> Config:
        losses = [entry.loss for entry in getattr(self.kd, "features", [])]
        if self.data.sampler == "balanced" and "crd" in losses:
            raise ValueError(
                f"kd.features[{losses.index('crd')}]: crd keeps one place for each image, and data.sampler balanced "
                "may show one twice in a step; choose uniform, or another loss"
            )
        return self

    @model_validator(mode="after")
    def _views_can_be_made(self) -> Config:
        recipe = self.augment
        if not recipe.operations:
            if recipe.fill != "mean":
                raise ValueError(f"augment.fill: {recipe.fill!r} fills nothing without an operation; remove it")
            return self
        named = ", ".join(f"augment.{name}" for name in recipe.operations)
        for index, teacher in enumerate(self.teachers):
            if teacher.logits:
                raise ValueError(
                    f"teachers[{index}].logits: a file of logits has none of the views that {named} makes; give the "
                    "teacher's network (weights or train), or remove augment"
                )
            if recipe.mixes and teacher.view == "clean":
                raise ValueError(
                    f"teachers[{index}].view: a clean teacher sees one whole image, where augment.mixup and "
                    "augment.cutmix show the student two; choose shared, or remove them"
                )
        if recipe.mixes and self.data.batch_size == 1:
            raise ValueError(
                "data.batch_size: 1 is one mixed label per step, with augment.mixup and augment.cutmix; give at least 2"
            )
        if self.teachers and self.cache.mode == "lazy":
            raise ValueError(
                f"cache.mode: 'lazy' keeps views that come back, and those of {named} are too many for that; choose "
                "fixed, which trains on cache.views views of each image, or off"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_unused_recipe(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """All settings but `augment` where it says nothing, as in runs from before there was one."""
        values = serialize(self)
        if not values.get("augment", True):
            del values["augment"]
        return values

    @property
    def part(self) -> int:
        """The images of one forward pass in training, over all processes together."""
        return self.data.batch_size // self.training.accumulate

    @property
    def budget(self) -> str:
        """How much the student sees, which matters more than most losses: epochs x views x passes."""
        views = 2 if self.augment.second is not None else 1
        counts = {"epoch": self.training.max_epochs, "view": views, "pass": self.augment.passes}
        plural = {"epoch": "epochs", "view": "views", "pass": "passes"}
        return " x ".join(f"{count} {word if count == 1 else plural[word]}" for word, count in counts.items())

    @property
    def experiment(self) -> str:
        """The name that seeds of one experiment share."""
        if self.name:
            return self.name
        teachers = f"-{len(self.teachers)}t" if self.teachers else ""
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{self.kd.type}-{self.model.name}{teachers}")

    def flat(self, num_classes: int) -> dict[str, Any]:
        """The flat keys by which W&B users sort and filter; see docs/metrics.md."""
        kd = self.kd.model_dump()
        return {
            "student_model": self.model.name,
            "teacher_models": [t.model or t.weights or t.logits for t in self.teachers],
            "num_classes": num_classes,
            "kd_type": self.kd.type,
            **{key: kd.get(key) for key in ("temperature", "alpha", "gamma", "threshold")},
            "max_epochs": self.training.max_epochs,
            "batch_size": self.data.batch_size,
            "learning_rate": self.training.learning_rate,
            "patience": self.training.patience,
            "val_size": self.data.val_size,
            "num_workers": self.data.num_workers,
        }

    def to_yaml(self) -> str:
        """The settings as a file may hold them that others see: paths in the home folder begin with `~`."""
        values = redacted(self.model_dump(mode="json"))
        return yaml.dump(values, Dumper=Yaml12Dumper, sort_keys=False, width=110)
