#!/usr/bin/env python
"""Run a W&B sweep file on this machine or cluster: no account, no server, no network.

    python sweeps/run_local.py SWEEP.yaml                      a grid, to its end; again: goes on where it stopped
    python sweeps/run_local.py SWEEP.yaml --count 30           until 30 trials have finished
    python sweeps/run_local.py SWEEP.yaml --parallel 2         two trials at a time
    python sweeps/run_local.py SWEEP.yaml --count 30 -- --training.max_epochs=5     words for every trial's command
    python sweeps/run_local.py SWEEP.yaml --count 30 --storage /shared/study.journal
                                                               the same command on any number of nodes: one sweep
    python sweeps/run_local.py SWEEP.yaml --trial 7            the grid's point 7 alone (0 is the first), for job arrays

The file is the one that `wandb sweep` takes: methods grid, random and bayes (Optuna's TPE), all distributions,
hyperband.  Trials get KD_TRIAL, their run id, and WANDB_MODE=offline unless WANDB_MODE is set.  A trial's value is the
best value of the sweep's metric in its run folder's metrics.jsonl.  Beside the storage, by default
OUTPUT_DIR/sweeps/NAME/study.journal, lie logs/, trials.csv, best.yaml, parallel_coordinates.png and importance.png.

Ctrl-C, SIGTERM or SIGUSR1 stops the trials; the same command continues them.  Trials of a worker that died are taken
over by the others.  To try a grid's failed points again, delete the storage: runs that have finished are not repeated.

exit status: 0 done, 2 a mistake in the file or command (no trial has run), 1 trials failed (three with no success end
             the sweep), 130, 143 or 138 stopped by a signal.  With --trial: the trial's own
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import difflib
import hashlib
import io
import itertools
import json
import math
import os
import re
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import optuna
import yaml
from optuna.distributions import BaseDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from scipy.special import betaincinv

KILL_AFTER = 120.0  # seconds that a trial has to end after SIGTERM: it finishes its step and writes its summary
STALE_AFTER = 60.0  # seconds without a touch after which a worker on another host counts as dead
TOUCH_EVERY = 3.0
POLL_EVERY = 0.3
STOPPED = {130, 138, 143, -signal.SIGINT, -signal.SIGTERM, -signal.SIGUSR1}  # statuses of a trial that can go on
LOST_RACE = (ValueError, optuna.exceptions.UpdateFinishedTrialError)  # what Optuna raises if a trial has ended already
MAX_STOPS = 3  # times that a trial stopped by a stranger's signal is continued at once


class Mistake(Exception):
    """The user's mistake: clear lines to print, exit status 2."""


# ------------------------------------------------------------------------------------------------ the sweep file

DEFAULT_COMMAND = ["${env}", "${interpreter}", "${program}", "${args}"]
MACROS = (
    "env", "interpreter", "program", "args", "args_no_hyphens", "args_no_boolean_flags", "args_no_equals", "args_json",
    "args_json_file", "args_append_hydra", "args_override_hydra",
)  # fmt: skip
TOP_KEYS = (
    "program", "command", "method", "metric", "parameters", "early_terminate", "run_cap", "name", "description",
    "project", "entity", "settings", "controller",
)  # fmt: skip
MAX_BYTES = 1_000_000  # of a sweep file
MAX_VALUES = 100_000  # in it, once its aliases are written out, and of one parameter in a grid
MAX_MISTAKES = 30  # shown at once
_RANGE, _NORMAL, _BETA, _Q = ("min", "max"), {"mu": 0, "sigma": 1}, {"a": 1, "b": 1}, {"q": 1}
DISTRIBUTIONS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {  # required keys, optional keys with defaults
    "constant": (("value",), {}),
    "categorical": (("values",), {}),
    "categorical_w_probabilities": (("values", "probabilities"), {}),
    "int_uniform": (_RANGE, {}),
    "uniform": (_RANGE, {}),
    "q_uniform": (_RANGE, _Q),
    "log_uniform": (_RANGE, {}),
    "log_uniform_values": (_RANGE, {}),
    "q_log_uniform": (_RANGE, _Q),
    "q_log_uniform_values": (_RANGE, _Q),
    "inv_log_uniform": (_RANGE, {}),
    "inv_log_uniform_values": (_RANGE, {}),
    "normal": ((), _NORMAL),
    "q_normal": ((), {**_NORMAL, **_Q}),
    "log_normal": ((), _NORMAL),
    "q_log_normal": ((), {**_NORMAL, **_Q}),
    "beta": ((), _BETA),
    "q_beta": ((), {**_BETA, **_Q}),
}


@dataclass(frozen=True)
class Parameter:
    """One value that a sweep sets; `path` has several parts within nested `parameters`."""

    path: tuple[str, ...]
    distribution: str
    spec: dict[str, Any]

    @property
    def name(self) -> str:
        return ".".join(self.path)

    @property
    def varies(self) -> bool:
        return self.distribution != "constant" and len(self.spec.get("values", (0, 0))) > 1

    @property
    def logarithmic(self) -> bool:
        return "log" in self.distribution

    @property
    def grid_steps(self) -> float:
        """How many values of a range `grid` would list."""
        spec = self.spec
        counted = self.distribution in ("int_uniform", "q_uniform")
        return (spec["max"] - spec["min"]) / spec.get("q", 1) if counted else 0

    def grid(self) -> list[Any] | None:
        """All values in W&B's order; None if they cannot be counted.  q_uniform leaves out `max`, as W&B does."""
        spec = self.spec
        if self.distribution == "constant":
            return [spec["value"]]
        if self.distribution == "categorical":
            return list({repr(value): value for value in spec["values"]}.values())  # W&B runs equal points once
        if self.distribution == "int_uniform":
            return list(range(spec["min"], spec["max"] + 1))
        if self.distribution == "q_uniform":
            steps = math.ceil((spec["max"] - spec["min"]) / spec["q"] - 1e-9)
            return [tidy(spec["min"] + step * spec["q"], spec["q"]) for step in range(steps)]
        return None


@dataclass(frozen=True)
class Sweep:
    """A checked sweep file."""

    path: Path
    method: str
    metric: str
    maximize: bool
    parameters: list[Parameter]  # sorted by name, which is W&B's order for grids and commands
    command: list[str]
    program: str
    early_terminate: dict[str, Any] | None
    run_cap: int | None
    content: dict[str, Any]

    @property
    def varied(self) -> list[Parameter]:
        return [parameter for parameter in self.parameters if parameter.varies]

    def better(self, values: Sequence[float]) -> float:
        return max(values) if self.maximize else min(values)

    def grid_size(self) -> int:
        return math.prod(len(parameter.grid() or ()) for parameter in self.parameters)

    def grid_point(self, index: int) -> dict[str, int]:
        """Which value of each parameter point `index` takes; the last parameter varies fastest."""
        digits = {}
        for parameter in reversed(self.parameters):
            index, digits[parameter.name] = divmod(index, len(parameter.grid() or ()))
        return digits

    def grid_values(self, index: int) -> dict[str, Any]:
        digits = self.grid_point(index)
        return {parameter.name: (parameter.grid() or ())[digits[parameter.name]] for parameter in self.parameters}


def read_sweep(path: Path) -> Sweep:
    """The checked file.  Mistake: one line for each mistake in it."""
    return _Reader(path).read()


