#!/usr/bin/env python
"""Training views per second: in-memory views against the usual per-sample transforms and DataLoader.

    python -m benchmarks.input_pipeline                                  random images
    python -m benchmarks.input_pipeline --data-path FOLDER --json FILE   CIFAR-100's parquet files

Both make batches of 32x32 images, cropped after padding by 4, flipped and normalised.  The usual way is HF datasets'
`with_transform` with torchvision's PIL transforms and a DataLoader with two workers.  Repeats are interleaved; one
torch thread a process.  The workers' start is not counted; what they have fetched by then counts for them.
"""

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms

from kd_core.config import DataConfig
from kd_core.data import ImageStore, load_data
from kd_core.preprocess import Preprocess
from kd_core.views import Views, batch_rows, epoch_order, view_ids

PADDING = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-path", type=Path, help="folder of parquet files; without it: random images")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--images", type=int, default=20_000, help="images a repeat, for the in-memory views")
    parser.add_argument("--usual-images", type=int, default=6_000, help="images a repeat, for the usual way")
    options = parser.parse_args()
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as scratch:
        folder = options.data_path or random_data(Path(scratch) / "data")
        contestants = {
            "usual": usual(folder, options.batch_size, options.usual_images),
            "in memory": in_memory(folder, Path(scratch), options.batch_size, options.images),
        }
        rates: dict[str, list[float]] = {name: [] for name in contestants}
        for repeat in range(options.repeats + 1):  # the first warms up
            for name, contestant in contestants.items():
                rate = next(contestant)
                if repeat:
                    rates[name].append(rate)

    figures = {
        name: {"median": statistics.median(values), "minimum": min(values), "maximum": max(values)}
        for name, values in rates.items()
    }
    ratio = figures["in memory"]["median"] / figures["usual"]["median"]
    worst = figures["in memory"]["minimum"] / figures["usual"]["maximum"]
    print(f"{'images per second':<20}{'median':>12}{'minimum':>12}{'maximum':>12}")
    for name, row in figures.items():
        print(f"{name:<20}" + "".join(f"{row[kind]:>12,.0f}" for kind in ("median", "minimum", "maximum")))
    print(f"{'ratio':<20}{ratio:>12.1f}   in memory's slowest against the usual way's fastest: {worst:.1f}")
    result = {
        "images_per_second": figures,
        "ratio": ratio,
        "worst_ratio": worst,
        "repeats": options.repeats,
        "batch_size": options.batch_size,
        "data": str(options.data_path or "random"),
        "torch": torch.__version__,
    }
    print(json.dumps(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def random_data(folder: Path, count: int = 10_000) -> Path:
    """A parquet file of PNG images of noise with labels 0 to 9."""
    folder.mkdir()
    random = np.random.default_rng(0)
    rows: dict[str, list] = {"img": [], "label": [row % 10 for row in range(count)]}
    for _ in range(count):
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "png")
        rows["img"].append({"bytes": file.getvalue(), "path": None})
    features = datasets.Features(img=datasets.Image(), label=datasets.ClassLabel(num_classes=10))
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")
    return folder


def usual(folder: Path, batch_size: int, count: int) -> Iterator[float]:
    """Images per second of each repeat: decoded and transformed one by one in two worker processes."""
    dataset = datasets.load_dataset("parquet", data_files=str(folder / "train*.parquet"), split="train")
    image = next(name for name, kind in dataset.features.items() if isinstance(kind, datasets.Image))
    label = next(name for name, kind in dataset.features.items() if isinstance(kind, datasets.ClassLabel))
    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=PADDING),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        ]
    )

    def transformed(batch: dict) -> dict:
        return {
            "pixels": [transform(cell.convert("RGB")) for cell in batch[image]],
            "label": batch[label],
        }

    loader = DataLoader(
        dataset.with_transform(transformed),
        batch_size=batch_size,
        shuffle=True,
        num_workers=2,
        drop_last=True,
        multiprocessing_context="fork",
    )
    while True:
        batches = iter(loader)
        consume(next(batches)["pixels"])  # the workers run
        start, seen = time.perf_counter(), 0
        while seen < count:
            try:
                seen += consume(next(batches)["pixels"])
            except StopIteration:
                break
        rate = seen / (time.perf_counter() - start)
        del batches
        yield rate


def in_memory(folder: Path, cache: Path, batch_size: int, count: int) -> Iterator[float]:
    """Images per second of each repeat: gathered, augmented and normalised by batch, in this process."""
    config = DataConfig(source="parquet", path=str(folder), val_size=0)
    data = load_data(config, model_sizes=[32], cache_dir=cache, show_progress=False)
    store = ImageStore(data.train, torch.device("cpu"), on_device="auto")
    preprocess = Preprocess(32, 32, "bicubic", data.mean, data.std)
    views = Views(preprocess, data.image_size, crop_padding=PADDING, flip=True)
    epoch = 0
    while True:
        start, seen = time.perf_counter(), 0
        while seen < count:
            order = epoch_order(0, epoch, data.train.rows)
            for step in range(len(order) // batch_size):
                rows = batch_rows(order, batch_size, step, 0, 1)
                pixels, _ = store.gather(rows)
                ids = view_ids(0, epoch, rows, crop_padding=PADDING, flip=True)
                seen += consume(views.train(pixels, ids, channels_last=True))
                if seen >= count:
                    break
            epoch += 1
        yield seen / (time.perf_counter() - start)


def consume(batch: Tensor) -> int:
    assert batch.shape[1:] == (3, 32, 32), batch.shape
    return len(batch)


if __name__ == "__main__":
    main()
