"""evaluate_kd.py finds training's own numbers again."""

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import evaluate
import pytest
import timm
import torch
import wandb_offline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from warm_process import ranks

import evaluate_kd
import kd_methods
import train_kd
from kd_core import files, metrics
from kd_core.config import Layer, TeacherConfig, read_layers, resolve
from kd_core.errors import UserError
from kd_core.evaluation import cost, trained
from kd_core.files import read_object, write_json
from kd_core.models.exported import export_in
from kd_core.run.folder import RunFolder, read_metrics
from kd_core.run.script import run_script

ROOT = Path(__file__).resolve().parents[2]


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


def test_correct_counts_equal_those_of_training(folder, capsys):
    evaluate_kd.main(["--checkpoint", str(folder), "--no-wandb"])
    summary = json.loads((folder / "summary.json").read_text())
    found = results(folder)
    assert found["correct"] / found["total"] == summary["best_val_accuracy"]
    assert found["auroc"] == pytest.approx(summary["val_auroc"], abs=1e-9)
    best = next(row for row in read_metrics(folder / "metrics.jsonl") if row.get("epoch") == summary["best_epoch"])
    assert found["loss_ce"] == pytest.approx(best["val/loss_ce"], rel=1e-6)
    assert f"{found['correct']} / {found['total']}" in capsys.readouterr().out


def test_the_headline_metrics_come_from_hugging_faces_evaluate(folder, monkeypatch):
    """They are asked of `evaluate`, and are those of `kd_core.metrics` for the logits that it was given."""
    asked, compute = [], evaluate.EvaluationModule.compute

    def spy(self, **inputs):
        """As it was, and remembered; `evaluate` adds to this docstring."""
        asked.append((self.name, inputs, compute(self, **inputs)))
        return asked[-1][2]

    monkeypatch.setattr(evaluate.EvaluationModule, "compute", spy)
    evaluate_kd.main(["--checkpoint", str(folder), "--no-wandb"])
    [(name, inputs, given)] = asked
    logits, labels = (torch.from_numpy(inputs[key]) for key in ("predictions", "references"))
    assert name == "kd_classification" and given == metrics.classification(logits, labels)
    found = results(folder)
    assert {"accuracy", "top5", "macro_accuracy", "auroc"} <= given.keys() and len(labels) == found["total"]
    assert {key: found[key] for key in given} == given


def test_an_exported_student_inside_its_run_and_the_test_split(folder):
    evaluate_kd.main(["--checkpoint", str(folder / "student"), "--split", "test", "--no-wandb"])
    assert results(folder, "test")["total"] == 270  # 15% of digits
    (folder / "evaluation-test.json").unlink()
    evaluate_kd.main(["--checkpoint", str(folder / "checkpoints" / "best"), "--split", "test", "--no-wandb"])
    assert results(folder, "test")["total"] == 270


@pytest.mark.parametrize("words", [["--data.val_size=0.3"], ["--data.split_seed=7"]])
def test_images_that_the_student_was_trained_on_are_no_held_out_ones(folder, words):
    before = {file: file.read_bytes() for file in folder.glob("*.json")}
    for split in ("val", "test"):  # which is a split of its own, but the temperature is fitted on validation images
        with pytest.raises(UserError, match=r"trained on \d+ of the \d+ val images that these settings give; in its"):
            evaluate_kd.main(["--checkpoint", str(folder), "--no-wandb", "--split", split, *words])
    assert {file: file.read_bytes() for file in before} == before


def test_results_on_other_data_are_kept_apart_from_the_runs(folder, tmp_path, capsys):
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    words = ["--data.store_size=16", "--split", "test", "--evaluation.report=true", f"--output_dir={tmp_path}"]
    evaluate_kd.main(["--checkpoint", str(folder), "--no-wandb", *words])
    assert "note: the data are not those that the student was trained on (fingerprint " in capsys.readouterr().out
    assert {file: file.read_bytes() for file in before} == before
    assert results(tmp_path / f"evaluation-{folder.name}", "test")["total"] == 270
    assert (tmp_path / f"evaluation-{folder.name}" / "report" / "index.html").is_file()


