"""The comparison of two checkouts sees every difference, and none in what the clock and the memory decide."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from same_results import METHODS, Checkout, cases, differences

import kd_methods

ROW = {"epoch": 1, "val/accuracy": 0.5, "perf/epoch_time": 1.0, "perf/images_per_second": 9.0}


def results(home: Path, row: dict = ROW, weight: float = 1.0, rows: int = 2):
    """Of a checkout that has trained one run."""
    run = home / "out" / "run-ab12cd34"
    (run / "student").mkdir(parents=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(rows)))
    (run / "summary.json").write_text(json.dumps({"kd_type": "baseline", "student_model": "x"}))
    save_file({"a": torch.full((2,), weight), "b": torch.zeros(3)}, run / "student" / "model.safetensors")
    return Checkout(home, home).results("out")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, []),
        ({"row": {**ROW, "perf/epoch_time": 2.0, "perf/images_per_second": 1.0}}, []),
        ({"row": {**ROW, "val/accuracy": 0.5000001}}, ["run baseline x: metrics, row 1 of 2"]),
        ({"rows": 3}, ["run baseline x: metrics, 2 | 3 rows"]),
        ({"weight": 1.0000001}, ["run baseline x: weights, 1 of 2 tensors"]),
    ],
)
def test_what_differs(tmp_path, change, found):
    assert differences(results(tmp_path / "ours"), results(tmp_path / "theirs", **change)) == found


def test_every_method_is_trained_in_each_way():
    assert set(METHODS) == set(kd_methods.names())
    ways = ("one process", "two processes", "stopped and resumed")
    assert {f"{method}, {way}" for method in METHODS for way in ways} < set(cases(quick=False))


def test_methods_that_the_other_checkout_lacks_are_left_out_and_said(tmp_path, capsys):
    (tmp_path / "kd_methods").mkdir()
    (tmp_path / "kd_methods" / "dynamic.py").touch()
    assert {name.partition(",")[0] for name in cases(True, tmp_path)} == {"dynamic", "trial of a local sweep"}
    assert "aekd, which the other lacks" in capsys.readouterr().out