class _Reader:
    """Collects the mistakes of one file."""

    def __init__(self, path: Path):
        self.path = path
        self.problems: list[str] = []

    def problem(self, where: str, what: str) -> None:
        self.problems.append(f"{self.path}: {where}: {what}")

    def read(self) -> Sweep:
        source = self.load()
        method, metric = source.get("method"), source.get("metric")
        for key in source:
            if key not in TOP_KEYS:
                self.problem(str(key), f"unknown key{nearest(str(key), TOP_KEYS)}")
        if method not in ("grid", "random", "bayes"):
            self.problem("method", f"is {method!r}; allowed: grid, random, bayes")
        metric = metric if isinstance(metric, dict) else {}
        if not isinstance(metric.get("name"), str):
            self.problem("metric", "needs a name, as in {name: val/accuracy, goal: maximize}")
        if metric.get("goal", "minimize") not in ("maximize", "minimize"):
            self.problem("metric.goal", f"is {metric['goal']!r}; allowed: maximize, minimize")
        for key in metric.keys() - {"name", "goal", "target", "impute"}:
            self.problem(f"metric.{key}", f"unknown key{nearest(str(key), ('name', 'goal'))}")
        run_cap = source.get("run_cap")
        if run_cap is not None and not (is_int(run_cap) and run_cap > 0):
            self.problem("run_cap", f"is {run_cap!r}, not a number of trials")
        parameters = sorted(self.parameters(source.get("parameters"), ()), key=lambda parameter: parameter.path)
        names = [parameter.name for parameter in parameters]
        for name in sorted({name for name in names if names.count(name) > 1}):
            self.problem(f"parameters.{name}", "is there twice, nested and with a dotted name")
        if method == "grid":
            for parameter in parameters:
                if parameter.grid_steps > MAX_VALUES:
                    self.problem(
                        f"parameters.{parameter.name}",
                        f"has about {parameter.grid_steps:g} values; a grid takes up to {MAX_VALUES:,} of each",
                    )
                elif parameter.grid() is None:
                    self.problem(
                        f"parameters.{parameter.name}",
                        f"is {parameter.distribution}, which a grid cannot take: list values, or use method random",
                    )
        command = self.command(source)
        early = self.early_terminate(source.get("early_terminate"))
        if self.problems:
            more = [f"and {len(self.problems) - MAX_MISTAKES} more"] if len(self.problems) > MAX_MISTAKES else []
            raise Mistake("\n".join(self.problems[:MAX_MISTAKES] + more))
        content = {key: source.get(key) for key in ("program", "command", "method", "parameters")}
        return Sweep(
            path=self.path,
            method=str(method),
            metric=metric["name"],
            maximize=metric.get("goal") == "maximize",
            parameters=parameters,
            command=command,
            program=str(source.get("program", "")),
            early_terminate=early,
            run_cap=run_cap,
            content=content,
        )

    def load(self) -> dict[str, Any]:
        try:
            if self.path.stat().st_size > MAX_BYTES:
                raise Mistake(f"{self.path}: larger than {MAX_BYTES / 1e6:g} MB, so it is no sweep file")
            source = yaml.safe_load(self.path.read_text(encoding="utf-8"))
        except OSError as error:
            raise Mistake(f"{self.path}: cannot be read: {error.strerror}") from None
        # The last two come of values that do not fit their tags.
        except (yaml.YAMLError, ValueError, RecursionError, LookupError, AttributeError) as error:
            raise Mistake(f"{self.path}: is not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(source, dict):
            raise Mistake(f"{self.path}: holds no settings; a sweep file has program, method, metric and parameters")
        if unfolded(source) > MAX_VALUES:
            raise Mistake(f"{self.path}: unfolds to more than {MAX_VALUES:,} values: use fewer aliases (*name)")
        return source

    def parameters(self, source: Any, path: tuple[str, ...]) -> Iterator[Parameter]:
        where = "parameters" + "".join(f".{part}" for part in path)
        if not isinstance(source, dict) or not source:
            self.problem(where, "must name the parameters, as in {kd.temperature: {values: [2, 4]}}")
            return
        for key, spec in source.items():
            if isinstance(key, bool):
                self.problem(where, f"a key is read as {key} (YAML 1.1 reads on, off, yes and no so): put it in quotes")
            elif not isinstance(key, str):
                self.problem(where, f"the key {key!r} is not a text: put it in quotes")
            elif not isinstance(spec, dict):
                self.problem(f"{where}.{key}", f"is {spec!r}; write {{value: {spec!r}}}")
            elif "parameters" in spec:
                for other in spec.keys() - {"parameters"}:
                    self.problem(f"{where}.{key}.{other}", "does not go together with nested parameters")
                yield from self.parameters(spec["parameters"], (*path, key))
            else:
                parameter = self.parameter(f"{where}.{key}", (*path, key), spec)
                if parameter:
                    yield parameter

    def parameter(self, where: str, path: tuple[str, ...], spec: dict[str, Any]) -> Parameter | None:
        found = len(self.problems)
        if path[0] == "output_dir":
            self.problem(where, "cannot be swept: the trials' results are looked for in one folder")
        distribution = spec.get("distribution")
        if distribution is None:
            if "value" in spec:
                distribution = "constant"
            elif "values" in spec:
                distribution = "categorical_w_probabilities" if "probabilities" in spec else "categorical"
            elif "min" in spec and "max" in spec:
                distribution = "int_uniform" if is_int(spec["min"]) and is_int(spec["max"]) else "uniform"
            else:
                known = {"distribution", *itertools.chain(*(required for required, _ in DISTRIBUTIONS.values()))}
                hints = [f"{key!r}{nearest(str(key), known)}" for key in spec if key not in known]
                self.problem(where, "needs value, values, min and max, or a distribution" + "".join(
                    f"; unknown key {hint}" for hint in hints))  # fmt: skip
                return None
        if not isinstance(distribution, str) or distribution not in DISTRIBUTIONS:
            hint = nearest(str(distribution), DISTRIBUTIONS)
            self.problem(
                f"{where}.distribution", f"{distribution!r} is unknown{hint}; allowed: {', '.join(DISTRIBUTIONS)}"
            )
            return None
        required, optional = DISTRIBUTIONS[distribution]
        allowed = (*required, *optional)
        for key in spec:
            if key not in (*allowed, "distribution"):
                self.problem(
                    f"{where}.{key}",
                    f"unknown key{nearest(str(key), allowed)}; allowed for {distribution}: {', '.join(allowed)}",
                )
        for key in required:
            if key not in spec:
                self.problem(where, f"{distribution} needs {key}")
        full = {**optional, **{key: value for key, value in spec.items() if key != "distribution"}}
        for key, value in full.items():
            if key in ("value", "values"):
                for text in value if isinstance(value, list) else [value]:
                    if isinstance(text, str) and text_number(text):
                        self.problem(f"{where}.{key}", read_as_text(text))
                try:
                    json.dumps(value, sort_keys=True)
                except (TypeError, ValueError):
                    self.problem(
                        f"{where}.{key}", f"holds a date or a key that is no text, in {value!r}: put it in quotes"
                    )
            elif key != "probabilities" and key in allowed:
                self.number(f"{where}.{key}", value, whole=distribution == "int_uniform")
        if len(self.problems) == found:
            self.consistent(where, distribution, full)
        return Parameter(path, distribution, full) if len(self.problems) == found else None

    def number(self, where: str, value: Any, whole: bool = False) -> bool:
        """Whether `value` is a number; if not, a problem is noted."""
        if isinstance(value, str) and text_number(value):
            self.problem(where, read_as_text(value))
        elif not (is_int(value) or isinstance(value, float)) or not abs(value) < 1e300:
            self.problem(where, f"is {value!r}, not a number below 1e300")
        elif whole and not is_int(value):
            self.problem(where, f"is {value!r}; int_uniform takes whole numbers")
        else:
            return True
        return False

    def consistent(self, where: str, distribution: str, spec: dict[str, Any]) -> None:
        """Checks between the keys of one parameter whose types are right."""
        if "values" in spec and (not isinstance(spec["values"], list) or not spec["values"]):
            self.problem(f"{where}.values", "must be a list with at least one value")
        elif "probabilities" in spec:
            weights = spec["probabilities"]
            if not isinstance(weights, list) or len(weights) != len(spec["values"]):
                length = len(weights) if isinstance(weights, list) else "no list"
                self.problem(f"{where}.probabilities", f"{length} for {len(spec['values'])} values: one for each")
            elif all(self.number(f"{where}.probabilities", weight) for weight in weights):
                if min(weights) < 0 or abs(sum(weights) - 1) > 1e-6:
                    self.problem(f"{where}.probabilities", f"sum to {sum(weights):g}; must be at least 0 and sum to 1")
        if "min" in spec:
            low, high = spec["min"], spec["max"]
            if low >= high:
                self.problem(where, f"min {low} must be smaller than max {high}")
            elif distribution.endswith("log_uniform_values") and low <= 0:
                self.problem(f"{where}.min", f"is {low}; {distribution} needs values above 0")
            elif distribution.endswith("log_uniform") and max(abs(low), abs(high)) > 700:
                self.problem(
                    where, f"{distribution} takes exponents of e; for the values themselves use {distribution}_values"
                )
        for key in ("q", "sigma", "a", "b"):
            if key in spec and spec[key] <= 0:
                self.problem(f"{where}.{key}", f"is {spec[key]}; must be above 0")

    def command(self, source: dict[str, Any]) -> list[str]:
        words = source.get("command", DEFAULT_COMMAND)
        if not isinstance(words, list) or not words:
            self.problem("command", f"must be a list of words, as in {DEFAULT_COMMAND}")
            return []
        words = [str(word) for word in words]
        for word in words:
            for macro in re.findall(r"\$\{([^}]*)\}", word):
                if re.fullmatch(r"envvar:[A-Z0-9_]+", macro):
                    continue
                if macro not in MACROS:
                    hint = nearest(macro, MACROS)
                    self.problem("command", f"unknown macro ${{{macro}}}{hint}; W&B would drop it silently")
                elif word != f"${{{macro}}}":
                    self.problem("command", f"{word!r}: ${{{macro}}} is expanded only as a word of its own")
        if "${program}" in words and not isinstance(source.get("program"), str):
            self.problem("program", "is missing: the script to run, as in train_kd.py")
        return words

    def early_terminate(self, early: Any) -> dict[str, Any] | None:
        if early is None:
            return None
        if not isinstance(early, dict) or early.get("type") != "hyperband":
            self.problem("early_terminate", "must be {type: hyperband, min_iter: N} or {..., max_iter: N, s: N}")
            return None
        for key, value in early.items():
            if key in ("min_iter", "max_iter", "s", "eta"):
                least = 2 if key == "eta" else 1
                if self.number(f"early_terminate.{key}", value) and not (int(value) == value and value >= least):
                    self.problem(f"early_terminate.{key}", f"is {value}; a whole number of at least {least}")
            elif key not in ("type", "strict"):
                known = ("min_iter", "max_iter", "s", "eta", "strict")
                self.problem(f"early_terminate.{key}", f"unknown key{nearest(str(key), known)}")
        if ("min_iter" in early) == ("max_iter" in early) or ("max_iter" in early) != ("s" in early):
            self.problem("early_terminate", "give either min_iter, or max_iter and s")
        return early


def unfolded(source: Any) -> int:
    """How many values there are with every alias written out; counting ends beyond MAX_VALUES."""
    waiting, count = [source], 0
    while waiting and count <= MAX_VALUES:
        value = waiting.pop()
        count += 1
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple, set)) else ()
    return count


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def text_number(text: str) -> re.Match[str] | None:
    """A match if `text` is a number with an exponent, which YAML 1.1 reads as a text if it lacks the point or sign."""
    return re.fullmatch(r"([-+]?\d+)(\.\d*)?[eE]([-+]?)(\d+)", text.strip())


