"""W&B artifacts: students uploaded in the background, and downloaded as teachers or for evaluation."""

from __future__ import annotations

import math
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from filelock import FileLock

from kd_core.config import registry
from kd_core.errors import UserError, causes, first_line
from kd_core.files import json_text, replacing_folder

API_TIMEOUT = 30  # seconds; without it the client retries an unreachable server for minutes
GRACE = 0.5  # seconds, see `let_service_settle`
# The files that a model artifact may hold, and their maximum size in bytes.  Anything else is refused.
STUDENT_FILES = {"config.json": 2**20, "config.yaml": 2**20, "metrics.json": 2**20, "model.safetensors": 2**36}

MISSING = "W&B knows no such artifact (or hides it from this account)"
# Patterns of W&B's error messages, and what the user can do about each; the first match counts.
CAUSES = {
    r"not found|does not exist|\b404\b": MISSING,
    r"no api key|api key must|api_key invalid": "no valid credentials: run 'wandb login' or set WANDB_API_KEY",
    r"did not respond in time|giving up after|connection|dial tcp|timed out|deadline exceeded": (
        "W&B cannot be reached: is there a network, and is WANDB_BASE_URL right?"
    ),
    r"permission|forbidden|\b403\b": "W&B refuses it to this account: ask its owner for access",
    r"verify credentials|\b401\b|relogin": "W&B refuses the credentials: run 'wandb login --relogin'",
    r"invalid artifact path": "the name must look like ENTITY/PROJECT/NAME:ALIAS",
}


class NoSuchArtifact(UserError):
    """W&B has no artifact of this name and alias."""


def download(name: str, cache: Path, where: str) -> Path:
    """The folder in `cache` with the student of W&B model artifact `name`, ENTITY/PROJECT/NAME:ALIAS.

    Each version is downloaded once; within a process an alias always means the same version.

    Raises:
        UserError: begins with `where` and names the reason: no such artifact, no access, no network, another type,
            unexpected files, or a checksum mismatch.
    """
    if not re.fullmatch(r"[^/:]+(/[^/:]+){1,2}(:[^/:]+)?", name):  # a bare NAME would be searched everywhere
        raise UserError(f"{where}: W&B artifact {name!r}: the name must look like ENTITY/PROJECT/NAME:ALIAS")
    if name not in registry.downloads:
        registry.downloads[name] = registry.Download(*_download(name, cache, f"{where}: W&B artifact {name!r}"))
    return registry.downloads[name].folder


def version_of(name: str) -> str:
    """ENTITY/PROJECT/NAME:VERSION that `download` fetched for `name`; the alias may have moved since."""
    return registry.downloads[name].version


