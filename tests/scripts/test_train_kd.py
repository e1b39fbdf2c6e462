"""train_kd.py end to end on digits: metrics, fairness, resuming, safety, exits."""

import ast
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from run_metrics import EVERY_RUN, OWN, times_apart
from small_students import TEACHER_RECIPE
from waiting import wait_for, wait_for_checkpoint

import evaluate_kd
import kd_methods
import train_kd
from kd_core.config import command_line
from kd_core.data.dataset import Data
from kd_core.errors import UserError
from kd_core.evaluation import preflight
from kd_core.files import json_sha256
from kd_core.loop.meter import Meter
from kd_core.loop.signals import Stopped, StopSignals
from kd_core.models import build as models
from kd_core.run import checkpoints
from kd_core.run import folder as run_folder
from kd_core.run.folder import RunFolder, read_metrics
from kd_core.teachers import dry_run
from kd_core.teachers.logits import TeacherLogits

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a teacher recipe; its runs/ keeps the teachers that the first test trains."""
    home = tmp_path_factory.mktemp("home")
    (home / "teacher.yaml").write_text(yaml.safe_dump(TEACHER_RECIPE))
    return home


def arguments(home: Path, *more: str, method: str = "dynamic", output: str = "runs") -> list[str]:
    config = {
        "output_dir": str(home / output),
        "data": {"source": "digits", "train_size": 600, "batch_size": 32, "flip": False, "crop_padding": 2},
        "model": {"name": "cifar_resnet8"},
        "kd": {"type": method},
        "training": {"max_epochs": 2, "learning_rate": 3e-3, "log_every": 5},
        "cache": {"dir": str(home / "cache")},
        "evaluation": {"report": False},
    }
    if method != kd_methods.LABEL_ONLY:
        names = ("cifar_resnet14", "cifar_wrn_16_1")
        config["teachers"] = [{"model": name, "train": str(home / "teacher.yaml")} for name in names]
    path = home / f"{method}.yaml"
    path.write_text(yaml.safe_dump(config))
    return ["--config", str(path), *more]


def train(home: Path, *more: str, **options) -> Path:
    """Run main() and return the student's run folder."""
    before = set((home / options.get("output", "runs")).glob("*/summary.json"))
    train_kd.main(arguments(home, *more, **options))
    new = [path.parent for path in set((home / options.get("output", "runs")).glob("*/summary.json")) - before]
    return next(path for path in new if not path.name.startswith("teacher-"))


def epochs(folder: Path) -> list[dict]:
    return [row for row in read_metrics(folder / "metrics.jsonl") if row.get("epoch", 0) > 0]


