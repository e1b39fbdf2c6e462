"""Several files of settings: which one wins, what is said about it, what a base is, and what reading imports."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kd_core import config as configuration
from kd_core.config import command_line
from kd_core.config.read import MAX_BASES
from kd_core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
# What a command need not wait for that is answered by the settings alone.
HEAVY = {"accelerate", "datasets", "pandas", "pyarrow", "scipy", "sklearn", "timm", "torchvision", "wandb"}
TEACHERS = "teachers: [{model: cifar_resnet20, train: configs/teachers/cifar32.yaml}]\n"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Writes files of settings, by name, into the working folder."""
    monkeypatch.chdir(tmp_path)

    def write(**texts: str) -> None:
        for name, text in texts.items():
            path = tmp_path / f"{name.replace('__', '/')}.yaml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)

    return write


def parse(*words: str) -> configuration.Resolved:
    return command_line.parse(list(words))[1]


def mistakes(*words: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        parse(*words)
    return str(caught.value).splitlines()


def test_later_files_win_key_by_key(files):
    files(a="training: {max_epochs: 3, seed: 5}\nname: a\n", b="training: {max_epochs: 7}\ndata: {batch_size: 9}\n")
    options, resolved = command_line.parse(["--config", "a.yaml", "--config=b.yaml", "--data.batch_size=11"])
    config = resolved.config
    assert options.config == ["a.yaml", "b.yaml"] and config.name == "a"
    assert (config.training.max_epochs, config.training.seed, config.data.batch_size) == (7, 5, 11)
    assert parse("--config", "b.yaml", "--config", "a.yaml").config.training.max_epochs == 3


def test_without_files_the_quickstart_comes_first(files):
    files(a="training: {seed: 3}\n")
    assert parse().config.name == "quickstart" and command_line.parse([])[0].config == []
    assert parse("--config", "a.yaml").config.name is None


def test_maps_of_whole_images_beside_those_of_flips_and_crops_are_said(files):
    files(a="kd: {type: average, features: [{loss: at}, {loss: rkd}, {loss: ofa}]}\n" + TEACHERS)
    clean = "--teachers.0.view=clean"
    [notice] = parse("--config", "a.yaml", clean).notices
    assert notice.startswith("kd.features (at): maps of teachers[0], whose view is clean, are those of whole images")
    for words in ([], [clean, "--data.flip=false", "--data.crop_padding=0"], [clean, "--kd.features=[{loss: rkd}]"]):
        assert parse("--config", "a.yaml", *words).notices == []


def test_a_file_that_changes_the_method_drops_the_former_ones_settings_with_a_notice(files):
    files(
        a="name: mine\nmodel: {name: test_vit, args: {depth: 2}}\nkd: {type: dynamic, gamma: 3.0}\n" + TEACHERS,
        b="kd: {type: average}\nmodel: {name: test_resnet}\n",
    )
    resolved = parse("--config", "a.yaml", "--config", "b.yaml")
    assert resolved.config.kd.type == "average" and resolved.config.model.args == {}
    assert resolved.notices == [
        "kd.gamma dropped: 'average' (from b.yaml) has no such key",
        "name stays 'mine', as a.yaml says, though kd.type is 'average'; --name=NAME gives another",
        "model.args {'depth': 2} dropped: they were meant for 'test_vit'",
    ]


def test_each_mistake_names_the_file_of_its_value(files):
    files(a="training: {seed: -1, max_epochs: 0}\n", b="training: {max_epochs: -2}\ndata: {batch: 3}\n")
    found = mistakes("--config", "a.yaml", "--config", "b.yaml")
    assert [line.partition(": is")[0] for line in found] == [
        "b.yaml: data.batch: unknown key, did you mean 'batch_size'?",
        "b.yaml: training.max_epochs",
        "a.yaml: training.seed",
    ]
    assert mistakes("--config", "a.yaml", "--config", "c.yaml") == ["--config: no such file: c.yaml"]


def test_a_file_wins_over_its_base_and_imports_from_its_own_folder(files, tmp_path):
    files(
        parts__one="training: {seed: 1, max_epochs: 1}\nimport: one.py\n",
        parts__two="training: {seed: 2, clip: 2.0}\n",
        top="base: [parts/one.yaml, parts/two.yaml]\ntraining: {clip: 3.0}\n",
        above="base: top.yaml\nname: above\n",
    )
    (tmp_path / "parts" / "one.py").write_text("of_this_folder = 1\n")
    config = parse("--config", "above.yaml").config
    assert (config.training.seed, config.training.max_epochs, config.training.clip) == (2, 1, 3.0)
    assert config.name == "above" and config.imports == [str(tmp_path / "parts" / "one.py")]
    assert "\nbase:" not in config.to_yaml() and "base" not in configuration.identity_of(config, "data")
    words = ("--config", "parts/one.yaml", "--config", "parts/two.yaml", "--training.clip=3", "--name=above")
    assert parse(*words).config == config


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"a": "base: 3"}, "a.yaml: base: is 3, expected a list of YAML files"),
        ({"a": "base: [b.yaml, [c]]"}, "a.yaml: base: is ['b.yaml', ['c']], expected a list of YAML files"),
        ({"a": "base: [sub/b.yaml]"}, "a.yaml: base: no such file: sub/b.yaml (it is relative to .)"),
        (
            {"a": "base: [sub/b.yaml]", "sub__b": "base: [c.yaml]"},
            "sub/b.yaml: base: no such file: c.yaml (it is relative to sub)",
        ),
        (
            {"a": "base: [sub/b.yaml]", "sub__b": "base: [../a.yaml]"},
            "sub/b.yaml: base: ../a.yaml leads back to itself: files build on each other in a circle",
        ),
        ({"a": "base: [a.yaml]"}, "a.yaml: base: a.yaml leads back to itself: files build on each other in a circle"),
        ({"a": "base: [b.yaml]", "b": "training: {sed: 1}"}, "b.yaml: training.sed: unknown key, did you mean 'seed'?"),
    ],
)
def test_what_a_base_cannot_be(files, texts, message):
    files(**texts)
    assert mistakes("--config", "a.yaml") == [message]


