"""Two processes (gloo) against one: the same global batch gives the same training."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from method_variants import SCOPED
from waiting import free_port, wait_for_checkpoint
from warm_process import ranks

import evaluate_kd
import kd_methods
from kd_core.models.build import load_export
from kd_core.run.folder import read_metrics

ROOT = Path(__file__).resolve().parents[2]


def write_config(home: Path, output: str, method: str, scope: str | None, student: dict, **kd) -> Path:
    config = {
        "output_dir": str(home / output),
        "data": {"source": "digits", "train_size": 400, "batch_size": 40, "flip": False},
        "model": student,
        "teachers": [
            {"model": name, "weights": str(home / f"{name}.pt"), "normalization": "data", "trained_on": "other"}
            for name in ("cifar_resnet8", "cifar_wrn_16_1")
        ],
        "kd": {"type": method, **({"scope": scope} if scope else {}), **kd},
        "training": {"max_epochs": 2, "log_every": 1, "learning_rate": 1e-3},
        "cache": {"dir": str(home / "cache")},
        "evaluation": {"report": student == VIT and method == "dynamic"},  # once from several processes
    }
    if method == kd_methods.LABEL_ONLY:
        del config["teachers"]
    path = home / f"{output}-{method}-{scope}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def losses(home: Path, processes: int, method: str, scope: str | None, student: dict, **kd) -> list[dict]:
    output = f"p{processes}-{method}-{scope}-{student['name']}" + "-features" * bool(kd)
    config = write_config(home, output, method, scope, student, **kd)
    ranks(processes, "train_kd.py", "--config", str(config), "--no-wandb")
    [folder] = (home / output).glob("*-*")
    assert json.loads((folder / "summary.json").read_text())["status"] == "finished"
    return read_metrics(folder / "metrics.jsonl")


@pytest.fixture(scope="module")
def home(tmp_path_factory, digits_teachers) -> Path:
    """A folder with the weights of two teachers that are better than chance on digits."""
    home = tmp_path_factory.mktemp("two")
    for folder in digits_teachers:
        loaded = load_export(folder / "student")
        torch.save(loaded.model.state_dict(), home / f"{loaded.architecture}.pt")
    return home


VIT = {"name": "test_vit", "img_size": 32, "args": {"patch_size": 8}}


@pytest.mark.parametrize(("method", "scope"), [SCOPED[0], ("dynamic", "batch"), ("confidence", "sample")])
def test_a_vit_student_trains_identically_on_two_processes(home, method, scope):
    compare_vit(home, method, scope)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "scope"), SCOPED)
def test_every_method_and_scope_trains_identically_on_two_processes(home, method, scope):
    compare_vit(home, method, scope)


def test_features_train_identically_on_two_processes(home):
    """Losses per image, of the gathered batch, and with banks of all images; the projectors are one module's."""
    features = [
        {"loss": "at", "student": [-1], "teacher": [-1]},
        {"loss": "fitnet", "weight": 1.0, "student": [-1], "teacher": [-1], "regressor": "plain"},
        {"loss": "rkd", "gather": True, "weight": 1.0},
        {"loss": "crd", "weight": 0.1, "width": 8, "negatives": 16},
    ]
    compare_vit(home, "ca_weighted", "sample", features=features)
    compare_method(home / "p1-ca_weighted-sample-test_vit-features", home / "p2-ca_weighted-sample-test_vit-features")


@pytest.mark.slow
def test_dist_that_gathers_trains_identically_on_two_processes(home):
    compare_vit(home, "average", None, loss="dist", dist={"gather": True})


def compare_method(*outputs):
    """What the method itself has learned: projectors, and rows of the banks."""
    states = []
    for output in outputs:
        [path] = output.glob("*/checkpoints/latest/training.pt")
        states.append(torch.load(path, weights_only=True)["method"])
    assert any(name.endswith("banks") for name in states[0])
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=0, atol=1e-3)


def compare_vit(home, method, scope, **kd):
    one, two = (losses(home, processes, method, scope, VIT, **kd) for processes in (1, 2))
    steps = [row for row in one if "train_step/step" in row]
    assert len(steps) == 20
    for first, second in zip(steps, [row for row in two if "train_step/step" in row], strict=True):
        assert first["train_step/learning_rate"] == second["train_step/learning_rate"]
        for name in first:
            if name != "train_step/step_time":
                assert second[name] == pytest.approx(first[name], abs=1e-4), (name, first["train_step/step"])


