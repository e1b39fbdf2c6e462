"""Models by name: build them, describe their input, export them in timm's format, and load exports."""

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import safetensors.torch
import timm
import torch
from huggingface_hub.errors import HfHubHTTPError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from timm.models import get_deprecated_models, get_pretrained_cfg, load_model_config_from_hf, split_model_name_tag
from torch import nn

import kd_core.zoo  # noqa: F401  (registers the cifar_ networks)
from kd_core.config import import_remedy, own_code
from kd_core.data.preprocess import Preprocess, preprocess_of, resize_side
from kd_core.errors import UserError, first_line, near_names, suggestion
from kd_core.files import json_text, read_json, replacing_folder
from kd_core.models import interface
from kd_core.models.weights import check_strict, load_strict, read_state_dict
from kd_core.zoo.cifar_stem import FAMILIES, PREFIX

__all__ = [
    "LoadedModel",
    "Preprocess",
    "architecture",
    "count_parameters",
    "create_model",
    "export",
    "export_size",
    "input_size",
    "load_export",
    "preprocess_of",
]

timm.models.set_pretrained_check_hash(True)  # names of timm's files contain their digests
HUB = "hf-hub:"
MAX_SIDE = 2048  # pixels; larger input sizes in exports are refused
# Arguments of timm's factory that choose weights or build something else than a classifier.
RESERVED = {
    "cache_dir", "checkpoint_path", "device", "dtype", "exportable", "feature_cfg", "feature_cls",
    "features_only", "kwargs_filter", "model_cfg", "model_name", "no_jit", "num_classes", "out_indices",
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_filter_fn", "pretrained_model_args",
    "pretrained_strict", "pruned", "scriptable",
}  # fmt: skip


def create_model(
    name: str,
    *,
    num_classes: int,
    img_size: int | None = None,
    stem: str = "default",
    pretrained: bool = False,
    args: dict[str, Any] | None = None,
    where: str = "model",
) -> nn.Module:
    """A timm classifier: images [B,3,h,w], normalized as in `preprocess_of`, to logits [B,num_classes].

    Args:
        name: any timm name, with or without a pretrained tag, old names and the `cifar_*` names included, or
            `hf-hub:org/name`.
        img_size: side of the input. It goes to models that are built for one size (vision transformers and
            the like); for the others it is only the size of the view.
        stem: "cifar" takes the variant `cifar_stem_<name>` for 32-pixel images.
        pretrained: start from timm's weights. If they have another number of classes, timm drops their
            classifier and the new one is random; all else is loaded strictly.
        args: further arguments of `timm.create_model` (patch size, drop path, ...).
        where: begins every message.

    Raises:
        UserError: unknown name, arguments that the model rejects, no pretrained weights, Hub unreachable.
    """
    args = dict(args or {})
    if reserved := sorted(args.keys() & RESERVED):
        raise UserError(f"{where} {name!r}: args.{reserved[0]} is not an argument of the network")
    name = current_name(name, where)
    hub = name.startswith(HUB)
    if hub and stem == "cifar":
        raise UserError(f"{where} {name!r}: a model of the Hub has no cifar stem")
    registered = name if hub or stem == "default" else architecture(name, stem, where)
    cfg = _pretrained_cfg(registered, where)
    if pretrained and not hub and not _has_weights(registered):
        raise UserError(f"{where} {registered!r}: has no pretrained weights; leave pretrained out or name a file")
    if img_size is not None and "img_size" in args and args["img_size"] != img_size:
        raise UserError(f"{where} {name!r}: img_size is {img_size} but args.img_size is {args['img_size']}")
    if img_size is not None and cfg.get("fixed_input_size"):
        args["img_size"] = img_size
    if own := own_code.provider(own_code.NETWORK, registered):
        return _own_model(own, registered, cfg, num_classes, img_size or args.get("img_size"), pretrained, args, where)
    try:
        model: Any = timm.create_model(registered, pretrained=pretrained, num_classes=num_classes, **args)
    except (OSError, HfHubHTTPError) as error:
        raise UserError(f"{where} {name!r}: pretrained weights cannot be fetched: {first_line(error, 200)}") from error
    except Exception as error:
        if not args and not hub:
            raise  # no input of the user can be the cause
        given = ", ".join(f"{key}={value!r}" for key, value in args.items())
        raise UserError(
            f"{where} {name!r}: rejected the arguments ({given}): {type(error).__name__}: {first_line(error, 200)}"
        ) from error
    side = img_size or args.get("img_size")
    if side is not None:
        # Only the size changes; preprocess_of and export read it from this configuration.
        height, width = (side, side) if isinstance(side, int) else side
        channels = model.pretrained_cfg["input_size"][0]
        model.pretrained_cfg = model.default_cfg = model.pretrained_cfg | {"input_size": (channels, height, width)}
    return model


