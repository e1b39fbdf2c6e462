"""The two plots beside the storage."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import optuna
import pytest
import yaml
from matplotlib import pyplot
from sweep_sandbox import GOOD

from kd_sweeps import plots
from kd_sweeps.samplers import create_sampler, draw
from kd_sweeps.sweep_file import Parameter, read_sweep


@pytest.mark.parametrize("number", [2, 5, 15])
def test_figures(number: int, tmp_path: Path) -> None:
    kinds: list[dict[str, Any]] = [
        {"distribution": "log_uniform_values", "min": 1.0e-5, "max": 0.1},
        {"values": ["average", "ca_weighted", "dynamic", "confidence"]},
        {"min": 1, "max": 64},
        {"min": 0.0, "max": 1.0},
        {"values": [True, False]},
    ]
    names = ["training.learning_rate", "kd.type", "training.warmup_epochs", "kd.alpha", "kd.standardize"]
    parameters = {
        names[i] if i < 5 else f"section{i}.{names[i % 5].split('.')[1]}": kinds[i % 5] for i in range(number)
    }
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump({**GOOD, "method": "random", "parameters": parameters}))
    sweep = read_sweep(file)
    study = optuna.create_study(direction="maximize", sampler=create_sampler(sweep, seed=1))
    for i in range(30):
        trial = study.ask()
        result = 0.5 + 0.4 * (i / 30) ** 2
        trial.set_user_attr("values", draw(sweep, trial))
        trial.set_user_attr("best", result)
        study.tell(trial, result)
    image = plots.draw_parallel_coordinates(sweep, study.trials)
    assert image.startswith(b"\x89PNG")
    width = int.from_bytes(image[16:20], "big")
    assert 500 < width < 700 + 150 * number
    assert plots.draw_importance(study, sweep, [p.name for p in sweep.varied], 30).startswith(b"\x89PNG")


GRID = {"kd.temperature": [1.0, 2.0, 4.0], "training.seed": [0, 1]}


def plotted(folder: Path, parameters: dict[str, list[Any]], results: list[float]) -> tuple[set[str], str]:
    """The figures of a grid whose first trials had these results, and what was said about them."""
    given = {name: {"values": values} for name, values in parameters.items()}
    (folder / "s.yaml").write_text(yaml.safe_dump({**GOOD, "method": "grid", "parameters": given}))
    sweep = read_sweep(folder / "s.yaml")
    study = optuna.create_study(direction="maximize", sampler=create_sampler(sweep))
    for index, result in enumerate(results):
        trial = study.ask()
        trial.set_user_attr("index", index)
        trial.set_user_attr("values", draw(sweep, trial))
        trial.set_user_attr("best", result)
        study.tell(trial, result)
    said: list[str] = []
    shared: Any = SimpleNamespace(
        sweep=sweep, storage=folder / "study.journal", study=study, trials=lambda: study.trials
    )
    plots.plot(shared, SimpleNamespace(say=said.append))  # type: ignore[arg-type]
    return {path.stem for path in folder.glob("*.png")}, "\n".join(said)


@pytest.mark.parametrize(
    ("parameters", "results", "why"),
    [
        (GRID, [0.5] * 6, "{metric} is the same in all 6 trials"),
        (GRID, [0.1 + 0.2, 0.3, 0.3, 0.3, 0.3, 0.3], "{metric} is the same in all 6 trials"),  # but for rounding
        (GRID, [0.0] * 6, "{metric} is the same in all 6 trials"),
        ({**GRID, "training.seed": [0]}, [0.5, 0.6, 0.7], "only kd.temperature took more than one value"),
        ({"kd.temperature": [1.0, 2.0]}, [0.5, 0.6], "only kd.temperature took more than one value"),
        (GRID, [0.5, 0.6, 0.7], "3 finished trials are too few for 2 parameters: needs 4"),
        (GRID, [0.5, 0.6], "only training.seed took more than one value"),  # of six trials two
    ],
)
def test_no_importance_is_drawn_without_informative_trials(tmp_path, parameters, results, why):
    figures, said = plotted(tmp_path, parameters, results)
    assert figures == {"parallel_coordinates"}
    assert said.startswith("no importance.png: ") and why.format(metric=GOOD["metric"]["name"]) in said


def test_importance_is_shared_by_what_took_several_values(tmp_path, monkeypatch):
    """Optuna gives parameters that never changed a share, too."""
    shares: dict[str, float] = {}

    def remember(study, sweep, names, trials):
        assert trials == 6
        shares.update(plots.importances(study, study.trials, sweep))
        return draw_importance(study, sweep, names, trials)

    draw_importance = plots.draw_importance
    monkeypatch.setattr(plots, "draw_importance", remember)
    one_value = {**GRID, "training.max_epochs": [3], "kd.loss": ["kl", "kl"]}
    figures, said = plotted(tmp_path, one_value, [0.5, 0.5, 0.6, 0.6, 0.9, 0.91])
    assert figures == {"parallel_coordinates", "importance"} and not said
    assert list(shares) == ["kd.temperature", "training.seed"] and sum(shares.values()) == pytest.approx(1)
    assert shares["kd.temperature"] > shares["training.seed"]


@pytest.mark.parametrize("seed", range(5))
def test_the_parameter_that_matters_is_the_most_important(tmp_path, monkeypatch, seed):
    """Of 24 trials, as in sweeps/grid.yaml: five points, with noise of half a point; two parameters do nothing."""
    shares: list[dict[str, float]] = []
    draw_importance = plots.draw_importance
    monkeypatch.setattr(
        plots, "draw_importance",
        lambda study, sweep, names, trials: shares.append(plots.importances(study, study.trials, sweep))
        or draw_importance(study, sweep, names, trials),
    )  # fmt: skip
    grid = {"kd.alpha": [0.3, 0.9], "kd.temperature": [1.0, 2.0, 4.0, 8.0], "training.seed": [0, 1, 2]}
    noise = random.Random(seed)
    results = [0.5 + 0.05 * (index >= 12) + noise.gauss(0, 0.005) for index in range(24)]
    plotted(tmp_path, grid, results)
    [found] = shares
    assert next(iter(found)) == "kd.alpha" and found["kd.alpha"] > 0.9


ODD: dict[str, list[Any]] = {
    "one value, as often as there are trials": [3, 3],
    "names that look like formulas": ["$x^{$", "$\\frac$"],
    "long names with one end": ["a" * 50, "b" + "a" * 49],
    "values of several types": [None, [1, 2], {"x": 1}, True, 1, "1.5"],
    "many numbers": list(range(60)),
    "tiny and huge": [1e-300, 1e299],
}


@pytest.mark.parametrize("name", ODD)
def test_odd_names_and_values_are_drawn(tmp_path, name):
    own = {f"{name} " * 3: ODD[name], "kd.temperature": [1.0, 2.0]}
    results = [0.1 * index for index in range(2 * len(ODD[name]))]
    figures, _ = plotted(tmp_path, own, results[: 2 * len({repr(value) for value in ODD[name]})])
    assert "parallel_coordinates" in figures


def test_axes_show_what_the_trials_got():
    """Not what Optuna has drawn: the index of a list, or the quantile of a normal distribution."""
    spread = Parameter(("a",), "normal", {"mu": 0, "sigma": 1})
    assert plots.column(spread, [-3.5, 2.0])[1] == [-3.5, 2.0]
    rate = Parameter(("lr",), "log_uniform_values", {"min": 1e-5, "max": 0.1})
    axis, _ = plots.column(rate, [1e-4, 1e-2])
    assert axis == optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)
    listed = Parameter(("b",), "categorical", {"values": [[1], "u"]})
    assert plots.column(listed, ["u", [1], "u"])[1] == ["u", "[1]", "u"]


def test_settings_of_matplotlib_stay(tmp_path):
    before = dict(matplotlib.rcParams)
    assert plotted(tmp_path, GRID, [0.5, 0.5, 0.6, 0.6, 0.9, 0.91])[0] == {"parallel_coordinates", "importance"}
    assert {key: value for key, value in matplotlib.rcParams.items() if key != "backend"} == {
        key: value for key, value in before.items() if key != "backend"
    }
    assert not pyplot.get_fignums()