def read_as_text(text: str) -> str:
    match = text_number(text)
    assert match
    whole, fraction, sign, exponent = match.groups()
    return (
        f"is {text!r}, a text (YAML 1.1 reads it so): "
        f"write {whole}{fraction if fraction and fraction != '.' else '.0'}e{sign or '+'}{exponent}"
    )


def nearest(word: str, known: Any) -> str:
    found = difflib.get_close_matches(word, list(known), 1)
    return f", did you mean {found[0]!r}?" if found else ""


# ------------------------------------------------------------------------------------------------- drawing values


def tidy(value: float, q: float) -> float | int:
    """A multiple of `q` without the noise of its last digits (0.30000000000000004); whole if `q` is."""
    return int(round(value)) if is_int(q) else float(f"{value:.12g}")


def suggest(trial: optuna.Trial, parameter: Parameter) -> Any:
    """The value of one parameter in one trial.

    Optuna's own distributions are used where they are the same; else a uniform number goes through the inverse CDF.
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
        # 1/x is log-uniform exactly if x is, so that inv_log_uniform differs in what its exponents mean, no more
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
    """One of `values`, by its index where Optuna could not store or tell them apart: lists, 1 beside true."""
    plain = all(value is None or isinstance(value, (str, int, float)) for value in values)
    if plain and len(set(values)) == len(values):
        return trial.suggest_categorical(name, list(values))
    return values[trial.suggest_categorical(name, list(range(len(values))))]


def inverse_cdf(kind: str, spec: dict[str, Any], u: float) -> float:
    if kind == "normal":
        return NormalDist(spec["mu"], spec["sigma"]).inv_cdf(u)
    if kind == "log_normal":
        return math.exp(NormalDist(spec["mu"], spec["sigma"]).inv_cdf(u))
    if kind == "beta":
        return float(betaincinv(spec["a"], spec["b"], u))
    assert kind == "categorical_w_probabilities"
    cumulated = list(itertools.accumulate(spec["probabilities"]))
    return next((i for i, limit in enumerate(cumulated) if u < limit), len(cumulated) - 1)


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
    """The sampler of a sweep's method.  Without a seed, so that workers of one sweep draw different values."""
    if sweep.method == "grid":
        return GridSampler(sweep)
    if sweep.method == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(constant_liar=True, seed=seed)  # liar: running trials repel those drawn meanwhile


