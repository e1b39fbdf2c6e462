"""evaluation.test_epochs, with unlike classes and wrong labels, through the real script."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import train_kd
from kd_core.config import Layer, resolve
from kd_core.errors import UserError
from kd_core.models import build as models
from kd_core.run.folder import RunFolder, read_metrics

MORE = [
    "--data.label_noise.rate=0.3", "--data.sampler=balanced",
    "--training.class_weights=balanced", "--evaluation.test_at_end=true",
    "--evaluation.test_epochs=all",
]  # fmt: skip


def words(home: Path, *more: str) -> list[str]:
    return [
        f"--output_dir={home}", f"--cache.dir={home / 'cache'}", "--no-wandb", "--name=n", "--teachers=[]",
        "--kd.type=baseline", "--model={name: cifar_resnet8}", "--data.train_size=300", "--data.batch_size=50",
        "--training.max_epochs=3", "--training.learning_rate=0.01", "--training.compare_with_baseline=false",
        "--training.save_every_steps=2",
        *more,
    ]  # fmt: skip


def folder_of(home: Path) -> RunFolder:
    [path] = home.glob("n-*")
    return RunFolder(path)


def weights(path: Path) -> list[torch.Tensor]:
    return list(models.load_export(path).model.state_dict().values())


def test_every_epoch_is_tested_after_the_last(tmp_path, capsys):
    (tmp_path / "whole").mkdir(), (tmp_path / "parts").mkdir()
    train_kd.main(words(tmp_path / "whole", *MORE))
    printed = capsys.readouterr().out
    run = folder_of(tmp_path / "whole")
    rows, summary = read_metrics(run.metrics_file), run.summary()
    tested = [row for row in rows if "test_epochs/accuracy" in row]
    assert [row["epoch"] for row in tested] == [1, 2, 3] and list(run.kept_epochs()) == [1, 2, 3]
    assert rows.index(tested[0]) > max(place for place, row in enumerate(rows) if "train/loss_total" in row)
    accuracies = [row["test_epochs/accuracy"] for row in tested]
    assert summary["max_test_epochs_accuracy"] == max(accuracies)
    assert summary["last_test_epochs_accuracy"] == accuracies[-1]
    assert summary["final_test_accuracy"] == accuracies[summary["best_epoch"] - 1]  # selection saw validation alone
    best = accuracies.index(max(accuracies)) + 1
    sentence = f"maximum over test epochs: {max(accuracies):.2%}, after epoch {best} of 3 that were kept"
    assert sentence in printed and sentence in (run.path / "report" / "index.html").read_text()
    assert "labels are wrong on purpose (data.label_noise symmetric 0.3" in printed

    # cut off within the second epoch and resumed: the same
    again = words(tmp_path / "parts", *MORE, "--evaluation.report=false")
    epochs = train_kd.epochs_of(again)
    next(epochs)
    epochs.close()
    train_kd.main(again)
    other = folder_of(tmp_path / "parts")
    for epoch, path in run.kept_epochs().items():
        for first, second in zip(weights(path), weights(other.kept_epochs()[epoch]), strict=True):
            assert first.equal(second)
    assert [row for row in read_metrics(other.metrics_file) if "test_epochs/accuracy" in row] == tested


def test_it_needs_the_test_split():
    with pytest.raises(UserError, match="test_epochs: evaluates on the test split; give evaluation.test_at_end=true"):
        resolve([Layer("x.yaml", {"evaluation": {"test_epochs": "all"}})])


def test_nothing_is_kept_without_it(tmp_path):
    train_kd.main(words(tmp_path, "--training.max_epochs=1", "--evaluation.report=false"))
    run = folder_of(tmp_path)
    assert not run.kept_epochs() and not json.dumps(run.summary()).count("test_epochs")
