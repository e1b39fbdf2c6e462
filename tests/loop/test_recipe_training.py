"""Training with `augment`: cached is online, resumed is uninterrupted, two processes are one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from run_metrics import times_apart
from safetensors.torch import load_file
from test_distributed import ranks

import train_kd
from kd_core.run import folder as run_folder
from kd_core.run.folder import read_metrics
from kd_core.teachers.logits import TeacherLogits

STUDENT = {"name": "test_vit", "img_size": 32, "args": {"patch_size": 8, "depth": 2, "embed_dim": 48, "drop_rate": 0.2}}
FIXED = ("--cache.mode=fixed", "--cache.views=2", "--fresh")
EVERYTHING = {
    "resized_crop": {"scale": [0.5, 1.0]}, "color_jitter": {}, "randaugment": {}, "cutout": 8, "erasing": {},
    "mixup": {}, "cutmix": {},
}  # fmt: skip


def words(home: Path, teachers: list[Path], *more: str, name: str = "tried", augment: dict | None = None) -> list[str]:
    team = [{"weights": str(teachers[0])}, {"weights": str(teachers[1])}]
    return [
        f"--output_dir={home / 'runs'}", f"--cache.dir={home / 'cache'}", "--no-wandb", f"--name={name}",
        f"--model={json.dumps(STUDENT)}", f"--teachers={json.dumps(team)}", "--kd.type=average",
        f"--augment={json.dumps(EVERYTHING if augment is None else augment)}", "--data.train_size=120",
        "--data.batch_size=30", "--training.max_epochs=2", "--training.log_every=1",
        "--training.compare_with_baseline=false", "--evaluation.report=false", *more,
    ]  # fmt: skip


def trained(home: Path, teachers: list[Path], *more: str, **options) -> Path:
    """The folder of a finished run."""
    name = options.setdefault("name", "tried")
    train_kd.main(words(home, teachers, *more, **options))
    [folder] = (home / "runs").glob(f"{name}-*")
    return folder


def assert_same(first: Path, second: Path) -> None:
    """Rows of metrics and students are equal, bit for bit."""
    found, expected = (times_apart(read_metrics(path / "metrics.jsonl")) for path in (first, second))
    assert found == expected and len(found) == 1 + 8 + 2
    latest = Path("checkpoints/latest/student/model.safetensors")
    ours, theirs = (load_file(path / latest) for path in (first, second))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("recipes")


@pytest.fixture(scope="module")
def online(home, digits_teachers) -> Path:
    """A run whose teachers run in every step, on fixed views."""
    original = TeacherLogits.open_caches
    TeacherLogits.open_caches = lambda self, images, notify: None
    try:
        return trained(home, digits_teachers, *FIXED, name="online")
    finally:
        TeacherLogits.open_caches = original


def test_cached_logits_of_mixed_images_train_as_computed_ones(home, online, digits_teachers, monkeypatch):
    assert_same(trained(home, digits_teachers, *FIXED, name="cold"), online)
    monkeypatch.setattr(TeacherLogits, "_compute", lambda *a, **k: pytest.fail("a teacher was run"))
    warm = trained(home, digits_teachers, *FIXED, name="warm")
    assert_same(warm, online)
    rows = [row for row in read_metrics(warm / "metrics.jsonl") if row.get("epoch")]
    assert [row["perf/teacher_cache_hit_rate"] for row in rows] == [1, 1]


def test_a_run_stopped_within_an_epoch_continues_bit_for_bit(home, tmp_path, digits_teachers, monkeypatch, capsys):
    """Views that are drawn anew in each epoch; `auto` says that the teachers run, and why."""
    whole = trained(home, digits_teachers, name="whole")
    assert "teachers run in every step: hardly any view of augment.resized_crop, " in capsys.readouterr().out
    original = run_folder.MetricsFile.append

    def cut(self, row):
        original(self, row)
        if row.get("train_step/step") == 7:
            raise KeyboardInterrupt

    more = words(tmp_path, digits_teachers, "--training.save_every_steps=3")
    monkeypatch.setattr(run_folder.MetricsFile, "append", cut)
    with pytest.raises(KeyboardInterrupt):
        train_kd.main(more)
    monkeypatch.setattr(run_folder.MetricsFile, "append", original)
    train_kd.main(more)
    [folder] = (tmp_path / "runs").glob("tried-*")
    assert_same(folder, whole)


def test_two_processes_train_as_one(home, tmp_path, digits_teachers):
    """A network without dropout and BatchNorm, whose rounding alone differs."""
    model = f"--model={json.dumps({'args': {'drop_rate': 0.0}})}"
    rows = []
    for processes in (1, 2):
        ranks(processes, "train_kd.py", *words(tmp_path, digits_teachers, model, *FIXED, name=f"by{processes}"))
        [folder] = (tmp_path / "runs").glob(f"by{processes}-*")
        rows.append([row for row in read_metrics(folder / "metrics.jsonl") if "train_step/step" in row])
    assert len(rows[0]) == len(rows[1]) == 8
    for one, two in zip(*rows, strict=True):
        assert two["train_step/loss_total"] == pytest.approx(one["train_step/loss_total"], rel=1e-4)
