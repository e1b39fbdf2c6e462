"""evaluate_kd.py finds training's own numbers again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import wandb_offline

import evaluate_kd
import kd_methods
import train_kd
from kd_core.checkpoints import read_metrics
from kd_core.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A trained run with a stock timm student."""
    home = tmp_path_factory.mktemp("evaluate")
    train_kd.main([
        f"--output_dir={home}", f"--cache.dir={home / 'cache'}", "--teachers=[]", f"--kd.type={kd_methods.LABEL_ONLY}",
        "--name=run", "--model={name: test_resnet, img_size: 32}", "--training.max_epochs=3", "--no-wandb",
        "--training.compare_with_baseline=false", "--evaluation.report=false",
    ])  # fmt: skip
    [folder] = home.glob("run-*")
    return folder


def results(folder: Path, split: str = "val") -> dict:
    return json.loads((folder / f"evaluation-{split}.json").read_text())


def test_it_counts_the_very_same_correct_answers(folder, capsys):
    evaluate_kd.main(["--checkpoint", str(folder), "--no-wandb"])
    summary = json.loads((folder / "summary.json").read_text())
    found = results(folder)
    assert found["correct"] / found["total"] == summary["best_val_accuracy"]
    assert found["auroc"] == pytest.approx(summary["val_auroc"], abs=1e-9)
    best = next(row for row in read_metrics(folder / "metrics.jsonl") if row.get("epoch") == summary["best_epoch"])
    assert found["loss_ce"] == pytest.approx(best["val/loss_ce"], rel=1e-6)
    assert f"{found['correct']} / {found['total']}" in capsys.readouterr().out


def test_an_exported_student_inside_its_run_and_the_test_split(folder):
    evaluate_kd.main(["--checkpoint", str(folder / "student"), "--split", "test", "--no-wandb"])
    assert results(folder, "test")["total"] == 270  # 15% of digits
    evaluate_kd.main(["--checkpoint", str(folder / "checkpoints" / "best"), "--split", "test", "--no-wandb"])
    assert results(folder, "test")["total"] == 270


def test_two_processes_count_the_same(folder):
    evaluate_kd.main(["--checkpoint", str(folder), "--no-wandb"])
    one = results(folder)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "evaluate_kd.py"]
    done = subprocess.run(
        [*command, "--checkpoint", str(folder), "--no-wandb"], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    two = results(folder)
    assert (two["correct"], two["total"]) == (one["correct"], one["total"])
    assert two["loss_ce"] == pytest.approx(one["loss_ce"], abs=1e-5)


def test_an_export_without_its_run_needs_a_config(folder, tmp_path):
    export = tmp_path / "export"
    export.mkdir()
    for file in (folder / "student").iterdir():
        (export / file.name).write_bytes(file.read_bytes())
    (export / "config.yaml").unlink()
    with pytest.raises(UserError, match="--config: needed here"):
        evaluate_kd.main(["--checkpoint", str(export), "--no-wandb"])
    output = f"--output_dir={tmp_path / 'out'}"
    evaluate_kd.main(["--checkpoint", str(export), "--config", str(folder / "config.yaml"), output, "--no-wandb"])
    [result] = (tmp_path / "out").glob("*/evaluation-val.json")
    assert json.loads(result.read_text())["correct"] == results(folder)["correct"]


def test_the_exported_student_gives_identical_logits_in_plain_timm(folder, tmp_path):
    """In a process that has never heard of this project."""
    images = torch.randn(3, 3, 32, 32)
    model = timm.create_model(f"local-dir:{folder / 'student'}", pretrained=True).eval()
    with torch.no_grad():
        torch.save({"images": images, "logits": model(images)}, tmp_path / "here.pt")
    code = (
        f"import timm, torch; kept = torch.load({str(tmp_path / 'here.pt')!r}); "
        f"model = timm.create_model('local-dir:{folder / 'student'}', pretrained=True).eval(); "
        "torch.set_grad_enabled(False); assert torch.equal(model(kept['images']), kept['logits'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_evaluation_run_is_logged(folder, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    evaluate_kd.main(["--checkpoint", str(folder)])
    run = wandb_offline.read_run(folder / "wandb")
    run_id = json.loads((folder / "summary.json").read_text())["run_id"]
    assert run["job_type"] == "evaluation" and run["name"] == f"eval-val-run-{run_id}"
    assert {"val", run_id, kd_methods.LABEL_ONLY} <= set(run["tags"])
    names = {
        "val/loss",
        "val/accuracy",
        "val/accuracy_percent",
        "val/auroc",
        "val/top5",
        "val/nll",
        "val/brier",
        "val/ece",
    }
    assert names <= set(run["history"][0])
    keys = {"val_loss", "val_accuracy", "val_accuracy_percent", "checkpoint_path", "model_name", "teachers"}
    keys |= {"kd_method", "num_teachers"}
    assert keys <= set(run["summary"])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "say what to evaluate"),
        (["--checkpoint", "nowhere"], "--checkpoint: no such folder: nowhere"),
        (["--checkpoint", "tests"], "holds no exported student"),
    ],
)
def test_bad_input(words, text):
    with pytest.raises(UserError, match=text):
        evaluate_kd.main(words)


def test_a_damaged_export_is_one_message(folder, tmp_path):
    export = tmp_path / "export"
    export.mkdir()
    for file in (folder / "student").iterdir():
        (export / file.name).write_bytes(
            file.read_bytes()[:-1000] if file.suffix == ".safetensors" else file.read_bytes()
        )
    done = subprocess.run(
        [sys.executable, "evaluate_kd.py", "--checkpoint", str(export), "--config", str(folder / "config.yaml")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("evaluate_kd.py: ") and "model.safetensors" in done.stderr
    assert "Traceback" not in done.stderr
