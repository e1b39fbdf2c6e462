"""A trial's command line, from the sweep and the words after `--`; its environment; the ids of trials."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from kd_core.errors import UserError
from kd_core.files import json_sha256, sha256_of, write_text
from kd_sweeps.sweep_file import Sweep

ROOT = Path(__file__).resolve().parents[1]
# Sections of the printed settings that do not affect results: where files lie, and how runs are recorded.
ELSEWHERE = ("output_dir", "wandb", "cache")
MAX_EPOCHS = "training.max_epochs"


def check_extra(sweep: Sweep, words: Sequence[str]) -> None:
    """UserError if a word after `--` sets what the sweep sets."""
    for previous, word in itertools.pairwise(("", *words)):
        # a file name after --config may hold an equals sign
        if previous == "--config" or not word.startswith("--") and "=" not in word:
            continue
        key = word.removeprefix("--").partition("=")[0]
        for parameter in sweep.parameters:
            if f"{parameter.name}.".startswith(f"{key}.") or f"{key}.".startswith(f"{parameter.name}."):
                raise UserError(f"{word}: {sweep.path} already sets {parameter.name} (parameters.{parameter.name})")


def with_own_configs(sweep: Sweep, words: Sequence[str]) -> Sweep:
    """The sweep; if `words` name `--config` files, without those of its command, which they replace."""
    if not any(word.partition("=")[0] == "--config" for word in words):
        return sweep
    start = sweep.command.index("${program}") + 1 if "${program}" in sweep.command else 0
    kept = sweep.command[:start]  # a launcher may have a switch of the same name
    for previous, word in itertools.pairwise(("", *sweep.command[start:])):
        if previous != "--config" and word.partition("=")[0] != "--config":
            kept.append(word)
    return replace(sweep, command=kept)


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
        json_file.parent.mkdir(parents=True, exist_ok=True)
        write_text(json_file, as_json)
    words: list[str] = []
    for word in sweep.command:
        # an unset variable is replaced by its name, as in W&B
        word = re.sub(r"\$\{envvar:([A-Z0-9_]*)\}", lambda match: os.environ.get(match[1], match[1]), word)
        macro = re.fullmatch(r"\$\{(.*)\}", word)
        words += macros.get(macro[1], []) if macro else [word]
    return words


def command_again(sweep: Sweep, settings: Path) -> str:
    """The sweep's own command, including its launcher, with the settings from one file.

    `--fresh`, since without it train_kd.py finds the trial, a finished run with these settings, and trains nothing.
    """
    start = sweep.command[: sweep.command.index("${program}")] if "${program}" in sweep.command else []
    launcher = ["python" if word == "${interpreter}" else word for word in start if word != "${env}"]
    return shlex.join([*(launcher or ["python"]), sweep.program, "--config", str(settings), "--fresh"])


def words_to_fork(sweep: Sweep, command: list[str]) -> list[str]:
    """The script and its arguments of a trial's `command` that can be forked; empty if it cannot.

    It can if the script is this project's train_kd.py and nothing but this Python starts it, on Linux.
    """
    start = sweep.command[: sweep.command.index("${program}")] if "${program}" in sweep.command else ["?"]
    own = Path(sweep.program).resolve() == ROOT / "train_kd.py"
    plain = [word for word in start if word != "${env}"] == ["${interpreter}"]
    return command[len(start) :] if own and plain and sys.platform == "linux" else []


def environment(run_id: str | None = None) -> dict[str, str]:
    """A trial's environment.  `python` on its PATH is the interpreter of this process."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    trial = {"KD_TRIAL": run_id} if run_id else {}
    return {"WANDB_MODE": "offline", **os.environ, "PATH": path, **trial}


