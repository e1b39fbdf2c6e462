"""Weights & Biases and the local metrics.jsonl.  The local file is always written; W&B never stops a run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kd_core.checkpoints import MetricsFile, RunFolder
from kd_core.config import PROJECT_ROOT, Config
from kd_core.errors import UserError, first_line

# axes of the metrics, see docs/metrics.md
AXES = {
    "train_step/*": "train_step/step",
    "train/*": "epoch",
    "val/*": "epoch",
    "test/*": "epoch",
    "perf/*": "epoch",
    "learning_rate": "epoch",
}


def wandb_mode(config: Config) -> str:
    """online, offline or disabled.  WANDB_MODE wins over the configuration; auto is online if credentials exist."""
    mode = os.environ.get("WANDB_MODE") or config.wandb.mode
    if mode == "auto":
        return "online" if _has_credentials() else "offline"
    modes = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}
    if mode not in modes:
        raise UserError(f"WANDB_MODE: is {mode!r}, allowed: auto, online, offline, disabled")
    return modes[mode]


def _has_credentials() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    import netrc
    from urllib.parse import urlparse

    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


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


class Tracker:
    """Metrics of one run.  Real on the main process only; on the others every method does nothing."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        *,
        run_id: str,
        enabled: bool,
        use_wandb: bool,
        notify: Callable[[str], None],
        job_type: str = "train",
        run_name: str | None = None,
        tags: list[str] | None = None,
        extra_config: dict[str, Any] | None = None,
        offset: int | None = None,
    ):
        self._notify, self._folder, self._config = notify, folder, config
        self._run: Any = None
        self._file = MetricsFile(folder.metrics_file, offset) if enabled and job_type == "train" else None
        self._last_upload = time.monotonic()
        self._uploaded_epoch: int | None = None
        self.mode = wandb_mode(config) if enabled and use_wandb else "disabled"
        if self.mode == "disabled":
            return
        # Before wandb is imported: else the bytes of offline artifacts lie outside the run folder and get lost.
        os.environ["WANDB_DATA_DIR"] = str((folder.path / "wandb" / "data").resolve())
        os.environ["WANDB_DIR"] = str(folder.path.resolve())
        import wandb

        recorded = {
            **config.model_dump(mode="json"),
            **(extra_config or {}),
            **code_version(),
            "command": " ".join(sys.argv),
        }

        def start(mode: Any) -> Any:
            return wandb.init(
                mode=mode,
                project=config.wandb.project,
                entity=config.wandb.entity,
                id=run_id,
                name=run_name or config.wandb.name or folder.path.name,
                group=config.wandb.group or config.experiment,
                job_type=job_type,
                tags=[*config.wandb.tags, config.kd.type, *(tags or [])],
                notes=config.wandb.notes,
                dir=str(folder.path),
                config=recorded,
                resume=config.wandb.resume if job_type == "train" else None,
                settings=wandb.Settings(finish_timeout=300, init_timeout=30, silent=True),
            )

        try:
            self._run = start(self.mode)
        except Exception as error:  # noqa: BLE001 - whatever W&B raises, training goes on
            notify(f"W&B could not be started {self.mode} ({first_line(error)})")
            self.mode = "offline"
            self._run = self._guard("start offline either", lambda: start("offline"))
            if self._run is not None:
                notify("this run is recorded offline instead")
        if self._run is not None:
            self._guard("define the axes", self._define_axes)
            self._guard("save the configuration", self._save_configuration)

    def _save_configuration(self) -> None:
        """A copy under another name: W&B writes a config.yaml of its own, through the links that it makes to files."""
        copy = Path(self._run.dir) / "resolved_config.yaml"
        shutil.copyfile(self._folder.path / "config.yaml", copy)
        self._run.save(str(copy), base_path=self._run.dir, policy="now")

    def _define_axes(self) -> None:
        self._run.define_metric("epoch")
        self._run.define_metric("train_step/step")
        for pattern, axis in AXES.items():
            self._run.define_metric(pattern, step_metric=axis)

    def _guard(self, what: str, action: Callable[[], Any]) -> Any:
        """Run a W&B call; a failure is told once and never reaches training."""
        try:
            return action()
        except Exception as error:  # noqa: BLE001
            self._notify(f"W&B could not {what} ({first_line(error)}); training goes on, metrics.jsonl is complete")
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
        if self._run is not None:
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

    def upload_best(self, export: Path, epoch: int, metrics: dict[str, Any]) -> None:
        """Upload a better student, at most every `wandb.upload_every_minutes`."""
        due = time.monotonic() - self._last_upload >= 60 * self._config.wandb.upload_every_minutes
        if due:
            self.upload(export, epoch, metrics, ["best"])

    def upload(self, export: Path, epoch: int, metrics: dict[str, Any], aliases: list[str]) -> None:
        """A new version of artifact model-{run_id}: the exported student, the configuration and these metrics."""
        if self._run is None or not self._config.wandb.log_model:
            return
        import wandb

        def log() -> None:
            artifact = wandb.Artifact(f"model-{self._run.id}", type="model", metadata={"epoch": epoch, **metrics})
            for file in sorted(export.iterdir()):
                artifact.add_file(str(file), name=file.name)
            artifact.add_file(str(self._folder.path / "config.yaml"), name="config.yaml")
            self._run.log_artifact(artifact, aliases=aliases)

        self._guard("store the student", log)
        self._last_upload = time.monotonic()
        if "best" in aliases:
            self._uploaded_epoch = epoch

    def upload_final(self, best: Path, best_row: dict[str, Any], final: Path, final_row: dict[str, Any]) -> None:
        """The best student if it is not there yet, then the final one last, so that `latest` is what it says."""
        if best_row["epoch"] == final_row["epoch"]:
            self.upload(best, best_row["epoch"], best_row, ["best", "latest"])
            return
        if self._uploaded_epoch != best_row["epoch"]:
            self.upload(best, best_row["epoch"], best_row, ["best"])
        self.upload(final, final_row["epoch"], final_row, ["latest"])

    def finish(self, exit_code: int = 0) -> None:
        """Close the local file and the W&B run; says how to send an offline run later."""
        if self._file:
            self._file.close()
            self._file = None
        if self._run is None:
            return
        run, self._run = self._run, None
        recorded_in = Path(run.dir).parent
        self._guard("finish the run", lambda: run.finish(exit_code=exit_code))
        if self.mode == "offline":
            data = self._folder.path / "wandb" / "data"
            self._notify(f"recorded offline; to send it later: WANDB_DATA_DIR='{data}' wandb sync '{recorded_in}'")
        elif self.mode == "online":
            shutil.rmtree(self._folder.path / "wandb" / "data" / "artifacts" / "staging", ignore_errors=True)
