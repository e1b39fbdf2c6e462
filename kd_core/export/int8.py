"""Int8 exports: an ONNX file whose weights and activations are 8-bit integers, kept only where that pays.

ONNX Runtime quantizes the float32 file statically (QuantizeLinear and DequantizeLinear around each operation): the
range of every activation is that on clean training images, and each output channel of a weight has its own.
Activations are unsigned: with signed ones, ONNX Runtime's default, convolutions beside a tensor that two operations
read stay float32 on x86-64, and a residual network takes nearly twice the time of the float32 file.  Weights have 7
bits: with 8, x86-64 CPUs without VNNI saturate sums of two products, and the same file is worse there.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from kd_core.data.dataset import Data, Split
from kd_core.errors import UserError
from kd_core.export.kinds import CARD
from kd_core.export.write import OPSET, Checks, about, tracing, unnormalized, write_about, write_onnx
from kd_core.files import json_text, replacing_folder, write_text, writing
from kd_core.models.build import LoadedModel
from kd_core.models.predict import progress

KIND = "onnx-int8"
NAMES = ("float32", "int8")  # the order of pairs
CALIBRATED, MEASURED = 512, 10_000  # images at most
BATCH = 64  # images in a pass, except where passes are timed
SECONDS = 2.0  # for which passes over one image are timed
FEWEST = 5  # timed passes, if these take longer
ALLOWED = 200  # one image of so many, half a point, may be lost
FLOAT = ("LayerNormalization",)  # ONNX Runtime has no int8 kernel for it on CPUs: integers would cost accuracy alone


@dataclass(frozen=True)
class Int8:
    """An int8 file beside the float32 file that it was made from; pairs are float32's figure and int8's.

    calibrated: the number of training images that gave the ranges.
    images, split: the number of images on which the two were compared, and their split.
    right: how many of these each classifies right; same: how many get the same class from both.
    seconds: the median time of one image in one thread; machine: where.
    sizes: bytes of the files.
    """

    calibrated: int
    images: int
    split: str
    right: tuple[int, int]
    same: int
    seconds: tuple[float, float]
    sizes: tuple[int, int]
    machine: str

    @property
    def objections(self) -> list[str]:
        """Why it is not worth keeping, in words that follow "it"; empty if it is."""
        found = []
        if not self.seconds[1] <= self.seconds[0]:
            found.append("is slower than float32")
        if ALLOWED * (self.right[0] - self.right[1]) > self.images:
            found.append("loses more than half a point of accuracy")
        return found

    def rows(self) -> list[list[str]]:
        """A table: what it is, float32's figure, int8's."""
        return [
            ["accuracy", *(f"{count / self.images:.2%}" for count in self.right)],
            ["same class as float32", "", f"{self.same / self.images:.2%}"],
            ["ms per image, one thread", *(f"{1000 * value:.3g}" for value in self.seconds)],
            ["bytes", *(f"{size:,}" for size in self.sizes)],
        ]

    def record(self) -> dict[str, Any]:
        """For preprocessing.json."""
        return {
            "calibration_images": self.calibrated,
            "measured_images": self.images,
            "measured_split": self.split,
            "accuracy": {name: count / self.images for name, count in zip(NAMES, self.right, strict=True)},
            "agreement": self.same / self.images,
            "latency_ms": {name: 1000 * value for name, value in zip(NAMES, self.seconds, strict=True)},
            "latency_batch": 1,
            "latency_threads": 1,
            "bytes": dict(zip(NAMES, self.sizes, strict=True)),
            "machine": self.machine,
        }

    def __str__(self) -> str:
        accuracy, same, milliseconds, size = self.rows()
        return (
            f"accuracy {accuracy[2]} (float32 {accuracy[1]}), the same class for {same[2]} of {self.images:,} images "
            f"of the {self.split} split; {milliseconds[2]} ms per image in one thread (float32 {milliseconds[1]} ms); "
            f"{size[2]} bytes (float32 {size[1]})"
        )


def write(
    loaded: LoadedModel, folder: Path, checks: Checks, data: Data, card: Callable[..., str], *, keep: bool = False
) -> Int8:
    """Replace `folder` by an int8 export, and return what was measured.

    Args:
        checks: those of the float32 file that it is made from.
        data: what the student was trained on.
        card: returns the text of README.md for the float32 file's difference to the student's logits and `int8`.
        keep: even if it is slower than float32 or loses more than half a point of accuracy.

    Raises:
        UserError: the network cannot be exported, its float32 file has other logits, or int8 does not pay and `keep`
            is not set; `folder` is untouched then.
    """
    calibration, measured = choose(data)
    with writing(folder), replacing_folder(folder) as temporary, TemporaryDirectory() as scratch:
        float32, file = Path(scratch, "float32.onnx"), temporary / "model.onnx"
        difference = checks.difference(write_onnx(loaded, float32, checks), "the ONNX export")
        with tracing(KIND, loaded):
            quantize(float32, file, batches(loaded, calibration, "calibrating"), about(loaded))
        found = compare(loaded, (float32, file), len(calibration), measured)
        if found.objections and not keep:
            raise UserError(
                f"--export {KIND}: {loaded.architecture}: it {' and '.join(found.objections)}: {found}; nothing was "
                "written, and --keep-int8 keeps it even so"
            )
        write_about(temporary, about(loaded) | {"opset": OPSET, "int8": found.record()})
        write_text(temporary / CARD, card(difference, int8=found))
    return found


def choose(data: Data) -> tuple[Split, Split]:
    """Images to calibrate with, of the training split, and those to measure accuracy on, of the validation split.

    Without a validation split, other images of the training split are measured.  They are drawn at random, since many
    sources are sorted by class, and are the same ones each time.
    """
    rows = _drawn(data.train)
    count = CALIBRATED if data.val else min(CALIBRATED, len(rows) // 2)
    measured = replace(data.val, rows=_drawn(data.val)) if data.val else replace(data.truth, rows=rows[count:])
    return replace(data.train, rows=rows[:count]), replace(measured, rows=measured.rows[:MEASURED])


def _drawn(split: Split) -> Tensor:
    return split.rows[torch.randperm(len(split), generator=torch.Generator().manual_seed(0))]


def batches(loaded: LoadedModel, split: Split, label: str) -> Iterator[Tensor]:
    """The clean images of a split in its order, float32 [B,3,size,size] in [0,1]; a progress bar names `label`."""
    views = unnormalized(loaded, split.images.shape[1])
    for rows in progress(split.rows.split(BATCH), label):
        yield views.clean(split.images[rows])


class Calibration:
    """Batches of images as ONNX Runtime asks for them."""

    def __init__(self, images: Iterator[Tensor]):
        self._images = images

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._images, None)
        return None if batch is None else {"images": batch.numpy()}


def quantize(float32: Path, file: Path, images: Iterator[Tensor], described: dict[str, Any]) -> None:
    """Write the int8 form of an ONNX file; `images` are those to calibrate with, `described` is what it says of itself.

    The normalization stays float32, and so does what gives the logits: in 256 steps the best classes would often tie.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with TemporaryDirectory() as scratch:
        folded = Path(scratch, "folded.onnx")
        quant_pre_process(float32, folded)  # or weights that the graph transposes would stay float32
        nodes = onnx.load(folded).graph.node
        quantize_static(
            folded,
            file,
            Calibration(images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=True,
            nodes_to_exclude=[node.name for node in nodes if "logits" in node.output or node.op_type in FLOAT],
        )
    model = onnx.load(file)
    onnx.helper.set_model_props(model, {key: json_text(value) for key, value in described.items()})
    used = {node.domain for node in model.graph.node}
    needed = [entry for entry in model.opset_import if entry.domain in used]  # quant_pre_process lists all there are
    del model.opset_import[:]
    model.opset_import.extend(needed)
    onnx.save(model, file)
    onnx.checker.check_model(file, full_check=True)


# ------------------------------------------------------------------------------------------------ measuring


def compare(loaded: LoadedModel, files: tuple[Path, Path], calibrated: int, split: Split) -> Int8:
    """Measure the float32 and the int8 file on the images of `split`."""
    import onnxruntime

    float32, int8 = (predict(file, batches(loaded, split, f"measuring {file.name}")) for file in files)
    labels = split.labels[split.rows]
    first = next(batches(loaded, replace(split, rows=split.rows[:1]), "timing"))
    times = latencies(files, first)
    return Int8(
        calibrated=calibrated,
        images=len(split),
        split=split.name,
        right=(int((float32 == labels).sum()), int((int8 == labels).sum())),
        same=int((float32 == int8).sum()),
        seconds=(times[0], times[1]),
        sizes=(files[0].stat().st_size, files[1].stat().st_size),
        machine=f"{platform.system()} {platform.machine()}, ONNX Runtime {onnxruntime.__version__}",
    )


def predict(file: Path, images: Iterator[Tensor]) -> Tensor:
    """The most probable classes int64 [n] that an ONNX file gives to batches of images."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    logits = [session.run(["logits"], {"images": batch.numpy()})[0] for batch in images]
    return torch.cat([torch.from_numpy(part).argmax(1) for part in logits])


def latencies(files: Sequence[Path], images: Tensor) -> list[float]:
    """The median seconds of a pass over `images` in one thread, of each ONNX file.

    The files take turns, so that whatever else the machine does slows all of them.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    sessions = [onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"]) for file in files]
    feed, times = {"images": images.numpy()}, [list[float]() for _ in files]
    for session in sessions:
        session.run(None, feed)  # to warm up
    end = time.perf_counter() + SECONDS
    while len(times[0]) < FEWEST or time.perf_counter() < end:
        for session, own in zip(sessions, times, strict=True):
            began = time.perf_counter()
            session.run(None, feed)
            own.append(time.perf_counter() - began)
    return [statistics.median(own) for own in times]
