"""Configuration: typed sections, strict checks, YAML files and dotted command-line overrides.

    defaults  <  --config file.yaml  <  --section.key=value

Layers are plain dicts that are merged key by key (lists are replaced as a whole) and validated once, so that all
mistakes are reported together, each with the place it came from, the value, and what would be right.
Scalars are read as YAML 1.2: `1e-3` is a number, `no` is a word, booleans are `true` and `false` in any case, and
`None` or `null` is allowed where a key is optional.  That is also what W&B's `${args}` writes.  Where a key takes text
alone, a word stays as it was written: `name: 1.10` is the text 1.10, and `--wandb.notes="a # b"` is no YAML at all.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import os
import re
import shlex
import types
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    SerializeAsAny,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

import kd_methods
from kd_core.config import own_code
from kd_core.errors import UserError, first_line
from kd_core.files import local_path, sha256_of
from kd_core.privacy import redacted
from kd_core.run import artifacts

PROJECT_ROOT = Path(__file__).resolve().parents[2]
COMMAND_LINE = "command line"  # where a setting comes from, in messages
QUICKSTART = "configs/quickstart.yaml"
# Raised whenever training itself changes its arithmetic, so that stored teachers are trained anew.
RECIPE_VERSION = 2
# What a settings file may be at most; PyYAML takes a second for this much.
MAX_YAML_BYTES = 100_000
MAX_NESTING = 32
MAX_INTEGER = 2**63 - 1
MAX_MISTAKES = 30  # shown at once
IMPORTS = "imports"  # folder of a run folder with copies of the own code that it was trained with


# ---------------------------------------------------------------------------------------------- the sections


def _accepts(annotation: Any) -> set[type]:
    """The plain types that a field's annotation allows."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return set().union(*(_accepts(option) for option in get_args(annotation)))
    if origin is Literal:
        return {type(option) for option in get_args(annotation)}
    if hasattr(annotation, "__metadata__"):
        return _accepts(get_args(annotation)[0])
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
            value, kinds = converted.get(name), _accepts(info.annotation)
            if isinstance(value, float) and _is_whole(value) and int in kinds and (float not in kinds or value > 1):
                converted[name] = int(value)
            elif isinstance(value, (int, float)) and not isinstance(value, bool) and kinds <= {str, type(None)}:
                converted[name] = str(value)
        return converted


def _file_name(value: str | None) -> str | None:
    """The value with `~` expanded; ValueError if no file can have such a name."""
    try:
        local_path(value or "", "path")
    except UserError as error:
        raise ValueError(str(error).removeprefix("path: ")) from None
    return os.path.expanduser(value) if value else value


OwnSource = Literal["hub", "parquet", "imagefolder", "disk", "cifar_python", "digits"]


def _sources() -> list[str]:
    """Names of all data sources: the project's, and those that were added."""
    from kd_core.data import sources  # and with it `datasets`, which takes a second

    return [*get_args(OwnSource), *sources.added()]


def _check_source(value: Any) -> Any:
    known = isinstance(value, str) and value in get_args(OwnSource)
    return value if known else _one_of(*_sources()).validate_python(value)


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
        description="what the folders in data.path are, for imagefolder: classes, whatever they are called, or splits, "
        "with all that lies deeper than a class belonging to it; null: told by their names",
    )
    image_column: str | None = Field(None, description="column with the images; null: found by its type")
    label_column: str | None = Field(None, description="column with the labels; null: fine_label, label, ...")
    train_split: str | None = Field(None, description="name of the training split; null: guessed and printed")
    val_split: str | None = Field(None, description="name of the validation split; null: guessed and printed")
    test_split: str | None = Field(None, description="name of the test split; null: guessed and printed")
    val_size: int | float | None = Field(
        None,
        ge=0,
        description="validation images cut from training: a count, a fraction, 0; null: 5000 for CIFAR, else 0.1",
    )
    test_size: int | float | None = Field(
        None,
        gt=0,
        description="test images cut from training, before validation, where the source has none: a count, a fraction; "
        "null: none",
    )
    split_seed: int = Field(
        0, ge=0, description="seed of the stratified validation and test split and of train_size"
    )
    train_size: int | float | None = Field(
        None, gt=0, description="stratified subset of the training images: a count or a fraction; null: all"
    )
    batch_size: int = Field(128, ge=1, description="images in one step, over all processes together")
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
    allow_unreadable: int = Field(0, ge=0, description="how many unreadable image files may be left out")
    num_workers: int | None = Field(
        None, ge=1, le=256, description="threads that decode the images, once; null: all cores"
    )

    _path_can_be = field_validator("path")(_file_name)

    @field_validator("val_size", "test_size", "train_size")
    @classmethod
    def _count_or_fraction(cls, value: int | float | None) -> int | float | None:
        if isinstance(value, float) and value > 1:
            raise ValueError(f"is {value:g}: a fraction is at most 1, a count is a whole number")
        return value

    @model_validator(mode="after")
    def _has_path(self) -> DataConfig:
        if self.source in get_args(OwnSource) and self.source not in ("hub", "digits") and self.path is None:
            raise ValueError(f"source {self.source!r} needs data.path, the local folder")
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
        description="mean and deviation: the model's, the data set's, or (auto) the model's if pretrained",
    )
    args: dict[str, Any] = Field({}, description="further arguments of timm.create_model")


