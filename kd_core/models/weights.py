"""State dicts from files, strictly into models; the public CIFAR-100 teachers known by name."""

import argparse
import re
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from tqdm import tqdm

from kd_core.data.preprocess import Preprocess
from kd_core.errors import UserError, first_line
from kd_core.models.checkpoint_layouts import BATCH_COUNTER, counted, find_state_dict, network_names
from kd_core.zoo.base import CIFAR100_MEAN, CIFAR100_STD

PICKLED = (".pth", ".pt", ".tar", ".bin", ".th", ".ckpt")
READING = 2  # raised when the same file yields other weights, which invalidates cached logits


_REBUILD: Any = np.float64(0).__reduce__()[0]


def _numpy_scalar(dtype: Any, content: Any) -> Any:
    """NumPy's own reconstruction of a scalar, of no more memory than its content."""
    if not isinstance(dtype, np.dtype) or not isinstance(content, bytes) or len(content) != dtype.itemsize:
        raise ValueError("not a scalar of NumPy")
    return _REBUILD(dtype, content)


# What training scripts store beside the tensors (arguments, a best accuracy, a flag): data without behavior.
_KINDS = "?" + np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "SU"
HARMLESS: list[Any] = [
    argparse.Namespace,
    (_numpy_scalar, "numpy._core.multiarray.scalar"),
    (_numpy_scalar, "numpy.core.multiarray.scalar"),  # its name before NumPy 2
    np.dtype,
    *{type(np.dtype(kind)) for kind in _KINDS},
]
# Files that are not checkpoints, recognized by their first bytes.
IMPOSTORS = {
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself; `git lfs pull` fetches it",
    b"<": "is a web page, not a checkpoint; the download has failed",
    b"\x1f\x8b": "is compressed by gzip; unpack it",
}


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


def read_state_dict(
    path: str | Path, where: str = "", notify: Callable[[str], None] | None = None
) -> dict[str, Tensor]:
    """Parameter names to tensors (on the CPU) of a checkpoint file.

    `checkpoint_layouts` finds the state dict in the file and chooses among several.  Nothing in the file is executed:
    it may hold only tensors and plain data.

    Args:
        notify: called with one line on which weights are used, if the file has several; prints by default.

    Raises:
        UserError: the file is missing, damaged, of an unknown kind, or holds anything else; begins with
            `where`.
    """
    path = Path(path)
    origin = f"{where}: {path}" if where else str(path)
    if not path.is_file():
        raise UserError(f"{origin}: no such file; give a {', '.join(PICKLED)} or .safetensors file")
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        content: Any = read_safetensors(path, origin)
    elif suffix in PICKLED:
        content = _read_pickled(path, origin)
    else:
        raise UserError(f"{origin}: unknown kind of file, expected {', '.join(PICKLED)} or .safetensors")
    return find_state_dict(content, origin, notify or (lambda text: tqdm.write(f"{origin}: {text}")))


def read_safetensors(path: Path, origin: str) -> dict[str, Tensor]:
    """The tensors in a file; UserError that begins with `origin` if it is none."""
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as error:
        raise UserError(f"{origin}: damaged, or not a safetensors file ({first_line(error, 160)})") from error


def unfolds(path: Path) -> bool:
    """Whether a zip file claims more content than its size, or is unclear; torch never compresses."""
    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4":  # by which torch recognizes a zip file
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(member.file_size for member in archive.infolist()) > path.stat().st_size
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return True  # refused: torch's reader might find more in it


def _read_pickled(path: Path, origin: str) -> Any:
    with open(path, "rb") as file:
        first = file.read(512)
    for beginning, reason in IMPOSTORS.items():
        if first.startswith(beginning):
            raise UserError(f"{origin}: {reason}")
    if first[257:262] == b"ustar":  # a tar archive, which PyTorch wrote before version 0.2
        raise UserError(f"{origin}: is a tar archive of files, not a checkpoint; unpack it and name the file in it")
    if unfolds(path):
        raise UserError(f"{origin}: damaged, or not a PyTorch file, or it would unpack into more than its size")
    try:
        with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    # Damaged bytes make the unpickler fail in any of a dozen ways; all mean the same to the user.
    # Its own text is left out, since it advises to load the file without protection.
    except Exception as error:
        if "TorchScript" in str(error):
            raise UserError(
                f"{origin}: is a TorchScript program, which is not loaded since it is code; save the network's "
                "state_dict() alone"
            ) from error
        if re.search("unsupported (global|class|type)|not an allowed|reduce for", str(error), re.IGNORECASE):
            named = re.search(r"GLOBAL ([\w.]+) was not", str(error))
            raise UserError(
                f"{origin}: refused, holds Python objects besides tensors{f' ({named[1]})' if named else ''}, which "
                "could run code when loaded; save model.state_dict() alone"
            ) from error
        raise UserError(f"{origin}: damaged, or not a PyTorch file") from error


def load_strict(model: nn.Module, state_dict: dict[str, Tensor], where: str, num_classes: int) -> None:
    """Load every parameter and buffer of `model`, a timm classifier, from `state_dict`, or nothing.

    Names of public checkpoints of the literature's networks are translated first (`zoo/public_names.py`), and a
    prefix that all names have is removed (`kd_core.models.checkpoint_layouts`).

    Raises:
        UserError: beginning with `where`; another number of classes or input channels, other names, other
            shapes.
    """
    config = cast("dict[str, Any]", model.pretrained_cfg)
    state_dict = network_names(config["architecture"], model.state_dict(), state_dict, where)
    check_strict(model, state_dict, where, num_classes)
    model.load_state_dict(state_dict, strict=True)


def check_strict(model: nn.Module, state_dict: dict[str, Tensor], where: str, num_classes: int) -> None:
    """The comparison of `load_strict`, by names and shapes alone: `model` may be on the meta device."""
    config = cast("dict[str, Any]", model.pretrained_cfg)
    wanted = model.state_dict()
    missing = [k for k in wanted if k not in state_dict and not k.endswith(BATCH_COUNTER)]
    unexpected = [k for k in state_dict if k not in wanted]
    if missing or unexpected:
        counts = [counted(missing, "missing"), counted(unexpected, "unexpected")]
        reason = (
            "all shapes are this network's, under other names: its layout is not known here, so rename the keys"
            if _shapes(wanted) == _shapes(state_dict)
            else "the weights are for another architecture"
        )
        raise UserError(f"{where}: {' and '.join(filter(None, counts))}: {reason}")

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


def _shapes(state_dict: dict[str, Tensor]) -> list[tuple[int, ...]]:
    return sorted(tuple(value.shape) for name, value in state_dict.items() if not name.endswith(BATCH_COUNTER))


def _weights_of(modules: str | Sequence[str] | None) -> list[str]:
    """Names of the weights of a module or modules named in timm's `pretrained_cfg`."""
    return [f"{name}.weight" for name in ((modules,) if isinstance(modules, str) else modules or ())]


def _without_input(weight: Tensor) -> tuple[int, ...]:
    """A convolution's shape [out,in,kh,kw] without its input channels."""
    return (*weight.shape[:1], *weight.shape[2:])
