"""The real W&B client against a local stand-in for its server: what arrives, what is made up for, what is stored."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sample_run
import wandb
import yaml
from run_metrics import EVERY_RUN, OWN
from waiting import wait_for
from wandb_runs import (
    METHODS,
    PROJECT,
    ROOT,
    WANDB,
    assert_complete,
    blob,
    done,
    path_of,
    printed_commands,
    rows_of,
    run_folder,
    serving,
    settings,
    start,
    surroundings,
    training,
    versions,
)
from wandb_stub import StubServer
from warm_process import WarmProcess

from kd_core import config as configuration
from kd_core.config import Layer, command_line, registry, resolve
from kd_core.errors import UserError
from kd_core.report.html import data_uri
from kd_core.run import artifacts
from kd_core.run.folder import RunFolder, read_metrics
from kd_core.run.tracking import HEADLINES, send, start_tracking

KINDS = list({frozenset(OWN[method]): method for method in METHODS}.values())  # one of those that have the same metrics


# -------------------------------------------------------------------------------------------------- servers and runs


@pytest.fixture(scope="module")
def stub(tmp_path_factory) -> Iterator[StubServer]:
    with serving(tmp_path_factory.mktemp("wandb")) as server:
        yield server


@pytest.fixture(scope="session")
def teachers(digits_teachers) -> list[str]:
    return [str(path) for path in digits_teachers]


# ------------------------------------------------------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def everything(tmp_path_factory, stub, teachers) -> dict[str, Path]:
    """Run folders of online runs with methods of all kinds, all uploads wanted."""
    folders = {}
    for some in (KINDS[:2], KINDS[2:]):  # two at a time
        homes = {method: tmp_path_factory.mktemp(method) for method in some}
        more = ["--evaluation.test_at_end=true", "--wandb.upload_every_minutes=0", "--wandb.tags=[mine]",
                "--wandb.notes=what for", "--wandb.log_data=true"]  # fmt: skip
        running = [
            training(home, stub, *settings(home, *more, method=method, teachers=teachers))
            for method, home in homes.items()
        ]
        for process in running:
            assert f"W&B: {stub.url}/stub/kd/runs/" in done(process)
        folders |= {method: run_folder(home) for method, home in homes.items()}
    return folders


@pytest.mark.parametrize("method", KINDS)
def test_every_name_of_the_contract_arrives(stub, everything, method):
    rows = rows_of(stub, path_of(everything[method]))
    assert rows == read_metrics(everything[method] / "metrics.jsonl")
    names = set().union(*rows)
    assert EVERY_RUN | OWN[method] <= names
    assert {"train_step/step", "train_step/step_time", "train/teacher/0/weight", "train/teacher/1/weight",
            "teacher/0/val_accuracy", "teacher/1/val_accuracy", "teacher/ensemble/val_accuracy",
            "test/accuracy", "test/auroc", "test/loss_total"} <= names  # fmt: skip
    # what sweeps and their early termination count: one row of the metric an epoch
    assert [row["epoch"] for row in rows if "val/accuracy" in row] == [1, 2, 3]


def test_the_run_is_described(stub, everything):
    folder = everything["dynamic"]
    run = stub.run(path_of(folder))
    assert (run["state"], run["exitcode"], run["jobType"]) == ("finished", 0, "train")
    assert run["displayName"] == folder.name and run["notes"] == "what for"
    assert set(run["tags"]) == {"mine", "dynamic", "cifar_resnet8"}
    assert re.fullmatch("small-[0-9a-f]{6}", run["group"])
    config = {name: item["value"] for name, item in run["config"].items() if name != "_wandb"}
    assert config["kd"]["temperature"] == config["temperature"] == 4.0  # nested and flat
    assert config["kd_type"] == "dynamic" and config["num_classes"] == 10
    assert "train_kd.py" in config["environment"]["command"] and config["data_fingerprint"] and config["parameters"]
    assert (stub.backend.run_dir(run) / "files" / "resolved_config.yaml").read_text() == (
        folder / "config.yaml"
    ).read_text()
    assert {"environment.json", "requirements.txt"} <= set(run["files"])
    assert stub.history(path_of(folder), events=True), "no system metrics"
    summary = json.loads((folder / "summary.json").read_text())
    for name in ("final_val_accuracy", "best_val_accuracy", "best_epoch", "final_test_accuracy"):
        assert run["summary"][name] == summary[name]
    assert run["summary"]["val/accuracy"] == summary["final_val_accuracy"]  # a plain value


def test_seeds_share_a_group_and_nothing_else_does():
    def group(*words: str) -> str:
        config = command_line.parse(["--config", "configs/cifar32/baseline.yaml", *words])[1].config
        return configuration.group(config, "data")

    assert group() == group("--training.seed=3") == group("--wandb.notes=x", "--training.log_every=7")
    assert len({group(), group("--training.learning_rate=0.5"), group("--data.split_seed=1")}) == 3


def test_the_data_set_is_recorded_by_its_digest(stub, everything):
    used = {
        artifact["collection"]: artifact
        for folder in everything.values()
        for key in stub.run(path_of(folder))["used"]
        if (artifact := stub.state["artifacts"][key])
    }
    [name] = used
    facts = json.loads(blob(stub, used[name], "data.json"))
    assert (
        name == f"data-{facts['fingerprint'][:12]}" and facts["train_images"] == 300 and len(used[name]["files"]) == 1
    )


# ------------------------------------------------------------------------------------------------------------ reports


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """The folder of a report."""
    return sample_run.report(tmp_path_factory.mktemp("report") / "run", settings="a: 1")[0].parent


@pytest.mark.parametrize("with_images", [False, True])
def test_a_report_is_sent_once_whenever_it_is_there(stub, client, report, tmp_path, with_images):
    """By a finished run that was sent before it had one, and by nobody again."""
    name = f"report{with_images}"
    folder, words = RunFolder(tmp_path / name), []
    for export in (folder.student, folder.checkpoint("latest") / "student"):
        export.mkdir(parents=True)
        (export / "metrics.json").write_text('{"epoch": 1}')
    settings = {"wandb": {"project": "kd", "log_model": False, "log_images": with_images}}
    config = resolve([Layer("test", settings)]).config
    (folder.path / "config.yaml").write_text(config.to_yaml())
    tracker = start_tracking(
        config, folder, run_id=name, enabled=True, use_wandb=True, notify=words.append, group="reports"
    )
    for epoch in (1, 2):
        tracker.log({"epoch": epoch, "val/accuracy": epoch / 3})
    tracker.record_report(folder.path / "report")  # there is none: nothing happens
    folder.write_summary(status="finished", run_id=name, **dict.fromkeys(HEADLINES[:4], 0.5))  # no test_epochs
    assert tracker.finish() and words == []
    path = f"{PROJECT}/{name}"
    assert [row["_step"] for row in stub.history(path)] == [0, 1]

    shutil.copytree(report, folder.path / "report")
    for _ in range(2):
        send(folder.path, words.append)
        history = stub.history(path)
        assert [row["_step"] for row in history] == [0, 1, 2]
        assert rows_of(stub, path) == read_metrics(folder.metrics_file)
    assert words == []
    shown = {key.removeprefix("report/"): value for key, value in history[2].items() if key.startswith("report/")}
    pictures = {file.stem for file in report.glob("*.png")}
    assert set(shown) == pictures - (set() if with_images else {"mistakes-val"}) | {"page", "classes-val"}
    files = stub.backend.run_dir(stub.run(path)) / "files"
    for stem in set(shown) & pictures:
        assert (files / shown[stem]["path"]).read_bytes() == (report / f"{stem}.png").read_bytes()
    page = (files / shown["page"]["path"]).read_text()
    assert (data_uri(report / "mistakes-val.png") in page) == with_images
    assert "http" not in re.sub("http-equiv|https?://www.w3.org", "", re.sub("base64,[^\"]*", "", page))
    table = json.loads((files / shown["classes-val"]["path"]).read_text())
    columns = ["name", "count", "accuracy", "alone", "gain", "gain_images", "gain_error"]
    assert table["columns"] == columns and len(table["data"]) == 10


# --------------------------------------------------------------------------------------------------------- artifacts


@pytest.mark.parametrize("method", KINDS)
def test_best_and_latest_are_right_and_nothing_superseded_is_left(stub, everything, method):
    folder = everything[method]
    assert_complete(stub, folder)
    run_id = path_of(folder).rpartition("/")[2]
    every = [a for a in stub.state["artifacts"].values() if a["collection"] == f"model-{run_id}"]
    best = {row["epoch"] for row in read_metrics(folder / "metrics.jsonl") if "val/accuracy" in row}
    assert len(every) > 1 and best  # there was something to supersede
    summary = json.loads((folder / "summary.json").read_text())
    stored = versions(stub, f"model-{run_id}")
    assert json.loads(stored["best"]["metadata"])["epoch"] == summary["best_epoch"]
    assert json.loads(blob(stub, stored["latest"], "metrics.json"))["epoch"] == summary["epochs"]
    assert set(stored["best"]["files"]) == set(artifacts.STUDENT_FILES)
    assert stored["best"]["id"] in stub.run(path_of(folder))["logged"]


COMPARE = """
import sys, compare_kd
project, out, *names = sys.argv[1:]
folders, ids = names[: len(names) // 2], names[len(names) // 2 :]
for given, where in ((folders, "folders"), (ids, "ids"), ([project], "project"), (names, "both")):
    compare_kd.main([*given, "--also=val/loss_ce", f"--out={out}/{where}"])
"""


def test_runs_are_compared_as_their_folders_are(stub, everything, tmp_path):
    """Figures, groups and times as the server has them, of a project and of single runs."""
    folders, ids = [str(path) for path in everything.values()], [path_of(path) for path in everything.values()]
    words = [sys.executable, "-c", COMPARE, PROJECT, str(tmp_path), *folders, *ids]
    done(start(words, surroundings(tmp_path, stub)))

    def groups(where: str) -> dict[str, dict]:
        """By the run, since its name is all that may differ."""
        found = json.loads((tmp_path / where / "comparison.json").read_text())
        rows = [row for one in found["sets"] for row in one["groups"]]
        names = {row["seeds"][0].pop("run").rpartition("/")[2].rpartition("-")[2]: row for row in rows}
        return {name: {**row, "against_baseline": None, "label": ""} for name, row in names.items()}

    here = groups("folders")
    assert len(here) == len(KINDS) and groups("ids") == groups("both") == here
    there = groups("project")
    assert {name: there[name] for name in here} == here
    left_out = json.loads((tmp_path / "both" / "comparison.json").read_text())["left_out"]
    assert [one["reason"] for one in left_out] == [f"the same run as {name}" for name in folders]


@pytest.fixture(scope="module")
def model(stub, everything) -> str:
    return f"{PROJECT}/model-{path_of(everything['dynamic']).rpartition('/')[2]}"


def evaluate(home: Path, stub: StubServer, *words: str, **environment: str) -> subprocess.Popen | WarmProcess:
    """From another folder, in a process that shares nothing with training but the server."""
    return start(*evaluation(home, stub, *words, **environment), cwd=home)


def evaluation(home: Path, stub: StubServer, *words: str, **environment: str) -> tuple[list[str], dict[str, str]]:
    own = surroundings(home, stub, PYTHONPATH="", KD_CACHE_DIR=str(home / "cache"), **environment)
    return [sys.executable, str(ROOT / "evaluate_kd.py"), *words], own


def test_evaluation_needs_only_an_artifact(stub, everything, model, tmp_path):
    before = set(stub.state["runs"])
    command, own = evaluation(tmp_path, stub, "--artifact", f"{model}:best")
    ended = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True, timeout=300)
    text = ended.stdout
    assert ended.returncode == 0, ended.stderr
    folder = everything["dynamic"]
    summary = json.loads((folder / "summary.json").read_text())
    [written] = tmp_path.glob("runs/evaluation-*/evaluation-val.json")
    result = json.loads(written.read_text())
    assert result["correct"] / result["total"] == summary["best_val_accuracy"]
    assert f"{result['correct']} / {result['total']}" in text and str(written.relative_to(tmp_path)) in text
    [new] = set(stub.state["runs"]) - before
    run = stub.run(new)
    assert (run["jobType"], run["state"]) == ("evaluation", "finished") and new.startswith(f"{PROJECT}/")
    run_id = summary["run_id"]
    assert run["displayName"] == f"eval-val-small-{run_id}" and {"val", "dynamic", run_id} <= set(run["tags"])
    assert stub.state["artifacts"][run["used"][0]]["id"] == versions(stub, f"model-{run_id}")["best"]["id"]
    assert run["summary"]["val_accuracy"] == rows_of(stub, new)[0]["val/accuracy"] == summary["best_val_accuracy"]


def test_a_run_id_finds_its_best_student_else_its_latest(stub, model, tmp_path):
    before, run_id = set(stub.state["runs"]), model.partition("model-")[2]
    assert f"evaluating {model}:best" in done(
        evaluate(tmp_path, stub, "--wandb-run-id", f"{PROJECT}/{run_id}", "--no-wandb")
    )
    best = versions(stub, f"model-{run_id}")["best"]
    best["aliases"].remove("best")
    text = done(evaluate(tmp_path, stub, "--wandb-run-id", run_id, "--wandb.project=kd", "--no-wandb"))
    best["aliases"].append("best")
    assert f"evaluating kd/model-{run_id}:latest" in text
    assert set(stub.state["runs"]) == before  # --no-wandb: downloads only


def test_a_stored_student_can_teach(stub, model, tmp_path):
    words = settings(tmp_path, "--training.max_epochs=1", method="average", teachers=[f"'wandb:{model}:best'"])
    text = done(training(tmp_path, stub, *words))
    run = stub.run(path_of(run_folder(tmp_path)))
    assert [stub.state["artifacts"][key]["collection"] for key in run["used"]] == [model.partition("/kd/")[2]]
    assert "teacher 0 cifar_resnet8" in text


@pytest.fixture
def client(stub, tmp_path, monkeypatch) -> Iterator[Path]:
    """The W&B client of this process, pointed at the server; returns an empty folder for downloads."""
    # The client keeps the settings of its first start in a process.  It is stopped before the environment changes:
    # WANDB_SERVICE, the address of its service, must not come back when the test is over.
    wandb.teardown()
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    for name, value in stub.env(tmp_path / "wandb-home").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(registry, "downloads", {})
    monkeypatch.setattr(artifacts, "API_TIMEOUT", 3)
    yield tmp_path / "downloads"
    wandb.teardown()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("MODEL:none", "W&B knows no such artifact"),
        ("stub/kd/model-nothing:best", "W&B knows no such artifact"),
        ("stub/nowhere/model-nothing:best", "W&B knows no such artifact"),
        ("a/b/c/d:e", "the name must look like ENTITY/PROJECT/NAME:ALIAS"),
        ("DATA:latest", "is of type 'dataset', a 'model' is needed"),
    ],
)
def test_invalid_artifacts(stub, everything, model, client, name, text):
    data = next(a["collection"] for a in stub.state["artifacts"].values() if a["type"] == "dataset")
    name = name.replace("MODEL", model).replace("DATA", f"{PROJECT}/{data}")
    with pytest.raises(UserError) as caught:
        artifacts.download(name, client, "--artifact")
    assert str(caught.value).startswith(f"--artifact: W&B artifact {name!r}: {text}") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ({"status": 401}, "W&B refuses the credentials: run 'wandb login --relogin'"),
        ({"status": 500}, "W&B cannot be reached"),
        ({"kind": "drop"}, "W&B cannot be reached"),
    ],
)
def test_servers_that_do_not_answer(stub, model, client, monkeypatch, fault, text):
    slept, sleep = [], time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: (slept.append(seconds), sleep(seconds)))
    stub.fault(**fault, match="graphql")
    try:
        with pytest.raises(UserError, match=text):
            artifacts.download(f"{model}:best", client, "--artifact")
    finally:
        stub.lift_faults()
    # After a request that timed out, the client's service needs a moment; otherwise this process might never end.
    assert (artifacts.GRACE in slept) == (fault.get("status") != 401)


@pytest.mark.parametrize(("cause", "waits"), [(TimeoutError("late"), True), (ValueError("no"), False), (None, False)])
def test_only_requests_that_timed_out_are_waited_for(monkeypatch, cause, waits):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    error = RuntimeError("failed")
    error.__cause__ = cause
    artifacts.let_service_settle(error)
    assert slept == [artifacts.GRACE] * waits


def test_an_error_that_is_its_own_cause_is_explained():
    error = RuntimeError("failed")
    error.__cause__ = error
    assert artifacts.explain(error) == "failed"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("artifact 'x/skip-connection/model-ab:best' not found", artifacts.MISSING),
        ("membership 'model-a403b:best' not found in 'x/y'", artifacts.MISSING),
        ("cannot open 'not found': permission denied", "W&B refuses it to this account"),
        ("POST /graphql giving up after 3 attempt(s)", "W&B cannot be reached"),
        ("something new", "something new"),
    ],
)
def test_quoted_names_do_not_match_error_causes(words, text):
    assert artifacts.explain(RuntimeError(words)).startswith(text)


class Logged:
    """What log_artifact gives: arrives, or does not."""

    def __init__(self, arrives: bool):
        self.arrives = arrives

    def wait(self, timeout):
        if not self.arrives:
            raise TimeoutError("still pending")
        return self


@pytest.mark.parametrize(
    ("outcomes", "arrived"),
    [
        ([Logged(True), Logged(True)], True),
        ([OSError("away"), OSError("away"), Logged(True)], False),  # best is lost, whatever comes after it
        ([OSError("away"), Logged(True), Logged(True)], True),  # tried twice
        ([Logged(False), Logged(True)], False),
        ([Logged(True), Logged(False)], False),
    ],
)
def test_all_that_a_run_ends_with_must_arrive(tmp_path, monkeypatch, outcomes, arrived):
    class Run:
        id = "ab12cd34"

        def log_artifact(self, artifact, aliases):
            outcome = outcomes.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

    told, pruned = [], []

    def guard(what, action):
        try:
            return action()
        except Exception as error:  # noqa: BLE001
            told.append((what, str(error)))

    monkeypatch.setattr(artifacts.Uploads, "_prune", lambda self: pruned.append(self.name))
    (tmp_path / "config.json").write_text("{}")
    uploads = artifacts.Uploads(Run(), True, guard, patience=5)
    for alias in ("best", "latest"):
        uploads.store(tmp_path, {}, [alias], final=True)
    assert uploads.settle() is arrived
    assert bool(told) is not arrived and bool(pruned) is arrived and not outcomes


def test_no_credentials(stub, model, tmp_path):
    text = done(evaluate(tmp_path, stub, "--artifact", f"{model}:best", WANDB_API_KEY=""), status=2)
    assert re.fullmatch(
        f"evaluate_kd.py: --artifact: W&B artifact '{model}:best': no valid credentials: run 'wandb login' or set "
        "WANDB_API_KEY .*\n",
        text,
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda files: files | {"../../escaped": files["config.json"]}, "refused, it holds '../../escaped' of"),
        (lambda files: files | {"run.py": files["config.json"]}, "refused, it holds 'run.py' of"),
        (lambda files: files | {"config.yaml": {"digest": "x", "ref": "file:///etc/passwd", "size": 1}},
         "refused, it holds 'config.yaml' as a reference"),
        (lambda files: files | {"metrics.json": files["metrics.json"] | {"size": 2**30}},
         "refused, it holds 'metrics.json' of 1,073,741,824 bytes"),
        (lambda files: {"config.json": files["config.json"]}, "holds no student, model.safetensors is missing"),
    ],
)  # fmt: skip
def test_hostile_artifacts_are_refused_before_anything_is_written(stub, model, client, change, text):
    number = versions(stub, model.partition("/kd/")[2])["best"]["n"]
    path = stub.backend.root / "artifacts" / str(number) / "manifest.json"
    original = path.read_text()
    manifest = json.loads(original)
    path.write_text(json.dumps({**manifest, "contents": change(manifest["contents"])}))
    try:
        with pytest.raises(UserError, match=re.escape(text)):
            artifacts.download(f"{model}:best", client, "--artifact")
    finally:
        path.write_text(original)
    assert not client.exists()


def test_a_damaged_download_is_noticed_and_leaves_nothing(stub, model, client):
    stored = versions(stub, model.partition("/kd/")[2])["best"]
    path = stub.backend.root / "blobs" / stored["files"]["model.safetensors"]["md5hex"]
    original = path.read_bytes()
    path.write_bytes(original[:-8] + b"damaged!")
    try:
        with pytest.raises(UserError, match="damaged, "):
            artifacts.download(f"{model}:best", client, "--artifact")
    finally:
        path.write_bytes(original)
    assert not [path for path in client.rglob("*") if path.is_file() and path.suffix != ".lock"]
    folder = artifacts.download(f"{model}:best", client, "--artifact")
    (folder / "model.safetensors").write_bytes(b"tampered with")
    registry.downloads.clear()
    assert artifacts.download(f"{model}:best", client, "--artifact") == folder
    assert (folder / "model.safetensors").read_bytes() == original
    (folder / "model.safetensors").unlink()
    registry.downloads.clear()
    assert artifacts.download(f"{model}:best", client, "--artifact") == folder
    assert (folder / "model.safetensors").read_bytes() == original


# ---------------------------------------------------------------------------------------- offline, crashes, processes


def test_an_offline_run_is_sent_later_with_the_printed_command(stub, teachers, tmp_path):
    words = settings(tmp_path, method="average", teachers=teachers)
    text = done(training(tmp_path, None, *words, WANDB_MODE="offline"))
    folder = run_folder(tmp_path)
    assert path_of(folder) not in stub.state["runs"]
    [command] = printed_commands(text)
    done(start(command, surroundings(tmp_path, stub)))
    assert_complete(stub, folder)
    run = stub.run(path_of(folder))
    assert run["state"] == "finished" and run["displayName"] == folder.name and "resolved_config.yaml" in run["files"]


def killed_in_an_epoch(home: Path, server: StubServer, words: list[str], *, sent: bool) -> None:
    """Start training and kill it in the middle of an epoch after the first, before or after all rows were `sent`."""
    process = training(home, server, *words)

    def in_the_middle() -> bool:
        assert process.poll() is None, process.communicate()
        files = list((home / "runs").glob("small-*/metrics.jsonl"))
        rows = read_metrics(files[0]) if files and files[0].read_bytes().endswith(b"\n") else []
        there = server.history(path_of(run_folder(home))) if len(rows) > 6 else []
        return bool(there) and "train_step/step" in rows[-1]

    wait_for(in_the_middle, "the middle of an epoch")
    if sent:
        process.send_signal(signal.SIGSTOP)  # what was logged goes on its way all the same
        path = path_of(run_folder(home))
        rows = len(read_metrics(run_folder(home) / "metrics.jsonl"))
        wait_for(lambda: len(server.history(path)) >= rows, "all rows on the server")
    process.kill()
    process.communicate()


@pytest.mark.parametrize("then", ["online", "offline"])
def test_a_killed_run_resumes_under_its_id_and_its_history_is_complete(stub, tmp_path, then):
    """Rows that the server has are not sent twice, rows that it lacks are made up for."""
    words = settings(tmp_path, "--training.max_epochs=12")
    killed_in_an_epoch(tmp_path, stub, words, sent=then == "offline")
    folder = run_folder(tmp_path)
    before = len(stub.history(path_of(folder)))
    server, mode = (stub, {}) if then == "online" else (None, {"WANDB_MODE": "offline"})
    text = done(training(tmp_path, server, *words, **mode))
    assert f"resuming {folder}" in text and before > 0
    if then == "offline":
        [command] = printed_commands(text)
        done(start(command, surroundings(tmp_path, stub)))
    assert_complete(stub, folder, resumed=True)
    assert stub.run(path_of(folder))["state"] == "finished"


def test_a_run_stopped_in_its_first_epoch_has_each_row_once(stub, tmp_path):
    """There is no checkpoint yet, and the last line of the metrics may be torn."""
    words = settings(tmp_path, "--data.train_size=1200", "--training.log_every=1", "--data.batch_size=16")
    process = training(tmp_path, stub, *words)
    wait_for(lambda: any((tmp_path / "runs").glob("small-*/metrics.jsonl")), "the run")
    path = run_folder(tmp_path) / "metrics.jsonl"
    wait_for(lambda: path.stat().st_size > 2000, "some rows")
    process.kill()
    process.communicate()
    assert not (run_folder(tmp_path) / "checkpoints").exists(), "too late: an epoch was complete"
    with open(path, "ab") as file:
        file.write(b'{"train_step/step": 9')
    done(training(tmp_path, stub, *words))
    assert_complete(stub, run_folder(tmp_path), resumed=True)
    steps = [row["train_step/step"] for row in read_metrics(path) if "train_step/step" in row]
    assert steps == list(range(1, 3 * 75 + 1))


def test_offline_notes_may_be_damaged_or_missing(stub, tmp_path):
    words = settings(tmp_path, "--training.max_epochs=12")
    killed_in_an_epoch(tmp_path, stub, words, sent=True)
    (run_folder(tmp_path) / "wandb" / "rows").write_text("")
    text = done(training(tmp_path, None, *words, WANDB_MODE="offline"))
    assert "resuming" in text and read_metrics(run_folder(tmp_path) / "metrics.jsonl")[-1]["epoch"] == 12


def test_a_signal_during_uploads_loses_no_student(tmp_path):
    with serving(tmp_path) as server:
        words = settings(tmp_path)
        process = training(tmp_path, server, *words)
        wait_for(lambda: any((tmp_path / "runs").glob("small-*/metrics.jsonl")), "the run")
        fault = server.fault(status=503, match="CreateArtifact|storage/blob")
        wait_for(lambda: fault["hits"], "an upload")
        process.send_signal(signal.SIGTERM)
        time.sleep(1)
        server.lift_faults()
        text, _ = process.communicate(timeout=300)
        folder = run_folder(tmp_path)
        assert json.loads((folder / "summary.json").read_text())["status"] == "finished"
        [command] = printed_commands(text)
        assert command[1:3] == ["-m", "kd_core.tracking"]
        assert "already finished" in done(training(tmp_path, server, *words))  # which sends the rest, too
        assert_complete(server, folder)
        done(start(command, surroundings(tmp_path, server)))
        assert_complete(server, folder)
        assert server.run(path_of(folder))["state"] == "finished"


def test_mistakes_in_wandbs_variables_do_not_stop_training(tmp_path):
    """The default mode is auto, which asks W&B's client for credentials."""
    both = {"WANDB_BASE_URL": "wandb.example.org", "WANDB_INIT_TIMEOUT": "abc"}
    text = done(training(tmp_path, None, *settings(tmp_path, "--training.max_epochs=1"), **both))
    assert "W&B could not be started" in text and "epoch 1/1" in text


def test_a_resumed_run_keeps_its_log_every(tmp_path, stub):
    words = settings(tmp_path, "--training.max_epochs=12")
    killed_in_an_epoch(tmp_path, stub, words, sent=False)
    text = done(training(tmp_path, stub, *words, "--training.log_every=3"))
    assert "training.log_every: stays 4 in this run" in text
    assert_complete(stub, run_folder(tmp_path), resumed=True)


def test_two_processes_are_one_run(stub, teachers, tmp_path):
    words = settings(tmp_path, "--data.batch_size=32", method="average", teachers=teachers)
    before = set(stub.state["runs"])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done(start([*launcher, "train_kd.py", *words], surroundings(tmp_path, stub)))
    folder = run_folder(tmp_path)
    assert set(stub.state["runs"]) - before == {path_of(folder)}
    assert_complete(stub, folder)
    assert stub.run(path_of(folder))["starts"] == 1
    assert stub.run(path_of(folder))["config"]["environment"]["value"]["processes"] == 2


# ----------------------------------------------------------------------------------------------------------- outages


@contextmanager
def fault_from(server: StubServer, seconds: float, **fault) -> Iterator[None]:
    """A fault that lasts `seconds` from the first request that it hits."""
    injected = server.fault(**fault)
    yield
    wait_for(lambda: injected["hits"], f"a request that matches {fault}")
    time.sleep(seconds)
    server.backend.faults.remove(injected)


def test_outages_are_waited_out_and_nothing_is_missing(tmp_path):
    """15 seconds without a server at the start, in mid-run, at an upload and at the end: side by side, to save time."""
    names = ("start", "middle", "upload", "end")
    homes = {name: tmp_path / name for name in names}
    for home in homes.values():
        home.mkdir()
    with (
        serving(homes["start"]) as at_start,
        serving(homes["middle"]) as in_middle,
        serving(homes["upload"]) as at_upload,
        serving(homes["end"]) as at_end,
    ):
        servers = dict(zip(names, (at_start, in_middle, at_upload, at_end), strict=True))
        at_start_fault = at_start.fault(kind="drop", match=".")
        at_upload_fault = at_upload.fault(status=503, match="ArtifactType|CreateArtifact|storage/blob")
        words = {name: settings(home, "--training.max_epochs=12") for name, home in homes.items()}
        running = {name: training(homes[name], servers[name], *words[name]) for name in names}
        wait_for(lambda: at_start_fault["hits"], "the start")
        start_of_outage = time.monotonic()
        wait_for(lambda: any(run["lines"]["wandb-history.jsonl"] for run in in_middle.state["runs"].values()), "rows")
        in_middle.fault(kind="drop", match=".", seconds=15)
        time.sleep(max(0.0, start_of_outage + 15 - time.monotonic()))
        at_start.lift_faults()
        wait_for(lambda: "finished" in (run_folder(homes["end"]) / "summary.json").read_text(), "the end")
        at_end.fault(kind="drop", match=".", seconds=15)
        wait_for(lambda: at_upload_fault["hits"], "an upload")
        time.sleep(15)
        at_upload.lift_faults()
        for name in names:
            text = done(running[name])
            folder = run_folder(homes[name])
            assert [row["epoch"] for row in read_metrics(folder / "metrics.jsonl") if "epoch" in row] == [*range(1, 13)]
            for command in printed_commands(text):
                done(start(command, surroundings(homes[name], servers[name])))
            assert_complete(servers[name], folder)
            assert servers[name].run(path_of(folder))["state"] == "finished"


def test_the_printed_commands_send_what_a_longer_outage_held_back(tmp_path):
    """The server goes when training ends, and the client's patience is short."""
    with serving(tmp_path) as server:
        process = training(tmp_path, server, *settings(tmp_path), WANDB_FINISH_TIMEOUT="5")
        wait_for(lambda: any(run["lines"]["wandb-history.jsonl"] for run in server.state["runs"].values()), "rows")
        server.fault(kind="drop", match=".")
        text = done(process)
        folder = run_folder(tmp_path)
        assert json.loads((folder / "summary.json").read_text())["status"] == "finished"
        server.lift_faults()
        commands = printed_commands(text)
        assert commands
        for command in commands:
            done(start(command, surroundings(tmp_path, server)))
        assert_complete(server, folder)


def test_a_rejected_key_makes_the_run_an_offline_one(stub, tmp_path):
    with serving(tmp_path) as server:
        server.fault(status=401, match="graphql")
        text = done(training(tmp_path, server, *settings(tmp_path)))
        assert "W&B could not be started online: W&B refuses the credentials" in text
        server.lift_faults()
        [command] = printed_commands(text)
        done(start(command, surroundings(tmp_path, server)))
        assert_complete(server, run_folder(tmp_path))


# ------------------------------------------------------------------------------------------------------------ sweeps


def write_sweep(home: Path, parameters: dict, *words: str, method: str = "grid") -> Path:
    """A sweep file like the shipped ones, over tiny runs."""
    command = ["${env}", "${interpreter}", "${program}", "--config", "configs/quickstart.yaml", *words, "${args}"]
    path = home / "sweep.yaml"
    path.write_text(yaml.safe_dump({
        "program": "train_kd.py", "method": method, "project": "kd", "command": command,
        "metric": {"name": "val/accuracy", "goal": "maximize"}, "parameters": parameters,
    }))  # fmt: skip
    return path


def create_sweep(home: Path, server: StubServer, path: Path) -> str:
    text = done(start([WANDB, "sweep", str(path)], surroundings(home, server, WANDB_SILENT="false")))
    return re.search(r"wandb agent (\S+)", text)[1]


def agent(home: Path, server: StubServer, sweep: str, *words: str) -> subprocess.Popen:
    return start([WANDB, "agent", *words, sweep], surroundings(home, server))


def test_the_agent_runs_the_sweep_over_all_methods(stub, teachers, tmp_path):
    """The shipped file; only its data, teachers and lengths are made small."""
    sweep = yaml.safe_load((ROOT / "sweeps" / "all_methods.yaml").read_text())
    at = sweep["command"].index("--config") + 1
    sweep["command"][at] = "configs/quickstart.yaml"
    sweep["command"][at + 1 : at + 1] = settings(tmp_path, teachers=teachers, method="average")
    sweep["parameters"]["kd.weights"] = {"values": [[1.0, 2.0]]}  # here are two teachers
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep | {"project": "kd"}))
    name = create_sweep(tmp_path, stub, path)
    done(agent(tmp_path, stub, name, "--count", "2"))
    runs = stub.backend.sweep_runs(stub.state["sweeps"][name.rpartition("/")[2]])
    assert [run["state"] for run in runs] == ["finished", "finished"]
    for run in runs:
        chosen = run["config"]["kd.type"]["value"]
        assert run["config"]["kd_type"]["value"] == chosen and chosen in run["tags"]
        [folder] = (tmp_path / "runs").glob(f"*-{run['name']}")
        assert rows_of(stub, f"{PROJECT}/{run['name']}") == read_metrics(folder / "metrics.jsonl")


