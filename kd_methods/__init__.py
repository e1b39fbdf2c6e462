"""Multi-teacher knowledge distillation losses: one file per method, in plain PyTorch.

    method = kd_methods.build({"type": "dynamic", "temperature": 4.0})
    teacher_logits = torch.stack([teacher(x) for teacher in teachers])
    loss, metrics = method(StudentOutput(student(x)), TeacherOutputs(teacher_logits), labels)

A method is a file of this folder without a leading underscore, holding `Config` and `Method`, or what `add` was given.
Logit losses are files of `logit_losses/` in the same way. The package needs torch, pydantic, and of this project
kd_core/errors.py alone, which imports nothing but the standard library.
"""

import functools
import importlib
import inspect
import operator
import pkgutil
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import BaseModel, Field, ValidationError

from kd_core.errors import did_you_mean
from kd_methods import feature_losses
from kd_methods._base import KDMethod, Metrics, StudentOutput, TeacherOutputs, common_metrics
from kd_methods._config import LogitConfig, MethodConfig
from kd_methods._torch import Tensor
from kd_methods.logit_losses import LogitLoss
from kd_methods.logit_losses import add as add_loss
from kd_methods.logit_losses import names as losses

__all__ = [
    "LABEL_ONLY", "TRY_NEXT", "AnyConfig", "KDMethod", "LogitConfig", "LogitLoss", "MethodConfig", "Metrics",
    "StudentOutput", "TeacherOutputs", "add", "add_loss", "build", "common_metrics", "config_class", "losses", "names",
]  # fmt: skip

LABEL_ONLY = "baseline"  # the method without teachers
TRY_NEXT = ("dynamic", "confidence")  # methods to suggest to who has tried one

_added: dict[str, Any] = {}


def names() -> list[str]:
    """Names of all methods, sorted: the files of this folder, and those that were added."""
    return sorted([*_files(tuple(__path__)), *_added])


@functools.cache
def _files(folders: tuple[str, ...]) -> list[str]:
    files = [module.name for module in pkgutil.iter_modules(folders) if not module.ispkg]
    return [name for name in files if not name.startswith("_")]


