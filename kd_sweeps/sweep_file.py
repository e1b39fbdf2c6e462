"""The sweep file: read, checked in full, and one message for all its mistakes."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kd_core.errors import UserError, did_you_mean

METHODS = ("grid", "random", "bayes")
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
MAX_VALUES = 100_000  # in the file with its aliases expanded, and of one parameter in a grid
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
_KEYS = {"distribution", *itertools.chain(*(required for required, _ in DISTRIBUTIONS.values()))}


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
        """How many values of a range a grid would list."""
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
    content: dict[str, Any]  # identifies the sweep: the file, and the first trial's settings from `trial_command.probe`

    @property
    def varied(self) -> list[Parameter]:
        return [parameter for parameter in self.parameters if parameter.varies]

    def better(self, values: Sequence[float]) -> float:
        return max(values) if self.maximize else min(values)

    def grid_size(self) -> int:
        return math.prod(len(parameter.grid() or ()) for parameter in self.parameters)

    def grid_point(self, index: int) -> dict[str, int]:
        """The index of each parameter's value at point `index`; the last parameter varies fastest."""
        digits = {}
        for parameter in reversed(self.parameters):
            index, digits[parameter.name] = divmod(index, len(parameter.grid() or ()))
        return digits

    def grid_values(self, index: int) -> dict[str, Any]:
        digits = self.grid_point(index)
        return {parameter.name: (parameter.grid() or ())[digits[parameter.name]] for parameter in self.parameters}


def read_sweep(path: Path) -> Sweep:
    """The checked file.  UserError: one line per mistake in it."""
    return _Reader(path).read()


