"""Teachers that may have been trained on the validation images are marked, and those that have been are found out."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sample_run import predictions, report

import evaluate_kd
import kd_methods
import train_kd
from kd_core import config
from kd_core.config import TeacherConfig
from kd_core.data.dataset import Data, load_data
from kd_core.errors import UserError
from kd_core.evaluation.figures import evaluate
from kd_core.evaluation.metric_names import LABELS
from kd_core.evaluation.teacher_check import EXPOSED, errors_of, require_unseen_validation
from kd_core.export import card
from kd_core.models import build as models
from kd_core.models import network as student
from kd_core.report import console
from kd_core.report.console import results, summarize
from kd_core.teachers import load as teachers
from kd_core.teachers.logits_file import write_logits

MAY, HAS = teachers.EXPOSED["possibly"], teachers.EXPOSED["yes"]


def settings(home: Path, **data: Any) -> config.Config:
    layer = {
        "output_dir": str(home / "runs"),
        "cache": {"dir": str(home / "cache")},
        "data": {"source": "digits", **data},
        "model": {"name": "cifar_resnet8"},
    }
    return config.resolve([config.Layer("test", layer)]).config


def data_of(own: config.Config) -> Data:
    return load_data(own.data, model_sizes=[32], cache_dir=own.cache.folder, show_progress=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exposure")


@pytest.fixture(scope="module")
def run(home: Path) -> config.Config:
    return settings(home)


@pytest.fixture(scope="module")
def data(run: config.Config) -> Data:
    return data_of(run)


def export(home: Path, name: str, **data: Any) -> Path:
    """What a run with these settings of `data` exports."""
    own = settings(home, **data)
    student.build(own, data_of(own)).export(home / name, {})
    return home / name


def exposure(run: config.Config, data: Data, weights: Path, **more: Any) -> str | None:
    entry = TeacherConfig.model_validate({"weights": str(weights), **more})
    return teachers.load(entry, 0, data, run).saw_validation


def test_a_run_records_what_its_student_has_seen(home, run, data):
    val = len(data.val)
    seen = {
        "same": {},
        "the same number": {"val_size": val},
        "a part of the rest": {"train_size": 300},
        "another seed": {"split_seed": 1},
        "none held out": {"val_size": 0},
        "fewer": {"val_size": val - 50},
        "a part, and none held out": {"val_size": 0, "train_size": 300},
    }
    found = {name: exposure(run, data, export(home, name, **own)) for name, own in seen.items()}
    assert found == {
        "same": "no",
        "the same number": "no",
        "a part of the rest": "no",
        "another seed": "yes",
        "none held out": "yes",
        "fewer": "yes",
        "a part, and none held out": "possibly",
    }


def test_a_cut_test_split_does_not_confuse_it(home):
    """Validation is cut from what the test split has left."""
    for number in range(200):
        file = home / "photos" / f"class {number % 10}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)
    same = {"source": "imagefolder", "path": str(home / "photos"), "val_size": 0.1}
    cut = settings(home, test_size=0.15, **same)
    assert len(data_of(cut).val) == 17
    assert exposure(cut, data_of(cut), export(home, "cut the same", test_size=0.15, **same)) == "no"
    named = export(home, "the same folders", test_size=0.15, folders="classes", **same)
    assert exposure(cut, data_of(cut), named) == "no"
    assert exposure(cut, data_of(cut), export(home, "nothing cut", **same)) == "yes"


def test_teachers_of_unknown_origin_are_marked(home, run, data):
    own = export(home, "vouched")
    torch.save(models.create_model("cifar_resnet8", num_classes=10).state_dict(), home / "plain.pth")
    assert exposure(run, data, home / "plain.pth", model="cifar_resnet8") == "possibly"

    shutil.copytree(own, home / "without settings")
    (home / "without settings" / "config.yaml").unlink()
    assert exposure(run, data, home / "without settings") == "possibly"

    for name, change in {
        "other data": lambda content: content["extra"].update(data_fingerprint="0" * 64),
        "no fingerprint": lambda content: content.pop("extra"),
    }.items():
        shutil.copytree(own, home / name)
        content = json.loads((home / name / "config.json").read_text())
        change(content)
        (home / name / "config.json").write_text(json.dumps(content))
        assert exposure(run, data, home / name) == "possibly", name

    shutil.copytree(own, home / "other settings")
    (home / "other settings" / "config.yaml").write_text("data: {source: of another program}\n")
    assert exposure(run, data, home / "other settings") == "possibly"


def test_trained_on_in_the_settings_takes_precedence(home, run, data):
    own = export(home, "all images", val_size=0)
    words = {"train_split": "no", "other": "no", "all": "yes", None: "yes"}
    assert {word: exposure(run, data, own, trained_on=word) for word in words} == words
    torch.save(models.create_model("cifar_resnet8", num_classes=10).state_dict(), home / "plain.pth")
    words[None] = "possibly"
    plain = {w: exposure(run, data, home / "plain.pth", model="cifar_resnet8", trained_on=w) for w in words}
    assert plain == words
    without = settings(home, val_size=0)
    assert exposure(without, data_of(without), own, trained_on="all") is None  # nothing is claimed about no images


def test_trained_on_is_no_part_of_a_runs_identity_and_of_teachers_that_are_trained_here():
    def digest(**more: Any) -> str:
        teacher = {"model": "cifar_resnet8", "weights": "nowhere.pt", **more}
        layers = [*config.read_layers([config.QUICKSTART]), config.Layer("", {"teachers": [teacher]})]
        return config.digest(config.resolve(layers).config, "")

    assert digest() == digest(trained_on="all") == digest(trained_on="other")
    with pytest.raises(UserError, match=r"trained_on: is 'val', allowed: 'train_split', 'all' or 'other'"):
        digest(trained_on="val")
    with pytest.raises(ValueError, match="sees this run's training images; remove trained_on"):
        TeacherConfig.model_validate({"model": "cifar_resnet8", "train": "x.yaml", "trained_on": "all"})
    TeacherConfig.model_validate({"logits": "x.safetensors", "trained_on": "all"})


# ---------------------------------------------------------------------------- weights from validation images


@pytest.mark.parametrize(("method", "key"), [("best", "kd.teacher"), ("covariance", "kd.matrix")])
def test_weights_from_validation_images_need_teachers_that_have_not_seen_them(method, key):
    def check(word: str | None, val: Any = "a split", **more: Any) -> None:
        members: Any = [SimpleNamespace(index=0, name="a", saw_validation="no"),
                        SimpleNamespace(index=1, name="b", saw_validation=word)]  # fmt: skip
        data: Any = SimpleNamespace(val=val)
        require_unseen_validation(kd_methods.build({"type": method, **more}).config, members, data)

    check("no")
    for word in ("possibly", "yes"):
        told = rf"kd.type '{method}'.*teacher 1 \(b\) {EXPOSED[word]}; set teachers.1.trained_on .* or give {key}"
        with pytest.raises(UserError, match=told):
            check(word)
    with pytest.raises(UserError, match=f"and there are none; set data.val_size, or give {key}"):
        check(None, val=None)
    instead = {"teacher": 1} if method == "best" else {"matrix": [[1.0, 0.0], [0.0, 1.0]]}
    check("yes", **instead)
    check(None, val=None, **instead)


def test_errors_are_wrong_predictions():
    logits = torch.tensor([[[2.0, 1.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
    assert errors_of(logits, torch.tensor([0, 0])).tolist() == [[False, True], [True, True]]


def test_settings_for_another_number_of_teachers_are_refused_with_the_settings():
    def resolve(**kd: Any) -> None:
        config.resolve([config.Layer("test", {"kd": kd, "teachers": 2 * [{"model": "x", "weights": "x.pt"}]})])

    resolve(type="fixed", weights=[1.0, 2.0])
    for kd, message in {
        "weights": ({"type": "fixed", "weights": [1.0]}, "kd.weights: 1 given for 2 teachers"),
        "teacher": ({"type": "best", "teacher": 2}, "kd.teacher: 2 is no teacher's number; those are 0 to 1"),
        "matrix": ({"type": "covariance", "matrix": [[1.0]]}, "kd.matrix: rows: 1 given for 2 teachers"),
    }.values():
        with pytest.raises(UserError, match=message):
            resolve(**kd)
    one = {"kd": {"type": "ebkd", "normalize": "reference"}, "teachers": [{"model": "x", "weights": "x.pt"}]}
    with pytest.raises(UserError, match=r"kd.normalize: 'reference' multiplies the loss of one teacher by 0"):
        config.resolve([config.Layer("test", one)])


# ---------------------------------------------------------------------------------------------- what is told


def summary_of(val: list[float], test: list[float], words: list[Any], images: int = 1000) -> dict[str, Any]:
    """Of a run with teachers of these accuracies, and their ensemble's last."""
    members: Any = [SimpleNamespace(name=f"t{i}", parameters=10, saw_validation=word) for i, word in enumerate(words)]
    data: Any = SimpleNamespace(val=range(images))
    own: Any = SimpleNamespace(architecture="s", parameters=5)
    measured = [{"accuracy": value, "auroc": 0.9} for value in val]
    state = {"epoch": 1, "processes": 1, "best": {"epoch": 1, "val/accuracy": 0.5, "val/auroc": 0.8}, "metrics": {}}
    figures: dict[str, Any] = {
        "total": 2000,
        "teachers": [{"name": f"t{i}", "accuracy": value} for i, value in enumerate(test[:-1])],
        "ensemble": {"name": "ensemble", "accuracy": test[-1] if test else None},
    }
    made = config.resolve([*config.read_layers([config.QUICKSTART])]).config
    tested = {"test/accuracy": 0.45} if test else {}
    return summarize(made, data, own, members, measured, state, tested, {"test": figures} if test else {})