# ---------------------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize("method", kd_methods.names())
def test_every_method_trains_and_logs_every_contract_name(home, method):
    folder = train(home, "--no-wandb", method=method)
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["epoch"] for row in epochs(folder)] == [1, 2]
    expected = EVERY_RUN | OWN[method]
    if method != kd_methods.LABEL_ONLY:
        expected |= {"train/teacher/0/weight", "train/teacher/1/weight"}
        assert set(rows[0]) == {
            "epoch",
            "teacher/0/val_accuracy",
            "teacher/1/val_accuracy",
            "teacher/ensemble/val_accuracy",
        }
    for row in epochs(folder):
        assert expected <= set(row), expected - set(row)
    steps = [row["train_step/step"] for row in rows if "train_step/step" in row]
    assert steps == list(range(5, 2 * (600 // 32) + 1, 5))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["exit_status"] == 0
    assert summary["best_val_accuracy"] == max(row["val/accuracy"] for row in epochs(folder))
    assert epochs(folder)[1]["val/accuracy"] > 0.2  # digits: chance is 0.1


def test_training_never_opens_the_test_split(home, monkeypatch):
    def opened(self):
        raise AssertionError("training opened the test split")

    monkeypatch.setattr(Data, "test", opened)
    train(home, "--no-wandb", "--training.seed=3")
    with pytest.raises(AssertionError, match="opened the test split"):  # the trap works
        train(home, "--no-wandb", "--training.seed=4", "--evaluation.test_at_end=true")


def test_teachers_are_found_again_and_share_the_students_validation_split(home, capsys):
    train(home, "--no-wandb", "--training.seed=6")  # trains the teachers, if no test before has
    capsys.readouterr()
    train(home, "--no-wandb", "--training.seed=5")
    text = capsys.readouterr().out
    assert text.count("found in") == 2 and "not trained yet" not in text
    configs = [yaml.safe_load(path.read_text()) for path in (home / "runs").glob("teacher-*/config.yaml")]
    assert len(configs) == 2
    for config in configs:
        assert config["kd"]["type"] == kd_methods.LABEL_ONLY and config["data"]["train_size"] == 600
        assert config["data"]["split_seed"] == 0 and config["training"]["seed"] == 0


def test_the_baseline_without_teachers_is_fair(home, monkeypatch):
    """Both students start from the same weights and see the same order and views."""
    seen: dict[str, list] = {}
    original = train_kd.models.build_network

    def spy(config, data):
        network = original(config, data)
        model = network.model
        name = config.kd.type
        model.register_forward_pre_hook(
            lambda module, inputs: seen.setdefault(name, []).append(inputs[0].clone()) if module.training else None
        )
        seen.setdefault(f"{name} weights", []).append([p.detach().clone() for p in model.parameters()])
        return network

    train(home, "--no-wandb", "--training.seed=6", method="average")  # teachers exist from here on
    monkeypatch.setattr(train_kd.models, "build_network", spy)
    monkeypatch.setattr(dry_run, "train_once", lambda *_: None)  # whose pass is none of the training
    train_kd.main(
        arguments(
            home,
            "--no-wandb",
            "--training.seed=7",
            "--training.compare_with_baseline=true",
            "--training.max_epochs=1",
        )
    )
    assert len(seen["baseline"]) == len(seen["dynamic"]) == 600 // 32
    assert all(torch.equal(a, b) for a, b in zip(seen["baseline"], seen["dynamic"], strict=True))
    # the last build of each run is the one that trains
    assert all(
        torch.equal(a, b) for a, b in zip(seen["baseline weights"][-1], seen["dynamic weights"][-1], strict=True)
    )


def test_a_baseline_that_another_run_trains_is_waited_for(home, tmp_path):
    folder = checkpoints.RunFolder(tmp_path)
    held = folder.lock()
    with pytest.raises(UserError, match=r"is being trained by process \d+ on .*; --fresh"):
        folder.lock()
    told: list[str] = []
    waiting = threading.Thread(target=lambda: told.append("locked" if folder.lock(told.append) else ""))
    waiting.start()
    wait_for(lambda: told, "the line that it waits")
    [line] = told
    assert re.fullmatch(rf"{tmp_path} is being trained by process \d+ on .*; waiting for it", line)
    held.release()
    waiting.join(300)
    assert told[1:] == ["locked"]


def test_a_trial_trains_no_baseline(home, monkeypatch):
    words = arguments(home, "--training.compare_with_baseline=true")
    assert command_line.parse(words)[1].config.training.compare_with_baseline
    monkeypatch.setenv("KD_TRIAL", "testtest")
    resolved = command_line.parse(words)[1]
    assert not resolved.config.training.compare_with_baseline
    assert "training.compare_with_baseline: left out, this is a sweep's trial" in resolved.notices


def test_no_validation_split_means_the_last_epoch(home):
    folder = train(home, "--no-wandb", "--data.val_size=0", method=kd_methods.LABEL_ONLY)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["best_epoch"] == 2 and summary["val_accuracy"] is None
    assert not any(name.startswith("val/") for row in read_metrics(folder / "metrics.jsonl") for name in row)


def test_early_stopping(home, monkeypatch):
    constant = {"accuracy": 0.5, "auroc": 0.5, "loss_ce": 1.0, "loss_total": 1.0}
    monkeypatch.setattr(train_kd.models, "score", lambda *args, **options: constant)
    more = ("--no-wandb", "--training.max_epochs=9", "--training.patience=2")
    folder = train(home, *more, method=kd_methods.LABEL_ONLY)
    assert [row["epoch"] for row in epochs(folder)] == [1, 2, 3]  # the first is the best, then two without a better one


# ------------------------------------------------------------------------------------------------------ resuming


def test_a_run_cut_off_continues_as_if_it_had_not_been(home, monkeypatch, capsys):
    for output, folder in itertools.product(("whole", "cut"), (home / "runs").glob("teacher-*")):
        shutil.copytree(folder, home / output / folder.name)  # else each trains its own
    whole = train(home, "--no-wandb", "--training.max_epochs=4", "--training.seed=11", output="whole")

    class Cut(Exception):
        pass

    original = run_folder.MetricsFile.append

    def cut_in_the_third_epoch(self, row):
        original(self, row)
        if row.get("train_step/step") == 2 * (600 // 32) + 9:
            raise Cut

    monkeypatch.setattr(run_folder.MetricsFile, "append", cut_in_the_third_epoch)
    more = ("--no-wandb", "--training.max_epochs=4", "--training.seed=11")
    with pytest.raises(Cut):
        train(home, *more, output="cut")
    monkeypatch.setattr(run_folder.MetricsFile, "append", original)
    [cut] = [path for path in (home / "cut").glob("dynamic-*")]
    summary = json.loads((cut / "summary.json").read_text())
    assert (summary["status"], summary["exit_status"]) == ("failed", 1)
    train_kd.main(arguments(home, *more, output="cut"))
    assert "resuming" in capsys.readouterr().out
    assert times_apart(read_metrics(cut / "metrics.jsonl")) == times_apart(read_metrics(whole / "metrics.jsonl"))
    for kind in ("best", "latest"):
        first, second = (
            models.load_export(folder / "checkpoints" / kind / "student").model.state_dict() for folder in (whole, cut)
        )
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_stopped_while_its_report_is_written_writes_it_again(home, monkeypatch):
    words = arguments(
        home, "--no-wandb", "--training.max_epochs=1", "--evaluation.report=true", method=kd_methods.LABEL_ONLY,
        output="reported",
    )  # fmt: skip

    def stopped(*values):
        raise Stopped(signal.SIGTERM)

    original = train_kd.report.write_page
    monkeypatch.setattr(train_kd.report, "write_page", stopped)
    with pytest.raises(Stopped):
        train_kd.main(words)
    [folder] = (home / "reported").glob(f"{kd_methods.LABEL_ONLY}-*")
    assert not RunFolder(folder).finished
    monkeypatch.setattr(train_kd.report, "write_page", original)
    train_kd.main(words)
    assert RunFolder(folder).finished and (folder / "report" / "index.html").is_file()


# SIGTERM is among the faults of test_faults.py, too
@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGUSR1, signal.SIGINT]
)
def test_a_signal_ends_the_step_and_the_same_command_continues(home, number):
    words = arguments(
        home, "--no-wandb", "--training.max_epochs=6", "--training.seed=17", method=kd_methods.LABEL_ONLY
    )
    output = home / f"stopped-{number}"
    command = [sys.executable, "train_kd.py", *words, f"--output_dir={output}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_checkpoint(output, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 128 + number
    said = f"stopped by {signal.Signals(number).name}; the same command continues where it stopped"
    own = shlex.join(["python", *command[1:]])
    assert errors.strip().splitlines()[-1] == f"train_kd.py: {said}: {own}" and "Traceback" not in errors
    [folder] = output.glob("baseline-*")
    summary = json.loads((folder / "summary.json").read_text())
    status = "interrupted" if number == signal.SIGINT else "preempted"
    assert (summary["status"], summary["exit_status"]) == (status, 128 + number)
    train_kd.main([*words, f"--output_dir={output}"])
    assert [row["epoch"] for row in epochs(folder)] == list(range(1, 7))


def test_a_second_signal_does_not_wait():
    signals = StopSignals()
    with signals.installed(), pytest.raises(Stopped, match="SIGTERM") as caught, signals.deferred():
        os.kill(os.getpid(), signal.SIGUSR1)  # waits
        os.kill(os.getpid(), signal.SIGTERM)
    assert (caught.value.status, caught.value.preempted) == (143, True)


def test_a_finished_run_says_what_the_same_command_would_do_otherwise_now(home, tmp_path):
    config, folder = command_line.parse(arguments(home, method=kd_methods.LABEL_ONLY))[1].config, tmp_path / "a b"
    folder.mkdir()
    (folder / "config.yaml").write_text(config.to_yaml())
    asked = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"test_at_end": True})})
    assert not list(train_kd.report.unlike_now(config, folder, {"processes": 1}, 1))
    assert not list(train_kd.report.unlike_now(asked, folder, {"evaluation": {"test": {}}}, 4))  # not known of old runs
    [told, test] = train_kd.report.unlike_now(asked, folder, {"processes": 1}, 4)
    assert "trained by 1 process(es), this is 4" in told
    assert test.endswith(f"python evaluate_kd.py --checkpoint '{folder}' --split test")
    (folder / "config.yaml").write_text(asked.to_yaml())  # but its test split could not be read
    assert not list(train_kd.report.unlike_now(asked, folder, {"processes": 4}, 4))


