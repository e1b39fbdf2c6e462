"""Sources, decoding, the cache on disk, splits, and the image store."""

from __future__ import annotations

import decimal
import errno
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tracemalloc
from datetime import date
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pyarrow.parquet
import pytest
import torch
from image_files import cifar_python, encoded, features, image_tree, load, parquet, pixels, refuse, rows_of
from PIL import Image, ImageOps
from warm_process import WarmProcess

from kd_core.data import decoding
from kd_core.data.decoding import Classes, decode
from kd_core.data.image_store import ImageStore
from kd_core.data.labels import class_numbers
from kd_core.data.stratify import stratified
from kd_core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


# ---------------------------------------------------------------------------------------------- one image


def test_rgb_is_decoded_as_it_is() -> None:
    image = pixels(0)
    assert np.array_equal(decode(encoded(image), 32), image)
    assert np.array_equal(decode(image, 32), image)


def test_gray_palette_cmyk_and_bilevel() -> None:
    gray = pixels(0)[:, :, 0]
    assert np.array_equal(decode(encoded(gray), 32), np.stack([gray] * 3, -1))
    colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 8, 7]], dtype=np.uint8)
    index = pixels(1)[:, :, 0] % 4
    palette = Image.fromarray(index)
    palette.putpalette(colors.tobytes())
    file = io.BytesIO()
    palette.save(file, "png")
    assert Image.open(file).mode == "P"
    assert np.array_equal(decode(file.getvalue(), 32), colors[index])
    cmyk = encoded(np.full((32, 32, 3), (200, 40, 90), np.uint8), "jpeg", "CMYK")
    assert Image.open(io.BytesIO(cmyk)).mode == "CMYK"
    assert np.abs(decode(cmyk, 32).astype(int) - (200, 40, 90)).max() <= 4
    bilevel = decode(encoded(gray, mode="1"), 32)
    assert set(np.unique(bilevel)) == {0, 255}


