#!/usr/bin/env python
"""Training images per second: this project's in-memory views against per-sample transforms in DataLoaders.

    python -m benchmarks.input_pipeline --data-path FOLDER    the same as: python -m benchmarks input --data-path ...

All make batches of 128 from the same PNG files in parquet: cropped after padding by 4, flipped and normalized at 32
pixels.  Two rows are for 224 pixels, with views for a student and three teachers, and the last one is for strong views:
RandAugment (two operations, magnitude 9) and CutMix of half of the images, or in timm of half of the batches.  The
startup time of a DataLoader's workers is not counted; the batches they prefetch meanwhile are.
"""

import io
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from timm.data import Mixup, create_loader
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks._data import write_parquet
from benchmarks._measure import Options, Result, Target, compare, hand_over, interleave
from kd_core.config import Config, DataConfig
from kd_core.data.dataset import load_data
from kd_core.data.image_store import ImageStore
from kd_core.data.plan import EpochPlan, Sampler
from kd_core.data.preprocess import Preprocess
from kd_core.data.views import NO_AUGMENTATION, Augmentation, Views
from kd_core.loop.processes import keep_freed_memory
from kd_core.models.predict import Images

BATCH, PADDING = 128, 4
AUGMENTATION = Augmentation(PADDING, flip=True)
MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
OWN, OWN_224 = "in memory", "in memory, 224 px, student + 3 teachers"
HF = {workers: f"HF with_transform, {workers} workers" for workers in (0, 2)}
FASTER = "the faster of these"
TORCHVISION = "torchvision CIFAR100, 2 workers"
ORIGINAL = "original system's transforms, 224 px, 2 workers"
STRONG, TIMM = "RandAugment and CutMix in memory", "timm's loader and Mixup, 2 workers"


def run(options: Options) -> list[Result]:
    keep_freed_memory()  # as train_kd.py does
    folder = options.data_path or write_parquet(options.folder("data"), options.size(10_000, 1_000), 100, noise=256)
    dataset = open_parquet(folder)
    usual_count = options.size(6_000, 300)
    contestants = {
        OWN: in_memory(folder, options.folder("cache"), options.size(40_000, 600)),
        OWN_224: in_memory(folder, options.folder("cache"), options.size(512, 128), sides=[224] * 4),
        **{HF[workers]: loaded(with_transform(dataset), workers, usual_count) for workers in HF},
        TORCHVISION: loaded(ArrayDataset(dataset), 2, usual_count),
        ORIGINAL: loaded(with_original_transforms(dataset), 2, options.size(768, 256), size=224),
        STRONG: strong(folder, options.folder("cache"), options.size(20_000, 600)),
        TIMM: timms(ArrayDataset(dataset), options.size(6_000, 300)),
    }
    rates = interleave({name: partial(next, rates) for name, rates in contestants.items()}, options.pairs)
    rates[FASTER] = [max(pair) for pair in zip(*(rates[name] for name in HF.values()), strict=True)]
    return [
        *(compare(rates, OWN, name, "images/s") for name in HF.values()),
        compare(rates, OWN, FASTER, "images/s", Target(20, at_least=True)),
        compare(rates, OWN, TORCHVISION, "images/s", Target(12, at_least=True)),
        compare(rates, OWN, ORIGINAL, "images/s", Target(150, at_least=True)),
        compare(rates, OWN_224, ORIGINAL, "images/s"),
        compare(rates, STRONG, TIMM, "images/s", Target(8, at_least=True)),
    ]


def open_parquet(folder: Path) -> Any:
    """The training split with columns `img` and `label`."""
    datasets.disable_progress_bars()
    dataset = datasets.load_dataset("parquet", data_files=str(folder / "train*.parquet"), split="train")
    image = next(name for name, kind in dataset.features.items() if isinstance(kind, datasets.Image))
    label = next(name for name, kind in dataset.features.items() if isinstance(kind, datasets.ClassLabel))
    return dataset.select_columns([image, label]).rename_columns({image: "img", label: "label"})


def in_memory(folder: Path, cache: Path, count: int, sides: list[int] | None = None) -> Iterator[float]:
    """Images per second of each repetition: gathered, augmented and normalized by batch, once per input side."""
    config = DataConfig(source="parquet", path=str(folder), val_size=0)
    data = load_data(config, model_sizes=[32], cache_dir=cache, show_progress=False)
    store = ImageStore(data.train, torch.device("cpu"), on_device="auto")
    views = [
        Views(Preprocess(side, side, "bicubic", data.mean, data.std), data.image_size, AUGMENTATION)
        for side in sides or [32]
    ]
    epoch = 0
    while True:
        start, seen = time.perf_counter(), 0
        while seen < count:
            plan = EpochPlan(
                Sampler(data.train.rows), store.device, seed=0, epoch=epoch, batch_size=BATCH, rank=0, world_size=1,
                augmentation=AUGMENTATION,
            )  # fmt: skip
            for step in range(len(plan)):
                batch = plan.batch(step, store.device)
                pixels, _ = store.gather(batch.rows)
                for view in views:
                    images = view.train(pixels, batch.ids, channels_last=True)
                    assert images.shape[1:] == (3, view.size, view.size)
                seen += len(batch.rows)
                if seen >= count:
                    break
            epoch += 1
        yield seen / (time.perf_counter() - start)


