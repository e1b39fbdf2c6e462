"""Images decoded once to uint8 [N,S,S,3], kept on disk and memory-mapped by every later run."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from PIL import ExifTags, Image, ImageOps
from tqdm import tqdm

from kd_core.errors import UserError, first_line
from kd_core.files import json_sha256, replacing_folder, reserve, write_json, writing

if TYPE_CHECKING:
    from kd_core.data.raw import RawSplit

VERSION = 2  # of the decoder and the stored files; changing it decodes all images again
CHUNK = 256  # images held in memory at a time, besides the one that each thread decodes
# Pillow's formats, without those that start an interpreter (EPS starts Ghostscript).
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
NPY_HEADER = 128  # bytes before the numbers in a .npy file of uint8 [N,S,S,3]
# What turns an image upright, by its EXIF orientation.
TURNS = dict(enumerate(
    ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"), start=2
))  # fmt: skip
MAX_PIXELS = 80_000_000  # guards against decompression bombs: small files that decode to huge images



@dataclass(frozen=True)
class Classes:
    """The classes of a split.

    names: by class number.
    kind: how the source encodes a label: "text" (a name), "named" (a number with a name in the source), "number" or
        "boolean".
    """

    names: list[str]
    kind: str


LabelReader = Callable[[list[Any], list[str] | None], tuple[np.ndarray, Classes]]


@dataclass
class Stored:
    """A decoded split.

    images: uint8 [N,S,S,3], memory-mapped (copy on write: the file never changes); zeros where unreadable.
    labels: int64 [N].
    sums: int64 [N,2,3], each image's sum of values and of squared values per channel.
    unreadable: {row: file name or row, and the reason}.
    fingerprint: of pixels and labels; independent of the source and of the class names.
    """

    images: np.ndarray
    labels: np.ndarray
    sums: np.ndarray
    classes: Classes
    unreadable: dict[int, str]
    fingerprint: str

    @property
    def side(self) -> int:
        return int(self.images.shape[1])


def store(
    raw: RawSplit,
    read_labels: LabelReader,
    *,
    meaning: str,
    side: int | None,
    largest: int,
    folder: Path,
    threads: int | None,
    allow_unreadable: int,
    show_progress: bool,
    notify: Callable[[str], None],
) -> Stored:
    """Open the decoded split in `folder`, decoding it first if it is not there or damaged.

    A second process that opens the same split waits until it is decoded.

    Args:
        read_labels: turns the source's labels and class names into int64 [N] and the classes.
        meaning: what else the labels depend on; part of the cache's key.
        side: of the stored images; None: their own if all are squares of one size up to `largest`, else `largest`.
        threads: that decode; None: one per core.
        allow_unreadable: how many images may be missing.

    Raises:
        UserError: too many unreadable images, unusable labels, a full disk.
    """
    key = _key(raw, meaning)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{key}.lock"), ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        if side is None:
            common = _common_side(raw, folder / f"{key}.json", pool)
            side = common if common and common <= largest else largest
        path = folder / f"{key}-{side}"
        found = _opened(path, notify)
        if found and len(found.unreadable) > allow_unreadable and _some_readable_now(raw, found):
            found = None
        if found is None:
            labels, classes = read_labels(*raw.labels())
            with replacing_folder(path) as temporary:
                _decode_all(raw, labels, classes, side, temporary, pool, allow_unreadable, show_progress)
            found = _opened(path, notify)
            assert found is not None, path
    _check_unreadable(raw.name, found.unreadable, allow_unreadable)
    return found


# ------------------------------------------------------------------------------------------ on disk


def _opened(path: Path, notify: Callable[[str], None]) -> Stored | None:
    """The decoded split in `path`; None if it is missing or, with a notice, damaged.  Pixels are checked by size."""
    if not path.exists():
        return None
    try:
        envelope = json.loads((path / "header.json").read_text(encoding="utf-8"))
        header = envelope["header"]
        if envelope["sha256"] != json_sha256(header):
            raise ValueError("the header does not match its checksum")
        arrays = {}
        for name in ("labels", "sums"):
            content = (path / f"{name}.npy").read_bytes()
            if _sha256(content) != header[name]:
                raise ValueError(f"{name} do not match their checksum")
            arrays[name] = np.load(io.BytesIO(content), allow_pickle=False)
        shape, size = tuple(header["shape"]), (path / "images.npy").stat().st_size
        if size != NPY_HEADER + math.prod(shape):
            raise ValueError(f"images.npy has {size:,} bytes, not those of uint8 {list(shape)}")
        images = np.memmap(path / "images.npy", np.uint8, mode="c", offset=NPY_HEADER, shape=shape).view(np.ndarray)
    except (OSError, ValueError, KeyError, TypeError) as error:
        notify(f"decoded images in {path} are damaged ({error}); decoding again")
        return None
    unreadable = {int(row): reason for row, reason in header["unreadable"]}
    classes = Classes(header["class_names"], header["label_kind"])
    return Stored(images, arrays["labels"], arrays["sums"], classes, unreadable, header["fingerprint"])


def _decode_all(
    raw: RawSplit,
    labels: np.ndarray,
    classes: Classes,
    side: int,
    folder: Path,
    pool: ThreadPoolExecutor,
    allow_unreadable: int,
    show_progress: bool,
) -> None:
    shape = (len(labels), side, side, 3)
    needed, free = int(np.prod(shape)), shutil.disk_usage(folder).free
    if needed > 0.95 * free:  # on a full disk, writing to a memory map kills the process without a message
        raise UserError(
            f"cache.dir: {folder.parent} has {free / 1e9:.1f} GB free, the decoded {raw.name} images need "
            f"{needed / 1e9:.1f} GB; choose another folder or a smaller data.store_size"
        )
    with writing(folder.parent):
        images = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
        reserve(folder / "images.npy", (folder / "images.npy").stat().st_size)
    sums = np.zeros((len(labels), 2, 3), dtype=np.int64)
    unreadable: dict[int, str] = {}
    content = hashlib.sha256(json.dumps(shape).encode() + labels.tobytes())
    title = f"decoding {raw.name} images to {side}x{side}"
    hidden = None if show_progress else True  # None: hidden unless in a terminal
    with tqdm(total=len(labels), desc=title, unit=" images", leave=False, disable=hidden) as bar:
        for start, items in _chunks(raw, len(labels)):
            for row, (item, decoded) in enumerate(
                zip(items, pool.map(lambda item: _try_decode(item, side), items), strict=True), start
            ):
                if isinstance(decoded, str):
                    unreadable[row] = f"{item if isinstance(item, str) else f'row {row}'}: {decoded}"
                else:
                    images[row], sums[row] = decoded
            content.update(images[start : start + len(items)].data)
            bar.update(len(items))
    # A few more are kept and refused by `store`, so that a larger allow_unreadable decodes nothing again.
    _check_unreadable(raw.name, unreadable, max(allow_unreadable, len(labels) // 100))
    with writing(folder.parent):
        images.flush()
        np.save(folder / "labels.npy", labels)
        np.save(folder / "sums.npy", sums)
        header = {
            "shape": list(shape),
            "class_names": classes.names,
            "label_kind": classes.kind,
            "labels": _sha256((folder / "labels.npy").read_bytes()),
            "sums": _sha256((folder / "sums.npy").read_bytes()),
            "unreadable": [[row, reason] for row, reason in unreadable.items()],
            "fingerprint": content.hexdigest(),
        }
        envelope = {"header": header, "sha256": json_sha256(header)}
        (folder / "header.json").write_text(json.dumps(envelope), encoding="utf-8")


def _some_readable_now(raw: RawSplit, found: Stored) -> bool:
    tried = (try_decode(raw.images(row, row + 1)[0], found.side) for row in found.unreadable)
    return any(not isinstance(image, str) for image in tried)


def _check_unreadable(split: str, unreadable: dict[int, str], allowed: int) -> None:
    if len(unreadable) > allowed:
        shown = list(unreadable.values())[:20]
        more = f"\n  and {len(unreadable) - len(shown)} more" if len(unreadable) > len(shown) else ""
        raise UserError(
            f"{len(unreadable)} images of the {split} split cannot be read, and data.allow_unreadable is "
            f"{allowed}; repair or remove them, or raise data.allow_unreadable:\n  " + "\n  ".join(shown) + more
        )


def _chunks(raw: RawSplit, count: int) -> Iterator[tuple[int, list[Any]]]:
    for start in range(0, count, CHUNK):
        yield start, raw.images(start, min(start + CHUNK, count))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# ------------------------------------------------------------------------------------------ one image


def common_side(raw: RawSplit, meaning: str, folder: Path, threads: int | None) -> int | None:
    """The side of all images, if they are squares of one size, as `store` finds it; None otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        return _common_side(raw, folder / f"{_key(raw, meaning)}.json", pool)


