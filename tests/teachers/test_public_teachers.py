"""Public CIFAR-100 checkpoints as teachers: their published test accuracies, in the table that a run closes with."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet
import pytest

import train_kd

# Test images that the networks of GitHub chenyaofo/pytorch-cifar-models (BSD-3) name rightly: of all, which are the
# published accuracies, and of the first 2,000, counted in the same plain loop.  The ensemble is the mean of the four's
# probabilities.
RIGHT = {
    10_000: {20: 6883, 32: 7016, 44: 7163, 56: 7263, "ensemble": 7705},
    2_000: {20: 1390, 32: 1400, 44: 1444, 56: 1455, "ensemble": 1544},
}


@pytest.mark.cifar100
@pytest.mark.parametrize("images", [2_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_public_teachers_show_their_published_accuracies(
    cifar100: Path, public_teachers: Path, tmp_path: Path, capsys, images: int
):
    """Of the training images a student sees 128, which changes nothing here."""
    (tmp_path / "data").mkdir()
    for split, count in (("train", 128), ("test", images)):
        first = pyarrow.parquet.ParquetFile(sorted(cifar100.glob(f"{split}-*.parquet"))[0])
        some = next(first.iter_batches(batch_size=count))
        table = pyarrow.Table.from_batches([some]).replace_schema_metadata(first.schema_arrow.metadata)
        pyarrow.parquet.write_table(table, tmp_path / "data" / f"{split}-00000-of-00001.parquet")

    *depths, _ = RIGHT[images]
    expected = [100 * count / images for count in RIGHT[images].values()]
    teachers = ", ".join(
        f"{{model: cifar_resnet{depth}, weights: {public_teachers}/cifar100_resnet{depth}.pth}}" for depth in depths
    )
    train_kd.main([
        "--no-wandb", f"--output_dir={tmp_path / 'runs'}", f"--cache.dir={tmp_path / 'cache'}", "--name=public",
        "--data.source=parquet", f"--data.path={tmp_path / 'data'}", "--data.val_size=0", "--data.batch_size=64",
        "--model={name: cifar_resnet8}", "--kd.type=average", f"--teachers=[{teachers}]", "--training.max_epochs=1",
        "--training.compare_with_baseline=false", "--evaluation.test_at_end=true", "--evaluation.report=false",
        "--evaluation.batch_size=100",
    ])  # fmt: skip
    shown = dict(re.findall(r"^(teacher.*?)  .* (\d+\.\d\d)% +[\d,]+$", capsys.readouterr().out, re.MULTILINE))
    names = [f"teacher {place} (cifar_resnet{depth})" for place, depth in enumerate(depths)]
    close = 100 * 5 / images  # logits are kept in 16 bits, so five images may change
    wanted = dict(zip([*names, "teachers' ensemble"], expected, strict=True))
    assert {name: float(value) for name, value in shown.items()} == pytest.approx(wanted, abs=close)

    [path] = (tmp_path / "runs").glob("public-*/summary.json")
    summary = json.loads(path.read_text())
    kept = [100 * row["test_accuracy"] for row in (*summary["teachers"], summary["ensemble"])]
    assert kept == pytest.approx(expected, abs=close)
    assert all("saw_validation" not in row for row in summary["teachers"])  # there is no validation split to have seen