class TeacherConfig(Section):
    model: str | None = Field(None, description="timm name; not needed where the weights say it")
    weights: str | None = Field(
        None,
        description="run folder, exported student, checkpoint file, wandb:ENTITY/PROJECT/NAME:ALIAS, hf-hub:ORG/NAME "
        "or pretrained",
    )
    train: str | None = Field(None, description="YAML file that says how to train this teacher if it is missing")
    logits: str | None = Field(None, description="safetensors file of its logits, instead of a network")
    view: Literal["shared", "clean"] = Field(
        "shared", description="shared: the student's own crop and flip; clean: the un-augmented image"
    )
    img_size: int | None = Field(None, ge=8, le=2048, description="input side in pixels; null: the model's own")
    stem: Stem = Field("default", description="cifar: stride-1 first convolution")
    normalization: TeacherNormalization = Field(
        "auto",
        description="mean and deviation: as the weights say, the data set's, usual ones by name; none: pixels in "
        "[0,1], bytes: in [0,255]",
    )
    class_order: str | list[int] | None = Field(
        None,
        description="which output stands for each class of the data, in their order; alphabetical: outputs are sorted "
        "by class name as text, natural: by class name with numbers by their value (1, 2, 10), numbers_as_text: by "
        "class number as text (0, 1, 10, 11, ...); null: as in the data",
    )
    trained_on: TrainedOn | None = Field(
        None,
        description="what a teacher from elsewhere has been trained on, which decides what its validation accuracy "
        "says; train_split: the training images without these validation images, all: all training images of the "
        "source, other: other images; null: not known, unless a run of this project shows it",
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
            raise ValueError(f"a file of logits is all there is of this teacher; remove {', '.join(more)}")
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


class TrainingConfig(Section):
    max_epochs: int = Field(100, ge=1, description="epochs; the schedule ends exactly there")
    patience: int | None = Field(
        None, ge=1, description="stop after this many epochs without a better val/accuracy; null: never"
    )
    optimizer: str = Field("adamw", description="adamw, sgd, or any optimizer of timm's factory")
    learning_rate: float = Field(
        1e-3, gt=0, le=100, description="peak learning rate for the global batch; never scaled silently"
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
    clip: float | None = Field(None, gt=0, description="largest gradient norm; null: no clipping")
    skip_nonfinite: int = Field(
        0, ge=0, description="steps with gradients that are not finite that a run may skip; 0: the first stops it"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="smoothing of the label loss")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = Field(
        None, description="autocast type of student and teachers; null: the launcher's (accelerate launch), else no"
    )
    compile: bool = Field(False, description="torch.compile the student (no gain was measured on CPUs)")
    compile_mode: Literal["default", "reduce-overhead", "max-autotune"] = Field(
        "default", description="of torch.compile; reduce-overhead: with CUDA graphs, for small networks on a GPU"
    )
    channels_last: bool = Field(True, description="memory format of images and networks; faster for convolutions")
    sync_bn: bool = Field(False, description="share BatchNorm statistics between processes (GPUs only)")
    seed: int = Field(
        0, ge=0, lt=2**31, description="weights, order and views of this run; not the split, not the teachers"
    )
    deterministic: bool = Field(False, description="refuse operations that are not repeatable")
    log_every: int = Field(
        50, ge=1, description="steps between train_step/* rows; the only waits of the loop on the device"
    )
    save_every_steps: int | None = Field(
        None, ge=1, description="also write a checkpoint every so many steps within an epoch; null: at epochs' ends"
    )
    save_every_minutes: float | None = Field(
        None, gt=0, description="also write a checkpoint when the last one is this old; null: at epochs' ends"
    )
    compare_with_baseline: bool = Field(False, description="also train the same student without teachers")

    @model_validator(mode="after")
    def _schedule_fits(self) -> TrainingConfig:
        if self.warmup_epochs >= self.max_epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs:g} must be smaller than max_epochs {self.max_epochs}")
        if self.milestones != sorted(set(self.milestones)):
            raise ValueError(f"milestones {self.milestones} must rise")
        if self.skip_nonfinite and self.mixed_precision == "fp16":
            raise ValueError("skip_nonfinite must be 0 with fp16, whose loss scaling skips such steps itself")
        return self

    @field_validator("optimizer")
    @classmethod
    def _in_lower_case(cls, value: str) -> str:
        return value.lower()


class EvaluationConfig(Section):
    test_at_end: bool = Field(False, description="open the test split once, after training, with the selected weights")
    batch_size: int | None = Field(
        None, ge=1, description="images in one evaluation step; null: data.batch_size, on a GPU as many as fit"
    )
    report: bool = Field(
        True, description="after training: measure what the student costs, look for mistakes, write report/index.html"
    )


class CacheConfig(Section):
    dir: str | None = Field(
        None, description="folder of decoded data sets and teachers' logits; null: $KD_CACHE_DIR or ~/.cache/kd"
    )
    mode: Literal["auto", "clean", "lazy", "fixed", "off"] = Field(
        "auto",
        description="teachers' logits on disk; clean: of clean views alone; lazy: of every view, as it comes; fixed: "
        "of `views` views an image, which training then keeps to; auto: lazy if that fits into max_gb, else clean",
    )
    views: int = Field(8, ge=1, le=1000, description="views an image, for mode fixed")
    max_gb: float = Field(20.0, gt=0, description="gigabytes of teachers' logits on disk; the oldest-used go first")

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
    notes: str | None = Field(None, description="notes shown beside the run")
    mode: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto", description="auto: online if credentials exist, else offline"
    )
    log_model: bool = Field(True, description="store the best and the final student as artifact model-RUN")
    log_data: bool = Field(False, description="record the data set by its digest, as an artifact; never the images")
    log_images: bool = Field(False, description="send the misclassified images of the run's report, too")
    upload_every_minutes: float = Field(10.0, ge=0, description="at most one upload of a better student in this time")
    resume: Literal["allow", "must", "never"] = Field("allow", description="what W&B does when a run id exists already")


