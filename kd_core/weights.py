"""State dicts from files, strictly into models; the public CIFAR-100 teachers known by name."""

import argparse
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from kd_core.errors import UserError, first_line
from kd_core.preprocess import Preprocess
from kd_core.zoo.base import CIFAR100_MEAN, CIFAR100_STD
from kd_core.zoo.public_names import to_zoo_names

PICKLED = (".pth", ".pt", ".tar", ".bin")
CONTAINERS = ("model", "state_dict", "state_dict_ema", "student", "net")
PREFIXES = ("module.", "_orig_mod.")  # left by DataParallel and torch.compile

# What training scripts store beside the tensors (arguments, a best accuracy): data without behaviour.
_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
HARMLESS: list[Any] = [
    argparse.Namespace,
    (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),  # its name before NumPy 2
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int32, np.int64)),
]


@dataclass(frozen=True)
class KnownCheckpoint:
    """A public checkpoint: the registered model with its names, and the preprocessing of its training."""

    model: str
    preprocess: Preprocess
    filename: str = "pytorch_model.bin"
    num_classes: int = 100


_NATIVE = Preprocess(32, 32, "bicubic", CIFAR100_MEAN, CIFAR100_STD)
_CROPPED = Preprocess(32, 36, "bilinear", CIFAR100_MEAN, CIFAR100_STD)
_VIT = Preprocess(224, 248, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

# Hub repository -> checkpoint; definitions after the authors' package (GitHub edadaltocg/detectors)
KNOWN_CHECKPOINTS = {
    "edadaltocg/resnet18_cifar100": KnownCheckpoint("cifar_stem_resnet18", _NATIVE),
    "edadaltocg/resnet34_cifar100": KnownCheckpoint("cifar_stem_resnet34", _NATIVE),
    "edadaltocg/resnet50_cifar100": KnownCheckpoint("cifar_stem_resnet50", _NATIVE),
    "edadaltocg/densenet121_cifar100": KnownCheckpoint("cifar_densenet121", _CROPPED),
    "edadaltocg/vit_base_patch16_224_in21k_ft_cifar100": KnownCheckpoint("vit_base_patch16_224", _VIT),
}


def read_state_dict(path: str | Path, where: str = "") -> dict[str, Tensor]:
    """Parameter names to tensors (on the CPU) of a checkpoint file.

    The state dict is the file's content or stands under the first of `CONTAINERS` that it has; `PREFIXES` of
    names are removed. Nothing in the file is executed: tensors and plain data only.

    Raises:
        UserError: the file is missing, damaged, of an unknown kind, or holds anything else; begins with
            `where`.
    """
    path = Path(path)
    origin = f"{where}: {path}" if where else str(path)
    if not path.is_file():
        raise UserError(f"{origin}: no such file; give a {', '.join(PICKLED)} or .safetensors file")
    if path.suffix == ".safetensors":
        content: Any = _read_safetensors(path, origin)
    elif path.suffix in PICKLED:
        content = _read_pickled(path, origin)
    else:
        raise UserError(f"{origin}: unknown kind of file, expected {', '.join(PICKLED)} or .safetensors")
    return _find_state_dict(content, origin)


def _read_safetensors(path: Path, origin: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as error:
        raise UserError(f"{origin}: damaged, or not a safetensors file ({first_line(error, 160)})") from error


def unfolds(path: Path) -> bool:
    """Whether a zip file says that it holds more than its own size, or nothing clear; torch compresses nothing."""
    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4":  # what torch knows a zip file by
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(member.file_size for member in archive.infolist()) > path.stat().st_size
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return True  # so that it is refused: torch's own reader might see more in it


def _read_pickled(path: Path, origin: str) -> Any:
    if unfolds(path):
        raise UserError(f"{origin}: damaged, or not a PyTorch file, or it would unfold into more than its size")
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    # Damaged bytes make the unpickler fail in any of a dozen ways; all mean the same to the user.
    # Its own text is left out, since it advises to load the file without protection.
    except Exception as error:
        if re.search("unsupported (global|class|type)|not an allowed|reduce for", str(error), re.IGNORECASE):
            raise UserError(
                f"{origin}: refused, holds Python objects besides tensors, which could run code when loaded; "
                "save model.state_dict() alone"
            ) from error
        raise UserError(f"{origin}: damaged, or not a PyTorch file") from error


def _find_state_dict(content: Any, origin: str) -> dict[str, Tensor]:
    if isinstance(content, dict):
        for candidate in (content, *(content.get(key) for key in CONTAINERS)):
            if isinstance(candidate, dict) and candidate and all(isinstance(v, Tensor) for v in candidate.values()):
                return {_strip(str(name)): tensor for name, tensor in candidate.items()}
        held = f"keys {', '.join(map(str, list(content)[:8])) or 'none'}"
    else:
        held = f"a {type(content).__name__}"
    raise UserError(f"{origin}: no state dict at top level or under {', '.join(CONTAINERS)} (found {held})")


def _strip(name: str) -> str:
    while name.startswith(PREFIXES):
        name = name.split(".", 1)[1]
    return name


def load_strict(model: nn.Module, state_dict: dict[str, Tensor], where: str, num_classes: int) -> None:
    """Load every parameter and buffer of `model`, a timm classifier, from `state_dict`, or nothing.

    Names of public checkpoints of the literature's networks are translated first (`zoo/public_names.py`).

    Raises:
        UserError: beginning with `where`; another number of classes or input channels, other names, other
            shapes.
    """
    config = cast("dict[str, Any]", model.pretrained_cfg)
    state_dict = to_zoo_names(config["architecture"], state_dict)
    check_strict(model, state_dict, where, num_classes)
    model.load_state_dict(state_dict, strict=True)


def check_strict(model: nn.Module, state_dict: dict[str, Tensor], where: str, num_classes: int) -> None:
    """The comparison of `load_strict`, by names and shapes alone: `model` may be on the meta device."""
    config = cast("dict[str, Any]", model.pretrained_cfg)
    wanted = model.state_dict()
    # torch itself fills in this counter, which checkpoints of old versions lack
    missing = [k for k in wanted if k not in state_dict and not k.endswith(".num_batches_tracked")]
    unexpected = [k for k in state_dict if k not in wanted]
    if missing or unexpected:
        counts = [_count(missing, "missing"), _count(unexpected, "unexpected")]
        raise UserError(f"{where}: {' and '.join(filter(None, counts))}: the weights are for another architecture")

    differing = [k for k in wanted if k in state_dict and wanted[k].shape != state_dict[k].shape]
    for head in _weights_of(config.get("classifier")):
        if head in differing and wanted[head].shape[1:] == state_dict[head].shape[1:]:
            raise UserError(f"{where}: the weights have {len(state_dict[head])} classes, the data has {num_classes}")
    for stem in _weights_of(config.get("first_conv")):
        if stem in differing and _without_input(wanted[stem]) == _without_input(state_dict[stem]):
            given, needed = state_dict[stem].shape[1], wanted[stem].shape[1]
            raise UserError(f"{where}: the weights take images of {given} channels, the model gets {needed}")
    if differing:
        shapes = [f"{k} {list(state_dict[k].shape)} for {list(wanted[k].shape)}" for k in differing[:3]]
        more = ", ..." if len(differing) > 3 else ""
        raise UserError(
            f"{where}: {len(differing)} parameters of another shape ({', '.join(shapes)}{more}): "
            "the weights are for another variant of the architecture"
        )


def _count(names: list[str], what: str) -> str:
    more = ", ..." if len(names) > 3 else ""
    return f"{len(names)} {what} key{'s'[: len(names) > 1]} ({', '.join(names[:3])}{more})" if names else ""


def _weights_of(modules: str | Sequence[str] | None) -> list[str]:
    """Names of the weights of a module or modules named in timm's `pretrained_cfg`."""
    return [f"{name}.weight" for name in ((modules,) if isinstance(modules, str) else modules or ())]


def _without_input(weight: Tensor) -> tuple[int, ...]:
    """A convolution's shape [out,in,kh,kw] without its input channels."""
    return (*weight.shape[:1], *weight.shape[2:])
