"""Training with `augment.second`: student and teachers see a second view of each image, cached or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cut_off import cut_off_at
from recipe_runs import FIXED, STUDENT, assert_same, trained, without_caches, words

import train_kd
from kd_core.config import Layer, resolve
from kd_core.errors import UserError
from kd_core.run.folder import read_metrics
from kd_core.teachers.logits import TeacherLogits

STRONG = {"second": {"randaugment": {}, "cutout": 8}}
CRLD = ("--kd.loss=crld", "--kd.crld.weak_threshold=0.5", "--kd.crld.strong_threshold=0")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("second")


@pytest.fixture(scope="module")
def online(home, digits_teachers) -> Path:
    """A run whose teachers run in every step, on fixed views."""
    with without_caches():
        return trained(home, digits_teachers, *FIXED, *CRLD, name="online", augment=STRONG)


def test_cached_logits_of_both_views_train_as_computed_ones(home, online, digits_teachers, monkeypatch):
    assert_same(trained(home, digits_teachers, *FIXED, *CRLD, name="cold", augment=STRONG), online)
    abouts = [json.loads(path.read_text()) for path in (home / "cache" / "logits").glob("*/about.json")]
    assert sum("second" in json.dumps(about["parts"]["view"]) for about in abouts) == 2  # of each teacher
    monkeypatch.setattr(TeacherLogits, "_compute", lambda *a, **k: pytest.fail("a teacher was run"))
    warm = trained(home, digits_teachers, *FIXED, *CRLD, name="warm", augment=STRONG)
    assert_same(warm, online)
    rows = read_metrics(warm / "metrics.jsonl")
    assert {row["perf/teacher_cache_hit_rate"] for row in rows if "perf/epoch_time" in row} == {1}


def test_a_run_stopped_within_an_epoch_continues_bit_for_bit(tmp_path, online, digits_teachers):
    more = (*FIXED[:-1], *CRLD, "--training.save_every_steps=3")
    with cut_off_at(6):
        trained(tmp_path, digits_teachers, *more, name="stopped", augment=STRONG)
    assert_same(trained(tmp_path, digits_teachers, *more, name="stopped", augment=STRONG), online)


def first_step(home: Path, teachers: list[Path], *more: str, **options: Any) -> tuple[dict[str, Any], list[Any]]:
    """The first row of steps, and what the method was called with in the first step."""
    calls: list[Any] = []
    original = train_kd.prepare

    def spying(*arguments: Any, **more: Any) -> Any:
        setup = original(*arguments, **more)
        forward = setup.method.forward
        setup.method.forward = lambda *a, **k: (calls.append(a), forward(*a, **k))[1]
        return setup

    train_kd.prepare = spying
    try:
        epochs = train_kd.epochs_of(words(home, teachers, "--training.max_epochs=1", "--fresh", *more, **options))
        next(epochs)
        epochs.close()
    finally:
        train_kd.prepare = original
    folder = max((home / "runs").glob("*"), key=lambda path: path.stat().st_mtime)
    return next(row for row in read_metrics(folder / "metrics.jsonl") if "train_step/step" in row), calls[0]


def test_views_are_unlike_and_each_is_given_to_all(home, digits_teachers):
    _, (student, teachers, _) = first_step(home, digits_teachers, *CRLD, name="views", augment=STRONG)
    assert student.second.shape == student.logits.shape == (30, 10)
    assert teachers.second.shape == teachers.logits.shape == (2, 30, 10)
    for first, second in ((student.logits, student.second), (teachers.logits, teachers.second)):
        assert ((first - second).abs().amax(-1) > 1e-3).float().mean() > 0.9
    # The teachers recognize most strong views, so they are views of the same images.
    assert (teachers.logits.argmax(-1) == teachers.second.argmax(-1)).float().mean() > 0.5


def test_one_pass_and_two_give_the_same_where_images_are_normalized_alone(home, digits_teachers):
    plain = json.dumps({**STUDENT, "args": {**STUDENT["args"], "drop_rate": 0.0}})
    rows = [
        first_step(home, digits_teachers, *CRLD, f"--model={plain}", name=f"in{passes}", augment={**STRONG, **more})[0]
        for passes, more in ((1, {}), (2, {"passes": 2}))
    ]
    for name in ("train_step/loss_total", "train_step/loss_label", "train_step/loss_distill"):
        assert rows[0][name] == pytest.approx(rows[1][name], rel=1e-4), name


@pytest.mark.parametrize(
    "more", [("--kd.loss=mlkd",), (*CRLD, '--kd.features=[{"loss": "at", "student": [-1], "teacher": [-1]}]')]
)
def test_other_losses_of_two_views(more, home, digits_teachers):
    row, (student, *_) = first_step(home, digits_teachers, *more, name="other", augment=STRONG)
    assert row["train_step/loss_total"] > 0 and student.second is not None
    if student.features:
        assert [len(values) for values in student.features] == [30]  # of the first view alone


def test_a_student_alone_learns_both_views(home, digits_teachers):
    row, (student, *_) = first_step(
        home, digits_teachers, "--kd.type=baseline", "--teachers=[]", name="alone", augment=STRONG
    )
    labels = row["train_step/loss_label"]
    assert labels == pytest.approx(2 * torch.tensor(10.0).log().item(), rel=0.2)  # of two untrained views


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kd": {"type": "average", "loss": "crld"}}, r"kd.loss: 'crld' compares two views.*--augment.second="),
        ({"augment": STRONG, "kd": {"type": "average"}}, "augment.second: nothing in `kd` uses a second view"),
        ({"augment": {**STRONG, "mixup": {}}}, "augment: second: mixup and cutmix would give both views"),
        ({"augment": {"second": {"cutmix": {}}}}, "augment: second: mixup and cutmix would give both views"),
        ({"augment": {"passes": 2}}, "augment: passes: 2 is for two views"),
        ({"augment": STRONG, "cache": {"mode": "lazy"}}, "cache.mode: 'lazy' cannot hold second views"),
        ({"augment": STRONG, "teachers": [{"logits": "a.safetensors"}]}, r"teachers\[0\].logits: a file holds logits"),
    ],
)
def test_settings_that_do_not_go_with_a_second_view(changes, message):
    settings = {"kd": {"type": "average", "loss": "crld"}, "teachers": [{"weights": "a.pt"}]}
    with pytest.raises(UserError, match=message):
        resolve([Layer("x.yaml", {**settings, **changes})])