def current_name(name: str, where: str = "model") -> str:
    """timm's current name of a network: `tv_resnet50` is "resnet50.tv_in1k"; current names stay.

    timm builds networks by old names, but has no configuration (input size and so on) under them.

    Raises:
        UserError: timm has removed it.
    """
    base, tag = split_model_name_tag(name)
    renamed = get_deprecated_models()
    if name.startswith(HUB) or base not in renamed:
        return name
    current = renamed[base]
    if current is None:
        raise UserError(f"{where}: timm has removed the model {base!r} and has none in its place")
    return f"{split_model_name_tag(current)[0]}.{tag}" if tag else current


def renamed_note(name: str, where: str) -> str | None:
    """One line about an old name of timm's, None for all others."""
    current = current_name(name, where)
    return None if current == name else f"{where}: timm calls {name!r} {current!r} today, and that is used"


def _own_model(
    file: own_code.File,
    name: str,
    cfg: dict[str, Any],
    num_classes: int,
    img_size: int | None,
    pretrained: bool,
    args: dict[str, Any],
    where: str,
) -> nn.Module:
    """A network registered by a user's file; any nn.Module that returns logits will do."""
    base, _ = split_model_name_tag(name)
    entry = timm.models.model_entrypoint(base)
    who = f"{where} {name!r} ({file.path.name})"
    try:
        inspect.signature(entry).bind(
            pretrained=pretrained, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None,
            num_classes=num_classes, **args,
        )  # fmt: skip
    except TypeError as error:
        raise UserError(
            f"{who}: cannot be called: {error}; right is: def {base}(pretrained=False, num_classes=10, **kwargs)"
        ) from None
    try:
        model: Any = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **args)
    except Exception as error:
        raise UserError(f"{who}: cannot be built: {own_code.told(error)}") from error
    interface.require_module(model, who)
    own = getattr(model, "pretrained_cfg", None)
    side = img_size or (own or cfg).get("input_size", (None,))[-1]
    if side is None:
        raise _no_size(name, where)
    channels = (own or cfg).get("input_size", (3,))[0]
    described = {"architecture": base, **(own or cfg), "input_size": (channels, side, side)}
    model.pretrained_cfg = model.default_cfg = described
    interface.check_network(model, channels, side, num_classes, who)
    return model


def _no_size(name: str, where: str) -> UserError:
    return UserError(f"{where} {name!r}: has no pretrained_cfg with its input size; set img_size beside it")


def architecture(name: str, stem: str = "default", where: str = "model") -> str:
    """The registered name: `resnet18.a1_in1k` is "resnet18", with `stem` "cifar" "cifar_stem_resnet18".

    Names that begin with `cifar_` are made for 32 pixels already and stay. `hf-hub:` names are looked up
    there.

    Raises:
        UserError: unknown name, or a family without a CIFAR stem.
    """
    if name.startswith(HUB):
        name = _hub_config(name, where)[1]
    base, _ = split_model_name_tag(current_name(name, where))
    if not timm.is_model(base):
        raise _unknown(name, where)
    if stem == "default" or base.startswith("cifar_"):
        return base
    if not timm.is_model(PREFIX + base):
        raise UserError(
            f"{where} {name!r}: has no cifar stem; the families with one are timm's {', '.join(FAMILIES)}, "
            "and the cifar_ networks need none"
        )
    return PREFIX + base


