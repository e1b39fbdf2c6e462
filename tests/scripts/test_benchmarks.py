"""The benchmarks run, and their verdicts follow from their figures.  What they measure is not judged here."""

import ast
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import _data, _measure
from benchmarks.__main__ import PARTS, first_line
from benchmarks._measure import (
    Comparison,
    Figure,
    Note,
    Options,
    Report,
    Target,
    interleave,
    interleave_beside,
    median_interval,
)

ROOT = Path(__file__).resolve().parents[2]
CHEAP = ("input", "losses", "metrics")


def command(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *words], cwd=ROOT, capture_output=True, text=True, timeout=600
    )


# ---------------------------------------------------------------------------------------------- the command


def test_cheap_parts_run(tmp_path: Path) -> None:
    done = command(*CHEAP, "--quick", "--json", str(tmp_path / "all.json"), "--plot", str(tmp_path / "all.png"))
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "all.json").read_text())
    assert set(written["parts"]) == set(CHEAP)
    assert written["machine"].keys() >= {"cpu", "cores", "torch", "threads", "date", "command"}
    assert written["machine"]["threads"] == 1
    for part in written["parts"].values():
        compared = [result for result in part["results"] if "ratio" in result]
        assert compared
        for result in compared:
            low, high = result["interval"]
            assert 0 < low <= result["ratio"] <= high < math.inf, result
    targets = [result["target"] for result in written["parts"]["input"]["results"] if "target" in result]
    assert targets == [">= 20", ">= 12", ">= 150", ">= 8"]
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")
    assert "targets met" in done.stdout and "95% interval" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("part", [part for part in PARTS if part not in CHEAP])
def test_other_parts_run(part: str, tmp_path: Path) -> None:
    done = command(part, "--quick", "--json", str(tmp_path / "part.json"))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "part.json").read_text())["parts"][part]["results"]


@pytest.mark.slow
def test_the_script_for_gpus_runs_without_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / "benchmarks" / "gpu.sh", tmp_path, "--quick"], env={**os.environ, "PYTHON": sys.executable},
        capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for precision in ("no", "bf16"):
        written = json.loads((tmp_path / f"gpu-{precision}.json").read_text())["parts"]["gpu"]["results"]
        assert {f"{precision}: step / bare", f"{precision}, channels first"} <= {result["name"] for result in written}
    assert ("no GPU" in (tmp_path / "gpu.txt").read_text()) == (not torch.cuda.is_available())


def test_an_unknown_part_is_refused_with_the_known_ones() -> None:
    done = command("inputs")
    assert done.returncode == 2
    assert "no such part: inputs" in done.stderr and all(part in done.stderr for part in PARTS)


def test_every_module_is_a_part_that_says_what_it_is_or_a_command_of_its_own() -> None:
    modules = {path.stem for path in (ROOT / "benchmarks").glob("[a-z]*.py")}
    assert modules - set(PARTS.values()) == {"tracking", "sweep_search"}
    for module in PARTS.values():
        assert first_line(module)
        tree = ast.parse((ROOT / "benchmarks" / f"{module}.py").read_text())
        assert any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in tree.body), module


# ------------------------------------------------------------------------------------------------ statistics


def test_the_interval_covers_the_true_median_at_its_nominal_rate() -> None:
    random = np.random.default_rng(1)
    draws = [median_interval(random.lognormal(0, 0.3, 25)) for _ in range(200)]
    held = sum(low <= 1 <= high for low, high in draws)
    assert 0.90 <= held / len(draws) <= 1.0


def test_the_interval_is_the_same_each_time_and_narrows_with_more_values() -> None:
    random = np.random.default_rng(0)
    few, many = random.normal(1, 0.1, 10), random.normal(1, 0.1, 400)
    assert median_interval(few) == median_interval(few)
    widths = [high - low for low, high in map(median_interval, (few, many))]
    assert widths[1] < widths[0] / 2
    assert median_interval([1.5]) == (1.5, 1.5)


def test_ratios_are_paired_round_by_round() -> None:
    """A machine that slows down as a whole leaves them alone; medians of either side would not say so."""
    mood = np.array([1.0, 3.0, 1.0, 7.0, 2.0])
    found = Comparison("own / other", list(2 * mood), list(mood), "s")
    assert found.ratio == 2 and found.interval == (2, 2)


