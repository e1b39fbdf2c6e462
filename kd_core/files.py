"""Files that no reader ever sees half-written: temporary name, fsync, rename."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from filelock import SoftFileLease, Timeout
from safetensors import SafetensorError

from kd_core.errors import UserError, first_line, printable

MAX_JSON_BYTES = 2**24
LEASE = 30.0  # seconds without a heartbeat after which a lock's owner on another machine counts as dead


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(path: Path) -> None:
    """Make names in `path` durable; a no-op where folders cannot be opened (Windows)."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Rows of plain values as CSV; text that a spreadsheet would run as a formula is preceded by an apostrophe."""

    def cell(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return printable(f"'{value}" if value.startswith(tuple("=+-@\t\r")) else value)

    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([cell(value) for value in row] for row in rows)
    return text.getvalue()


def write_bytes(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Replace `path` by `content`, atomically.

    If not `durable`, a power failure may lose it: it waits for no disk.
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
    """`write_bytes` of `text` in UTF-8; names of files that are not UTF-8 are written with escapes."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"), durable=durable)


def finite(value: Any) -> Any:
    """Plain values with None for each number that is not finite, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_text(value: Any, indent: int | None = None) -> str:
    """`value` as JSON that every reader takes: what is not finite is null."""
    return json.dumps(finite(value), indent=indent, allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as JSON, atomically; what is not finite is null."""
    write_text(path, json_text(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in `path`; UserError names the file if it is missing or no JSON."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES or not path.is_file():
            raise UserError(f"{path}: damaged, no file of at most {MAX_JSON_BYTES:,} bytes")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from None
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

    The previous folder stays as `.NAME.previous` until the new one stands, or with `keep_previous` until the next
    time; `previous_of` finds it, also after a crash between the two renames.
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
    """Replace `target` by a copy of `source`."""
    with replacing_folder(target) as path:
        shutil.copytree(source, path, dirs_exist_ok=True, symlinks=True)


def previous_of(path: Path) -> Path:
    """Where `replacing_folder` keeps the old folder."""
    return path.with_name(f".{path.name}.previous")


def remove_unfinished(path: Path) -> None:
    """Remove what a `replacing_folder` of `path` that was killed has left; nobody may be writing it."""
    for left in path.parent.glob(f".{path.name}.{'[0-9a-f]' * 8}"):
        shutil.rmtree(left, ignore_errors=True)


def local_path(name: str, key: str) -> Path:
    """`name` as a path, ~ expanded; UserError begins with `key` if no file can have such a name."""
    try:
        path = Path(name).expanduser()
    except RuntimeError:
        raise UserError(f"{key}: is {name[:60]!r}: there is no user {name.split('/')[0][1:60]!r}") from None
    if "\0" in name or len(os.fsencode(path)) > 4000 or any(len(os.fsencode(part)) > 255 for part in path.parts):
        raise UserError(f"{key}: is {name[:60]!r}...: no file has such a name; a part of one has at most 255 bytes")
    return path


def existing_part(path: Path) -> Path:
    """`path` if it exists, else the nearest of its parents that does."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def writable_folder(path: Path, key: str) -> Path:
    """Create `path` if needed and prove that files can be written there; UserError names `key` otherwise."""
    check_writable(path, key, make=True)
    return path


def check_writable(path: Path, key: str, *, make: bool = False) -> None:
    """UserError if files cannot be written to folder `path`; unless `make`, nothing is made, also no folder."""
    try:
        if make:
            path.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=existing_part(path)).close()
    except OSError as error:
        raise UserError(f"{key}: cannot write to {path}: {error.strerror}; choose another folder") from None


def reserve(path: Path, size: int) -> None:
    """Make a file of zeros, or make one longer, and take its room on the disk: writing to a map of it cannot fail then.

    Without, a disk that is full when the map is written to would end the process without a word.
    """
    with open(path, "ab") as file:
        file.truncate(size)
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(file.fileno(), 0, size)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within the block a disk that is full, read-only or gone is a UserError that names `path` and says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = error.strerror if isinstance(error, OSError) else first_line(error, 160)
    except RuntimeError as error:
        if "PytorchStreamWriter" not in str(error):
            raise
        why = first_line(error, 160)
    else:
        return
    raise UserError(
        f"{path}: cannot be written: {why}. What was complete there is untouched; once there is room, the same command "
        "goes on from the last checkpoint"
    )


def held_lock(path: Path, busy: Callable[[str], None]) -> SoftFileLease:
    """The lock of file `path`, held: made exclusively, with a heartbeat, since network file systems may not know flock.

    What a dead process of this machine holds is taken over at once; what one of another machine holds, when no
    heartbeat is seen for LEASE seconds.  While somebody alive holds it `busy` is told who, once; then it is waited for.
    """
    lock = SoftFileLease(path, lease_duration=LEASE, thread_local=False)
    try:
        lock.acquire(timeout=0)
        return lock
    except Timeout:
        process, host = _owner(path)
    if host != socket.gethostname():  # whether it is alive cannot be asked, only waited for
        try:
            lock.acquire(timeout=1.5 * LEASE)
            return lock
        except Timeout:
            process, host = _owner(path)
    busy(f"process {process} on {host}")
    lock.acquire()
    return lock


def still_held(lock: SoftFileLease) -> bool:
    """Whether nobody has taken the lock over: asked of its file, since who was suspended goes on before its heartbeat.

    Somebody who looks whether the lock is stale moves the file away for a moment, hence the second look.
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
