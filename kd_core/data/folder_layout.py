"""Splits and classes of a folder guessed from the names of its files and folders, of images or tables; reads no file.

Ambiguous names are refused, with the names found and the setting that decides: a wrong guess would silently train on
test images or give images wrong labels.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import PurePosixPath

from kd_core.errors import UserError

# What names of splits mean; the words are those of the Hugging Face `datasets` library.
SPLIT_WORDS = {
    "train": ("train", "training"),
    "val": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
ENDINGS = "sets?|data|images?|imgs?|splits?"  # trainset, testdata: a word for a split joined with another word
ROLE_OF = {word: role for role, words in SPLIT_WORDS.items() for word in words}
LIKE_A_SPLIT = re.compile("train|val|dev|test|eval", re.IGNORECASE)
IMAGE = "image"
METADATA = "metadata"  # a table of labels beside images
TABLE = "table"
METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
IMAGE_SUFFIXES = {
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jpx", ".pbm", ".pgm",
    ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
    # Formats of cameras and editors, which cannot be read; they are included so that decoding reports each file.
    ".arw", ".cr2", ".dng", ".heic", ".heif", ".jxl", ".nef", ".psd", ".svg",
}  # fmt: skip
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
SHOWN = 6  # names in a message


@dataclass
class Layout:
    """splits: by name, the files of each class; of class None if a table of labels has the classes.

    notes: what was chosen, one line each.
    ignored: number of skipped files, by reason.
    """

    where: str
    splits: dict[str, dict[str | None, list[str]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)


def roles_in(name: str) -> set[str]:
    """The roles ("train", "val", "test") whose words occur in `name` as whole words, in any case.

    Words are separated by anything but letters, and by a capital after a small letter: `seg_train`, `Test-2017`,
    `split=validation` and `trainSet` have one role each, `bulletTRAIN` has one, `trainers` and `latest` have none.
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = {word.lower() for text in (name, spaced) for word in re.findall(r"[^\W\d_]+", text)}
    stems = {re.sub(rf"({ENDINGS})$", "", word) for word in words}
    return {ROLE_OF[word] for word in words | stems if word in ROLE_OF}


def split_for(role: str, names: Iterable[str], named: str | None, where: str) -> str | None:
    """The split with this `role` among `names`; None if there is none.

    named: the value of the setting: a whole name, or a word of exactly one.

    Raises:
        UserError: `named` is none of them, or several names have this role.
    """
    names = list(names)
    if named is not None:
        if (found := _named(named, names)) is None:
            raise UserError(f"data.{role}_split: {where} has no split {named!r}; it has: " + ", ".join(names))
        return found
    meant = [name for name in names if roles_in(name) == {role}]
    plain = [name for name in meant if name.lower() in ROLE_OF]
    candidates = plain or meant
    if len(candidates) > 1:
        raise UserError(
            f"data.{role}_split: {where} has several splits that could be meant: {_shown(candidates)}; name one"
        )
    return candidates[0] if candidates else None


def _named(wanted: str, names: Iterable[str]) -> str | None:
    names = list(names)
    if wanted in names:
        return wanted
    close = [name for name in names if wanted.lower() in re.split(r"[\W_]+", name.lower())]
    return close[0] if len(close) == 1 else None


def kind_of(name: str) -> str | None:
    """The kind of a file by its name: IMAGE, METADATA, TABLE, else the reason to ignore it; None if unclear."""
    *folders, file = name.split("/")  # by hand: a folder may hold millions of files
    if any(part in SYSTEM_FOLDERS for part in folders):
        return "of the operating system"
    if any(part.startswith(".") for part in (*folders, file)):
        return "hidden"
    if file.lower() in METADATA_NAMES:
        return METADATA
    _, dot, suffix = file.lower().rpartition(".")
    if dot + suffix in IMAGE_SUFFIXES:
        return IMAGE
    if dot + suffix == ".parquet":
        return TABLE
    return dot + suffix if dot + suffix in NO_IMAGES else None


NO_IMAGES = {
    ".7z", ".arrow", ".avi", ".bz2", ".csv", ".db", ".gz", ".htm", ".html", ".ini", ".ipynb", ".json", ".jsonl", ".log",
    ".mat", ".md", ".mov", ".mp3", ".mp4", ".npy", ".npz", ".pdf", ".pkl", ".py", ".rar", ".tar", ".tsv", ".txt",
    ".wav", ".xls", ".xlsx", ".xml", ".yaml", ".yml", ".zip",
}  # fmt: skip


