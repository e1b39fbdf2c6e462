"""The command line's `--help`: every setting with type, default and meaning."""

from __future__ import annotations

import json
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

import kd_methods
from kd_core.config import registry
from kd_core.config.keys import sections_of
from kd_core.config.schema import Config
from kd_methods import feature_losses
from kd_methods._config import LogitConfig


def describe_keys() -> str:
    """Every key with type, default and meaning: the second half of `--help`."""
    lines = ["settings, as --key=type [default]; without --config the values of configs/quickstart.yaml come first:"]
    grown = {"data.source": registry.sources, "kd.loss": kd_methods.losses}  # choices to which own code may have added

    def show(prefix: str, section: type[BaseModel], skip: tuple[str, ...] = ()) -> None:
        for name, info in section.model_fields.items():
            if name in skip:
                continue
            nested = next(sections_of(info.annotation), None)
            if nested and info.default is None:  # off unless it is given
                about = info.description or ""
                same = issubclass(section, nested)
                about += f"; the keys of {prefix.removesuffix('.')}" if same else "; {}: on, with the defaults below"
                lines.append(f"  --{prefix}{name}={{...}}|null  [null]\n        {about}")
                if same:
                    continue
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
        lines.append(f"\n{name}:" if next(sections_of(info.annotation), None) else "")
        if name == "kd":
            lines.append(
                f"  --kd.type={'|'.join(kd_methods.names())}  [{kd_methods.LABEL_ONLY}]\n"
                "        the method; see docs/methods.md"
            )
            lines.append("  kd.type with teachers, unless it says otherwise below:")
            show("kd.", LogitConfig, skip=("type", "features"))
            for method in kd_methods.names():
                lines.append(f"  kd.type={method}:")
                own = kd_methods.config_class(method)
                show("kd.", own, skip=("type", "features", *_said(own, LogitConfig)))
            losses = feature_losses.names()
            lines.append(
                "  kd.features, for every kd.type with teachers, a list such as "
                "--kd.features='[{loss: at, weight: 500}, {loss: rkd}]':\n"
                f"  kd.features[i].loss={'|'.join(losses)}"
            )
            show("kd.features[i].", feature_losses.FeatureConfig, skip=("loss",))
            for loss in losses:
                lines.append(f"  kd.features[i].loss={loss}:")
                own_entry = feature_losses.config_class(loss)
                show("kd.features[i].", own_entry, skip=("loss", *_said(own_entry, feature_losses.FeatureConfig)))
        elif nested := next(sections_of(info.annotation), None):
            show(f"{name}[i]." if get_origin(info.annotation) is list else f"{name}.", nested)
        else:
            lines.append(
                f"  --{name}={_type_name(info.annotation)}  [{_plain(info.get_default())}]\n        {info.description}"
            )
    return "\n".join(line for line in lines if line)


def _said(section: type[BaseModel], base: type[BaseModel]) -> list[str]:
    """The settings that are described by the same lines in `base`, which is shown already."""

    def facts(info: FieldInfo | None) -> Any:
        return info and (info.annotation, info.default, info.description)

    return [name for name, info in section.model_fields.items() if facts(info) == facts(base.model_fields.get(name))]


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
    if origin is Annotated:
        return _type_name(get_args(annotation)[0])
    if origin is list:
        return f"list[{_type_name(get_args(annotation)[0])}]"
    if origin is not None:
        return str(annotation).replace("typing.", "")
    return getattr(annotation, "__name__", str(annotation))
