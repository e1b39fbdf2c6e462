"""The run folder: configuration, metrics, checkpoints and the exported student, all written atomically.

runs/<name>-<run_id>/
    config.yaml  identity.json  metrics.jsonl  summary.json
    imports/               copies of the user's own code, if a run has any
    checkpoints/best/      the student with the best val/accuracy, as an export with metrics.json
    checkpoints/latest/    the same for the last epoch or step saved, plus training.pt, for resuming;
                           average/ beside student/ with training.ema
    checkpoints/epochs/    each epoch's student, with evaluation.test_epochs
    checkpoints/.latest.previous/    the checkpoint before, in case `latest` is damaged
    student/               the selected student in timm's own format
    logits.safetensors     of a student without teachers: its logits on each split, for runs compared with it
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import string
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from filelock import SoftFileLease
from tqdm import tqdm

from kd_core.config import IMPORTS, Config, digest, identity_of, own_code, read_yaml, without_place
from kd_core.config.privacy import redacted
from kd_core.errors import UserError, printable
from kd_core.files import (
    copy_folder,
    finite,
    held_lock,
    json_sha256,
    json_text,
    local_path,
    previous_of,
    read_object,
    remove_unfinished,
    replacing_folder,
    sha256_of,
    still_held,
    sync_file,
    writable_folder,
    write_json,
    write_text,
    writing,
)
from kd_core.loop.signals import Stopped
from kd_core.models.weights import unfolds
from kd_core.run.job import Job
from kd_core.run.script import exit_status

EPOCHS = Path("checkpoints", "epochs")
# What to do about a folder that cannot be continued.  --fresh begins no second run of a teacher or of a sweep's trial.
ANEW = (
    "--fresh begins another run; a teacher or a sweep's trial begins anew if you move its folder away and give the "
    "same command"
)


def new_run_id() -> str:
    """Eight random characters, like W&B's own ids."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))