@pytest.mark.parametrize(("split", "total"), [("val", 30), ("test", 270)])
def test_results_on_fewer_validation_images_are_kept_apart_from_the_runs(folder, tmp_path, capsys, split, total):
    """None of them was trained on; on test images the temperature is fitted on them."""
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    words = ["--data.val_size=30", "--split", split, f"--output_dir={tmp_path}"]
    evaluate_kd.main(["--checkpoint", str(folder), "--no-wandb", *words])
    said = "note: the splits are not those of its training, where data.val_size=0.15. The results are kept apart"
    assert said in capsys.readouterr().out
    assert {file: file.read_bytes() for file in before} == before
    assert results(tmp_path / f"evaluation-{folder.name}", split)["total"] == total


def test_two_processes_count_the_same(folder):
    evaluate_kd.main(["--checkpoint", str(folder), "--no-wandb"])
    one = results(folder)
    (folder / "evaluation-val.json").unlink()  # the two processes have to write their own
    ranks(2, "evaluate_kd.py", "--checkpoint", str(folder), "--no-wandb")
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
    evaluate_kd.main(["--checkpoint", str(folder), "--no-wandb"])
    [result] = (tmp_path / "out").glob("*/evaluation-val.json")
    assert json.loads(result.read_text())["correct"] == results(folder)["correct"]


def test_a_config_says_where_things_are_written_and_a_record_from_elsewhere_does_not(folder, tmp_path):
    export = shutil.copytree(folder / "student", tmp_path / "export")
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"output_dir: {tmp_path}/out\ncache: {{dir: {tmp_path}/cache}}\n")
    student = trained.open_student(export, None)
    given = trained.CommandSettings([str(mine)], Layer("command line", {}), Layer("own code", {}))
    config = student.config(given)
    assert config.output_dir == f"{tmp_path}/out" and config.cache.folder == tmp_path / "cache"
    config = student.config(replace(given, files=[]))
    assert config.output_dir == "runs" and config.cache.dir is None


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
        "val/macro_accuracy",
        "val/ece_adaptive",
        "val/temperature",
        "val/ece_scaled",
    }
    assert names <= set(run["history"][0]) and not run["axes"]
    assert not {"epoch", "train_step/step"} & {*run["history"][0], *run["summary"]}  # it has no epochs
    config = resolve(read_layers([str(folder / "config.yaml")])).config
    flat = config.flat(10)
    assert flat.items() <= run["config"].items() and run["config"]["parameters"] > 0
    assert run["config"]["data_fingerprint"] == read_object(folder / "identity.json")["images"]
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


def test_a_damaged_export_is_one_message(folder, tmp_path, monkeypatch, capsys):
    export = tmp_path / "export"
    export.mkdir()
    for file in (folder / "student").iterdir():
        (export / file.name).write_bytes(
            file.read_bytes()[:-1000] if file.suffix == ".safetensors" else file.read_bytes()
        )
    words = ["--checkpoint", str(export), "--config", str(folder / "config.yaml")]
    monkeypatch.setattr(sys, "argv", ["evaluate_kd.py", *words])
    with pytest.raises(SystemExit, match="^2$"):
        run_script(evaluate_kd.main, "evaluate_kd.py")
    errors = capsys.readouterr().err
    assert errors.startswith("evaluate_kd.py: ") and "model.safetensors" in errors and "Traceback" not in errors


# ------------------------------------------------------------------------- beside its teachers, and without them


@pytest.fixture(scope="module")
def taught(folder) -> Path:
    """A student of the same network with two teachers: one trained on demand, and the run in `folder`."""
    recipe = folder.parent / "recipe.yaml"
    recipe.write_text(
        "data: {batch_size: 32, crop_padding: 2, flip: false}\ntraining: {max_epochs: 3, learning_rate: 4e-3}"
    )
    train_kd.main([
        f"--output_dir={folder.parent}", f"--cache.dir={folder.parent / 'cache'}", "--name=taught", "--kd.type=average",
        f"--teachers=[{{model: test_resnet, img_size: 32, train: {recipe}}}, {{weights: {folder}}}]",
        "--model={name: test_resnet, img_size: 32}", "--training.max_epochs=2", "--no-wandb",
        "--training.compare_with_baseline=false", "--evaluation.report=false",
    ])  # fmt: skip
    [path] = folder.parent.glob("taught-*")
    return path


