"""Settings of methods: the base classes of their Config."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    SerializerFunctionWrapHandler,
    create_model,
    model_serializer,
)

from kd_methods import logit_losses
from kd_methods.logit_losses._base import LossConfig

# In the digests of runs from before sections that say nothing were left out.
ALWAYS_RECORDED = ("dist", "dkd")

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
    """Hyperparameters of one method. Unknown keys and values of the wrong type are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    balance: ClassVar[tuple[str, ...]] = ()  # settings that shift weight between label and distillation term

    type: str

    @property
    def instead_of_errors(self) -> str | None:
        """What could be given in place of the teachers' errors on validation images; None if nobody needs those."""
        return None

    def check_teachers(self, num_teachers: int) -> None:
        """Raises ValueError that names the key whose value does not fit so many teachers."""


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

    @property
    def loss_config(self) -> LossConfig | None:
        """The parameters of the logit loss in use; None for a loss that was added, which has none."""
        if self.loss not in logit_losses.OWN:
            return None
        config = logit_losses.config_class(self.loss)
        return getattr(self, self.loss) if config.model_fields else config()

    def describe_loss(self) -> str:
        """The logit loss in words, with its numbers."""
        conditions = f"at T={self.temperature:g}" + " on standardized logits" * self.standardize
        config = self.loss_config
        return config.describe(conditions) if config else f"loss {self.loss} {conditions}"

    @model_serializer(mode="wrap")
    def _without_unused_sections(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """All settings but the parameters of losses that are not in use and were not changed: they say nothing.

        So a loss that is added leaves the settings and digests of all other runs as they were.
        """
        values = serialize(self)
        for name in set(logit_losses.OWN) & values.keys() - {self.loss, *ALWAYS_RECORDED}:
            if getattr(self, name) == type(self).model_fields[name].default:
                del values[name]
        return values
