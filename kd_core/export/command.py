"""`evaluate_kd.py --export`: write a trained student for use elsewhere, checked on its own data."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from kd_core.config import Config
from kd_core.data.dataset import Data
from kd_core.errors import UserError
from kd_core.evaluation.trained import CommandSettings, TrainedStudent
from kd_core.export import card, int8, write
from kd_core.files import check_writable


def export_student(
    student: TrainedStudent,
    given: CommandSettings,
    kinds: Sequence[str],
    out: Path | None,
    *,
    repo: str | None = None,
    push: bool = False,
    keep_int8: bool = False,
) -> None:
    """Write every kind of export, and push what is for the Hub.

    Args:
        given: settings of the command line, for the data on which exports are checked.
        kinds: of `kinds.FILES`.
        out: the folder; each of several kinds gets a folder in it.  None: export/KIND in the run folder.
        repo: ORG/NAME, for kind hub.
        push: send kind hub to `repo`; otherwise only what would be sent is printed.
        keep_int8: keep kind onnx-int8 even where it is slower than float32 or loses accuracy.

    Raises:
        UserError: a folder holds something else, a network cannot be exported, its export has other logits, or int8
            does not pay or lacks the data that it needs.
    """
    loaded, targets = student.loaded, _targets(student, kinds, out)
    for kind, target in targets.items():
        check_writable(target.parent, "--out")
        write.check_folder(target, kind)
    if {"timm", "hub"} & set(kinds):
        write.require_timm(loaded)
    pixels, images, config, data = images_to_check(student, given, required=int8.KIND in kinds)
    checks = write.prepare(loaded, pixels)
    lineage = card.Lineage(student.export, student.run, config, data.describe() if data else None)
    for kind, target in targets.items():
        if kind in ("timm", "hub") and not write.in_stock_timm(loaded.architecture):
            print(
                f"note: stock timm has no {loaded.architecture}, so this export needs the code of this project "
                f"(import {write.registered_by(loaded.architecture)}); --export program runs without it"
            )
        repo_of_kind = repo if kind == "hub" else None
        describe = partial(card.render, kind, loaded, lineage, images=images, repo=repo_of_kind)
        if kind == int8.KIND:
            assert data is not None  # images_to_check has seen to it
            print(f"{kind}: written to {target}; {int8.write(loaded, target, checks, data, describe, keep=keep_int8)}")
            continue
        difference = write.write(kind, loaded, target, checks, describe)
        print(f"{kind}: written to {target}; its logits differ by at most {difference:.1e} on {images}")
        if repo_of_kind:
            _send(target, repo_of_kind, push=push)


def _targets(student: TrainedStudent, kinds: Sequence[str], out: Path | None) -> dict[str, Path]:
    """The folder of each kind."""
    if out and len(kinds) == 1:
        return {kinds[0]: out}
    name = student.artifact_name or student.folder.resolve().name
    home = out or (student.run or Path("runs", name)) / "export"
    return {kind: home / kind for kind in kinds}


def _send(folder: Path, repo: str, *, push: bool) -> None:
    if push:
        print(f"pushed to {write.push(folder, repo)}")
    else:
        sizes = "\n".join(f"  {file.name}  {file.stat().st_size:,} bytes" for file in sorted(folder.iterdir()))
        print(f"a dry run: --push would send to the Hub's {repo}:\n{sizes}")


def images_to_check(
    student: TrainedStudent, given: CommandSettings, *, required: bool = False
) -> tuple[Tensor, str, Config | None, Data | None]:
    """Stored images uint8 [n,S,S,3] to check exports on, what they are, and the settings and data if they are known.

    They are validation images (without such, training images), or random ones where the data cannot be loaded:
    UserError then if these are `required`, for int8.
    """
    loaded = student.loaded
    count = write.how_many(loaded.preprocess.size)
    config: Config | None = None
    try:
        config = student.config(given)
        data = student.data(config)
        if other := student.other_data(data):
            raise UserError(other)
        if loaded.image_size not in (None, data.image_size) or data.num_classes != loaded.num_classes:
            raise UserError("the data are not those that the student was trained on")
    except UserError as error:
        if required:
            raise UserError(
                f"--export {int8.KIND}: needs the images that the student was trained on, which say what its integers "
                f"stand for and what they cost, but these cannot be used: {error}"
            ) from None
        print(f"note: checked on random images, since the data cannot be used: {error}")
        side, seeded = loaded.stored_side, torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (count, side, side, 3), dtype=torch.uint8, generator=seeded)
        return pixels, f"{count:,} random images", config, None
    split = data.val or data.train
    pixels = split.images[split.rows[:count]]
    return pixels, f"{len(pixels):,} images of the {split.name} split", config, data