def test_transparent_pixels_are_white() -> None:
    rgba = np.dstack([pixels(0), np.full((32, 32), 255, np.uint8)])
    rgba[:16, :, 3] = 0
    decoded = decode(encoded(rgba), 32)
    assert (decoded[:16] == 255).all() and np.array_equal(decoded[16:], rgba[16:, :, :3])
    palette = Image.fromarray(np.array([[0, 1]], np.uint8).repeat(32, 0).repeat(16, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    file = io.BytesIO()
    palette.save(file, "png", transparency=0)
    decoded = decode(file.getvalue(), 32)
    assert (decoded[:, :16] == 255).all() and (decoded[:, 16:] == (40, 50, 60)).all()


def test_sixteen_bit_gray_is_scaled() -> None:
    gray = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    decoded = decode(encoded(gray), 32)
    assert decoded[0, 0, 0] == 0 and decoded[-1, -1, 0] == 255
    assert np.abs(decoded[:, :, 1].astype(int) - gray // 257).max() == 0


def test_exif_rotation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    image = pixels(0)
    assert np.array_equal(decode(encoded(image, exif=exif), 32), np.rot90(image, -1))


def test_photos_whose_other_tags_cannot_be_written_are_turned_all_the_same() -> None:
    """As `ImageOps.exif_transpose` fails on them."""
    exif = Image.Exif()
    exif[0x0112], exif[0x0128] = 6, 2  # the other is the unit of the resolution, a number
    tags = exif.tobytes()
    for number in (b"\x28\x01\x03\x00", b"\x01\x28\x00\x03"):  # in either order of bytes
        tags = tags.replace(number, number.replace(b"\x03", b"\x07"))
    assert tags != exif.tobytes()  # its type is none of a number
    photo, plain = encoded(pixels(0), "jpeg", exif=tags), encoded(pixels(0), "jpeg")
    with pytest.raises((TypeError, struct.error)), Image.open(io.BytesIO(photo)) as opened:
        ImageOps.exif_transpose(opened)
    assert np.array_equal(decode(photo, 32), np.rot90(decode(plain, 32), -1))


def test_every_orientation() -> None:
    image = pixels(0)
    for number in range(9):
        exif = Image.Exif()
        exif[0x0112] = number
        with Image.open(io.BytesIO(encoded(image, exif=exif))) as opened:
            assert np.array_equal(decode(encoded(image, exif=exif), 32), np.asarray(ImageOps.exif_transpose(opened)))


def test_integers_without_a_known_range_are_refused() -> None:
    for values in (np.full((32, 32), -1000), np.full((32, 32), 70000)):
        buffer = io.BytesIO()
        Image.fromarray(values.astype(np.int32)).save(buffer, "tiff")
        with pytest.raises(ValueError, match="are not of 16 bits; convert them to 8 bits"):
            decode(buffer.getvalue(), 32)


def test_other_sizes_are_resized_by_the_short_side_and_cropped() -> None:
    image = np.zeros((64, 200, 3), np.uint8)
    image[:, 68:132] = 255  # the center square
    assert (decode(encoded(image), 32)[:, 1:-1] == 255).all()  # at the border the filter sees its neighbors
    assert (decode(encoded(image[:, 68:]), 32)[:, -16:] == 0).all()
    assert decode(encoded(image[:20, :30]), 32).shape == (32, 32, 3)


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = encoded(np.zeros((400, 400, 3), np.uint8))
    monkeypatch.setattr(decoding, "MAX_PIXELS", 399 * 400)
    Image.init()  # one of Pillow's plugins makes an image as it is imported
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="400x400 pixels"):
        decode(bomb, 32)


# -------------------------------------------------------------------------------------- a folder of images


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 classes, sides from 80 to 2,000 pixels, a gray, a truncated and an unreadable file, no test split."""
    folder = tmp_path_factory.mktemp("mixed")
    for number in range(12):
        (folder / f"kind_{number:02d}").mkdir()
        for copy in range(5):
            height, width = 80 + 17 * number, 80 + 31 * copy
            image = np.full((height, width, 3), (20 * number, 50 * copy, 128), np.uint8)
            (folder / f"kind_{number:02d}" / f"{copy}.jpg").write_bytes(encoded(image, "jpeg"))
    (folder / "kind_00/0.jpg").write_bytes(encoded(np.full((2000, 1500, 3), 99, np.uint8), "jpeg"))
    (folder / "kind_01/0.jpg").write_bytes(encoded(np.full((90, 80), 7, np.uint8), "jpeg"))
    (folder / "kind_02/0.jpg").write_bytes(encoded(pixels(0, 300), "jpeg")[:9_000])
    (folder / "kind_03/0.jpg").write_bytes(b"not an image at all")
    return folder


def test_unreadable_files_stop_the_run_by_name(mixed: Path, tmp_path: Path) -> None:
    message = refuse(tmp_path, source="imagefolder", path=str(mixed), allow_unreadable=1)
    assert "2 images of the train split" in message and "allow_unreadable is 1" in message
    assert "kind_02/0.jpg: " in message and "kind_03/0.jpg: " in message and "kind_01" not in message


def test_allowing_unreadable_files_decodes_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If they are few; as long as they are not allowed, they are tried again."""
    for number in range(200):
        place = tmp_path / "many" / f"kind_{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:03}.png").write_bytes(encoded(pixels(number % 5)))
    bad = tmp_path / "many/kind_1/001.png"
    bad.write_bytes(b"not an image at all")
    own: dict[str, Any] = {"source": "imagefolder", "path": str(tmp_path / "many")}
    assert "allow_unreadable is 0" in refuse(tmp_path, **own)
    decoded: list[Any] = []
    original = decoding.decode
    monkeypatch.setattr(decoding, "decode", lambda item, side: decoded.append(item) or original(item, side))
    data = load(tmp_path, **own, allow_unreadable=1)
    assert not decoded and any("1 unreadable images dropped" in note for note in data.notes)
    assert "allow_unreadable is 0" in refuse(tmp_path, **own) and str(bad) in decoded


def test_the_mixed_folder_trains_with_clear_messages(mixed: Path, tmp_path: Path) -> None:
    words = [
        "train_kd.py", "--teachers=[]", "--kd.type=baseline", "--no-wandb", "--data.source=imagefolder",
        f"--data.path={mixed}", f"--output_dir={tmp_path / 'runs'}", f"--cache.dir={tmp_path / 'cache'}",
        "--data.batch_size=16", "--training.max_epochs=2", "--training.compare_with_baseline=false",
        "--evaluation.report=false",
        "--data.val_size=0.2",
    ]  # fmt: skip
    refused = WarmProcess(words)
    message, _ = refused.communicate(timeout=300)
    assert refused.returncode == 2 and "Traceback" not in message and not (tmp_path / "runs").exists()
    assert "kind_02/0.jpg" in message and "kind_03/0.jpg" in message
    done = WarmProcess([*words, "--data.allow_unreadable=2"])
    printed, _ = done.communicate(timeout=300)
    assert done.returncode == 0, printed
    assert "2 unreadable images dropped" in printed and "test: none found" in printed
    assert "epoch 2/2" in printed and "validation accuracy" in printed


def test_mixed_folder(mixed: Path, tmp_path: Path) -> None:
    settings = {"source": "imagefolder", "path": str(mixed), "allow_unreadable": 2}
    data = load(tmp_path, model_sizes=(28, 56), **settings)
    assert data.image_size == 64 and data.train.images.shape == (60, 64, 64, 3)
    assert data.class_names == [f"kind_{number:02d}" for number in range(12)]
    assert data.test() is None and any("test: none found" in note for note in data.notes)
    assert any("2 unreadable images dropped" in note and "kind_03/0.jpg" in note for note in data.notes)
    assert data.val is not None and len(data.val) == 12 and len(data.train) == 60 - 2 - 12
    assert data.train.labels[data.val.rows].unique().numel() == 12
    used = torch.cat([data.train.rows, data.val.rows])
    assert used.unique().numel() == 58 and not {10, 15} & set(used.tolist())
    assert (data.train.images[5] == 7).all() and (data.train.images[0] == 99).all()  # the gray, the large
    assert (data.train.images[59].float().mean((0, 1)) - torch.tensor([220.0, 200, 128])).abs().max() < 4
    kept = data.train.images[data.train.rows].double() / 255  # the statistics: of the training rows alone
    assert kept.mean((0, 1, 2)).sub(torch.tensor(data.mean)).abs().max() < 1e-4
    assert kept.std((0, 1, 2), correction=0).sub(torch.tensor(data.std)).abs().max() < 1e-4
    # What was decoded with two files missing is not handed to a run that allows none.
    assert "allow_unreadable is 0" in refuse(tmp_path, store_size=64, **{**settings, "allow_unreadable": 0})


def test_folders_named_by_split(tmp_path: Path) -> None:
    names = [f"{split}/{kind}" for split in ("train", "valid") for kind in ("cat", "dog", "train")]
    folder = image_tree(tmp_path / "tree", *names, "test/dog")
    data = load(tmp_path, source="imagefolder", path=str(folder))
    assert data.class_names == ["cat", "dog", "train"] and len(data.train) == 12
    assert data.val is not None and len(data.val) == 12 and data.image_size == 32
    test = data.test()
    assert test is not None and test.labels.tolist() == [1] * 4  # by name, though it is the only class there
    image_tree(folder / "test", "cow")
    with pytest.raises(UserError, match="class 'cow' does not occur in training"):
        load(tmp_path, source="imagefolder", path=str(folder)).test()


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    folder = image_tree(tmp_path / "tree [1]", "boat", "test", "train")
    assert "data.folders=classes" in refuse(tmp_path, source="imagefolder", path=str(folder), val_size=0)
    data = load(tmp_path, source="imagefolder", path=str(folder), val_size=0, folders="classes")
    assert data.class_names == ["boat", "test", "train"] and len(data.train) == 12 and data.val is None


# ------------------------------------------------------------------------------------------- other sources


def test_parquet_folder_and_second_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = parquet(tmp_path / "data", train=40, test=6)
    first = load(tmp_path, source="parquet", path=str(folder), val_size=7)
    assert len(first.train) == 33 and first.val is not None and len(first.val) == 7
    for row in range(40):
        assert np.array_equal(first.train.images[row].numpy(), pixels(row))
    assert first.train.labels.tolist() == [row % 3 for row in range(40)]
    monkeypatch.setattr(decoding, "decode", lambda *_: pytest.fail("decoded twice"))
    second = load(tmp_path, model_sizes=(224,), source="parquet", path=str(folder), val_size=7)
    assert second.image_size == 32 and second.fingerprint == first.fingerprint
    assert second.train.images.equal(first.train.images) and second.train.rows.equal(first.train.rows)
    assert second.mean == first.mean and second.std == first.std


def test_class_names_of_a_splits_files_are_translated(tmp_path: Path) -> None:
    """datasets takes the first file's names for all, which would exchange the labels of the second."""
    (tmp_path / "data").mkdir()
    first, second = ["cat", "dog", "owl"], ["owl", "dog", "cat"]
    for number, names in enumerate((first, second)):
        table = datasets.Dataset.from_dict(rows_of(6, first=6 * number), features=features(names=names))
        table.to_parquet(tmp_path / f"data/train-{number}.parquet")
    data = load(tmp_path, source="parquet", path=str(tmp_path / "data"), val_size=0)
    assert [data.class_names[label] for label in data.train.labels] == [*first, *first, *second, *second]
    assert all(np.array_equal(data.train.images[row].numpy(), pixels(row)) for row in range(12))
    assert any("translated by name" in note for note in data.notes)
    fewer = datasets.Dataset.from_dict(rows_of(4, 2, first=20), features=features(names=["dog", "emu"]))
    fewer.to_parquet(tmp_path / "data/train-2.parquet")
    data = load(tmp_path, source="parquet", path=str(tmp_path / "data"), val_size=0)
    assert [data.class_names[label] for label in data.train.labels[12:]] == ["dog", "emu"] * 2


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ([0, 1, 2, 0], "train-0.parquet has names, train-1.parquet has numbers"),
        (["cat", "emu", "cat", "cat"], "class 'emu' does not occur in the other files"),
    ],
)
def test_a_splits_files_with_labels_of_other_kinds(tmp_path: Path, labels: list[Any], problem: str) -> None:
    (tmp_path / "data").mkdir()
    named = datasets.Dataset.from_dict(rows_of(6), features=features(names=["cat", "dog", "owl"]))
    named.to_parquet(tmp_path / "data/train-0.parquet")
    rows = rows_of(4, first=6) | {"label": labels}
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    table.to_parquet(tmp_path / "data/train-1.parquet")
    assert problem in refuse(tmp_path, source="parquet", path=str(tmp_path / "data"))