# --------------------------------------------------------------------------------------------- folders of images


class _Folder:
    """A folder of a listing: the images directly in it, and the folders in it."""

    def __init__(self, path: str = "") -> None:
        self.path = path
        self.images: list[str] = []
        self.folders: dict[str, _Folder] = {}

    def below(self, parts: Iterable[str]) -> _Folder:
        folder = self
        for part in parts:
            path = f"{folder.path}/{part}" if folder.path else part
            folder = folder.folders.setdefault(part, _Folder(path))
        return folder

    def everything(self) -> Iterator[str]:
        yield from self.images
        for folder in self.folders.values():
            yield from folder.everything()

    @property
    def holds_images(self) -> bool:
        return any(True for _ in self.everything())

    @property
    def full(self) -> dict[str, _Folder]:
        """The folders in it that hold images, at any depth."""
        return {name: folder for name, folder in sorted(self.folders.items()) if folder.holds_images}

    def __str__(self) -> str:
        return f"folder {self.path!r}" if self.path else "the folder itself"


def image_folders(
    files: Mapping[str, str],
    empty: Iterable[str] = (),
    *,
    named: Mapping[str, str | None] | None = None,
    folders: str | None = None,
    by_table: bool = False,
    where: str = "the folder",
) -> Layout:
    """The splits and classes of a folder of images: one folder per class, within one per split if there are such.

    A single folder around everything is skipped, also around the classes of a split.

    Args:
        files: relative path, with slashes, of each file -> IMAGE, METADATA, or why it is ignored.
        empty: relative paths of folders without files: classes without images.
        named: role ("train", "val", "test") -> name of the split with this role in the settings.
        folders: the setting data.folders: None, "classes" (the folders are classes, whatever their names) or "splits"
            (they are splits, the folders in them classes, and everything deeper belongs to its class).
        by_table: labels come from a table, so folders within a split have no meaning.
        where: name of the folder in messages.

    Raises:
        UserError: ambiguous names; begins with the setting to change.
    """
    wanted = {role: name for role, name in (named or {}).items() if name is not None}
    others = [".parquet" if kind == TABLE else kind for kind in files.values() if kind not in (IMAGE, METADATA)]
    found = Layout(where, ignored=Counter(others))
    top = _tree(files, empty)
    if not top.holds_images:
        hint = "; parquet files are read with data.source=parquet" if TABLE in files.values() else ""
        raise UserError(f"data.path: {where}: holds no image ({_counted(found.ignored) or 'nothing at all'}){hint}")
    base = _unwrapped(top, lambda folder, name: folders == "classes" or _is_wrapper(folder, name, wanted))
    if base is not top:
        found.notes.append(f"{where}: everything lies in {base.path!r}")
    splits = _split_folders(base, wanted, folders, where)
    if splits is None and folders is None:
        _require_one_split(base.everything(), where)
    for folder in [] if splits is None else [base.folders[name] for name in base.folders.keys() - splits.keys()]:
        found.ignored[f"in folder {folder.path!r}, which is no split that was asked for"] += _size(folder)
        if not folder.holds_images:
            found.notes.append(f"folder {folder.path!r} holds no image, so it is no split")
    if splits is not None and base.images:
        raise _beside(base, "the folders of splits", splits, where)

    metadata = tables_by_folder(files)
    for name, folder in (splits or {"train": base}).items():
        inner = folder
        if splits and not by_table:
            inner = _unwrapped(folder, lambda _, inside, split=name: roles_in(inside) <= roles_in(split))  # type: ignore[misc]
        labeled = by_table or all(table_of(image, metadata) for image in inner.images)
        classes = _classes(inner, by_table, labeled, folders, "splits" if splits else "classes", where)
        classes_elsewhere = any(part.full or _is_in_tables(part, metadata) for part in (splits or {}).values())
        if classes is None and roles_in(name) != {"train"} and classes_elsewhere and name not in wanted.values():
            found.ignored[f"in folder {folder.path!r}, which has no class folders, so it is no split"] += _size(folder)
        elif classes is None:
            raise _no_classes(inner, splits, where, found.ignored)
        else:
            found.splits[name] = classes
            if inner is not folder:
                found.notes.append(f"{name}: its class folders are those in {inner.path!r}")
    _leave_out_strangers(found, wanted)
    used = {table_of(image, metadata) for classes in found.splits.values() for image in classes.get(None, ())}
    for name, kind in files.items():
        if kind == METADATA and name not in used:
            beside = metadata[str(PurePosixPath(name).parent)] in used
            reason = "since the folders are the classes (data.label_column takes a column)"
            found.ignored[f"of metadata, {'beside the one that is read' if beside else reason}"] += 1
    found.ignored = +found.ignored
    return found


