"""Reading the sweep file: every mistake is one line that says what is right."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from sweep_sandbox import GOOD, Sandbox

from kd_core.errors import UserError
from kd_sweeps.sweep_file import read_sweep
from kd_sweeps.trial_command import check_extra
from sweeps import run_local

MISTAKES = {
    "min as text": (
        "parameters: {training.learning_rate: {min: 1e-4, max: 1.0e-2}}",
        "parameters.training.learning_rate.min: is '1e-4', which YAML 1.1 reads as a string: write 1.0e-4",
    ),
    "value as text": ("parameters: {lr: {values: [0.1, 2.5e3]}}", "lr.values: is '2.5e3', which YAML 1.1 reads as a"),
    "the text's correction": ("parameters: {lr: {value: 2.5e3}}", "write 2.5e+3"),
    "quoted bound": ("parameters: {lr: {min: '1', max: 2}}", "parameters.lr.min: is '1', not a number"),
    "key off": ("parameters: {off: {values: [1]}}", "a key is read as False"),
    "number as key": ("parameters: {1: {values: [1]}}", "the key 1 is not a string"),
    "nested key no": ("parameters: {a: {parameters: {no: {value: 1}}}}", "parameters.a: a key is read as False"),
    "bare value": ("parameters: {a: 3}", "parameters.a: is 3; write {value: 3}"),
    "unknown key": ("parameters: {a: {min: 1, max: 2, step: 1}}", "parameters.a.step: unknown key"),
    "misspelled key": ("parameters: {a: {valeus: [1]}}", "did you mean 'values'?"),
    "empty": ("parameters: {}", "parameters: must name the parameters"),
    "distribution": ("parameters: {a: {distribution: unifrom, min: 1, max: 2}}", "did you mean 'uniform'?"),
    "list as distribution": ("parameters: {a: {distribution: [1], min: 1, max: 2}}", "[1] is unknown"),
    "missing max": ("parameters: {a: {distribution: uniform, min: 1}}", "parameters.a: uniform needs max"),
    "order": ("parameters: {a: {min: 2, max: 1}}", "parameters.a: min 2 must be smaller than max 1"),
    "log of 0": ("parameters: {a: {distribution: log_uniform_values, min: 0, max: 1}}", "needs values above 0"),
    "exponents": ("parameters: {a: {distribution: log_uniform, min: 1, max: 1000}}", "takes exponents of e"),
    "fractions": ("parameters: {a: {distribution: int_uniform, min: 1.5, max: 3}}", "needs whole numbers"),
    "probabilities' number": ("parameters: {a: {values: [1, 2], probabilities: [1.0]}}", "1 for 2 values"),
    "probabilities' sum": ("parameters: {a: {values: [1, 2], probabilities: [0.5, 0.4]}}", "sum to 0.9"),
    "sigma": ("parameters: {a: {distribution: normal, mu: 0, sigma: 0}}", "parameters.a.sigma: is 0; must be above 0"),
    "date": ("parameters: {a: {value: 2024-01-01}}", "quote it"),
    "twice": ("parameters: {a.b: {value: 1}, a: {parameters: {b: {value: 2}}}}", "parameters.a.b: is given twice"),
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
    "aliases without end": ("parameters: &p {a: {parameters: *p}}", "expands to more than 100,000 values"),
    "aliases of aliases": (
        "description:\n  - &a0 x\n" + "".join(f"  - &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 15)),
        "expands to more than 100,000 values",
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


def test_all_mistakes_are_reported_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.yaml").write_text("method: x\nmetric: {goal: y}\nparameters: {a: {min: 2, max: 1}}\n")
    assert run_local.main([str(tmp_path / "s.yaml")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 5  # method, metric, goal, min, program


def test_a_file_that_is_no_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "large.yaml").write_text("#" * 1_000_001)
    (tmp_path / "list.yaml").write_text("[1]")
    for name, expected in (("large", "larger than 1 MB"), ("list", "has no settings"), ("none", "cannot be read")):
        assert run_local.main([str(tmp_path / f"{name}.yaml")]) == 2
        assert expected in capsys.readouterr().err


def test_a_grid_is_in_the_order_of_wandb(sandbox: Sandbox) -> None:
    """Sorted by name, the last parameter varies fastest; equal values count once."""
    sandbox.sweep(
        {
            "b": {"min": 1, "max": 2},
            "a": {"values": ["u", [1], "u"]},
            "c": {"distribution": "q_uniform", "min": 0.0, "max": 0.5, "q": 0.25},
        }
    )
    sweep = read_sweep(sandbox.file)
    points = [tuple(sweep.grid_values(index).values()) for index in range(sweep.grid_size())]
    assert points == [(a, b, c) for a in ("u", [1]) for b in (1, 2) for c in (0.0, 0.25)]


def test_words_after_the_dashes_do_not_set_what_the_sweep_sets(sandbox: Sandbox) -> None:
    sandbox.sweep({"kd.temperature": {"values": [1, 2]}, "opt": {"parameters": {"lr": {"value": 1}}}})
    sweep = read_sweep(sandbox.file)
    check_extra(sweep, ["--kd.type=average", "--config", "kd=4.yaml", "--config=kd.yaml", "--config", "opt", "kd"])
    for word in ("--kd.temperature=3", "--kd=x", "kd.temperature=3", "--opt.lr.x=1", "--opt"):
        with pytest.raises(UserError, match=f"{word}: .*s.yaml already sets "):
            check_extra(sweep, ["--config", "a.yaml", word])
