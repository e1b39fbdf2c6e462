"""Steps whose batch is cut into parts: the same step as of the whole batch, where losses are means over images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

import train_kd
from kd_core.config import Layer, resolve
from kd_core.errors import UserError
from kd_core.run.folder import read_metrics
from kd_core.teachers import dry_run

VIT = {"name": "test_vit", "img_size": 32, "args": {"patch_size": 8}}  # without BatchNorm


def words(home: Path, name: str, *more: str) -> list[str]:
    return [
        f"--output_dir={home}", f"--cache.dir={home / 'cache'}", "--no-wandb", f"--name={name}", "--teachers=[]",
        "--kd.type=baseline", f"--model={json.dumps(VIT)}", "--data.train_size=120", "--data.batch_size=30",
        "--training.max_epochs=1", "--training.log_every=1", "--training.compare_with_baseline=false",
        "--training.optimizer=sgd", "--training.learning_rate=0.05", "--training.clip=0.5", *more,
    ]  # fmt: skip


def trained(home: Path, name: str, *more: str) -> list[dict]:
    """The rows of metrics of one epoch."""
    epochs = train_kd.epochs_of(words(home, name, *more))
    next(epochs)
    epochs.close()
    [folder] = home.glob(f"{name}-*")
    return read_metrics(folder / "metrics.jsonl")


def test_parts_make_the_step_of_the_whole_batch(tmp_path, monkeypatch, capsys):
    """Its loss, gradient and weights; clipping, averages and the schedule act once a step."""
    calls = []
    original = Accelerator.clip_grad_norm_
    monkeypatch.setattr(Accelerator, "clip_grad_norm_", lambda *a, **k: (calls.append(1), original(*a, **k))[1])
    whole = trained(tmp_path, "whole", "--training.ema.every=2")
    count = len(calls)
    assert "training.accumulate" not in capsys.readouterr().out
    parts = trained(tmp_path, "parts", "--training.ema.every=2", "--training.accumulate=3")
    assert "each step takes 3 parts of 10 images; BatchNorm, means over the batch and losses" in capsys.readouterr().out
    assert len(calls) == 2 * count == 8 and len(whole) == len(parts) == 5
    for first, second in zip(whole, parts, strict=True):
        assert first.keys() == second.keys()
        for name in first:
            if not name.startswith("perf/") and not name.endswith("step_time"):
                assert second[name] == pytest.approx(first[name], rel=1e-4, abs=1e-5), name
    assert whole[0]["train_step/gradient_norm"] > 0.5  # so that clipping matters


def test_parts_are_equal(tmp_path):
    with pytest.raises(UserError, match="training.accumulate: 4 equal parts cannot be made of data.batch_size 30"):
        train_kd.main(words(tmp_path, "none", "--training.accumulate=4"))
    with pytest.raises(UserError, match="x.yaml: training.accumulate: is 0: input should be greater than"):
        resolve([Layer("x.yaml", {"training": {"accumulate": 0}})])


def test_the_default_is_no_setting():
    config = resolve([Layer("x.yaml", {"data": {"batch_size": 64}})]).config
    assert "accumulate" not in config.model_dump()["training"] and config.part == 64
    config = resolve([Layer("x.yaml", {"data": {"batch_size": 64}, "training": {"accumulate": 4}})]).config
    assert config.model_dump()["training"]["accumulate"] == 4 and config.part == 16


def test_what_parts_have_changed_in_banks_cannot_be_undone(tmp_path, monkeypatch):
    """`skip_nonfinite` with a loss that keeps features of all images."""
    original = dry_run.build_method

    def with_banks(*arguments):
        method = original(*arguments)
        method.large = ("banks",)
        method.register_buffer("banks", torch.zeros(2))
        return method

    monkeypatch.setattr(dry_run, "build_method", with_banks)
    with pytest.raises(UserError, match="training.accumulate: must be 1 with training.skip_nonfinite and a fe"):
        train_kd.main(words(tmp_path, "banks", "--training.accumulate=3", "--training.skip_nonfinite=1"))
