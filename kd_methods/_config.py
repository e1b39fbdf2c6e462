"""Settings of methods: the base classes of their Config."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PlainSerializer,
    PlainValidator,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    create_model,
    model_serializer,
    model_validator,
)

from kd_methods import _schedule, logit_losses
from kd_methods._schedule import Path, Schedule
from kd_methods.feature_losses import AnyEntry
from kd_methods.logit_losses._base import LossConfig, UseOfSecondView

# In the digests of runs from before sections that say nothing were left out.
ALWAYS_RECORDED = ("dist", "dkd")
# Temperatures that settings state without meaning them: the default, and 1 for none.
STATED = (4.0, 1.0)
# Not in those digests: left out while they have their defaults.
SWITCHES = ("norm_temperature", "entropy_weight", "correct_labels", "teacher_temperatures")

if TYPE_CHECKING:
    LossName = str
else:
    LossName = Literal[logit_losses.OWN]

Scope = Annotated[
    Literal["batch", "sample"],
    Field(
        description="batch: per-sample weights, gates and alphas are averaged over the batch before use, "
        "as in the original experiments; sample: each sample keeps its own"
    ),
]
SCOPE_WORDS = {"batch": "batch-mean", "sample": "per-sample"}


class MethodConfig(BaseModel):
    """Hyperparameters of one method. Unknown keys and values of the wrong type are errors.

    A number may be given as a schedule over training: `{from: 4, to: 1, shape: cosine}`. Its field then holds the value
    at the start, and `at` gives the settings at any point.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    balance: ClassVar[tuple[str, ...]] = ()  # settings that shift weight between label and distillation term
    constant: ClassVar[tuple[str, ...]] = ()  # numbers that cannot change over training
    # Whether the method itself, apart from its label term, needs the label of every image.
    uses_labels: ClassVar[bool] = True

    type: str
    _schedules: dict[Path, Schedule] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _with_schedules(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Settings whose schedules keep all bounds at both ends, and so between them."""
        found = _schedule.find(values, cls)
        if not found:
            return handler(values)
        start, end = values, values
        for path, given in found.items():
            start, end = _schedule.put(start, path, given["from"]), _schedule.put(end, path, given["to"])
        config, last = handler(start), cls.model_validate(end)  # the latter with the checks of subclasses
        config.check_schedules(found)
        config._schedules = {
            path: Schedule(_schedule.get(config, path), _schedule.get(last, path), given.get("shape", "linear"))
            for path, given in found.items()
        }
        return config

    def check_schedules(self, paths: Iterable[Path]) -> None:
        """Raises ValueError that names a schedule which would have no effect."""

    @property
    def is_scheduled(self) -> bool:
        """Whether a setting changes over training."""
        return bool(self._schedules)

    def at(self, progress: float) -> Self:
        """The settings as plain numbers at `progress`, the fraction of training done."""
        if not self._schedules:
            return self
        return _schedule.put_all(self, {path: schedule.at(progress) for path, schedule in self._schedules.items()})

    def without_features(self) -> Self:
        """The settings of the part of the loss that needs logits alone: what validation and reports use."""
        if not getattr(self, "features", []):
            return self
        found = self.model_copy(update={"features": []})
        found._schedules = {path: one for path, one in self._schedules.items() if path[0] != "features"}
        return found

    def in_words(self) -> Self:
        """The settings with schedules in place of their numbers, to be formatted."""
        return _schedule.put_all(self, self._schedules)

    @model_serializer(mode="wrap")
    def _recorded(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """All settings but those in `left_out`, and schedules as they were given."""
        values: dict[str, Any] = serialize(self)
        for name in self.left_out() & values.keys() - {path[0] for path in self._schedules}:
            del values[name]
        for path, schedule in self._schedules.items():
            values = _schedule.put(values, path, schedule.given())
        return values

    def left_out(self) -> set[str]:
        """Settings that are not recorded, which keeps the digests of runs from before there were such settings."""
        return set()

    @property
    def instead_of_errors(self) -> str | None:
        """What could be given in place of the teachers' errors on validation images; None if nobody needs those."""
        return None

    def needing_labels(self) -> list[str]:
        """The settings that need the label of every image, in words; the label term alone can do without some."""
        return [f"kd.type {self.type!r}"] if self.uses_labels else []

    @property
    def second_view(self) -> UseOfSecondView:
        """Whether the loss has a part on a second view of the images: StudentOutput.second, TeacherOutputs.second.

        "required": training has to give it. "optional": the loss is that of one view without it. "unused": giving it
        is an error.
        """
        return "unused"

    def check_teachers(self, num_teachers: int) -> None:
        """Raises ValueError that names the key whose value does not fit so many teachers."""

    def check_run(self, num_teachers: int) -> None:
        """Raises ValueError where training with so many teachers is pointless, or `check_teachers` does."""
        self.check_teachers(num_teachers)


AnyClass = TypeVar("AnyClass", bound=type[BaseModel])


def with_sections(cls: AnyClass) -> AnyClass:
    """`cls` with a section of settings for each logit loss that has parameters: the field NAME of its Config."""
    configs = {name: logit_losses.config_class(name) for name in logit_losses.OWN}
    sections: dict[str, Any] = {
        name: (config, Field(default=config(), description=f"parameters of loss {name}"))
        for name, config in configs.items()
        if config.model_fields
    }
    made = create_model(cls.__name__, __base__=cls, __module__=cls.__module__, __doc__=cls.__doc__, **sections)
    return cast(AnyClass, made)


@with_sections
class LogitConfig(MethodConfig):
    """Hyperparameters of a method that distills logits: the temperature, the logit loss and its parameters."""

    temperature: float = Field(default=4.0, gt=0, description="softens the logits in the logit loss, never in weights")
    loss: Annotated[LossName, PlainValidator(logit_losses.check_name), PlainSerializer(str)] = Field(
        default="kd", description="the logit loss to each teacher"
    )
    standardize: bool = Field(default=False, description="standardize logits over classes before the logit loss")
    features: list[AnyEntry] = Field(default=[], description="feature losses, which are added to the loss")
    norm_temperature: bool = Field(
        default=False,
        description="temperature times each logits' standard deviation over classes (NormKD)",
    )
    entropy_weight: bool = Field(
        default=False, description="weight each sample by the entropies of teacher and student (EA-KD)"
    )
    correct_labels: Literal["none", "swap", "raise"] = Field(
        default="none",
        description="where a teacher is wrong: swap its top logit and the label's, or raise the label's to the top",
    )
    teacher_temperatures: list[Annotated[float, Field(gt=0)]] | None = Field(
        default=None, min_length=1, description="one temperature per teacher, in place of temperature"
    )

    @model_validator(mode="after")
    def _temperatures_are_used(self) -> "LogitConfig":
        if self.standardize and self.norm_temperature:
            raise ValueError("standardize and norm_temperature both divide logits by their deviation; choose one")
        temperatures = self.teacher_temperatures
        if temperatures and "temperature" in self.model_fields_set and self.temperature not in STATED:
            raise ValueError(f"temperature: {self.temperature:g} and teacher_temperatures exclude each other; set one")
        if not self.uses_temperature and (temperatures or self.temperature not in STATED):
            own = ", ".join(f"{self.loss}.{name}" for name in logit_losses.config_class(self.loss).model_fields)
            key, value = ("teacher_temperatures", temperatures) if temperatures else ("temperature", self.temperature)
            raise ValueError(
                f"{key}: is {value}, but loss {self.loss!r} has no temperature, only its own settings ({own}); "
                "leave it out"
            )
        return self

    def check_schedules(self, paths: Iterable[Path]) -> None:
        super().check_schedules(paths)
        if ("temperature",) in paths and (self.teacher_temperatures or not self.uses_temperature):
            reason = "teacher_temperatures" if self.teacher_temperatures else f"loss {self.loss!r}"
            raise ValueError(f"temperature: changes over training and has no effect beside {reason}; leave it out")

    def check_teachers(self, num_teachers: int) -> None:
        super().check_teachers(num_teachers)
        if (given := self.teacher_temperatures) and len(given) != num_teachers:
            raise ValueError(f"kd.teacher_temperatures: gives {len(given)}, but there are {num_teachers} teacher(s)")

    def temperature_of(self, teacher: int) -> float:
        """The temperature of the logit loss to teacher number `teacher`; 1 for a loss that has none."""
        if not self.uses_temperature:
            return 1.0
        return self.teacher_temperatures[teacher] if self.teacher_temperatures else self.temperature

    @property
    def uses_temperature(self) -> bool:
        """Whether the logit loss has a temperature."""
        config = self.loss_config
        return config is None or config.uses_temperature

    def needing_labels(self) -> list[str]:
        config = self.loss_config  # of a loss that was added nothing is known
        entries = [
            f"kd.features[{number}], loss {entry.loss!r}"
            for number, entry in enumerate(self.features)
            if entry.uses_labels
        ]
        return [
            *super().needing_labels(),
            *([f"kd.loss {self.loss!r}"] if config is None or config.uses_labels else []),
            *([f"kd.correct_labels {self.correct_labels!r}"] if self.correct_labels != "none" else []),
            *entries,
        ]

    @property
    def second_view(self) -> UseOfSecondView:
        config = self.loss_config
        return config.second_view if config else "unused"

    @property
    def loss_config(self) -> LossConfig | None:
        """The parameters of the logit loss in use; None for a loss that was added, which has none."""
        if self.loss not in logit_losses.OWN:
            return None
        config = logit_losses.config_class(self.loss)
        return getattr(self, self.loss) if config.model_fields else config()

    def describe_loss(self) -> str:
        """The logit loss in words, with its numbers."""
        config = self.loss_config
        temperatures = ", ".join(f"{value:g}" for value in self.teacher_temperatures or [self.temperature])
        conditions = [
            (self.uses_temperature, f"at T={temperatures}"),
            (self.norm_temperature, "times the deviation of the logits"),
            (self.standardize, "on standardized logits"),
            (self.correct_labels == "swap", "with wrong top classes of teachers swapped with the label"),
            (self.correct_labels == "raise", "with labels raised to the top of teachers"),
            (self.entropy_weight, "weighted by entropies"),
        ]
        said = " ".join(words for holds, words in conditions if holds)
        return config.describe(said) if config else f"loss {self.loss} {said}"

    def left_out(self) -> set[str]:
        """Switches that are off, and parameters of losses that are not in use and were not changed.

        So a loss or a switch that is added leaves the settings and digests of all other runs as they were.
        """
        fields = type(self).model_fields
        names = {*logit_losses.OWN, *SWITCHES, "features"} & fields.keys() - {self.loss, *ALWAYS_RECORDED}
        return {name for name in names if getattr(self, name) == fields[name].default}