class Config(Section):
    name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$", description="name of the experiment; null: from its parts"
    )
    output_dir: str = Field("runs", description="folder that holds the run folders")
    imports: list[str] = Field(
        [],
        alias="import",
        description="files of your own code to run first, as --import FILE.py; in a YAML relative to its folder",
    )
    data: DataConfig = Field(default_factory=DataConfig)
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
        return self

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
        return yaml.dump(values, Dumper=_Yaml12Dumper, sort_keys=False, width=110)

    def digest(self, data_fingerprint: str) -> str:
        """Hash of everything that shapes the result; two runs with equal digests are the same run."""
        return _hash(self.identity(data_fingerprint))

    def group(self, data_fingerprint: str) -> str:
        """The name that runs share which differ in nothing but `training.seed`."""
        identity = self.identity(data_fingerprint)
        del identity["training"]["seed"]
        return f"{self.experiment}-{_hash(identity)[:6]}"

    def identity(self, data_fingerprint: str) -> dict[str, Any]:
        """The settings that shape the result, with the content of the files that they name.

        UserError if a teacher's recipe cannot be read.
        """
        values = self.model_dump(mode="json")
        values["training"]["mixed_precision"] = self.training.mixed_precision or "no"  # null: nobody was asked
        for section in ("output_dir", "wandb", "cache", "name", "evaluation"):
            del values[section]
        if self.cache.mode == "fixed" and self.teachers:  # the one mode that changes what the student sees
            values["fixed_views"] = self.cache.views
        for key in ("log_every", "save_every_steps", "save_every_minutes", "compile", "compile_mode"):
            del values["training"][key]
        del values["training"]["compare_with_baseline"]
        if not self.training.skip_nonfinite:
            del values["training"]["skip_nonfinite"]  # runs of before there was this choice go on
        del values["data"]["num_workers"], values["data"]["store"]
        for key in ("folders", "test_size"):
            if values["data"][key] is None:
                del values["data"][key]  # runs of before there were these choices go on
        for teacher in values["teachers"]:
            if teacher["weights"] and (content := _content_of(teacher["weights"])):
                teacher["weights"] = content  # what a file holds matters, not where it lies or what it is called
            if teacher["logits"] and (file := Path(teacher["logits"]).expanduser()).is_file():
                teacher["logits"] = sha256_of(file)
            del teacher["trained_on"]  # it changes nothing that is learned
            for key in ("logits", "class_order"):
                if teacher[key] is None:
                    del teacher[key]  # runs of before there were such settings go on
            if teacher["train"]:
                teacher["train"] = read_yaml(find_file(teacher["train"], "teachers[].train"))
        del values["import"]  # what the files hold matters, not where they lie
        own = [own_code.file(path) for path in self.imports]
        if code := sorted(file.digest for file in own if not file.adds_methods_alone):
            values["import"] = code
        if code := sorted(file.digest for file in own if file.adds_methods_alone):
            values["kd"]["code"] = code  # so that a method of one's own may be compared with others
        return {"recipe": RECIPE_VERSION, "images": data_fingerprint, **values}


def with_seed(config: Config, seed: int) -> Config:
    """The same settings with another `training.seed`."""
    return config.model_copy(update={"training": config.training.model_copy(update={"seed": seed})})


def with_precision(config: Config, precision: str) -> Config:
    """The same settings, with `precision` where they leave it to the launcher; UserError if it does not fit them."""
    if config.training.mixed_precision is not None:
        return config
    launchers = Layer("the launcher", {"training": {"mixed_precision": precision}})
    return resolve([Layer("the settings", config.model_dump(mode="json")), launchers], in_sweep=False).config