def test_text_in_one_file_and_numbers_in_another(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number, labels in enumerate(([0, 1, 0, 1], ["0", "1", "0", "1"])):
        rows = rows_of(4, first=4 * number) | {"label": labels}
        table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
        table.to_parquet(tmp_path / f"data/train-{number}.parquet")
    message = refuse(tmp_path, source="parquet", path=str(tmp_path / "data"))
    assert "train-0.parquet has numbers, train-1.parquet has text" in message


def test_a_column_of_splits_is_not_trained_over(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    file, rows = tmp_path / "data/images.parquet", rows_of(6)
    for column, words, refused in (
        ("split", ["train", "test"], True), ("split", ["train", "train"], False), ("data_split", ["tr", "test"], True),
        ("phase", ["train", "val"], True), ("origin", ["train", "eval"], True), ("is_train", [True, False], True),
        ("is_test", [0, 1], True), ("origin", ["a", "test"], False), ("fold", [0, 1], False),
        ("covid_test", ["pos", "neg"], False),
    ):  # fmt: skip
        table = datasets.Dataset.from_dict(rows | {column: words * 3}).cast_column("image", datasets.Image())
        table.to_parquet(file)
        if refused:
            assert f"column {column!r}" in refuse(tmp_path, source="parquet", path=str(file.parent), val_size=0)
        else:
            data = load(tmp_path, source="parquet", path=str(file.parent), val_size=0)
            told = any("column 'fold' (0, 1) is not read" in note for note in data.notes)
            assert len(data.train) == 6 and told == (column == "fold")


@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_table_of_paths_says_so(tmp_path: Path, kind: str) -> None:
    (tmp_path / "data").mkdir()
    paths = [f"pictures/{number}.png" for number in range(6)]
    images = paths if kind == "text" else [{"bytes": None, "path": path} for path in paths]
    table = datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 3})
    table = table if kind == "text" else table.cast_column("image", datasets.Image())
    pyarrow.parquet.write_table(table.data.table, tmp_path / "data/train.parquet")
    message = refuse(tmp_path, source="parquet", path=str(tmp_path / "data"), val_size=0)
    assert "data.image_column" in message and "paths" in message and "pictures/0.png" in message


def test_parquet_files_that_were_replaced_are_read_again(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "data", train=12)
    before = load(tmp_path, source="parquet", path=str(folder), val_size=0)
    file = folder / "train-00000-of-00001.parquet"
    times, rows = file.stat(), rows_of(12, first=50)
    datasets.Dataset.from_dict(rows | {"label": [2, 1, 0] * 4}, features=features()).to_parquet(file)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    if file.stat().st_size == times.st_size:
        pytest.skip("the files happen to have one size")
    after = load(tmp_path, source="parquet", path=str(folder), val_size=0)
    assert np.array_equal(after.train.images[0].numpy(), pixels(50)) and after.fingerprint != before.fingerprint


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of memory maps")
def test_images_are_memory_mapped_and_never_written(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "data", train=12)
    data = load(tmp_path, source="parquet", path=str(folder))
    file = next((tmp_path / "cache").rglob("images.npy"))
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(file) in line]
    ranges = [[int(end, 16) for end in words[0].split("-")] for words in maps]
    assert any(start <= data.train.images.data_ptr() < stop for start, stop in ranges)
    before = file.read_bytes()
    data.train.images[0] = 0
    assert file.read_bytes() == before


def test_nothing_of_the_test_split_is_touched(tmp_path: Path) -> None:
    """Each source trains on with a test split that cannot even be opened, and says so when it is asked for."""
    parquet(tmp_path / "files", train=12)
    (tmp_path / "files/test-0.parquet").write_bytes(b"junk")
    tree = image_tree(tmp_path / "tree", "train/a", "train/b", "test/a")
    for file in tree.glob("test/a/*"):
        file.write_bytes(b"junk")
    disk = datasets.Dataset.from_dict(rows_of(12), features=features())
    datasets.DatasetDict(train=disk, test=disk).save_to_disk(tmp_path / "disk")
    shutil.rmtree(tmp_path / "disk/test")
    python = cifar_python(tmp_path / "python")
    (python / "test").write_bytes(b"junk")
    for source, path in (("parquet", "files"), ("imagefolder", "tree"), ("disk", "disk"), ("cifar_python", "python")):
        data = load(tmp_path, source=source, path=str(tmp_path / path), val_size=0)
        assert len(data.train) >= 8
        with pytest.raises(UserError):
            data.test()
    assert len(list((tmp_path / "cache/images").glob("*-32"))) == 4


def test_save_to_disk(tmp_path: Path) -> None:
    train, test = (
        datasets.Dataset.from_dict(rows_of(count, first=first), features=features())
        for count, first in ((20, 0), (5, 100))
    )
    datasets.DatasetDict(train=train, test=test).save_to_disk(tmp_path / "both")
    train.save_to_disk(tmp_path / "one")
    both, one = (load(tmp_path, source="disk", path=str(tmp_path / name)) for name in ("both", "one"))
    assert both.fingerprint == one.fingerprint  # the same content, wherever it lies
    found = both.test()
    assert found is not None and np.array_equal(found.images[4].numpy(), pixels(104)) and one.test() is None
    assert "not written by save_to_disk" in refuse(tmp_path, source="disk", path=str(tmp_path))
    for text, problem in (("{}", "has no list 'splits'"), ("[]", "damaged, holds a list")):
        (tmp_path / "both/dataset_dict.json").write_text(text)
        assert problem in refuse(tmp_path, source="disk", path=str(tmp_path / "both"))


