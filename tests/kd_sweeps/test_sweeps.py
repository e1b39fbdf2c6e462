"""Every sweep file: its keys, values and types are those of the settings, through the real command line."""

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from method_variants import ONE_VIEW
from wandb import wandb_agent
from wandb.sdk.launch.sweeps import utils as sweep_utils

import kd_methods
from kd_core.config import command_line
from kd_core.errors import UserError
from kd_methods import logit_losses
from kd_methods._config import SWITCHES
from kd_methods._weighted import WeightedMethod
from kd_sweeps.sweep_file import read_sweep

ROOT = Path(__file__).resolve().parents[2]
SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))
RESULTS = sorted((ROOT / "sweeps" / "results").glob("*.yaml"))
ABLATIONS = {"use_soft_loss", "use_hard_loss", "teacher", "matrix"}  # and what replaces measurements
PURPOSES = {"all_methods", "seeds", "grid", "random", "bayes", "losses", "switches", "weightings", "features"}
BOUNDED = {"uniform", "log_uniform_values", "int_uniform"}


@pytest.fixture(autouse=True)
def _in_a_trial(monkeypatch):
    monkeypatch.setenv("KD_TRIAL", "testtest")


def load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def choices(parameter: dict[str, Any]) -> list[Any]:
    """The values that a parameter takes, or both ends of its range."""
    if "value" in parameter:
        return [parameter["value"]]
    return parameter["values"] if "values" in parameter else [parameter["min"], parameter["max"]]


def arguments(sweep: dict[str, Any], values: dict[str, Any]) -> list[str]:
    """What train_kd.py gets in a trial with these values: W&B's own expansion of the command."""
    made = sweep_utils.create_sweep_command_args({"args": {key: {"value": value} for key, value in values.items()}})
    command = [word for item in sweep["command"] for word in (made["args"] if item == "${args}" else [item])]
    return command[command.index("${program}") + 1 :]


def owners(key: str) -> list[str]:
    """The methods that have hyperparameter `kd.NAME...`, all for any other key."""
    name = key.split(".")[1] if key.startswith("kd.") else "type"
    return [method for method in kd_methods.names() if name in kd_methods.config_class(method).model_fields]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_key_and_value_is_a_valid_setting(path):
    sweep = load(path)
    types = choices(sweep["parameters"].get("kd.type", {"value": None}))
    base = command_line.parse(arguments(sweep, {}))[1].config
    # A loss of two views and the second view go together.
    second = {key: sweep["parameters"][key]["value"] for key in ("kd.loss", "augment.second")} if (
        "augment.second" in sweep["parameters"]
    ) else {}  # fmt: skip
    for key, parameter in sweep["parameters"].items():
        assert set(parameter) <= {"value", "values", "distribution", "min", "max"}
        assert parameter.get("distribution", "uniform") in BOUNDED
        if "min" in parameter:
            assert type(parameter["min"]) is type(parameter["max"]) and parameter["min"] < parameter["max"]
        own = [method for method in owners(key) if method in types] or [base.kd.type]
        assert set(own) & set(owners(key)), f"{key} belongs to no method of this sweep"
        for method, value in itertools.product(own, choices(parameter)):
            given = {"kd.type": method, key: value} if key != "kd.type" else {key: value}
            config = command_line.parse(arguments(sweep, {**second, **given}))[1].config
            for part in key.split("."):
                config = getattr(config, part)
            if key == "kd.features":
                config = [entry.model_dump(exclude_unset=True) for entry in config]
            if key == "augment.second":
                config = config.model_dump()
            assert config == value and isinstance(value, type(config)), key


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_is_run_as_documented(path):
    sweep = load(path)
    text = path.read_text()
    assert text.startswith("# ") and sweep["program"] == "train_kd.py" and sweep["name"]
    assert sweep["metric"] == {"name": "val/accuracy", "goal": "maximize"}
    config = sweep["command"][sweep["command"].index("--config") + 1]
    assert sweep["command"] == ["${env}", "${interpreter}", "${program}", "--config", config, "${args}"]
    assert (ROOT / config).is_file()
    assert "#  - torch.distributed.run" in text
    stopping = sweep.get("early_terminate", {})
    assert set(stopping) <= {"type", "min_iter", "max_iter", "s", "eta"}
    is_comparison = "training.seed" in sweep["parameters"]  # searches must not see the test split
    assert sweep["parameters"]["evaluation.test_at_end"] == {"value": is_comparison}


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_every_trial_of_the_measured_results_is_valid(path, monkeypatch):
    """All points of the grid; those that open the test split have seeds, the others a validation split."""
    monkeypatch.chdir(ROOT)
    sweep = read_sweep(path)
    assert path.read_text().startswith("# ") and load(path)["name"] == f"results-{path.stem}"
    assert "configs/results/protocol.yaml" in sweep.command
    identities = set()
    for index in range(sweep.grid_size()):
        config = command_line.parse(arguments({"command": sweep.command}, sweep.grid_values(index)))[1].config
        opened = config.evaluation.test_at_end
        assert (sweep.metric, config.data.val_size) == (("test/accuracy", 0) if opened else ("val/accuracy", 5000))
        assert opened == (config.training.seed < 100), "seeds below 100 are those of the results"
        identities.add(config.model_dump_json())
    assert len(identities) == sweep.grid_size()