@dataclass
class RunFolder:
    """One run on disk."""

    path: Path
    owner: SoftFileLease | None = None  # the lock, in the process that holds it

    @property
    def summary_file(self) -> Path:
        return self.path / "summary.json"

    @property
    def identity_file(self) -> Path:
        """All settings that affect the result, with checksums of the files they name."""
        return self.path / "identity.json"

    @property
    def began(self) -> float:
        """When the run was created, in seconds since the epoch; 0 if an earlier version did.

        By its identity, which is written once; an evaluation writes its summary again.
        """
        return self.identity_file.stat().st_mtime if self.identity_file.is_file() else 0.0

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def student(self) -> Path:
        """The selected student, once the run has finished."""
        return self.path / "student"

    def has_selected(self, export: Path) -> bool:
        """Whether folder `export` is the run's selected student, not a checkpoint's."""
        return export.resolve() == self.student.resolve()

    @property
    def has_trained(self) -> bool:
        """Whether it holds rows of metrics or a checkpoint."""
        return self.metrics_file.exists() or (self.path / "checkpoints").exists()

    @property
    def finished(self) -> bool:
        return bool(self.summary().get("status") == "finished")

    def checkpoint(self, kind: str) -> Path:
        """`kind` is 'best' or 'latest'."""
        return self.path / "checkpoints" / kind

    def summary(self) -> dict[str, Any]:
        return read_object(self.summary_file)

    def lock(self, notify: Callable[[str], None] | None = None) -> SoftFileLease:
        """Lock the folder for this process.  If another process trains in it: UserError, or with `notify` wait."""

        def busy(owner: str) -> None:
            if notify is None:
                raise UserError(
                    f"{self.path}: is being trained by {owner}; --fresh starts a second run with these settings"
                )
            notify(f"{self.path} is being trained by {owner}; waiting for it")

        self.owner = held_lock(self.path / ".owner", busy)
        return self.owner

    @contextmanager
    def writing(self) -> Iterator[None]:
        """For a block that writes here: UserError if this process has lost the lock, or the disk is full."""
        if self.owner and not still_held(self.owner):
            raise UserError(
                f"{self.path}: has vanished, or another process has taken it over since this one gave no sign of life "
                f"for {self.owner.lease_duration:g} seconds; nothing more is written"
            )
        with writing(self.path):
            yield

    def keep_best(self, export: Path) -> None:
        """Make the exported student in `export` the best one."""
        with replacing_folder(self.checkpoint("best")) as path:
            shutil.copytree(export, path / "student", symlinks=True)

    def keep_epoch(self, export: Path, epoch: int) -> None:
        """Keep the exported student in `export` as that of an epoch."""
        copy_folder(export, self.path / EPOCHS / str(epoch))

    def kept_epochs(self) -> dict[int, Path]:
        """The exported student of each epoch that was kept."""
        found = {int(path.name): path for path in (self.path / EPOCHS).glob("*") if path.name.isdecimal()}
        return dict(sorted(found.items()))

    def keep_student(self, export: Path) -> None:
        """Make the exported student in `export` the selected one."""
        with self.writing():
            copy_folder(export, self.student)

    def record_failure(self, error: BaseException | None) -> None:
        """Record in summary.json how an unfinished run ended.  A folder in which nothing was trained is removed."""
        if error is None or not (self.owner and still_held(self.owner)) or self.finished:
            return
        if isinstance(error, UserError) and not self.has_trained:
            shutil.rmtree(self.path)
            return
        preempted = isinstance(error, Stopped) and error.preempted
        interrupted = isinstance(error, (Stopped, KeyboardInterrupt))
        try:
            self.write_summary(
                status="preempted" if preempted else "interrupted" if interrupted else "failed",
                exit_status=exit_status(error),
                error=str(error) or type(error).__name__,
            )
        except OSError as full:  # must not hide the error itself
            tqdm.write(f"{self.summary_file}: cannot be written: {full.strerror}")

    def write_summary(self, **values: Any) -> dict[str, Any]:
        """Add `values` to summary.json; a new status clears the last error."""
        merged = self.summary() if self.summary_file.exists() else {}
        if "status" in values:
            merged.pop("error", None)
        merged.update(redacted(values))
        write_json(self.summary_file, merged)
        return merged


def create_run(config: Config, data_fingerprint: str, run_id: str) -> RunFolder:
    """A new run folder with its resolved configuration.

    UserError if `output_dir` cannot be written, or if a run of this id has trained there: a sweep gives a trial the
    same id again, and checkpoints of other settings must not continue as this run.
    """
    output = writable_folder(Path(config.output_dir), "output_dir")
    folder = RunFolder(output / f"{config.experiment}-{run_id}")
    _require_unused(folder, config, data_fingerprint)
    folder.path.mkdir(exist_ok=True)
    write_text(folder.path / "config.yaml", config.to_yaml())
    keep_own_code(config, folder.path / IMPORTS)
    write_json(folder.identity_file, redacted(identity_of(config, data_fingerprint)))  # files it names may change later
    folder.write_summary(
        run_id=run_id, config_digest=digest(config, data_fingerprint), status="running", exit_status=None
    )
    return folder


def _require_unused(folder: RunFolder, config: Config, data_fingerprint: str) -> None:
    if not folder.has_trained:
        return
    changes = differences(folder, config, data_fingerprint) or ["  no setting: another version of this program"]
    raise UserError(
        "\n".join([f"{folder.path}: holds training of this trial already. What differs:", *changes])
        + "\nundo the change, or move the folder elsewhere to train the trial from its start"
    )


def keep_own_code(config: Config, target: Path) -> None:
    """Copy the user's own code to `target`, as it was when the run started."""
    files = [own_code.file(path) for path in config.imports]
    if not files:
        return
    names = [file.path.name for file in files]
    with replacing_folder(target) as folder:
        for file in files:
            alone = names.count(file.path.name) == 1
            name = file.path.name if alone else f"{file.path.stem}-{file.digest[:8]}.py"
            (folder / name).write_bytes(file.content)


