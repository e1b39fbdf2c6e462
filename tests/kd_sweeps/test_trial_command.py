"""A trial's command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from sweep_sandbox import GOOD, Sandbox
from wandb.sdk.launch.sweeps import utils as wandb_sweeps

from kd_core.errors import UserError
from kd_sweeps import trial_command
from kd_sweeps.sweep_file import DEFAULT_COMMAND, MACROS, read_sweep
from kd_sweeps.trial_command import command_again, expand, grid_run_id, hashed, with_own_configs


@pytest.mark.parametrize("macro", [name for name in MACROS if name.startswith("args")])
def test_arguments_are_those_of_wandb(macro: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KD_TEST_WORD", "seen")
    monkeypatch.delenv("KD_TEST_UNSET", raising=False)
    values = {"flag": True, "off": False, "kd.T": 4.0, "list": [1, 2], "none": None, "text": "a b", "small": 1e-5}
    command = ["run-${envvar:KD_TEST_WORD}", "${envvar:KD_TEST_UNSET}", f"${{{macro}}}", "--n", 2]
    file = tmp_path / "s.yaml"
    parameters: dict[str, Any] = {key: {"value": value} for key, value in values.items()}
    parameters["opt"] = {"parameters": {"lr": {"value": 0.1}, "deep": {"parameters": {"b": {"value": "c"}}}}}
    file.write_text(yaml.safe_dump({**GOOD, "command": command, "parameters": parameters}))
    sweep = read_sweep(file)
    drawn = {parameter.name: parameter.spec["value"] for parameter in sweep.parameters}
    arguments = {**values, "opt": {"deep": {"b": "c"}, "lr": 0.1}}
    theirs = wandb_sweeps.create_sweep_command_args(
        {"args": {key: {"value": arguments[key]} for key in sorted(arguments)}}
    )
    expected = [str(word) for word in wandb_sweeps.create_sweep_command([*command])]
    expected[2:3] = theirs[macro] if macro != "args_json_file" else [str(tmp_path / "a.json")]
    assert expand(sweep, drawn, tmp_path / "a.json") == expected
    if macro == "args_json_file":
        assert json.loads((tmp_path / "a.json").read_text()) == theirs["args_dict"]


@pytest.mark.parametrize(
    ("command", "again"),
    [
        (["${env}", "${interpreter}", "${program}", "--config", "c.yaml", "${args}"], "python train_kd.py"),
        (["${interpreter}", "${program}", "--config", "a.yaml", "--config", "b.yaml", "${args}"], "python train_kd.py"),
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
    sweep = read_sweep(tmp_path / "s.yaml")
    assert command_again(sweep, Path("/a b/best.yaml")) == f"{again} --config '/a b/best.yaml' --fresh"


def test_the_default_command_is_that_of_wandb() -> None:
    assert DEFAULT_COMMAND == wandb_sweeps.DEFAULT_SWEEP_COMMAND


def test_identities_stay(tmp_path: Path) -> None:
    """Run ids and fingerprints from before the package: sweeps that were begun then go on."""
    content: dict[str, Any] = {"program": "train_kd.py", "parameters": {"a": {"values": [1, None, "x"]}}}
    assert hashed(content, ["--b=2"], 3) == "v99vdwqk"
    parameters: dict[str, Any] = {"x": {"values": [1, 2]}, "a": {"parameters": {"b": {"value": 0.5}}}}
    content = {"program": "toy.py", "method": "grid", "metric": {"name": "m"}, "parameters": parameters}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    sweep = read_sweep(tmp_path / "s.yaml")
    assert [grid_run_id(sweep, ["--y=1"], index) for index in range(2)] == ["tf8z1vgz", "7e2t54zl"]
    assert hashed(sweep.content, ["--y=1"], sweep.metric, sweep.maximize, sweep.early_terminate) == "uxydk6fi"


LAYERS = """
import argparse, json, os, pathlib

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("--config", action="append", default=[])
parser.add_argument("--print-config", action="store_true")
options, words = parser.parse_known_args()
settings = {}
for file in options.config:
    settings |= json.loads(pathlib.Path(file).read_text())
settings |= {key: value for key, _, value in (word.removeprefix("--").partition("=") for word in words)}
if options.print_config:
    raise SystemExit(print(json.dumps(settings)))