def _hash(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _content_of(source: str) -> str | None:
    """Digest of a teacher's weights on this machine: a checkpoint file, an export, a run folder or an artifact."""
    path = Path(source).expanduser()
    if source.startswith("wandb:"):
        path = artifacts.downloaded(source.removeprefix("wandb:")) or path
    candidates = [path, *(path / part / "model.safetensors" for part in ("student", "checkpoints/best/student", "."))]
    return next((sha256_of(file) for file in candidates if file.is_file()), None)


# ---------------------------------------------------------------------------------- reading YAML and arguments


UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # characters that neither JSON in UTF-8 nor a file's name can hold


class _Yaml12Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 scalars and plain values of bounded size.

    No aliases (a small file could otherwise unfold into gigabytes), no tags, no repeated keys, no deep nesting, no
    text or integer that JSON, a file's name or 64 bits cannot hold.
    """

    nesting = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        problem = None
        if isinstance(event, yaml.events.AliasEvent):
            problem = "aliases (*name) are not supported"
        elif event.tag is not None:
            problem = f"tags ({event.tag}) are not supported; text that looks like a number is put in quotes"
        elif self.nesting >= MAX_NESTING:
            problem = f"nested deeper than {MAX_NESTING} levels"
        elif isinstance(event, yaml.events.ScalarEvent) and UNSTORABLE.search(event.value):
            problem = "characters that no text holds (NUL, or half of a surrogate pair)"
        if problem:
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        self.nesting += 1
        node = super().compose_node(parent, index)
        self.nesting -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                key.tag = self.DEFAULT_SCALAR_TAG  # keys are text, whatever they look like
        values = super().construct_mapping(node, deep)
        if len(values) < len(node.value):
            twice = next(key for key, count in Counter(key.value for key, _ in node.value).items() if count > 1)
            raise yaml.constructor.ConstructorError(None, None, f"key {twice!r} stands twice", node.start_mark)
        return values

    def construct_integer(self, node: Any) -> int:
        text = self.construct_scalar(node)
        if len(text) > 30 or abs(int(text)) > MAX_INTEGER:
            raise yaml.constructor.ConstructorError(
                None, None, f"{text[:30]}...: integers have at most 64 bits", node.start_mark
            )
        return int(text)


class _Yaml12Dumper(yaml.SafeDumper):
    """SafeDumper that quotes text which YAML 1.2 would read as a number or null, too: `1e5`, `0089`, `None`."""


_Yaml12Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("null", r"^(?:~|null|Null|NULL|None|)$", ["~", "n", "N", ""]),
    ("int", r"^[-+]?[0-9]+$", "-+0123456789"),
    (
        "float",
        r"^(?:[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+0123456789.",
    ),
):
    for _reader_or_writer in (_Yaml12Loader, _Yaml12Dumper):
        _reader_or_writer.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))
_Yaml12Loader.add_constructor("tag:yaml.org,2002:int", _Yaml12Loader.construct_integer)
_Yaml12Loader.add_constructor(
    "tag:yaml.org,2002:float",
    lambda loader, node: float(re.sub(r"\.(inf|nan)", r"\1", loader.construct_scalar(node).lower())),
)


def _types_at(path: Sequence[str]) -> list[Any]:
    """The declared types of the key at `path`, one for each method that has it; none for an unknown key."""
    declared: list[Any] = [Config]
    for part in path:
        declared = [inner for outer in declared for inner in _types_below(outer, part)]
    return declared


def _types_below(declared: Any, part: str) -> list[Any]:
    """The types that key `part` has within a value of type `declared`; of a list all items have one."""
    origin, options = get_origin(declared), get_args(declared)
    if origin in (Union, types.UnionType):
        return [inner for option in options for inner in _types_below(option, part)]
    if declared is Any or origin is dict:
        return [Any]
    if origin is list:
        return [options[0]]
    if hasattr(declared, "__metadata__"):
        return _types_below(options[0], part)
    if not (isinstance(declared, type) and issubclass(declared, BaseModel)):
        return []
    if declared is Config and part == "kd":
        return [kd_methods.config_class(name) for name in kd_methods.names()]
    return [declared.model_fields[part].annotation] if part in declared.model_fields else []


def _is_text(declared: list[Any]) -> bool:
    """Whether nothing but text may stand there, and null perhaps."""
    return bool(declared) and all(str in _accepts(one) and _accepts(one) <= {str, type(None)} for one in declared)


def _keep_words(node: Any, declared: list[Any]) -> None:
    """Make numbers and booleans of a YAML tree the words that were written, wherever nothing but text may stand."""
    if isinstance(node, yaml.ScalarNode):
        if _is_text(declared) and node.tag != "tag:yaml.org,2002:null":
            node.tag = _Yaml12Loader.DEFAULT_SCALAR_TAG
        return
    for item in node.value:
        key, value = item if isinstance(node, yaml.MappingNode) else (None, item)
        if key is None or isinstance(key, yaml.ScalarNode):
            inner = [one for outer in declared for one in _types_below(outer, key.value if key else "")]
            _keep_words(value, inner)


def parse_yaml(text: str, where: str, path: Sequence[str] | None = None) -> Any:
    """YAML text -> plain values, in bounded time and memory; UserError names `where` and the line.

    With the `path` at which the values belong in the settings, words stay as they stand where a key takes text alone.
    """
    if len(text) > MAX_YAML_BYTES:
        raise UserError(f"{where}: larger than {MAX_YAML_BYTES:,} bytes; settings are small")
    try:
        loader = _Yaml12Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if path is not None:
            _keep_words(node, _types_at(path))
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # escapes beyond Unicode
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{where}:{line} not valid YAML: {problem or first_line(error)}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of settings: one mapping."""
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise UserError(f"{path}: larger than {MAX_YAML_BYTES:,} bytes; settings are small")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from None
    values = parse_yaml(text, str(path), ())
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold 'section: ...' lines, holds a {type(values).__name__}")
    return values


def find_file(name: str, key: str) -> Path:
    """A file named in a configuration: relative to the working folder, else to the project."""
    for path in (local_path(name, key), PROJECT_ROOT / name):
        if path.is_file():
            return path
    raise UserError(f"{key}: no such file: {name}")


@dataclass
class Layer:
    """One source of settings: `values` nested, `origin` for messages."""

    origin: str
    values: dict[str, Any]
    record: Path | None = None  # the config.yaml of a run, export or artifact that it comes from


def read_layer(name: str, key: str = "--config") -> Layer:
    """The settings in a YAML file, which is looked for in the working folder, then in the project.

    The files that it imports are relative to its folder.  A run's own config.yaml is a record: see `read_record`.
    """
    path = find_file(name, key)
    if any((path.parent / beside).is_file() for beside in ("summary.json", "identity.json", "config.json")):
        return read_record(path, name)
    values = read_yaml(path)
    named = values.get("import")
    named = [named] if isinstance(named, str) else named
    if isinstance(named, list):
        values["import"] = [
            str(path.parent / local_path(file, f"{name}: import")) if isinstance(file, str) else file for file in named
        ]
    return Layer(name, values)


def read_record(path: Path, origin: str = "") -> Layer:
    """The settings in a config.yaml that a run, an export or an artifact holds.

    The files of own code that it names are left out: they are run only if a command names them.
    """
    values = read_yaml(path)
    if values.pop("import", None) and (own := own_code.files()):
        values["import"] = [str(file.path) for file in own]  # those that a command has named
    return Layer(origin or str(path), values, path)


def import_remedy(path: Path) -> str:
    """Which option takes up the own code that config.yaml `path` records; empty where nothing is missing.

    A run folder keeps copies of the files.
    """
    named = read_yaml(path).get("import")
    named = [Path(file) for file in named if isinstance(file, str)] if isinstance(named, list) else []
    if not named:
        return ""
    run = next((folder for folder in path.absolute().parents[:4] if (folder / IMPORTS).is_dir()), None)
    files = sorted((run / IMPORTS).glob("*.py")) if run else named
    known = {word for own in own_code.files() for word in (own.path.name, own.digest)}
    missing = [file for file in files if file.name not in known and not (run and sha256_of(file) in known)]
    if not missing:
        return ""
    here = Path.cwd()
    shown = [file.relative_to(here) if file.is_relative_to(here) else file for file in missing]
    options = shlex.join(word for file in shown for word in ("--import", str(file)))
    which = f" (a copy of it lies in {shown[0].parent})" if run else ""
    return (
        f"{path}: was trained with the code in {', '.join(file.name for file in missing)}{which}, and code runs only "
        f"if the command names it. If you trust it, add: {options}"
    )


def require_code(path: Path) -> None:
    """UserError if config.yaml `path` records own code that has not been run."""
    if path.is_file() and (remedy := import_remedy(path)):
        raise UserError(remedy)


def import_code(named: list[str], *layers: Layer) -> Layer:
    """Run the files of own code that --import and `layers` name; the layer that says which, above all others.

    UserError if one is missing or fails, or if one of `layers` is a record whose own code nobody has named.
    """
    if in_trial():
        named = [name for name in named if not name.startswith("[")]  # W&B's echo of what the run has recorded
    found = own_code.run(named)
    for layer in layers:
        files = layer.values.pop("import", [])
        files = [files] if isinstance(files, str) else files
        if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
            raise UserError(f"{layer.origin}: import: is {files!r:.60}, expected a list of .py files")
        found += own_code.run(files, f"{layer.origin}: import")
        if layer.record:
            require_code(layer.record)
    return Layer("--import", {"import": list(dict.fromkeys(str(file.path) for file in found))} if found else {})


def parse_with_code(arguments: list[str], named: list[str], *layers: Layer) -> tuple[Layer, Layer]:
    """The settings among the words of the command line, and what `import_code` gives for them and `layers`.

    Own code runs first, since it may add settings, whose types decide how words are read.  In a sweep's trial W&B's
    echoes are left out.
    """

    def read() -> Layer:
        layer = parse_overrides(arguments)
        return without_echoes(layer) if in_trial() else layer

    code, overrides = import_code(named, *layers, read()), read()
    overrides.values.pop("import", None)
    return overrides, code


def parse_overrides(arguments: list[str]) -> Layer:
    """`--a.b=value`, `--a.b value`, `a.b=value` and a bare `--flag` -> nested values (the forms that W&B writes)."""
    values: dict[str, Any] = {}
    problems = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") and "=" not in word:
            problems.append(f"{word!r} is not understood; overrides look like --section.key=value")
            continue
        key, equals, text = word.removeprefix("--").partition("=")
        bare = not equals and (not rest or rest[0].startswith("--"))
        if not equals:
            text = "true" if bare else rest.pop(0)
        try:
            if key.count(".") >= MAX_NESTING:
                raise UserError(f"--{key[:80]}...: nested deeper than {MAX_NESTING} levels")
            if split := _split_by_the_shell(key, text, rest):
                del rest[: len(split)]
                whole = f"--{key}={shlex.quote(' '.join([text, *split]))}"
                raise UserError(f"--{key}: the shell split this value: quote it: {whole}")
            if bare and _is_text(_types_at(key.split("."))):
                raise UserError(f"--{key}: its value is missing: --{key}=TEXT")
            _assign(values, key.split("."), _value_of(key, text))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return Layer(COMMAND_LINE, values)


def _split_by_the_shell(key: str, text: str, rest: list[str]) -> list[str]:
    """The words of `rest` that seem to belong to `text`, which lacked quotes: none where it is whole.

    That is so if they are no settings, and `text` leaves a bracket open or its key takes text.
    """
    following = list(itertools.takewhile(lambda word: not word.startswith("--"), rest))
    is_open = any(text.count(left) > text.count(right) for left, right in ("[]", "{}"))
    strange = any("=" not in word or not _types_at(word.partition("=")[0].split(".")) for word in following)
    return following if strange and (is_open or _is_text(_types_at(key.split(".")))) else []


def _value_of(key: str, text: str) -> Any:
    """What the word `text` of the command line means for `key`: itself where that takes text, else it is YAML.

    Where text is wanted, quotes around all of it are taken off, and nothing, null and None stand for no value.
    """
    path = key.split(".")
    declared = _types_at(path)
    if declared and not _is_text(declared):
        return parse_yaml(text, f"--{key}", path)
    if text in ("", "null", "Null", "NULL", "None"):
        return None
    if UNSTORABLE.search(text):  # bytes of the command line that are not UTF-8, say
        raise UserError(f"--{key}: is {text[:60]!r}: not UTF-8 text")
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        try:
            return parse_yaml(text, f"--{key}")
        except UserError:  # quotes of two words, say
            return text
    return text


def _assign(values: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise UserError(f"--{'.'.join(path)}: {part!r} was already given as a plain value")
    values[path[-1]] = _merge(values.get(path[-1]), value)


def _merge(low: Any, high: Any) -> Any:
    """`high` over `low`: dicts key by key; `{'0': ...}` reaches into a list; everything else replaces."""
    if isinstance(low, dict) and isinstance(high, dict):
        return {**low, **{key: _merge(low.get(key), value) for key, value in high.items()}}
    if (
        isinstance(low, list)
        and isinstance(high, dict)
        and high
        and all(str(k).isdigit() and int(k) < len(low) for k in high)
    ):
        return [_merge(item, high[str(i)]) if str(i) in high else item for i, item in enumerate(low)]
    return high


# ------------------------------------------------------------------------------------- merging and validating


def without_echoes(layer: Layer) -> Layer:
    """A trial's arguments without the facts that a run's W&B configuration holds besides its settings.

    W&B may start a preempted trial again with the whole configuration that it has recorded.  Where no run has recorded
    any, such names are mistakes as everywhere.
    """
    if "data_fingerprint" not in layer.values:
        return layer
    facts = {*Config().flat(num_classes=0), "parameters", "data_fingerprint", "environment", "own_code", "import"}
    return Layer(layer.origin, {key: value for key, value in layer.values.items() if key not in facts})


def in_trial() -> bool:
    """Whether this process is the trial of a sweep, W&B's or a local one (`sweeps/run_local.py`)."""
    return "WANDB_SWEEP_ID" in os.environ or "KD_TRIAL" in os.environ


def prescribed_run_id() -> str | None:
    """The run id that a sweep prescribes for its trial, under which a trial that was interrupted goes on."""
    return os.environ.get("KD_TRIAL") or (os.environ.get("WANDB_RUN_ID") if in_trial() else None)


@dataclass
class Resolved:
    """A valid configuration and what the user should be told about how it came about."""

    config: Config
    notices: list[str] = field(default_factory=list)


def resolve(layers: list[Layer], *, in_sweep: bool | None = None) -> Resolved:
    """Merge layers (lowest first) and validate once.  UserError lists every mistake, one a line.

    A higher layer that changes `kd.type` drops the hyperparameters that the new type lacks, one that changes
    `model.name` the lower layers' `model.args`, with a notice.  In one layer such hyperparameters are mistakes, except
    in a sweep's trial, where they are dropped with a notice: one sweep may vary the method and every method's
    hyperparameters together.  A `name` stays, with a notice; only a trial drops one that says another method.
    """
    in_sweep = in_trial() if in_sweep is None else in_sweep
    merged: dict[str, Any] = {}
    notices: list[str] = []
    origins: dict[str, str] = {}
    for layer in layers:
        layer_kd = layer.values.get("kd")
        if isinstance(layer_kd, dict) and isinstance(merged.get("kd"), dict):
            new_type = layer_kd.get("type", merged["kd"].get("type"))
            if new_type != merged["kd"].get("type"):
                merged["kd"], dropped = _without_foreign_keys(merged["kd"], new_type)
                notices += [
                    f"kd.{key} dropped: {new_type!r} (from the {layer.origin}) has no such key" for key in dropped
                ]
                name, former = merged.get("name"), merged["kd"].get("type")
                if in_sweep and former and str(former) in str(name):  # else all methods would bear one's name
                    del merged["name"]
                    notices.append(f"name {name!r} dropped in this trial: kd.type is {new_type!r}")
                elif name is not None and "name" not in layer.values and not in_sweep:
                    notices.append(
                        f"name stays {name!r}, as {origins['name']} says, though kd.type is {new_type!r}; "
                        "--name=NAME gives another"
                    )
        layer_model, model = layer.values.get("model"), merged.get("model")
        if isinstance(layer_model, dict) and isinstance(model, dict) and model.get("args"):
            if layer_model.get("name", model.get("name")) != model.get("name"):
                merged["model"] = {key: value for key, value in model.items() if key != "args"}
                notices.append(f"model.args {model['args']} dropped: they were meant for {model.get('name')!r}")
        merged = _merge(merged, layer.values)
        origins.update({key: layer.origin for key in _dotted_keys(layer.values)})
    if in_sweep and isinstance(merged.get("kd"), dict):
        merged["kd"], dropped = _without_foreign_keys(merged["kd"], merged["kd"].get("type"))
        notices += [f"kd.{key} dropped in this trial: {merged['kd'].get('type')!r} has no such key" for key in dropped]
    merged.setdefault("kd", {})
    if isinstance(merged["kd"], dict):
        merged["kd"].setdefault("type", kd_methods.LABEL_ONLY)
    try:
        return Resolved(Config.model_validate(merged), notices)
    except ValidationError as error:
        lines = [_explain(problem, origins) for problem in error.errors()[:MAX_MISTAKES]]
        more = [f"and {error.error_count() - MAX_MISTAKES} more"] if error.error_count() > MAX_MISTAKES else []
        remedies = [remedy for layer in layers if layer.record and (remedy := import_remedy(layer.record))]
        kind = NotImported if remedies else UserError
        raise kind("\n".join([*dict.fromkeys(lines), *more, *remedies])) from None


class NotImported(UserError):
    """Settings that are not understood without code that no command has named."""


def _without_foreign_keys(kd: dict[str, Any], method: Any) -> tuple[dict[str, Any], list[str]]:
    """`kd` without the keys that only other methods have, and their names; a misspelt key stays, to be reported."""
    if method not in kd_methods.names():
        return kd, []
    own = set(kd_methods.config_class(method).model_fields)
    others = set().union(*(kd_methods.config_class(name).model_fields for name in kd_methods.names()))
    dropped = sorted(key for key in kd if key in others - own)
    return {key: value for key, value in kd.items() if key not in dropped}, dropped


def _dotted_keys(values: Any, prefix: str = "") -> Iterator[str]:
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield f"{prefix}{key}"
        yield from _dotted_keys(value, f"{prefix}{key}.")


USUAL_NAMES = {
    "lr": "learning_rate",
    "epochs": "max_epochs",
    "wd": "weight_decay",
    "workers": "num_workers",
    "T": "temperature",
}


def _nearest(given: Any, known: Any) -> str:
    word, names = str(given), [str(name) for name in known]
    if USUAL_NAMES.get(word) in names:
        return f", did you mean {USUAL_NAMES[word]!r}?"
    close = [name for name in names if name.startswith(f"{word}_")] or difflib.get_close_matches(
        word, names, n=1, cutoff=0.55
    )
    return f", did you mean {close[0]!r}?" if close else ""


def _all_keys(section: type[BaseModel] | None = None, prefix: str = "") -> Iterator[str]:
    """The full names of all settings, as the command line has them; of lists those of the first item."""
    section = section or Config
    for name, info in section.model_fields.items():
        if section is Config and name == "kd":
            inner: list[type[BaseModel]] = [kd_methods.config_class(method) for method in kd_methods.names()]
        else:
            inner = list(_sections_of(info.annotation))
        item = "0." if get_origin(info.annotation) is list else ""
        for one in inner:
            yield from _all_keys(one, f"{prefix}{name}.{item}")
        if not inner:
            yield f"{prefix}{name}"


def _elsewhere(key: str, origin: str, *, similar: bool = False) -> str:
    """The full names of settings that end in `key`, or in a `similar` word, as a suggestion; empty without such."""
    word, by_end = key.replace("-", "_"), dict[str, list[str]]()
    for name in sorted(dict.fromkeys(_all_keys()), key=lambda name: name.count(".")):
        by_end.setdefault(name.rpartition(".")[2], []).append(name)
    ends = difflib.get_close_matches(word, by_end, n=1, cutoff=0.8) if similar else [USUAL_NAMES.get(word, word)]
    dashes = "--" if origin == COMMAND_LINE else ""
    found = [f"{dashes}{name}" for end in ends for name in by_end.get(end, [])]
    return f", did you mean {' or '.join(found)}?" if found else ""


def _explain(problem: Any, origins: dict[str, str]) -> str:
    """One pydantic error -> 'origin: key: what is wrong; what is right'."""
    parts = [part for part in problem["loc"]]
    if parts[:1] == ["kd"] and len(parts) > 1 and parts[1] in kd_methods.names():
        del parts[1]  # the tag of the discriminated union
    # a union's branch (int, float, ...) shows up as a last part that is no key
    while (
        parts
        and isinstance(parts[-1], str)
        and parts[-1] in ("int", "float", "str", "bool", "list[int]", "constrained-int")
    ):
        parts.pop()
    dotted = ".".join(str(part) for part in parts)
    key = re.sub(r"\.(\d+)", r"[\1]", dotted)
    if not key:  # a check over several sections
        return problem["msg"].removeprefix("Value error, ")
    origin = next(
        (
            origins[".".join(dotted.split(".")[:n])]
            for n in range(len(parts), 0, -1)
            if ".".join(dotted.split(".")[:n]) in origins
        ),
        "defaults",
    )
    given, kind, context = problem.get("input"), problem["type"], problem.get("ctx", {})
    shown = repr(given) if len(repr(given)) < 80 else f"{repr(given)[:77]}..."
    if kind == "extra_forbidden":
        known = _known_keys(parts[:-1])
        word, hint = str(parts[-1]), ""
        if parts[0] != "teachers" and not isinstance(given, dict):
            hint = _elsewhere(word, origin)
        hint = hint or _nearest(word, known) or (_elsewhere(word, origin, similar=True) if len(parts) == 1 else "")
        text = f"unknown key{hint or '; known here: ' + ', '.join(sorted(known))}"
        if parts[:1] == ["kd"] and len(parts) == 2:
            owners = [n for n in kd_methods.names() if parts[1] in kd_methods.config_class(n).model_fields]
            text = f"belongs to {', '.join(owners)}, not to this kd.type" if owners else text
    elif kind == "union_tag_invalid":
        tag, known = context["tag"].strip("'"), kd_methods.names()
        return f"{origin}: kd.type: unknown method {tag!r}{_nearest(tag, known)} (known: {', '.join(known)})"
    elif kind == "literal_error":
        allowed = re.findall("'(.*?)'", context["expected"])
        text = f"is {shown}, allowed: {context['expected']}{_nearest(given, allowed)}"
    elif kind == "list_type":
        item = "{key: value}" if parts[:1] == ["teachers"] else "a, b"
        text = f"is {shown}, but is a list, such as {key}: [{item}]"
    elif kind in ("model_type", "model_attributes_type", "dict_type"):
        text = f"is {shown}, but is a section: give keys below it, such as {key}: {{key: value}}"
        if origin == COMMAND_LINE and isinstance(given, str) and ":" in given:  # it takes {a:1,b:2} apart
            text = f"is {shown}: the shell split this value: quote it, with a space after each colon"
    elif kind in ("value_error", "assertion_error"):
        text = problem["msg"].removeprefix("Value error, ")
    else:
        text = f"is {shown}: {problem['msg'][0].lower()}{problem['msg'][1:]}"
    return f"{origin}: {key}: {text}"


def _known_keys(path: list[Any]) -> list[str]:
    """Names of the keys allowed in the section at `path`."""
    section: Any = Config
    for part in path:
        if isinstance(part, int):
            continue
        if part == "kd" and section is Config:
            own = {
                name: info for n in kd_methods.names() for name, info in kd_methods.config_class(n).model_fields.items()
            }
            nested = next(_sections_of(own[path[1]].annotation), None) if len(path) > 1 and path[1] in own else None
            return list(nested.model_fields) if nested else sorted(own)
        section = next(iter(_sections_of(section.model_fields[part].annotation)), None) if section else None
    return [info.alias or name for name, info in section.model_fields.items()] if section else []


def _sections_of(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections_of(inner)


# ------------------------------------------------------------------------------------------------------- help


def describe_keys() -> str:
    """Every key with type, default and meaning: the second half of `--help`."""
    lines = ["settings, as --key=type [default]; without --config the values of configs/quickstart.yaml come first:"]
    grown = {"data.source": _sources, "kd.loss": kd_methods.losses}  # choices to which own code may have added

    def show(prefix: str, section: type[BaseModel], skip: tuple[str, ...] = ()) -> None:
        for name, info in section.model_fields.items():
            if name in skip:
                continue
            nested = next(_sections_of(info.annotation), None)
            if nested and name != "kd":
                show(
                    f"{prefix}{name}[i]." if get_origin(info.annotation) is list else f"{prefix}{name}.",
                    nested,
                )
            elif not nested:
                default = "required" if info.is_required() else _plain(info.get_default(call_default_factory=True))
                kind = "|".join(grown[prefix + name]()) if prefix + name in grown else _type_name(info.annotation)
                lines.append(f"  --{prefix}{name}={kind}  [{default}]\n        {info.description or ''}")

    for key, info in Config.model_fields.items():
        name = info.alias or key
        lines.append(f"\n{name}:" if next(_sections_of(info.annotation), None) else "")
        if name == "kd":
            lines.append(
                f"  --kd.type={'|'.join(kd_methods.names())}  [{kd_methods.LABEL_ONLY}]\n"
                "        the method; see docs/methods.md"
            )
            for method in kd_methods.names():
                lines.append(f"  kd.type={method}:")
                show("kd.", kd_methods.config_class(method), skip=("type",))
        elif nested := next(_sections_of(info.annotation), None):
            show(f"{name}[i]." if get_origin(info.annotation) is list else f"{name}.", nested)
        else:
            lines.append(
                f"  --{name}={_type_name(info.annotation)}  [{_plain(info.get_default())}]\n        {info.description}"
            )
    return "\n".join(line for line in lines if line)


def _plain(value: Any) -> str:
    return json.dumps(value) if not isinstance(value, BaseModel) else "see below"


def _type_name(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Literal:
        return "|".join(str(option) for option in get_args(annotation))
    if origin in (Union, types.UnionType):
        return "|".join(_type_name(option) for option in get_args(annotation))
    if annotation is type(None):
        return "null"
    if origin is not None:
        return str(annotation).replace("typing.", "")
    return getattr(annotation, "__name__", str(annotation))