def add(name: str, module: Any) -> None:
    """Make `module`, anything that holds the classes `Config` and `Method`, the method `name`.

    Raises ValueError that says what is wrong: a name that is taken, or classes that are not a method's.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise ValueError(f"method {name!r}: a name consists of lower-case letters, digits and _")
    if name in names():
        raise ValueError(f"method {name!r}: there is one of this name already; choose another name")
    config, method = getattr(module, "Config", None), getattr(module, "Method", None)
    if not (isinstance(config, type) and issubclass(config, MethodConfig)):
        raise ValueError(f"method {name!r}: needs a class Config, derived from kd_methods.LogitConfig or MethodConfig")
    if not (isinstance(method, type) and issubclass(method, KDMethod)):
        raise ValueError(f"method {name!r}: needs a class Method, derived from kd_methods.KDMethod")
    kind, wanted = config.model_fields["type"], cast(Any, Literal)[name]
    if kind.annotation != wanted or kind.default != name:
        raise ValueError(f'method {name!r}: its Config needs the line: type: Literal["{name}"] = "{name}"')
    if required := [key for key, info in config.model_fields.items() if info.is_required()]:
        raise ValueError(f"method {name!r}: Config.{required[0]} needs a default")
    for function in ("compute", "describe"):
        if getattr(method, function) is getattr(KDMethod, function):
            raise ValueError(f"method {name!r}: its Method needs a function {function}")
    _added[name] = module


def config_class(name: str) -> type[MethodConfig]:
    """The config class of a method. Raises ValueError, with the nearest name, if there is no such method."""
    return _module(name).Config


def build(
    config: Mapping[str, Any] | MethodConfig,
    *,
    num_classes: int | None = None,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    unlabeled: bool = False,
    student_shapes: list[Any] | None = None,
    teacher_shapes: list[list[Any]] | None = None,
    train_labels: Any = None,
    teacher_errors: Tensor | None = None,
    seed: int = 0,
) -> KDMethod:
    """The method that `config` describes: {"type": name, **hyperparameters}, or a config object.

    num_classes: if given, logits with another number of classes are refused. label_smoothing, in [0,1), applies
    to the label cross-entropy, not to the teachers' confidences. class_weights [C]: factors of the classes in the label
    cross-entropy. unlabeled: labels of -1 stand for none; such images have no label term, which is the mean over the
    others. student_shapes, and teacher_shapes of each teacher: of one image's features at the places that `features`
    names, (C,H,W), (N,D) or (D,). train_labels int64 [N]: the label of each row of the training split, for losses that
    draw negatives. teacher_errors [K,N], bool or float: how wrong each teacher is on each of N validation images, for
    methods that weight teachers by it. seed: of methods and losses that draw random numbers. Raises
    ValueError that names every wrong key.
    """
    if not isinstance(config, MethodConfig):
        cls = config_class(config.get("type", ""))
        try:
            config = cls.model_validate(dict(config))
        except ValidationError as error:
            raise ValueError(_explain(error, cls)) from None
    more: dict[str, Any] = {"num_classes": num_classes, "label_smoothing": label_smoothing}
    if config.type not in _added:  # a method of the user's own may have its own __init__
        more |= {"seed": seed, "teacher_errors": teacher_errors}
    if getattr(config, "features", []):
        more |= {"student_shapes": student_shapes, "teacher_shapes": teacher_shapes, "train_labels": train_labels}
        more["seed"] = seed
    if class_weights is not None:
        if class_weights.ndim != 1 or len(class_weights) != (num_classes or len(class_weights)):
            raise ValueError(f"class_weights: have shape {tuple(class_weights.shape)}; must be [{num_classes}]")
        more["class_weights"] = class_weights
    if unlabeled:
        more["unlabeled"] = True
    method = _module(config.type).Method
    _require_taken(config.type, method, more)
    return method(config, **more)


def _require_taken(name: str, method: type[KDMethod], given: Mapping[str, Any]) -> None:
    """ValueError unless the method's __init__ takes the keywords `given`; one of the user's own may take fewer."""
    taken = inspect.signature(method).parameters
    lacking = [key for key in given if key not in taken]
    if lacking and not any(one.kind is one.VAR_KEYWORD for one in taken.values()):
        raise ValueError(
            f"kd.type {name!r}: its __init__ does not take {', '.join(lacking)}, which these settings give it; let it "
            "accept **more and hand that on to super().__init__"
        )


def _module(name: str) -> Any:
    if name in _added:
        return _added[name]
    if name not in names():
        known = ", ".join(names())
        raise ValueError(f"kd.type: {name!r} is not a method{did_you_mean(name, names())}; methods: {known}")
    return importlib.import_module(f"{__name__}.{name}")


def _explain(error: ValidationError, cls: type[MethodConfig]) -> str:
    """One line for each mistake: key, value, and what would be right."""
    lines = dict[str, str]()  # by key: a value that fits no branch of a union is reported once for each branch
    for mistake in error.errors():
        path = list(mistake["loc"])
        entry = feature_losses.explain(path, mistake)
        if entry is not None:
            path, text = entry
        elif mistake["type"] == "extra_forbidden":
            owner: type[BaseModel] = cls
            for part in path[:-1]:
                owner = cast(type[BaseModel], owner.model_fields[str(part)].annotation)
            known = list(owner.model_fields)
            text = f"unknown key{did_you_mean(path[-1], known)}; keys: {', '.join(known)}"
        elif mistake["type"] == "value_error":
            text = str(mistake["ctx"]["error"])
        else:
            text = f"{mistake['input']!r} is wrong: {mistake['msg']}"
        key = "kd" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
        lines.setdefault(key, f"{key}: {text}")
    return "\n".join(lines.values())


if TYPE_CHECKING:
    AnyConfig = MethodConfig
else:

    def __getattr__(name: str) -> Any:
        """`AnyConfig`: a pydantic field of this type picks the config class by `type`, of the methods there are now."""
        if name != "AnyConfig":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return Annotated[
            functools.reduce(operator.or_, [config_class(name) for name in names()]), Field(discriminator="type")
        ]