def _download(name: str, cache: Path, where: str) -> tuple[Path, str]:
    import wandb

    try:
        artifact = wandb.Api(timeout=API_TIMEOUT).artifact(name)
        entries = artifact.manifest.entries
    except Exception as error:  # noqa: BLE001 - any failure of the service becomes a UserError
        why = explain(error)
        raise (NoSuchArtifact if why.startswith(MISSING) else UserError)(f"{where}: {why}") from None
    if artifact.type != "model":
        raise UserError(f"{where}: is of type {artifact.type!r}, a 'model' is needed")
    for path, entry in entries.items():
        if path not in STUDENT_FILES or entry.ref is not None or (entry.size or 0) > STUDENT_FILES[path]:
            raise UserError(
                f"{where}: refused, it holds {path!r}"
                f"{' as a reference' if entry.ref is not None else f' of {entry.size or 0:,} bytes'}; "
                f"a student's artifact holds {', '.join(STUDENT_FILES)} and nothing else"
            )
    missing = {"config.json", "model.safetensors"} - set(entries)
    if missing:
        raise UserError(f"{where}: holds no student, {', '.join(sorted(missing))} is missing")
    collection = artifact.name.partition(":")[0]
    folder = cache / artifact.entity / artifact.project / f"{collection}-{artifact.version}"
    if ".." in folder.parts or not folder.is_relative_to(cache):
        raise UserError(f"{where}: refused, it is called {artifact.entity!r}, {artifact.project!r}, {artifact.name!r}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        # Several processes may download the same version.  An existing folder is verified, not trusted.
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not (folder.is_dir() and _is_intact(artifact, folder)):
                with replacing_folder(folder) as fresh:
                    artifact.download(root=str(fresh), skip_cache=True)
                    artifact.verify(str(fresh))
    except ValueError as error:
        raise UserError(f"{where}: damaged, {first_line(error)}") from None
    except Exception as error:  # noqa: BLE001 - see above
        raise UserError(f"{where}: {explain(error)}") from None
    return folder, f"{artifact.entity}/{artifact.project}/{collection}:{artifact.version}"


def _is_intact(artifact: Any, folder: Path) -> bool:
    try:
        artifact.verify(str(folder))
    except (ValueError, OSError):  # another content, or a file that is missing
        return False
    return {path.name for path in folder.iterdir()} == set(artifact.manifest.entries)


def explain(error: Exception) -> str:
    """One line about a W&B failure: the advice, if known, and W&B's own message.

    Every failure is explained, so here is where one that timed out is waited for; see `let_service_settle`.
    """
    let_service_settle(error)
    words = first_line(error, 200)
    signs = re.sub(r"'[^']*'", "", str(error))  # drops quoted names, which could match a pattern
    advice = next((advice for sign, advice in CAUSES.items() if re.search(sign, signs, re.IGNORECASE)), None)
    return f"{advice} ({words})" if advice else words


def let_service_settle(error: BaseException) -> None:
    """Wait a moment if `error` comes from a request that timed out, so that W&B's client can end.

    The client cancels such a request, and its service process replies to that.  If the client closes the connection
    before the reply, as at the end of a process, the service drops it without reading the last message, which says
    "end", and the client waits for the service for ever.
    """
    if any(isinstance(cause, TimeoutError) for cause in causes(error)):
        time.sleep(GRACE)


class Uploads:
    """Uploads versions of artifact model-{run_id}, one after the other in a thread, so that training never waits.

    `guard(what, action)` runs a W&B call; on failure it prints a message and returns None.  `patience`: timeout in
    seconds for one version during training, and for all of them at the end.
    """

    def __init__(self, run: Any, online: bool, guard: Callable[[str, Callable[[], Any]], Any], patience: float):
        self._run, self._online, self._guard, self._patience = run, online, guard, patience
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="uploads")
        self._final: list[Future[bool]] = []
        self._deadline = math.inf
        self.name = f"model-{run.id}"

    def store(self, export: Path, metrics: dict[str, Any], aliases: list[str], *, final: bool) -> None:
        """Upload the student in folder `export` with its `metrics` as a version with `aliases`.

        `final`: the run's last version; its files no longer change, so W&B need not copy them.
        """
        import wandb

        def collect() -> Any:
            artifact = wandb.Artifact(self.name, type="model", metadata=metrics)
            policy: Any = "immutable" if final else "mutable"
            own = (path for path in export.iterdir() if path.name in STUDENT_FILES and not path.is_symlink())
            for file in sorted(own):  # no symbolic links, which could point anywhere
                # skip_cache: no copy of each version in W&B's cache in the home folder
                artifact.add_file(str(file), name=file.name, policy=policy, skip_cache=True)
            return artifact

        artifact = self._guard("collect the student", collect)
        if artifact is not None:
            sending = self._worker.submit(self._send, artifact, aliases)
            if final:
                self._final.append(sending)

    def _send(self, artifact: Any, aliases: list[str]) -> bool:
        """Whether it arrived, or, offline, was recorded.  One at a time, so that aliases point to the last version."""

        def log() -> Any:
            try:
                return self._run.log_artifact(artifact, aliases=aliases)
            except Exception:  # noqa: BLE001 - fails after about 20 seconds without a server; retry once
                return self._run.log_artifact(artifact, aliases=aliases)

        logged = self._guard("store the student", log)
        if logged is None or not self._online:
            return logged is not None
        left = max(1.0, min(self._patience, self._deadline - time.monotonic()))
        return self._guard("send the student in time", lambda: logged.wait(timeout=math.ceil(left))) is not None

    def record_data(self, fingerprint: str, facts: dict[str, Any]) -> None:
        """Record a data set by its digest and some `facts` as an artifact used by this run; no image is sent."""
        import wandb

        def record() -> None:
            artifact = wandb.Artifact(f"data-{fingerprint[:12]}", type="dataset", metadata=facts)
            with artifact.new_file("data.json") as file:
                file.write(json_text(facts, indent=2))
            self._run.use_artifact(artifact)

        self._worker.submit(self._guard, "record the data set", record)

    def settle(self) -> bool:
        """Wait for the uploads, then delete versions without an alias; returns whether all final versions arrived."""
        self._deadline = time.monotonic() + self._patience
        self._worker.shutdown(wait=True)
        arrived = all(sending.result() for sending in self._final)
        if arrived and self._final and self._online:
            self._guard("delete superseded students", self._prune)
        return arrived

    def abandon(self) -> None:
        """Cancel the uploads that have not started."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _prune(self) -> None:
        import wandb

        api = wandb.Api(timeout=API_TIMEOUT)
        for version in api.artifacts("model", f"{self._run.entity}/{self._run.project}/{self.name}"):
            if not version.aliases:
                version.delete()


def remove_copies(data_folder: Path) -> None:
    """Remove W&B's copies of files that have been sent."""
    shutil.rmtree(data_folder / "artifacts" / "staging", ignore_errors=True)