def test_a_trial_that_the_server_ends_is_not_restarted(stub, tmp_path):
    """By early termination or by a click: its agent sends the same signal as one that is preempted."""
    more = settings(tmp_path, "--training.max_epochs=2000")
    name = create_sweep(tmp_path, stub, write_sweep(tmp_path, {"training.seed": {"values": [5]}}, *more))
    running = agent(tmp_path, stub, name, "--forward-signals", "--term-timeout", "60")
    wait_for(lambda: list((tmp_path / "runs").glob("*/checkpoints/latest")), "a checkpoint")
    [run] = stub.backend.sweep_runs(stub.state["sweeps"][name.rpartition("/")[2]])
    run["stopped"] = True
    done(running)  # it asks for another trial, and there is none
    [again] = stub.backend.sweep_runs(stub.state["sweeps"][name.rpartition("/")[2]])
    assert again["starts"] == 1 and again["state"] not in ("preempted", "pending", "running")


def test_a_preempted_trial_resumes_under_its_id(stub, tmp_path):
    more = settings(tmp_path, "--training.max_epochs=10")
    name = create_sweep(tmp_path, stub, write_sweep(tmp_path, {"training.seed": {"values": [5]}}, *more))
    first = agent(tmp_path, stub, name, "--forward-signals", "--term-timeout", "60")
    wait_for(lambda: list((tmp_path / "runs").glob("*/checkpoints/latest")), "a checkpoint")
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=120)
    [run] = stub.backend.sweep_runs(stub.state["sweeps"][name.rpartition("/")[2]])
    [folder] = (tmp_path / "runs").glob(f"*-{run['name']}")
    assert run["state"] == "preempted" and run["exitcode"] == 128 + signal.SIGTERM
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["exit_status"]) == ("preempted", 143)
    done(agent(tmp_path, stub, name, "--forward-signals"))
    [again] = stub.backend.sweep_runs(stub.state["sweeps"][name.rpartition("/")[2]])
    assert again["name"] == run["name"] and again["state"] == "finished" and again["starts"] == 2
    assert_complete(stub, folder, resumed=True)
    assert read_metrics(folder / "metrics.jsonl")[-1]["epoch"] == 10