folder = pathlib.Path(settings["output_dir"]) / f"toy-{os.environ['KD_TRIAL']}"
folder.mkdir(parents=True, exist_ok=True)
(folder / "metrics.jsonl").write_text(json.dumps({"val/score": float(settings["x"])}) + "\\n")
(folder / "config.yaml").write_text(json.dumps(settings))
(folder / "summary.json").write_text(json.dumps({"status": "finished"}))
"""


def test_several_configs(sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    """They reach each trial in their order, those after -- instead of the file's, and are part of what the sweep is."""
    (sandbox.folder / "toy.py").write_text(LAYERS)

    def config(name: str, **settings: Any) -> str:
        (sandbox.folder / name).write_text(json.dumps(settings))
        return str(sandbox.folder / name)

    def trained() -> list[dict[str, Any]]:
        files = sorted(sandbox.output.glob("toy-*/config.yaml"), key=lambda file: file.stat().st_mtime_ns)
        found = [json.loads(file.read_text()) for file in files]
        assert all(one.pop("output_dir") == str(sandbox.output) for one in found)
        return found

    pair = config("pair.yaml", student="a", loss="kd")
    loss = config("loss.yaml", loss="dist", beta=1)
    command = ["${interpreter}", "${program}", "--config", pair, "--config", loss, "${args}"]
    sandbox.sweep({"x": {"values": [1, 2]}}, command=command)
    assert sandbox.run() == 0
    assert trained() == [{"student": "a", "loss": "dist", "beta": 1, "x": x} for x in ("1", "2")]
    again = f"retrain the best: python {sandbox.folder}/toy.py --config {sandbox.results}/best.yaml --fresh"
    assert again in capsys.readouterr().out
    config("loss.yaml", loss="dist", beta=2)
    assert sandbox.run() == 2
    assert "holds another sweep" in capsys.readouterr().err

    words = ["--", "--config", config("x=own.yaml", student="b", loss="kd"), f"--config={config('c.yaml', loss='dkd')}"]
    sandbox.sweep({"x": {"values": [1, 2]}}, command=command, name="own")
    assert sandbox.run(*words) == 0
    assert trained()[2:] == [{"student": "b", "loss": "dkd", "x": x} for x in ("1", "2")]
    before = {folder.name for folder in sandbox.output.glob("toy-*")}
    assert sandbox.run("--trial", "1", *words) == 0
    assert {folder.name for folder in sandbox.output.glob("toy-*")} == before  # the run of the sweep
    config("x=own.yaml", student="c", loss="kd")
    assert sandbox.run(*words) == 2
    assert "holds another sweep" in capsys.readouterr().err


def test_files_among_which_a_parameter_chooses_are_part_of_the_sweep(tmp_path: Path) -> None:
    """Also those that the first trial does not name, and what their `base` names."""
    for name, content in {"a": "kd: {type: average}", "b": "base: c.yaml", "c": "data: {batch_size: 64}"}.items():
        (tmp_path / f"{name}.yaml").write_text(content)
    files = [str(tmp_path / f"{name}.yaml") for name in "ab"]

    def digests() -> dict[str, str]:
        content = {**GOOD, "program": "train_kd.py", "method": "grid", "parameters": {"config": {"values": files}}}
        (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
        return trial_command._chosen_files(read_sweep(tmp_path / "s.yaml")).get("files", {})

    before = digests()
    assert list(before) == files
    (tmp_path / "c.yaml").write_text("data: {batch_size: 32}")
    after = digests()
    assert after[files[0]] == before[files[0]] and after[files[1]] != before[files[1]]
    files.append(str(tmp_path / "d.yaml"))
    with pytest.raises(UserError, match="no such file: .*d.yaml"):
        digests()
    files[:] = files[:1]  # one file for all trials: in the settings that the first of them prints
    assert digests() == {}


@pytest.mark.parametrize(
    ("metric", "config", "message"),
    [
        ("val/accuracy", {"data": {"val_size": 0}}, "'val/accuracy' is never measured, since data.val_size is 0: keep"),
        ("val/accuracy", {"data": {"val_size": 0, "val_split": "val"}}, None),
        ("val/accuracy", {"data": {"val_size": None}}, None),
        ("train/accuracy", {"data": {"val_size": 0}}, None),
        ("test/accuracy", {"evaluation": {"test_at_end": False}}, "'test/accuracy' .* evaluation.test_at_end is false"),
        ("test/accuracy", {"evaluation": {"test_at_end": True}}, None),
        ("test/accuracy", {}, None),  # another program
    ],
)
def test_a_metric_that_is_never_measured(
    metric: str, config: dict[str, Any], message: str | None, tmp_path: Path
) -> None:
    parameters: dict[str, Any] = {"training.seed": {"values": [0, 1]}}
    content = {**GOOD, "metric": {"name": metric, "goal": "maximize"}, "parameters": parameters}

    def check() -> None:
        (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
        sweep = read_sweep(tmp_path / "s.yaml")
        trial_command.require_metric(replace(sweep, content={**sweep.content, "settings": config}))

    if not message:
        return check()
    with pytest.raises(UserError, match=f"s.yaml: metric: {message}"):
        check()
    for varied in ("data.val_size" if metric == "val/accuracy" else "evaluation.test_at_end", "config"):
        content["parameters"] = {**parameters, varied: {"values": [0, 1]}}
        check()  # other trials may measure it


def test_the_most_epochs_of_any_trial(tmp_path: Path) -> None:
    for spec, most in (({"values": [30, 100]}, 100), ({"min": 10, "max": 40}, 40), ({"value": 30}, 30),
                       ({"min": 2.0, "max": 4.0, "distribution": "q_log_uniform"}, 30),
                       ({"min": 10, "max": 50, "distribution": "q_log_uniform_values"}, 50)):
        content = {**GOOD, "parameters": {"training.max_epochs": spec}}
        (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
        assert trial_command._most_epochs(read_sweep(tmp_path / "s.yaml"), 30) == most


def test_configs_of_a_launcher_stay(sandbox: Sandbox) -> None:
    command = ["launch", "--config", "l.yaml", "${program}", "--config=a.yaml", "--config", "b.yaml", "${args}", "--c"]
    sweep = read_sweep(sandbox.sweep({"x": {"values": [1]}}, command=command))
    assert with_own_configs(sweep, ["--kd.type=average", "--configs", "--kd=--config"]) is sweep
    for words in (["--config", "c.yaml"], ["--x=1", "--config=c.yaml"]):
        changed = with_own_configs(sweep, words)
        assert changed.command == ["launch", "--config", "l.yaml", "${program}", "${args}", "--c"]
        assert changed.content == sweep.content  # it identifies sweeps from before
