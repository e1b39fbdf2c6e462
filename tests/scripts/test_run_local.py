"""sweeps/run_local.py, mostly with a toy program that behaves as train_kd.py does: run folders, resuming, signals."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import yaml
from scipy import stats
from wandb.sdk.launch.sweeps import utils as wandb_sweeps
from warm_process import WarmProcess

from sweeps import run_local

ROOT = Path(__file__).parents[2]
TOY = """
import json, os, pathlib, signal, sys, time

settings = {"output_dir": "runs", "training.max_epochs": "3", "x": "0", "fail": "", "peak": ""}
settings |= {"gate": "", "gate_epoch": "0", "free": ""}  # wait for a file after an epoch, unless x is free
for word in sys.argv[1:]:
    key, _, value = word.removeprefix("--").partition("=")
    settings[key] = value
output, epochs = pathlib.Path(settings["output_dir"]), int(settings["training.max_epochs"])
if settings["x"] == "mistake":
    print("x: 'mistake' is no number", file=sys.stderr)
    sys.exit(2)
if "print-config" in settings:
    base = pathlib.Path(sys.argv[0]).with_name("base.txt")  # stands for the file behind --config
    config = {"output_dir": str(output), "training": {"max_epochs": epochs}, "wandb": {"id": os.getpid()}}
    print(json.dumps(config | {"base": base.read_text() if base.exists() else ""}))
    sys.exit(0)
folder = output / f"toy-{os.environ['KD_TRIAL']}"
folder.mkdir(parents=True, exist_ok=True)
metrics, summary = folder / "metrics.jsonl", folder / "summary.json"

def stop(number, frame):
    summary.write_text(json.dumps({"status": "interrupted"}))
    sys.exit(128 + number)

signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGUSR1, stop)
done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
with open(output / "starts.txt", "a") as file:
    file.write(f"{os.environ['KD_TRIAL']} {done} {os.getpid()} {os.environ['WANDB_MODE']} {settings['x']}\\n")
summary.write_text(json.dumps({"status": "running"}))
(folder / "config.yaml").write_text(json.dumps(settings))
if settings["fail"] and settings["x"] in settings["fail"].split(","):
    print("some output")
    sys.exit("it broke")
for epoch in range(done, epochs):
    value = float(settings["x"]) + epoch / 100
    if settings["peak"]:
        value = float(settings["x"]) + (1 if epoch == int(settings["peak"]) else 0)
    with open(metrics, "a") as file:
        file.write(json.dumps({"epoch": epoch + 1, "val/score": value}) + "\\n")
    gated = settings["gate"] and epoch == int(settings["gate_epoch"]) and settings["x"] != settings["free"]
    while gated and not os.path.exists(settings["gate"]):
        time.sleep(0.01)
summary.write_text(json.dumps({"status": "finished"}))
"""


class Sandbox:
    """A folder with the toy and one sweep file."""

    def __init__(self, folder: Path):
        self.folder, self.output = folder, folder / "runs"
        (folder / "toy.py").write_text(TOY)
        self.sweep({"x": {"values": [1, 2, 3]}})

    def sweep(self, parameters: dict[str, Any], name: str = "s", **keys: Any) -> Path:
        content = {
            "program": str(self.folder / "toy.py"),
            "method": "grid",
            "metric": {"name": "val/score", "goal": "maximize"},
            "parameters": {"output_dir_": {"value": 0}, **parameters},
            **keys,
        }
        del content["parameters"]["output_dir_"]
        self.file = self.folder / f"{name}.yaml"
        self.file.write_text(yaml.safe_dump(content))
        return self.file

    def words(self, *words: str) -> list[str]:
        before, after = words, ()
        if "--" in words:
            before, after = words[: words.index("--")], words[words.index("--") + 1 :]
        return [str(self.file), *before, "--", f"--output_dir={self.output}", *after]

    def run(self, *words: str) -> int:
        return run_local.main(self.words(*words))

    def spawn(self, *words: str) -> WarmProcess:
        return WarmProcess(["sweeps/run_local.py", *self.words(*words)])

    @property
    def starts(self) -> list[list[str]]:
        """[run id, epochs done before, pid, WANDB_MODE, x] of each start of the toy."""
        file = self.output / "starts.txt"
        return [line.split() for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def results(self) -> Path:
        return self.output / "sweeps" / self.file.stem

    def table(self) -> list[dict[str, str]]:
        with open(self.results / "trials.csv") as file:
            return list(csv.DictReader(file))


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(run_local, "POLL_EVERY", 0.02)
    return Sandbox(tmp_path)


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 60) -> None:
    """Return once `condition` holds; fails, not hangs, if it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


# ----------------------------------------------------------------------------------------------- the sweep file