def _is_in_tables(folder: _Folder, metadata: Mapping[str, str]) -> bool:
    """Whether tables hold the labels of the images that lie in a folder."""
    return bool(folder.images) and all(table_of(image, metadata) for image in folder.images)


def _leave_out_strangers(found: Layout, wanted: Mapping[str, str]) -> None:
    """Skip splits that share no class with training: their folders are not classes."""
    train = next((name for name in found.splits if name == wanted.get("train") or roles_in(name) == {"train"}), None)
    known = {_plain(label) for label, files in found.splits.get(train or "", {}).items() if files}
    for name, classes in list(found.splits.items()):
        strange = None not in classes and not known & {_plain(label) for label in classes}
        if name != train and known and "" not in known and strange:
            folders = _shown(str(label) for label in classes)
            found.notes.append(f"{name}: its folders, {folders}, are no classes of training, so it is no split")
            count = sum(map(len, classes.values()))
            found.ignored[f"in split {name!r}, whose folders are no classes of training"] += count
            del found.splits[name]


def _plain(label: str | None) -> str:
    """A class name in a form in which near misses, such as Cat for cat, are equal; empty for None."""
    return " ".join(unicodedata.normalize("NFKC", label or "").casefold().split())


def _tree(files: Mapping[str, str], empty: Iterable[str]) -> _Folder:
    top = _Folder()
    below = cache(lambda path: top.below(filter(None, path.split("/"))))
    for name in sorted(name for name, kind in files.items() if kind == IMAGE):
        below(name.rpartition("/")[0]).images.append(name)
    for name in empty:
        if kind_of(f"{name}/x.png") == IMAGE:  # neither hidden nor the system's
            below(name)
    return top


def tables_by_folder(files: Mapping[str, str]) -> dict[str, str]:
    """The table of labels in each folder that has one; of several the first in METADATA_NAMES."""
    found = [name for name, kind in files.items() if kind == METADATA]
    found.sort(key=lambda name: METADATA_NAMES.index(PurePosixPath(name).name.lower()), reverse=True)
    return {str(PurePosixPath(name).parent): name for name in found}


def table_of(image: str, tables: Mapping[str, str]) -> str | None:
    """The table with the label of an image: the nearest in its folder or above it; None without one."""
    return next((tables[str(parent)] for parent in PurePosixPath(image).parents if str(parent) in tables), None)


def _size(folder: _Folder) -> int:
    return sum(1 for _ in folder.everything())


def _unwrapped(folder: _Folder, is_wrapper: Callable[[_Folder, str], bool]) -> _Folder:
    """`folder`, or the innermost of the single folders within it that are only wrappers."""
    while not folder.images and len(folder.full) == 1:
        (name, inner), *_ = folder.full.items()
        if inner.images or not inner.full or not is_wrapper(inner, name):
            break  # it is a class or a split
        folder = inner
    return folder


def _is_wrapper(folder: _Folder, name: str, wanted: Mapping[str, str]) -> bool:
    """Whether the only folder at the top is a wrapper and not a split."""
    if name in wanted.values():
        return False
    roles = [roles_in(inner) for inner in folder.full]
    holds_splits = len(roles) > 1 and all(roles) and set().union(*roles) != roles[0]
    return not roles_in(name) or (holds_splits and name.lower() not in ROLE_OF)


