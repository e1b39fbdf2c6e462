"""Public CIFAR-100 checkpoints as teachers: their published test accuracies, in the table that a run closes with."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet
import pytest

import train_kd

# GitHub chenyaofo/pytorch-cifar-models (BSD-3), in percent; the ensemble is the mean of the four's probabilities.
PUBLISHED = {20: 68.83, 32: 70.16, 44: 71.63, 56: 72.63}
ENSEMBLE = 77.05


@pytest.mark.cifar100
def test_public_teachers_show_their_published_accuracies(cifar100: Path, public_teachers: Path, tmp_path: Path, capsys):
    """On all 10,000 test images; of the training images a student sees 128, which changes nothing here."""
    first = pyarrow.parquet.ParquetFile(sorted(cifar100.glob("train-*.parquet"))[0])
    some = next(first.iter_batches(batch_size=128))
    (tmp_path / "data").mkdir()
    table = pyarrow.Table.from_batches([some]).replace_schema_metadata(first.schema_arrow.metadata)
    pyarrow.parquet.write_table(table, tmp_path / "data" / "train-00000-of-00001.parquet")
    for file in cifar100.glob("test-*.parquet"):
        (tmp_path / "data" / file.name).symlink_to(file.resolve())

    teachers = ", ".join(
        f"{{model: cifar_resnet{depth}, weights: {public_teachers}/cifar100_resnet{depth}.pth}}" for depth in PUBLISHED
    )
    train_kd.main([
        "--no-wandb", f"--output_dir={tmp_path / 'runs'}", f"--cache.dir={tmp_path / 'cache'}", "--name=public",
        "--data.source=parquet", f"--data.path={tmp_path / 'data'}", "--data.val_size=0", "--data.batch_size=64",
        "--model={name: cifar_resnet8}", "--kd.type=average", f"--teachers=[{teachers}]", "--training.max_epochs=1",
        "--training.compare_with_baseline=false", "--evaluation.test_at_end=true", "--evaluation.report=false",
        "--evaluation.batch_size=500",
    ])  # fmt: skip
    shown = dict(re.findall(r"^(teacher.*?)  .* (\d+\.\d\d)% +[\d,]+$", capsys.readouterr().out, re.MULTILINE))
    names = [f"teacher {place} (cifar_resnet{depth})" for place, depth in enumerate(PUBLISHED)]
    expected = dict(zip([*names, "teachers' ensemble"], [*PUBLISHED.values(), ENSEMBLE], strict=True))
    assert {name: float(value) for name, value in shown.items()} == pytest.approx(expected, abs=0.05)

    [path] = (tmp_path / "runs").glob("public-*/summary.json")
    summary = json.loads(path.read_text())
    kept = [100 * row["test_accuracy"] for row in (*summary["teachers"], summary["ensemble"])]
    assert kept == pytest.approx([*PUBLISHED.values(), ENSEMBLE], abs=0.05)
    assert all("saw_validation" not in row for row in summary["teachers"])  # there is no validation split to have seen