def test_its_teachers_are_measured_as_in_training(taught, capsys):
    evaluate_kd.main(["--checkpoint", str(taught), "--no-wandb"])
    found, summary = results(taught), read_object(taught / "summary.json")
    assert found["accuracy"] == summary["best_val_accuracy"]
    measured = [row["accuracy"] for row in found["measured_teachers"]]
    assert measured == [teacher["val_accuracy"] for teacher in summary["teachers"]]
    assert found["ensemble"]["accuracy"] == summary["ensemble"]["val_accuracy"]
    assert [row["name"] for row in found["measured_teachers"]] == ["test_resnet", "test_resnet"]
    assert len(found["teachers"]) == found["num_teachers"] == 2  # as configured, under the name they always had
    assert isinstance(found["teachers"][0], str)
    shares = found["against_teachers"]
    assert shares["all_agree"]["share"] + shares["disagree"]["share"] == pytest.approx(1)
    text = capsys.readouterr().out
    assert "teacher 1 (test_resnet)" in text and "at least one teacher right" in text


def test_teachers_may_be_left_out(taught, capsys):
    evaluate_kd.main(["--checkpoint", str(taught), "--no-teachers", "--no-wandb"])
    assert "measured_teachers" not in results(taught) and "teachers are not" not in capsys.readouterr().out


def test_teachers_that_cannot_be_found_are_reported_in_one_line(taught, tmp_path, capsys):
    elsewhere = f"--output_dir={tmp_path}"
    evaluate_kd.main(["--checkpoint", str(taught), "--no-wandb", elsewhere])
    assert "measured_teachers" not in results(taught)
    [line] = [line for line in capsys.readouterr().out.splitlines() if "not measured" in line]
    assert line == f"teachers are not measured: teachers[0]: no run in {tmp_path} has trained it on these data"

    shutil.copytree(taught / "student", tmp_path / "export")
    evaluate_kd.main(["--checkpoint", str(tmp_path / "export"), "--no-wandb", elsewhere])
    assert f"not measured: teachers[0]: no run in {tmp_path} has trained it" in capsys.readouterr().out


def test_on_demand_teachers_of_an_export_are_found_where_they_were_trained(taught, tmp_path, capsys):
    shutil.copytree(taught / "student", tmp_path / "export")
    evaluate_kd.main(["--checkpoint", str(tmp_path / "export"), "--no-wandb", f"--output_dir={taught.parent}"])
    assert "teacher 1 (test_resnet)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("teacher", "used"),
    [
        ({"weights": "wandb:me/kd/model-a:best"}, True),
        ({"weights": "wandb:me/kd/model-a:v3"}, True),
        ({"weights": "wandb:me/other/model-a:best"}, False),
        ({"weights": "wandb:you/kd/model-a:best"}, False),
        ({"weights": "wandb:me/kd/x/model-a:best"}, False),
        ({"weights": "hf-hub:me/kd/model"}, False),
        ({"weights": "wandb:model-a:best"}, False),
        ({"weights": "pretrained", "model": "resnet18"}, False),
        ({"weights": "runs/mine.pth", "model": "hf-hub:me/model"}, False),
        ({"weights": "runs/mine"}, True),
        ({"logits": "logits.safetensors"}, True),
        ({"model": "a", "train": "configs/teachers/digits.yaml"}, True),
    ],
)
def test_settings_from_elsewhere_name_few_teachers(teacher, used):
    config, artifact = TeacherConfig.model_validate(teacher), "me/kd/model-b:best"
    if used:
        trained.require_at_hand(config, 1, artifact)
    else:
        with pytest.raises(UserError, match=r"teachers\[1\]: .* --config FILE with these teachers uses it"):
            trained.require_at_hand(config, 1, artifact)
    if teacher.get("weights", "").startswith("wandb:"):  # an export alone has no project
        with pytest.raises(UserError, match="--config FILE"):
            trained.require_at_hand(config, 1, None)


@pytest.mark.parametrize("lost", ["student", "student/model.safetensors", "student/config.json"])
def test_a_run_without_its_student_falls_back_to_its_best_checkpoint(folder, tmp_path, lost, capsys):
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    shutil.rmtree(run / lost) if (run / lost).is_dir() else (run / lost).unlink()
    evaluate_kd.main(["--checkpoint", str(run), "--no-wandb"])
    text, summary = capsys.readouterr().out, read_object(run / "summary.json")
    best = run / "checkpoints" / "best" / "student"
    assert text.count(f"{run}: has no whole student/, its best checkpoint is taken: {best}") == 1
    found = results(run)
    assert found["correct"] / found["total"] == summary["best_val_accuracy"]