def _key(raw: RawSplit, meaning: str) -> str:
    return json_sha256([VERSION, raw.key, meaning])[:20]


def _common_side(raw: RawSplit, remembered: Path, pool: ThreadPoolExecutor) -> int | None:
    """The side of all images, if they are squares of one size; computed once, from the files' headers."""
    try:
        found = json.loads(remembered.read_text(encoding="utf-8"))
        if found["sha256"] == json_sha256(found["common_side"]):
            return found["common_side"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # missing or damaged: computed again
    sizes: set[tuple[int, int]] = set()
    for _, items in _chunks(raw, len(raw.labels()[0])):
        sizes.update(size for size in pool.map(size_of, items) if size is not None)  # decoding reports the others
        if len(sizes) > 1:
            break
    common = sizes.pop() if len(sizes) == 1 else (0, 1)
    side = common[0] if common[0] == common[1] else None
    write_json(remembered, {"common_side": side, "sha256": json_sha256(side)})
    return side


def size_of(item: Any) -> tuple[int, int] | None:
    """Width and height of an image (bytes, a path, an array), from its header alone; None if it is not an image."""
    if isinstance(item, np.ndarray):
        return item.shape[1], item.shape[0]
    try:
        with Image.open(_file(item), formats=FORMATS) as image:
            return image.size
    except Exception:  # noqa: BLE001 - nothing is lost: the same file is reported when it is decoded
        return None


def _try_decode(item: Any, side: int) -> tuple[np.ndarray, np.ndarray] | str:
    """The image and its sums, or the reason why it cannot be decoded."""
    image = try_decode(item, side)
    if isinstance(image, str):
        return image
    values = image.reshape(-1, 3).astype(np.int64)
    return image, np.stack([values.sum(0), (values**2).sum(0)])


def try_decode(item: bytes | str | np.ndarray | None, side: int) -> np.ndarray | str:
    """`decode`, or the reason why it fails: a damaged file can raise any exception."""
    try:
        return decode(item, side)
    except Exception as error:  # noqa: BLE001 - collected, and reported all at once
        return first_line(error)


def decode(item: bytes | str | np.ndarray | None, side: int) -> np.ndarray:
    """An encoded image as uint8 [side,side,3]: upright, in RGB, the short side resized, its center cropped.

    Transparent images get a white background, 16-bit gray is scaled to 8 bits, animations give their first frame.

    Raises:
        ValueError: no image, more than MAX_PIXELS, pixels without a known range (32-bit float,
            integers beyond 16 bits).
        Exception: what Pillow raises for a damaged file.
    """
    if isinstance(item, np.ndarray):
        if item.shape == (side, side, 3):
            return item
        image = Image.fromarray(item)
    else:
        image = Image.open(_file(item), formats=FORMATS)
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width}x{image.height} pixels are more than {MAX_PIXELS:,}")
        upright = _rgb(_turned(image))
        if upright.size != (side, side):
            upright = ImageOps.fit(upright, (side, side), Image.Resampling.BICUBIC)
        return np.asarray(upright)


def _file(item: bytes | str | None) -> io.BytesIO | str:
    if not item:
        raise ValueError("there is no image")
    if isinstance(item, str) and not os.path.isfile(item):
        raise ValueError("no such file")
    return io.BytesIO(item) if isinstance(item, bytes) else item


def _turned(image: Image.Image) -> Image.Image:
    """As its EXIF orientation says.

    `ImageOps.exif_transpose` also writes the EXIF of the result, and fails there on photos whose other tags have types
    that Pillow cannot write.
    """
    image.load()  # which turns a TIFF
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001 - damaged tags, of any kind, say nothing of the pixels
        orientation = None
    turn = TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(Image.Transpose[turn])


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise ValueError("32-bit float pixels have no known range; convert them to 8 bits")
    if image.mode.startswith("I"):
        gray = np.asarray(image).astype(np.int64)
        if gray.min() < 0 or gray.max() > 65535:
            raise ValueError(f"pixels from {gray.min()} to {gray.max()} are not of 16 bits; convert them to 8 bits")
        return Image.fromarray((gray // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