def test_there_is_a_sweep_for_each_purpose():
    sweeps = {path.stem: load(path) for path in SWEEPS}
    assert {*map(file_of, kd_methods.names()), *kd_methods.losses(), *PURPOSES} == set(sweeps)
    for strategy in ("grid", "random", "bayes"):
        assert sweeps[strategy]["method"] == strategy
    for name in ("all_methods", "seeds"):
        assert set(sweeps[name]["parameters"]["kd.type"]["values"]) == set(kd_methods.names())
    # Not those that need a second view, which costs twice as much.
    assert set(sweeps["losses"]["parameters"]["kd.loss"]["values"]) == set(ONE_VIEW) < set(kd_methods.losses())
    # Not those of temperatures per teacher, which depend on the teachers.
    assert {f"kd.{name}" for name in SWITCHES} - set(sweeps["switches"]["parameters"]) == {"kd.teacher_temperatures"}
    entries = sweeps["features"]["parameters"]["kd.features"]["values"]
    assert {entry["loss"] for one in entries for entry in one} == set(kd_methods.feature_losses.names())
    assert sweeps["seeds"]["method"] == "grid" and len(sweeps["seeds"]["parameters"]["training.seed"]["values"]) >= 3


@pytest.mark.parametrize("method", [name for name in kd_methods.names() if name != kd_methods.LABEL_ONLY])
def test_the_sweeps_vary_all_hyperparameters_of_a_method(method):
    fields = set(kd_methods.config_class(method).model_fields)
    own = fields - ABLATIONS - {"type", "features", *SWITCHES, *kd_methods.losses()}
    built = kd_methods.build({"type": method})
    own -= {"scope"} if built.shared_weights else set()  # which changes nothing there
    own -= {"normalize"} if isinstance(built, WeightedMethod) and built.reference_sum(3) == 1 else set()
    of_all = {key.split(".")[1] for key in load(ROOT / "sweeps" / "all_methods.yaml")["parameters"] if key[:3] == "kd."}
    assert own <= of_all
    of_one = load(ROOT / "sweeps" / f"{file_of(method)}.yaml")["parameters"]
    assert own <= {key.split(".")[1] for key in of_one if key[:3] == "kd."}


def file_of(method: str) -> str:
    """`random` is a search strategy."""
    return "random_weights" if method == "random" else method


@pytest.mark.parametrize("loss", kd_methods.losses())
def test_the_sweep_of_a_logit_loss_varies_all_its_parameters(loss):
    parameters = load(ROOT / "sweeps" / f"{loss}.yaml")["parameters"]
    config = logit_losses.config_class(loss)
    own = {f"kd.{loss}.{name}" for name in config.model_fields if name != "gather"}  # for several processes
    assert parameters["kd.loss"] == {"value": loss} and own <= set(parameters)
    assert ("kd.temperature" in parameters) == config.uses_temperature


def test_the_documented_sweep_varies_files_of_settings():
    page = (ROOT / "docs" / "wandb.md").read_text()
    [example] = [block for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "config:" in block]
    sweep = yaml.safe_load(example)
    seen = set()
    for file in sweep["parameters"]["config"]["values"]:
        config = command_line.parse(arguments(sweep, {"config": file, "training.seed": 1}))[1].config
        assert config.model.name == "cifar_resnet20" and config.training.seed == 1
        seen.add((config.kd.loss, config.kd.standardize))
    assert seen == {("kd", False), ("dist", False), ("kd", True)}


def test_flat_names_are_mistakes_unless_wandb_gives_back_what_it_recorded():
    """They are columns of W&B's tables, not settings: a sweep over them would train one configuration many times."""
    words = ["--config", "configs/cifar32/baseline.yaml", "--learning_rate=0.5"]
    with pytest.raises(UserError, match="learning_rate: unknown key"):
        command_line.parse(words)
    recorded = ["--data_fingerprint=ab", "--environment={'python': '3.11'}", "--training={'learning_rate': 0.5}"]
    config = command_line.parse([*words, *recorded, "--training.seed=4"])[1].config
    assert (config.training.learning_rate, config.training.seed) == (0.5, 4)


def test_a_trial_drops_what_its_method_lacks_and_is_named_after_it():
    sweep = load(ROOT / "sweeps" / "all_methods.yaml")
    drawn = {key: choices(parameter)[0] for key, parameter in sweep["parameters"].items()}
    for method in kd_methods.names():
        options, resolved = command_line.parse(arguments(sweep, drawn | {"kd.type": method}))
        assert resolved.config.kd.type == method
        if method != "ca_weighted":  # the configuration's own method
            assert resolved.config.experiment.startswith(method)
        lacking = {"gamma", "threshold", "alpha"} - set(kd_methods.config_class(method).model_fields)
        told = " ".join(resolved.notices)
        assert all(re.search(rf"kd\.{name} dropped in this trial", told) for name in lacking)


def test_agents_go_on_after_trials_that_were_stopped_early(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the variable that the pages name; without it after five, if no more than one other was not stopped."""
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))  # else the agent sets it

    def gives_up(stopped: int, others: int) -> bool:
        agent = wandb_agent.Agent(api=None, queue=None)
        agent._failed, agent._finished = stopped, stopped - 1 + others  # as the last one that was stopped is counted
        return bool(agent.is_failing())

    assert [gives_up(4, 0), gives_up(5, 0), gives_up(5, 1), gives_up(5, 2)] == [False, True, True, False]
    for page in ("README.md", "docs/wandb.md"):
        [setting, *_] = re.findall(r"export (WANDB_AGENT_\w+)=(\d+)", (ROOT / page).read_text())
        monkeypatch.setenv(*setting)
        assert not gives_up(1000, 1)
        monkeypatch.delenv(setting[0])