def create_pruner(sweep: Sweep, max_epochs: int | None) -> optuna.pruners.BasePruner:
    """Hyperband as `early_terminate` says, in rows that hold the metric."""
    early = sweep.early_terminate
    if not early:
        return optuna.pruners.NopPruner()
    eta = int(early.get("eta", 3))
    if "min_iter" in early:
        low, high = int(early["min_iter"]), max_epochs
        if high is None or low > high:
            raise Mistake(f"{sweep.path}: early_terminate.min_iter: is {low}, but training.max_epochs is {high}")
    else:
        low, high = max(1, int(early["max_iter"]) // eta ** int(early["s"])), int(early["max_iter"])
    return optuna.pruners.HyperbandPruner(min_resource=low, max_resource=high, reduction_factor=eta)


def draw(sweep: Sweep, trial: optuna.Trial) -> dict[str, Any]:
    """The values of all parameters, by name, in the sweep's order."""
    values = {}
    for parameter in sweep.parameters:
        choices = parameter.grid() if sweep.method == "grid" and parameter.distribution != "constant" else None
        values[parameter.name] = (
            suggest_choice(trial, parameter.name, choices) if choices else suggest(trial, parameter)
        )
    return values


# ------------------------------------------------------------------------------------------------------ commands


def expand(sweep: Sweep, values: dict[str, Any], json_file: Path) -> list[str]:
    """The command of a trial, expanded as W&B's agent does it.  Writes `json_file` if the command asks for it."""
    arguments: dict[str, Any] = {}
    for parameter in sweep.parameters:
        inner = arguments
        for part in parameter.path[:-1]:
            inner = inner.setdefault(part, {})
        inner[parameter.path[-1]] = values[parameter.name]
    items = list(arguments.items())
    as_json = json.dumps(arguments)
    macros = {
        "env": ["/usr/bin/env"],
        "interpreter": ["python"],
        "program": [sweep.program],
        "args": [f"--{key}={value}" for key, value in items],
        "args_no_hyphens": [f"{key}={value}" for key, value in items],
        "args_no_boolean_flags": [
            f"--{key}" if value is True else f"--{key}={value}" for key, value in items if value is not False
        ],
        "args_no_equals": [word for key, value in items for word in (f"--{key}", str(value))],
        "args_append_hydra": [f"+{key}={value}" for key, value in items],
        "args_override_hydra": [f"++{key}={value}" for key, value in items],
        "args_json": [as_json],
        "args_json_file": [str(json_file)],
    }
    if "${args_json_file}" in sweep.command:
        write_atomically(json_file, as_json)
    words: list[str] = []
    for word in sweep.command:
        # an unset variable leaves its name, as W&B has it
        word = re.sub(r"\$\{envvar:([A-Z0-9_]*)\}", lambda match: os.environ.get(match[1], match[1]), word)
        macro = re.fullmatch(r"\$\{(.*)\}", word)
        words += macros.get(macro[1], []) if macro else [word]
    return words


def with_extra(command: list[str], extra: Sequence[str]) -> list[str]:
    """The command with further words; files that they name with --config replace the command's own."""
    kept, rest = [], list(command)
    if any(word.partition("=")[0] == "--config" for word in extra):
        while rest:
            word = rest.pop(0)
            if word == "--config":
                del rest[:1]
            elif not word.startswith("--config="):
                kept.append(word)
    return [*kept, *rest, *extra]


def command_again(sweep: Sweep, settings: Path) -> str:
    """The sweep's own command, its launcher included, with the settings in a file."""
    start = sweep.command[: sweep.command.index("${program}")] if "${program}" in sweep.command else []
    launcher = ["python" if word == "${interpreter}" else word for word in start if word != "${env}"]
    return shlex.join([*(launcher or ["python"]), sweep.program, "--config", str(settings)])


def environment(run_id: str) -> dict[str, str]:
    """A trial's environment.  `python` on its PATH is the one that runs this script."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {"WANDB_MODE": "offline", **os.environ, "PATH": path, "KD_TRIAL": run_id}


def check_extra(sweep: Sweep, words: Sequence[str]) -> None:
    """Mistake if a word after `--` names something that the sweep sets."""
    for word in words:
        if not word.startswith("--") and "=" not in word:
            continue
        key = word.removeprefix("--").partition("=")[0]
        for parameter in sweep.parameters:
            if f"{parameter.name}.".startswith(f"{key}.") or f"{key}.".startswith(f"{parameter.name}."):
                raise Mistake(f"{word}: {sweep.path} sets {parameter.name} already (parameters.{parameter.name})")


def hashed(*parts: Any) -> str:
    """Eight characters a-z0-9, as W&B's run ids."""
    number = int.from_bytes(hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).digest())
    return "".join("abcdefghijklmnopqrstuvwxyz0123456789"[number // 36**i % 36] for i in range(8))


# Sections of the printed settings that shape no result: where things lie, and how runs are recorded.
ELSEWHERE = ("output_dir", "wandb", "cache")


def probe(sweep: Sweep, extra: list[str]) -> tuple[Sweep, Path, int | None]:
    """(the sweep, output_dir, training.max_epochs), with the settings that the first trial's command prints.

    They become part of what identifies the sweep: after a change of the file behind `--config`, it is another one.
    Mistake if the command fails.
    """
    if sweep.method == "grid":
        values = sweep.grid_values(0)
    else:
        values = draw(sweep, optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask())
    with tempfile.TemporaryDirectory() as scratch:
        command = [*with_extra(expand(sweep, values, Path(scratch) / "arguments.json"), extra), "--print-config"]
        try:
            result = subprocess.run(
                command, env=environment("printonly"), stdin=subprocess.DEVNULL, capture_output=True, text=True
            )
        except OSError as error:
            raise Mistake(f"{sweep.path}: command: {command[0]}: {error.strerror}") from None
    if result.returncode:
        said = result.stderr.strip() or result.stdout.strip() or f"exit status {result.returncode}"
        raise Mistake(f"{sweep.path}: the first trial's command fails: {shlex.join(command)}\n{said}")
    try:
        config = yaml.safe_load(result.stdout)
        output_dir, epochs = Path(config["output_dir"]).expanduser(), (config.get("training") or {}).get("max_epochs")
        settings = _without_new_defaults({key: value for key, value in config.items() if key not in ELSEWHERE})
        files = [Path(file).expanduser() for file in settings.get("import") or []]
        if files and all(file.is_file() for file in files):  # own code counts by its content, as in a run
            settings["import"] = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
        return replace(sweep, content={**sweep.content, "settings": settings}), output_dir, epochs
    except (yaml.YAMLError, AttributeError, KeyError, TypeError):
        raise Mistake(f"{sweep.path}: {shlex.join(command)} printed no YAML with output_dir") from None


def _without_new_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without keys that earlier versions lacked, at their defaults: sweeps that these began go on."""
    if not settings.get("import"):
        settings.pop("import", None)
    added: list[tuple[dict[str, Any], tuple[str, ...]]] = [(settings.get("data") or {}, ("folders", "test_size"))]
    added += [(teacher, ("trained_on",)) for teacher in settings.get("teachers") or []]
    for section, keys in added:
        for key in keys:
            if section.get(key) is None:
                section.pop(key, None)
    return settings


def write_atomically(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, path)


# -------------------------------------------------------------------------------------------------- a trial's run


class Progress:
    """What a run's metrics.jsonl says so far."""

    def __init__(self, sweep: Sweep, output_dir: Path, run_id: str):
        self.sweep, self.output_dir, self.run_id = sweep, output_dir, run_id
        self.values: list[float] = []  # of the metric, a row each; may hold NaN
        self._seen: tuple[int, int] | None = None
        self._folder: Path | None = None

    @property
    def folder(self) -> Path | None:
        """The run folder, once there is one."""
        if not self._folder:
            self._folder = next((path for path in self.output_dir.glob(f"*-{self.run_id}") if path.is_dir()), None)
        return self._folder

    @property
    def finished(self) -> bool:
        try:
            return bool(json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))["status"] == "finished")  # type: ignore[operator]
        except (OSError, ValueError, KeyError, TypeError):
            return False

    @property
    def best(self) -> float | None:
        return self.best_of(len(self.values))

    def best_of(self, rows: int) -> float | None:
        """The best value of the first `rows` ones."""
        values = [value for value in self.values[:rows] if math.isfinite(value)]
        return self.sweep.better(values) if values else None

    def measured(self) -> str:
        """The names in the last row, to be told when the metric is not among them."""
        try:
            row = json.loads((self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])  # type: ignore[operator]
            return f"; {self.folder}/metrics.jsonl has {', '.join(row)}"
        except (OSError, ValueError, TypeError, IndexError):
            return f"; there is no metrics.jsonl in {self.folder or f'{self.output_dir}/*-{self.run_id}'}"

    def update(self) -> None:
        """Read the file again if it has changed.  A run that resumes has cut it back, so that reading on is no use."""
        folder = self.folder
        try:
            state = (folder / "metrics.jsonl").stat() if folder else None
            if not folder or not state or (state.st_size, state.st_mtime_ns) == self._seen:
                return
            lines = (folder / "metrics.jsonl").read_bytes().split(b"\n")
        except OSError:
            return
        self._seen = (state.st_size, state.st_mtime_ns)
        self.values = []
        name = json.dumps(self.sweep.metric).encode()
        for line in lines[:-1]:  # the last is empty, or torn
            if name in line:
                with suppress(ValueError, TypeError, KeyError):
                    value = json.loads(line)[self.sweep.metric]
                    if value is None or isinstance(value, (int, float)):  # null: not finite
                        self.values.append(math.nan if value is None else float(value))


def start(command: list[str], run_id: str, log: io.BufferedWriter | None) -> subprocess.Popen[bytes]:
    """A trial's process in its own process group, which Ctrl-C at the terminal does not reach."""
    parent = os.getpid()

    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def end_with_parent() -> None:  # Linux: SIGTERM when this script is killed, so that no trial is left behind
        if libc:
            libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(143)

    return subprocess.Popen(
        command,
        env=environment(run_id),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT if log else None,
        process_group=0,
        preexec_fn=end_with_parent if libc else None,
    )


def send(process: subprocess.Popen[bytes], number: int) -> None:
    """A signal to the trial: SIGKILL to all its processes, others to the first alone.

    A data worker that dies of SIGTERM would make the step fail that the trial is to finish.
    """
    with suppress(ProcessLookupError):
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)