def test_the_closing_table_shows_test_accuracies_and_marks():
    found = summary_of([0.99, 0.72, 0.71, 0.97], [0.80, 0.70, 0.72, 0.81], ["possibly", "possibly", "no"])
    assert [teacher["saw_validation"] for teacher in found["teachers"]] == ["yes", "possibly", "no"]
    assert [teacher["test_accuracy"] for teacher in found["teachers"]] == [0.80, 0.70, 0.72]
    assert found["ensemble"] == {
        "val_accuracy": 0.97, "val_auroc": 0.9, "test_accuracy": 0.81, "saw_validation": "yes"
    }  # fmt: skip
    lines = results(found, None).splitlines()
    assert re.split(r"  +", lines[0].strip()) == [
        "validation accuracy", f"validation {LABELS['auroc']}", "test accuracy", "parameters"
    ]  # fmt: skip
    rows = [re.split(r"  +", line) for line in lines[2:7]]
    assert [row[0] for row in rows] == [
        "teacher 0 (t0) **", "teacher 1 (t1) *", "teacher 2 (t2)", "teachers' ensemble **",
        f"distilled student (s, {found['kd_type']})",
    ]  # fmt: skip
    assert [row[3] for row in rows] == ["80.00%", "70.00%", "72.00%", "81.00%", "45.00%"]
    assert f"* {MAY}, on which its accuracy may say nothing; set teachers[].trained_on if you know better" in lines
    assert (
        "teacher 0 (t0) has seen the validation images: it is right on 99.00% of them, and on 80.00% of the test images"
    ) in lines