@pytest.mark.slow
def test_two_nodes_with_caches_of_their_own_train_as_one_process(home):
    """Two launchers that meet, as on two machines which share no more than the output folder."""
    one = losses(home, 1, "average", None, VIT)
    config = write_config(home, "nodes", "average", None, VIT)
    launcher = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--rdzv_id=test",
        "--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{free_port()}", "train_kd.py", "--config", str(config),
    ]  # fmt: skip
    nodes = [
        subprocess.Popen(
            [*launcher, "--no-wandb", f"--cache.dir={home / f'cache-of-{node}'}"], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for node in range(2)
    ]  # fmt: skip
    for process in nodes:
        text, _ = process.communicate(timeout=300)
        assert process.returncode == 0, text
    [folder] = (home / "nodes").glob("*-*")
    two = [row for row in read_metrics(folder / "metrics.jsonl") if "train_step/step" in row]
    for first, second in zip([row for row in one if "train_step/step" in row], two, strict=True):
        assert second["train_step/loss_total"] == pytest.approx(first["train_step/loss_total"], abs=1e-4)


def test_sigterm_reaches_all_processes_and_the_run_resumes(home):
    """What an agent sends to the launcher of a trial on several GPUs."""
    config = write_config(home, "stopped", kd_methods.LABEL_ONLY, None, {"name": "cifar_resnet8"})
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train_kd.py"]
    words = ["--config", str(config), "--no-wandb", "--training.max_epochs=8"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*launcher, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )
    wait_for_checkpoint(home / "stopped", process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=300)  # returns once no process holds its output any more
    [folder] = (home / "stopped").glob("*-*")
    assert json.loads((folder / "summary.json").read_text())["status"] == "preempted"
    ranks(2, "train_kd.py", *words)
    assert [row["epoch"] for row in read_metrics(folder / "metrics.jsonl") if "epoch" in row] == list(range(1, 9))


def test_a_batchnorm_student_on_two_processes(home):
    """BatchNorm statistics are per process, so training differs from one process; these things do not.

    Learning rates and the teachers' figures; and the exported student scores as it did in training, by one process.
    """
    one, two = (losses(home, processes, "average", None, {"name": "cifar_resnet8"}) for processes in (1, 2))
    assert one[0] == two[0]  # the teachers' accuracies
    for first, second in zip(one, two, strict=True):
        for name in ("train_step/learning_rate", "learning_rate", "epoch"):
            assert first.get(name) == second.get(name)
    [folder] = (home / "p2-average-None-cifar_resnet8").glob("average-*")
    evaluate_kd.main(["--checkpoint", str(folder / "checkpoints" / "latest"), "--no-wandb"])
    found = json.loads((folder / "evaluation-val.json").read_text())
    assert found["accuracy"] == two[-1]["val/accuracy"]
    assert found["loss_ce"] == pytest.approx(two[-1]["val/loss_ce"], abs=1e-5)


def test_parts_of_a_batch_on_two_processes_are_the_whole_batch(home):
    """Gradients are added up over processes once, after the last part."""
    one = losses(home, 1, kd_methods.LABEL_ONLY, None, VIT)
    config = write_config(home, "parts", kd_methods.LABEL_ONLY, None, VIT)
    ranks(2, "train_kd.py", "--config", str(config), "--no-wandb", "--training.accumulate=4")
    [folder] = (home / "parts").glob("*-*")
    two = read_metrics(folder / "metrics.jsonl")
    steps = [[row for row in rows if "train_step/step" in row] for rows in (one, two)]
    assert len(steps[0]) == 20
    for first, second in zip(*steps, strict=True):
        assert second["train_step/loss_total"] == pytest.approx(first["train_step/loss_total"], abs=1e-4)


TELL_THE_AVERAGE = """
import hashlib, os, sys
import train_kd

validate = train_kd.validate

def telling(setup, progress):
    state = setup.average.model.state_dict()
    content = b"".join(value.numpy().tobytes() for value in state.values())
    print(f"average of process {os.environ['RANK']}: {hashlib.sha256(content).hexdigest()}")
    return validate(setup, progress)

train_kd.validate = telling
train_kd.main(sys.argv[1:])
"""


def test_the_average_is_the_same_on_two_processes(home, tmp_path):
    """Of weights and of BatchNorm's statistics, which processes keep apart within an epoch."""
    script = tmp_path / "train.py"
    script.write_text(TELL_THE_AVERAGE)
    config = write_config(home, "averaged", "average", None, {"name": "cifar_resnet8"})
    text = ranks(2, str(script), "--config", str(config), "--no-wandb", "--training.ema.every=3")
    told = re.findall(r"average of process (\d): (\w+)", text)
    one, two = ([digest for rank, digest in told if rank == process] for process in "01")
    assert one == two and len(set(one)) == 2
    [folder] = (home / "averaged").glob("average-*")
    evaluate_kd.main(["--checkpoint", str(folder / "checkpoints" / "latest" / "average"), "--no-wandb"])
    found = json.loads((folder / "evaluation-val.json").read_text())
    assert found["accuracy"] == read_metrics(folder / "metrics.jsonl")[-1]["val/ema_accuracy"]


BREAK_THE_SECOND = """
import itertools, os, sys
import train_kd
from kd_core.errors import UserError
from kd_core.teachers.logits import TeacherLogits

compute, calls = TeacherLogits._compute, itertools.count(1)

def broken(self, index, *args, **options):
    logits = compute(self, index, *args, **options)
    bad = index == 1 and next(calls) == 4 and os.environ["RANK"] == "1"
    return logits * float("nan") if bad else logits

TeacherLogits._compute = broken
try:
    train_kd.main(sys.argv[1:])
except UserError as error:
    print(f"process {os.environ['RANK']}: {error}")
"""


@pytest.mark.parametrize("allowed", [0, 1])
def test_a_nonfinite_value_on_one_process_stops_all_or_is_skipped_by_all(home, tmp_path, allowed):
    """In step 4 the second process alone gets logits that are not finite from the second teacher."""
    script = tmp_path / "train.py"
    script.write_text(BREAK_THE_SECOND)
    config = write_config(home, f"skips-{allowed}", "average", None, VIT)
    words = ["--config", str(config), "--no-wandb", "--cache.mode=off", f"--training.skip_nonfinite={allowed}"]
    printed = ranks(2, str(script), *words)
    if not allowed:
        said = r"process (\d): loss_total, .*loss_kl.* not finite at step 4; teachers\[1\] '.*' gave"
        assert sorted(re.findall(said, printed)) == ["0", "1"], printed
        return
    [folder] = (home / f"skips-{allowed}").glob("*-*")
    rows = read_metrics(folder / "metrics.jsonl")
    counts = [row["train_step/skipped_steps"] for row in rows if "train_step/step" in row]
    assert counts == [0, 0, 0, 1, *[0] * 16], printed
    assert "train_step/loss_total" not in next(row for row in rows if row.get("train_step/step") == 4)
    assert [row["train/skipped_steps"] for row in rows if row.get("epoch")] == [1, 0]
