"""Drawing values: distributions, grids and pruners."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import optuna
import pytest
from scipy import stats
from sweep_sandbox import Sandbox

from kd_core.errors import UserError
from kd_sweeps.samplers import BandPruner, create_pruner, create_sampler, draw, suggest
from kd_sweeps.sweep_file import DISTRIBUTIONS, _Reader, read_sweep


def draws(spec: dict[str, Any], number: int = 1000) -> list[Any]:
    """Values of one parameter, drawn as a random sweep draws them."""
    path = Path("s.yaml")
    parameter = _Reader(path).parameter("parameters.a", ("a",), spec)
    assert parameter
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    return [suggest(study.ask(), parameter) for _ in range(number)]


LOW, HIGH = 0.01, 10.0


CONTINUOUS: dict[str, tuple[dict[str, Any], Any]] = {
    "uniform": ({"min": -1.0, "max": 3.0}, stats.uniform(-1, 4)),
    "log_uniform": ({"min": -3, "max": 2}, stats.loguniform(2.718281828**-3, 2.718281828**2)),
    "log_uniform_values": ({"min": LOW, "max": HIGH}, stats.loguniform(LOW, HIGH)),
    "inv_log_uniform": ({"min": -3, "max": 2}, stats.loguniform(2.718281828**-2, 2.718281828**3)),
    "inv_log_uniform_values": ({"min": LOW, "max": HIGH}, stats.loguniform(LOW, HIGH)),
    "normal": ({"mu": 2, "sigma": 0.5}, stats.norm(2, 0.5)),
    "log_normal": ({"mu": 1, "sigma": 0.5}, stats.lognorm(s=0.5, scale=2.718281828)),
    "beta": ({"a": 2, "b": 5}, stats.beta(2, 5)),
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_distributions(name: str) -> None:
    spec, reference = CONTINUOUS[name]
    assert stats.kstest(draws({"distribution": name, **spec}), reference.cdf).pvalue > 0.01


@pytest.mark.parametrize("name", ["uniform", "log_uniform", "log_uniform_values", "normal", "log_normal", "beta"])
def test_quantized_distributions(name: str) -> None:
    spec, reference = CONTINUOUS[name]
    q = 0.1
    values = draws({"distribution": f"q_{name}", **spec, "q": q})
    assert all(value == float(f"{round(value / q) * q:.12g}") for value in values)  # multiples, without noise
    for edge in sorted(set(values)):
        share = sum(value <= edge for value in values) / len(values)
        assert share == pytest.approx(reference.cdf(edge + q / 2), abs=0.05)
    assert all(isinstance(value, int) for value in draws({"distribution": f"q_{name}", **spec, "q": 1}, 20))


def test_discrete_distributions() -> None:
    assert draws({"value": [1, None]}, 2) == [[1, None]] * 2
    counts = [draws({"min": 2, "max": 4}).count(value) for value in (2, 3, 4)]
    assert sum(counts) == 1000 and stats.chisquare(counts).pvalue > 0.01
    values = ["a", [1, 2], None, True, 1]
    drawn = draws({"values": values})
    counts = [sum(repr(value) == repr(other) for other in drawn) for value in values]
    assert sum(counts) == 1000 and stats.chisquare(counts).pvalue > 0.01
    drawn = draws({"values": ["a", "b", "c"], "probabilities": [0.7, 0.3, 0.0]})
    assert stats.binomtest(drawn.count("a"), 1000, 0.7).pvalue > 0.01
    assert "c" not in drawn


def test_every_distribution_has_been_tested() -> None:
    quantized = {"q_uniform", "q_log_uniform", "q_log_uniform_values", "q_normal", "q_log_normal", "q_beta"}
    discrete = {"constant", "categorical", "categorical_w_probabilities", "int_uniform"}
    assert set(DISTRIBUTIONS) == {*CONTINUOUS, *quantized, *discrete}


@pytest.mark.parametrize(
    ("early", "bands"),
    [
        ({"min_iter": 3}, [3, 9, 27, 81]),
        ({"min_iter": 10, "eta": 3.0}, [10, 30]),
        ({"min_iter": 81}, [81]),
        ({"max_iter": 81, "s": 2}, [9, 27]),
        ({"max_iter": 27, "s": 2, "eta": 2}, [6, 13]),
        ({"max_iter": 27, "s": 3}, [1, 3, 9]),
        ({"max_iter": 4, "s": 3}, [1]),
        ({"max_iter": 300, "s": 2}, [33, 100]),
    ],
)
def test_bands_are_those_of_wandb(early: dict[str, Any], bands: list[int], sandbox: Sandbox) -> None:
    assert [step for step in range(1, 301) if step in pruner_of(sandbox, **early).bands] == bands


def pruner_of(sandbox: Sandbox, **early: Any) -> Any:
    """The pruner of a sweep whose trials have 81 epochs."""
    sandbox.sweep({"x": {"values": [1]}}, early_terminate={"type": "hyperband", **early})
    return create_pruner(read_sweep(sandbox.file), 81)


def test_settings_without_a_band_are_refused(sandbox: Sandbox) -> None:
    with pytest.raises(UserError, match="early_terminate.max_iter: is 2; must be at least eta, which is 3"):
        pruner_of(sandbox, max_iter=2, s=1)


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_the_best_share_of_a_band_goes_on(direction: str) -> None:
    """Each trial counts once, whatever came after it; NaN is stopped and counts for nothing."""
    study = optuna.create_study(direction=direction, pruner=BandPruner([2, 4], 3))
    sign = 1 if direction == "maximize" else -1

    def stopped(value: float, step: int = 2, trial: optuna.Trial | None = None) -> bool:
        trial = trial or study.ask()
        trial.report(sign * value, step)
        return trial.should_prune()

    first = study.ask()
    assert not stopped(math.nan, 1, first) and not stopped(5.0, 2, first)
    assert [stopped(value) for value in (4.0, math.nan, 5.0, 6.0, 5.0)] == [True, True, False, False, True]
    assert not stopped(5.5)  # the second of six
    assert stopped(5.0)  # the third of seven
    assert not stopped(0.0, 3, first) and not stopped(0.0, 4, first)  # alone at its band
    assert not stopped(-1.0, 5, first) and not stopped(-1.0, 12, first)  # there is no further band


def test_an_interrupted_trial_counts_once() -> None:
    """Its attempts would fill the best share, and no other could pass."""
    study = optuna.create_study(direction="maximize", pruner=BandPruner([2], 2))
    best = study.ask()
    for _ in range(4):
        best.report(9.0, 2)
        assert not best.should_prune()
        study.tell(best, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial({}, user_attrs={"continues": best.number})
        best = study.ask()
    best.report(9.0, 2)
    assert not best.should_prune()
    for value, stopped in ((1.0, True), (2.0, True), (3.0, False)):  # of four two go on
        trial = study.ask()
        trial.report(value, 2)
        assert trial.should_prune() == stopped


def test_every_trial_is_judged_at_every_band_against_all_others(sandbox: Sandbox) -> None:
    """As W&B does; in Hyperband's brackets half of them would pass the first band unseen."""
    sandbox.sweep({"x": {"values": [1]}}, early_terminate={"type": "hyperband", "min_iter": 2, "eta": 3})
    study = optuna.create_study(direction="maximize", pruner=create_pruner(read_sweep(sandbox.file), 20))
    ends = []
    for number in range(12):  # each worse than those before
        trial = study.ask()
        for step in range(1, 21):
            trial.report(-number, step)
            if trial.should_prune():
                break
        ends.append(step)
        study.tell(trial, 0.0)
    assert ends == [20, *[2] * 11]


def test_bayes_finds_better_values_than_random(sandbox: Sandbox) -> None:
    parameters = {
        "lr": {"distribution": "log_uniform_values", "min": 1.0e-5, "max": 1.0},
        "t": {"min": 1.0, "max": 20.0},
        "alpha": {"distribution": "beta", "a": 2, "b": 2},
        "kind": {"values": ["a", "b", "c"]},
    }

    def objective(values: dict[str, Any]) -> float:
        good = {"a": 0.0, "b": -0.3, "c": -0.6}[values["kind"]]
        size = abs(math.log10(values["lr"]) + 2.5)
        return good - 0.3 * size - abs(values["t"] - 6) / 20 - abs(values["alpha"] - 0.3)

    means = {}
    for method in ("random", "bayes"):
        sweep = read_sweep(sandbox.sweep(parameters, method=method))
        best = []
        for seed in range(6):
            study = optuna.create_study(direction="maximize", sampler=create_sampler(sweep, seed=seed))
            for _ in range(30):
                trial = study.ask()
                study.tell(trial, objective(draw(sweep, trial)))
            best.append(study.best_value)
        means[method] = statistics.mean(best)
    assert means["bayes"] > means["random"] + 0.03
