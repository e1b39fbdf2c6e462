"""Exports of a student: timm's format, ONNX, a torch.export program, a repository of the Hub.

Each is a folder that is checked before it replaces an older one: the exported network must give the student's logits.
ONNX and program include the normalization: images float32 [N,3,size,size] in [0,1], RGB -> logits float32 [N,C], for
any N.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import huggingface_hub
import timm
import torch
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor, nn

from kd_core.config import own_code
from kd_core.config.privacy import redacted
from kd_core.data.preprocess import Preprocess
from kd_core.data.views import NO_AUGMENTATION, Views
from kd_core.errors import UserError, first_line
from kd_core.export.kinds import ABOUT, CARD, FILES
from kd_core.files import json_text, replacing_folder, write_text, writing
from kd_core.models import build as models
from kd_core.models.build import LoadedModel

OPSET = 20  # of ONNX
TOLERANCE = 1e-4  # absolute, for logits up to 100; for larger ones a millionth of the largest
CHECKED, CHECKED_PIXELS = 1000, 4_000_000  # an export is checked on at most so many images and, roughly, pixels
# Runs a program in a process without this project: modules that are None in sys.modules cannot be imported.
FRESH = """
import sys
sys.modules |= dict.fromkeys(["kd_core", "kd_methods", "timm", "torchvision"])
import torch
images = torch.load("images.pt", weights_only=True)
network = torch.export.load(sys.argv[1]).module()
with torch.inference_mode():
    logits = [network(batch) for batch in images.split(torch.load("sizes.pt", weights_only=True))]
torch.save(torch.cat(logits), "logits.pt")
"""


class Deployed(nn.Module):
    """Images float32 [N,3,size,size] in [0,1] -> logits float32 [N,C]: normalization and network in one."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, preprocess: Preprocess):
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(preprocess.std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - self.mean) / self.std)


@dataclass
class Checks:
    """Images to check exports on, and the student's logits for them.

    images: float32 [n,3,size,size] in [0,1], resized and cropped for the network.
    normalized: the same, normalized for the network.
    logits: float32 [n,C] of the student, on the CPU.
    sizes: of the batches in which exports see them; they sum to n.
    """

    images: Tensor
    normalized: Tensor
    logits: Tensor
    sizes: list[int]

    def difference(self, logits: Tensor, what: str) -> float:
        """The largest absolute difference of logits [n,C] to the student's; UserError beyond the tolerance."""
        found = float((logits - self.logits).abs().max())
        allowed = TOLERANCE * max(1.0, float(self.logits.abs().max()) / 100)
        if not found <= allowed:
            raise UserError(
                f"{what}: its logits differ from the student's by up to {found:.2g}, allowed is {allowed:.2g}; nothing "
                "was written. Please report it with the network's name"
            )
        return found


