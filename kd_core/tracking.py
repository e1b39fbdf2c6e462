"""Weights & Biases and the local metrics.jsonl.  The local file is always written; W&B never stops a run."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kd_core import artifacts
from kd_core.checkpoints import MetricsFile, RunFolder, read_metrics
from kd_core.config import PROJECT_ROOT, Config
from kd_core.data import Data
from kd_core.errors import UserError
from kd_core.processes import Stopped, exit_status

# axes of the metrics, see docs/metrics.md
AXES = {
    "train_step/*": "train_step/step",
    "train/*": "epoch",
    "val/*": "epoch",
    "test/*": "epoch",
    "perf/*": "epoch",
    "teacher/*": "epoch",
    "learning_rate": "epoch",
}


def wandb_mode(config: Config) -> str:
    """online, offline or disabled.  WANDB_MODE wins over the configuration; auto is online if credentials exist."""
    mode = os.environ.get("WANDB_MODE") or config.wandb.mode
    if mode == "auto":
        return "online" if _has_credentials() else "offline"
    # The client's own words for these are accepted too.
    modes = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}
    if mode not in modes:
        raise UserError(f"WANDB_MODE: is {mode!r}, allowed: auto, online, offline, disabled")
    return modes[mode]


def _has_credentials() -> bool:
    """Whether W&B's own client finds credentials for its server: environment, netrc, settings; asks nobody."""
    from wandb.errors import AuthenticationError
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    host = wandb_setup.singleton().settings.base_url
    try:
        return wbauth.authenticate_session(host=host, source="kd", prompt=False, update_session=False) is not None
    except AuthenticationError:
        return True  # malformed ones: starting online says what is wrong with them, and goes on offline