def test_bases_are_few_and_nested_to_a_bounded_depth(files):
    names = [f"n{number}" for number in range(MAX_BASES + 1)]
    files(**{name: f"base: [{after}.yaml]" for name, after in zip(names, [*names[1:], "last"], strict=True)}, last="")
    assert parse("--config", "n1.yaml").config == parse("--config", "last.yaml").config
    limit = f"base: at most {MAX_BASES} files, {MAX_BASES} levels deep"
    assert mistakes("--config", "n0.yaml") == [f"{names[-1]}.yaml: {limit}"]
    files(a=f"base: [{', '.join(['last.yaml'] * (MAX_BASES + 1))}]")
    assert mistakes("--config", "a.yaml") == [f"a.yaml: {limit}"]


def test_only_files_of_settings_have_a_base(files, tmp_path):
    files(b="training: {seed: 1}", run__config="base: [../b.yaml]", recipe="base: [b.yaml]")
    text = "base: only a file that --config names can build on other files"
    assert mistakes("--base=[b.yaml]") == [f"command line: {text}"]
    (tmp_path / "run" / "summary.json").write_text("{}")
    assert mistakes("--config", "run/config.yaml") == [f"run/config.yaml: {text}"]


@pytest.mark.parametrize(
    "words",
    [
        ["--config", "configs/papers/resnet56-resnet20-dkd.yaml", "--training.optimizer=sgd"],
        ["--training.max_epoch=3", "--data.source=nowhere"],
        ["--help"],
    ],
)
def test_settings_are_read_without_what_takes_seconds_to_import(words):
    program = (
        "import contextlib, io, json, sys\n"
        "from kd_core.config import command_line\n"
        "from kd_core.errors import UserError\n"
        "said = ''\n"
        "try:\n"
        "    with contextlib.redirect_stdout(io.StringIO()):\n"
        "        said = command_line.parse(sys.argv[1:])[1].config.to_yaml()\n"
        "except (UserError, SystemExit) as end:\n"
        "    said = str(end)\n"
        "print(json.dumps([said, sorted(sys.modules)]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    said, modules = json.loads(done.stdout)
    assert not HEAVY & set(modules)
    expected = {"--help": "0", "--training.max_epoch=3": "did you mean 'max_epochs'?"}.get(words[0], "loss: dkd")
    assert expected in said and "kd_core.config.schema" in modules