def test_a_finished_run_prints_its_result_and_fresh_starts_over(home, capsys):
    more = ("--no-wandb", "--training.seed=12")
    first = train(home, *more, method=kd_methods.LABEL_ONLY)
    train_kd.main(arguments(home, *more, method=kd_methods.LABEL_ONLY))
    text = capsys.readouterr().out
    assert "already finished" in text and str(first) in text and "validation accuracy" in text
    second = train(home, *more, "--fresh", method=kd_methods.LABEL_ONLY)
    assert second != first


def test_resuming_another_runs_folder_is_refused(home):
    first = train(home, "--no-wandb", "--training.seed=13", method=kd_methods.LABEL_ONLY)
    with pytest.raises(
        UserError, match="was trained with other settings or data:\n  training.seed: 13 there, 14 here\n"
    ):
        train_kd.main(
            arguments(home, "--no-wandb", "--training.seed=14", "--resume", str(first), method=kd_methods.LABEL_ONLY)
        )


def test_another_number_of_processes_is_refused(home):
    more = ("--no-wandb", "--training.seed=16")
    folder = train(home, *more, method=kd_methods.LABEL_ONLY)
    path = folder / "checkpoints" / "latest" / "state.json"
    state = {**json.loads(path.read_text()), "processes": 4}
    checksums = state.pop("checksums")
    path.write_text(json.dumps({**state, "checksums": {**checksums, "state.json": json_sha256(state)}}))
    (folder / "summary.json").write_text((folder / "summary.json").read_text().replace("finished", "failed"))
    with pytest.raises(UserError, match="was trained by 4 process.* this is 1"):
        train_kd.main(arguments(home, *more, method=kd_methods.LABEL_ONLY))