def test_damaged_offsets_are_refused_before_arrow_follows_them(tmp_path: Path) -> None:
    datasets.Dataset.from_dict(rows_of(20), features=features()).save_to_disk(tmp_path / "data")
    sizes = [len(row["bytes"]) for row in rows_of(20)["image"]]
    offsets = np.cumsum([0, *sizes]).astype(np.int32).tobytes()
    file = next((tmp_path / "data").glob("*.arrow"))
    content = file.read_bytes()
    assert content.count(offsets[:40]) == 1
    file.write_bytes(content.replace(offsets[:40], offsets[:36] + np.int32(2**30).tobytes()))
    assert "split 'train' is damaged" in refuse(tmp_path, source="disk", path=str(tmp_path / "data"))


def test_cifar_python_files(tmp_path: Path) -> None:
    cifar_python(tmp_path / "down/cifar-100-python")
    for path in (tmp_path / "down", tmp_path / "down/cifar-100-python"):
        data = load(tmp_path, source="cifar_python", path=str(path), val_size=0)
        assert data.class_names == ["a", "b", "c", "d"] and data.train.labels.tolist() == [0, 1, 2, 3] * 2
        assert np.array_equal(data.train.images[5].numpy(), pixels(5))
        test = data.test()
        assert test is not None and np.array_equal(test.images[7].numpy(), pixels(57))
    coarse = load(tmp_path, source="cifar_python", path=str(tmp_path / "down"), label_column="coarse_label", val_size=0)
    assert coarse.class_names == ["ab", "cd"] and coarse.train.labels.tolist() == [0, 0, 1, 1] * 2
    assert "fine_label, coarse_label" in refuse(
        tmp_path, source="cifar_python", path=str(tmp_path / "down"), label_column="kind"
    )


def test_cifar10_python_files_join_five_batches(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for number in range(1, 6):
        planes = np.stack([pixels(2 * number + row).transpose(2, 0, 1).reshape(-1) for row in range(2)])
        (folder / f"data_batch_{number}").write_bytes(pickle.dumps({"data": planes, "labels": [0, 1]}, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["plane", "car"]}, protocol=2))
    data = load(tmp_path, source="cifar_python", path=str(folder), val_size=0)
    assert data.class_names == ["plane", "car"] and len(data.train) == 10
    assert np.array_equal(data.train.images[9].numpy(), pixels(11))


class Hostile:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


def test_hostile_pickle_runs_nothing(tmp_path: Path) -> None:
    folder, target = cifar_python(tmp_path / "cifar"), tmp_path / "struck"
    hostile = pickle.dumps({"data": Hostile(target)}, protocol=2)
    pickle.loads(hostile)
    assert target.is_dir()  # the file would do it
    target.rmdir()
    (folder / "train").write_bytes(hostile)
    message = refuse(tmp_path, source="cifar_python", path=str(folder))
    assert "mkdir" in message and str(folder / "train") in message and not target.exists()


@pytest.mark.parametrize(
    "code", [pickle.LONG_BINPUT + (2**26).to_bytes(4, "little"), pickle.BYTEARRAY8 + b"\0\0\0\0\1\0\0\0"]
)
def test_a_pickle_takes_no_more_memory_than_it_holds(code: bytes, tmp_path: Path) -> None:
    folder = cifar_python(tmp_path / "cifar-100-python")
    (folder / "train").write_bytes(pickle.PROTO + b"\2" + pickle.EMPTY_LIST + code + pickle.STOP)
    tracemalloc.start()
    try:
        assert "is no CIFAR file" in refuse(tmp_path, source="cifar_python", path=str(folder))
        assert tracemalloc.get_traced_memory()[1] < 2**28
    finally:
        tracemalloc.stop()


def test_digits(tmp_path: Path) -> None:
    data = load(tmp_path, source="digits", val_size=0.15)
    test = data.test()
    assert test is not None and data.val is not None and data.num_classes == 10 and data.image_size == 32
    assert len(test) == 270 and len(data.val) == 229 and len(data.train) == 1797 - 270 - 229
    assert test.labels.bincount().min() >= 25
    everything = torch.cat([data.train.images, test.images]).flatten(1)
    assert everything.unique(dim=0).shape[0] == 1797  # no digit is in both
    assert data.train.images[..., 0].equal(data.train.images[..., 2])


# ---------------------------------------------------------------------------------------- the cache on disk


@pytest.mark.parametrize("damage", ["images", "labels", "sums", "header", "lost", "short"])
def test_damaged_cache_is_decoded_again(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = parquet(tmp_path / "data", train=12)
    first = load(tmp_path, source="parquet", path=str(folder), val_size=0)
    images, labels = first.train.images.clone(), first.train.labels.clone()
    cache = next((tmp_path / "cache/images").glob("*-32"))
    if damage == "lost":
        (cache / "labels.npy").unlink()
    elif damage == "header":
        text = (cache / "header.json").read_text()
        (cache / "header.json").write_text(text.replace("class 1", "class 9"))
    elif damage in ("images", "short"):
        os.truncate(cache / "images.npy", 20_000 if damage == "images" else 0)
    else:
        content = bytearray((cache / f"{damage}.npy").read_bytes())
        content[-1] ^= 1
        (cache / f"{damage}.npy").write_bytes(content)
    second = load(tmp_path, source="parquet", path=str(folder), val_size=0)
    assert "damaged" in capsys.readouterr().out
    assert second.train.images.equal(images) and second.train.labels.equal(labels)
    assert second.class_names == first.class_names and second.mean == first.mean


def test_a_damaged_note_of_the_size_is_rebuilt(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "data", train=12)
    load(tmp_path, source="parquet", path=str(folder), val_size=0)
    note = next((tmp_path / "cache/images").glob("*.json"))
    note.write_text(note.read_text().replace("32", "12"))
    assert load(tmp_path, source="parquet", path=str(folder), val_size=0).image_size == 32


def test_changed_source_is_decoded_again(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "data", train=12)
    first = load(tmp_path, source="parquet", path=str(folder))
    shutil.rmtree(folder)
    parquet(folder, train=15)
    second = load(tmp_path, source="parquet", path=str(folder))
    assert len(second.train.labels) == 15 and second.fingerprint != first.fingerprint


def test_processes_decode_at_the_same_time(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "data", train=40)
    code = (
        "from pathlib import Path; from kd_core.config import DataConfig; from kd_core.data.dataset import load_data;"
        f"d = load_data(DataConfig(source='parquet', path={str(folder)!r}), model_sizes=[32],"
        f" cache_dir=Path({str(tmp_path / 'cache')!r}), show_progress=False);"
        "print(d.fingerprint, int(d.train.images.sum()))"
    )
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [worker.communicate(timeout=600)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0] and said[0] == said[1] != ""
    left = sorted(path.name for path in (tmp_path / "cache/images").iterdir() if not path.name.endswith(".lock"))
    assert len(left) == 2 and left[0].endswith("-32") and left[1].endswith(".json")


def test_a_full_disk_is_reported_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=20_000)
    monkeypatch.setattr(decoding.shutil, "disk_usage", lambda _: usage)
    message = refuse(tmp_path, source="parquet", path=str(parquet(tmp_path / "data", train=12)))
    assert "cache.dir" in message and not list((tmp_path / "cache").rglob("images.npy"))


