"""Logging to Weights & Biases and to the local metrics.jsonl, which is always written; W&B never stops a run."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from kd_core.config import PROJECT_ROOT, Config, Layer, WandbConfig, read_yaml, resolve
from kd_core.config.privacy import redacted
from kd_core.data.dataset import Data
from kd_core.errors import UserError
from kd_core.files import finite, json_text, read_json, read_object, write_json, write_text
from kd_core.loop.signals import Stopped
from kd_core.run import artifacts
from kd_core.run.folder import MetricsFile, RunFolder, read_metrics
from kd_core.run.script import exit_status
from kd_core.run.selection import selected

# the arguments of wandb.init that about.json holds; any others are refused
ABOUT = {"project", "entity", "id", "name", "group", "job_type", "tags", "notes", "config"}
SENT = "sent"  # marker file in a run's wandb folder: the server has everything
# keys of summary.json that W&B shows as the run's summary
HEADLINES = (
    "final_val_accuracy", "best_val_accuracy", "best_epoch", "final_test_accuracy", "max_test_epochs_accuracy",
    "max_test_epochs_epoch", "last_test_epochs_accuracy",
)  # fmt: skip
MISTAKES = "mistakes"  # the report's only plot with images of the data; on the page a figure of class "images"
# axes of the metrics, see docs/metrics.md
AXES = {
    "train_step/*": "train_step/step",
    "train/*": "epoch",
    "val/*": "epoch",
    "test/*": "epoch",
    "test_epochs/*": "epoch",
    "perf/*": "epoch",
    "teacher/*": "epoch",
    "learning_rate": "epoch",
}


def wandb_mode(config: Config) -> str:
    """online, offline or disabled.  WANDB_MODE wins over the configuration; auto is online if credentials exist."""
    mode = os.environ.get("WANDB_MODE") or config.wandb.mode
    if mode == "auto":
        return "online" if _has_credentials() else "offline"
    # The client's own names for these are accepted too.
    modes = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}
    if mode not in modes:
        raise UserError(f"WANDB_MODE: is {mode!r}, allowed: auto, online, offline, disabled")
    return modes[mode]


def _has_credentials() -> bool:
    """Whether W&B's own client finds credentials for its server: environment, netrc, settings; never prompts."""
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    try:
        host = wandb_setup.singleton().settings.base_url
        return wbauth.authenticate_session(host=host, source="kd", prompt=False, update_session=False) is not None
    except Exception:  # noqa: BLE001 - a malformed key or URL: reported when the run starts online
        return True


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
    """The command, quoted for a shell, without a launcher; the number of processes is recorded separately."""
    return shlex.join([Path(sys.executable).name, *sys.argv])


def environment() -> dict[str, Any]:
    """The command, versions and hardware that results may depend on besides the settings; nothing about the user."""
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


_preparing: threading.Thread | None = None


def prepare(config: Config) -> None:
    """Start W&B's service in the background, if it will be used, and import what starting a run needs.

    Both take 0.75 seconds together, which pass while the data are loaded.
    """
    global _preparing
    if _preparing is None and wandb_mode(config) != "disabled":

        def setup() -> None:
            with suppress(Exception):  # starting the run fails in the same way and prints it
                import wandb.apis.public

                wandb.setup()

        _preparing = threading.Thread(target=setup, name="wandb-setup", daemon=True)
        _preparing.start()


def start_tracking(
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
    facts: dict[str, Any] | None = None,
    offset: int | None = None,
) -> Tracker:
    """The tracker of one run; does nothing unless `enabled`, which it is on the main process only.

    Args:
        facts: further entries of the run's W&B config, besides the settings and the environment.
        offset: length of metrics.jsonl in bytes at the checkpoint from which the run is resumed; None: a new run.
    """
    file = MetricsFile(folder.metrics_file, offset) if enabled and job_type == "train" else None
    mode = wandb_mode(config) if enabled and use_wandb else "disabled"
    if mode == "disabled":
        return Tracker(folder, config.wandb, None, mode, notify, file)
    about = {
        "project": config.wandb.project,
        "entity": config.wandb.entity,
        "id": run_id,
        "name": run_name or config.wandb.name or folder.path.name,
        "group": config.wandb.group or group,
        "job_type": job_type,
        "tags": list(dict.fromkeys([*config.wandb.tags, config.kd.type, *(tags or [])])),
        "notes": config.wandb.notes,
        "config": redacted({**config.model_dump(mode="json"), **(facts or {}), "environment": environment()}),
    }
    (folder.path / "wandb").mkdir(exist_ok=True)
    if file:
        write_json(folder.path / "wandb" / "about.json", about)
    return Tracker(folder, config.wandb, about, mode, notify, file)


