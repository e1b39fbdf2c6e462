"""The classes of your own images: decoded as the training images were, shown to the network as in evaluation."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from kd_core.data.decoding import try_decode
from kd_core.data.views import NO_AUGMENTATION, Views
from kd_core.errors import UserError, printable
from kd_core.files import local_path, write_text, writing
from kd_core.models.build import LoadedModel
from kd_core.report.text_table import csv_text

BATCH = 256  # images, or fewer of large ones:
BATCH_PIXELS = 2**24


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image, in descending order."""

    file: Path
    classes: list[str]
    probabilities: list[float]


def print_predictions(loaded: LoadedModel, path: str, *, top: int, csv: str | None = None) -> None:
    """`evaluate_kd.py --images`: print the `top` classes of your own images, and write them as CSV if asked to.

    `path` and `csv` are as they were typed.  UserError if no image can be read; those that cannot are listed on stderr.
    """
    files = files_in(local_path(path, "--images"))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found, unreadable = predict(loaded, files, top=top, device=device)
    reasons = "".join(f"\n  {file}: {reason}" for file, reason in unreadable.items())
    if not found:
        raise UserError(f"--images: none of {len(files)} file(s) can be read as an image:{reasons}")
    print(as_text(found))
    if reasons:
        print(printable(f"left out, since they cannot be read ({len(unreadable)}):{reasons}"), file=sys.stderr)
    if csv is not None:
        target = local_path(csv, "--csv")
        write_csv(target, found)
        print(f"{len(found)} images written to {target}")


def files_in(path: Path) -> list[Path]:
    """`path` itself if it is a file, else all files in it and below, sorted, without hidden ones.

    Raises:
        UserError: there is no such file or folder, or there is no file in it.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"--images: no such file or folder: {path}")
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    if not files:
        raise UserError(f"--images: there is no file in {path}")
    return files


@torch.inference_mode()
def predict(
    loaded: LoadedModel, files: Sequence[Path], *, top: int, device: torch.device
) -> tuple[list[Prediction], dict[Path, str]]:
    """The `top` classes of every image that can be read, in order, and why each of the others cannot.

    An image is processed like a training image: upright, in RGB, its center square at the stored size
    (`decoding.decode`), then the network's clean view, in float32.  Classes without names are numbers.

    Raises:
        UserError: the network gives probabilities that are not finite.
    """
    side = loaded.stored_side
    views = Views(loaded.preprocess, side, NO_AUGMENTATION)
    network = loaded.model.to(device).eval()
    names = loaded.names
    found: list[Prediction] = []
    unreadable: dict[Path, str] = {}
    size = max(1, min(BATCH, BATCH_PIXELS // max(side, loaded.preprocess.resize) ** 2))
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=len(files), desc="images", leave=False, disable=None) as bar,
    ):
        for start in range(0, len(files), size):
            batch = files[start : start + size]
            decoded = list(pool.map(partial(try_decode, side=side), map(str, batch)))
            bar.update(len(batch))
            unreadable |= {file: image for file, image in zip(batch, decoded, strict=True) if isinstance(image, str)}
            read = [file for file in batch if file not in unreadable]
            if not read:
                continue
            pixels = torch.from_numpy(np.stack([image for image in decoded if not isinstance(image, str)]))
            probabilities = network(views.clean(pixels.to(device))).float().softmax(1)
            if not probabilities.isfinite().all():
                raise UserError(f"{loaded.architecture}: gives probabilities that are not finite: damaged weights?")
            best = probabilities.topk(min(top, loaded.num_classes))
            found += [
                Prediction(file, [names[label] for label in labels], values)
                for file, labels, values in zip(read, best.indices.tolist(), best.values.tolist(), strict=True)
            ]
    return found, unreadable


def as_text(predictions: Sequence[Prediction]) -> str:
    """One paragraph per image, for a terminal; line breaks in names are escaped."""
    return "\n".join(
        "\n".join([_shown(str(one.file)), *map(_line, one.probabilities, one.classes)]) for one in predictions
    )


def _line(probability: float, name: str) -> str:
    return f"  {probability:7.2%}  {_shown(name)}"


def _shown(text: str) -> str:
    return printable(text).replace("\n", "\\n")


def write_csv(path: Path, predictions: Sequence[Prediction]) -> None:
    """Replace `path` by a table with columns file, class_1, probability_1, class_2, ...; atomically.

    Text that a spreadsheet would run as a formula is preceded by an apostrophe.

    Raises:
        UserError: the file cannot be written.
    """
    ranks = range(1, len(predictions[0].classes) + 1)
    header = ["file", *(f"{kind}_{rank}" for rank in ranks for kind in ("class", "probability"))]
    rows = [header]
    for one in predictions:
        pairs = zip(one.classes, one.probabilities, strict=True)
        rows.append([str(one.file), *(cell for name, p in pairs for cell in (name, f"{p:.6f}"))])
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, csv_text(rows))