def test_contestants_take_turns_in_alternating_order() -> None:
    calls: list[str] = []

    def contestant(name: str) -> float:
        calls.append(name)
        return len(calls)

    values = interleave({name: lambda name=name: contestant(name) for name in "ab"}, pairs=3)
    assert "".join(calls) == "ab" + "ba" + "ab" + "ba"  # the first round warms up
    assert values == {"a": [4, 5, 8], "b": [3, 6, 7]}


def test_a_reference_is_measured_beside_every_contestant() -> None:
    calls: list[str] = []

    def contestant(name: str) -> float:
        calls.append(name)
        return len(calls)

    contestants = {name: lambda name=name: contestant(name) for name in "ab"}
    values = interleave_beside(lambda: contestant("r"), contestants, pairs=2)
    assert "".join(calls) == "arbr" + "rarb" + "arbr"
    assert values == {"a": ([6, 9], [5, 10]), "b": ([8, 11], [7, 12])}


# -------------------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    "target, low, high, met",
    [
        (Target(1.05), 1.00, 1.04, True),
        (Target(1.05), 1.00, 1.06, False),  # the median may be fine: the worse end decides
        (Target(1.05), 1.05, 1.05, True),
        (Target(20, at_least=True), 21, 90, True),
        (Target(20, at_least=True), 19, 90, False),
    ],
)
def test_a_target_is_met_if_the_worse_end_of_the_interval_is_within_it(
    target: Target, low: float, high: float, met: bool
) -> None:
    assert target.met(low, high) is met
    told = _measure.verdict(target, low, high)
    assert told.startswith("met" if met else "MISSED")
    if not met:
        assert f"interval {_measure.number(low)} to {_measure.number(high)}" in told


def test_the_report_counts_targets_and_names_what_was_missed(tmp_path: Path) -> None:
    report = Report({"cpu": "some", "cores": 2, "torch": "0"})
    good = Comparison("a / b", [1.0, 1.0], [1.0, 1.0], "s", Target(1.05))
    bad = Comparison("c / b", [2.0, 2.0], [1.0, 1.0], "s", Target(1.05))
    points = [Figure(f"x={x}", x, "s", curve="growth", x=x) for x in (1, 10)]
    report.add("part", [good, bad, *points, Figure("memory", 3.0, "MiB", Target(2.0)), Note("a remark")], 1.0)
    verdicts = report.verdicts()
    assert verdicts.startswith("1 of 3 targets met")
    assert "part: c / b: MISSED" in verdicts and "part: memory: MISSED" in verdicts and "a / b" not in verdicts
    assert "a remark" in report.table("part")
    report.write_json(tmp_path / "report.json")
    records = json.loads((tmp_path / "report.json").read_text())["parts"]["part"]["results"]
    assert [record.get("met") for record in records] == [True, False, None, None, False, None]
    _measure.plot(report, tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 1000


def test_constant_teachers_give_their_first_tensors_again() -> None:
    from benchmarks.features import first_alone

    calls: list[int] = []
    repeated = first_alone(lambda number: calls.append(number) or [number])
    assert repeated(1) is repeated(2) and repeated(3) == [1] and calls == [1]


def test_quantities_have_suitable_units() -> None:
    told = [_measure.quantity(value, "s per step") for value in (2.5, 0.0123, 0.0000456)]
    assert told == ["2.5 s per step", "12.3 ms per step", "45.6 us per step"]
    assert _measure.quantity(123456.7, "images/s") == "123,457 images/s"


def test_options_shrink() -> None:
    quick = Options(pairs=2, quick=True, scratch=Path())
    assert quick.size(100, 3) == 3 and quick.few(5) == 2


# ------------------------------------------------------------------------------------------------------ data


def test_synthetic_images_are_distinct_and_readable(tmp_path: Path) -> None:
    import datasets

    folder = _data.write_parquet(tmp_path / "data", 250, 10, noise=0)
    found = datasets.load_dataset(
        "parquet", data_files=str(folder / "*.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    images = [np.asarray(image) for image in found["img"]]
    assert all(image.shape == (32, 32, 3) for image in images)
    assert len({image.tobytes() for image in images}) == 250
    assert Counter(found["label"]) == dict.fromkeys(range(10), 25)