GOOD = {"program": "p.py", "method": "random", "metric": {"name": "m", "goal": "maximize"}}
MISTAKES = {
    "min as text": (
        "parameters: {training.learning_rate: {min: 1e-4, max: 1.0e-2}}",
        "parameters.training.learning_rate.min: is '1e-4', a text (YAML 1.1 reads it so): write 1.0e-4",
    ),
    "value as text": ("parameters: {lr: {values: [0.1, 2.5e3]}}", "parameters.lr.values: is '2.5e3', a text"),
    "the text's correction": ("parameters: {lr: {value: 2.5e3}}", "write 2.5e+3"),
    "quoted bound": ("parameters: {lr: {min: '1', max: 2}}", "parameters.lr.min: is '1', not a number"),
    "key off": ("parameters: {off: {values: [1]}}", "a key is read as False"),
    "number as key": ("parameters: {1: {values: [1]}}", "the key 1 is not a text"),
    "nested key no": ("parameters: {a: {parameters: {no: {value: 1}}}}", "parameters.a: a key is read as False"),
    "bare value": ("parameters: {a: 3}", "parameters.a: is 3; write {value: 3}"),
    "unknown key": ("parameters: {a: {min: 1, max: 2, step: 1}}", "parameters.a.step: unknown key"),
    "misspelt key": ("parameters: {a: {valeus: [1]}}", "did you mean 'values'?"),
    "empty": ("parameters: {}", "parameters: must name the parameters"),
    "distribution": ("parameters: {a: {distribution: unifrom, min: 1, max: 2}}", "did you mean 'uniform'?"),
    "list as distribution": ("parameters: {a: {distribution: [1], min: 1, max: 2}}", "[1] is unknown"),
    "missing max": ("parameters: {a: {distribution: uniform, min: 1}}", "parameters.a: uniform needs max"),
    "order": ("parameters: {a: {min: 2, max: 1}}", "parameters.a: min 2 must be smaller than max 1"),
    "log of 0": ("parameters: {a: {distribution: log_uniform_values, min: 0, max: 1}}", "needs values above 0"),
    "exponents": ("parameters: {a: {distribution: log_uniform, min: 1, max: 1000}}", "takes exponents of e"),
    "fractions": ("parameters: {a: {distribution: int_uniform, min: 1.5, max: 3}}", "takes whole numbers"),
    "probabilities' number": ("parameters: {a: {values: [1, 2], probabilities: [1.0]}}", "1 for 2 values"),
    "probabilities' sum": ("parameters: {a: {values: [1, 2], probabilities: [0.5, 0.4]}}", "sum to 0.9"),
    "sigma": ("parameters: {a: {distribution: normal, mu: 0, sigma: 0}}", "parameters.a.sigma: is 0; must be above 0"),
    "date": ("parameters: {a: {value: 2024-01-01}}", "put it in quotes"),
    "twice": ("parameters: {a.b: {value: 1}, a: {parameters: {b: {value: 2}}}}", "parameters.a.b: is there twice"),
    "output_dir": ("parameters: {output_dir: {values: [a, b]}}", "parameters.output_dir: cannot be swept"),
    "method": ("method: baies", "method: is 'baies'; allowed: grid, random, bayes"),
    "metric": ("metric: {goal: maximize}", "metric: needs a name"),
    "goal": ("metric: {name: m, goal: maximise}", "metric.goal: is 'maximise'; allowed: maximize, minimize"),
    "macro": ("command: ['${program}', '${arg}']", "command: unknown macro ${arg}, did you mean 'args'?"),
    "macro in a word": ("command: ['x${args}']", "is expanded only as a word of its own"),
    "top key": ("paramaters: {}", "paramaters: unknown key, did you mean 'parameters'?"),
    "continuous grid": ("method: grid\nparameters: {a: {min: 0.0, max: 1.0}}", "a: is uniform, which a grid"),
    "a grid of too many values": ("method: grid\nparameters: {a: {min: 0, max: 1000000000000}}", "a: has about 1e+12"),
    "a number beyond floats": ("parameters: {a: {min: 0, max: 1" + "0" * 400 + "}}", "not a number below 1e300"),
    "aliases without end": ("parameters: &p {a: {parameters: *p}}", "unfolds to more than 100,000 values"),
    "aliases of aliases": (
        "description:\n  - &a0 x\n" + "".join(f"  - &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 15)),
        "unfolds to more than 100,000 values",
    ),
    "hyperband": ("early_terminate: {type: hyperband}", "early_terminate: give either min_iter, or max_iter and s"),
    "no YAML": ("a: [", "is not valid YAML"),
    "no YAML: a tag": ("parameters: {a: {value: !!bool x}}", "is not valid YAML"),
    "no YAML: a date": ("parameters: {a: {value: !!timestamp x}}", "is not valid YAML"),
    "no YAML: nesting": ("a: " + "[" * 5000, "is not valid YAML"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line_each(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, expected = MISTAKES[name]
    file = tmp_path / "s.yaml"
    keys = {key for key in yaml.safe_load(text)} if not name.startswith("no YAML") else set()
    rest = {key: value for key, value in {**GOOD, "parameters": {"z": {"value": 1}}}.items() if key not in keys}
    file.write_text(yaml.safe_dump(rest) + text + "\n")
    assert run_local.main([str(file), "--count", "1"]) == 2
    printed = capsys.readouterr()
    assert not printed.out
    lines = printed.err.splitlines()
    assert all(line.startswith(f"{file}: ") for line in lines)
    assert any(expected in line for line in lines), printed.err
    assert list(tmp_path.iterdir()) == [file]  # nothing has begun


def test_all_mistakes_are_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.yaml").write_text("method: x\nmetric: {goal: y}\nparameters: {a: {min: 2, max: 1}}\n")
    assert run_local.main([str(tmp_path / "s.yaml")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 5  # method, metric, goal, min, program


def test_a_file_that_is_no_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "large.yaml").write_text("#" * 1_000_001)
    (tmp_path / "list.yaml").write_text("[1]")
    for name, expected in (("large", "larger than 1 MB"), ("list", "holds no settings"), ("none", "cannot be read")):
        assert run_local.main([str(tmp_path / f"{name}.yaml")]) == 2
        assert expected in capsys.readouterr().err


def test_mistakes_on_the_command_line(sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: str) -> str:
        assert sandbox.run(*words) == 2
        assert not sandbox.starts
        return capsys.readouterr().err

    assert "sets x already" in said("--", "--x=3")
    assert "trials 0 to 2" in said("--trial", "3")
    assert "leave --count" in said("--trial", "0", "--count", "1")
    assert "--parallel 0" in said("--parallel", "0")
    assert "--count 0" in said("--count", "0")
    sandbox.sweep({"x": {"min": 0.0, "max": 1.0}}, method="random")
    assert "no run_cap" in said()
    assert "only a grid's points have numbers" in said("--trial", "0")
    sandbox.sweep({"x": {"values": ["mistake", 1]}})
    assert "x: 'mistake' is no number" in said()  # the program's own message
    sandbox.sweep({"x": {"values": [1]}}, command=["no-such-program", "${args}"])
    assert "no-such-program: No such file" in said()
    sandbox.sweep({"x": {"values": [1]}}, early_terminate={"type": "hyperband", "min_iter": 9})
    assert "is 9, but training.max_epochs is 3" in said()


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        run_local.main(["--help"])
    assert ending.value.code == 0
    assert "python sweeps/run_local.py SWEEP.yaml --count 30" in capsys.readouterr().out


# -------------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize("macro", [name for name in run_local.MACROS if name.startswith("args")])
def test_arguments_are_those_of_wandb(macro: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KD_TEST_WORD", "seen")
    monkeypatch.delenv("KD_TEST_UNSET", raising=False)
    values = {"flag": True, "off": False, "kd.T": 4.0, "list": [1, 2], "none": None, "text": "a b", "small": 1e-5}
    command = ["run-${envvar:KD_TEST_WORD}", "${envvar:KD_TEST_UNSET}", f"${{{macro}}}", "--n", 2]
    file = tmp_path / "s.yaml"
    parameters: dict[str, Any] = {key: {"value": value} for key, value in values.items()}
    parameters["opt"] = {"parameters": {"lr": {"value": 0.1}, "deep": {"parameters": {"b": {"value": "c"}}}}}
    file.write_text(yaml.safe_dump({**GOOD, "command": command, "parameters": parameters}))
    sweep = run_local.read_sweep(file)
    drawn = {parameter.name: parameter.spec["value"] for parameter in sweep.parameters}
    arguments = {**values, "opt": {"deep": {"b": "c"}, "lr": 0.1}}
    theirs = wandb_sweeps.create_sweep_command_args(
        {"args": {key: {"value": arguments[key]} for key in sorted(arguments)}}
    )
    expected = [str(word) for word in wandb_sweeps.create_sweep_command([*command])]
    expected[2:3] = theirs[macro] if macro != "args_json_file" else [str(tmp_path / "a.json")]
    assert run_local.expand(sweep, drawn, tmp_path / "a.json") == expected
    if macro == "args_json_file":
        assert json.loads((tmp_path / "a.json").read_text()) == theirs["args_dict"]


@pytest.mark.parametrize(
    ("command", "again"),
    [
        (["${env}", "${interpreter}", "${program}", "--config", "c.yaml", "${args}"], "python train_kd.py"),
        (["accelerate", "launch", "--cpu", "${program}"], "accelerate launch --cpu train_kd.py"),
        (["${interpreter}", "-m", "launcher", "${program}"], "python -m launcher train_kd.py"),
        (["./mine.sh", "${args}"], "python train_kd.py"),
    ],
)
def test_the_best_trial_is_started_as_the_sweep_starts_its_trials(
    command: list[str], again: str, tmp_path: Path
) -> None:
    own = {"program": "train_kd.py", "command": command, "parameters": {"a": {"values": [1, 2]}}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**GOOD, **own}))
    sweep = run_local.read_sweep(tmp_path / "s.yaml")
    assert run_local.command_again(sweep, Path("/a b/best.yaml")) == f"{again} --config '/a b/best.yaml'"


def test_the_default_command_is_that_of_wandb() -> None:
    assert run_local.DEFAULT_COMMAND == wandb_sweeps.DEFAULT_SWEEP_COMMAND


# --------------------------------------------------------------------------------------------------- the values


def draws(spec: dict[str, Any], number: int = 1000) -> list[Any]:
    """Values of one parameter, drawn as a random sweep draws them."""
    path = Path("s.yaml")
    parameter = run_local._Reader(path).parameter("parameters.a", ("a",), spec)
    assert parameter
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    return [run_local.suggest(study.ask(), parameter) for _ in range(number)]


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
def test_quantised_distributions(name: str) -> None:
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
    quantised = {"q_uniform", "q_log_uniform", "q_log_uniform_values", "q_normal", "q_log_normal", "q_beta"}
    discrete = {"constant", "categorical", "categorical_w_probabilities", "int_uniform"}
    assert set(run_local.DISTRIBUTIONS) == {*CONTINUOUS, *quantised, *discrete}


def test_a_grid_is_in_the_order_of_wandb(sandbox: Sandbox) -> None:
    """Sorted by name, the last parameter varies fastest; equal values count once."""
    sandbox.sweep(
        {
            "b": {"min": 1, "max": 2},
            "a": {"values": ["u", [1], "u"]},
            "c": {"distribution": "q_uniform", "min": 0.0, "max": 0.5, "q": 0.25},
        }
    )
    sweep = run_local.read_sweep(sandbox.file)
    points = [tuple(sweep.grid_values(index).values()) for index in range(sweep.grid_size())]
    assert points == [(a, b, c) for a in ("u", [1]) for b in (1, 2) for c in (0.0, 0.25)]


# ------------------------------------------------------------------------------------------------- whole sweeps


def test_a_grid(sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    sandbox.sweep({"x": {"values": [1, 3, 2]}, "nested": {"parameters": {"y": {"values": [[0], None]}}}})
    assert sandbox.run("--parallel", "2") == 0
    assert len(sandbox.starts) == 6 and len({start[0] for start in sandbox.starts}) == 6
    assert all(re.fullmatch("[a-z0-9]{8}", start[0]) and start[3] == "offline" for start in sandbox.starts)
    rows = sandbox.table()
    assert [row["val/score"] for row in rows] == ["3.02", "3.02", "2.02", "2.02", "1.02", "1.02"]
    assert {row["state"] for row in rows} == {"done"} and {row["nested.y"] for row in rows} == {"[0]", ""}
    assert json.loads((sandbox.results / "best.yaml").read_text())["x"] == "3"
    printed = capsys.readouterr().out
    assert f"--config {sandbox.results}/best.yaml" in printed and "6 finished, 0 failed" in printed
    assert (sandbox.results / "parallel_coordinates.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((sandbox.results / "logs").iterdir())) == 6

    assert sandbox.run() == 0  # nothing is left to do
    (sandbox.results / "study.journal").unlink()
    assert sandbox.run() == 0  # nor without the storage: the runs are there
    assert len(sandbox.starts) == 6 and len(sandbox.table()) == 6


def test_one_point_of_a_grid(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert sandbox.run("--trial", "1") == 0
    assert sandbox.run("--trial", "1") == 0  # finished: not started again
    (start,) = sandbox.starts
    assert start[3:] == ["disabled", "2"]
    assert not sandbox.results.exists()
    assert sandbox.run("--trial", "2", "--", "--fail=3") == 1
    assert sandbox.run() == 0  # the whole grid takes the finished run over
    assert [start[4] for start in sandbox.starts] == ["2", "3", "1", "3"]
    assert sorted(row["val/score"] for row in sandbox.table()) == ["1.02", "2.02", "3.02"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_reach_a_single_trial(number: signal.Signals, sandbox: Sandbox) -> None:
    worker = sandbox.spawn("--trial", "1", "--", f"--gate={sandbox.folder}/gate")
    wait_for(lambda: list(sandbox.output.glob("*/metrics.jsonl")), "the trial starts")
    worker.send_signal(number)
    assert worker.wait(60) == 128 + number


def test_workers_share_a_grid(sandbox: Sandbox) -> None:
    sandbox.sweep({"x": {"values": list(range(12))}})
    workers = [sandbox.spawn("--parallel", "2") for _ in range(2)]
    assert [worker.wait(60) for worker in workers] == [0, 0]
    assert sorted(int(start[4]) for start in sandbox.starts) == list(range(12))
    assert len(sandbox.table()) == 12


def test_an_interrupted_sweep_continues(sandbox: Sandbox) -> None:
    gate = sandbox.folder / "gate"
    worker = sandbox.spawn("--parallel", "2", "--", f"--gate={gate}")
    wait_for(lambda: len(list(sandbox.output.glob("*/metrics.jsonl"))) == 2, "two trials start")
    worker.send_signal(signal.SIGTERM)
    printed, _ = worker.communicate(timeout=60)
    assert worker.returncode == 143 and "the same command continues: python " in printed
    assert [json.loads(file.read_text())["status"] for file in sandbox.output.glob("*/summary.json")] == [
        "interrupted"
    ] * 2
    gate.touch()
    assert sandbox.run("--", f"--gate={gate}") == 0
    starts = sorted((start[4], start[1]) for start in sandbox.starts)
    assert starts == [("1", "0"), ("1", "1"), ("2", "0"), ("2", "1"), ("3", "0")]  # they go on after their first epoch
    assert len({start[0] for start in sandbox.starts}) == 3  # in the same runs
    assert sorted(row["trial"] for row in sandbox.table()) == ["0", "1", "2"]


def test_a_random_sweep_continues_with_the_same_values(sandbox: Sandbox) -> None:
    gate = sandbox.folder / "gate"
    sandbox.sweep({"x": {"distribution": "normal"}}, method="random", run_cap=2)
    worker = sandbox.spawn("--", f"--gate={gate}")
    wait_for(lambda: list(sandbox.output.glob("*/metrics.jsonl")), "a trial starts")
    worker.send_signal(signal.SIGINT)
    assert worker.wait(60) == 130
    gate.touch()
    assert sandbox.run("--", f"--gate={gate}") == 0
    first, again, second = sandbox.starts
    assert (first[0], first[4]) == (again[0], again[4]) and second[0] != first[0]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="orphaned trials are told to end on Linux only")
def test_a_killed_worker_is_replaced(sandbox: Sandbox) -> None:
    """By a worker that lives; the dead one's trial ends first, so that no run has two processes."""
    gate = sandbox.folder / "gate"
    victim = sandbox.spawn("--", f"--gate={gate}")
    wait_for(lambda: list(sandbox.output.glob("*/metrics.jsonl")), "a trial starts")
    heir = sandbox.spawn("--", f"--gate={gate}")
    wait_for(lambda: len(list(sandbox.output.glob("*/metrics.jsonl"))) == 2, "a second trial starts")
    victim.kill()
    victim.wait()
    gate.touch()
    assert heir.wait(60) == 0
    starts = sandbox.starts
    assert sorted(start[4] for start in starts) == ["1", "1", "2", "3"]
    orphan, again = (start for start in starts if start[4] == "1")
    assert orphan[0] == again[0] and orphan[1:2] == ["0"] and again[1] == "1"
    assert not run_local.alive(int(orphan[2]))


@pytest.mark.parametrize("how", ["a stranger's signal", "taken over"])
def test_a_worker_goes_on_with_a_trial_that_was_stopped(how: str, sandbox: Sandbox) -> None:
    gate = sandbox.folder / "gate"
    worker = sandbox.spawn("--count", "1", "--", f"--gate={gate}")
    wait_for(lambda: list(sandbox.output.glob("*/metrics.jsonl")), "a trial starts")
    if how == "taken over":
        study = optuna.load_study(study_name=None, storage=storage_of(sandbox.results / "study.journal"))
        study.tell(0, state=optuna.trial.TrialState.FAIL)
    else:
        os.kill(int(sandbox.starts[0][2]), signal.SIGTERM)
    wait_for(lambda: len(sandbox.starts) == 2, "it starts again")
    gate.touch()
    printed, _ = worker.communicate(timeout=60)
    assert worker.returncode == 0, printed
    first, again = sandbox.starts
    assert first[0] == again[0] and (first[1], again[1]) == ("0", "1")
    assert ("taken over by another worker" in printed) == (how == "taken over")


def storage_of(journal: Path) -> optuna.storages.JournalStorage:
    lock = optuna.storages.journal.JournalFileOpenLock(str(journal))
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal), lock))


def shared_study(sandbox: Sandbox) -> run_local.SharedStudy:
    sweep = run_local.read_sweep(sandbox.file)
    return run_local.SharedStudy(sweep, [], sandbox.folder / "study.journal", 3)


def test_leases(sandbox: Sandbox) -> None:
    """A trial is taken over once, and only if its worker is dead: untouched for a minute, or gone on this host."""
    mine, other = shared_study(sandbox), shared_study(sandbox)
    other._host = "elsewhere"
    trial = other.next_trial(3)
    assert trial and trial.user_attrs["index"] == 0
    second = mine.next_trial(3)
    assert second and second.user_attrs["index"] == 1  # the other worker is alive
    past = time.time() - run_local.STALE_AFTER - 5
    os.utime(other._touched, (past, past))
    heir = mine.next_trial(3)
    assert heir and heir.user_attrs["index"] == 0 and heir.user_attrs["continues"] == trial.number
    with pytest.raises(ValueError):
        other.study.tell(trial.number, 1.0)  # too late
    last = mine.next_trial(3)
    assert last and last.user_attrs["index"] == 2  # the continuation has used up a number, not a point
    assert mine.next_trial(3) is None
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    last.set_user_attr("lease", {**mine.lease(None), "pid": int(gone.stdout)})
    heir = mine.next_trial(3)
    assert heir and heir.user_attrs["index"] == 2


def test_a_worker_that_died_while_deciding_loses_no_point(sandbox: Sandbox) -> None:
    shared = shared_study(sandbox)
    shared.study.ask()  # and no more: no index, no lease
    indices = []
    while trial := shared.next_trial(3):
        indices.append(trial.user_attrs["index"])
    assert indices == [0, 1, 2]


def test_early_termination(sandbox: Sandbox) -> None:
    """Poor trials wait at a gate that never opens after the second row, the rung: only being stopped ends them."""
    sandbox.sweep({"x": {"values": [5, 4, 3]}}, early_terminate={"type": "hyperband", "min_iter": 2, "eta": 2})
    assert sandbox.run("--parallel", "2", "--", "--gate=never", "--gate_epoch=1", "--free=5") == 0
    assert [(row["x"], row["state"]) for row in sandbox.table()] == [
        ("5", "done"),
        ("4", "stopped early"),
        ("3", "stopped early"),
    ]
    assert sandbox.run() == 2  # other words after --: another sweep


def test_hyperband_settings(sandbox: Sandbox) -> None:
    def pruner(**early: Any) -> Any:
        sandbox.sweep({"x": {"values": [1]}}, early_terminate={"type": "hyperband", **early})
        return run_local.create_pruner(run_local.read_sweep(sandbox.file), 81)

    least = pruner(min_iter=3)
    assert (least._min_resource, least._max_resource, least._reduction_factor) == (3, 81, 3)
    most = pruner(max_iter=27, s=2, eta=2)
    assert (most._min_resource, most._max_resource, most._reduction_factor) == (6, 27, 2)
    assert pruner(max_iter=4, s=3)._min_resource == 1


def test_failures(sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    sandbox.sweep({"x": {"values": [1, 2, 3, 4, 5]}})
    assert sandbox.run("--", "--fail=2,3,4") == 1  # three, but not without a success
    rows = sandbox.table()
    assert [row["state"] for row in rows] == ["done"] * 2 + ["failed"] * 3
    assert rows[-1]["error"] == "it broke"
    assert "failed: it broke" in capsys.readouterr().out


def test_three_failures_end_the_sweep(sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    sandbox.sweep({"x": {"values": [1, 2, 3, 4, 5]}})
    assert sandbox.run("--", "--fail=1,2,3,4,5") == 1
    assert len(sandbox.starts) == 3
    assert "three trials failed and none succeeded" in capsys.readouterr().err


def test_a_run_without_the_metric_failed(sandbox: Sandbox) -> None:
    sandbox.sweep({"x": {"values": [1]}}, metric={"name": "val/other", "goal": "maximize"})
    assert sandbox.run() == 1
    assert "wants 'val/other', which was not measured" in sandbox.table()[0]["error"]
    assert "has epoch, val/score" in sandbox.table()[0]["error"]


def test_another_sweep_is_refused(sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    assert sandbox.run("--count", "1") == 0
    sandbox.sweep({"x": {"values": [1, 2]}})
    assert sandbox.run() == 2
    assert "holds another sweep" in capsys.readouterr().err
    assert sandbox.run("--storage", str(sandbox.folder / "other" / "x.journal")) == 0
    assert (sandbox.folder / "other" / "best.yaml").exists()


def test_a_change_behind_the_command_makes_another_sweep(sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    assert sandbox.run() == 0
    (sandbox.folder / "base.txt").write_text("other settings")
    assert sandbox.run() == 2
    assert "holds another sweep (other parameters, settings," in capsys.readouterr().err
    before = {run_id for run_id, *_ in sandbox.starts}
    assert sandbox.run("--storage", str(sandbox.folder / "other" / "x.journal")) == 0
    assert len({run_id for run_id, *_ in sandbox.starts} - before) == 3  # finished runs of the former are not taken


def test_count(sandbox: Sandbox) -> None:
    """The trials of the study that have finished, whoever ran them."""
    sandbox.sweep({"x": {"min": 0.0, "max": 1.0}}, method="random", run_cap=1)
    for words, total in (
        ((), 1),
        (("--count", "1"), 1),
        (("--count", "4", "--parallel", "3"), 4),
        (("--count", "2"), 4),
    ):
        assert sandbox.run(*words) == 0
        assert len(sandbox.starts) == total


def test_the_best_row_counts(sandbox: Sandbox) -> None:
    """Not the last; the lowest when minimizing."""
    assert sandbox.run("--count", "1", "--", "--peak=1") == 0
    assert sandbox.table()[0]["val/score"] == "2.0"
    sandbox.sweep({"x": {"values": [1, 2]}}, name="min", metric={"name": "val/score", "goal": "minimize"})
    assert sandbox.run("--", "--peak=0") == 0
    assert [row["val/score"] for row in sandbox.table()] == ["1.0", "2.0"]


def test_torn_and_odd_rows(sandbox: Sandbox) -> None:
    folder = sandbox.output / "toy-abcdefgh"
    folder.mkdir(parents=True)
    progress = run_local.Progress(run_local.read_sweep(sandbox.file), sandbox.output, "abcdefgh")
    progress.update()
    assert progress.best is None and not progress.finished
    rows = [
        '{"val/score": 0.5}',
        '{"val/score": NaN}',
        '{"val/score": Infinity}',
        '{"train/loss": 9}',
        '{"val/score": null}',
        '{"val/score": 0.',
    ]
    (folder / "metrics.jsonl").write_text("\n".join(rows))
    progress.update()
    assert len(progress.values) == 4 and progress.best == 0.5  # null is what was not finite
    (folder / "metrics.jsonl").write_text('{"val/score": 0.25}\n')  # a resumed run cuts its file back
    progress.update()
    assert progress.values == [0.25]


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
    sweep = run_local.read_sweep(file)
    study = optuna.create_study(sampler=run_local.create_sampler(sweep, seed=1))
    rows = [(run_local.draw(sweep, study.ask()), 0.5 + 0.4 * (i / 30) ** 2) for i in range(30)]
    image = run_local.draw_parallel(sweep, rows)
    width = int.from_bytes(image[16:20], "big")
    assert width == 800
    importance = {parameter.name: 0.5**i for i, parameter in enumerate(sweep.varied)}
    assert run_local.draw_importance(sweep, importance, 30).startswith(b"\x89PNG")


GRID = {"kd.temperature": [1.0, 2.0, 4.0], "training.seed": [0, 1]}


def plotted(folder: Path, parameters: dict[str, list[Any]], results: list[float]) -> tuple[set[str], str]:
    """The figures of a grid whose first trials had these results, and what was said about them."""
    given = {name: {"values": values} for name, values in parameters.items()}
    (folder / "s.yaml").write_text(yaml.safe_dump({**GOOD, "method": "grid", "parameters": given}))
    sweep = run_local.read_sweep(folder / "s.yaml")
    study = optuna.create_study(direction="maximize", sampler=run_local.create_sampler(sweep))
    for index, result in enumerate(results):
        trial = study.ask()
        trial.set_user_attr("index", index)
        trial.set_user_attr("values", run_local.draw(sweep, trial))
        trial.set_user_attr("best", result)
        study.tell(trial, result)
    said: list[str] = []
    shared: Any = SimpleNamespace(
        sweep=sweep, storage=folder / "study.journal", study=study, trials=lambda: study.trials
    )
    run_local.plot(shared, SimpleNamespace(say=said.append))  # type: ignore[arg-type]
    return {path.stem for path in folder.glob("*.png")}, "\n".join(said)


@pytest.mark.parametrize(
    ("parameters", "results", "why"),
    [
        (GRID, [0.5] * 6, "{metric} is the same in all 6 trials"),
        (GRID, [0.1 + 0.2, 0.3, 0.3, 0.3, 0.3, 0.3], "{metric} is the same in all 6 trials"),  # but for rounding
        (GRID, [0.0] * 6, "{metric} is the same in all 6 trials"),
        ({**GRID, "training.seed": [0]}, [0.5, 0.6, 0.7], "only kd.temperature took more than one value"),
        ({"kd.temperature": [1.0, 2.0]}, [0.5, 0.6], "only kd.temperature took more than one value"),
        (GRID, [0.5, 0.6, 0.7], "3 finished trials are too few for 2 parameters, 4 would do"),
        (GRID, [0.5, 0.6], "only training.seed took more than one value"),  # of six trials two
    ],
)
def test_no_importance_is_drawn_where_trials_tell_nothing_of_it(tmp_path, parameters, results, why):
    figures, said = plotted(tmp_path, parameters, results)
    assert figures == {"parallel_coordinates"}
    assert said.startswith("no importance.png: ") and why.format(metric=GOOD["metric"]["name"]) in said


def test_importance_is_shared_by_what_took_several_values(tmp_path, monkeypatch):
    """Optuna gives parameters that never changed a share, too."""
    shares: dict[str, float] = {}
    monkeypatch.setattr(run_local, "draw_importance", lambda sweep, own, trials: shares.update(own) or b"")
    one_value = {**GRID, "training.max_epochs": [3], "kd.loss": ["kl", "kl"]}
    figures, said = plotted(tmp_path, one_value, [0.5, 0.5, 0.6, 0.6, 0.9, 0.91])
    assert figures == {"parallel_coordinates", "importance"} and not said
    assert list(shares) == ["kd.temperature", "training.seed"] and sum(shares.values()) == pytest.approx(1)
    assert shares["kd.temperature"] > shares["training.seed"]


def test_bayes_finds_better_values_than_random(sandbox: Sandbox) -> None:
    parameters = {
        "lr": {"distribution": "log_uniform_values", "min": 1.0e-5, "max": 1.0},
        "t": {"min": 1.0, "max": 20.0},
        "alpha": {"distribution": "beta", "a": 2, "b": 2},
        "kind": {"values": ["a", "b", "c"]},
    }

    def objective(values: dict[str, Any]) -> float:
        good = {"a": 0.0, "b": -0.3, "c": -0.6}[values["kind"]]
        size = abs(run_local.math.log10(values["lr"]) + 2.5)
        return good - 0.3 * size - abs(values["t"] - 6) / 20 - abs(values["alpha"] - 0.3)

    means = {}
    for method in ("random", "bayes"):
        sweep = run_local.read_sweep(sandbox.sweep(parameters, method=method))
        best = []
        for seed in range(6):
            study = optuna.create_study(direction="maximize", sampler=run_local.create_sampler(sweep, seed=seed))
            for _ in range(30):
                trial = study.ask()
                study.tell(trial, objective(run_local.draw(sweep, trial)))
            best.append(study.best_value)
        means[method] = statistics.mean(best)
    assert means["bayes"] > means["random"] + 0.03


@pytest.mark.parametrize("form", ["array", "workers"])
def test_slurm_script(form: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both forms stop their trial in time, and ask to be queued again."""
    (sandbox.folder / "scontrol").write_text(f'#!/bin/bash\necho "$@" > {sandbox.folder}/scontrol.txt\n')
    (sandbox.folder / "scontrol").chmod(0o755)
    path = os.pathsep.join([str(sandbox.folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}
    storage = sandbox.folder / "shared" / "study.journal"
    if form == "workers":
        environment |= {"COUNT": "2", "STORAGE": str(storage)}
    words = [str(sandbox.file), f"--output_dir={sandbox.output}", f"--gate={sandbox.folder}/gate"]
    job = subprocess.Popen(["bash", str(ROOT / "sweeps/slurm.sh"), *words], cwd=ROOT, env=environment)
    wait_for(lambda: list(sandbox.output.glob("*/metrics.jsonl")), "a trial starts")
    job.send_signal(signal.SIGUSR1)
    assert job.wait(60) == 143
    assert (sandbox.folder / "scontrol.txt").read_text() == "requeue 7_1\n"
    assert [start[4] for start in sandbox.starts] == ["2" if form == "array" else "1"]
    assert storage.exists() == (form == "workers")


@pytest.mark.slow
def test_the_real_program(tmp_path: Path) -> None:
    file = tmp_path / "digits.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "program": "train_kd.py",
                "method": "grid",
                "metric": {"name": "val/accuracy", "goal": "maximize"},
                "parameters": {
                    "kd.type": {"value": "baseline"},
                    "training.learning_rate": {"values": [1.0e-3, 4.0e-3]},
                },
            }
        )
    )
    words = [str(file), "--", f"--output_dir={tmp_path}/runs", "--training.max_epochs=2", "--training.warmup_epochs=0",
             "--training.compare_with_baseline=false", "--evaluation.report=false", "--teachers=[]"]  # fmt: skip
    command = [sys.executable, "sweeps/run_local.py", *words]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0, first.stdout + first.stderr
    results = tmp_path / "runs/sweeps/digits"
    with open(results / "trials.csv") as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == 2 and all(0 < float(row["val/accuracy"]) <= 1 for row in rows)
    (results / "study.journal").unlink()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout.count("is finished already") == 2
