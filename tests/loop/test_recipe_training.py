"""Training with `augment`: cached is online, resumed is uninterrupted, two processes are one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cut_off import cut_off_at
from recipe_runs import FIXED, assert_same, trained, without_caches, words
from warm_process import ranks

import train_kd
from kd_core.run.folder import read_metrics
from kd_core.teachers.logits import TeacherLogits


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("recipes")


@pytest.fixture(scope="module")
def online(home, digits_teachers) -> Path:
    """A run whose teachers run in every step, on fixed views."""
    with without_caches():
        return trained(home, digits_teachers, *FIXED, name="online")


def test_cached_logits_of_mixed_images_train_as_computed_ones(home, online, digits_teachers, monkeypatch):
    assert_same(trained(home, digits_teachers, *FIXED, name="cold"), online)
    monkeypatch.setattr(TeacherLogits, "_compute", lambda *a, **k: pytest.fail("a teacher was run"))
    warm = trained(home, digits_teachers, *FIXED, name="warm")
    assert_same(warm, online)
    rows = [row for row in read_metrics(warm / "metrics.jsonl") if row.get("epoch")]
    assert [row["perf/teacher_cache_hit_rate"] for row in rows] == [1, 1]


def test_a_run_stopped_within_an_epoch_continues_bit_for_bit(home, tmp_path, digits_teachers, capsys):
    """Views that are drawn anew in each epoch; `auto` says that the teachers run, and why."""
    whole = trained(home, digits_teachers, name="whole")
    assert "teachers run in every step: hardly any view of augment.resized_crop, " in capsys.readouterr().out
    more = words(tmp_path, digits_teachers, "--training.save_every_steps=3")
    with cut_off_at(7):
        train_kd.main(more)
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