def test_without_a_test_split_there_is_no_such_column():
    lines = results(summary_of([0.9, 0.9], [], ["no"]), None)
    assert "test accuracy" not in lines and "*" not in lines


def test_a_finished_run_of_an_older_version_has_no_marks():
    found = summary_of([0.9, 0.9], [], ["possibly"])
    assert MAY in results(found, None)
    del found["teachers"][0]["saw_validation"], found["ensemble"]["saw_validation"]
    assert "*" not in results(found, None)


@pytest.mark.parametrize(
    ("val", "images", "test", "tested", "above"),
    [
        (0.83, 5000, 0.6883, 10_000, True),  # a public teacher on images that it was trained on
        (0.70, 5000, 0.6883, 10_000, False),
        (0.72, 5000, 0.6883, 10_000, True),  # 4.0 standard errors
        (0.71, 5000, 0.6883, 10_000, False),  # 2.7
        (0.60, 5000, 0.6883, 10_000, False),
        (1.0, 20, 0.9, 10_000, False),  # 2 of 20 images are no proof
        (1.0, 1000, 0.97, 1000, True),
    ],
)
def test_three_standard_errors_decide(val, images, test, tested, above):
    assert console._far_above(val, images, test, tested) == above


def test_page_and_card_show_exposure(tmp_path, home):
    made = predictions(teachers=2)
    evaluations = {"val": evaluate(made, made)}
    row = {"val_accuracy": 0.9, "val_auroc": 0.9, "test_accuracy": 0.5}
    summary = {
        "student_model": "s", "kd_type": "average", "parameters": 5, "seed": 0, "epochs": 1, "best_epoch": 1,
        "evaluation": evaluations,
        "teachers": [{"name": "a", "parameters": 1, **row, "saw_validation": "possibly"},
                     {"name": "b", "parameters": 1, **row, "saw_validation": "yes"}],
        "ensemble": {**row, "saw_validation": "yes"},
    }  # fmt: skip
    path, _ = report(tmp_path / "run", made, summary=summary, evaluations=evaluations)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", path.read_text()))
    assert f"teacher 0: teacher_0 ({MAY})" in text and f"teacher 1: teacher_1 ({HAS})" in text
    assert f"teachers' ensemble (a member {HAS})" in text.replace("&#39;", "'")
    assert "Teacher 1 has seen the validation images: it is right on 90.00% of them, and on 50.00% of the test" in text
    assert "Teacher 0 has seen" not in text

    own = export(tmp_path, "run-1/student")
    folder = own.parent
    (folder / "summary.json").write_text(json.dumps({**summary, "run_id": "1", "status": "finished"}))
    lineage = card.Lineage(own, folder, settings(home), None)
    content = card.render("timm", models.load_export(own), lineage, 0.0, "40 images", None)
    assert f"| a | 90.00% ({MAY}) | 50.00% |" in content and f"| b | 90.00% ({HAS}) | 50.00% |" in content