def _split_folders(
    base: _Folder, wanted: Mapping[str, str], setting: str | None, where: str
) -> dict[str, _Folder] | None:
    """The folders in `base` that are splits, by name; None if they are classes."""
    full = base.full
    if setting == "classes":
        return None
    chosen = {role: found for role, name in wanted.items() if (found := _named(name, full))}
    if not chosen and setting is None:
        if not any(roles_in(name) for name in full):
            return None
        _require_clear(full, where)
    for role in SPLIT_WORDS.keys() - chosen.keys():
        meant = [name for name in full if roles_in(name) == {role} and name not in chosen.values()]
        if len(meant) > 1:
            raise UserError(
                f"data.{role}_split: {where}: several folders could be meant: {_shown(meant)}; name one, and the "
                "others are left out; or set data.folders=classes if they are classes"
            )
        if meant:
            chosen[role] = meant[0]
    if not chosen:
        raise UserError(f"data.train_split: {where}: none of its folders is named as a split: {_shown(full)}")
    return {name: folder for name, folder in full.items() if name in chosen.values()}


def _require_one_split(images: Iterable[str], where: str) -> None:
    """UserError if most file names contain a split, such as train_1.png and test_1.png, and not all the same."""
    examples: dict[str, str] = {}
    count = named = 0
    for image in images:
        count, stem = count + 1, image.rpartition("/")[2]
        if LIKE_A_SPLIT.search(stem):  # fast, and rarely true
            roles = roles_in(stem.rpartition(".")[0] or stem)
            named += bool(roles)
            examples.update((role, image) for role in roles)
    if len(examples) > 1 and 2 * named > count:
        raise UserError(
            f"data.folders: {where}: files are named as splits, such as {_shown(examples.values())}; put those of each "
            "split into a folder of its own, or set data.folders=classes if their names mean nothing"
        )


def _require_clear(full: Mapping[str, _Folder], where: str) -> None:
    """UserError unless each of these folders, some of which are named as splits, is the folder of one split."""
    splits = [name for name in full if roles_in(name)]
    others = [name for name in full if not roles_in(name)]
    if others:
        first = next((name for name in splits if roles_in(name) == {"train"}), others[0])
        test = next((f" data.test_split={name}" for name in splits if roles_in(name) == {"test"}), "")
        raise UserError(
            f"data.folders: {where}: {_shown(splits)} could be splits, but {_shown(others)} beside them could not; set "
            "data.folders=classes if all of them are classes, or name the splits, such as "
            f"data.train_split={first}{test}, and the others are left out"
        )
    if unclear := next((name for name in splits if len(roles_in(name)) > 1), None):
        raise UserError(
            f"data.folders: {where}: folder {unclear!r} could be {' or '.join(sorted(roles_in(unclear)))}; name the "
            "splits that are meant (data.train_split, data.val_split, data.test_split), or set data.folders=classes if "
            f"{_shown(splits)} are classes"
        )
    inner = full[splits[0]].full
    if len(splits) == 1 and len(set().union(*map(roles_in, inner))) > 1:
        raise UserError(
            f"data.path: {where}: folder {splits[0]!r} is named as a split, and so are those in it, {_shown(inner)}; "
            "give the folder that holds the splits, or set data.folders=splits if the inner ones are classes"
        )


def _classes(
    folder: _Folder, by_table: bool, labeled: bool, setting: str | None, advised: str, where: str
) -> dict[str | None, list[str]] | None:
    """The files of each class in the folder of a split; None if the classes are unknown.

    advised: the value of data.folders that would assign everything deeper to its class.
    """
    full = folder.full
    if by_table or (labeled and not full):
        return {None: sorted(folder.everything())}
    if not full:
        return None
    if folder.images:
        raise _beside(folder, "the class folders", full, where)
    deeper = {name: inner.full for name, inner in full.items() if inner.full}
    if deeper and setting is None:
        name, inside = next(iter(deeper.items()))
        image = next(iter(next(iter(inside.values())).everything()))
        split = next((part for parts in deeper.values() for part in parts if roles_in(part)), None)
        problem = f"data.folders: {where}: images lie deeper than one folder per class, such as {image!r}"
        if split:
            raise UserError(
                f"{problem}; {split!r} is named as a split: put the splits outside the classes, as in {split}/{name}; "
                f"data.folders={advised} would take all that lies in {_shown(full)} together, whatever split it is"
            )
        remedies = [f"set data.folders={advised} if {_shown(full)} are the classes, with all that lies in them"]
        if len(deeper) > 1 and not folder.path and set.intersection(*map(set, deeper.values())):
            remedies.append("name the splits if they are such (data.train_split, data.test_split)")
        remedies.insert(0, "give the folder that holds the class folders as data.path")
        raise UserError(f"{problem}; {', or '.join(remedies)}")
    # A folder without files is a class without images, unless it is named as a split.
    spare = {name for name, inner in folder.folders.items() if not inner.folders and not roles_in(name)}
    return {name: sorted(folder.folders[name].everything()) for name in sorted(full.keys() | spare)}