class _Reader:
    """Reads one file and collects the mistakes in it."""

    def __init__(self, path: Path):
        self.path = path
        self.problems: list[str] = []

    def problem(self, where: str, what: str) -> None:
        self.problems.append(f"{self.path}: {where}: {what}")

    def read(self) -> Sweep:
        source = self.load()
        method = source.get("method")
        for key in source:
            if key not in TOP_KEYS:
                self.problem(str(key), f"unknown key{did_you_mean(key, TOP_KEYS)}")
        if method not in METHODS:
            self.problem("method", f"is {method!r}; allowed: {', '.join(METHODS)}")
        metric = self.metric(source.get("metric"))
        run_cap = source.get("run_cap")
        if run_cap is not None and not (is_int(run_cap) and run_cap > 0):
            self.problem("run_cap", f"is {run_cap!r}, not a number of trials")
        parameters = sorted(self.parameters(source.get("parameters"), ()), key=lambda parameter: parameter.path)
        names = [parameter.name for parameter in parameters]
        for name in sorted({name for name in names if names.count(name) > 1}):
            self.problem(f"parameters.{name}", "is given twice, nested and with a dotted name")
        if method == "grid":
            self.grid(parameters)
        command = self.command(source)
        early_terminate = self.early_terminate(source.get("early_terminate"))
        if self.problems:
            more = [f"and {len(self.problems) - MAX_MISTAKES} more"] if len(self.problems) > MAX_MISTAKES else []
            raise UserError("\n".join(self.problems[:MAX_MISTAKES] + more))
        return Sweep(
            path=self.path,
            method=str(method),
            metric=metric["name"],
            maximize=metric.get("goal") == "maximize",
            parameters=parameters,
            command=command,
            program=str(source.get("program", "")),
            early_terminate=early_terminate,
            run_cap=run_cap,
            content={key: source.get(key) for key in ("program", "command", "method", "parameters")},
        )

    def load(self) -> dict[str, Any]:
        try:
            if self.path.stat().st_size > MAX_BYTES:
                raise UserError(f"{self.path}: larger than {MAX_BYTES / 1e6:g} MB, so it is not a sweep file")
            source = yaml.safe_load(self.path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read: {error.strerror}") from None
        # PyYAML raises the last two for values that do not fit their tags.
        except (yaml.YAMLError, ValueError, RecursionError, LookupError, AttributeError) as error:
            raise UserError(f"{self.path}: is not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(source, dict):
            raise UserError(f"{self.path}: has no settings; a sweep file has program, method, metric and parameters")
        if expanded_size(source) > MAX_VALUES:
            raise UserError(f"{self.path}: expands to more than {MAX_VALUES:,} values: use fewer aliases (*name)")
        return source

    def metric(self, metric: Any) -> dict[str, Any]:
        metric = metric if isinstance(metric, dict) else {}
        if not isinstance(metric.get("name"), str):
            self.problem("metric", "needs a name, as in {name: val/accuracy, goal: maximize}")
        if metric.get("goal", "minimize") not in ("maximize", "minimize"):
            self.problem("metric.goal", f"is {metric['goal']!r}; allowed: maximize, minimize")
        for key in metric.keys() - {"name", "goal", "target", "impute"}:
            self.problem(f"metric.{key}", f"unknown key{did_you_mean(key, ('name', 'goal'))}")
        return metric

    def grid(self, parameters: Sequence[Parameter]) -> None:
        """A grid needs parameters whose values can be listed."""
        for parameter in parameters:
            where = f"parameters.{parameter.name}"
            if parameter.grid_steps > MAX_VALUES:
                self.problem(where, f"has about {parameter.grid_steps:g} values; a grid allows {MAX_VALUES:,} of each")
            elif parameter.grid() is None:
                what = f"is {parameter.distribution}, which a grid cannot list"
                self.problem(where, f"{what}: give values, or use method random")

    def parameters(self, source: Any, path: tuple[str, ...]) -> Iterator[Parameter]:
        where = "parameters" + "".join(f".{part}" for part in path)
        if not isinstance(source, dict) or not source:
            self.problem(where, "must name the parameters, as in {kd.temperature: {values: [2, 4]}}")
            return
        for key, spec in source.items():
            if isinstance(key, bool):
                self.problem(where, f"a key is read as {key} (YAML 1.1: on, off, yes and no are booleans): quote it")
            elif not isinstance(key, str):
                self.problem(where, f"the key {key!r} is not a string: quote it")
            elif not isinstance(spec, dict):
                self.problem(f"{where}.{key}", f"is {spec!r}; write {{value: {spec!r}}}")
            elif "parameters" in spec:
                for other in spec.keys() - {"parameters"}:
                    self.problem(f"{where}.{key}.{other}", "cannot be combined with nested parameters")
                yield from self.parameters(spec["parameters"], (*path, key))
            else:
                parameter = self.parameter(f"{where}.{key}", (*path, key), spec)
                if parameter:
                    yield parameter

    def parameter(self, where: str, path: tuple[str, ...], spec: dict[str, Any]) -> Parameter | None:
        """The parameter; None if it has mistakes."""
        before = len(self.problems)
        if path[0] == "output_dir":
            self.problem(where, "cannot be swept: the trials' results are read from one folder")
        distribution = self.distribution(where, spec)
        if not distribution:
            return None
        required, optional = DISTRIBUTIONS[distribution]
        allowed = (*required, *optional)
        for key in spec:
            if key not in (*allowed, "distribution"):
                hint = did_you_mean(key, allowed)
                self.problem(f"{where}.{key}", f"unknown key{hint}; allowed for {distribution}: {', '.join(allowed)}")
        for key in required:
            if key not in spec:
                self.problem(where, f"{distribution} needs {key}")
        full = {**optional, **{key: value for key, value in spec.items() if key != "distribution"}}
        for key, value in full.items():
            if key in ("value", "values"):
                self.values(f"{where}.{key}", value)
            elif key != "probabilities" and key in allowed:
                self.number(f"{where}.{key}", value, whole=distribution == "int_uniform")
        if len(self.problems) == before:
            self.consistent(where, distribution, full)
        return Parameter(path, distribution, full) if len(self.problems) == before else None

    def distribution(self, where: str, spec: dict[str, Any]) -> str | None:
        """The distribution that a parameter names or implies, as W&B infers it; None if there is none."""
        named = spec.get("distribution")
        if named is not None:
            if isinstance(named, str) and named in DISTRIBUTIONS:
                return named
            hint = did_you_mean(named, DISTRIBUTIONS)
            self.problem(f"{where}.distribution", f"{named!r} is unknown{hint}; allowed: {', '.join(DISTRIBUTIONS)}")
            return None
        if "value" in spec:
            return "constant"
        if "values" in spec:
            return "categorical_w_probabilities" if "probabilities" in spec else "categorical"
        if "min" in spec and "max" in spec:
            return "int_uniform" if is_int(spec["min"]) and is_int(spec["max"]) else "uniform"
        hints = "".join(f"; unknown key {key!r}{did_you_mean(key, _KEYS)}" for key in spec if key not in _KEYS)
        self.problem(where, f"needs value, values, min and max, or a distribution{hints}")
        return None

    def values(self, where: str, value: Any) -> None:
        """Values must be as meant (no number read as a string), and JSON must be able to hold them."""
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and text_number(text):
                self.problem(where, read_as_text(text))
        try:
            json.dumps(value, sort_keys=True)
        except (TypeError, ValueError):
            self.problem(where, f"holds a date or a key that is not a string, in {value!r}: quote it")

    def number(self, where: str, value: Any, whole: bool = False) -> bool:
        """Whether `value` is a number; if not, a problem is noted."""
        if isinstance(value, str) and text_number(value):
            self.problem(where, read_as_text(value))
        elif not (is_int(value) or isinstance(value, float)) or not abs(value) < 1e300:
            self.problem(where, f"is {value!r}, not a number below 1e300")
        elif whole and not is_int(value):
            self.problem(where, f"is {value!r}; int_uniform needs whole numbers")
        else:
            return True
        return False

    def consistent(self, where: str, distribution: str, spec: dict[str, Any]) -> None:
        """Checks between the keys of one parameter whose types are right."""
        if "values" in spec and (not isinstance(spec["values"], list) or not spec["values"]):
            self.problem(f"{where}.values", "must be a list with at least one value")
        elif "probabilities" in spec:
            self.probabilities(f"{where}.probabilities", spec["probabilities"], len(spec["values"]))
        if "min" in spec:
            low, high = spec["min"], spec["max"]
            if low >= high:
                self.problem(where, f"min {low} must be smaller than max {high}")
            elif distribution.endswith("log_uniform_values") and low <= 0:
                self.problem(f"{where}.min", f"is {low}; {distribution} needs values above 0")
            elif distribution.endswith("log_uniform") and max(abs(low), abs(high)) > 700:
                what = f"{distribution} takes exponents of e"
                self.problem(where, f"{what}; for the values themselves use {distribution}_values")
        for key in ("q", "sigma", "a", "b"):
            if key in spec and spec[key] <= 0:
                self.problem(f"{where}.{key}", f"is {spec[key]}; must be above 0")

    def probabilities(self, where: str, weights: Any, values: int) -> None:
        if not isinstance(weights, list):
            self.problem(where, f"is {weights!r}, not a list")
        elif len(weights) != values:
            self.problem(where, f"{len(weights)} for {values} values: give one per value")
        elif all(self.number(where, weight) for weight in weights):
            if min(weights) < 0 or abs(sum(weights) - 1) > 1e-6:
                self.problem(where, f"sum to {sum(weights):g}; must be at least 0 and sum to 1")

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
                    hint = did_you_mean(macro, MACROS)
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
                    self.problem(f"early_terminate.{key}", f"is {value}; must be a whole number of at least {least}")
            elif key not in ("type", "strict"):
                known = ("min_iter", "max_iter", "s", "eta", "strict")
                self.problem(f"early_terminate.{key}", f"unknown key{did_you_mean(key, known)}")
        if ("min_iter" in early) == ("max_iter" in early) or ("max_iter" in early) != ("s" in early):
            self.problem("early_terminate", "give either min_iter, or max_iter and s")
        return early


def expanded_size(source: Any) -> int:
    """The number of values with every alias expanded; counting stops beyond MAX_VALUES."""
    waiting, count = [source], 0
    while waiting and count <= MAX_VALUES:
        value = waiting.pop()
        count += 1
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple, set)) else ()
    return count


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def tidy(value: float, q: float) -> float | int:
    """A multiple of `q` without rounding noise (0.30000000000000004); an integer if `q` is one."""
    return int(round(value)) if is_int(q) else float(f"{value:.12g}")


def text_number(text: str) -> re.Match[str] | None:
    """A match if `text` is a number with an exponent, which YAML 1.1 reads as a string without a point or sign."""
    return re.fullmatch(r"([-+]?\d+)(\.\d*)?[eE]([-+]?)(\d+)", text.strip())


def read_as_text(text: str) -> str:
    match = text_number(text)
    assert match
    whole, fraction, sign, exponent = match.groups()
    return (
        f"is {text!r}, which YAML 1.1 reads as a string: "
        f"write {whole}{fraction if fraction and fraction != '.' else '.0'}e{sign or '+'}{exponent}"
    )