def test_which_student_a_folder_holds(tmp_path, capsys):
    def export(part: str, *names: str) -> Path:
        (tmp_path / part).mkdir(parents=True, exist_ok=True)
        for name in names or ("config.json", "model.safetensors"):
            (tmp_path / part / name).touch()
        return tmp_path / part

    with pytest.raises(UserError, match="holds no exported student"):
        export_in(tmp_path)
    alone = export("student", "config.json")
    assert export_in(tmp_path) == alone  # whose message then names the weights
    latest = export("checkpoints/latest/student")
    assert export_in(tmp_path) == latest and "its latest checkpoint is taken" in capsys.readouterr().out
    best = export("checkpoints/best/student")
    assert export_in(tmp_path) == best and "its best checkpoint is taken" in capsys.readouterr().out
    assert export_in(export("student")) == export_in(tmp_path) == alone and capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["model-ab12cd34", "model-ab12cd34:best", "a/b/c/d:e", "wandb:a/b/c:best", "a/b/"])
def test_an_artifact_without_its_project_is_one_message(name):
    with pytest.raises(UserError) as caught:
        evaluate_kd.main(["--artifact", name, "--no-wandb"])
    wanted = "the name must look like ENTITY/PROJECT/NAME:ALIAS"
    assert str(caught.value) == f"--artifact: W&B artifact {name!r}: {wanted}"


def test_a_teacher_without_logits_of_the_test_images(folder, tmp_path, capsys):
    whole, part = tmp_path / "whole.safetensors", tmp_path / "part.safetensors"
    evaluate_kd.main(["--checkpoint", str(folder), "--dump-logits", str(whole)])
    with safe_open(whole, framework="pt") as file:
        about = file.metadata()
    save_file({"train": load_file(whole)["train"]}, part, metadata=about)
    for path, known in ((whole, True), (part, False)):
        capsys.readouterr()
        evaluate_kd.main(
            ["--checkpoint", str(folder), "--split", "test", "--no-wandb", f"--teachers=[{{logits: {path}}}]"]
        )
        assert ("measured_teachers" in results(folder, "test")) == known
        assert ("has no logits of split 'test'" in capsys.readouterr().out) != known
    evaluate_kd.main(["--checkpoint", str(folder), "--no-wandb", f"--teachers=[{{logits: {whole}}}]"])
    [row] = results(folder)["measured_teachers"]  # itself, up to what fp16 rounds
    assert row["agreement"] == 1 and row["kl"] == pytest.approx(0, abs=1e-5)


def test_the_temperature_is_fitted_on_validation(taught):
    evaluate_kd.main(["--checkpoint", str(taught), "--no-teachers", "--no-wandb"])
    evaluate_kd.main(["--checkpoint", str(taught), "--split", "test", "--no-teachers", "--no-wandb"])
    val, test = (results(taught, split)["temperature_scaling"] for split in ("val", "test"))
    assert val["fitted_on"] == test["fitted_on"] == "val" and val["temperature"] == test["temperature"]
    assert val["nll"] <= results(taught)["nll"] and val["nll"] != test["nll"]


def test_the_student_alone(taught, folder, capsys):
    evaluate_kd.main(["--checkpoint", str(folder), "--no-wandb"])
    alone = results(folder)
    evaluate_kd.main(["--checkpoint", str(taught), "--baseline", str(folder), "--no-teachers", "--no-wandb"])
    found = results(taught)
    assert found["alone"] == {key: alone[key] for key in ("accuracy", "nll", "ece", "auroc")}
    assert found["gain"] == found["accuracy"] - alone["accuracy"]
    assert [row["alone"] for row in found["per_class"]] == [row["accuracy"] for row in alone["per_class"]]
    assert f"student alone: accuracy {alone['accuracy']:.2%}" in capsys.readouterr().out


def test_the_baseline_that_a_run_has_trained_is_found(taught, folder, tmp_path):
    words = ["--checkpoint", str(taught), "--no-teachers", "--no-wandb"]
    try:
        for path, known in ((folder, True), (tmp_path / "gone", False)):
            RunFolder(taught).write_summary(baseline_run=str(path))
            evaluate_kd.main(words)
            assert ("alone" in results(taught)) == known
    finally:
        RunFolder(taught).write_summary(baseline_run=None)