def test_a_teacher_that_memorized_the_training_images_is_detected(home, data, capsys):
    """Its logits are right on all training images, those cut for validation too, and on 80% of the test images."""
    test = data.test()
    assert test is not None
    wrong = torch.arange(len(test.labels)) % 5 == 0
    logits = {
        "train": 5 * F.one_hot(data.train.labels, 10).float(),
        "test": 5 * F.one_hot(torch.where(wrong, (test.labels + 1) % 10, test.labels), 10).float(),
    }
    about = {"train": data.train.fingerprint, "test": test.fingerprint}
    write_logits(home / "heart.safetensors", logits, about)

    def train(name: str, entry: str) -> tuple[Path, str]:
        train_kd.main([
            "--no-wandb", f"--name={name}", f"--output_dir={home / 'runs'}", f"--cache.dir={home / 'cache'}",
            "--model={name: cifar_resnet8, img_size: 32}", "--kd.type=average", f"--teachers=[{{{entry}}}]",
            "--training.max_epochs=1", "--training.compare_with_baseline=false", "--evaluation.test_at_end=true",
            "--data.train_size=300", "--fresh",
        ])  # fmt: skip
        [folder] = (home / "runs").glob(f"{name}-????????")
        return folder, capsys.readouterr().out

    folder, text = train("marked", f"logits: {home}/heart.safetensors")
    doubt = f"teacher 0 {MAY}, so this accuracy may say nothing about it (set teachers.0.trained_on if"
    assert text.count(doubt) == 1  # though teachers are measured before all runs and by each run
    assert f"; a member {MAY}" in text  # before training nobody has looked at test images
    assert "is right on 100.00% of them, and on 80.00% of the test images" in text
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["teachers"][0]["saw_validation"] == summary["ensemble"]["saw_validation"] == "yes"
    assert summary["teachers"][0]["test_accuracy"] == summary["ensemble"]["test_accuracy"] == pytest.approx(0.8)
    assert HAS in (folder / "report" / "index.html").read_text()
    evaluate_kd.main(["--checkpoint", str(folder), "--no-wandb"])
    assert f"teacher 0 (heart.safetensors) {MAY}" in capsys.readouterr().out

    folder, text = train("vouched", f"logits: {home}/heart.safetensors, trained_on: other")
    assert MAY not in text and HAS not in text and "has seen" not in text
    assert json.loads((folder / "summary.json").read_text())["teachers"][0]["saw_validation"] == "no"
