"""What the real W&B client records offline, and that its failures never reach training."""

import json
import os
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import sample_run
import wandb_offline
from warm_process import WarmProcess

import kd_methods
import train_kd
from kd_core.config import Layer, resolve
from kd_core.errors import UserError
from kd_core.loop.signals import Stopped
from kd_core.run import tracking
from kd_core.run.folder import RunFolder, read_metrics

ROOT = Path(__file__).resolve().parents[2]


def settings(home: Path, *more: str) -> list[str]:
    """A tiny baseline run on digits."""
    return [
        f"--output_dir={home}", f"--cache.dir={home / 'cache'}", "--teachers=[]", f"--kd.type={kd_methods.LABEL_ONLY}",
        "--name=tracked", "--data.train_size=300", "--training.max_epochs=2", "--training.log_every=4",
        "--training.compare_with_baseline=false", "--evaluation.report=false", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def offline(tmp_path_factory) -> Path:
    """The run folder of a run that W&B recorded offline (no credentials: mode auto)."""
    home = tmp_path_factory.mktemp("offline")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment["HOME"] = str(home)  # no netrc
    process = WarmProcess(["train_kd.py", *settings(home)], env=environment)
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    [folder] = home.glob("tracked-*")
    assert re.search(
        rf"^recorded offline; .*: wandb sync \S+/{folder.name}/wandb/offline-run-", printed, re.MULTILINE
    )
    return folder


def test_the_history_is_what_metrics_jsonl_holds(offline):
    run = wandb_offline.read_run(offline / "wandb")
    own = [{name: value for name, value in row.items() if not name.startswith("_")} for row in run["history"]]
    own = [row for row in own if not any(name.startswith("report/") for name in row)]  # which is no row of the file
    assert own == read_metrics(offline / "metrics.jsonl")


def test_the_run_is_named_tagged_and_described(offline):
    run = wandb_offline.read_run(offline / "wandb")
    assert offline.name == f"tracked-{run['id']}" == run["name"]
    assert (run["job_type"], run["project"]) == ("train", "Knowledge-Distillation-CIFAR100")
    assert re.fullmatch("tracked-[0-9a-f]{6}", run["group"])
    assert set(run["tags"]) == {kd_methods.LABEL_ONLY, run["config"]["student_model"]} and run["exit_code"] == 0
    config = run["config"]
    assert config["training"]["max_epochs"] == config["max_epochs"] == 2  # nested and flat
    flat = {"student_model", "teacher_models", "num_classes", "kd_type", "temperature", "alpha", "gamma", "threshold",
            "batch_size", "learning_rate", "patience", "val_size", "num_workers"}  # fmt: skip
    assert flat <= set(config) and "train_kd.py" in config["environment"]["command"]
    [saved] = (offline / "wandb").glob("offline-run-*/files/resolved_config.yaml")
    assert saved.read_text() == (offline / "config.yaml").read_text()
    [saved] = (offline / "wandb").glob("offline-run-*/files/environment.json")
    assert json.loads(saved.read_text()) == config["environment"]
    assert {"command", "git_commit", "packages", "python", "gpus", "processes"} <= set(config["environment"])


def test_axes_and_summary(offline):
    run = wandb_offline.read_run(offline / "wandb")
    assert run["axes"]["val/*"] == "epoch" and run["axes"]["train_step/*"] == "train_step/step"
    assert {"final_val_accuracy", "best_val_accuracy", "best_epoch"} <= set(run["summary"])
    last = read_metrics(offline / "metrics.jsonl")[-1]
    assert run["summary"]["val/accuracy"] == last["val/accuracy"]  # a plain value, not a dict


def test_the_artifact_holds_the_student_and_its_bytes_lie_in_the_run_folder(offline):
    run = wandb_offline.read_run(offline / "wandb")
    assert {alias for artifact in run["artifacts"] for alias in artifact["aliases"]} == {"best", "latest"}
    for artifact in run["artifacts"]:
        if artifact["type"] == "run_table":  # W&B's own, of each table of the report
            continue
        assert (artifact["name"], artifact["type"]) == (f"model-{run['id']}", "model")
        assert artifact["files"] == ["config.json", "config.yaml", "metrics.json", "model.safetensors"]
        for path in artifact["paths"]:
            assert Path(path).is_file() and Path(path).is_relative_to(offline)


def test_a_report_is_one_more_row_whatever_else_happens(tmp_path, monkeypatch):
    """Offline: recorded once, also if the run is continued; without images of the data, and without links' targets."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder, told = RunFolder(tmp_path / "run"), []
    report = sample_run.report(folder.path, rows=[])[0].parent
    (report / "elsewhere.png").symlink_to(report / "mistakes-val.png")
    folder.write_summary(status="running")

    def track(offset: int | None) -> tracking.Tracker:
        who = {"run_id": "ab12cd34", "group": "g", "notify": told.append}
        return tracking.start_tracking(config(), folder, enabled=True, use_wandb=True, offset=offset, **who)

    tracker = track(None)
    for epoch in (1, 2):
        tracker.log({"epoch": epoch, "val/accuracy": epoch / 3})
    offset = tracker.offset
    tracker.record_report(report)
    tracker.finish()
    run = wandb_offline.read_run(folder.path / "wandb")
    assert [row["_step"] for row in run["history"]] == [0, 1, 2]
    keys = {name.split("/")[1] for name in run["history"][2] if name.startswith("report/")}
    assert keys == {"page", "classes-val", "reliability-val", "confusion-val", "gains-val", "teacher-weights-val"}
    [first] = (folder.path / "wandb").glob("offline-run-*")
    [page] = first.glob("files/media/html/report/*.html")
    assert "Images of the data are not shown here" in page.read_text()
    shutil.rmtree(first)

    again = track(offset)  # killed before it could say that it had finished
    again.record_report(report)
    again.finish()
    assert wandb_offline.read_run(folder.path / "wandb")["history"] == []
    assert not [word for word in told if "could not" in word]


def test_a_damaged_report_is_reported_and_stops_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder, told = RunFolder(tmp_path / "run"), []
    (folder.path / "report").mkdir(parents=True)
    (folder.path / "report" / "index.html").write_text("<p>")
    (folder.path / "report" / "evaluation-val.json").write_text("{")
    folder.write_summary(status="running")
    tracker = tracking.start_tracking(
        config(), folder, run_id="ab12cd34", enabled=True, use_wandb=True, notify=told.append, group="g"
    )
    tracker.record_report(folder.path / "report")
    tracker.finish()
    assert "evaluation-val.json: damaged, not valid JSON" in told[0] and "the work goes on" in told[0]


@pytest.mark.parametrize("call", ["init", "log", "log_artifact", "finish"])
def test_a_failing_client_never_stops_training(tmp_path, monkeypatch, capsys, call):
    import wandb

    def fail(*args, **kwargs):
        raise RuntimeError("service is gone")

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(*((wandb, "init") if call == "init" else (wandb.Run, call)), fail)
    train_kd.main(settings(tmp_path))
    monkeypatch.undo()
    wandb.finish()
    text = capsys.readouterr().out
    assert "service is gone" in text and "final" not in text.split("service is gone")[0]
    [folder] = tmp_path.glob("tracked-*")
    assert [row["epoch"] for row in read_metrics(folder / "metrics.jsonl") if "epoch" in row] == [1, 2]


@pytest.mark.parametrize("recorded", [False, True])
def test_a_run_stopped_before_its_end_was_logged_is_not_taken_for_sent(tmp_path, recorded):
    """Its folder says that it has finished, and W&B lacks its report and its student."""
    folder, told, codes = RunFolder(tmp_path / "run"), [], []
    folder.path.mkdir()
    folder.write_summary(status="finished")
    file = tracking.MetricsFile(folder.metrics_file)
    tracker = tracking.Tracker(folder, config(log_model=False).wandb, None, "online", told.append, file)
    tracker._run = SimpleNamespace(
        id="ab12cd34", dir=str(folder.path / "wandb" / "run-1" / "files"), summary={},
        finish=lambda exit_code: codes.append(exit_code), mark_preempting=lambda: None, sweep_id=None,
    )  # fmt: skip
    tracker._uploads = SimpleNamespace(settle=lambda: True, abandon=lambda: None, store=None)
    (folder.path / "wandb").mkdir()
    if recorded:
        for place in (folder.student, folder.checkpoint("latest") / "student"):
            place.mkdir(parents=True)
            (place / "metrics.json").write_text('{"epoch": 1}')
        tracker.record_results({}, {})
    assert tracker.finish(Stopped(signal.SIGTERM)) == recorded == (codes == [0])
    assert (folder.path / "wandb" / "sent").exists() == recorded
    assert any("python -m kd_core.tracking" in text for text in told) != recorded


def test_a_failed_sending_leaves_no_run_open(tmp_path, monkeypatch):
    """Or the next run of this process would log into it."""
    import wandb

    start, started = wandb.init, []

    def init(**options):
        started.append(options["id"])
        return start(**{**options, "mode": "offline"})

    monkeypatch.setattr(wandb, "init", init)
    folder = RunFolder(tmp_path / "run")
    (folder.path / "wandb").mkdir(parents=True)
    folder.write_summary(status="finished")
    (folder.path / "config.yaml").write_text("{}")
    about = {**dict.fromkeys(tracking.ABOUT), "config": {"environment": {}}, "id": "ab12cd34", "job_type": "train"}
    (folder.path / "wandb" / "about.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="student/metrics.json"):
        tracking.send(folder.path, lambda text: None)
    assert wandb.run is None and started == ["ab12cd34"]
    folder.metrics_file.write_text("{")
    with pytest.raises(UserError, match=r"metrics.jsonl: line 1: damaged"):
        tracking.send(folder.path, lambda text: None)
    assert wandb.run is None and started == ["ab12cd34"]


def test_a_run_that_is_still_open_is_not_taken_for_the_next(tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    folder, told = RunFolder(tmp_path / "run"), []
    folder.path.mkdir()
    wandb.init(id="first", mode="offline", dir=tmp_path)
    who = {"run_id": "second", "group": "g", "notify": told.append}
    tracker = tracking.start_tracking(config(), folder, enabled=True, use_wandb=True, **who)
    tracker.finish()
    assert wandb_offline.read_run(folder.path / "wandb")["id"] == "second"
    assert told[:2] == [
        "W&B could not be started offline: run first is still open", "this run is recorded offline instead"
    ]  # fmt: skip


def config(**wandb):
    return resolve([Layer("test", {"wandb": wandb})]).config


@pytest.mark.parametrize(
    ("setting", "variable", "key", "mode"),
    [
        ("auto", None, None, "offline"),
        ("auto", None, "k" * 40, "online"),
        ("offline", None, "k" * 40, "offline"),
        ("offline", "online", None, "online"),  # the environment wins over the configuration
        ("online", "disabled", "k" * 40, "disabled"),
        ("auto", "dryrun", None, "offline"),
    ],
)
def test_mode(tmp_path, monkeypatch, setting, variable, key, mode):
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    for name, value in (("WANDB_MODE", variable), ("WANDB_API_KEY", key)):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    assert tracking.wandb_mode(config(mode=setting)) == mode


def test_no_wandb_makes_no_run_whatever_the_environment_says(tmp_path, monkeypatch, capsys):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(wandb, "init", lambda *args, **kwargs: pytest.fail("W&B was started"))
    train_kd.main([*settings(tmp_path), "--no-wandb"])
    assert not list(tmp_path.glob("*/wandb")) and "W&B" not in capsys.readouterr().out