def _beside(folder: _Folder, what: str, folders: Iterable[str], where: str) -> UserError:
    count = len(folder.images)
    return UserError(
        f"data.path: {where}: {count:,} image{'s' * (count != 1)} such as {folder.images[0]!r} lie beside {what}, "
        f"{_shown(folders)}; move them into one of these, or elsewhere"
    )


def _no_classes(folder: _Folder, splits: Iterable[str] | None, where: str, ignored: Mapping[str, int]) -> UserError:
    beside = f" ({_counted(ignored)} beside them)" if ignored else ""
    return UserError(
        f"data.path: {where}: {folder} holds {len(folder.images):,} images and no class folders{beside}; put the "
        "images of each class into a folder of its own, or list them in a metadata.csv beside them with the columns "
        "file_name and label" + (f"; or set data.folders=classes if {_shown(splits)} are the classes" if splits else "")
    )


# --------------------------------------------------------------------------------------------- parquet files


def tables(
    files: Mapping[str, str], *, named: Mapping[str, str | None] | None = None, where: str = "the folder"
) -> Layout:
    """The splits of a folder of tables: named by the files (train-00000-of-00003.parquet) or by a folder around them.

    Args:
        files: relative path, with slashes, of each file -> TABLE or METADATA, or why it is ignored.
        named: role -> name of the split with this role in the settings.
        where: name of the folder in messages.

    Raises:
        UserError: ambiguous names; begins with the setting to change.
    """
    if TABLE not in files.values():  # then metadata.parquet is the data
        files = {name: TABLE if name.lower().endswith("metadata.parquet") else kind for name, kind in files.items()}
    usual = {name for name, kind in files.items() if kind == TABLE}
    found = Layout(where, ignored=Counter(_table_reason(n, kind) for n, kind in files.items() if kind != TABLE))
    if not usual:
        raise UserError(
            f"data.path: {where}: holds no .parquet file ({_counted(found.ignored) or 'nothing at all'}); folders of "
            "images are data.source=imagefolder"
        )
    wanted = [name for name in (named or {}).values() if name is not None]
    splits, folders, unnamed = _tables_by_split(usual, wanted, where)
    if unnamed and splits and not wanted:
        raise UserError(
            f"data.train_split: {where}: {_shown(unnamed)} say nothing of a split, beside {_shown(splits)}; name the "
            "splits that are meant (data.train_split, data.test_split), and the other files are left out"
        )
    if unnamed and splits:
        found.ignored["of no split that was asked for"] += len(unnamed)
    elif unnamed:
        splits = {"train": unnamed}
        folders = {str(PurePosixPath(name).parent) for name in unnamed}
    _require_one_data_set(folders, len(splits), where)
    for split, own_files in splits.items():
        _require_one_role(split, own_files, where)
        _require_whole(split, own_files, where)
        if len(own_files) > 1 and not any(SHARD.search(PurePosixPath(name).stem) for name in own_files):
            found.notes.append(f"{split}: {len(own_files)} files, one after another: {_shown(own_files)}")
    _leave_out_others(found, splits, named or {})
    found.splits = {name: {None: own} for name, own in splits.items()}
    return found


def _tables_by_split(
    names: Iterable[str], wanted: list[str], where: str
) -> tuple[dict[str, list[str]], set[str], list[str]]:
    """The tables of each split that their names say, the folders around these splits, and tables without a split."""
    splits: dict[str, list[str]] = {}
    folders, unnamed = set[str](), list[str]()
    for name in sorted(names):
        split, around = _split_of_table(name, wanted, where)
        if split is None:
            unnamed.append(name)
        else:
            splits.setdefault(split, []).append(name)
            folders.add(around)
    return splits, folders, unnamed


def _require_one_data_set(folders: set[str], splits: int, where: str) -> None:
    """UserError if there are several folders around the splits."""
    if len(folders) < 2:
        return
    inner = [str(PurePosixPath(where, name)) for name in sorted(folders) if name != "."]
    remedy = f"give one of these, such as data.path={inner[-1]}"
    if len(inner) < len(folders) or splits == len(folders):
        remedy += ", or have the files that belong together in one folder of their own"
    raise UserError(f"data.path: {where}: holds several data sets, in the folders {_shown(sorted(folders))}; {remedy}")