def test_a_disk_that_fills_up_while_images_are_decoded_is_one_message(tmp_path, monkeypatch) -> None:
    """The room is taken before the map is written to, which else would end the process."""

    def full(file: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    message = refuse(tmp_path, source="parquet", path=str(parquet(tmp_path / "data", train=12)))
    assert "cannot be written: No space left on device" in message
    assert not list((tmp_path / "cache").rglob("images.npy"))


# --------------------------------------------------------------------------------------- splits and sizes


def test_stratified_takes_each_class_in_proportion() -> None:
    labels = np.arange(1_000) % 10
    rows = np.arange(5_000, 6_000)
    taken = stratified(labels, rows, 200, seed=0, stream=0)
    assert np.array_equal(np.bincount(labels[taken - 5_000]), [20] * 10)
    assert np.array_equal(taken, stratified(labels, rows, 200, seed=0, stream=0))
    assert not np.array_equal(taken, stratified(labels, rows, 200, seed=1, stream=0))
    shuffled = np.random.default_rng(0).permutation(1_000)
    assert np.array_equal(taken, stratified(labels[shuffled], rows[shuffled], 200, seed=0, stream=0))


def test_stratified_leaves_something_of_every_class() -> None:
    labels = np.array([0] * 100 + [1] * 10 + [2, 3, 3])
    for count in range(len(labels) - 4 + 1):
        taken = stratified(labels, np.arange(len(labels)), count, seed=3, stream=0)
        sizes = np.bincount(labels[taken], minlength=4)
        assert len(taken) == count and (sizes < [100, 10, 1, 2]).sum() + (sizes[2] == 0) >= 4
    assert np.array_equal(np.bincount(labels[stratified(labels, np.arange(113), 22, seed=3, stream=0)])[:2], [20, 2])


def test_validation_and_subset_sizes(tmp_path: Path) -> None:
    folder = str(parquet(tmp_path / "data", train=60))
    base = load(tmp_path, source="parquet", path=folder)
    assert base.val is not None and len(base.val) == 6
    assert base.train.labels[base.val.rows].bincount().tolist() == [2, 2, 2]
    small = load(tmp_path, source="parquet", path=folder, train_size=0.5)
    smaller = load(tmp_path, source="parquet", path=folder, train_size=9)
    assert small.val is not None and small.val.rows.equal(base.val.rows)
    assert len(small.train) == 27 and small.train.labels[smaller.train.rows].bincount().tolist() == [3, 3, 3]
    assert set(smaller.train.rows.tolist()) < set(small.train.rows.tolist()) < set(base.train.rows.tolist())
    other = load(tmp_path, source="parquet", path=folder, split_seed=1)
    assert other.val is not None and not other.val.rows.equal(base.val.rows)
    assert other.fingerprint == base.fingerprint
    for size, words in ((61, "61 of the 60"), (58, "3 to 57"), (2, "with 3 classes"), (0.999, "60 of the 60")):
        message = refuse(tmp_path, source="parquet", path=folder, val_size=size)
        assert "data.val_size" in message and words in message
    assert "data.train_size" in refuse(tmp_path, source="parquet", path=folder, train_size=59)
    assert len(load(tmp_path, source="parquet", path=folder, train_size=1.0).train) == 54  # a sweep's largest share


def test_a_test_split_is_cut_before_the_others(tmp_path: Path) -> None:
    folder = str(parquet(tmp_path / "data", train=60))
    without = load(tmp_path, source="parquet", path=folder)
    assert without.test() is None and any("data.test_size cuts it" in note for note in without.notes)
    data = load(tmp_path, source="parquet", path=folder, test_size=0.2, train_size=30)
    test = data.test()
    assert test is not None and data.val is not None and data.test() is test
    assert any("test: 12 images cut from training" in note for note in data.notes)
    parts = [part.rows.tolist() for part in (data.train, data.val, test)]
    assert [len(part) for part in parts] == [30, 5, 12] and len(set(sum(parts, []))) == 47
    assert test.labels[test.rows].bincount().tolist() == [4, 4, 4] and test.fingerprint == data.train.fingerprint
    kept = data.train.images[data.train.rows].double() / 255  # the statistics: of the training rows alone
    assert np.allclose(data.mean, kept.mean((0, 1, 2)), atol=1e-4)
    assert np.allclose(data.std, kept.flatten(0, 2).std(0), atol=1e-3)
    again = load(tmp_path, source="parquet", path=folder, test_size=12).test()
    assert again is not None and again.rows.equal(test.rows)
    other = load(tmp_path, source="parquet", path=folder, test_size=12, split_seed=1).test()
    assert other is not None and not other.rows.equal(test.rows)
    # not the rows that validation of this size would be
    val = load(tmp_path, source="parquet", path=folder, val_size=12).val
    assert val is not None and not val.rows.equal(test.rows)
    for size, words in ((61, "61 of the 60"), (58, "3 to 57"), (2, "with 3 classes")):
        message = refuse(tmp_path, source="parquet", path=folder, test_size=size)
        assert "data.test_size" in message and words in message


def test_no_test_split_is_cut_where_there_is_one(tmp_path: Path) -> None:
    folder = str(parquet(tmp_path / "data", train=60, test=9))
    assert "data.test_size" in (message := refuse(tmp_path, source="parquet", path=folder, test_size=0.2))
    assert "a test split of its own, 'test'" in message
    assert "a test split of its own" in refuse(tmp_path, source="digits", test_size=0.2)


def test_own_validation_split_is_used_unless_a_size_is_asked_for(tmp_path: Path) -> None:
    folder = str(parquet(tmp_path / "data", train=30, dev=8))
    own = load(tmp_path, source="parquet", path=folder)
    assert own.val is not None and len(own.val) == len(own.val.labels) == 8 and len(own.train) == 30
    cut = load(tmp_path, source="parquet", path=folder, val_size=5)
    assert cut.val is not None and len(cut.val) == 5 and len(cut.train) == 25
    assert load(tmp_path, source="parquet", path=folder, val_size=0).val is None


def test_split_names(tmp_path: Path) -> None:
    folder = str(parquet(tmp_path / "data", train=30, odd=9))
    data = load(tmp_path, source="parquet", path=folder, test_split="odd", val_size=0)
    test = data.test()
    assert test is not None and len(test) == 9
    message = refuse(tmp_path, source="parquet", path=folder, val_split="tests")
    assert "data.val_split" in message and "'tests'" in message and "train" in message
    assert "another role" in refuse(tmp_path, source="parquet", path=folder, test_split="train")


# ------------------------------------------------------------------------------------------ columns, labels


def write(folder: Path, table: dict[str, list[Any]], types: datasets.Features | None = None) -> str:
    folder.mkdir()
    datasets.Dataset.from_dict(table, features=types).to_parquet(folder / "train.parquet")
    return str(folder)


def test_columns_by_name(tmp_path: Path) -> None:
    table = rows_of(12)
    table = {"photo": table["image"], "thumb": table["image"], "kind": [f"k{n}" for n in table["label"]], "n": [1] * 12}
    types = datasets.Features(
        photo=datasets.Image(), thumb=datasets.Image(), kind=datasets.Value("string"), n=datasets.Value("int64")
    )
    path = write(tmp_path / "data", table, types)
    message = refuse(tmp_path, source="parquet", path=path)
    assert "data.image_column" in message and "images are in: photo, thumb" in message
    message = refuse(tmp_path, source="parquet", path=path, image_column="photo")
    assert "data.label_column" in message and "labels could be: kind, n" in message
    message = refuse(tmp_path, source="parquet", path=path, image_column="foto", label_column="kind")
    assert "'foto' does not exist" in message and "photo, thumb, kind, n" in message
    data = load(tmp_path, source="parquet", path=path, image_column="photo", label_column="kind", val_size=0)
    assert data.class_names == ["k0", "k1", "k2"] and data.train.labels.tolist() == [0, 1, 2] * 4


def test_images_as_bytes_and_integer_labels(tmp_path: Path) -> None:
    table = rows_of(12)
    types = datasets.Features(raw=datasets.Value("binary"), label=datasets.Value("int32"))
    path = write(tmp_path / "data", {"raw": [i["bytes"] for i in table["image"]], "label": table["label"]}, types)
    data = load(tmp_path, source="parquet", path=path, image_column="raw", val_size=0)
    assert data.class_names == ["0", "1", "2"] and np.array_equal(data.train.images[3].numpy(), pixels(3))


NAN = float("nan")
TEXT, NAMED = Classes(["a", "b"], "text"), Classes(["a", "b"], "named")
NUMBERS, DIGITS = Classes(["0", "1", "2"], "number"), Classes(["0", "1", "2"], "named")
ANIMALS = Classes(["cat", "cow", "dog"], "named")
BOOLEANS = Classes(["false", "true"], "boolean")


@pytest.mark.parametrize(
    ("values", "names", "training", "labels", "classes"),
    [
        (["b", "a", "b"], None, None, [1, 0, 1], TEXT),
        ([1, 0, 1], ["a", "b"], None, [1, 0, 1], NAMED),
        ([2, 0], None, None, [2, 0], NUMBERS),
        ([2.0, 0.0], None, None, [2, 0], NUMBERS),
        ([2, 0.0], None, None, [2, 0], NUMBERS),
        ([True, False], None, None, [1, 0], BOOLEANS),
        ([True, True], None, None, [1, 1], BOOLEANS),
        (["false", "true"], None, None, [0, 1], Classes(["false", "true"], "text")),
        (["10", "2", "1"], None, None, [1, 2, 0], Classes(["1", "10", "2"], "text")),
        # other splits are translated by name
        (["b"], None, TEXT, [1], TEXT),
        (["b"], None, NAMED, [1], NAMED),
        ([0], ["b", "a"], NAMED, [1], NAMED),
        ([0], ["b"], TEXT, [1], TEXT),
        ([0, 1], ["dog", "cat"], ANIMALS, [2, 0], ANIMALS),
        ([0, 1], ["dog", "cow", "unused"], ANIMALS, [2, 1], ANIMALS),
        ([1.0], None, NUMBERS, [1], NUMBERS),
        ([True], None, BOOLEANS, [1], BOOLEANS),
        # numbers that are also called by their numbers are these
        ([2, 1.0], None, DIGITS, [2, 1], DIGITS),
        ([2, 1], ["0", "1", "2", "3"], NUMBERS, [2, 1], NUMBERS),
    ],
)
def test_class_numbers(values: Any, names: Any, training: Any, labels: Any, classes: Classes) -> None:
    found, same = class_numbers(values, names, training, "x")
    assert found.tolist() == labels and found.dtype == np.int64 and same == classes


@pytest.mark.parametrize(
    ("values", "names", "training", "words"),
    [
        ([], None, None, "no images"),
        ([0, 3], ["a", "b"], None, "row 1 has label 3, outside the range 0 to 1"),
        ([0, -2], None, None, "row 1 has label -2"),
        ([-2, -3], None, None, "row 0 has label -2, outside the range 0 to 0"),
        ([0, 2**63], None, None, "split exam: 9,223,372,036,854,775,809 classes, at most 100,000 are possible"),
        ([0, 10**5000], None, None, "more than 1e20 classes, at most 100,000 are possible"),
        ([0.0, 1e300], None, None, "more than 1e20 classes, at most 100,000 are possible"),
        ([0, 10**5000], None, NUMBERS, "row 1 has label beyond 1e20, outside the range 0 to 2"),
        ([0, 5], None, NUMBERS, "row 1 has label 5, outside the range 0 to 2"),
        ([0, 5], None, DIGITS, "class '5' does not occur in training"),
        ([0, -1], ["a", "b"], None, r"row 1 has no label \(-1\)"),
        ([0, None], None, None, r"row 1 has no label \(None\)"),
        ([0.0, NAN], None, None, r"row 1 has no label \(nan\)"),
        (["a", None], None, None, r"row 1 has no label \(None\)"),
        (["a", " "], None, None, r"row 1 has no label \(' '\)"),
        ([True, None], None, None, r"row 1 has no label \(None\)"),
        ([0.0, 0.5], None, None, "row 1 has label 0.5, of type float; class numbers must be whole"),
        ([0.0, float("inf")], None, None, "row 1 has label inf, of type float"),
        (["a", 1], None, None, "labels are of type int, str; expected whole numbers, text"),
        ([True, 1], None, None, "labels are of type bool, int; expected"),
        ([[1], [0]], None, None, "labels are of type list; expected"),
        ([decimal.Decimal(1)], None, None, "labels are of type Decimal; expected"),
        ([{}], None, None, "labels are of type dict; expected"),
        (["a", "z"], None, TEXT, "class 'z' does not occur in training"),
        ([0], ["z"], NAMED, "class 'z' does not occur in training"),
        # one kind of labels in one split, another in the other
        ([0], None, TEXT, "in split learn labels are class names .* in split exam labels are class numbers without"),
        ([0.0], None, TEXT, "in split learn labels are class names .* in split exam labels are class numbers without"),
        ([1], None, Classes(["0", "1"], "text"), r"\(such as '0'\), in split exam labels are class numbers"),
        (["1"], None, NUMBERS, r"class numbers without names .* in split exam labels are class names \(such as '1'\)"),
        ([1], None, NAMED, "in split learn labels are numbers of named classes"),
        ([1], ["a", "b"], NUMBERS, "in split exam labels are numbers of named classes"),
        ([1], None, Classes(["0", "1", "10", "2"], "named"), "which class is which cannot be known"),
        ([True], None, NUMBERS, "in split exam labels are true and false"),
        ([True], None, TEXT, "in split exam labels are true and false"),
        (["true"], None, BOOLEANS, "in split learn labels are true and false"),
        ([1], None, BOOLEANS, "in split learn labels are true and false"),
        ([1], ["false", "true"], BOOLEANS, "in split learn labels are true and false"),
        # names that look the same
        (["cat", "cat "], None, None, "'cat' and 'cat ' differ by spaces"),
        (["red fox", "red  fox"], None, None, "'red  fox' and 'red fox' differ"),
        (["red\u00a0fox", "red fox"], None, None, r"'red fox' and 'red\\xa0fox' differ"),
        (["caf\u00e9", "cafe\u0301"], None, None, r"'cafe\\u0301' and 'caf\\xe9' differ"),
        ([0, 1], ["a", "\ufeffa"], None, r"'a' and '\\ufeffa' differ"),
        (["a "], None, TEXT, "class 'a ' does not occur in training, which has 'a': give"),
        (["A"], None, TEXT, "class 'A' does not occur in training, which has 'a'"),
        (["cafe\u0301"], None, Classes(["caf\u00e9"], "named"), r"'cafe\\u0301' does not .* has 'caf\\xe9'"),
    ],
)
def test_invalid_labels(values: Any, names: Any, training: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        class_numbers(values, names, training, "x", split="exam", train_split="learn")


def frame(labels: Any, name: str = "label") -> pandas.DataFrame:
    """As many images, and a column of labels as pandas writes it."""
    return pandas.DataFrame({"image": rows_of(len(labels))["image"], name: labels})


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (pandas.Series([0.0, 1.0, 2.0] * 4), ["0", "1", "2"]),
        (pandas.Series([0.0, 1.0, 2.0] * 4, dtype="float32"), ["0", "1", "2"]),
        (pandas.Series([0, 1, 2] * 4, dtype="Int64"), ["0", "1", "2"]),
        (pandas.Series([0, 1, 2] * 4, dtype="uint8"), ["0", "1", "2"]),
        (pandas.Series(["a", "b", "c"] * 4, dtype="category"), ["a", "b", "c"]),
        (pandas.Series(["a", "b", "c"] * 4, dtype="string"), ["a", "b", "c"]),
        (pandas.Series([True, False, True] * 4), ["false", "true"]),
        (pandas.Series([True, False, True] * 4, dtype="boolean"), ["false", "true"]),
    ],
)
def test_labels_as_pandas_writes_them(labels: pandas.Series, names: list[str], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    frame(labels).to_parquet(tmp_path / "data" / "train.parquet")
    data = load(tmp_path, source="parquet", path=str(tmp_path / "data"), val_size=0)
    assert data.class_names == names
    said = [names[label].lower() for label in data.train.labels.tolist()]
    assert said == [str(value).lower().removesuffix(".0") for value in labels]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0.0, 0.5, 1.0], "row 1 has label 0.5, of type float"),
        ([0.0, NAN, 1.0], "row 1 has no label"),
        ([[0], [1], [0, 1]], "column 'label' is list of int64: several labels per image"),
        ([decimal.Decimal("1.0")] * 3, r"column 'label' is decimal128\(2, 1\); expected per image: one class number"),
        ([date(2026, 1, 1)] * 3, "column 'label' is date32; expected"),
        ([pandas.Timestamp(2026, 1, 1)] * 3, r"column 'label' is timestamp\[\w+\]; expected"),
        ([{"name": "cat", "id": 1}] * 3, "column 'label' is struct of (id, name|name, id); expected"),
        ([b"cat"] * 3, "column 'label' is binary; expected"),
        ([None] * 3, "column 'label' is null: all values are missing"),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_labels_of_other_types_are_refused_by_type(labels: Any, words: str, named: bool, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    frame(labels).to_parquet(tmp_path / "data" / "train.parquet")
    with pytest.raises(UserError, match=f"data.label_column: .*{words}"):
        load(tmp_path, source="parquet", path=str(tmp_path / "data"), label_column="label" if named else None)


def test_text_in_one_split_and_numbers_in_another_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    frame(["0", "1", "10"] * 4).to_parquet(tmp_path / "data" / "train.parquet")
    frame([0, 1, 1]).to_parquet(tmp_path / "data" / "test.parquet")
    data = load(tmp_path, source="parquet", path=str(tmp_path / "data"))
    with pytest.raises(UserError, match="in split train labels are class names .* in split test labels are class num"):
        data.test()


def test_classes_that_differ_only_in_case_are_reported(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    frame(["cat", "Cat", "dog"] * 4).to_parquet(tmp_path / "data" / "train.parquet")
    data = load(tmp_path, source="parquet", path=str(tmp_path / "data"))
    assert data.class_names == ["Cat", "cat", "dog"]
    assert any("'Cat' and 'cat' differ by capital letters alone" in note for note in data.notes)


def test_the_fingerprint_is_of_pixels_and_labels_alone(tmp_path: Path) -> None:
    def written(folder: str, labels: list[Any], types: datasets.Features | None = None) -> str:
        table = {**rows_of(12), "label": labels}
        return load(tmp_path, source="parquet", path=write(tmp_path / folder, table, types), val_size=0).fingerprint

    numbers = [row % 3 for row in range(12)]
    base = written("base", numbers, features(names=["apple", "crab", "dog"]))
    assert written("hub", numbers, features(names=["apple", "cra", "dog"])) == base
    assert written("plain", numbers) == written("text", ["abc"[n] for n in numbers]) == base
    assert written("other order", numbers, features(names=["dog", "crab", "apple"])) == base  # the labels are the same
    assert written("other labels", [2 - number for number in numbers]) != base


def same_time(file: Path, write: Any) -> None:
    """Replace a file by another one that has its modification time."""
    before = file.stat()
    write()
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_mtime_ns == before.st_mtime_ns and file.stat().st_size != before.st_size


def test_replaced_files_are_noticed_by_their_sizes(tmp_path: Path) -> None:
    def fingerprint(source: str, folder: Path) -> str:
        return load(tmp_path, source=source, path=str(folder), val_size=0).fingerprint

    table = parquet(tmp_path / "parquet", train=12) / "train-00000-of-00001.parquet"
    before = fingerprint("parquet", table.parent)
    same_time(table, lambda: datasets.Dataset.from_dict(rows_of(15), features=features()).to_parquet(table))
    assert fingerprint("parquet", table.parent) != before

    for number in range(12):
        (tmp_path / "images" / str(number % 3)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / str(number % 3) / f"{number}.png").write_bytes(encoded(pixels(number)))
    picture = tmp_path / "images" / "0" / "0.png"
    before = fingerprint("imagefolder", tmp_path / "images")
    same_time(picture, lambda: picture.write_bytes(encoded(pixels(99) // 2)))
    assert fingerprint("imagefolder", tmp_path / "images") != before

    named = tmp_path / "named"  # a table with the paths of images, not their bytes
    shutil.copytree(tmp_path / "images", named / "images")
    paths = sorted(str(file.relative_to(named)) for file in named.rglob("*.png"))
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    cells = pyarrow.array([{"bytes": None, "path": path} for path in paths], kind)
    labels = [int(path.split("/")[1]) for path in paths]
    pyarrow.parquet.write_table(pyarrow.table({"image": cells, "label": labels}), named / "train.parquet")
    before = fingerprint("parquet", named)
    picture = named / paths[0]
    same_time(picture, lambda: picture.write_bytes(encoded(pixels(98) // 4)))
    assert fingerprint("parquet", named) != before
    picture.unlink()  # what is missing is said where it is read
    assert paths[0] in refuse(tmp_path, source="parquet", path=str(named), val_size=0)

    saved = tmp_path / "saved"
    datasets.Dataset.from_dict(rows_of(12), features=features()).save_to_disk(saved)
    before = fingerprint("disk", saved)
    datasets.Dataset.from_dict(rows_of(15), features=features()).save_to_disk(tmp_path / "other")
    for file in saved.iterdir():
        if file.suffix == ".arrow":
            same_time(file, lambda file=file: shutil.copyfile(tmp_path / "other" / file.name, file))
    assert fingerprint("disk", saved) != before


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    table = {**rows_of(12), "label": [0] * 12}
    assert "of one class" in refuse(tmp_path, source="parquet", path=write(tmp_path / "d", table, features()))
    assert not list((tmp_path / "cache" / "images").glob("*/"))  # nothing was decoded before


# ----------------------------------------------------------------------------------------------- bad places


def test_paths(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for source in ("parquet", "imagefolder", "disk", "cifar_python"):
        assert "no such folder" in refuse(tmp_path, source=source, path=str(tmp_path / "nowhere"))
        assert "a file, and a folder is needed" in refuse(tmp_path, source=source, path=str(tmp_path / "file"))
    (tmp_path / "empty").mkdir()
    for source in ("parquet", "imagefolder", "disk", "cifar_python"):
        message = refuse(tmp_path, source=source, path=str(tmp_path / "empty"))
        assert "data.path" in message and str(tmp_path / "empty") in message


def test_hub_without_network_names_the_three_remedies(tmp_path: Path) -> None:
    message = refuse(tmp_path, name="some-one/not-cached")
    assert "'some-one/not-cached'" in message and "HF_HOME" in message
    assert "--data.source=parquet --data.path=" in message and "--data.source=digits" in message


# ------------------------------------------------------------------------------------------------ the store


@pytest.mark.parametrize("where", ["auto", "device", "host"])
def test_image_store_gathers_rows(where: Any, tmp_path: Path) -> None:
    data = load(tmp_path, source="parquet", path=str(parquet(tmp_path / "data", train=40)), val_size=9)
    assert data.val is not None
    for split in (data.train, data.val):
        image_store = ImageStore(split, torch.device("cpu"), on_device=where)
        rows = split.rows.flip(0)[:5]
        images, labels = image_store.gather(rows)
        assert images.equal(split.images[rows]) and labels.equal(split.labels[rows])
    if where == "device":
        with pytest.raises((IndexError, RuntimeError)):
            image_store.gather(data.train.rows[:1])  # not a row of validation


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("where", ["auto", "device", "host"])
def test_image_store_on_a_gpu(where: Any, tmp_path: Path) -> None:
    data = load(tmp_path, source="digits")
    image_store = ImageStore(data.train, torch.device("cuda"), on_device=where)
    batches = list(data.train.rows.split(64))
    gathered = [image_store.gather(rows.to(image_store.index_device)) for rows in batches]  # no wait in between
    for rows, (images, labels) in zip(batches, gathered, strict=True):
        assert images.is_cuda and images.cpu().equal(data.train.images[rows])
        assert labels.is_cuda and labels.cpu().equal(data.train.labels[rows])


# ------------------------------------------------------------------------------------------- real CIFAR-100


@pytest.mark.cifar100
def test_real_cifar100(cifar100: Path, tmp_path: Path) -> None:
    data = load(tmp_path, model_sizes=(32, 224), source="parquet", path=str(cifar100))
    assert data.num_classes == 100 and data.image_size == 32 and data.class_names[:2] == ["apple", "aquarium_fish"]
    assert data.val is not None and len(data.train) == 45_000
    assert data.train.labels[data.val.rows].bincount().tolist() == [50] * 100
    assert data.train.labels[data.train.rows].bincount().tolist() == [450] * 100
    assert np.abs(np.subtract(data.mean, (0.5071, 0.4865, 0.4409))).max() < 0.002
    assert np.abs(np.subtract(data.std, (0.2673, 0.2564, 0.2762))).max() < 0.002
    test = data.test()
    assert test is not None and test.labels.bincount().tolist() == [100] * 100
    header = json.loads(next((tmp_path / "cache").rglob("header.json")).read_text())["header"]
    assert header["unreadable"] == []
    benchmark = load(tmp_path, source="parquet", path=str(cifar100), val_size=0)
    assert len(benchmark.train) == 50_000 and benchmark.fingerprint == data.fingerprint
    assert benchmark.mean == (0.5071, 0.4865, 0.4409) and benchmark.std == (0.2673, 0.2564, 0.2762)
