"""The teacher cache: what a teacher gives for each view of an image, computed once and shared by all runs on a machine.

    python -m kd_core.cache [--dir FOLDER]                 what is cached: size, filled share, last use
    python -m kd_core.cache [--dir FOLDER] --erase all|KEY...

A store holds fp16 logits [views, rows, classes] in a memory-mapped file, under a key that covers everything they
depend on.  A second file holds a checksum per row of logits, 0 for a row that is not filled.  So any number of
processes can fill a store in any order, an interruption loses nothing, and a damaged or half-written row counts as
missing.  What a feature loss needs of an image lies in a store of the same kind; its layers' shapes and its last linear
layer are kept once per teacher (kd_core/teachers/kept_features.py).
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, SoftFileLease
from torch import Tensor

from kd_core.data.plan import Batch
from kd_core.errors import UserError
from kd_core.files import existing_part, held_lock, json_sha256, read_object, reserve, write_json, writing
from kd_core.teachers.logits_file import FileStore

VERSION = 2  # of the files' layout and of how logits are computed
GIGABYTE = 10**9
MERSENNE = 2**31 - 1  # a prime
SHAPE = {"views", "rows", "classes"}
BLOCK = 1 << 16  # values whose checksum doubles hold exactly
CHUNK = 1 << 22  # values that are read at once


# ---------------------------------------------------------------------------------------------------- one store


def row_checksums(values: Tensor) -> Tensor:
    """Checksums int32 [B], never 0, of fp16 values [B,C].

    The weighted sum of the values' bits modulo a prime, block by block: doubles are exact below 2^53, which holds for a
    block.
    """
    total: Tensor | None = None
    for block in values.view(torch.int16).split(BLOCK, 1):
        sums = (block.double() @ _factors(block.shape[1])).remainder_(MERSENNE)
        total = sums if total is None else total.mul_(31).add_(sums).remainder_(MERSENNE)
    assert total is not None
    return (total + 1).int()


@lru_cache(maxsize=16)
def _factors(count: int) -> Tensor:
    """Different odd numbers below 2^22, float64 [count]."""
    return ((2 * torch.arange(count) + 1) * 0x9E3779B1 & 0x3FFFFF).double()


class Store:
    """Logits of one teacher for the images of one source split: fp16 [views, rows, classes].

    A slot is `view * rows + row`.  Processes may read and write at the same time.
    """

    def __init__(self, folder: Path, views: int, rows: int, classes: int):
        self.folder, self.views, self.rows, self.classes = folder, views, rows, classes
        count, (logits, checks) = views * rows, _files(folder, views, rows, classes)
        self._file = open(logits, "r+b", buffering=0)
        values = torch.from_file(str(logits), shared=True, size=count * classes, dtype=torch.float16)
        self._logits = values.view(count, classes)
        self._checks = torch.from_file(str(checks), shared=True, size=count, dtype=torch.int32)

    @classmethod
    def create(cls, folder: Path, **shape: int) -> Store:
        """An empty store in a new folder.  Its file of logits is sparse and takes no space at first."""
        folder.mkdir()
        (logits, size), (checks, room) = _files(folder, **shape).items()
        with open(logits, "wb") as file:
            file.truncate(size)
        reserve(checks, room)
        return cls(folder, **shape)

    @staticmethod
    def size(views: int, rows: int, classes: int) -> int:
        """Bytes of a full store."""
        return views * rows * (2 * classes + 4)

    def read(self, slots: Tensor) -> Tensor:
        """Logits fp16 [n,C] of slots int64 [n] on the CPU, filled or not."""
        return self._logits.index_select(0, slots)

    def sound(self, slots: Tensor) -> Tensor:
        """bool [n]: whether each of slots int64 [n] is filled and undamaged."""
        chunk = max(1, CHUNK // self.classes)
        found = [self.fits(part, self.read(part)) for part in slots.split(chunk)]
        return torch.cat(found) if found else slots.bool()

    def fits(self, slots: Tensor, values: Tensor) -> Tensor:
        """bool [n]: whether fp16 values [n,C] have the checksums of slots int64 [n]."""
        return row_checksums(values) == self._checks.index_select(0, slots)

    def holds(self, slots: Tensor) -> Tensor:
        """bool [n]: whether each of slots int64 [n] is filled, perhaps with damaged data."""
        return self._checks.index_select(0, slots) != 0

    def write(self, slots: Tensor, logits: Tensor) -> None:
        """Fill slots int64 [B] with fp16 logits [B,C], all on the CPU.  OSError on a full disk."""
        data, width = memoryview(logits.numpy().tobytes()), 2 * self.classes
        # In runs of adjacent slots, on the host: only new logits are written, once, after a forward pass.
        breaks = ((slots.diff() != 1).nonzero().flatten() + 1).tolist()
        starts = [0, *breaks, len(slots)] if len(slots) else []
        for (start, end), slot in zip(pairwise(starts), slots[starts[:-1]].tolist(), strict=True):
            # to the file, not to its map: on a full disk the file raises an error, the map kills the process
            part = data[start * width : end * width]
            if os.pwrite(self._file.fileno(), part, slot * width) < len(part):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._checks.index_copy_(0, slots, row_checksums(logits))

    def damaged(self, slots: Tensor) -> int:
        """How many of slots int64 [n] hold damaged data."""
        filled = slots[self.holds(slots)]
        return int((~self.sound(filled)).sum())

    def lock(self, notify: Callable[[str], None]) -> SoftFileLease:
        """The lock for filling the store; while another run holds it, reports that and waits."""
        return held_lock(
            self.folder / ".owner",
            lambda owner: notify(f"{owner} is filling the cache of this teacher; waiting for it"),
        )

    def filled(self) -> float:
        """The fraction of slots that are filled."""
        return float((self._checks != 0).float().mean())


def _files(folder: Path, views: int, rows: int, classes: int) -> dict[Path, int]:
    """A store's files of logits and checksums, with their sizes in bytes."""
    count = views * rows
    return {folder / "logits": 2 * count * classes, folder / "checks": 4 * count}