def _leave_out_others(found: Layout, splits: dict[str, list[str]], named: Mapping[str, str | None]) -> None:
    """Skip the splits of a role for which the settings name another one; UserError if several could be meant."""
    for role in SPLIT_WORDS:
        own = named.get(role)
        meant = [name for name in splits if roles_in(name) == {role} and name not in named.values()]
        if own is None and len(meant) > 1:
            raise UserError(
                f"data.{role}_split: {found.where}: several splits could be meant: {_shown(meant)}; name one, and the "
                "others are left out"
            )
        kept = None if own is None else _named(own, splits)
        for name in meant if kept else ():
            if name != kept:
                found.ignored[f"of split {name!r}, which was not asked for"] += len(splits.pop(name))


SHARD = re.compile(r"(\d+)[-_.]of[-_.](\d+)")


def _require_one_role(split: str, files: list[str], where: str) -> None:
    """UserError if a split that the settings name contains files of several splits."""
    examples = {role: n for n in files for part in PurePosixPath(n).parts for role in roles_in(part)}
    if len(examples) > 1 and not roles_in(split):
        raise UserError(
            f"data.train_split, data.val_split, data.test_split: {where}: {split!r} names files of several splits, "
            f"{_shown(examples.values())}; name each by more of its name"
        )


def _require_whole(split: str, files: list[str], where: str) -> None:
    """UserError if shards of a split are missing or occur twice, by the count in names such as train-00000-of-00003."""
    shards = [SHARD.search(PurePosixPath(name).stem) for name in files]
    totals = {int(shard[2]) for shard in shards if shard}
    numbers = sorted(int(shard[1]) for shard in shards if shard)
    if not totals:
        return
    total = max(totals)
    if len(totals) > 1 or not all(shards) or len(set(numbers)) < len(numbers):
        problem = "are shards of several sets, or beside a file that is none"
    elif numbers not in (list(range(total)), list(range(1, total + 1))):
        problem = f"are {len(numbers)} of {total} shards"
    else:
        return
    raise UserError(f"data.path: {where}: the files of split {split!r} {problem}: {_shown(files)}; keep one whole set")


def _table_reason(name: str, kind: str) -> str:
    """The reason to ignore a file that is not a table."""
    return (PurePosixPath(name).suffix.lower() or "without a suffix") if kind in (IMAGE, METADATA) else kind


def _split_of_table(name: str, wanted: list[str], where: str) -> tuple[str | None, str]:
    """The split in the name of a table, or None, and the folder around the splits."""
    path = PurePosixPath(name)
    shard = r"([-_.]?\d+[-_.]of[-_.]\d+([-_.][0-9a-f]{6,})?|[-_.]?\d+)$"
    stem = re.sub(shard, "", path.stem) or path.stem
    places = [(path.stem, path.parent), (stem, path.parent), (re.split(r"[-_.]", stem)[0], path.parent)]
    places += [(parent.name, parent.parent) for parent in path.parents if parent.name]
    for own, around in places:
        if own in wanted:
            return own, str(around)
    candidates = [(own.rpartition("=")[2], around, roles_in(own)) for own, around in (places[1], *places[3:])]
    clear = [(own, around, roles) for own, around, roles in candidates if roles]
    if not clear:
        return None, str(path.parent)
    own, around, roles = clear[0]
    others = set().union(*(more for _, _, more in clear[1:] if len(more) == 1))
    if len(roles) > 1 or others - roles:
        meant = " or ".join(sorted(roles | others))
        raise UserError(
            f"data.train_split: {where}: {name!r} could be {meant}; rename it, or name the splits that are meant "
            "(data.train_split, data.val_split, data.test_split)"
        )
    return own, str(around)


# --------------------------------------------------------------------------------------------- texts


def ignored_note(ignored: Mapping[str, int]) -> list[str]:
    """One line with the number of skipped files, by reason; empty if there are none."""
    return [f"ignored: {_counted(ignored)}"] if ignored else []


def _counted(ignored: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} file{'s' * (count != 1)} {reason}" for reason, count in sorted(ignored.items()))


def _shown(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(repr(name) for name in names[:SHOWN]) + more