def hashed(*parts: Any) -> str:
    """Eight characters a-z0-9, in the form of W&B's run ids."""
    number = int.from_bytes(hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).digest())
    return "".join("abcdefghijklmnopqrstuvwxyz0123456789"[number // 36**i % 36] for i in range(8))


def grid_run_id(sweep: Sweep, extra: list[str], index: int) -> str:
    """The run id of a grid's point `index`, with and without a study."""
    return hashed(sweep.content, extra, index)


def probe(sweep: Sweep, extra: list[str]) -> tuple[Sweep, Path, int | None]:
    """(the sweep, output_dir, training.max_epochs), from the settings that the first trial's command prints.

    The settings become part of the sweep's identity: after a change in a file that `--config` names, it is another
    sweep.  UserError if the command fails.
    """
    values = _first_values(sweep)
    with tempfile.TemporaryDirectory() as scratch:
        command = [*expand(sweep, values, Path(scratch) / "arguments.json"), *extra, "--print-config"]
        try:
            result = subprocess.run(
                command, env=environment("printonly"), stdin=subprocess.DEVNULL, capture_output=True, text=True
            )
        except OSError as error:
            raise UserError(f"{sweep.path}: command: {command[0]}: {error.strerror}") from None
    if result.returncode:
        output = result.stderr.strip() or result.stdout.strip() or f"exit status {result.returncode}"
        raise UserError(f"{sweep.path}: the first trial's command fails: {shlex.join(command)}\n{output}")
    try:
        config = yaml.safe_load(result.stdout)
        output_dir = Path(config["output_dir"]).expanduser()
        epochs = _most_epochs(sweep, (config.get("training") or {}).get("max_epochs"))
        settings = _without_new_defaults({key: value for key, value in config.items() if key not in ELSEWHERE})
        files = [Path(file).expanduser() for file in settings.get("import") or []]
        if files and all(file.is_file() for file in files):  # own code is identified by its content, as in a run
            settings["import"] = [sha256_of(file) for file in files]
        content = {**sweep.content, "settings": settings, **_chosen_files(sweep)}
        return replace(sweep, content=content), output_dir, epochs
    except (yaml.YAMLError, AttributeError, KeyError, TypeError):
        raise UserError(f"{sweep.path}: {shlex.join(command)} printed no YAML with output_dir") from None


def _most_epochs(sweep: Sweep, printed: int | None) -> int | None:
    """The largest training.max_epochs of any trial; `printed` where no list or limit tells it."""
    swept = next((parameter for parameter in sweep.parameters if parameter.name == MAX_EPOCHS), None)
    if swept is None or swept.distribution == "constant":
        return printed
    if "values" in swept.spec:
        return max(swept.spec["values"])
    limited = not swept.logarithmic or swept.distribution.endswith("_values")  # else of the exponent
    return swept.spec.get("max", printed) if limited else printed


def require_metric(sweep: Sweep) -> None:
    """UserError if the settings of all trials leave the split out that the metric is measured on; after `probe`."""
    config = sweep.content["settings"]
    data, evaluation = config.get("data") or {}, config.get("evaluation") or {}
    varied = {parameter.name for parameter in sweep.varied}
    if {"config", "data", "evaluation"} & varied:  # these trials have other settings than the first
        return
    where = f"{sweep.path}: metric: {sweep.metric!r} is never measured"
    no_val = data.get("val_size") == 0 and data.get("val_split") is None
    if sweep.metric.startswith("val/") and no_val and not {"data.val_size", "data.val_split"} & varied:
        raise UserError(f"{where}, since data.val_size is 0: keep validation images, or name a metric of the test "
                        "split, measured with evaluation.test_at_end: true")  # fmt: skip
    if (sweep.metric.startswith("test/") and evaluation.get("test_at_end") is False
            and "evaluation.test_at_end" not in varied):  # fmt: skip
        raise UserError(f"{where}, since evaluation.test_at_end is false: give evaluation.test_at_end: true")


def _chosen_files(sweep: Sweep) -> dict[str, Any]:
    """Digests of the settings in the files among which the parameter `config` of train_kd.py chooses, by their names.

    The first trial's settings hold those of one of them alone.  UserError for a file that cannot be read.
    """
    names = [name for parameter in sweep.varied if parameter.name == "config" for name in parameter.spec["values"]]
    if not names or Path(sweep.program).resolve() != ROOT / "train_kd.py":
        return {}
    from kd_core.config.read import read_layers  # imports pydantic, which most sweeps do not need

    return {"files": {name: json_sha256([layer.values for layer in read_layers([name])]) for name in names}}


def _first_values(sweep: Sweep) -> dict[str, Any]:
    """The values of a grid's first point, else values drawn with a fixed seed."""
    if sweep.method == "grid":
        return sweep.grid_values(0)
    from kd_sweeps.samplers import first_draw  # imports Optuna, which a grid's single trial does not need

    return first_draw(sweep)


def _without_new_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without keys that earlier versions lacked, at their defaults: keeps the identity of older sweeps."""
    if not settings.get("import"):
        settings.pop("import", None)
    added: list[tuple[dict[str, Any], tuple[str, ...]]] = [(settings.get("data") or {}, ("folders", "test_size"))]
    added += [(teacher, ("trained_on",)) for teacher in settings.get("teachers") or []]
    for section, keys in added:
        for key in keys:
            if section.get(key) is None:
                section.pop(key, None)
    return settings