def run_one(sweep: Sweep, index: int, extra: list[str]) -> int:
    """`--trial`: the exit status of the grid's point `index`, which runs in the foreground."""
    if sweep.method != "grid":
        raise Mistake(f"--trial: {sweep.path} has method {sweep.method}; only a grid's points have numbers")
    if not 0 <= index < sweep.grid_size():
        raise Mistake(f"--trial {index}: {sweep.path} has the trials 0 to {sweep.grid_size() - 1}")
    sweep, output_dir, _ = probe(sweep, extra)
    run_id = grid_run_id(sweep, extra, index)
    values = sweep.grid_values(index)
    progress = Progress(sweep, output_dir, run_id)
    if progress.finished:
        print(f"trial {index} is finished: {progress.folder}")
        return 0
    json_file = default_storage(sweep, output_dir).parent / f"args/{run_id}.json"
    command = with_extra(expand(sweep, values, json_file), extra)
    with Signals() as signals:
        process = start(command, run_id, None)
        sent = 0
        while (status := process.poll()) is None:
            if signals.count > sent:
                sent = signals.count
                send(process, signals.number)
            time.sleep(0.05)
    return status if status >= 0 else 128 - status


def grid_run_id(sweep: Sweep, extra: list[str], index: int) -> str:
    return hashed(sweep.content, extra, index)


def default_storage(sweep: Sweep, output_dir: Path) -> Path:
    return output_dir / "sweeps" / sweep.path.stem / "study.journal"


class Signals:
    """Notes SIGINT, SIGTERM and SIGUSR1 while it is entered."""

    def __init__(self) -> None:
        self.number = 0
        self.count = 0

    def __enter__(self) -> Signals:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        self.number, self.count = number, self.count + 1


# -------------------------------------------------------------------------------------------- the shared study


def failed(trial: FrozenTrial) -> bool:
    """Whether a trial went wrong."""
    return trial.state == TrialState.FAIL and "error" in trial.user_attrs


def interrupted(trial: FrozenTrial) -> bool:
    """Whether another trial continues, or is to continue, this one: it was told FAIL, but nothing that went wrong."""
    return trial.state == TrialState.FAIL and not {"error", "surplus"} & trial.user_attrs.keys()


def done(trial: FrozenTrial) -> bool:
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or failed(trial)


def index_of(trial_number: int, trials: Sequence[FrozenTrial]) -> int:
    """The how-manieth trial of the sweep a new trial is: its number, which Optuna gives out atomically, less the
    trials before it that continue others.  So no two trials run the same point of a grid, whoever started them."""
    return trial_number - sum(trial.number < trial_number and "continues" in trial.user_attrs for trial in trials)


class SharedStudy:
    """The study in its journal, and what workers need to share it.

    Decisions are made while holding a lock (a file, as good over network file systems as the journal's own).  Should a
    worker stall for longer than the lock lives, `index_of` and the study, which lets a trial be finished once, still
    keep workers from running a point twice.
    """

    def __init__(self, sweep: Sweep, extra: list[str], storage: Path, max_epochs: int | None):
        self.sweep, self.extra, self.storage, self.max_epochs = sweep, extra, storage, max_epochs
        storage.parent.mkdir(parents=True, exist_ok=True)
        backend = JournalFileBackend(str(storage), lock_obj=JournalFileOpenLock(str(storage)))
        journal = JournalStorage(backend)
        fingerprint = hashed(sweep.content, extra, sweep.metric, sweep.maximize, sweep.early_terminate)
        direction = StudyDirection.MAXIMIZE if sweep.maximize else StudyDirection.MINIMIZE
        names = optuna.get_all_study_names(journal)
        if not names:
            # a name that tells sweeps apart; of two made at the same time the first in the journal counts
            optuna.create_study(
                storage=journal, study_name=f"{fingerprint}-{secrets.token_hex(4)}", direction=direction
            )
            names = optuna.get_all_study_names(journal)
        if not names[0].startswith(fingerprint):
            raise Mistake(
                f"{storage}: holds another sweep (other parameters, settings, command, metric or words after --); "
                f"name another file with --storage, or delete this one"
            )
        self.study = optuna.load_study(
            study_name=names[0],
            storage=journal,
            sampler=create_sampler(sweep),
            pruner=create_pruner(sweep, max_epochs),
        )
        self._lock = JournalFileOpenLock(f"{storage}.decide")
        pid_namespace = "/proc/self/ns/pid"  # containers may share a host's name, not its process ids
        self._host = socket.gethostname() + (os.readlink(pid_namespace) if os.path.exists(pid_namespace) else "")
        self._workers = storage.with_name(f"{storage.name}.workers")
        self._workers.mkdir(exist_ok=True)
        self._touched = self._workers / f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._next_touch = 0.0

    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    @contextmanager
    def deciding(self) -> Iterator[None]:
        self._lock.acquire()
        try:
            yield
        finally:
            with suppress(RuntimeError):  # another worker took it for dead
                self._lock.release()

    def touch(self) -> bool:
        """Show that this worker lives; whether it was time to do so."""
        if time.monotonic() < self._next_touch:
            return False
        self._touched.touch()
        self._next_touch = time.monotonic() + TOUCH_EVERY
        return True

    def leave(self) -> None:
        self._touched.unlink(missing_ok=True)

    def lease(self, child: int | None) -> dict[str, Any]:
        return {"host": self._host, "pid": os.getpid(), "child": child, "file": self._touched.name}

    def next_trial(self, limit: int) -> optuna.Trial | None:
        """A new trial, or one that goes on with an interrupted one; None if none is to be started now."""
        with self.deciding():
            self._take_over()
            trials = self.trials()
            if sum(done(t) or t.state == TrialState.RUNNING for t in trials) >= limit:
                return None
            self.touch()
            trial = self.study.ask()
            try:
                if "index" not in trial.user_attrs:
                    trial.set_user_attr("index", index_of(trial.number, self.trials()))
                trial.set_user_attr("lease", self.lease(None))
            except LOST_RACE:  # this worker stalled for so long that others took it for dead
                return None
            return trial

    def continue_later(self, number: int) -> None:
        """Hand back an interrupted trial: this or another worker goes on with it, under the same run id."""
        with self.deciding():
            with suppress(*LOST_RACE):  # it was taken over
                self.study.tell(number, state=TrialState.FAIL)
            self._enqueue_interrupted()

    def _take_over(self) -> None:
        for trial in self.trials():
            if trial.state == TrialState.RUNNING and self._stale(trial.user_attrs.get("lease"), trial):
                with suppress(*LOST_RACE):  # its worker lives after all, and has told its end
                    self.study.tell(trial.number, state=TrialState.FAIL)
        self._enqueue_interrupted()

    def _enqueue_interrupted(self) -> None:
        trials = self.trials()
        continued = {trial.user_attrs.get("continues") for trial in trials}
        for trial in trials:
            if interrupted(trial) and trial.number not in continued:
                kept = {k: v for k, v in trial.user_attrs.items() if k in ("index", "run_id", "stops")}
                if "index" not in kept:  # its worker died before it knew
                    kept["index"] = index_of(trial.number, trials)
                self.study.enqueue_trial(trial.params, user_attrs={**kept, "continues": trial.number})

    def _stale(self, lease: dict[str, Any] | None, trial: FrozenTrial) -> bool:
        """Whether the worker of a running trial is dead."""
        if lease is None:  # it is written while deciding, so that its worker died there
            return True
        if lease["host"] == self._host:
            if lease["child"] and is_trial(lease["child"], trial.user_attrs.get("run_id", "")):
                return False  # the worker may be dead, but its trial is still coming to its end
            if not alive(lease["pid"]):
                return True
        try:
            # opened: network file systems then ask the server for the time; ours is touched to learn what it is now
            with open(self._workers / lease["file"]) as file:
                touched = os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return True
        self._touched.touch()
        return self._touched.stat().st_mtime - touched > STALE_AFTER


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def is_trial(pid: int, run_id: str) -> bool:
    """Whether process `pid` is the trial `run_id`, not a later process with the same number."""
    if not alive(pid):
        return False
    try:
        return f"KD_TRIAL={run_id}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return not Path("/proc/self/environ").exists()


# ------------------------------------------------------------------------------------------------------ a worker