def code_version() -> dict[str, Any]:
    """Git commit of this project and whether files differ from it; empty outside a git checkout."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno"],
            cwd=PROJECT_ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"git_commit": commit.stdout.strip(), "git_modified": bool(changed.stdout.strip())}


def command_line() -> str:
    """The command as it can be typed again; a launcher before it shows in the number of processes only."""
    return shlex.join([Path(sys.executable).name, *sys.argv])


def environment() -> dict[str, Any]:
    """What the results may depend on besides the settings: versions and hardware; no names of users or machines."""
    packages = ("torch", "torchvision", "timm", "accelerate", "datasets", "numpy", "wandb")
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "command": command_line(),
        **code_version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "cuda": torch.version.cuda,
        "gpus": devices,
    }


class Tracker:
    """Metrics of one run.  Real on the main process only; on the others every method does nothing.

    The history that W&B holds is metrics.jsonl, row by row, also after a crash and a resumption: what the server
    already has is not sent again, what it lacks is made up for.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        *,
        run_id: str,
        enabled: bool,
        use_wandb: bool,
        notify: Callable[[str], None],
        group: str,
        job_type: str = "train",
        run_name: str | None = None,
        tags: list[str] | None = None,
        extra_config: dict[str, Any] | None = None,
        offset: int | None = None,
    ):
        self._notify, self._folder, self._config = notify, folder, config
        self._run: Any = None
        self._uploads: artifacts.Uploads | None = None
        self._file = MetricsFile(folder.metrics_file, offset) if enabled and job_type == "train" else None
        self._surplus = 0  # rows that the server has and that are still to come again
        self._last_upload = time.monotonic()
        self.mode = wandb_mode(config) if enabled and use_wandb else "disabled"
        if self.mode == "disabled":
            return
        # Before wandb is imported: else the bytes of offline artifacts lie outside the run folder and get lost.
        os.environ["WANDB_DATA_DIR"] = str((folder.path / "wandb" / "data").resolve())
        os.environ["WANDB_DIR"] = str(folder.path.resolve())
        # W&B's own variables win: how many seconds a start, and an end, may take
        init_timeout = float(os.environ.get("WANDB_INIT_TIMEOUT", 30))
        finish_timeout = float(os.environ.get("WANDB_FINISH_TIMEOUT", 300))
        import wandb

        surroundings = environment()
        recorded = {
            **config.model_dump(mode="json"),
            **(extra_config or {}),
            **code_version(),
            "command": surroundings["command"],
            "environment": surroundings,
        }

        def start(mode: Any) -> Any:
            return wandb.init(
                mode=mode,
                project=config.wandb.project,
                entity=config.wandb.entity,
                id=run_id,
                name=run_name or config.wandb.name or folder.path.name,
                group=config.wandb.group or group,
                job_type=job_type,
                tags=list(dict.fromkeys([*config.wandb.tags, config.kd.type, *(tags or [])])),
                notes=config.wandb.notes,
                dir=str(folder.path),
                config=recorded,
                resume=config.wandb.resume if job_type == "train" else None,
                settings=wandb.Settings(
                    finish_timeout=finish_timeout, finish_timeout_raises=True, init_timeout=init_timeout, silent=True
                ),
            )

        try:
            self._run = start(self.mode)
        except Exception as error:  # noqa: BLE001 - whatever W&B raises, training goes on
            notify(f"W&B could not be started {self.mode}: {artifacts.explain(error)}")
            self.mode = "offline"
            self._run = self._guard("start offline either", lambda: start("offline"))
            if self._run is not None:
                notify("this run is recorded offline instead")
        if self._run is not None:
            self._uploads = artifacts.Uploads(self._run, self.mode == "online", self._guard)
            self._guard("define the axes", self._define_axes)
            self._guard("save the settings", lambda: self._save_files(surroundings))
            if self._file:
                self._catch_up()

    def _save_files(self, surroundings: dict[str, Any]) -> None:
        """The resolved settings and the environment, as files of the run."""
        # not config.yaml: W&B writes one of its own, through the links that it makes to saved files
        for name, text in (
            ("resolved_config.yaml", self._config.to_yaml()),
            ("environment.json", json.dumps(surroundings, indent=2)),
        ):
            path = Path(self._run.dir) / name
            path.write_text(text, encoding="utf-8")
            self._run.save(str(path), base_path=self._run.dir, policy="now")

    def _define_axes(self) -> None:
        self._run.define_metric("epoch")
        self._run.define_metric("train_step/step")
        for pattern, axis in AXES.items():
            self._run.define_metric(pattern, step_metric=axis)

    def _catch_up(self) -> None:
        """Bring a resumed run's history to where metrics.jsonl stands.

        The server may lack rows that were never sent, or have rows of an epoch that was cut off and is done again.
        An offline record starts anew each time and gets all rows, so that the newest one is complete.
        """
        rows = read_metrics(self._folder.metrics_file)
        there = int(self._run.step)
        for row in rows[there:]:
            self._send(row)
        self._surplus = max(0, there - len(rows))

    def _guard(self, what: str, action: Callable[[], Any]) -> Any:
        """Run a W&B call; a failure is told and never reaches training."""
        try:
            return action()
        except Exception as error:  # noqa: BLE001
            self._notify(
                f"W&B could not {what}: {artifacts.explain(error)}; training goes on, metrics.jsonl is complete"
            )
            return None

    @property
    def offset(self) -> int:
        return self._file.offset if self._file else 0

    @property
    def url(self) -> str | None:
        return self._run.url if self._run is not None and self.mode == "online" else None

    def log(self, row: dict[str, Any]) -> None:
        """One row of metrics, under exactly these names."""
        if self._file:
            self._file.append(row)
        if self._run is None:
            return
        if self._surplus:
            self._surplus -= 1
        else:
            self._send(row)

    def _send(self, row: dict[str, Any]) -> None:
        self._guard("take a row of metrics", lambda: self._run.log(row))

    def summarize(self, values: dict[str, Any]) -> None:
        """Final values of the run; what is None was not measured."""
        known = {name: value for name, value in values.items() if value is not None}
        if self._run is not None:
            self._guard("take the summary", lambda: self._run.summary.update(known))

    def use_artifact(self, name: str) -> None:
        """Record lineage, where W&B is online (offline runs cannot)."""
        if self._run is not None and self.mode == "online":
            self._guard("record the lineage", lambda: self._run.use_artifact(name))

    def record_data(self, data: Data) -> None:
        """Record which data set was used, if the settings ask for it and W&B is online (offline runs cannot)."""
        if self._uploads and self.mode == "online" and self._config.wandb.log_data:
            self._uploads.record_data(data.fingerprint, data.describe())

    def store_best(self, export: Path, metrics: dict[str, Any]) -> None:
        """Store a better student, at most every `wandb.upload_every_minutes`; offline the end is soon enough."""
        due = time.monotonic() - self._last_upload >= 60 * self._config.wandb.upload_every_minutes
        if due and self.mode == "online":
            self._store(export, metrics, ["best"], stays=False)
            self._last_upload = time.monotonic()

    def store_final(self, best: Path, best_metrics: dict[str, Any], final: Path, final_metrics: dict[str, Any]) -> None:
        """The best student, then the final one last, so that `latest` is what it says.

        Equal content is one version for W&B, whoever sent it before.
        """
        if best_metrics["epoch"] == final_metrics["epoch"]:
            self._store(best, best_metrics, ["best", "latest"], stays=True)
        else:
            self._store(best, best_metrics, ["best"], stays=True)
            self._store(final, final_metrics, ["latest"], stays=True)

    def _store(self, export: Path, metrics: dict[str, Any], aliases: list[str], *, stays: bool) -> None:
        if self._uploads and self._config.wandb.log_model:
            self._uploads.store(export, metrics, aliases, stays=stays)

    def finish(self, error: BaseException | None = None) -> None:
        """Close the local file and the W&B run, and say how to send what the server lacks.

        `error` is what ended the run early, if anything did: after a signal W&B's agents start it again.
        """
        if self._file:
            self._file.close()
            self._file = None
        if self._run is None or self._uploads is None:
            return
        run, self._run = self._run, None
        if error is None:
            self._uploads.settle()
        else:
            self._uploads.abandon()
        if isinstance(error, Stopped) and error.preempted:
            self._guard("mark the run as preempted", run.mark_preempting)
        finished = False
        try:
            finished = self._guard("finish the run", lambda: run.finish(exit_code=exit_status(error)) or True)
        finally:
            for line in self._how_to_send(run, finished=bool(finished)):
                self._notify(line)

    def _how_to_send(self, run: Any, *, finished: bool) -> list[str]:
        """Commands that bring the server what it lacks; none if it has all.  The copies of sent files are removed."""
        assert self._uploads is not None
        recorded, lines = shlex.quote(os.path.relpath(Path(run.dir).parent)), []
        if self.mode == "offline":
            lines.append(f"recorded offline; to send it later: wandb sync {recorded}")
        elif not finished:
            lines.append(f"W&B lacks some of this run; to send it later: wandb sync --include-online {recorded}")
        if self._uploads.lost:
            student = shlex.quote(os.path.relpath(self._folder.student))
            lines.append(
                f"W&B lacks the student; to send it later: wandb artifact put --type model --alias best --alias latest "
                f"--name {run.entity}/{run.project}/{self._uploads.name} --id {run.id} {student}"
            )
        if not lines:
            artifacts.remove_copies(self._folder.path / "wandb" / "data")
        return lines