def input_size(name: str, img_size: int | None = None, stem: str = "default", where: str = "model") -> int:
    """The side of the square input of a model, without building it; UserError for an unknown name."""
    if img_size is not None:
        return img_size
    registered = current_name(name, where) if stem == "default" else architecture(name, stem, where)
    cfg = _pretrained_cfg(registered, where)
    if "input_size" not in cfg:
        raise _no_size(name, where)
    return int(cfg["input_size"][-1])


def usual_size(name: str, stem: str = "default") -> int | None:
    """The side of the square input that a network was made for; None if unknown, as for some of a user's own."""
    registered = current_name(name) if stem == "default" else architecture(name, stem)
    return _pretrained_cfg(registered, "model").get("input_size", (None,))[-1]


def count_parameters(model: nn.Module) -> int:
    """The number of parameters, frozen ones included, buffers not."""
    return sum(parameter.numel() for parameter in model.parameters())


def _pretrained_cfg(name: str, where: str) -> dict[str, Any]:
    """timm's `pretrained_cfg` of a registered name or one on the Hub."""
    if name.startswith(HUB):
        return _hub_config(name, where)[0]
    if not timm.is_model(name):
        raise _unknown(name, where)
    try:
        cfg = get_pretrained_cfg(name)
    except RuntimeError as error:
        base, tag = split_model_name_tag(name)
        tags = ", ".join(sorted(n.split(".", 1)[1] for n in timm.list_pretrained(f"{base}.*"))) or "none"
        raise UserError(f"{where} {name!r}: unknown pretrained tag {tag!r}, known: {tags}") from error
    return cfg.to_dict() if cfg else {}


def _has_weights(name: str) -> bool:
    cfg = get_pretrained_cfg(name)
    return cfg is not None and bool(cfg.has_weights)


def _hub_config(name: str, where: str) -> tuple[dict[str, Any], str, dict[str, Any]]:
    try:
        return load_model_config_from_hf(name.removeprefix(HUB))
    except (OSError, HfHubHTTPError, ValueError, KeyError) as error:
        raise UserError(f"{where} {name!r}: cannot be read from the Hub: {first_line(error, 200)}") from error


def hub_args(name: str, where: str) -> dict[str, Any]:
    """The arguments with which a model of the Hub is built besides those of a call; empty for other names.

    Without the size of a network that is built for one, which its preprocessing has.  UserError: Hub unreachable.
    """
    if not name.startswith(HUB):
        return {}
    cfg, _, args = _hub_config(name, where)
    apart = RESERVED | ({"img_size"} if cfg.get("fixed_input_size") else set())
    return {key: value for key, value in (args or {}).items() if key not in apart}


def _unknown(name: str, where: str) -> UserError:
    base, _ = split_model_name_tag(name)
    known = [n for n in timm.list_models() if n.startswith(PREFIX) == base.startswith(PREFIX)]
    prefixed = f"cifar_{base}"  # the literature calls the same networks without this prefix
    matches = near_names(base, known, most=3)
    matches += near_names(prefixed, [n for n in known if n.startswith("cifar_")], cutoff=0.85)
    hint = suggestion(repr(match) for match in ([prefixed] if prefixed in known else dict.fromkeys(matches)))
    hint = hint or ", allowed: a timm name, a cifar_ name, or hf-hub:org/name"
    return UserError(f"{where}: unknown model {name!r}{hint}")