def how_many(size: int) -> int:
    """The number of images that an export of a network with this side of input is checked on: 1000 for small ones."""
    return max(16, min(CHECKED, CHECKED_PIXELS // size**2))


@torch.inference_mode()
def prepare(loaded: LoadedModel, pixels: Tensor) -> Checks:
    """The student's logits for stored images uint8 [n,S,S,3], preprocessed as in evaluation."""
    network = loaded.model.eval()
    side = pixels.shape[1]
    clean = Views(loaded.preprocess, side, NO_AUGMENTATION).clean(pixels)
    images = unnormalized(loaded, side).clean(pixels)
    parts = [pixels[:1], pixels[1:8], *pixels[8:].split(256)]
    sizes = [len(part) for part in parts if len(part)]
    return Checks(images, clean, torch.cat([network(part) for part in clean.split(sizes)]), sizes)


def unnormalized(loaded: LoadedModel, side: int) -> Views:
    """Of stored images of this side, what an ONNX file or a program takes: in [0,1], resized and cropped."""
    plain = replace(loaded.preprocess, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return Views(plain, side, NO_AUGMENTATION)


def check_folder(folder: Path, kind: str) -> None:
    """UserError if `folder` holds anything but an earlier export of this kind, since an export replaces it."""
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not there <= set(FILES[kind]) or (folder.exists() and not folder.is_dir()):
        other = min(there - set(FILES[kind]), default=folder.name)
        raise UserError(f"--out: {folder} would be replaced, but holds {other}; name a new folder, or an empty one")


def write(kind: str, loaded: LoadedModel, folder: Path, checks: Checks, card: Callable[[float], str]) -> float:
    """Replace `folder` by an export, and return how far its logits are from the student's at most.

    Args:
        kind: timm, onnx, program, or hub, which is timm's format for a repository.
        card: returns the text of its README.md for that difference.

    Raises:
        UserError: the network cannot be exported, or its export has other logits; `folder` is untouched then.
    """
    with writing(folder), replacing_folder(folder) as temporary:
        what, exported = FORMATS[kind]
        difference = checks.difference(exported(loaded, temporary, checks), what)
        write_text(temporary / CARD, card(difference))
    return difference


def about(loaded: LoadedModel) -> dict[str, Any]:
    """What a user of an ONNX file or a program needs: the preprocessing of images, and the names of classes."""
    wanted = loaded.preprocess
    # The spelling of these keys stays: they are in files that other programs read.
    return {
        "architecture": loaded.architecture,
        "input": {"name": "images", "dtype": "float32", "shape": ["batch", 3, wanted.size, wanted.size]},
        "output": {"name": "logits", "dtype": "float32", "shape": ["batch", loaded.num_classes]},
        "colours": "RGB",
        "range": [0.0, 1.0],
        "stored_size": loaded.stored_side,
        "resize": wanted.resize,
        "size": wanted.size,
        "interpolation": wanted.interpolation,
        "normalisation_inside": True,
        "mean": list(wanted.mean),
        "std": list(wanted.std),
        "class_names": loaded.names,
    }


def in_stock_timm(architecture: str) -> bool:
    """Whether timm itself has the network; those of `kd_core.zoo` and of own code are registered by this project."""
    if own_code.provider(own_code.NETWORK, architecture):
        return False
    return not timm.models.model_entrypoint(architecture).__module__.startswith("kd_core.")


def registered_by(architecture: str) -> str:
    """The module that registers a network which stock timm lacks."""
    file = own_code.provider(own_code.NETWORK, architecture)
    return file.path.stem if file else "kd_core.zoo"


def require_timm(loaded: LoadedModel) -> None:
    """UserError for a network of own code that lacks what timm's format needs."""
    file = own_code.provider(own_code.NETWORK, loaded.architecture)
    if file is None:
        return
    lacking = [name for name in ("num_features", "reset_classifier") if not hasattr(loaded.model, name)]
    if timm.models.get_pretrained_cfg(loaded.architecture) is None:
        lacking.insert(0, "default_cfgs")
    if lacking:
        raise UserError(
            f"--export timm, hub: {loaded.architecture} ({file.path.name}) lacks {', '.join(lacking)}, which timm's "
            "format needs (timm's own networks show how: build_model_with_cfg); --export program takes it as it is"
        )


# ---------------------------------------------------------------------------------------------- the formats


@torch.inference_mode()
def _timm(loaded: LoadedModel, folder: Path, checks: Checks) -> Tensor:
    """Write timm's format; returns its logits [n,C] of the checked images, as the other formats do."""
    args, extra = loaded.config.get("model_args") or {}, loaded.config.get("extra")
    models.export(
        loaded.model,
        folder,
        architecture=loaded.architecture,
        model_args={key: value for key, value in args.items() if key != "num_classes"},
        num_classes=loaded.num_classes,
        class_names=loaded.names,
        preprocess=loaded.preprocess,
        extra=redacted((extra if isinstance(extra, dict) else {}) | {"image_size": loaded.stored_side}),
    )
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return torch.cat([network(batch) for batch in checks.normalized.split(checks.sizes)])


def _onnx(loaded: LoadedModel, folder: Path, checks: Checks) -> Tensor:
    logits = write_onnx(loaded, folder / "model.onnx", checks)
    write_about(folder, about(loaded) | {"opset": OPSET})
    return logits


def write_onnx(loaded: LoadedModel, file: Path, checks: Checks) -> Tensor:
    """Write the network as one ONNX file, in float32; returns its logits [n,C] of the checked images."""
    import onnx
    import onnxruntime

    with tracing("onnx", loaded):
        program = torch.onnx.export(
            Deployed(loaded.model, loaded.preprocess).eval(),
            (_example(checks),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"images": {0: "batch"}},
            external_data=False,
            verbose=False,
        )
        assert program is not None
        program.model.metadata_props.update({key: json_text(value) for key, value in about(loaded).items()})
        program.save(file, external_data=False)
    onnx.checker.check_model(file, full_check=True)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    logits = [session.run(["logits"], {"images": batch.numpy()})[0] for batch in checks.images.split(checks.sizes)]
    return torch.cat([torch.from_numpy(part) for part in logits])


def _program(loaded: LoadedModel, folder: Path, checks: Checks) -> Tensor:
    file, described = folder / "model.pt2", about(loaded)
    with tracing("program", loaded):
        program = torch.export.export(
            Deployed(loaded.model, loaded.preprocess).eval(),
            (_example(checks),),
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
        )
        torch.export.save(program, file, extra_files={ABOUT: json_text(described)})
    write_about(folder, described)
    with TemporaryDirectory() as scratch:
        elsewhere = Path(scratch)
        torch.save(checks.images.clone(), elsewhere / "images.pt")
        torch.save(checks.sizes, elsewhere / "sizes.pt")
        command = [sys.executable, "-c", FRESH, str(file.absolute())]
        done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["killed"]
            raise UserError(f"--export program: {loaded.architecture}: cannot be loaded with torch alone: {last[0]}")
        logits: Tensor = torch.load(elsewhere / "logits.pt", weights_only=True)
    return logits


FORMATS: dict[str, tuple[str, Callable[[LoadedModel, Path, Checks], Tensor]]] = {  # by kind: name, how it is written
    "timm": ("the export in timm's format", _timm),
    "hub": ("the export in timm's format", _timm),
    "onnx": ("the ONNX export", _onnx),
    "program": ("the exported program", _program),
}


def _example(checks: Checks) -> Tensor:
    """Two images to trace with: with one, the tracer would fix the batch size to 1."""
    return torch.zeros(2, *checks.images.shape[1:])


def write_about(folder: Path, described: dict[str, Any]) -> None:
    """Write preprocessing.json."""
    write_text(folder / ABOUT, json_text(described, indent=2) + "\n")


@contextmanager
def tracing(kind: str, loaded: LoadedModel) -> Iterator[None]:
    """Within the block an error of the tracer, which can raise anything, becomes a UserError about the network."""
    try:
        yield
    except OSError:
        raise  # a full disk is not the network's fault
    except Exception as error:
        raise UserError(
            f"--export {kind}: {loaded.architecture} cannot be exported: {type(error).__name__}: "
            f"{first_line(error, 200)}; --export timm keeps the network as it is"
        ) from error


# -------------------------------------------------------------------------------------------------- the Hub


def push(folder: Path, repo: str) -> str:
    """Upload an export of kind hub to repository ORG/NAME, made private if there is none yet; returns its address.

    Only the files that an export has are sent.

    Raises:
        UserError: no network, no access, or a Hub that refuses.
    """
    api = huggingface_hub.HfApi()
    try:
        address = api.create_repo(repo, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repo, folder_path=folder, allow_patterns=list(FILES["hub"]), commit_message="Add the student"
        )
    except (OSError, HfHubHTTPError) as error:
        raise UserError(
            f"--push: {repo}: the Hub does not take it: {first_line(error, 200)}; the export is complete in {folder}"
        ) from None
    return str(address)