def altered(folder: Path, home: Path, *, extra: dict | None = None, settings: tuple[str, str] | None = None) -> Path:
    """A copy of a run whose student states something else."""
    shutil.copytree(folder / "student", home / "student")
    config = read_object(home / "student" / "config.json")
    write_json(home / "student" / "config.json", {**config, "extra": {**config["extra"], **(extra or {})}})
    if settings:
        text = (home / "student" / "config.yaml").read_text()
        assert settings[0] in text
        (home / "student" / "config.yaml").write_text(text.replace(*settings))
    return home


def test_a_baseline_that_a_run_has_trained_and_that_does_not_fit_is_one_line(taught, folder, tmp_path, capsys):
    other = altered(folder, tmp_path / "split", settings=("split_seed: 0", "split_seed: 7"))
    RunFolder(taught).write_summary(baseline_run=str(other))
    evaluate_kd.main(["--checkpoint", str(taught), "--no-teachers", "--no-wandb"])
    assert "alone" not in results(taught)
    [line] = [line for line in capsys.readouterr().out.splitlines() if "alone is not measured" in line]
    assert line == f"the student alone is not measured: {other}: was trained with data.split_seed=7, the student with 0"
    RunFolder(taught).write_summary(baseline_run=None)


def test_a_run_folder_that_cannot_be_written_is_one_message(folder, monkeypatch):
    original = files.TemporaryFile

    def read_only(dir: Path) -> Any:
        if dir == folder:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return original(dir=dir)

    monkeypatch.setattr(files, "TemporaryFile", read_only)
    monkeypatch.setattr(evaluate_kd, "select_split", lambda *a: pytest.fail("it was found out too late"))
    with pytest.raises(UserError, match=f"^--checkpoint: cannot write to {folder}: Read-only file system; choose"):
        evaluate_kd.main(["--checkpoint", str(folder), "--no-wandb"])


def test_baselines_that_are_none(taught, folder, tmp_path):
    names = [*read_object(folder / "student" / "config.json")["label_names"]]
    cases: list[tuple[Path, str]] = [
        (tmp_path / "nowhere", "no such folder: .*nowhere; a run folder is needed"),
        (tmp_path, "holds no exported student"),
        (taught, "was trained with kd.type=average, not "),
    ]
    other = altered(folder, tmp_path / "data", extra={"data_fingerprint": "another"})
    cases.append((other, "was trained on data with fingerprint another, the student on [0-9a-f]"))
    other = altered(folder, tmp_path / "split", settings=("split_seed: 0", "split_seed: 7"))
    cases.append((other, "was trained with data.split_seed=7, the student with 0"))
    other = altered(folder, tmp_path / "test", settings=("test_size: null", "test_size: 0.2"))
    cases.append((other, "was trained with data.test_size=0.2, the student with None"))
    other = altered(folder, tmp_path / "order")
    config = read_object(other / "student" / "config.json")
    config["label_names"] = names[::-1]
    write_json(other / "student" / "config.json", config)
    cases.append((other, "knows the same classes in another order"))
    for path, text in cases:
        with pytest.raises(UserError, match=f"(?s){text}") as caught:
            evaluate_kd.main(["--checkpoint", str(taught), "--baseline", str(path), "--no-wandb"])
        assert str(path) in str(caught.value)


def test_a_baseline_of_another_network(folder, taught, tmp_path):
    model = timm.create_model("test_vit", num_classes=10)
    other = altered(folder, tmp_path / "network")
    config = read_object(other / "student" / "config.json")
    write_json(other / "student" / "config.json", {**config, "architecture": "test_vit", "model_args": {}})
    save_file(model.state_dict(), other / "student" / "model.safetensors")
    with pytest.raises(UserError, match="holds a 'test_vit', the student is a 'test_resnet'"):
        evaluate_kd.main(["--checkpoint", str(taught), "--baseline", str(other), "--no-wandb"])


def test_what_it_costs(folder, monkeypatch, capsys):
    monkeypatch.setattr(cost, "SECONDS", 0.0)
    evaluate_kd.main(["--checkpoint", str(folder), "--cost", "--no-wandb"])
    found = results(folder)["cost"]
    assert found["parameters"] == read_object(folder / "summary.json")["parameters"]
    assert found["checkpoint_bytes"] == (folder / "student" / "model.safetensors").stat().st_size
    assert f"{found['multiply_adds']:,}" in capsys.readouterr().out
