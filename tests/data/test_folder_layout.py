"""Splits and classes from the names of files: a table of layouts as people have them, and random trees."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from kd_core.config import DataConfig
from kd_core.data import folder_layout as layout
from kd_core.data.dataset import load_data
from kd_core.data.folder_layout import IMAGE, TABLE, Layout
from kd_core.data.sources import open_source
from kd_core.errors import UserError

# A layout: what it is, its files ("train/{cat,dog}/*2" has two images for each class), further settings, and what is
# found: {split: {class: images}}, without classes where a table of labels tells them; or a part of the refusal.
CATS = {"cat": 2, "dog": 2}
BOTH = {"train": CATS, "test": CATS}
LAYOUTS: list[tuple[str, str, dict[str, Any], dict[str, Any] | str]] = [
    # ------------------------------------------------------------------------------------- one folder per class
    ("classes alone", "{cat,dog}/*2", {}, {"train": CATS}),
    ("one folder around the classes", "pets/{cat,dog}/*2", {}, {"train": CATS}),
    ("two folders around the classes", "archive/pets/{cat,dog}/*2", {}, {"train": CATS}),
    ("numbered classes", "{0,1,10,2}/*1", {}, {"train": {"0": 1, "1": 1, "10": 1, "2": 1}}),
    ("ImageNet's names of classes", "{n01440764,n01443537}/*1", {}, {"train": {"n01440764": 1, "n01443537": 1}}),
    ("words that only hold a split's word", "{latest,trainers,valley,device}/*1", {},
     {"train": {"device": 1, "latest": 1, "trainers": 1, "valley": 1}}),
    ("a class without a file", "{cat,dog}/*2 owl/", {}, {"train": {**CATS, "owl": 0}}),
    ("a folder of papers beside the classes", "{cat,dog}/*2 docs/readme.txt", {}, {"train": CATS}),
    ("hidden folders and the system's", "{cat,dog}/*2 .git/*1 __MACOSX/cat/._a.png @eaDir/*1 cat/.DS_Store", {},
     {"train": CATS}),
    ("capital suffixes", "cat/a.JPG cat/b.Jpeg dog/a.PNG dog/b.WebP", {}, {"train": CATS}),
    ("every kind of image", "cat/a.avif cat/b.tif dog/a.jp2 dog/b.ppm", {}, {"train": CATS}),
    ("cameras' kinds, which decoding names", "cat/a.heic cat/b.jpg dog/a.cr2 dog/b.jpg", {}, {"train": CATS}),
    ("metadata.csv beside class folders", "{cat,dog}/*2 metadata.csv", {}, {"train": CATS}),
    ("classes and images side by side", "{cat,dog}/*2 cover.png", {}, "lie beside the class folders"),
    ("images alone", "*4", {}, "no class folders"),
    ("images with a table of labels", "*4 metadata.csv", {}, {"train": 4}),
    ("images with lines of labels", "*4 metadata.jsonl", {}, {"train": 4}),
    ("a table of another name", "*4 labels.csv", {}, "no class folders (1 file .csv beside them)"),
    ("nothing", "", {}, "holds no image (nothing at all)"),
    ("papers alone", "a.txt b/c.pdf", {}, "holds no image (1 file .pdf, 1 file .txt)"),
    # ------------------------------------------------------------------------------------- splits around classes
    ("train and test", "{train,test}/{cat,dog}/*2", {}, BOTH),
    ("capitals", "{Train,Test}/{cat,dog}/*2", {}, {"Train": CATS, "Test": CATS}),
    ("shouted", "{TRAIN,VALIDATION,TEST}/{cat,dog}/*2", {}, {"TRAIN": CATS, "VALIDATION": CATS, "TEST": CATS}),
    ("three splits", "{train,val,test}/{cat,dog}/*2", {}, {**BOTH, "val": CATS}),
    ("other words", "{training,valid,testing}/{cat,dog}/*2", {}, {"training": CATS, "valid": CATS, "testing": CATS}),
    ("dev and eval", "{train,dev,eval}/{cat,dog}/*2", {}, {"train": CATS, "dev": CATS, "eval": CATS}),
    ("evaluation", "{train,evaluation}/{cat,dog}/*2", {}, {"train": CATS, "evaluation": CATS}),
    ("sets", "{training_set,test_set}/{cat,dog}/*2", {}, {"training_set": CATS, "test_set": CATS}),
    ("run together", "{trainset,testset}/{cat,dog}/*2", {}, {"trainset": CATS, "testset": CATS}),
    ("camel case", "{TrainData,TestData}/{cat,dog}/*2", {}, {"TrainData": CATS, "TestData": CATS}),
    ("a prefix, and each split twice", "seg_train/seg_train/{cat,dog}/*2 seg_test/seg_test/{cat,dog}/*2", {},
     {"seg_train": CATS, "seg_test": CATS}),
    ("years", "{train2017,val2017}/{cat,dog}/*2", {}, {"train2017": CATS, "val2017": CATS}),
    ("keys and values", "{split=train,split=test}/{cat,dog}/*2", {}, {"split=train": CATS, "split=test": CATS}),
    ("hyphens and points", "imgs-train/{cat,dog}/*2 imgs.test/{cat,dog}/*2", {},
     {"imgs-train": CATS, "imgs.test": CATS}),
    ("a folder around the splits", "pets/{train,test}/{cat,dog}/*2", {}, BOTH),
    ("a folder around the splits, called as one", "my_test/{train,test}/{cat,dog}/*2", {}, BOTH),
    ("a folder called for both around them", "train_test_split/{train,test}/{cat,dog}/*2", {}, BOTH),
    ("a folder around the classes of each split", "{train,test}/images/{cat,dog}/*2", {}, BOTH),
    ("images and labels apart", "images/{train,test}/{cat,dog}/*2 labels/train/cat/a.txt", {}, BOTH),
    ("training alone", "train/{cat,dog}/*2", {}, {"train": CATS}),
    ("CIFAR-100's class train, within splits", "{train,test}/{cat,dog,train}/*2", {},
     {"train": {**CATS, "train": 2}, "test": {**CATS, "train": 2}}),
    ("classes called like all splits, within splits", "{train,test}/{train,val,test}/*1", {},
     {"train": {"test": 1, "train": 1, "val": 1}, "test": {"test": 1, "train": 1, "val": 1}}),
    ("other classes in a split", "train/{cat,dog,owl}/*1 test/{cat,dog}/*1", {},
     {"train": {"cat": 1, "dog": 1, "owl": 1}, "test": {"cat": 1, "dog": 1}}),
    ("a test split of other folders", "train/{cat,dog}/*2 test/unknown/*5", {}, {"train": CATS}),
    ("a test split whose classes are spelled otherwise", "train/{cat,dog}/*2 test/{Cat,Dog}/*2", {},
     {"train": CATS, "test": {"Cat": 2, "Dog": 2}}),
    ("Tiny-ImageNet's folders", "train/{cat,dog}/images/*2 {val,test}/images/*4 val/val_annotations.txt",
     {"folders": "splits"}, {"train": CATS}),
    ("a flat test split that is asked for", "train/{cat,dog}/*2 test/*5", {"test_split": "test"}, "no class folders"),
    ("a test split without labels", "train/{cat,dog}/*2 test/*5", {}, {"train": CATS}),
    ("a split without an image", "{train,test}/{cat,dog}/*2 val/", {}, BOTH),
    ("splits with tables of labels", "{train,test}/*4 train/metadata.csv test/metadata.csv", {},
     {"train": 4, "test": 4}),
    ("a test folder without labels", "{train,test}/*4 train/metadata.csv", {}, {"train": 4}),
    ("splits with one table for all", "{train,test}/*4 metadata.csv", {}, {"train": 4, "test": 4}),
    ("a training split without labels", "{train,test}/*4", {}, "no class folders"),
    ("images of splits and a table of another name", "{train_images,test_images}/*4 train.csv", {}, "no class folders"),
    # ------------------------------------------------------------------------------------- what names leave open
    ("CIFAR-100's class train, beside classes", "{cat,dog,train}/*2", {}, "data.folders=classes"),
    ("the same, settled", "{cat,dog,train}/*2", {"folders": "classes"}, {"train": {**CATS, "train": 2}}),
    ("splits and one more folder", "{seg_train,seg_test}/{cat,dog}/*2 seg_pred/*3", {}, "'seg_pred' beside them"),
    ("the same, splits named", "{seg_train,seg_test}/{cat,dog}/*2 seg_pred/*3", {"train_split": "seg_train"},
     {"seg_train": CATS, "seg_test": CATS}),
    ("one split is named otherwise", "trainval/{cat,dog}/*2 test/{cat,dog}/*2", {},
     "data.train_split=trainval data.test_split=test"),
    ("splits in short", "{tr,te}/{cat,dog}/*2", {}, "or name the splits if they are such"),
    ("the same, named", "{tr,te}/{cat,dog}/*2", {"train_split": "tr", "test_split": "te"}, {"te": CATS, "tr": CATS}),
    ("flat classes of two words", "{test_pattern,train_station}/*2", {}, "or set data.folders=classes if"),
    ("the same with one more name of theirs", "{test_pattern,train_station}/*2", {"folders": "classes"},
     {"train": {"test_pattern": 2, "train_station": 2}}),
    ("a compound word beside classes", "{bus,bullet_train}/*2", {}, "data.folders=classes"),
    ("kinds of trains", "{bullet_train,steam_train}/*2", {}, "several folders could be meant"),
    ("the same, settled", "{bullet_train,steam_train}/*2", {"folders": "classes"},
     {"train": {"bullet_train": 2, "steam_train": 2}}),
    ("two roles in one name", "{train,test_val}/{cat,dog}/*2", {}, "'test_val' could be test or val"),
    ("two candidates for validation", "{train,val,dev}/{cat,dog}/*2", {}, "data.val_split"),
    ("the same, one named", "{train,val,dev}/{cat,dog}/*2", {"val_split": "val"}, {"train": CATS, "val": CATS}),
    ("two candidates for training", "{trainA,trainB,testA}/{cat,dog}/*2", {}, "data.train_split"),
    ("the same, one named", "{trainA,trainB,testA}/{cat,dog}/*2", {"train_split": "trainB"},
     {"trainB": CATS, "testA": CATS}),
    ("splits within classes", "{cat,dog}/{train,test}/*2", {}, "put the splits outside the classes"),
    ("one split within classes", "{cat,dog}/train/*2", {}, "put the splits outside the classes"),
    ("kinds within classes", "{cat,dog}/{indoor,outdoor}/*2", {}, "deeper than one folder per class"),
    ("the same, settled", "{cat,dog}/{indoor,outdoor}/*1", {"folders": "classes"}, {"train": CATS}),
    ("kinds within classes of splits", "{train,test}/{cat,dog}/{in,out}/*1", {}, "data.folders=splits"),
    ("the same, settled", "{train,test}/{cat,dog}/{in,out}/*1", {"folders": "splits"}, BOTH),
    ("domains, then classes", "{photo,sketch}/{cat,dog}/*2", {}, "deeper than one folder per class"),
    ("different depths", "cat/*2 dog/more/*2", {}, "deeper than one folder per class"),
    ("different depths within a class", "cat/*2 cat/more/*1 dog/*2", {}, "deeper than one folder per class"),
    ("files named as splits", "cat/train_0.png cat/test_0.png dog/train_1.png", {}, "files are named as splits"),
    ("the same, settled", "cat/train_0.png cat/test_0.png dog/train_1.png", {"folders": "classes"},
     {"train": {"cat": 2, "dog": 1}}),
    ("the same, and a cover", "cat/train_0.png cat/test_0.png dog/train_1.png dog/cover.png", {}, "files are named as"),
    ("files named for their class", "bus/bus_0.png bullet/train_0.png", {}, {"train": {"bullet": 1, "bus": 1}}),
    ("images beside splits", "{train,test}/{cat,dog}/*2 logo.png", {}, "lie beside the folders of splits"),
    ("images beside classes of a split", "{train,test}/{cat,dog}/*2 train/x.png", {}, "lie beside the class folders"),
    ("a split within a split", "train/{train,test}/{cat,dog}/*2", {}, "and so are those in it"),
    ("splits that are called otherwise", "{photos,holdout}/{cat,dog}/*2",
     {"train_split": "photos", "test_split": "holdout"}, {"photos": CATS, "holdout": CATS}),
    ("splits by setting", "{train,test}/{cat,dog}/*2 notes/*1", {"folders": "splits"}, BOTH),
    ("splits by setting that are none", "{cat,dog}/*2", {"folders": "splits"}, "none of its folders is named as"),
]  # fmt: skip
FILES = {"train": 1, "test": 1}
TABLES: list[tuple[str, str, dict[str, Any], dict[str, Any] | str]] = [
    ("shards", "train-0000{0,1,2}-of-00003 test-00000-of-00001", {}, {"train": 3, "test": 1}),
    ("capitals", "Train Test", {}, {"Train": 1, "Test": 1}),
    ("a prefix", "cifar-train cifar-test", {}, {"cifar-train": 1, "cifar-test": 1}),
    ("a prefix and shards", "data-{train,test}-00000-of-00001", {}, {"data-train": 1, "data-test": 1}),
    ("a year", "train2017 val2017", {}, {"train": 1, "val": 1}),
    ("shards with digests", "train-00000-of-00002-0a1b2c3d4e5f6071 train-00001-of-00002-1f2e3d4c5b6a7988", {},
     {"train": 2}),
    ("folders of splits", "{train,test}/0000", {}, FILES),
    ("folders of keys and values", "{split=train,split=test}/part-{0,1}", {}, {"train": 2, "test": 2}),
    ("the Hub's converted files", "plain_text/{train,test}/0000", {}, FILES),
    ("a folder around all", "data/{train,test}-00000-of-00001", {}, FILES),
    ("all splits", "train validation test", {}, {**FILES, "validation": 1}),
    ("parts that say nothing", "part-{0,1}", {}, {"train": 2}),
    ("one that says nothing", "images", {}, {"train": 1}),
    ("two configurations", "{fine,coarse}/{train,test}", {}, "holds several data sets"),
    ("two configurations, splits as folders", "{fine,coarse}/{train,test}/0000", {}, "'coarse', 'fine'"),
    ("parts in several folders", "{a,b}/part-0", {}, "holds several data sets"),
    ("one more file beside splits", "train test extra", {}, "'extra.parquet' say nothing of a split"),
    ("the same, splits named", "train test extra", {"test_split": "extra"}, {"train": 1, "extra": 1}),
    ("two configurations, one on top", "{train,test} data/{train,test}", {}, "in one folder of their own"),
    ("splits apart", "a/train b/test", {}, "in one folder of their own"),
    ("a name of both splits", "mnist-{train,test}", {"train_split": "mnist"}, "'mnist' names files of several splits"),
    ("a folder of both splits", "data/{train,test}", {"train_split": "data"}, "'data' names files of several splits"),
    ("a shard that is missing", "train-00000-of-00003 train-00002-of-00003", {}, "are 2 of 3 shards"),
    ("shards from 1 on", "train-1-of-2 train-2-of-2", {}, {"train": 2}),
    ("a set of shards and the whole", "train train-00000-of-00001", {}, "shards of several sets"),
    ("two sets of shards", "train-0-of-1 train-0-of-2 train-1-of-2", {}, "shards of several sets"),
    ("two roles in one name", "train test_val", {}, "could be test or val"),
    ("a file and its folder differ", "train/test-0", {}, "could be test or train"),
    ("two candidates", "train-clean train-other test", {}, "data.train_split"),
    ("the same, one named", "train-clean train-other test", {"train_split": "train-clean"},
     {"train-clean": 1, "test": 1}),
    ("two words for one split", "train val dev", {}, "data.val_split"),
    ("nothing", "", {}, "data.source=imagefolder"),
]  # fmt: skip


def spread(pattern: str) -> list[str]:
    """'{a,b}/*2' -> a/0.png, a/1.png, b/0.png, b/1.png; a folder 'c/' stays as it is."""
    if "{" in pattern:
        before, _, rest = pattern.partition("{")
        options, _, after = rest.partition("}")
        return [name for option in options.split(",") for name in spread(before + option + after)]
    folder, star, count = pattern.partition("*")
    return [f"{folder}{number}.png" for number in range(int(count))] if star else [pattern]


def listed(text: str) -> tuple[dict[str, str], list[str]]:
    names = [name for pattern in text.split() for name in spread(pattern)]
    files = {name: layout.kind_of(name) or "of another kind" for name in names if not name.endswith("/")}
    return files, [name.rstrip("/") for name in names if name.endswith("/")]


def arranged(text: str, folders: str | None = None, **named: str) -> Layout:
    files, empty = listed(text)
    roles = {key.removesuffix("_split"): name for key, name in named.items()}
    return layout.image_folders(files, empty, named=roles, folders=folders)


def sizes(found: Layout) -> dict[str, Any]:
    return {
        split: len(own[None]) if None in own else {str(name): len(files) for name, files in own.items()}
        for split, own in found.splits.items()
    }


def everything_is_told(found: Layout, files: dict[str, str]) -> bool:
    """Whether each file is used in one split, is counted as ignored, or is a table of labels that is used."""
    used = Counter(name for own in found.splits.values() for names in own.values() for name in names)
    by_folder = layout.tables_by_folder(files)
    read = {layout.table_of(name, by_folder) for own in found.splits.values() for name in own.get(None, ())} - {None}
    return max(used.values()) == 1 and len(used) + len(read) + sum(found.ignored.values()) == len(files)


@pytest.mark.parametrize(("what", "files", "options", "right"), LAYOUTS, ids=lambda value: str(value)[:40])
def test_folders_of_images(what: str, files: str, options: dict[str, Any], right: dict[str, Any] | str) -> None:
    if isinstance(right, str):
        with pytest.raises(UserError) as refusal:
            arranged(files, **options)
        assert right in str(refusal.value) and str(refusal.value).startswith("data.")
    else:
        found = arranged(files, **options)
        assert sizes(found) == right
        assert everything_is_told(found, listed(files)[0])


@pytest.mark.parametrize(("what", "files", "options", "right"), TABLES, ids=lambda value: str(value)[:40])
def test_folders_of_tables(what: str, files: str, options: dict[str, Any], right: dict[str, Any] | str) -> None:
    names = {f"{name}.parquet": TABLE for pattern in files.split() for name in spread(pattern)}
    named = {key.removesuffix("_split"): name for key, name in options.items()}
    if isinstance(right, str):
        with pytest.raises(UserError) as refusal:
            layout.tables(names, named=named)
        assert right in str(refusal.value) and str(refusal.value).startswith("data.")
    else:
        found = layout.tables(names, named=named)
        assert sizes(found) == right and everything_is_told(found, names)


def test_the_tables_above_are_long_and_hold_refusals() -> None:
    everything = [*LAYOUTS, *TABLES]
    refused = [row for row in everything if isinstance(row[3], str)]
    assert len(everything) >= 100 and len(refused) >= 30


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("train", "train"), ("Training", "train"), ("seg_train", "train"), ("data-test-00000-of-00001", "test"),
        ("split=validation", "val"), ("Test-2017", "test"), ("trainSet", "train"), ("DevData", "val"),
        ("X_eval", "test"), ("testimages", "test"), ("trainers", ""), ("latest", ""), ("contest", ""), ("validity", ""),
        ("medieval", ""), ("device", ""), ("trainval", ""), ("test_val", "test val"), ("тест", ""), ("détrain", ""),
        ("evaluation", "test"),
    ],
)  # fmt: skip
def test_words_of_splits_are_whole_words(name: str, roles: str) -> None:
    assert layout.roles_in(name) == set(roles.split())


@pytest.mark.parametrize(
    ("role", "names", "named", "right"),
    [
        ("val", ["train", "validation", "test"], None, "validation"),
        ("val", ["train", "test"], None, None),
        ("val", ["train", "validation", "validation_mismatched"], None, "validation"),
        ("val", ["train", "validation_matched", "validation_mismatched"], None, UserError),
        ("test", ["train", "test", "eval"], None, UserError),
        ("test", ["train", "test", "eval"], "eval", "eval"),
        ("test", ["seg_train", "seg_test"], "test", "seg_test"),
        ("test", ["train", "test_a", "test_b"], "test", UserError),
        ("test", ["train"], "test", UserError),
        ("train", ["Train", "Test"], None, "Train"),
    ],
)
def test_splits_are_found_by_their_words(role: str, names: list[str], named: str | None, right: Any) -> None:
    if right is UserError:
        with pytest.raises(UserError, match=f"data.{role}_split"):
            layout.split_for(role, names, named, "somewhere")
    else:
        assert layout.split_for(role, names, named, "somewhere") == right


# ------------------------------------------------------------------------------------------------- random trees

WORDS = ["train", "Test", "val", "dev_set", "seg_test", "cat", "dog", "owl", "more", "images", "test_val", ".hidden"]
FILE_NAMES = ["a.png", "b.JPG", "c.avif", "notes.txt", "metadata.csv", ".DS_Store", "d.heic", "train.png"]
PATHS = st.builds(
    lambda folders, name: "/".join([*folders, name]), st.lists(st.sampled_from(WORDS), max_size=4),
    st.sampled_from(FILE_NAMES),
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(
    names=st.sets(PATHS, min_size=1, max_size=25),
    folders=st.sampled_from([None, None, None, "classes", "splits"]),
    train_split=st.sampled_from([None, None, "cat", "train"]),
    by_table=st.booleans(),
)
def test_random_trees(names: set[str], folders: str | None, train_split: str | None, by_table: bool) -> None:
    """No image is in two splits, no split is a class by accident, and used and counted files are all files."""
    files = {name: layout.kind_of(name) or "of another kind" for name in names}
    try:
        found = layout.image_folders(files, folders=folders, named={"train": train_split}, by_table=by_table)
    except UserError as error:
        assert str(error).startswith("data.")
        return
    assert found.splits and everything_is_told(found, files)
    for split, own in found.splits.items():
        for label, images in own.items():
            assert all(files[image] == IMAGE for image in images)
            within = all(split in image.split("/")[:-1] for image in images)  # around it is the split's folder
            if label is not None and layout.roles_in(label):
                assert folders == "classes" or within


@settings(max_examples=200, deadline=None)
@given(st.sets(st.builds(lambda f, n: "/".join([*f, n]), st.lists(st.sampled_from(WORDS), max_size=3),
       st.sampled_from(["0.parquet", "train.parquet", "x-test-0.parquet", "readme.md", "val-1.parquet"])),
       min_size=1, max_size=12))  # fmt: skip
def test_random_tables(names: set[str]) -> None:
    files = {name: layout.kind_of(name) or "of another kind" for name in names}
    try:
        found = layout.tables(files)
    except UserError as error:
        assert str(error).startswith("data.")
        return
    assert everything_is_told(found, files)
    for split, own in found.splits.items():
        words = [layout.roles_in(part) for name in own[None] for part in name.split("/")]
        assert all(roles == layout.roles_in(split) for roles in words if len(roles) == 1)  # nothing says otherwise


# ------------------------------------------------------------------------------------------------- real folders


def draw(path: Path, red: int, green: int = 0, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng([red, green, seed]).integers(0, 256, (16, 16), dtype=np.uint8)
    Image.fromarray(np.dstack([np.full_like(noise, red), np.full_like(noise, green), noise])).save(path, "PNG")


def pets(folder: Path, *places: str, count: int = 4) -> Path:
    """Images in folders, red by class and green by place."""
    for number, place in enumerate(places):
        for label, name in enumerate(("cat", "dog")):
            for seed in range(count):
                draw(folder / place / name / f"{seed}.png", 50 + 100 * label, 100 * number + seed % 2, seed)
    return folder


def load(tmp_path: Path, **options: Any) -> Any:
    config = DataConfig(**{"source": "imagefolder", "val_size": 0, **options})
    return load_data(config, model_sizes=[16], cache_dir=tmp_path / "cache", show_progress=False)


def greens(split: Any) -> set[int]:
    return set(split.images[split.rows][..., 1].unique().tolist())


def test_images_of_a_split_stay_in_it(tmp_path: Path) -> None:
    data = load(tmp_path, path=str(pets(tmp_path / "pets", "Training_Set", "Test_Set")))
    assert greens(data.train) == {0, 1} and greens(data.test()) == {100, 101}
    assert data.class_names == ["cat", "dog"]
    reds = data.train.images[data.train.rows][:, 0, 0, 0]
    assert reds.equal((50 + 100 * data.train.labels).byte())


def test_what_is_left_out_is_counted_and_odd_names_are_read(tmp_path: Path) -> None:
    folder = pets(tmp_path / "pets", "")
    for name in ("owl/0", "owl/1.v2"):  # images whose names do not say so
        draw(folder / name, 250)
    (folder / "owl/notes").write_text("no image")
    (folder / "cat/readme.txt").write_text("about cats")
    (folder / ".cache").mkdir()
    draw(folder / ".cache/x.png", 0)
    (folder / "cat/gone.png").symlink_to(folder / "nowhere.png")
    data = load(tmp_path, path=str(folder))
    assert data.class_names == ["cat", "dog", "owl"] and len(data.train) == 10
    told = "ignored: 1 file .txt, 1 file hidden, 1 file with a broken link, 1 file without a suffix"
    assert told in data.notes


def test_links_are_followed_but_one_image_is_not_in_two_places(tmp_path: Path) -> None:
    pets(tmp_path / "elsewhere", "a", "b")
    folder = tmp_path / "pets"
    folder.mkdir()
    (folder / "train").symlink_to(tmp_path / "elsewhere/a")
    (folder / "test").symlink_to(tmp_path / "elsewhere/b")
    (folder / "train/around").symlink_to(folder)  # without an end, if it were followed
    data = load(tmp_path, path=str(folder))
    assert greens(data.train) == {0, 1} and greens(data.test()) == {100, 101}
    assert "ignored: 1 file linking to a folder around it" in data.notes
    (folder / "test").unlink()
    (folder / "test").symlink_to(tmp_path / "elsewhere/a")
    with pytest.raises(UserError, match="are the same file"):
        load(tmp_path, path=str(folder))


def test_numbers_as_class_names_say_their_order(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        draw(tmp_path / f"digits/{number}/a.png", number)
        draw(tmp_path / f"digits/{number}/b.png", number, 1)
    data = load(tmp_path, path=str(tmp_path / "digits"))
    assert data.class_names == ["1", "10", "2"]
    for label in ("1", "2", "10"):
        (tmp_path / f"digits/{label}").rename(tmp_path / f"digits/no {label}")
    notes = load(tmp_path, path=str(tmp_path / "digits")).notes
    assert any("sorted as text: no 1, no 10, no 2" in note for note in notes)
    assert any("sorted as text: 1, 10, 2" in note and "class_order" in note for note in data.notes)


def test_a_table_of_labels_beside_images(tmp_path: Path) -> None:
    folder = tmp_path / "flat"
    for split, green in (("train", 0), ("test", 100)):
        rows = ["file_name,note,label"]
        for number in range(8):
            draw(folder / split / f"{number}.png", 50 + 100 * (number % 2), green + number // 4, number)
            rows.append(f"{number}.png,x,{'cat dog'.split()[number % 2]}")
        (folder / split / "metadata.csv").write_text("\n".join(rows) + "\n")
    data = load(tmp_path, path=str(folder))
    assert greens(data.train) == {0, 1} and greens(data.test()) == {100, 101} and data.class_names == ["cat", "dog"]
    assert "train: labels are in train/metadata.csv" in data.notes
    with pytest.raises(UserError, match="all training images.*of one class"):
        load(tmp_path, path=str(folder), label_column="note")
    draw(folder / "train/new.png", 1)
    with pytest.raises(UserError, match="1 of 9 images have no label in train/metadata.csv, such as 'train/new.png'"):
        load(tmp_path, path=str(folder))
    (folder / "train/new.png").unlink()
    (folder / "train/7.png").unlink()
    with pytest.raises(UserError, match="names 1 images that are not there, such as 'train/7.png'"):
        load(tmp_path, path=str(folder))
    (folder / "train/metadata.csv").write_text("file_name,label\n0.png,cat\n0.png,dog\n")
    with pytest.raises(UserError, match="'train/0.png' has several labels, 'cat' and 'dog'"):
        load(tmp_path, path=str(folder))
    (folder / "train/metadata.csv").write_text("path,label\n0.png,cat\n")
    with pytest.raises(UserError, match="has no column file_name"):
        load(tmp_path, path=str(folder))


def with_table(folder: Path, table: str | bytes) -> Path:
    """Images 0.png to 7.png beside a metadata.csv."""
    for number in range(8):
        draw(folder / f"{number}.png", 50 + number)
    (folder / "metadata.csv").write_bytes(table.encode() if isinstance(table, str) else table)
    return folder


def test_columns_without_a_name_are_no_columns(tmp_path: Path) -> None:
    rows = [f"{number},{number}.png,{'ab'[number % 2]},," for number in range(8)]
    folder = with_table(tmp_path / "data", "\n".join([",file_name,age,,", *rows]) + "\n")
    assert load(tmp_path, path=str(folder)).class_names == ["a", "b"]


def test_a_table_with_two_columns_of_one_name_is_one_message(tmp_path: Path) -> None:
    rows = [f"{number}.png,a,x,b,y" for number in range(8)]
    folder = with_table(tmp_path / "data", "\n".join(["file_name,label,note,label,note", *rows]) + "\n")
    with pytest.raises(UserError, match=r"metadata.csv: has several columns of the name label, note; give each"):
        load(tmp_path, path=str(folder))


def test_a_table_beside_class_folders_takes_nothing_away(tmp_path: Path) -> None:
    folder = pets(tmp_path / "pets", "")
    names = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(4)]
    half = "".join(f"{name},{'young' if number % 2 else 'old'}\n" for number, name in enumerate(names[:4]))
    (folder / "metadata.csv").write_text("file_name,age\n" + half)
    data = load(tmp_path, path=str(folder))
    assert data.class_names == ["cat", "dog"] and len(data.train) == 8
    assert any("1 file of metadata, since the folders are the classes" in note for note in data.notes)
    with pytest.raises(UserError, match="4 of 8 images have no label"):
        load(tmp_path, path=str(folder), label_column="age")
    rest = "".join(f"{name},{'young' if number % 2 else 'old'}\n" for number, name in enumerate(names[4:]))
    (folder / "metadata.csv").write_text("file_name,age\n" + half + rest)
    assert load(tmp_path, path=str(folder), label_column="age").class_names == ["old", "young"]
    with pytest.raises(UserError, match="no column 'size' .metadata.csv: file_name, age."):
        load(tmp_path, path=str(folder), label_column="size")


def test_a_table_whose_labels_are_not_the_folders_is_not_passed_over(tmp_path: Path) -> None:
    """All images in one folder, or in parts, and a table that tells their labels."""
    for number in range(8):
        draw(tmp_path / f"skin/part_{number // 4}/{number:02}", 50 + number, number % 3)
    rows = [f"part_{number // 4}/{number:02},{'benign malign'.split()[number % 2]}" for number in range(8)]
    (tmp_path / "skin/Metadata.csv").write_text("\n".join(["file_name,label", *rows]) + "\n")
    with pytest.raises(UserError, match="set data.label_column=label to take the table's labels, or data.folders=clas"):
        load(tmp_path, path=str(tmp_path / "skin"))
    assert load(tmp_path, path=str(tmp_path / "skin"), label_column="label").class_names == ["benign", "malign"]
    assert load(tmp_path, path=str(tmp_path / "skin"), folders="classes").class_names == ["part_0", "part_1"]


def test_a_table_in_one_split_alone(tmp_path: Path) -> None:
    folder = pets(tmp_path / "pets", "train", "test")
    rows = [f"{name}/{number}.png,x" for name in ("cat", "dog") for number in range(4)]
    (folder / "test/metadata.csv").write_text("\n".join(["file_name,label", *rows]) + "\n")
    with pytest.raises(UserError, match="8 of 8 images have no label in a metadata.csv, which is not there"):
        load(tmp_path, path=str(folder), label_column="label")


def test_a_table_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pets(tmp_path / "pets", "train", "test")
    names = [f"{split}/{name}/{number}.png" for split in ("train", "test") for name in CATS for number in range(4)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,label", *(f"{name},{name[-5]}" for name in names)]))
    read, files = pyarrow.csv.read_csv, []
    monkeypatch.setattr(pyarrow.csv, "read_csv", lambda file, **more: files.append(file) or read(file, **more))
    data = load(tmp_path, path=str(folder), label_column="label")
    test = data.test()
    assert test is not None and len(test) == len(data.train) + len(data.val or ()) == 8
    assert files == [folder / "metadata.csv"]


def test_unused_splits_are_reported(tmp_path: Path) -> None:
    data = load(tmp_path, path=str(pets(tmp_path / "pets", "train", "val")), val_size=2)
    assert "split 'val' is not used, since data.val_size is 2" in data.notes


def test_a_channel_that_never_changes_is_no_mistake(tmp_path: Path) -> None:
    for number in range(8):
        draw(tmp_path / f"cells/{number % 2}/{number}.png", 50 + number)
    assert load(tmp_path, path=str(tmp_path / "cells")).std[1] == 1.0


def test_files_that_were_replaced_are_read_again(tmp_path: Path) -> None:
    folder = pets(tmp_path / "pets", "")
    before = load(tmp_path, path=str(folder)).train.images.clone()
    file = folder / "cat/0.png"
    times = file.stat()
    Image.fromarray(np.full((16, 16, 3), 9, np.uint8)).save(tmp_path / "new.png")
    new = (tmp_path / "new.png").read_bytes()
    file.write_bytes(new + bytes(times.st_size - len(new)))  # of equal size, too; decoders stop at a PNG's end
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    after = load(tmp_path, path=str(folder)).train.images
    assert not after.equal(before) and (after[0] == 9).all()


def test_rows_of_several_splits_in_one_table_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "flat"
    rows = ["file_name,label,split"]
    for number in range(8):
        draw(folder / f"{number}.png", 50 + number, number)
        rows.append(f"{number}.png,{'cat dog'.split()[number % 2]},{'train' if number < 6 else 'test'}")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    with pytest.raises(UserError, match="column 'split' says that the rows of this split belong to several"):
        load(tmp_path, path=str(folder), label_column="label")
    (folder / "metadata.csv").write_text("\n".join(rows).replace(",test", ",train") + "\n")
    assert len(load(tmp_path, path=str(folder), label_column="label").train) == 8


def test_one_table_may_say_the_split_of_images_that_lie_in_folders_of_splits(tmp_path: Path) -> None:
    """And lists and records beside the labels are not looked at."""
    folder = tmp_path / "flat"
    rows = []
    for number in range(8):
        split = "train" if number < 6 else "test"
        draw(folder / split / f"{number}.png", 50 + number, number)
        label, name = "cat dog".split()[number % 2], f"{split}/{number}.png"
        row = {"file_name": name, "label": label, "split": split, "tags": ["a", name], "box": {"x": 1}}
        rows.append(json.dumps(row))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    data = load(tmp_path, path=str(folder), val_size=0)
    assert len(data.train) == 6 and len(data.test() or ()) == 2 and data.class_names == ["cat", "dog"]


def test_a_class_missing_from_training_is_reported_at_the_start(tmp_path: Path) -> None:
    folder = pets(tmp_path / "pets", "train", "test")
    (folder / "test/dog").rename(folder / "test/cow")
    data = load(tmp_path, path=str(folder))
    assert "test: class 'cow' does not occur in training, so this split cannot be evaluated" in data.notes


def test_two_folders_that_look_alike_are_two(tmp_path: Path) -> None:
    """Archives with fixed times leave files of equal names, sizes and times."""
    for name, red in (("a", 50), ("b", 90)):
        for number in range(4):
            file = tmp_path / name / f"class {number % 2}" / f"{number}.bmp"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(red, red + 9, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(file)
            os.utime(file, ns=(10**18, 10**18))
    first, second = (load(tmp_path, path=str(tmp_path / name)) for name in "ab")
    assert first.fingerprint != second.fingerprint and second.train.images.min() >= 90


def test_a_split_that_is_no_training_split_does_not_train(tmp_path: Path) -> None:
    folder = pets(tmp_path / "pets", "test")
    with pytest.raises(UserError, match="data.train_split: cannot be guessed"):
        load(tmp_path, path=str(folder))
    assert len(load(tmp_path, path=str(folder), train_split="test").train) == 8


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.sets(PATHS, min_size=1, max_size=10))
def test_random_folders_on_disk(names: set[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is listed from a real folder is what the names alone say."""
    folder = tmp_path_factory.mktemp("tree")
    for name in names:
        path = folder / name
        if not path.exists() and not any(parent.is_file() for parent in path.parents):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("file_name,note\n" if path.name == "metadata.csv" else name)
    kinds = {name: layout.kind_of(name) or "of another kind" for name in names if (folder / name).is_file()}
    outcomes: list[Any] = []
    for attempt in (
        lambda: open_source(DataConfig(source="imagefolder", path=str(folder))).split_names,
        lambda: list(layout.image_folders(kinds, where=str(folder)).splits),
    ):
        try:
            outcomes.append(attempt())
        except UserError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]
