"""The end of a run computes nothing twice: what the student, the student alone and the teachers gave is kept."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load

import train_kd
from kd_core.errors import UserError
from kd_core.evaluation import alone as student_alone
from kd_core.evaluation.predictions import open_test_split
from kd_core.models.predict import Predictor
from kd_core.teachers.logits import TeacherLogits

VIT = "{name: test_vit, img_size: 32, args: {patch_size: 16}}"


def words(home: Path, teachers: list[Path], *more: str) -> list[str]:
    team = ", ".join(f"{{weights: {folder}}}" for folder in teachers)
    return [
        f"--output_dir={home}", f"--cache.dir={home / 'cache'}", "--name=run", f"--model={VIT}",
        f"--teachers=[{team}]", "--kd.type=dynamic", "--training.max_epochs=2", "--cache.mode=fixed",
        "--cache.views=1", "--training.compare_with_baseline=true", "--evaluation.test_at_end=true", "--no-wandb",
        *more,
    ]  # fmt: skip


class Evaluations:
    """The labels of evaluations of students, and the teachers whose networks ran."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.students: list[str] = []
        self.teachers: list[int] = []
        predict, network = Predictor.__call__, TeacherLogits._network

        def predicted(predictor, model, images, views, label=None, show=None):
            self.students += [label] if label else []
            return predict(predictor, model, images, views, label, show)

        def built(outputs, index):
            self.teachers.append(index)
            return network(outputs, index)

        monkeypatch.setattr(Predictor, "__call__", predicted)
        monkeypatch.setattr(TeacherLogits, "_network", built)


@pytest.fixture(scope="module")
def home(tmp_path_factory, digits_teachers) -> Path:
    """The folder of a finished run, its comparison and their caches."""
    folder = tmp_path_factory.mktemp("ended")
    with pytest.MonkeyPatch.context() as patch:
        first = Evaluations(patch)
        train_kd.main(words(folder, digits_teachers))
    # The comparison on both splits; the student on test and training images, as validation images are known.
    assert first.students == ["student on test", "student on test", "student on train"]
    return folder


def test_another_run_runs_no_teacher_and_the_student_once_per_image(home, digits_teachers, monkeypatch):
    again = Evaluations(monkeypatch)
    train_kd.main(words(home, digits_teachers, "--training.learning_rate=0.002", "--fresh"))
    assert not again.teachers
    assert again.students.count("student on test") == 2 and not {one for one in again.students if "alone" in one}


def test_kept_logits_are_those_of_the_export(home, digits_teachers, monkeypatch, capsys):
    folder = next(home.glob("run-alone-????????"))
    kept = load((folder / student_alone.FILE).read_bytes())
    assert set(kept) == {"val", "test"}
    config, job = started(words(home, digits_teachers))
    data, predict = job.data, Predictor(job.accelerator, config)
    images = {name: train_kd.Images(split, job.accelerator.device, "auto") for name, split in (
        ("val", data.val), ("test", data.test()),
    )}  # fmt: skip
    ran = Evaluations(monkeypatch)
    own = student_alone.Alone(folder, data, predict)
    for name, shown in images.items():
        assert torch.equal(own(shown, name), kept[name])
    assert not ran.students
    for name, shown in images.items():  # other images: computed, and the same as those that were kept
        half = train_kd.Images(shown.split.apart(), job.accelerator.device, "auto")
        torch.testing.assert_close(own(half, name), kept[name], rtol=0, atol=1e-5)
    assert ran.students == ["student alone on val", "student alone on test"]

    (folder / student_alone.FILE).write_bytes(b"damaged")
    torch.testing.assert_close(own(images["val"], "val"), kept["val"], rtol=0, atol=1e-5)
    assert "evaluated again" in "".join(capsys.readouterr())


def started(arguments):
    options, resolved = train_kd.parse(arguments)
    return train_kd.evaluation.start(options, resolved)


def test_a_test_split_that_cannot_be_read_loses_no_student():
    def unreadable():
        raise UserError("data.path: test: no labels")

    said: list[str] = []
    observe: Any = SimpleNamespace(data=SimpleNamespace(test=unreadable))
    assert open_test_split(observe, {}, said.append) is None
    assert said == ["evaluation.test_at_end: nothing was tested: data.path: test: no labels"]