# -------------------------------------------------------------------------------------------------------- safety


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(home, monkeypatch):
    original = Meter.add

    def poison(self, step, values, *rest):
        if step == 18 + 7:
            values = {**values, "loss_total": values["loss_total"] * float("nan")}
        original(self, step, values, *rest)

    monkeypatch.setattr(Meter, "add", poison)
    with pytest.raises(UserError, match=r"^loss_total not finite at step 26; usual causes: .*checkpoint: .*latest$"):
        train(home, "--no-wandb", "--training.seed=15", method=kd_methods.LABEL_ONLY, output="diverged")
    [folder] = (home / "diverged").glob("baseline-*")
    assert models.load_export(folder / "checkpoints" / "latest" / "student").num_classes == 10


def test_weights_that_break_in_the_last_step_never_become_a_checkpoint(home, monkeypatch):
    """The losses of an epoch are measured before its steps, so the last step's damage shows only in the weights."""
    original = checkpoints.require_finite

    def poison_the_second_epoch(model, *rest):
        parameters = list(model.parameters())  # none of a method without projectors
        poison_the_second_epoch.calls += bool(parameters)
        if parameters and poison_the_second_epoch.calls == 2:
            parameters[0].data.fill_(float("nan"))
        original(model, *rest)

    poison_the_second_epoch.calls = 0
    monkeypatch.setattr(checkpoints, "require_finite", poison_the_second_epoch)
    with pytest.raises(UserError, match="conv.* not finite after step 36; "):
        train(home, "--no-wandb", method=kd_methods.LABEL_ONLY, output="poisoned")
    [folder] = (home / "poisoned").glob("baseline-*")
    state = json.loads((folder / "checkpoints" / "latest" / "state.json").read_text())
    weights = models.load_export(folder / "checkpoints" / "latest" / "student").model.state_dict()
    assert state["epoch"] == 1 and all(w.isfinite().all() for w in weights.values() if w.is_floating_point())
    assert [row["epoch"] for row in epochs(folder)] == [1]
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["exit_status"]) == ("failed", 2) and "not finite" in summary["error"]


