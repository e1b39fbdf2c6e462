"""A student's logits for every image of its data, as a file that can teach other students."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from kd_core.data.dataset import Data, Split
from kd_core.data.views import Augmentation, fixed_view_ids
from kd_core.errors import UserError
from kd_core.models.network import Network
from kd_core.models.predict import Images, Predictor
from kd_core.teachers.logits import together
from kd_core.teachers.logits_file import about_views, write_logits


def dump_logits(path: Path, count: int, data: Data, student: Network, predict: Predictor) -> None:
    """Write logits for all rows of the source's splits, and for the first `count` fixed views of training images.

    All processes call it together; the main one writes `path` (`kd_core.teachers.logits_file`) and prints how to use
    it.  A test split that cannot be read is left out.  UserError if the folder cannot be written, or if training shows
    views that such a file does not hold.
    """
    config, accelerator = predict.config, predict.accelerator
    if count and config.augment.operations:
        named = ", ".join(f"augment.{name}" for name in config.augment.operations)
        raise UserError(f"--dump-views: {count}: files of logits hold crops and flips alone, no views of {named}")
    network, views, augmentation = student.model, student.views, Augmentation.of(config.data)

    def fixed_view(number: int, pixels: Tensor, rows: Tensor) -> Tensor:
        ids = fixed_view_ids(rows, torch.full_like(rows, number), **asdict(augmentation))
        return views.train(pixels, ids, channels_last=config.training.channels_last)

    tensors: dict[str, Tensor] = {}
    about = {**about_views(augmentation), "store_size": str(data.image_size)}
    test, problem = _test_split(data)
    for split in filter(None, (data.train, data.val, test)):
        if split.fingerprint in about.values():
            continue  # validation or test images cut from training, which are among its rows
        everything = replace(split, rows=torch.arange(len(split.labels)))
        images = Images(everything, accelerator.device, config.data.store)
        tensors[split.name] = predict(network, images, views, f"logits of {split.name}").half().cpu()
        about[split.name] = split.fingerprint
        if split.name == "train" and count:
            bank = []
            for number in range(count):
                logits = predict(network, images, views, f"view {number + 1} of {count}", partial(fixed_view, number))
                bank.append(logits.half().cpu())  # so that the device holds one view's
            tensors["train_views"] = torch.stack(bank, 1)
            about["train_views"] = split.fingerprint
    if accelerator.is_main_process:
        write_logits(path, tensors, about)
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
        more = f" --cache.mode=fixed --cache.views={count}" if count else ""
        if problem:
            print(f"{path} has no logits of the test split, which cannot be read: {problem}")
        print(
            f"logits of {shapes} written to {path}; to teach with them: --teachers='[{{logits: {path}}}]'{more}, and "
            f"for photos of mixed sizes --data.store_size={data.image_size}, at which they were stored here"
        )


def _test_split(data: Data) -> tuple[Split | None, str]:
    """The test split, and what is wrong where one of the processes, and so none of them, can read it."""
    try:
        together(data.test)
    except UserError as error:
        return None, str(error)
    return data.test(), ""