class Tracker:
    """Logs the metrics of one run to metrics.jsonl and to W&B.

    The W&B step of a row is its index in metrics.jsonl.  So W&B's history equals the file row by row, also after a
    crash and a resume: rows that W&B has are not sent again, and rows that it lacks are sent.
    """

    def __init__(
        self,
        folder: RunFolder,
        settings: WandbConfig,
        about: dict[str, Any] | None,
        mode: str,
        notify: Callable[[str], None],
        file: MetricsFile | None,
        *,
        insist: bool = False,
    ):
        """`about`: the arguments of wandb.init; None: no W&B.

        If W&B cannot be started in `mode`: UserError with `insist`; without, start offline or, failing that, without
        W&B.
        """
        self.mode, self._settings, self._notify, self._folder, self._file = mode, settings, notify, folder, file
        self._run: Any = None
        self._uploads: artifacts.Uploads | None = None
        self._last_upload = time.monotonic()
        self._final = False  # whether the end of the run has been logged
        self._row = 0  # index of the next row
        self._known = 0  # number of rows that W&B has
        self._known_file = folder.path / "wandb" / "rows"
        self._sent_file = folder.path / "wandb" / SENT
        rows = read_metrics(folder.metrics_file) if file else []  # of a resumed run; before W&B's run is open
        if about is not None:
            self._start(about, insist)
        for row in rows:
            self._send(row)

    def _start(self, about: dict[str, Any], insist: bool) -> None:
        self._place_artifacts()
        os.environ["WANDB_DIR"] = str(self._folder.path.resolve())
        import wandb

        if _preparing:
            _preparing.join()
        resume = self._settings.resume if about["job_type"] == "train" else None

        # Not captured by default: warnings of libraries name files in the home folder.
        console: Any = os.environ.get("WANDB_CONSOLE", "off")

        def init(mode: Any) -> Any:
            options = wandb.Settings(
                init_timeout=_seconds("WANDB_INIT_TIMEOUT", 30),
                finish_timeout=_seconds("WANDB_FINISH_TIMEOUT", 300),
                finish_timeout_raises=True,
                silent=True,
                # Send nothing about the machine and its user; `environment` holds what is useful.
                x_disable_meta=True,
                save_code=False,
                program=Path(sys.argv[0]).name,
                host=os.environ.get("WANDB_HOST", "unnamed"),
                console=console,
            )
            run = wandb.init(**about, mode=mode, dir=str(self._folder.path), resume=resume, settings=options)
            if run.id != about["id"]:  # it gives the run that this process has open, if any
                raise RuntimeError(f"run {run.id} is still open")
            return run

        def init_offline() -> Any:
            wandb.teardown()  # otherwise the client still reserves the id for the failed start
            return init("offline")

        try:
            self._run = init(self.mode)
        except Exception as error:  # noqa: BLE001 - W&B can raise anything; training goes on
            what = f"W&B could not be started {self.mode}: {artifacts.explain(error)}"
            if insist:
                raise UserError(what) from None
            self._notify(what)
            self.mode = "offline"
            self._place_artifacts()
            self._run = self._guard("start offline either", init_offline)
            if self._run is not None:
                self._notify("this run is recorded offline instead")
        if self._run is not None:
            self._known = self._rows_known()
            patience = _seconds("WANDB_FINISH_TIMEOUT", 300)
            self._uploads = artifacts.Uploads(self._run, self.mode == "online", self._guard, patience)
            if about["job_type"] == "train":  # an evaluation has no epochs, and the client would add epoch 0
                self._guard("define the axes", self._define_axes)
            self._guard("save the settings", lambda: self._save_files(about))

    def _place_artifacts(self) -> None:
        """Let W&B stage the files of artifacts in the run folder; otherwise offline runs would lose them.

        Online, a symbolic link hides the folder's path, since W&B stores the paths of an artifact's files.
        """
        self._place = self._folder.path.resolve()
        if self.mode == "online":
            self._link = TemporaryDirectory(prefix="kd-", ignore_cleanup_errors=True)
            link = Path(self._link.name) / "run"
            with suppress(OSError):  # a system without links
                link.symlink_to(self._place, target_is_directory=True)
                self._place = link
        os.environ["WANDB_DATA_DIR"] = str(self._place / "wandb" / "data")

    def _save_files(self, about: dict[str, Any]) -> None:
        """The resolved settings and the environment, as files of the run."""
        environment = json_text(about["config"]["environment"], indent=2)
        settings = self._folder.path / "config.yaml"
        files = {"environment.json": environment}
        # Under another name: W&B writes its own config.yaml, through the links it makes.
        if settings.is_file() and not settings.is_symlink():
            files["resolved_config.yaml"] = settings.read_text(encoding="utf-8")
        for name, text in files.items():
            path = Path(self._run.dir) / name
            path.write_text(text, encoding="utf-8")
            self._run.save(str(path), base_path=self._run.dir, policy="now")

    def _define_axes(self) -> None:
        self._run.define_metric("epoch")
        self._run.define_metric("train_step/step")
        for pattern, axis in AXES.items():
            self._run.define_metric(pattern, step_metric=axis)

    def _rows_known(self) -> int:
        """The number of rows that W&B has: as the server says or, offline, as earlier attempts recorded."""
        if self.mode == "online":
            return int(self._run.starting_step) if self._run.resumed else 0
        if self._file is None or not self._known_file.exists():
            return 0
        try:
            return int(self._known_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # every attempt sent at least the rows of the last checkpoint
            return len(read_metrics(self._folder.metrics_file))

    def _guard(self, what: str, action: Callable[[], Any]) -> Any:
        """Run a W&B call; a failure is printed and never stops training."""
        try:
            return action()
        except Exception as error:  # noqa: BLE001
            self._notify(
                f"W&B could not {what}: {artifacts.explain(error)}; the work goes on, and metrics.jsonl is complete"
            )
            return None

    @property
    def offset(self) -> int:
        return self._file.offset if self._file else 0

    @property
    def url(self) -> str | None:
        return self._run.url if self._run is not None and self.mode == "online" else None

    def log(self, row: dict[str, Any]) -> None:
        """Log one row of metrics under exactly these names."""
        if self._file:
            with self._folder.writing():
                self._file.append(row)
        self._send(row)

    def _send(self, row: dict[str, Any]) -> None:
        """Send W&B the next row, unless it has it.  W&B accepts NaN, which metrics.jsonl stores as null."""
        number, self._row = self._row, self._row + 1
        if self._run is not None and number >= self._known:
            known = {name: math.nan if value is None else value for name, value in finite(row).items()}
            self._guard("take a row of metrics", lambda: self._run.log(known, step=number, commit=True))
            if self._file:
                self._guard("note how much it has", lambda: self._note(number + 1))

    def _note(self, rows: int) -> None:
        """Store the number that `_rows_known` reads.  Not durable: no wait for the disk, and losing it is harmless."""
        write_text(self._known_file, str(rows), durable=False)

    def record_report(self, folder: Path) -> None:
        """Log the report that `write_report` left in `folder`, if any, under report/*; after all rows are logged.

        It is the row after the last one of metrics.jsonl, so W&B gets it once however often a run is resumed or sent.
        """
        if self._run is not None and self._row >= self._known and (folder / "index.html").is_file():
            shown = self._guard("take the report", lambda: _report(folder, self._settings.log_images))
            if shown:
                self._send(shown)

    def summarize(self, values: dict[str, Any]) -> None:
        """Set the final values of the run, except those that are None (not measured)."""
        known = {name: redacted(value) for name, value in values.items() if value is not None}
        if self._run is not None:
            self._guard("take the summary", lambda: self._run.summary.update(known))

    def record_results(self, summary: dict[str, Any], teachers: dict[str, float]) -> None:
        """Log the end of a run: the report, the final values in `summary` and of its `teachers`, the final student."""
        self.record_report(self._folder.path / "report")
        self.summarize({name: summary[name] for name in HEADLINES if name in summary} | teachers)
        self.store_final()
        self._final = True

    def use_artifact(self, name: str) -> None:
        """Record that this run uses an artifact, if W&B is online (offline runs cannot)."""
        if self._run is not None and self.mode == "online":
            self._guard("record the lineage", lambda: self._run.use_artifact(name))

    def record_data(self, data: Data) -> None:
        """Record the data set as an artifact, if `wandb.log_data` is set and W&B is online (offline runs cannot)."""
        if self._uploads and self.mode == "online" and self._settings.log_data:
            self._uploads.record_data(data.fingerprint, data.describe())

    def store_best(self) -> None:
        """Upload a new best student, at most every `wandb.upload_every_minutes`; offline `store_final` is enough."""
        due = time.monotonic() - self._last_upload >= 60 * self._settings.upload_every_minutes
        if due and self.mode == "online":
            self._store(self._folder.checkpoint("best") / "student", ["best"], final=False)
            self._last_upload = time.monotonic()

    def store_final(self) -> None:
        """Upload the best student, then the final one, so that `latest` is the final one.

        W&B stores equal content as one version.
        """
        if self._uploads is None:
            return
        best, final = self._folder.student, selected(self._folder.checkpoint("latest"))
        if read_json(best / "metrics.json")["epoch"] == read_json(final / "metrics.json")["epoch"]:
            self._store(best, ["best", "latest"], final=True)
        else:
            self._store(best, ["best"], final=True)
            self._store(final, ["latest"], final=True)

    def _store(self, export: Path, aliases: list[str], *, final: bool) -> None:
        if self._uploads and self._settings.log_model:
            place = self._place / export.relative_to(self._folder.path)
            self._uploads.store(place, read_json(export / "metrics.json"), aliases, final=final)

    def finish(self, error: BaseException | None = None) -> bool:
        """Close the local file and the W&B run, and print how to send what the server lacks.

        Returns whether the server has everything.  `error` is what ended the run early, if anything: after a signal,
        W&B's agents start the run again.
        """
        kept = self._file is not None
        if self._file:
            self._file.close()
            self._file = None
        if self._run is None or self._uploads is None:
            return False
        run, self._run = self._run, None
        if kept and self._final:
            error = None  # a signal came after the work was done
        settled = False
        try:
            if error is None:
                settled = self._uploads.settle()
            else:
                self._uploads.abandon()
            if isinstance(error, Stopped) and error.preempted:
                ended = self.mode == "online" and self._guard("say if the trial is to end", lambda: _to_end(run))
                if not ended:
                    self._guard("mark the run as preempted", run.mark_preempting)
        finally:  # also after a signal while students are being uploaded
            complete = False
            try:
                finished = self._guard("finish the run", lambda: run.finish(exit_code=exit_status(error)) or True)
                # Not if it was stopped between the end of training and `store_final`.
                complete = bool(finished) and (settled or (error is not None and not self._folder.finished))
            finally:
                self._print_how_to_send(run, complete, kept)
        return complete

    def _print_how_to_send(self, run: Any, complete: bool, kept: bool) -> None:
        """Print the command that sends what the server lacks; if it lacks nothing, record that and clean up."""
        records = Path(run.dir).parent.parent
        parts = sorted(records.glob(f"offline-run-*-{run.id}"))  # one for each attempt
        if self.mode == "offline":
            unsent = [part for part in parts if not list(part.glob("*.synced"))]
            self._notify(f"recorded offline; to send it later: wandb sync {_words(*unsent)}")
        elif complete and kept:
            artifacts.remove_copies(self._folder.path / "wandb" / "data")
            for part in parts:  # the server has their rows from this attempt
                (part / f"run-{run.id}.wandb.synced").touch()
            if self._folder.finished:
                self._sent_file.touch()
        elif kept and self._folder.finished:  # not `wandb sync`, which would send rows that have arrived again
            self._notify(
                f"W&B lacks some of this run; to send it later: python -m kd_core.tracking {_words(self._folder.path)}"
            )
        elif not complete:
            self._notify("W&B lacks some of this run; the same command sends it")


def _report(folder: Path, with_images: bool) -> dict[str, Any]:
    """The files of a report as W&B objects: plots, the page, each split's classes as a table."""
    import wandb

    def own(pattern: str) -> list[Path]:  # no symbolic links, which could point anywhere
        return [path for path in sorted(folder.glob(pattern)) if path.is_file() and not path.is_symlink()]

    page = "".join(path.read_text(encoding="utf-8") for path in own("index.html"))
    shown: dict[str, Any] = {
        f"report/{path.stem}": wandb.Image(str(path))
        for path in own("*.png")
        if with_images or not path.stem.startswith(MISTAKES)
    }
    # By default the client adds its server's style sheet.
    shown["report/page"] = wandb.Html(page if with_images else without_images(page), inject=False)
    for path in own("evaluation-*.json"):
        classes = read_object(path)["per_class"]
        columns: list[Any] = list(classes[0])
        table = wandb.Table(columns=columns, data=[[row[name] for name in columns] for row in classes])
        shown[f"report/classes-{path.stem.removeprefix('evaluation-')}"] = table
    return shown


def without_images(page: str) -> str:
    """The report's HTML without the plot of images of the data, which stay on this machine.

    The template escapes what it writes into that figure, so the next `</figure>` is its end.
    """
    return re.sub(
        r'<figure class="images">.*?</figure>', "<p>Images of the data are not shown here.</p>", page, flags=re.S
    )


def _to_end(run: Any) -> bool:
    """Whether the server wants this trial to end for good: its sweep stopped it early, or a user did.

    Agents end such a trial with the signal that they also forward when they are preempted, and W&B restarts preempted
    trials.  The client has no public call for this.
    """
    if not run.sweep_id:
        return False
    import wandb
    from wandb.apis.public import sweeps

    api = wandb.Api(timeout=10)
    trials = sweeps._sweep_with_runs(api, run.sweep_id, "{}", project=run.project, entity=run.entity)["runs"]
    return any(trial["name"] == run.id and (trial["stopped"] or trial["shouldStop"]) for trial in trials)


def _seconds(variable: str, default: float) -> float:
    """A timeout in seconds from one of W&B's own environment variables."""
    return float(os.environ.get(variable) or default)


def _words(*paths: Path) -> str:
    """Paths quoted for a shell, relative to the working folder if they are inside it."""
    here = Path.cwd()
    absolute = [path.resolve() for path in paths]
    return shlex.join(str(path.relative_to(here) if path.is_relative_to(here) else path) for path in absolute)


# ------------------------------------------------------------------------------------------------- sending later


def send(path: Path, notify: Callable[[str], None]) -> None:
    """Send W&B what it lacks of the finished run in folder `path`, and nothing twice.

    UserError if the folder holds no finished run that was tracked with W&B, or if W&B cannot be reached.
    """
    folder = RunFolder(path)
    if not folder.summary_file.is_file():
        raise UserError(f"{path}: is not a run folder (it has no summary.json)")
    summary, about = folder.summary(), path / "wandb" / "about.json"
    if not folder.finished:
        raise UserError(
            f"{path}: has not finished (status {summary.get('status')!r}); the command that trained it continues it "
            "and sends what W&B lacks"
        )
    if not about.is_file():
        raise UserError(f"{path}: was trained without W&B (it has no wandb/about.json)")
    described = read_object(about)
    if set(described) != ABOUT or not isinstance(described["config"], dict):
        raise UserError(f"{about}: damaged, expected the keys {', '.join(sorted(ABOUT))}")
    settings = read_yaml(path / "config.yaml")
    config = resolve([Layer(str(path / "config.yaml"), {"wandb": settings.get("wandb") or {}})]).config
    file = MetricsFile(folder.metrics_file)
    tracker = Tracker(folder, config.wandb, described, "online", notify, file, insist=True)
    try:
        tracker.summarize({name: summary[name] for name in HEADLINES if name in summary})
        tracker.record_report(path / "report")
        tracker.store_final()
    except BaseException as error:
        tracker.finish(error)  # or W&B would give its run, which is still open, to the next one
        raise
    if not tracker.finish():
        raise UserError(f"{path}: W&B still lacks some of it")


def send_rest(config: Config, path: Path, notify: Callable[[str], None]) -> None:
    """Send W&B what it lacks of the finished run in folder `path`, if an online run was killed while it finished."""
    started = (path / "wandb" / "about.json").is_file() and list((path / "wandb").glob("run-*"))
    if started and not (path / "wandb" / SENT).exists() and wandb_mode(config) == "online":
        try:
            send(path, notify)
        except UserError as error:
            notify(str(error))


def main(arguments: list[str]) -> None:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise UserError("usage: python -m kd_core.tracking RUN_FOLDER  - sends W&B what it lacks of a finished run")
    send(Path(arguments[0]), print)
