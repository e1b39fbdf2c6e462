"""Short runs with `augment`, and whether two of them are equal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from run_metrics import times_apart
from safetensors.torch import load_file

import train_kd
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


def without_caches() -> Any:
    """Within the block, teachers run in every step whatever `cache.mode` is, on the views that it fixes."""
    return patch.object(TeacherLogits, "open_caches", lambda self, images, notify: None)