# --- exports ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoadedModel:
    """A model read from an export; `config` is the content of its config.json."""

    model: nn.Module
    architecture: str
    num_classes: int
    class_names: list[str] | None
    preprocess: Preprocess
    config: dict[str, Any]

    @property
    def image_size(self) -> int | None:
        """The side of the stored images that it was trained on, if the export has it."""
        return self._extra.get("image_size")

    @property
    def data_fingerprint(self) -> str | None:
        """The fingerprint of the data that it was trained on, if the export has it."""
        return self._extra.get("data_fingerprint")

    @property
    def _extra(self) -> dict[str, Any]:
        extra = self.config.get("extra")
        return extra if isinstance(extra, dict) else {}

    @property
    def stored_side(self) -> int:
        """`image_size`, or the side to which the network's preprocessing resizes; UserError for an absurd one."""
        side = self.preprocess.resize if self.image_size is None else self.image_size
        if type(side) is not int or not 1 <= side <= MAX_SIDE:
            raise UserError(f"config.json: extra.image_size: is {side!r:.60}, allowed: a whole number up to {MAX_SIDE}")
        return side

    @property
    def names(self) -> list[str]:
        """A name for each class; numbers if the export has no names."""
        return self.class_names or [str(number) for number in range(self.num_classes)]


def export(
    model: nn.Module,
    folder: str | Path,
    *,
    architecture: str,
    model_args: dict[str, Any],
    num_classes: int,
    class_names: list[str] | None,
    preprocess: Preprocess,
    extra: dict[str, Any] | None = None,
) -> None:
    """Replace `folder` by config.json and model.safetensors in timm's layout, atomically.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` gives the same model; `cifar_` networks need
    `import kd_core.zoo` first and are refused by name without it.

    Args:
        model: the bare network (no wrapper), built by `create_model(architecture, args=model_args, ...)`.
        model_args: what `timm.create_model` needs besides the name and the number of classes.
        class_names: names by label, kept as `label_names`: at the top, where timm's `save_for_hf` writes them and
            other readers look, and inside `pretrained_cfg`, where timm keeps them once it has read them.
        extra: anything JSON to keep under the key "extra".
    """
    own = cast("dict[str, Any]", model.pretrained_cfg)
    fixed = bool(own.get("fixed_input_size"))
    channels = own["input_size"][0]
    config: dict[str, Any] = {
        "architecture": architecture,
        "num_classes": num_classes,
        **({"num_features": model.num_features} if hasattr(model, "num_features") else {}),  # may be missing
        **({"label_names": class_names} if class_names else {}),
        # A network built for one size must be rebuilt for it, whichever setting chose the size.
        "model_args": ({"img_size": preprocess.size} if fixed else {}) | model_args,
        "pretrained_cfg": {
            "num_classes": num_classes,
            "input_size": [channels, preprocess.size, preprocess.size],
            "fixed_input_size": fixed,
            "interpolation": preprocess.interpolation,
            "crop_pct": preprocess.crop_pct,
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
            "first_conv": own.get("first_conv"),
            "classifier": own.get("classifier"),
            "label_names": class_names,
        },
    }
    if extra is not None:
        config["extra"] = extra
    # cloned, since the format refuses tensors that share memory, as tied parameters do
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    with replacing_folder(Path(folder)) as temporary:
        safetensors.torch.save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        (temporary / "config.json").write_text(json_text(config, indent=2) + "\n", encoding="utf-8")


_Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
_Finite = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
_Scalar = bool | Annotated[int, Field(ge=-8192, le=8192)] | _Finite | Annotated[str, Field(max_length=64)] | None
_Names = Annotated[list[Annotated[str, Field(max_length=1000)]], Field(max_length=100_000)]
_Channels = Annotated[int, Field(ge=1, le=64)]


class _Input(BaseModel):
    """The part of timm's `pretrained_cfg` that is used; the rest is not looked at."""

    model_config = ConfigDict(strict=True, extra="ignore")
    input_size: tuple[_Channels, _Side, _Side]
    interpolation: Annotated[str, Field(pattern="^[a-z]{1,16}$")] = "bicubic"
    crop_pct: Annotated[float, Field(ge=0.1, le=1.0)] = 0.875
    mean: Annotated[tuple[_Finite, ...], Field(min_length=1, max_length=64)]
    std: Annotated[tuple[Annotated[_Finite, Field(gt=0)], ...], Field(min_length=1, max_length=64)]
    label_names: _Names | dict[str, str] | None = None