@dataclass
class Running:
    """A trial that this worker runs."""

    trial: optuna.Trial
    index: int
    run_id: str
    values: dict[str, Any]
    progress: Progress
    log: Path
    process: subprocess.Popen[bytes]
    log_start: int = 0
    started: float = field(default_factory=time.monotonic)
    reported: int = 0
    stopping: str = ""  # why it was sent SIGTERM: pruned, interrupted, or lost to another worker
    kill_at: float = math.inf

    def stop(self, why: str) -> None:
        if not self.stopping:
            self.stopping, self.kill_at = why, time.monotonic() + KILL_AFTER
            send(self.process, signal.SIGTERM)

    def last_line(self) -> str:
        with open(self.log, "rb") as file:
            file.seek(max(self.log_start, self.log.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


class Worker:
    """Runs trials until the study has enough."""

    def __init__(self, shared: SharedStudy, output_dir: Path, limit: int, parallel: int, display: Display):
        self.shared, self.output_dir, self.limit, self.parallel = shared, output_dir, limit, parallel
        self.sweep, self.study, self.display = shared.sweep, shared.study, display
        self.max_epochs = shared.max_epochs
        self.running: list[Running] = []
        self.failures = self.successes = 0

    def run(self, signals: Signals) -> str:
        """Work; returns why it ended: 'done', 'failures' or 'stopped'."""
        next_look, waiting = 0.0, False
        while True:
            if signals.count:
                self.stop(signals)
                return "stopped"
            if self.failures >= 3 and not self.successes:
                self.stop(signals)
                return "failures"
            if len(self.running) < self.parallel and time.monotonic() >= next_look:
                trial = self.shared.next_trial(self.limit)
                if trial:
                    self.begin(trial)
                    continue
                if not self.running and sum(map(done, self.shared.trials())) >= self.limit:
                    return "done"
                if not self.running and not waiting:
                    waiting = True
                    self.display.say("waiting for the trials of other workers")
                next_look = time.monotonic() + (2 if not self.running else TOUCH_EVERY)
            if self.poll():
                next_look = 0.0
            self.display.update(self.shared, self.running)
            time.sleep(POLL_EVERY)

    def stop(self, signals: Signals) -> None:
        """End the trials gracefully, or at once on a second signal; they are continued later."""
        seen = signals.count
        if self.running:
            ids = ", ".join(run.run_id for run in self.running)
            self.display.say(f"stopping {ids} (at most {KILL_AFTER:.0f} s; again: at once)")
        while self.running:
            for run in self.running:
                run.stop("interrupted")
                if signals.count > seen:
                    run.kill_at = 0.0
            self.poll()
            time.sleep(0.05)

    def begin(self, trial: optuna.Trial) -> None:
        """Start a trial's process, or take the result of its finished run."""
        index = trial.user_attrs["index"]
        if self.sweep.method == "grid" and index >= self.sweep.grid_size():  # this worker stalled while deciding
            trial.set_user_attr("surplus", True)
            self.study.tell(trial, state=TrialState.FAIL)
            return
        run_id = trial.user_attrs.get("run_id")
        if not run_id and self.sweep.method == "grid":
            run_id = grid_run_id(self.sweep, self.shared.extra, index)
        elif not run_id:
            run_id = hashed(self.sweep.content, self.study.study_name, index)
        try:
            values = draw(self.sweep, trial)
            trial.set_user_attr("run_id", run_id)
            trial.set_user_attr("values", values)
        except LOST_RACE:
            return
        progress = Progress(self.sweep, self.output_dir, run_id)
        if progress.finished:
            self.display.say(f"trial {index} ({run_id}) is finished already: {progress.folder}")
            self.conclude(trial, progress, None)
            return
        folder = self.shared.storage.parent
        command = with_extra(expand(self.sweep, values, folder / f"args/{run_id}.json"), self.shared.extra)
        log = folder / "logs" / f"{index:03d}-{run_id}.log"
        log.parent.mkdir(exist_ok=True)
        with open(log, "ab") as file:
            start_of_log = file.tell()
            try:
                process = start(command, run_id, file)
            except OSError as error:
                self.conclude(trial, progress, f"{command[0]}: {error.strerror}")
                return
        self.running.append(Running(trial, index, run_id, values, progress, log, process, start_of_log))
        with suppress(*LOST_RACE):
            trial.set_user_attr("lease", self.shared.lease(process.pid))
        again = " again" if "continues" in trial.user_attrs else ""
        self.display.say(f"trial {index} ({run_id}) starts{again}: {self.display.described(values)}")

    def poll(self) -> bool:
        """Look after the running trials; whether one has ended."""
        ended = []
        touched = self.shared.touch()
        states = {t.number: t.state for t in self.shared.trials()} if touched and self.running else {}
        for run in self.running:
            status = run.process.poll()
            run.progress.update()
            if states.get(run.trial.number, TrialState.RUNNING) != TrialState.RUNNING and run.stopping != "lost":
                run.stopping = ""
                run.stop("lost")
            if run.stopping != "lost":
                self.report(run)
            if status is not None:
                ended.append(run)
                self.end(run, status)
            elif time.monotonic() > run.kill_at:
                send(run.process, signal.SIGKILL)
        self.running = [run for run in self.running if run not in ended]
        return bool(ended)

    def report(self, run: Running) -> None:
        """Tell Optuna the new rows, and stop the trial if they are poor."""
        for step in range(run.reported + 1, len(run.progress.values) + 1):
            run.reported = step
            with suppress(*LOST_RACE):  # taken over; the next touch notices
                # The best so far, which is what a trial is worth: as W&B's hyperband, not the epoch's own value.
                best = run.progress.best_of(step)
                run.trial.report(math.nan if best is None else best, step)
                saves = self.max_epochs is None or step < self.max_epochs  # nothing, after the last epoch
                if saves and self.sweep.early_terminate and not run.stopping and run.trial.should_prune():
                    run.stop("pruned")
                    return

    def end(self, run: Running, status: int) -> None:
        """Record how a trial's process ended."""
        stops = run.trial.user_attrs.get("stops", 0)
        if run.stopping == "lost":
            self.display.say(f"trial {run.index} ({run.run_id}) was taken over by another worker")
        elif status == 0:
            self.conclude(run.trial, run.progress, None)
        elif run.stopping == "pruned":
            self.tell(run.trial, TrialState.PRUNED, best=run.progress.best)
            self.successes += 1
            self.display.say(f"trial {run.index} stopped early: {number(run.progress.best)}")
        elif run.stopping or (status in STOPPED and stops < MAX_STOPS):
            with suppress(*LOST_RACE):
                run.trial.set_user_attr("stops", stops + (not run.stopping))
            self.shared.continue_later(run.trial.number)
            self.display.say(f"trial {run.index} ({run.run_id}) was interrupted")
        else:
            ending = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
            self.conclude(run.trial, run.progress, run.last_line() or ending)

    def conclude(self, trial: optuna.Trial, progress: Progress, error: str | None) -> None:
        """Tell the result of a trial that came to its end, with an error or without."""
        index = trial.user_attrs["index"]
        progress.update()
        if error is None and progress.best is None and progress.values:
            error = f"{self.sweep.metric} was never finite"
        elif error is None and progress.best is None:
            error = f"{self.sweep.path.name} wants {self.sweep.metric!r}, which was not measured{progress.measured()}"
        if error is None:
            self.tell(trial, TrialState.COMPLETE, value=progress.best, best=progress.best)
            self.successes += 1
            self.display.say(f"trial {index} done: {number(progress.best)}")
        else:
            self.tell(trial, TrialState.FAIL, error=error)
            self.failures += 1
            self.display.say(f"trial {index} failed: {error}")

    def tell(self, trial: optuna.Trial, state: TrialState, value: float | None = None, **attributes: Any) -> None:
        with suppress(*LOST_RACE):  # it was taken over
            for key, attribute in attributes.items():
                trial.set_user_attr(key, attribute)
            self.study.tell(trial, value, state=state)
        write_results(self.shared, self.output_dir)


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"


# ------------------------------------------------------------------------------------------------------- display


class Display:
    """A live table on a terminal, plain lines elsewhere."""

    def __init__(self, sweep: Sweep, max_epochs: int | None):
        self.sweep, self.max_epochs = sweep, max_epochs
        terminal = sys.stdout.isatty()
        self.console = Console(highlight=False, emoji=False, width=None if terminal else 120, soft_wrap=not terminal)
        self._live = Live(console=self.console, auto_refresh=False, transient=True) if terminal else None
        self._next = 0.0
        names = [parameter.name for parameter in sweep.varied]
        last = [name.rpartition(".")[2] for name in names]
        self._short = {n: s if last.count(s) == 1 else n for n, s in zip(names, last, strict=True)}

    def __enter__(self) -> Display:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()

    def say(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)  # commands are copied from here
        sys.stdout.flush()

    def described(self, values: dict[str, Any]) -> str:
        return " ".join(f"{short}={written(values.get(name))}" for name, short in self._short.items())

    def update(self, shared: SharedStudy, running: list[Running]) -> None:
        if not self._live or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + 1
        self._live.update(self.table(shared.trials(), running), refresh=True)

    def table(self, trials: Sequence[FrozenTrial], running: Sequence[Running] = ()) -> Table:
        """Running trials first, then the best finished ones."""
        mine = {run.trial.number: run for run in running}
        ranked = ranking(self.sweep, trials)
        counts = f"{sum(map(done, trials))} finished, {sum(map(failed, trials))} failed"
        table = Table(title=f"{self.sweep.path.name}: {self.sweep.metric}, {counts}", title_justify="left")
        for heading in ("trial", "state", "parameters", "epochs", "last", "best", "time"):
            table.add_column(heading, justify="left" if heading in ("state", "parameters") else "right")
        for trial in [*(t for t in trials if t.state == TrialState.RUNNING), *ranked[: 10 if running else None]]:
            run = mine.get(trial.number)
            reported = trial.intermediate_values
            values = run.progress.values if run else [reported[step] for step in sorted(reported)]
            finite = [value for value in values if math.isfinite(value)]
            began, ended = trial.datetime_start or datetime.now(), trial.datetime_complete or datetime.now()
            state = STATES.get(trial.state, (run.stopping or "running") if run else "elsewhere")
            table.add_row(
                str(trial.user_attrs.get("index", "")),
                state,
                escape(self.described(trial.user_attrs.get("values", {}))),
                f"{len(values)}/{self.max_epochs or '?'}",
                number(values[-1] if values else None),
                number(trial.user_attrs.get("best", self.sweep.better(finite) if finite else None)),
                str(timedelta(seconds=int((ended - began).total_seconds()))),
            )
        return table

    def closing(self, shared: SharedStudy) -> None:
        """The result: all trials by value, and what failed."""
        trials = shared.trials()
        if any(map(done, trials)):
            self.console.print(self.table([t for t in trials if done(t)]), soft_wrap=False)
        for trial in filter(failed, trials):
            self.say(f"trial {trial.user_attrs['index']} failed: {trial.user_attrs['error']}")


STATES = {TrialState.COMPLETE: "done", TrialState.PRUNED: "stopped early", TrialState.FAIL: "failed"}


def written(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def ranking(sweep: Sweep, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Finished trials, the best first; those stopped early after those that came to their end, failures last."""

    def key(trial: FrozenTrial) -> tuple[int, float]:
        best = trial.user_attrs.get("best")
        if best is None:
            return 2, 0.0
        return int(trial.state != TrialState.COMPLETE), -best if sweep.maximize else best

    return sorted(filter(done, trials), key=key)


# ------------------------------------------------------------------------------------------------------- results


def write_results(shared: SharedStudy, output_dir: Path) -> Path | None:
    """trials.csv and best.yaml beside the storage; the latter's path if a trial has finished."""
    sweep, folder = shared.sweep, shared.storage.parent
    ranked = ranking(sweep, shared.trials())
    text = io.StringIO()
    names = [parameter.name for parameter in sweep.parameters]
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["trial", "state", sweep.metric, *names, "seconds", "run_id", "error"])
    for trial in ranked:
        attrs, values = trial.user_attrs, trial.user_attrs.get("values", {})
        seconds = f"{trial.duration.total_seconds():.1f}" if trial.duration else ""
        table.writerow(
            [attrs["index"], STATES[trial.state], attrs.get("best", ""), *(values.get(name) for name in names), seconds,
             attrs.get("run_id"), attrs.get("error", "")]
        )  # fmt: skip
    write_atomically(folder / "trials.csv", text.getvalue())
    for trial in ranked:
        if trial.state == TrialState.COMPLETE:
            run = Progress(sweep, output_dir, trial.user_attrs["run_id"]).folder
            if run and (run / "config.yaml").is_file():
                write_atomically(folder / "best.yaml", (run / "config.yaml").read_bytes())
                return folder / "best.yaml"
    return None


def plot(shared: SharedStudy, display: Display) -> None:
    """The two figures beside the storage; what cannot be drawn is said in a line."""
    sweep, folder = shared.sweep, shared.storage.parent
    trials = [trial for trial in shared.trials() if trial.state == TrialState.COMPLETE]
    rows = [(trial.user_attrs["values"], float(trial.user_attrs["best"])) for trial in trials]
    if len(rows) < 2 or not sweep.varied:
        display.say("no figures: they need two finished trials and a parameter that varies")
        return
    write_atomically(folder / "parallel_coordinates.png", draw_parallel(sweep, rows))
    try:
        importance = importances(shared.study, trials, sweep)
    except Exception as error:  # Optuna refuses for many reasons; a figure is not worth a failed sweep
        display.say(f"no importance.png: {str(error).splitlines()[0]}")
        return
    write_atomically(folder / "importance.png", draw_importance(sweep, importance, len(trials)))


def importances(study: optuna.Study, trials: Sequence[FrozenTrial], sweep: Sweep) -> dict[str, float]:
    """The share of each parameter that took several values, the largest first; ValueError if trials tell nothing of it.

    Optuna gives equal shares where it finds no difference, and a share to a parameter that never changed, so both are
    looked for here.
    """
    finite = [trial for trial in trials if trial.value is not None and math.isfinite(trial.value)]
    values = [trial.value for trial in finite if trial.value is not None]
    taken = [trial.user_attrs["values"] for trial in finite]
    several = [p.name for p in sweep.varied if len({json.dumps(own.get(p.name)) for own in taken}) > 1]
    needed = len(several) + 2  # with fewer trials than unknowns any parameter explains the differences
    if not several:
        raise ValueError("no parameter took more than one value in the finished trials")
    if len(several) == 1:
        raise ValueError(f"only {several[0]} took more than one value, so its share is all")
    if len(finite) < needed:
        raise ValueError(f"{len(finite)} finished trials are too few for {len(several)} parameters, {needed} would do")
    if max(values) - min(values) <= 1e-9 * max(map(abs, values)):
        raise ValueError(f"{sweep.metric} is the same in all {len(finite)} trials")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        found = optuna.importance.get_param_importances(study, params=several, normalize=False)
    total = sum(found.values())
    if not (math.isfinite(total) and total > 0):
        raise ValueError(f"the trials with the best {sweep.metric} took the same values as all others")
    return {name: share / total for name, share in found.items()}


def draw_parallel(sweep: Sweep, rows: Sequence[tuple[dict[str, Any], float]]) -> bytes:
    """Parallel coordinates, a row for each parameter and one for the metric: 800 pixels wide, as high as it needs."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    rows = sorted(rows, key=lambda row: row[1], reverse=not sweep.maximize)  # the best is drawn last ...
    results = [result for _, result in rows]
    # ... and the worst tenth looks alike, so that one diverged trial does not make all others look alike
    worst, best = results[len(results) // 10], results[-1]
    low, high = min(worst, best), max(worst, best)
    results = [min(max(result, low), high) for result in results]
    axes = [_Axis(p.name, [values[p.name] for values, _ in rows], p.logarithmic) for p in sweep.varied]
    axes.append(_Axis(sweep.metric, results, False))
    extend = "neither"
    if rows[0][1] != worst:
        extend = "min" if sweep.maximize else "max"
        end = 0 if sweep.maximize else min(1, len(axes[-1].ticks) - 1)  # its ticks begin with both ends
        position, label = axes[-1].ticks[end]
        axes[-1].ticks[end] = position, f"{'≤' if sweep.maximize else '≥'} {label}"
    norm = Normalize(low, high if high > low else low + 1e-9)
    colours = ScalarMappable(norm, "viridis" if sweep.maximize else "viridis_r")

    height = 1.0 + 0.62 * len(axes)
    figure = Figure(figsize=(8, height), dpi=100)
    figure.suptitle(f"{sweep.path.stem}: {len(rows)} trials", fontsize=11, y=1 - 0.15 / height, va="top")
    plane = figure.add_axes((0.26, 0.1 / height, 0.58, 1 - 0.6 / height))
    for row, result in enumerate(results):
        style: dict[str, Any] = {"alpha": 0.65, "linewidth": 1.2} if row < len(results) - 1 else {"linewidth": 2.5}
        positions = [axis.positions[row] for axis in axes]
        colour = colours.to_rgba(np.asarray(result))
        plane.plot(positions, range(len(axes)), color=colour, marker="o", markersize=3, **style)
    label_box = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.5}
    for place, axis in enumerate(axes):
        plane.axhline(place, color="0.6", linewidth=0.8, zorder=0)
        for position, label in axis.ticks:
            plane.plot([position], [place], marker="|", color="0.3", markersize=6, zorder=3)
            plane.text(position, place + 0.16, label, fontsize=8, ha="center", va="top", bbox=label_box, zorder=4)
    plane.set_yticks(range(len(axes)), [shortened(axis.name) for axis in axes], fontsize=9)
    plane.set(ylim=(len(axes) - 0.4, -0.35), xlim=(-0.05, 1.05), xticks=[])
    plane.tick_params(left=False)
    plane.spines[:].set_visible(False)
    bar = figure.add_axes((0.88, 0.12, 0.02, 0.72))
    figure.colorbar(colours, cax=bar, label=sweep.metric, extend=extend)
    return _png(figure)


class _Axis:
    """Positions between 0 and 1, and tick labels, of the values that one parameter took."""

    def __init__(self, name: str, values: list[Any], logarithmic: bool):
        from matplotlib.ticker import MaxNLocator

        self.name = name
        self.ticks: list[tuple[float, str]]
        if not all(is_int(value) or isinstance(value, float) for value in values):
            labels = sorted({str(value) for value in values})
            step = 1 / max(1, len(labels) - 1)
            place = {label: 0.5 if len(labels) == 1 else step * i for i, label in enumerate(labels)}
            self.positions = [place[str(value)] for value in values]
            shown = labels if len(labels) <= 8 else labels[:: math.ceil(len(labels) / 8)]
            self.ticks = [(place[label], shortened(label, min(16, 64 // len(shown)))) for label in shown]
            return
        low, high = min(values), max(values)
        logarithmic = low > 0 and (logarithmic or high / low >= 100)
        scale = math.log if logarithmic else float
        span = scale(high) - scale(low) or 1.0
        self.positions = [(scale(value) - scale(low)) / span if high > low else 0.5 for value in values]
        if len(set(values)) <= 5:
            places = sorted(set(values))
        elif logarithmic:
            powers = [10.0**k for k in range(math.floor(math.log10(low)) + 1, math.ceil(math.log10(high)))]
            places = [low, *powers[:: math.ceil(len(powers) / 5) if powers else 1], high]
        else:
            places = [low, *MaxNLocator(5).tick_values(low, high), high]
        self.ticks = []
        for value in [places[0], places[-1], *places[1:-1]]:  # the ends first: what would overlap them is left out
            position = (scale(value) - scale(low)) / span if high > low else 0.5
            if 0 <= position <= 1 and all(abs(position - other) > 0.09 for other, _ in self.ticks):
                self.ticks.append((position, f"{value:.3g}"))


def draw_importance(sweep: Sweep, importance: dict[str, float], trials: int) -> bytes:
    """Bars, the most important parameter on top; `trials` is how many were compared."""
    from matplotlib.figure import Figure

    names = list(importance)
    figure = Figure(figsize=(8, 1.1 + 0.36 * len(names)), dpi=100, layout="constrained")
    plane = figure.add_subplot()
    bars = plane.barh([shortened(name) for name in names], list(importance.values()), color="#31688e")
    plane.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
    plane.invert_yaxis()
    plane.set_xlim(0, 1.08 * max(importance.values()))
    plane.set_xlabel(f"importance for {sweep.metric} (they sum to 1)")
    plane.set_title(f"{sweep.path.stem}: importance of parameters, from {trials} trials", fontsize=11)
    plane.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def shortened(text: str, length: int = 28) -> str:
    return text if len(text) <= length else "…" + text[-(length - 1) :]


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


# ---------------------------------------------------------------------------------------------------------- main


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names that the terminal's encoding lacks must not end the sweep
            stream.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if arguments is None else arguments)
    cut = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        usage="run_local.py SWEEP.yaml [--count N] [--parallel P] [--storage FILE] [--trial N] [-- WORDS...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sweep", type=Path, metavar="SWEEP.yaml")
    parser.add_argument("--count", type=int, metavar="N", help="stop when N trials have finished (default: the grid's "
                        "size, or the file's run_cap)")  # fmt: skip
    parser.add_argument("--parallel", type=int, default=1, metavar="P", help="trials at a time (default: 1)")
    parser.add_argument("--storage", type=Path, metavar="FILE", help="the study's journal; workers that name the same "
                        "file share a sweep")  # fmt: skip
    parser.add_argument("--trial", type=int, metavar="N", help="run the grid's point N alone, without a storage")
    options = parser.parse_args(words[:cut])
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return run(options, words[cut + 1 :])
    except Mistake as mistake:
        print(mistake, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def run(options: argparse.Namespace, extra: list[str]) -> int:
    sweep = read_sweep(options.sweep)
    check_extra(sweep, extra)
    if options.trial is not None:
        if options.count is not None or options.storage or options.parallel != 1:
            raise Mistake("--trial runs one trial without a storage: leave --count, --parallel and --storage out")
        return run_one(sweep, options.trial, extra)
    if options.parallel < 1:
        raise Mistake(f"--parallel {options.parallel}: must be at least 1")
    limit = options.count if options.count is not None else sweep.run_cap
    if sweep.method == "grid":
        limit = min(limit, sweep.grid_size()) if limit is not None else sweep.grid_size()
    if limit is None:
        raise Mistake(f"--count: {sweep.path} has method {sweep.method} and no run_cap; say how many trials to run")
    if limit < 1:
        raise Mistake(f"--count {limit}: must be at least 1")
    sweep, output_dir, max_epochs = probe(sweep, extra)
    create_pruner(sweep, max_epochs)  # its mistakes come before any file is written
    storage = (options.storage or default_storage(sweep, output_dir)).absolute()
    try:
        shared = SharedStudy(sweep, extra, storage, max_epochs)
    except OSError as error:
        raise Mistake(f"--storage {storage}: {error.strerror}") from None
    display = Display(sweep, max_epochs)
    if sweep.early_terminate and sweep.early_terminate.get("strict"):
        display.say("early_terminate.strict has no counterpart here and changes nothing")
    with Signals() as signals:
        try:
            with display:
                why = Worker(shared, output_dir, limit, options.parallel, display).run(signals)
        finally:
            shared.leave()
    best = write_results(shared, output_dir)
    display.closing(shared)
    if why == "stopped":
        words = shlex.join(["python", *sys.argv])
        display.say(f"stopped by {signal.Signals(signals.number).name}; the same command continues: {words}")
        return 128 + signals.number
    plot(shared, display)
    if best:
        display.say(f"results: {best.parent}\nthe best again: {command_again(sweep, best)}")
    if why == "failures":
        print("three trials failed and none succeeded: the sweep ends here", file=sys.stderr)
    return int(any(map(failed, shared.trials())))


if __name__ == "__main__":
    sys.exit(main())