@pytest.fixture
def bad_gradients(monkeypatch) -> set[int]:
    """Steps, counted from 1 within the process, whose gradients are not finite while their loss is."""
    steps: set[int] = set()
    original, calls = Accelerator.backward, itertools.count(1)

    def backward(self, loss, **options):
        original(self, loss * float("nan") if next(calls) in steps else loss, **options)

    monkeypatch.setattr(Accelerator, "backward", backward)
    return steps


def test_a_gradient_that_is_not_finite_is_never_kept_in_a_checkpoint_within_an_epoch(home, bad_gradients):
    bad_gradients.add(8)
    more = ("--no-wandb", "--training.save_every_steps=1", "--training.log_every=100")
    with pytest.raises(UserError, match=r"^conv1.weight not finite after step 8; usual .*checkpoint: .*latest$"):
        train(home, *more, method=kd_methods.LABEL_ONLY, output="gradient")
    [folder] = (home / "gradient").glob("baseline-*")
    latest = folder / "checkpoints" / "latest"
    assert json.loads((latest / "state.json").read_text())["position"] == 7
    weights = models.load_export(latest / "student").model.state_dict().values()
    assert all(weight.isfinite().all() for weight in weights if weight.is_floating_point())


def test_a_teacher_whose_logits_break_is_named(home, monkeypatch):
    original = TeacherLogits._compute

    def compute(self, index, *args, **options):
        logits = original(self, index, *args, **options)
        return logits * float("nan") if len(self) == 2 and index == 1 else logits

    monkeypatch.setattr(TeacherLogits, "_compute", compute)
    culprit = r"teachers\[1\] 'cifar_wrn_16_1' gave logits that are not finite"
    more = ("--no-wandb", "--cache.mode=off", "--training.seed=31")
    with pytest.raises(UserError, match=rf"^loss_total, .*loss_distill.* not finite at step 1; {culprit}"):
        train(home, *more)
    with pytest.raises(UserError, match=rf"gradient_norm not finite at step 1, and 5 steps were skipped: .*{culprit}"):
        train(home, *more, "--training.skip_nonfinite=4")


@pytest.mark.parametrize(("optimizer", "allowed"), [("adamw", 3), ("sgd", 3), ("sgd", 2)])
def test_skipped_steps_are_counted_and_bounded_over_a_resumed_run(home, bad_gradients, monkeypatch, optimizer, allowed):
    """Of 18 steps an epoch.  The first process breaks off in step 29, and what it did in the second epoch is lost."""
    own = (f"--training.optimizer={optimizer}", f"--training.skip_nonfinite={allowed}", "--training.log_every=3")
    options = {"method": kd_methods.LABEL_ONLY, "output": f"skips-{optimizer}-{allowed}"}
    original = Meter.add

    def break_off(self, step, *rest):
        original(self, step, *rest)
        if step + 1 == 29:
            raise KeyboardInterrupt

    bad_gradients |= {1, 5}
    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(Meter, "add", break_off)
        train(home, "--no-wandb", *own, **options)
    bad_gradients |= {29 + 7}  # step 25 of the run
    if allowed == 2:
        with pytest.raises(UserError, match=r"^gradient_norm not finite at step 25, and 3 steps .* allows 2; usual"):
            train(home, "--no-wandb", *own, **options)
        return
    train_kd.main(arguments(home, "--no-wandb", *own, **options))
    [folder] = (home / options["output"]).glob("baseline-*")
    assert [row["train/skipped_steps"] for row in epochs(folder)] == [2, 1]
    assert json.loads((folder / "checkpoints" / "latest" / "state.json").read_text())["skipped_steps"] == 3
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if "train_step/step" in row]
    assert [row["train_step/skipped_steps"] for row in rows] == [1, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]
    first, second = epochs(folder)
    assert first["train/loss_total"] > second["train/loss_total"] and second["train/gradient_norm"] > 0


