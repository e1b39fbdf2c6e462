"""How trials get their values, by Optuna's samplers, and when poor trials are stopped, at hyperband's bands."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial
from scipy.special import betaincinv

from kd_core.errors import UserError
from kd_sweeps.sweep_file import Parameter, Sweep, tidy


def suggest(trial: optuna.Trial, parameter: Parameter) -> Any:
    """The value of one parameter in one trial.

    Uses Optuna's own distributions where they are the same; elsewhere the inverse CDF of a uniform number.
    """
    name, kind, spec = parameter.name, parameter.distribution, parameter.spec
    if kind == "constant":
        return spec["value"]
    if kind == "categorical":
        return suggest_choice(trial, name, spec["values"])
    if kind == "int_uniform":
        return trial.suggest_int(name, spec["min"], spec["max"])
    if kind.removeprefix("q_") == "uniform":
        value = trial.suggest_float(name, spec["min"], spec["max"])
    elif "log_uniform" in kind:
        # 1/x is log-uniform exactly if x is, so inv_log_uniform only differs in the meaning of its exponents
        low, high = (-spec["max"], -spec["min"]) if kind == "inv_log_uniform" else (spec["min"], spec["max"])
        if not kind.endswith("_values"):
            low, high = math.exp(low), math.exp(high)
        value = trial.suggest_float(name, low, high, log=True)
    else:
        value = inverse_cdf(kind.removeprefix("q_"), spec, trial.suggest_float(name, 1e-9, 1 - 1e-9))
        if kind == "categorical_w_probabilities":
            return spec["values"][int(value)]
    return tidy(round(value / spec["q"]) * spec["q"], spec["q"]) if "q" in spec else value


def suggest_choice(trial: optuna.Trial, name: str, values: Sequence[Any]) -> Any:
    """One of `values`; by its index where Optuna cannot store or distinguish them: lists, 1 beside true."""
    plain = all(value is None or isinstance(value, (str, int, float)) for value in values)
    if plain and len(set(values)) == len(values):
        return trial.suggest_categorical(name, list(values))
    return values[trial.suggest_categorical(name, list(range(len(values))))]


def inverse_cdf(kind: str, spec: dict[str, Any], u: float) -> float:
    """The quantile `u` of a distribution; for categorical_w_probabilities the index of a value."""
    if kind == "normal":
        return NormalDist(spec["mu"], spec["sigma"]).inv_cdf(u)
    if kind == "log_normal":
        return math.exp(NormalDist(spec["mu"], spec["sigma"]).inv_cdf(u))
    if kind == "beta":
        return float(betaincinv(spec["a"], spec["b"], u))
    assert kind == "categorical_w_probabilities"
    cumulative = list(itertools.accumulate(spec["probabilities"]))
    return next((i for i, limit in enumerate(cumulative) if u < limit), len(cumulative) - 1)


class GridSampler(optuna.samplers.BaseSampler):
    """Gives a trial the grid's point that its attribute `index` names."""

    def __init__(self, sweep: Sweep):
        self.sweep = sweep

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        assert isinstance(param_distribution, optuna.distributions.CategoricalDistribution)
        return param_distribution.choices[self.sweep.grid_point(trial.user_attrs["index"])[param_name]]


def create_sampler(sweep: Sweep, seed: int | None = None) -> optuna.samplers.BaseSampler:
    """The sampler of a sweep's method.  Without a seed the workers of one sweep draw different values."""
    if sweep.method == "grid":
        return GridSampler(sweep)
    if sweep.method == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    # constant_liar keeps new trials away from those that are still running
    return optuna.samplers.TPESampler(constant_liar=True, seed=seed)


class BandPruner(optuna.pruners.BasePruner):
    """Judges a trial at each of the ascending `bands`: it goes on if it is in the best 1/eta, at least one, of all.

    Optuna's SuccessiveHalvingPruner goes on with bands beyond the last, and counts each attempt at an interrupted
    trial; its HyperbandPruner compares a trial with those of its bracket alone, which begins at a band of its own.
    """

    def __init__(self, bands: Sequence[int], eta: int):
        self.bands, self.eta = bands, eta

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether to stop a trial for the value that it has just reported; always if that is NaN at a band."""
        band = trial.last_step
        if band is None or band not in self.bands:
            return False
        own, trials = trial.intermediate_values[band], study.get_trials(deepcopy=False)
        continued = {other.user_attrs.get("continues") for other in trials}
        others = [
            other.intermediate_values.get(band, math.nan)
            for other in trials
            if other.number != trial.number and other.number not in continued
        ]
        others = [value for value in others if not math.isnan(value)]
        maximize = study.direction == optuna.study.StudyDirection.MAXIMIZE
        better = sum(value > own if maximize else value < own for value in others)
        return math.isnan(own) or better >= max(1, (len(others) + 1) // self.eta)


def create_pruner(sweep: Sweep, max_epochs: int | None) -> optuna.pruners.BasePruner:
    """The bands of W&B's hyperband as `early_terminate` sets them, in rows that hold the metric.

    With min_iter they are min_iter times a power of eta, with max_iter and s max_iter divided by eta up to s times.
    """
    early = sweep.early_terminate
    if not early:
        return optuna.pruners.NopPruner()
    eta = int(early.get("eta", 3))
    if "min_iter" in early:
        low, end = int(early["min_iter"]), max_epochs
        if end is None or low > end:
            raise UserError(f"{sweep.path}: early_terminate.min_iter: is {low}, but training.max_epochs is {end}")
        bands = list(itertools.takewhile(lambda band: band <= end, (low * eta**i for i in itertools.count())))
    else:
        most = int(early["max_iter"])
        bands = sorted(most // eta**i for i in range(1, int(early["s"]) + 1) if most >= eta**i)
        if not bands:
            raise UserError(f"{sweep.path}: early_terminate.max_iter: is {most}; must be at least eta, which is {eta}")
    return BandPruner(bands, eta)


def draw(sweep: Sweep, trial: optuna.Trial) -> dict[str, Any]:
    """The values of all parameters, by name, in the sweep's order."""
    values = {}
    for parameter in sweep.parameters:
        choices = parameter.grid() if sweep.method == "grid" and parameter.distribution != "constant" else None
        values[parameter.name] = (
            suggest_choice(trial, parameter.name, choices) if choices else suggest(trial, parameter)
        )
    return values


def first_draw(sweep: Sweep) -> dict[str, Any]:
    """Random values that are the same in every process."""
    return draw(sweep, optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask())