def strong(folder: Path, cache: Path, count: int) -> Iterator[float]:
    """Images per second of each repetition with a recipe, up to normalized images and soft labels."""
    data = {"source": "parquet", "path": str(folder), "val_size": 0}
    config = Config.model_validate({"data": data, "augment": {"randaugment": {}, "cutmix": {}}})
    source = load_data(config.data, model_sizes=[32], cache_dir=cache, show_progress=False)
    images = Images.for_training(config, source, torch.device("cpu"))
    views = Views(Preprocess(32, 32, "bicubic", source.mean, source.std), source.image_size, NO_AUGMENTATION)
    assert images.recipe is not None
    epoch = 0
    while True:
        start, seen = time.perf_counter(), 0
        while seen < count:
            plan = EpochPlan(
                Sampler(source.train.rows), images.store.device, seed=0, epoch=epoch, batch_size=BATCH, rank=0,
                world_size=1, augmentation=images.recipe,
            )  # fmt: skip
            for step in range(min(len(plan), -(-(count - seen) // BATCH))):
                pixels, labels = images.show(plan, step)
                batch = views.train(pixels.shown, plan.batch(step, images.store.device).ids, channels_last=True)
                assert batch.shape[1:] == (3, 32, 32) and labels.shape[1:] == (source.num_classes,)
                seen += len(batch)
            epoch += 1
        yield seen / (time.perf_counter() - start)


def timms(dataset: Any, count: int) -> Iterator[float]:
    """The same by timm: a DataLoader with two workers, and its mixup in this process."""
    loader = create_loader(
        dataset, 32, BATCH, is_training=True, scale=(1.0, 1.0), ratio=(1.0, 1.0), color_jitter=0.0,
        auto_augment="rand-m9-n2", mean=MEAN, std=STD, num_workers=2, use_prefetcher=False, persistent_workers=False,
    )  # fmt: skip
    mixup = Mixup(mixup_alpha=0.0, cutmix_alpha=1.0, prob=0.5, num_classes=max(dataset.targets) + 1)
    while True:
        batches = iter(loader)
        consume(next(batches), 32)  # waits until the workers have started
        start, seen = time.perf_counter(), 0
        while seen < count and (batch := next(batches, None)):
            seen += consume(mixup(*batch), 32)
        rate = seen / (time.perf_counter() - start)
        del batches
        yield rate


def loaded(dataset: Any, workers: int, count: int, size: int = 32) -> Iterator[float]:
    """Images per second of each repetition: decoded and transformed one by one, here or in worker processes."""
    loader = DataLoader(
        dataset,
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        multiprocessing_context="fork" if workers else None,
    )
    while True:
        batches = iter(loader)
        consume(next(batches), size)  # waits until the workers have started
        start, seen = time.perf_counter(), 0
        while seen < count:
            try:
                seen += consume(next(batches), size)
            except StopIteration:
                break
        rate = seen / (time.perf_counter() - start)
        del batches
        yield rate


def consume(batch: Any, size: int) -> int:
    pixels: Tensor = batch["pixels"] if isinstance(batch, dict) else batch[0]
    assert pixels.shape[1:] == (3, size, size), pixels.shape
    return len(pixels)


def standard() -> Callable[[Any], Tensor]:
    return transforms.Compose(
        [
            transforms.RandomCrop(32, padding=PADDING),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


def with_transform(dataset: Any) -> Any:
    transform = standard()

    def transformed(batch: dict) -> dict:
        return {"pixels": [transform(cell.convert("RGB")) for cell in batch["img"]], "label": batch["label"]}

    return dataset.with_transform(transformed)


def with_original_transforms(dataset: Any) -> Any:
    """As in the original system that this project follows: student and teachers each resize and crop to 224 pixels."""
    normalize = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    student = transforms.Compose(
        [transforms.Resize(256), transforms.RandomCrop(224), transforms.RandomHorizontalFlip(), *normalize]
    )
    teachers = [
        transforms.Compose([transforms.Resize(side), transforms.CenterCrop(224), *normalize])
        for side in (256, 256, 248)
    ]

    def transformed(batch: dict) -> dict:
        images = [cell.convert("RGB") for cell in batch["img"]]
        own = {f"teacher{index}": [view(image) for image in images] for index, view in enumerate(teachers)}
        return {"pixels": [student(image) for image in images], "label": batch["label"], **own}

    return dataset.with_transform(transformed)


class ArrayDataset(Dataset):
    """As torchvision.datasets.CIFAR100: all images in one array; each row becomes a PIL image and is transformed."""

    def __init__(self, dataset: Any):
        cells = dataset.with_format("arrow")[:].column("img").to_pylist()
        self.data = np.stack([np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGB")) for cell in cells])
        self.targets = list(dataset["label"])
        self.transform = standard()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.data[index])), self.targets[index]


if __name__ == "__main__":
    hand_over("input")
