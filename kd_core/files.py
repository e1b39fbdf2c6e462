"""Atomic writes (temporary name, fsync, rename), bounded reads, and locks."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from filelock import SoftFileLease, Timeout
from safetensors import SafetensorError

from kd_core.errors import UserError, first_line

MAX_JSON_BYTES = 2**24
LEASE = 30.0  # seconds without a heartbeat after which a lock's owner on another machine counts as dead


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_file(path: Path) -> None:
    """Flush what any process has written to the file to disk."""
    with open(path, "rb+") as file:  # Windows flushes no file that is open for reading alone
        os.fsync(file.fileno())


def json_sha256(value: Any, *, sort_keys: bool = False) -> str:
    """Hex digest of plain data as JSON.  Runs, caches and checkpoints are found by it, so its text must not change."""
    return hashlib.sha256(json.dumps(value, sort_keys=sort_keys).encode()).hexdigest()


def sync_folder(path: Path) -> None:
    """Flush the folder entries of `path` to disk; a no-op where folders cannot be opened (Windows)."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_bytes(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Replace `path` with `content`, atomically.

    Unless `durable`, it does not wait for the disk, and a power failure may lose the content.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        sync_folder(path.parent)


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """`write_bytes` of `text` in UTF-8; file names that are not UTF-8 are escaped."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"), durable=durable)


def finite(value: Any) -> Any:
    """Plain values with None for each number that is not finite, which JSON cannot hold."""
    return mapped(value, lambda leaf: None if isinstance(leaf, float) and not math.isfinite(leaf) else leaf)


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Plain data whose values, in objects and lists at any depth, are changed."""
    if isinstance(value, dict):
        return {key: mapped(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [mapped(item, change) for item in value]
    return change(value)


def json_text(value: Any, indent: int | None = None) -> str:
    """`value` as standard JSON: numbers that are not finite become null."""
    return json.dumps(finite(value), indent=indent, allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` with `value` as JSON, atomically; numbers that are not finite become null."""
    write_text(path, json_text(value, indent=2) + "\n")


@contextmanager
def reading(what: Path | str) -> Iterator[None]:
    """Turn errors of a file that is missing, unreadable or no text into a UserError that begins with `what`."""
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what}: cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from None


def read_json(path: Path) -> Any:
    """The JSON value in `path`; UserError names the file if it is missing or not JSON."""
    with reading(path):
        if path.stat().st_size > MAX_JSON_BYTES or not path.is_file():
            raise UserError(f"{path}: damaged, no file of at most {MAX_JSON_BYTES:,} bytes")
        text = path.read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # also numbers of thousands of digits
        raise UserError(f"{path}: damaged, not valid JSON") from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; UserError names the file if it holds anything else."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path}: damaged, holds a {type(found).__name__}, not an object {{...}}")
    return found


@contextmanager
def replacing_folder(path: Path, *, keep_previous: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block succeeds.

    The previous folder stays as `.NAME.previous` until the new one is complete, or with `keep_previous` until the next
    replacement; `previous_of` finds it, also after a crash between the two renames.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
        sync_folder(temporary)
        previous = previous_of(path)
        if path.exists():
            shutil.rmtree(previous, ignore_errors=True)
            os.rename(path, previous)
        os.rename(temporary, path)
        sync_folder(path.parent)
        if not keep_previous:
            shutil.rmtree(previous, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def copy_folder(source: Path, target: Path) -> None:
    """Replace `target` with a copy of `source`."""
    with replacing_folder(target) as path:
        shutil.copytree(source, path, dirs_exist_ok=True, symlinks=True)


def previous_of(path: Path) -> Path:
    """Path at which `replacing_folder` keeps the previous folder."""
    return path.with_name(f".{path.name}.previous")


def remove_unfinished(path: Path) -> None:
    """Remove the temporary folders of a killed `replacing_folder` of `path`; no process may be writing it."""
    for left in path.parent.glob(f".{path.name}.{'[0-9a-f]' * 8}"):
        shutil.rmtree(left, ignore_errors=True)


def local_path(name: str, key: str) -> Path:
    """`name` as a path, ~ expanded; UserError begins with `key` if it is not a possible file name."""
    try:
        path = Path(name).expanduser()
    except RuntimeError:
        raise UserError(f"{key}: is {name[:60]!r}: there is no user {name.split('/')[0][1:60]!r}") from None
    if "\0" in name or len(os.fsencode(path)) > 4000 or any(len(os.fsencode(part)) > 255 for part in path.parts):
        raise UserError(f"{key}: is {name[:60]!r}...: no file has such a name; a part of one has at most 255 bytes")
    return path


def existing_part(path: Path) -> Path:
    """`path` if it exists, else its nearest existing parent."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def writable_folder(path: Path, key: str) -> Path:
    """Create `path` if needed and test that files can be written there; UserError names `key` otherwise."""
    check_writable(path, key, make=True)
    return path


def check_writable(path: Path, key: str, *, make: bool = False) -> None:
    """UserError if files cannot be written to folder `path`, which is only created with `make`."""
    try:
        if make:
            path.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=existing_part(path)).close()
    except OSError as error:
        raise UserError(f"{key}: cannot write to {path}: {error.strerror}; choose another folder") from None


def reserve(path: Path, size: int) -> None:
    """Create or extend a file of `size` zero bytes, and allocate its disk space.

    Otherwise writing to a memory map of the file on a full disk would kill the process without a message.
    """
    with open(path, "ab") as file:
        file.truncate(size)
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(file.fileno(), 0, size)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of a full, read-only or missing disk within the block into a UserError that names `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = error.strerror if isinstance(error, OSError) else first_line(error, 160)
    except RuntimeError as error:
        if not re.search("PytorchStreamWriter|inline_container", str(error)):  # torch.save, while and after it writes
            raise
        why = first_line(error, 160)
    else:
        return
    raise UserError(
        f"{path}: cannot be written: {why}. Complete files there are untouched; once there is space, give the same "
        "command again: training continues from its last checkpoint"
    )


def held_lock(path: Path, busy: Callable[[str], None]) -> SoftFileLease:
    """The lock file `path`, held: created exclusively, with a heartbeat, since network file systems may lack flock.

    The lock of a dead process on this machine is taken over at once; on another machine, after LEASE seconds without a
    heartbeat.  If a live process holds it, `busy` is called once with its description, then the call waits.
    """
    lock = SoftFileLease(path, lease_duration=LEASE, thread_local=False)
    try:
        lock.acquire(timeout=0)
        return lock
    except Timeout:
        process, host = _owner(path)
    if host != socket.gethostname():  # only its heartbeat tells whether a process elsewhere is alive
        try:
            lock.acquire(timeout=1.5 * LEASE)
            return lock
        except Timeout:
            process, host = _owner(path)
    busy(f"process {process} on {host}")
    lock.acquire()
    return lock


def still_held(lock: SoftFileLease) -> bool:
    """Whether no other process has taken the lock over.

    Reads the lock's file, since after a suspension the process may resume before its heartbeat thread does.  Another
    process that checks for a stale lock moves the file away for a moment, hence the second attempt.
    """
    for wait in (0.0, 0.1):
        time.sleep(wait)
        try:
            if str(lock.token) in Path(lock.lock_file).read_text(encoding="utf-8"):
                return True
        except OSError:
            continue
    return False


def _owner(lock: Path) -> tuple[str, str]:
    """The process and the host that a lock file names."""
    try:
        named = dict(line.split("=", 1) for line in lock.read_text(encoding="utf-8").splitlines() if "=" in line)
    except OSError:  # released meanwhile
        named = {}
    return named.get("pid", "unknown"), named.get("host", "an unknown host")
