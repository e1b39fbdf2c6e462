"""Synthetic image data sets of any size: PNG files in parquet, written quickly."""

import struct
import zlib
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet

SIDE, SHARD = 32, 50_000


def write_parquet(folder: Path, images: int, classes: int, noise: int = 24) -> Path:
    """Write `images` images of 32x32 pixels to `folder`, in shards; every class occurs, and no two images are equal.

    Each image is its class's pattern of 4x4 colors, which a small network learns in a few steps, plus noise of up to
    `noise` gray levels: 256 leaves only noise, 0 only the pattern and the image's index.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (classes, 4, 4, 3), dtype=np.uint8)
    patterns = small.repeat(SIDE // 4, axis=1).repeat(SIDE // 4, axis=2).astype(np.int16)
    names = [f"{number:04}" for number in range(classes)]
    features = datasets.Features(img=datasets.Image(), label=datasets.ClassLabel(names=names))
    for shard, start in enumerate(range(0, images, SHARD)):
        rows = np.arange(start, min(start + SHARD, images))
        pngs: list[bytes] = []
        for part in np.array_split(rows, max(1, len(rows) // 1000)):
            pixels = patterns[part % classes]
            if noise:
                grain = random.integers(0, noise, pixels.shape, dtype=np.int16)
                pixels = (pixels * (256 - noise) // 256) + grain
            pixels[:, 0, :, 0] = (part[:, None] >> np.arange(SIDE) & 1) * 255  # the index in binary: no two are equal
            pngs += encode(pixels.astype(np.uint8))
        cells = pyarrow.array([{"bytes": png, "path": None} for png in pngs], features.arrow_schema.field("img").type)
        table = pyarrow.Table.from_arrays([cells, pyarrow.array(rows % classes)], schema=features.arrow_schema)
        pyarrow.parquet.write_table(table, folder / f"train-{shard:05}.parquet", compression="none")
    return folder


def encode(pixels: np.ndarray) -> list[bytes]:
    """uint8 [N,H,W,3] as PNG files."""
    count, height, width, _ = pixels.shape
    lines = np.zeros((count, height, 1 + 3 * width), dtype=np.uint8)  # the first byte of each line: no filter
    lines[:, :, 1:] = pixels.reshape(count, height, -1)
    before = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    after = chunk(b"IEND", b"")
    return [before + chunk(b"IDAT", zlib.compress(image.tobytes(), 1)) + after for image in lines]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