def test_a_run_that_may_skip_steps_and_need_not_is_the_run_that_may_not(home):
    common = ("--no-wandb", "--training.seed=32")
    weights = []
    for allowed in (0, 3):
        folder = train(home, *common, f"--training.skip_nonfinite={allowed}", method=kd_methods.LABEL_ONLY)
        weights.append(models.load_export(folder / "student").model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("fill", [0.0, float("nan")])
def test_bad_teachers_stop_the_run_before_anything_is_trained(home, tmp_path, monkeypatch, fill):
    monkeypatch.setattr(train_kd, "run", lambda *a, **k: pytest.fail("training began"))
    path = tmp_path / "bad.pt"
    weights = models.create_model("cifar_resnet14", num_classes=10).state_dict()
    torch.save({name: w.float().fill_(fill) if w.is_floating_point() else w for name, w in weights.items()}, path)
    more = [f"--teachers=[{{model: cifar_resnet14, weights: {path}}}]", f"--output_dir={tmp_path / 'new'}"]
    for also in ([], ["--data.val_size=0"]):  # without a validation split, training images serve
        with pytest.raises(UserError, match=r"teachers\[0\] 'cifar_resnet14'.*(near chance|not finite)"):
            train_kd.main(arguments(home, "--no-wandb", *more, *also))
    assert not (tmp_path / "new").exists()


def test_a_teacher_near_chance_stops_the_run_and_says_why(home, tmp_path):
    path = tmp_path / "random.pt"
    torch.save(models.create_model("cifar_resnet14", num_classes=10).state_dict(), path)
    with pytest.raises(UserError, match=r"teachers\[0\] 'cifar_resnet14': accuracy .* is near chance"):
        train_kd.main(arguments(home, "--no-wandb", f"--teachers=[{{model: cifar_resnet14, weights: {path}}}]"))


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--model.name=resnt18"], "model.name: unknown model 'resnt18', did you mean"),
        (
            ["--model.name=resnet10t", "--model.args={block_args: {attn_layer: se}}"],
            "model.args: the trained network could not be read back: config.json: not a model's config: "
            "model_args.block_args: allowed: a number",
        ),
        (["--training.optimizer=adamq"], "training.optimizer: unknown optimizer 'adamq', did you mean 'adam"),
        (["--data.batch_size=5000"], "data.batch_size: 5000 is larger than the 600 training images"),
        (["--data.val_size=5000"], "val_size"),
        (["--output_dir=/proc/nowhere"], "output_dir: cannot write"),
        (
            ["--teachers=[{model: cifar_resnet8, weights: nowhere.pt}]"],
            "teachers[0].weights: no such file or folder: nowhere.pt",
        ),
        (
            ["--teachers=[{model: cifar_resnet8, train: nowhere.yaml}]"],
            "teachers[0].train: no such file: nowhere.yaml",
        ),
        (["--data.source=parquet", "--data.path=nowhere"], "nowhere"),
        (["--training.mixed_precision=fp16"], "fp16 needs a GPU"),
        (["--resume=nowhere"], "--resume: nowhere is not a run folder"),
        (["--cache.dir=/proc/nowhere"], "cache.dir: cannot write"),
    ],
)
def test_bad_input_is_one_message_before_any_training(home, more, text, monkeypatch):
    monkeypatch.setattr(train_kd, "run", lambda *a, **k: pytest.fail("training began"))
    with pytest.raises(UserError) as caught:
        train_kd.main(arguments(home, "--no-wandb", *more))
    assert text in str(caught.value)


def test_all_missing_teachers_are_named_before_the_data_are_read(home, monkeypatch):
    monkeypatch.setattr(preflight, "load_data", lambda *a, **k: pytest.fail("data were read"))
    entries = "[{model: cifar_resnet8, weights: a.pth}, {logits: b.safetensors}]"
    with pytest.raises(UserError) as caught:
        train_kd.main(arguments(home, "--no-wandb", f"--teachers={entries}"))
    first, second = str(caught.value).splitlines()
    assert first.startswith("teachers[0].weights: no such file or folder: a.pth; allowed: a run folder")
    assert second == "teachers[1].logits: b.safetensors: no such file; evaluate_kd.py --dump-logits writes one"


def test_a_teachers_file_may_not_touch_the_data_or_the_precision(home, tmp_path):
    for text, message in (
        ("data: {val_size: 3}", "data.val_size: comes from the run"),
        ("kd: {type: dynamic}", "kd: a teacher's file may hold"),
        ("training: {mixed_precision: bf16}", "training.mixed_precision: is the run's"),
        ("data: {batch_size: 5000}", r"teachers\[0\].train: data.batch_size: 5000 is larger than"),
        ("training: {optimizer_args: {betta: 1}}", "betta"),
        ("data: 3", "data: is 3, expected a section"),
        ("training: [1]", r"training: is \[1\], expected a section"),
    ):
        path = tmp_path / "t.yaml"
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            train_kd.main(arguments(home, "--no-wandb", f"--teachers=[{{model: cifar_resnet8, train: {path}}}]"))