def find_run(
    config: Config, data_fingerprint: str, run_id: str | None = None, *, finished: bool = False
) -> RunFolder | None:
    """The newest run in `output_dir` with this configuration's digest, else None.

    If none has it, the newest that differs only in the folder where the same images lie: one for each job, say.  None
    that was tested: no fingerprint covers test images, which may be others there.
    With `run_id` only that run, with `finished` only finished runs.
    """
    runs = []
    for path, summary in _objects(config, "summary.json"):
        if run_id in (None, summary.get("run_id")) and (not finished or summary.get("status") == "finished"):
            tested = summary.get("final_test_accuracy") is not None
            runs.append((RunFolder(path.parent), summary.get("config_digest"), tested))
    wanted = digest(config, data_fingerprint)
    found = [folder for folder, known, _ in runs if known == wanted]
    if runs and not found:
        own = without_place(redacted(identity_of(config, data_fingerprint)))
        moved = {path.parent for path, there in _objects(config, "identity.json") if without_place(there) == own}
        found = [folder for folder, _, tested in runs if folder.path in moved and not tested]
    return max(found, key=lambda folder: folder.began, default=None)


def _objects(config: Config, name: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The JSON files of this name in the run folders of `output_dir`, and what they hold; damaged ones are named."""
    for path in sorted(Path(config.output_dir).glob(f"*/{name}")):
        try:
            yield path, read_object(path)
        except UserError as error:
            tqdm.write(f"skipped: {error}")


def open_run(config: Config, data_fingerprint: str, path: str) -> RunFolder:
    """The run folder named by --resume; UserError if it is not a run folder, or lists the settings that differ."""
    folder = RunFolder(local_path(path, "--resume"))
    if not folder.summary_file.is_file():
        raise UserError(
            f"--resume: {path} is not a run folder (it has no summary.json); allowed: auto, never, a run folder"
        )
    if not is_run_of(folder, config, data_fingerprint):
        changes = differences(folder, config, data_fingerprint)
        raise UserError(
            "\n".join([f"--resume: {path} was trained with other settings or data:", *changes])
            + "\ngive the same --config and overrides, or start over with --fresh"
        )
    return folder


def differences(folder: RunFolder, config: Config, data_fingerprint: str) -> list[str]:
    """A line for each setting, and for data and own code, in which the run of `folder` differs from this one."""
    there, here = (
        dict(_leaves(redacted(v))) for v in (read_yaml(folder.path / "config.yaml"), config.model_dump(mode="json"))
    )
    changes = [f"  {change}" for change in _changes(there, here)]
    known = read_object(folder.identity_file).get("images") if folder.identity_file.is_file() else data_fingerprint
    if known != data_fingerprint:
        changes.append(
            f"  the data: fingerprint {str(known)[:12]} there, {data_fingerprint[:12]} here (earlier versions "
            "counted class names in)"
        )
    copies = folder.path / IMPORTS
    kept = {sha256_of(file) for file in copies.glob("*.py")}
    if kept != {own_code.file(name).digest for name in config.imports}:
        changes.append(f"  the files named by --import: the run was trained with the copies in {copies}")
    return changes


def _changes(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    return [
        f"{key}: {there.get(key)!r} there, {here.get(key)!r} here"
        for key in sorted({**there, **here})
        if there.get(key) != here.get(key) and (key in there or here[key] not in (None, []))  # else a newer key
    ]


def is_run_of(folder: RunFolder, config: Config, data_fingerprint: str) -> bool:
    """Whether the run of `folder` has these settings and images, wherever the images lie."""
    if folder.summary().get("config_digest") == digest(config, data_fingerprint):
        return True
    there = read_object(folder.identity_file) if folder.identity_file.is_file() else {}  # older runs have none
    return without_place(there) == without_place(redacted(identity_of(config, data_fingerprint)))


def find_or_create(config: Config, data_fingerprint: str, resume: str, run_id: str | None) -> RunFolder:
    """The run to work on.  `resume`: auto (continue the run with the same settings), never, or a run folder.

    `run_id` is the id that a sweep agent prescribes, if any: with it there is no second run, whatever `resume` is.
    """
    if resume not in ("auto", "never"):
        found: RunFolder | None = open_run(config, data_fingerprint, resume)
    else:
        found = find_run(config, data_fingerprint, run_id) if resume == "auto" or run_id else None
    if found is None:
        tell_other_data(config, data_fingerprint)
        return create_run(config, data_fingerprint, run_id or new_run_id())
    tell_other_place(found, config, data_fingerprint)
    return found


def tell_other_place(folder: RunFolder, config: Config, data_fingerprint: str) -> None:
    """Print a notice if the images of the run of `folder`, which is this one, lay elsewhere when it began."""
    if folder.summary().get("config_digest") == digest(config, data_fingerprint):
        return
    there, here = read_object(folder.identity_file), redacted(identity_of(config, data_fingerprint))
    changes = _changes(*(dict(_leaves(identity["data"], "data.")) for identity in (there, here)))
    message = f"{folder.path}: is the run with these settings and the same images, from elsewhere: {', '.join(changes)}"
    tqdm.write(printable(message))


def tell_other_data(config: Config, data_fingerprint: str) -> None:
    """Print a notice for each run in `output_dir` that differs from this one only in its data's fingerprint."""
    own = redacted(identity_of(config, data_fingerprint))
    for path, there in _objects(config, "identity.json"):
        images = there.get("images")
        if images != data_fingerprint and {**there, "images": data_fingerprint} == own:
            old, new = str(images)[:12], data_fingerprint[:12]
            message = (
                f"{path.parent}: was trained with these settings on data with fingerprint {old}, these have {new}, so "
                "this is another run. Earlier versions counted class names in; if images and labels are the same, "
                f"compare both with: python compare_kd.py {shlex.quote(config.output_dir)} --same-data {old}={new}"
            )
            tqdm.write(printable(message))


def _leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _leaves(value, f"{prefix}{key}.")
    else:
        yield prefix[:-1], values


def open_folder(config: Config, job: Job, resume: str, cleanup: ExitStack) -> RunFolder:
    """The run folder to continue, or a new one; the main process chooses and locks it.

    `resume` as in `find_or_create`.  `cleanup` releases the lock at its end and records how a run failed.
    """
    chosen, mistake, folder = "", "", None
    if job.accelerator.is_main_process:
        try:
            folder = find_or_create(config, job.data.fingerprint_of(config.data), resume, job.prescribed_run_id)
            chosen = str(folder.path)
            _take_over(folder, job, cleanup)
        except UserError as error:
            mistake = str(error)
    [chosen, mistake] = broadcast_object_list([chosen, mistake])
    if mistake:
        raise UserError(mistake)
    if folder and not folder.finished:
        cleanup.push(lambda kind, error, trace: folder.record_failure(error))
    return folder or RunFolder(Path(chosen))


def _take_over(folder: RunFolder, job: Job, cleanup: ExitStack) -> None:
    """Lock an unfinished run and record that it is running; wait if another process trains this teacher or baseline."""
    if not folder.finished:
        cleanup.callback(folder.lock(None if job.is_student else job.say).release)
    if not folder.finished:  # unless the other process has finished it meanwhile
        with folder.writing():
            folder.write_summary(status="running", exit_status=None)


def teacher_lock(config: Config, data_fingerprint: str, busy: Callable[[str], None]) -> SoftFileLease:
    """The lock for training this teacher, held; `busy` is called with its current owner, if any.

    One for all who have the same images, wherever these lie.
    """
    known = json_sha256(without_place(identity_of(config, data_fingerprint)), sort_keys=True)[:16]
    return held_lock(writable_folder(Path(config.output_dir), "output_dir") / f".teacher-{known}.lock", busy)


# ---------------------------------------------------------------------------------------------- training state


def save_latest(folder: RunFolder, export: Any, training: dict[str, Any], state: dict[str, Any]) -> None:
    """Write checkpoints/latest: `export(path)` writes the student, `training` holds tensors, `state` plain values."""
    state = finite(state)  # the values as they will be read, for the checksum
    if folder.metrics_file.exists():  # whose rows the checkpoint counts on, also after a power failure
        sync_file(folder.metrics_file)
    with replacing_folder(folder.checkpoint("latest"), keep_previous=True) as path:
        export(path / "student")
        torch.save(training, path / "training.pt")
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        checksums = {str(file.relative_to(path)): sha256_of(file) for file in files}
        write_json(path / "state.json", {**state, "checksums": checksums | {"state.json": json_sha256(state)}})


def load_latest(folder: RunFolder, notify: Any) -> tuple[Path, dict[str, Any], dict[str, Any]] | None:
    """(path, training, state) of the last complete checkpoint, or None if the run has none yet.

    A damaged one is skipped, with a notice, and the one before it is used.
    """
    latest = folder.checkpoint("latest")
    remove_unfinished(latest)
    candidates = [path for path in (latest, previous_of(latest)) if path.is_dir()]
    for path in candidates:
        try:
            state = read_object(path / "state.json")
            stated = state.pop("checksums", None)
            if not isinstance(stated, dict) or stated.pop("state.json", json_sha256(state)) != json_sha256(state):
                raise UserError(f"{path / 'state.json'}: damaged (its checksum differs)")
            there = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} - {"state.json"}
            if set(stated) != there:  # reads no other file, inside or outside the folder
                raise UserError(f"{path / 'state.json'}: damaged, its list of files differs from the folder's")
            for name, checksum in stated.items():
                if sha256_of(path / name) != checksum:
                    raise UserError(f"{path / name}: damaged (its checksum differs)")
            if unfolds(path / "training.pt"):
                raise UserError(f"{path / 'training.pt'}: damaged, or it would unfold into more than its size")
            return path, torch.load(path / "training.pt", map_location="cpu", weights_only=True), state
        except (UserError, OSError) as error:
            notify(f"checkpoint skipped: {error}")
    if candidates:
        raise UserError(f"{folder.path}: no checkpoint can be read; {ANEW}")
    return None