class _Export(BaseModel):
    """config.json as timm and `export` write it; from strangers too: plain values of bounded size only."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())
    architecture: Annotated[str, Field(pattern=r"^\w{1,128}$")]
    num_classes: Annotated[int, Field(ge=1, le=100_000)]
    label_names: _Names | dict[str, str] | None = None
    model_args: Annotated[
        dict[str, _Scalar | Annotated[list[_Scalar], Field(max_length=64)]], Field(max_length=64)
    ] = {}
    pretrained_cfg: _Input


def _read_export(folder: str | Path) -> tuple[Path, dict[str, Any], _Export]:
    """config.json of an export: its path, its content, and what of it is used."""
    path = Path(folder) / "config.json"
    raw = read_json(path)
    try:
        config = _Export.model_validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        places = [str(part) for part in problem["loc"]]
        if places[:1] == ["model_args"]:  # where the rest names alternatives of the type, not keys of the file
            raise UserError(
                f"{path}: not a model's config: {'.'.join(places[:2])}: allowed: a number (a whole one up to 8192), a "
                "text of up to 64 characters, true, false, null, or a list of up to 64 of these"
            ) from error
        raise UserError(f"{path}: not a model's config: {'.'.join(places) or 'content'}: {problem['msg']}") from error
    if not timm.is_model(config.architecture):
        beside = path.with_name("config.yaml")
        remedy = import_remedy(beside) if beside.is_file() else ""
        raise UserError("\n".join(filter(None, [str(_unknown(config.architecture, f"{path}: architecture")), remedy])))
    return path, raw, config


def export_size(folder: str | Path) -> int:
    """The side of the square input, in pixels, of an exported model; UserError as for `load_export`."""
    return _read_export(folder)[2].pretrained_cfg.input_size[-1]


def export_args(folder: str | Path) -> dict[str, Any]:
    """The arguments with which an exported model is built again; UserError as for `load_export`."""
    return dict(_read_export(folder)[2].model_args)


def load_export(folder: str | Path) -> LoadedModel:
    """Read an export of `export` or of timm's own; nothing in it is executed.

    The network is first built without memory and compared with the file's names and shapes, so that a config
    cannot make more of it than the weights' file itself holds.

    Raises:
        UserError: naming the file: missing, damaged, unknown architecture, refused arguments, weights that
            differ.
    """
    path, raw, config = _read_export(folder)
    args: dict[str, Any] = {key: value for key, value in config.model_args.items() if key != "num_classes"}
    size = config.pretrained_cfg.input_size[-1]
    names = config.label_names or config.pretrained_cfg.label_names
    names = names if isinstance(names, list) else None  # a mapping is for gaps in the numbers, which do not occur here
    if names and len(names) != config.num_classes:
        raise UserError(f"{path}: label_names: {len(names)} names for {config.num_classes} classes")

    weights = path.with_name("model.safetensors")
    tensors = read_state_dict(weights)

    own = own_code.provider(own_code.NETWORK, config.architecture)

    def build() -> nn.Module:
        return create_model(
            config.architecture,
            num_classes=config.num_classes,
            img_size=size if own else None,  # which its code may not know
            args=args,
            where=f"{path}: architecture",
        )

    if not own:  # a user's code need not support meta tensors
        with torch.device("meta"):
            check_strict(build(), tensors, str(weights), config.num_classes)
    model: Any = build()
    load_strict(model, tensors, str(weights), config.num_classes)

    stated = config.pretrained_cfg
    preprocess = Preprocess(size, resize_side(size, stated.crop_pct), stated.interpolation, stated.mean, stated.std)
    model.pretrained_cfg = model.default_cfg = model.pretrained_cfg | {
        "input_size": stated.input_size,
        "interpolation": stated.interpolation,
        "crop_pct": stated.crop_pct,
        "mean": stated.mean,
        "std": stated.std,
    }
    return LoadedModel(model, architecture(config.architecture), config.num_classes, names, preprocess, raw)