# --------------------------------------------------------------------------------------------------- command line


def test_statuses_and_texts_of_the_script(home):
    def script(*words):
        return subprocess.run([sys.executable, "train_kd.py", *words], cwd=ROOT, capture_output=True, text=True)

    wrong = script("--training.max_epoch=3")
    assert wrong.returncode == 2 and wrong.stdout == ""
    assert wrong.stderr == "train_kd.py: command line: training.max_epoch: unknown key, did you mean 'max_epochs'?\n"
    printed = script("--print-config", "--kd.temperature=8")
    assert printed.returncode == 0 and yaml.safe_load(printed.stdout)["kd"]["temperature"] == 8.0
    shown = script("--help")
    assert (
        shown.returncode == 0
        and "--kd.temperature=" in shown.stdout
        and "--resume auto|never|RUN_FOLDER" in shown.stdout
    )


def test_check_measures_and_trains_nothing(home, capsys):
    before = set((home / "runs").glob("*"))
    train_kd.main(arguments(home, "--check", "--training.seed=21", "--output_dir=" + str(home / "checked")))
    assert not (home / "checked").exists() and "2 teacher(s) to be trained first" in capsys.readouterr().out
    train_kd.main(arguments(home, "--check", "--training.seed=21"))
    text = capsys.readouterr().out
    assert (
        "images per second" in text
        and "x cross-entropy" in text
        and "to the end" in text
        and "memory" in text
        and "disk" in text
    )
    assert set((home / "runs").glob("*")) == before


def test_method_names_belong_to_kd_methods():
    """No string of the trainer or of kd_core is the name of a method: methods are found by `type`."""
    for path in [*ROOT.glob("*_kd.py"), *(ROOT / "kd_core").rglob("*.py")]:
        strings = {
            node.value
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        # These three are also kinds of checkpoints, of cached views and of state.
        names = set(kd_methods.names()) - {"best", "fixed", "random"}
        # The average of weights has this name; and other projects' losses become settings of the plain mean.
        own = {"run/selection.py", "porting/translation.py"}
        names -= {"average"} if any(path.match(f"kd_core/{one}") for one in own) else set()
        assert not strings & names, path


# ------------------------------------------------------------------------------------------------------- on a GPU


@pytest.mark.slow
def test_a_compiled_student_trains_alike(home, tmp_path):
    """And its checkpoint is an ordinary one: the run goes on without the compiler."""
    words = [
        f"--output_dir={tmp_path}", f"--cache.dir={home / 'cache'}", "--teachers=[]", "--kd.type=baseline",
        "--model={name: cifar_resnet8}", "--no-wandb", "--training.compare_with_baseline=false", "--fresh",
        "--data.train_size=256", "--data.batch_size=64", "--training.max_epochs=2", "--training.log_every=1",
    ]  # fmt: skip
    losses = {}
    for name, more in (("plain", []), ("compiled", ["--training.compile=true", "--training.compile_mode=default"])):
        train_kd.main([*words, f"--name={name}", *more])
        [folder] = tmp_path.glob(f"{name}-*")
        rows = read_metrics(folder / "metrics.jsonl")
        losses[name] = [row["train_step/loss_total"] for row in rows if "train_step/step" in row]
    assert losses["compiled"] == pytest.approx(losses["plain"], abs=0.02)
    evaluate_kd.main(["--checkpoint", str(folder), "--no-wandb"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("store", ["device", "host"])
def test_training_on_a_gpu(home, precision, store):
    """One process a case: Accelerate keeps its precision for the life of a process."""
    more = [f"--training.mixed_precision={precision}", f"--data.store={store}", "--training.clip=5", "--no-wandb"]
    output = home / f"gpu-{precision}-{store}"
    command = [sys.executable, "train_kd.py", *arguments(home, *more, f"--output_dir={output}")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [folder] = output.glob("dynamic-*")
    last = epochs(folder)[-1]
    assert last["val/accuracy"] > 0.2 and last["perf/gpu_memory_peak_mb"] > 0