class CachedTeacher:
    """What a teacher gives, by row and view: read if it is stored, else computed and stored.

    Args:
        store: a store of the cache or a file of logits.
        per_view: whether there are logits per view, or of the clean view only.
        notify: called once if rows are damaged; these are computed again.
        features: stores of what feature losses need of the same images and views.  Their rows are long, so each is
            compared with its checksum when this process reads it for the first time, not at the start of every epoch.

    index_device: the device of the rows for `begin_epoch`.
    """

    def __init__(
        self,
        store: Store | FileStore,
        *,
        per_view: bool,
        notify: Callable[[str], None],
        features: Sequence[Store] = (),
    ):
        self.store, self.per_view, self.features, self._notify = store, per_view, tuple(features), notify
        self._compared = [torch.zeros(one.views * one.rows, dtype=torch.bool) for one in self.features]
        self._damage_reported = False
        self.index_device = torch.device("cpu")
        self._tables: list[Tensor] = []  # the stores on a GPU
        self._coming: deque[tuple[Tensor, list[Tensor], torch.cuda.Event]] = deque()
        self.hits = self.asked = 0

    def begin_epoch(self, batches: Batch) -> None:
        """Look up all steps of an epoch at once, all int64 [steps,B], so that no step has to."""
        rows = batches.rows
        self._slots = batches.numbers * self.store.rows + rows if self.per_view else rows
        self.asked += rows.numel()
        if self._tables:
            self.hits += rows.numel()
            return
        self._there = self.there(self._slots.flatten()).view_as(rows)
        self._complete = self._there.all(1).tolist()  # on the host, once per epoch: no synchronization
        self.hits += int(self._there.sum())
        self.report_damage(self._slots[~self._there])

    def there(self, slots: Tensor) -> Tensor:
        """bool [n]: whether everything is stored for each of slots int64 [n]."""
        return torch.stack([self.store.sound(slots), *(store.holds(slots) for store in self.features)]).all(0)

    def missing(self, slots: Tensor) -> Tensor:
        """Those of slots int64 [n] for which something is not stored."""
        return slots[~self.there(slots)]

    def __call__(self, step: int, device: torch.device, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits fp16 [B,C] of a step of the epoch, on `device`, without synchronizing.

        `compute(positions)` returns, on the device, those at positions int64 [n] of the batch.
        """
        return self.everything(step, device, lambda positions: [compute(positions)])[0]

    def everything(
        self, step: int, device: torch.device, compute: Callable[[Tensor], list[Tensor]]
    ) -> list[Tensor]:
        """The same of all stores: logits fp16 [B,C], then the features, fp16 [B,width] each."""
        slots = self._slots[step]
        if self._tables:
            return [table.index_select(0, slots) for table in self._tables]
        values = [store.read(slots) for store in (self.store, *self.features)]
        self._compare(step, slots, values[1:])
        if device.type == "cuda":
            values = [one.pin_memory().to(device, non_blocking=True) for one in values]
        if not self._complete[step]:
            lacking = (~self._there[step]).nonzero().flatten()
            # Kernels may round a single image differently from a batch.
            positions = lacking if len(lacking) > 1 else torch.stack([lacking[0], (lacking[0] + 1) % len(slots)])
            there_too = positions.to(device, non_blocking=True)
            fresh = compute(there_too)
            for one, computed in zip(values, fresh, strict=True):
                one[there_too] = computed
            self._keep_later(slots[positions], fresh)
        return values

    def _compare(self, step: int, slots: Tensor, values: list[Tensor]) -> None:
        """Compare what was read of features, fp16 [B,width] each, with its checksums, once per row; on the host."""
        for store, compared, own in zip(self.features, self._compared, values, strict=True):
            new = (self._there[step] & ~compared[slots]).nonzero().flatten()
            if not len(new):
                continue
            fine = store.fits(slots[new], own[new])
            compared[slots[new]] = fine
            if not bool(fine.all()):
                self._there[step, new[~fine]] = False
                self._complete[step] = False
                self.report_damage(slots[new[~fine]], store)

    def report_damage(self, slots: Tensor, store: Store | None = None) -> None:
        """Notify, once, if any of slots int64 [n] are damaged in the store of logits, or in one of features."""
        where, what = store or self.store, "features" if store else "logits"
        if not self._damage_reported and (count := where.damaged(slots)):
            self._damage_reported = True
            self._notify(f"{where.folder}: damaged, {count} or more teachers' {what} are computed again")

    def keep(self, slots: Tensor, *values: Tensor) -> None:
        """Write logits fp16 [B,C] and features fp16 [B,width] to slots int64 [B], all on the CPU.

        Rows that are not finite stay missing.
        """
        fine = torch.stack([one.isfinite().all(1) for one in values]).all(0)
        for store, one in zip((self.store, *self.features), values, strict=True):
            with writing(store.folder):
                store.write(slots[fine], one[fine])

    def _keep_later(self, slots: Tensor, values: list[Tensor]) -> None:
        """`keep` values that may be on a GPU, once their copies have arrived."""
        if values[0].device.type != "cuda":
            return self.keep(slots, *values)
        copies = [
            torch.empty(one.shape, dtype=one.dtype, pin_memory=True).copy_(one, non_blocking=True) for one in values
        ]
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(values[0].device))
        self._coming.append((slots, copies, arrived))
        while self._coming and self._coming[0][2].query():
            self._keep_first()

    def _keep_first(self) -> None:
        slots, copies, arrived = self._coming.popleft()
        arrived.synchronize()
        self.keep(slots, *copies)

    def keep_on(self, device: torch.device, rows: Tensor) -> None:
        """Copy the stores to a GPU if all rows int64 [n] are filled and it takes under a fifth of the free memory."""
        if device.type != "cuda":
            return
        stores, tables = (self.store, *self.features), list[Tensor]()
        size = sum(2 * store.views * store.rows * store.classes for store in stores)
        if size > 0.2 * torch.cuda.mem_get_info(device)[0]:
            return
        for store in stores:
            table = torch.empty((store.views * store.rows, store.classes), dtype=torch.float16, device=device)
            for view in range(store.views):
                for part in rows.split(max(1, CHUNK // store.classes)):
                    slots = view * store.rows + part
                    if not bool(store.sound(slots).all()):
                        return
                    table[slots.to(device)] = store.read(slots).to(device)
            tables.append(table)
        self._tables, self.index_device = tables, device

    def hit_rate(self) -> float:
        """The fraction of logits that were read since the last call; computed ones are stored by then."""
        while self._coming:
            self._keep_first()
        rate = self.hits / self.asked if self.asked else 0.0
        self.hits = self.asked = 0
        return rate


# --------------------------------------------------------------------------------------------------- all stores

_opened: set[Path] = set()  # stores that this process has opened: removed, they would have to be filled again


def key_of(parts: dict[str, Any]) -> str:
    """The name of the store whose logits depend on exactly `parts`."""
    return json_sha256([VERSION, parts], sort_keys=True)[:20]


def open_store(
    folder: Path,
    parts: dict[str, Any],
    *,
    views: int,
    rows: int,
    classes: int,
    about: dict[str, Any],
    max_gb: float,
    used: int | None = None,
    notify: Callable[[str], None] = print,
) -> Store:
    """The store for `parts` in `folder`; created if it is missing or, with a notice, damaged.

    Before a store is created, the least recently used ones are removed until all fit into `max_gb` gigabytes, but none
    that this process has opened.

    Args:
        about: shown to people, such as the teacher's name.
        used: how many of the rows will be filled, as far as is known; the others take no space.

    Raises:
        UserError: the folder is not writable, the store is larger than `max_gb`, or the disk lacks the space; writing
            to a memory map on a full disk would kill the process without a message.  Nothing is removed then.
    """
    parts = json.loads(json.dumps(parts))  # as `about.json` returns them
    own = folder / key_of(parts)
    shape = {"views": views, "rows": rows, "classes": classes}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            about_it = described(own)
            sound = about_it.get("shape") == shape and about_it.get("parts") == parts and _has_files(own, shape)
            if own.exists() and not sound:
                notify(f"{own}: damaged, all of these teacher's logits are computed again")
                shutil.rmtree(own)
            if not sound:
                make_room(folder, max_gb, Store.size(views, rows if used is None else used, classes))
                store = Store.create(own, **shape)
                write_json(own / "about.json", {**about, "shape": shape, "parts": parts})
            else:
                store = Store(own, **shape)
                os.utime(own / "about.json")  # records the last use
            _opened.add(own)
            return store
    except OSError as error:
        raise UserError(f"cache.dir: cannot keep teachers' logits in {folder}: {error.strerror}") from None


def free_gigabytes(folder: Path) -> float:
    """Free space on the disk of `folder`, which need not exist yet."""
    return shutil.disk_usage(existing_part(folder)).free / GIGABYTE


def _has_files(store: Path, shape: dict[str, int]) -> bool:
    counted = all(isinstance(count, int) and count > 0 for count in shape.values())
    return counted and all(
        path.is_file() and path.stat().st_size == size for path, size in _files(store, **shape).items()
    )


def described(store: Path) -> dict[str, Any]:
    """What a store says of itself in `about.json`; nothing where that is missing or damaged."""
    try:
        return read_object(store / "about.json")
    except UserError:
        return {}


@dataclass
class Listed:
    """One store, for display."""

    key: str
    teacher: str
    view: str
    gigabytes: float
    filled: float
    used: float  # seconds since 1970

    @property
    def line(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.used))
        size = f"{self.gigabytes:8.3f} GB  {self.filled:6.1%} filled"
        return f"{self.key}  {size}  last used {when}  {self.teacher}, {self.view}"


def listed(folder: Path) -> list[Listed]:
    """The stores in `folder`, most recently used first.  Damaged ones are listed as empty."""
    found = []
    for path in folder.glob("*/about.json"):
        about, store = described(path.parent), path.parent
        shape = about.get("shape")
        sound = isinstance(shape, dict) and set(shape) == SHAPE and _has_files(store, shape)
        teacher, view = (str(about.get(name, "damaged")) for name in ("teacher", "view"))
        filled = Store(store, **shape).filled() if sound and shape else float("facts" in about)  # not in rows
        found.append(Listed(store.name, teacher, view, _on_disk(store), filled, path.stat().st_mtime))
    return sorted(found, key=lambda store: -store.used)


def room_for(folder: Path, max_gb: float, wanted: list[dict[str, Any]]) -> float:
    """Gigabytes that the stores may take in `folder` whose parts, apart from `features`, are among the `wanted`.

    Others make way for them where all together exceed `max_gb`; below that, these have what the disk has free.
    """
    wanted = json.loads(json.dumps(wanted))  # as `about.json` returns them
    free, own, total = free_gigabytes(folder), 0.0, 0.0
    for path in folder.glob("*/about.json"):
        parts, size = described(path.parent).get("parts"), _on_disk(path.parent)
        total += size
        if isinstance(parts, dict) and {key: parts[key] for key in parts if key != "features"} in wanted:
            own += size
    return max_gb if free + total >= max_gb else free + own


def _on_disk(store: Path) -> float:
    """Gigabytes; holes of sparse files take nothing, and so does what another run removes meanwhile."""
    blocks = 0
    with suppress(FileNotFoundError):
        for file in store.iterdir():
            blocks += file.stat().st_blocks
    return blocks * 512 / GIGABYTE


def make_room(folder: Path, max_gb: float, size: int) -> None:
    """Remove the least recently used stores until `size` more bytes fit, but none that this process has opened.

    Another process that has opened a removed store can go on reading it: the system keeps its files until they are
    closed.  UserError, before anything is removed, if `max_gb` or the disk could not hold `size` bytes.
    """
    wanted, free, stores = size / GIGABYTE, free_gigabytes(folder), listed(folder)
    if wanted > max_gb:
        raise UserError(
            f"cache.max_gb: is {max_gb:g}, a teacher's logits can take {wanted:.3g} GB; set cache.max_gb="
            f"{math.ceil(wanted)}, or choose another cache.mode"
        )
    surplus, going = sum(store.gigabytes for store in stores) + wanted - max_gb, list[Listed]()
    for store in reversed(stores):
        if surplus > 0 and folder / store.key not in _opened:
            surplus -= store.gigabytes
            going.append(store)
    if wanted > free + sum(store.gigabytes for store in going):
        raise UserError(
            f"cache.dir: {folder} has {free:.2f} GB free, a teacher's logits can take {wanted:.2f} GB; free some "
            "space, or choose another cache.dir or cache.mode"
        )
    for store in going:
        shutil.rmtree(folder / store.key)


def main(arguments: list[str]) -> None:
    from kd_core.config import CacheConfig  # the scripts' default folder

    parser = argparse.ArgumentParser(
        prog="python -m kd_core.cache", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--dir", type=Path, help="the cache's folder (cache.dir); default: $KD_CACHE_DIR or ~/.cache/kd"
    )
    parser.add_argument("--erase", nargs="+", metavar="KEY", help="remove these stores, or all")
    options = parser.parse_args(arguments)
    folder = logits_folder(options.dir or CacheConfig().folder)
    stores = listed(folder)
    if options.erase:
        known = {store.key for store in stores}
        chosen = known if options.erase == ["all"] else set(options.erase)
        if unknown := chosen - known:
            raise UserError(f"--erase: no such store: {', '.join(sorted(unknown))}; without --erase they are listed")
        for key in chosen:
            shutil.rmtree(folder / key)
        print(f"{len(chosen)} store(s) removed from {folder}")
        return
    print("\n".join(store.line for store in stores) or f"no teachers' logits in {folder}")
    print(f"{sum(store.gigabytes for store in stores):.3f} GB in {folder}")


def logits_folder(cache: Path) -> Path:
    """Where a cache folder keeps teachers' logits."""
    return cache / "logits"