# --------------------------------------------------------------------------------------------------- metrics


class MetricsFile:
    """metrics.jsonl: one JSON object per line, appended; a checkpoint stores `offset`.

    Numbers that are not finite are written as null.
    """

    def __init__(self, path: Path, offset: int | None = None):
        self._file = open(path, "ab")  # noqa: SIM115 - lives as long as the run
        if offset is not None:
            if not 0 <= offset <= path.stat().st_size:
                raise UserError(f"{path}: damaged, the checkpoint expects {offset} bytes; {ANEW}")
            self._file.truncate(offset)
            self._file.seek(0, os.SEEK_END)

    def append(self, row: dict[str, Any]) -> None:
        self._file.write(json_text(row).encode() + b"\n")
        self._file.flush()

    @property
    def offset(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All rows of a metrics.jsonl; UserError names the file and the damaged line."""
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise UserError(
                f"{path}: line {number}: damaged, not a JSON object: {line[:60]!r}; restore the file; {ANEW}"
            )
        rows.append(row)
    return rows


def lookup(values: Any, key: str) -> Any:
    """The value of a dotted key in a summary, such as 'evaluation.val.teachers.0.ece'; None if there is none."""
    for part in key.split("."):
        if isinstance(values, dict):
            values = values.get(part)
        elif isinstance(values, list) and part.isdecimal() and int(part) < len(values):
            values = values[int(part)]
        else:
            return None
    return values
