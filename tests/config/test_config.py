"""Configuration: layers, YAML 1.2 scalars, W&B's spellings, and the text of every kind of mistake."""

import re
import time
from typing import Any

import pytest
import yaml

import kd_methods
from kd_core import config as configuration
from kd_core.config import Config, Layer, digest, identity_of, keys, parse_overrides, parse_yaml, read_yaml, resolve
from kd_core.config import merge as merge_layers
from kd_core.config.read import merge, read_layers
from kd_core.errors import UserError
from kd_core.teachers.load import training_config
from kd_methods import logit_losses

TEACHER = "--teachers=[{model: cifar_resnet20, train: configs/teachers/x.yaml}]"


def load(*arguments: str, **layers: dict) -> Config:
    return resolve([*(Layer(name, values) for name, values in layers.items()), parse_overrides(list(arguments))]).config


def mistakes(*arguments: str, in_sweep: bool | None = None, **layers: dict) -> list[str]:
    with pytest.raises(UserError) as caught:
        resolve([*(Layer(n, v) for n, v in layers.items()), parse_overrides(list(arguments))], in_sweep=in_sweep)
    return str(caught.value).splitlines()


def test_defaults_are_the_label_only_method():
    assert load().kd.type == kd_methods.LABEL_ONLY


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        ({"training": {"ema": {"decay": 0.9}}}, {"training": {"ema": {}}}, {"training": {"ema": {}}}),  # its defaults
        ({"model": {"args": {"depth": 3}}}, {"model": {"args": {}}}, {"model": {"args": {}}}),
        ({"training": {"seed": 3}}, {"training": {}}, {"training": {"seed": 3}}),  # a section that says nothing
        (
            {"kd": {"temperature": {"from": 8, "to": 2, "shape": "cosine"}}},
            {"kd": {"temperature": {"from": 4, "to": 1}}},
            {"kd": {"temperature": {"from": 4, "to": 1}}},
        ),
        ({"augment": {"cutmix": {"alpha": 1}}}, {"augment": {"cutmix": {"share": 0.5}}},
         {"augment": {"cutmix": {"alpha": 1, "share": 0.5}}}),
    ],
)  # fmt: skip
def test_defaults_and_schedules_replace_what_a_lower_layer_has(low, high, found):
    assert merge(low, high) == found


def test_defaults_on_the_command_line_replace_a_files(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("training: {ema: {decay: 0.5}}\nmodel: {name: test_vit, args: {depth: 2}}\n")
    words = parse_overrides(["--training.ema={}", "--model.args={}"])
    found = resolve([*read_layers([str(file)]), words]).config
    assert found.training.ema and found.training.ema.decay != 0.5 and found.model.args == {}


def test_the_ends_of_a_schedule_are_keys():
    words = parse_overrides([TEACHER, "--kd.type=average", "--kd.temperature.to=2", "--kd.dkd.beta.from=1e0"])
    below = Layer("x.yaml", {"kd": {"loss": "dkd", "temperature": {"from": 4, "to": 1}, "dkd": {"beta": {"to": 8}}}})
    kd = resolve([below, words]).config.kd.model_dump()
    assert kd["temperature"] == {"from": 4.0, "to": 2.0, "shape": "linear"}
    assert kd["dkd"]["beta"] == {"from": 1.0, "to": 8.0, "shape": "linear"}


@pytest.mark.parametrize("index", ["00", "²", "1"])
def test_other_words_than_an_index_reach_into_no_list(index):
    below = {"teachers": [{"model": "test_vit"}]}
    assert "teachers: is {" in mistakes(f"--teachers.{index}.view=clean", below=below)[0]


def test_branches_of_unions_are_no_keys():
    for value, key in (("foo", "training.class_weights:"), ([1, "a"], "training.class_weights[1]:")):
        with pytest.raises(UserError) as caught:
            resolve([Layer("x.yaml", {"training": {"class_weights": value}})])
        assert key in str(caught.value) and not re.search("constrained|literal", str(caught.value))


def test_higher_layers_win_key_by_key():
    config = load("--training.max_epochs=7", file={"training": {"max_epochs": 3, "seed": 5}})
    assert (config.training.max_epochs, config.training.seed) == (7, 5)


def test_a_list_is_replaced_as_a_whole_and_reached_into_by_number():
    file = {
        "teachers": [{"model": "a", "train": "x"}, {"model": "b", "train": "y"}],
        "kd": {"type": "average"},
    }
    assert [t.view for t in load("--teachers.1.view=clean", file=file).teachers] == ["shared", "clean"]
    assert [t.model for t in load("--teachers=[{model: c, train: z}]", file=file).teachers] == ["c"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("True", True),
        ("FALSE", False),
        ("None", None),
        ("null", None),
        ("no", "no"),
        ("off", "off"),
        ("012", 12),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("[1, 2]", [1, 2]),
        ("{'a': 1.5, 'b': True}", {"a": 1.5, "b": True}),
        ("2026-01-01", "2026-01-01"),
        ("", None),
        (".5", 0.5),
    ],
)
def test_yaml_1_2_scalars(text, value):
    assert parse_yaml(text, "here") == value and type(parse_yaml(text, "here")) is type(value)


@pytest.mark.parametrize(
    "words",
    [["--data.flip=False"], ["--data.flip", "false"], ["data.flip=False"], ["--data={'flip': False}"]],
)
def test_the_forms_that_wandb_writes(words):
    assert load(*words).data.flip is False


def test_a_bare_flag_is_true():
    assert load("--training.deterministic", "--training.seed=3").training.deterministic is True


WORDS = [
    "2026.10", "0042", "1.10", "0123456", "1e5", "1_000", "0x1F", "-3", "+7", ".inf", ".nan", "true", "No", "2026-1-1",
    "first run # of many", "lr: high, no aug", "- a", "[a", "{b}", "a: b: c", "&x", "*x", "!tag", "%a", "@b", "|",
    "it's", '"a" and "b"', "~", "a\tb", " spaces ", "蚂蚁", "#1", "? x", "=", "a=b", "\\n", "null value",
]  # fmt: skip


@pytest.mark.parametrize("word", WORDS)
def test_text_is_the_word_as_it_stands(word):
    given = [f"--wandb.notes={word}", f"--data.subset={word}", f"--data.name={word}", f"--teachers.0.weights=x{word}"]
    config = load(*given, "--kd.type=average", file={"teachers": [{"weights": "a"}]})
    assert (config.wandb.notes, config.data.subset, config.data.name) == (word, word, word)
    assert config.teachers[0].weights == f"x{word}"
    assert load("--wandb.notes", word).wandb.notes == word if not word.startswith("--") else True
    assert resolve([Layer("printed", parse_yaml(config.to_yaml(), "printed"))]).config == config


@pytest.mark.parametrize("key", ["name", "data.subset", "data.revision", "wandb.notes", "wandb.entity"])
@pytest.mark.parametrize("word", ["None", "null", ""])
def test_optional_text_can_be_absent(key, word):
    section, _, last = key.rpartition(".")
    config = load(f"--{key}={word}", file={section: {last: "x"}} if section else {last: "x"})
    assert getattr(getattr(config, section) if section else config, last) is None


@pytest.mark.parametrize(("word", "value"), [("'1.10'", "1.10"), ('"a # b"', "a # b"), ("'null'", "null"), ("''", "")])
def test_quotes_around_all_of_a_text_are_taken_off(word, value):
    assert load(f"--wandb.notes={word}").wandb.notes == value


@pytest.mark.parametrize("word", ["2026.10", "0042", "1.10", "0123456", "1e5", "true", "007", "-3", ".5", "1.0"])
def test_text_in_files_is_the_word_as_it_stands(tmp_path, word):
    path = tmp_path / "x.yaml"
    path.write_text(
        f"name: n{word.strip('-+')}\noutput_dir: {word}\ndata: {{subset: {word}, revision: {word}}}\n"
        f"wandb:\n  tags:\n  - a\n  - {word}\nkd: {{type: average}}\nmodel: {{name: {word}, args: {{a: {word}}}}}\n"
        f"teachers:\n  - {{weights: {word}, args: {{b: '{word}'}}}}\n"
    )
    config = resolve([Layer("x.yaml", read_yaml(path))]).config
    assert {config.output_dir, config.data.subset, config.data.revision, config.model.name} == {word}
    assert config.wandb.tags == ["a", word] and config.teachers[0].weights == word
    assert config.model.args["a"] == parse_yaml(word, "here") and type(config.model.args["a"]) is not str
    assert config.teachers[0].args == {"b": word}
    again = resolve([Layer("printed", parse_yaml(config.to_yaml(), "printed"))]).config
    assert again == config and again.to_yaml() == config.to_yaml()


def test_text_within_a_section_on_the_command_line():
    config = load("--data={'name': 0123, 'subset': None, 'batch_size': 8}", "--wandb.tags=[a, 1.10, true]")
    assert (config.data.name, config.data.subset, config.data.batch_size) == ("0123", None, 8)
    assert config.wandb.tags == ["a", "1.10", "true"]


def test_numbers_become_the_declared_type():
    config = load("--training.max_epochs=3.0", "--training.learning_rate=1", "--wandb.name=12", "--data.val_size=500.0")
    assert (
        config.training.max_epochs,
        config.training.learning_rate,
        config.wandb.name,
        config.data.val_size,
    ) == (3, 1.0, "12", 500)
    assert type(config.training.max_epochs) is int


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        (
            "--training.max_epoch=3",
            "command line: training.max_epoch: unknown key, did you mean 'max_epochs'?",
        ),
        ("--trainng.seed=3", "command line: trainng: unknown key, did you mean 'training'?"),
        (
            "--training.max_epochs=3.5",
            "command line: training.max_epochs: is 3.5: input should be a valid integer",
        ),
        (
            "--training.max_epochs=0",
            "command line: training.max_epochs: is 0: input should be greater than or equal to 1",
        ),
        ("--training.seed=None", "command line: training.seed: is None: input should be a valid integer"),
        (
            "--model.pretrained=yes",
            "command line: model.pretrained: is 'yes': input should be a valid boolean",
        ),
        ("--training.schedule=cosin", "did you mean 'cosine'?"),
        ("--kd.type=dynamc", "command line: kd.type: unknown method 'dynamc', did you mean 'dynamic'?"),
        ("--kd.type=dynamic", "kd.type 'dynamic' needs teachers"),
        ("--data.source=parquet", "source 'parquet' needs data.path"),
        (
            "--data.path=photos",
            "source 'hub' reads no data.path; for files on this machine set data.source to parquet, imagefolder, "
            "disk or cifar_python, for the Hub give --data.path=null",
        ),
        ("--teachers=[{model: a}]", "teachers[0]: a teacher needs exactly one of 'weights', 'train' and 'logits'"),
        ("--teachers=[{train: a}]", "teachers[0]: this teacher needs 'model'"),
        (
            "--teachers=[{model: a, train: b, viw: clean}]",
            "teachers[0].viw: unknown key, did you mean 'view'?",
        ),
        ("--training.warmup_epochs=100", "warmup_epochs 100 must be smaller than max_epochs 100"),
        ("--kd=3", "kd: is 3"),
        ("--training.schedule=[]", "training.schedule: is '[]', allowed: 'cosine', 'multistep' or 'constant'"),
        ("--training.max_epochs=1e300", "training.max_epochs: is 1e+300: input should be a valid integer"),
        ("--cache.max_gb=.inf", "cache.max_gb: is inf: input should be a finite number"),
        ("--training=fast", "training: is 'fast'"),
        ("--teachers=[model:x]", "teachers[0]: is 'model:x': the shell split this value: quote it"),
        ("--model.args=heads:2", "model.args: is 'heads:2': the shell split this value: quote it"),
        ("--output_dir=null", "output_dir: is None: input should be a valid string"),
    ],
)
def test_each_mistake_is_named(argument, text):
    assert text in "\n".join(mistakes(argument))


def test_temperatures_for_another_number_of_teachers():
    one = {"a.yaml": {"teachers": [{"model": "a", "weights": "b"}], "kd": {"type": "average"}}}
    (message,) = mistakes("--kd.teacher_temperatures=[2.0, 4.0]", **one)
    assert message.endswith("kd.teacher_temperatures: gives 2, but there are 1 teacher(s)")


def test_all_mistakes_come_at_once_with_their_files():
    lines = mistakes("--training.seed=x", **{"a.yaml": {"data": {"batch": 3}, "training": {"clip": -1}}})
    assert len(lines) == 3
    assert any(line.startswith("a.yaml: data.batch: unknown key, did you mean 'batch_size'?") for line in lines)
    assert any(line.startswith("a.yaml: training.clip: is -1") for line in lines)
    assert any(line.startswith("command line: training.seed: is 'x'") for line in lines)


def test_words_that_are_no_override():
    assert "'oops' is not understood" in mistakes_of_words("oops")


@pytest.mark.parametrize(
    ("words", "key", "quoted"),
    [
        (["--teachers=[{model:", "x,", "train:", "y}]"], "teachers", "'[{model: x, train: y}]'"),
        (["--teachers", "[{model:", "x}]", "--name=a"], "teachers", "'[{model: x}]'"),
        (["--model.args={depth:", "3}"], "model.args", "'{depth: 3}'"),
        (["--wandb.tags=[a,", "b]"], "wandb.tags", "'[a, b]'"),
        (["--wandb.notes=first", "run"], "wandb.notes", "'first run'"),
        (["--wandb.notes=lr=0.1", "and", "wd=3"], "wandb.notes", "'lr=0.1 and wd=3'"),
        (["--data.path=My", "Photos"], "data.path", "'My Photos'"),
    ],
)
def test_words_that_lacked_quotes_are_one_mistake(words, key, quoted):
    said = mistakes_of_words("--training.seed=3", *words, "--training.max_epochs=2")
    assert said == f"--{key}: the shell split this value: quote it: --{key}={quoted}"


def test_other_forms_stay_beside_text():
    values = parse_overrides(["--wandb.notes=a", "training.seed=3", "--data.subset", "b", "kd.loss=dist"]).values
    assert values == {
        "wandb": {"notes": "a"}, "training": {"seed": 3}, "data": {"subset": "b"}, "kd": {"loss": "dist"},
    }  # fmt: skip
    assert mistakes_of_words("--training.seed=3", "b").startswith("'b' is not understood")


def test_text_without_a_value_is_a_mistake():
    assert mistakes_of_words("--name", "--training.seed=3") == "--name: its value is missing: --name=TEXT"


def test_text_that_is_not_utf8_is_a_mistake():
    assert mistakes_of_words("--wandb.notes=a\udcff") == "--wandb.notes: is 'a\\udcff': not UTF-8 text"


@pytest.mark.parametrize(
    ("argument", "names"),
    [
        ("--temperature=2", "--kd.temperature"),
        ("--T=2", "--kd.temperature"),
        ("--gamma=2", "--kd.gamma or --kd.dist.gamma or --kd.nkd.gamma"),
        ("--lr=0.1", "--training.learning_rate"),
        ("--learning-rate=0.1", "--training.learning_rate"),
        ("--epochs=3", "--training.max_epochs"),
        ("--seed=3", "--training.seed"),
        ("--batch_size=3", "--data.batch_size or --evaluation.batch_size"),
        ("--training.batch_size=3", "--data.batch_size or --evaluation.batch_size"),
        ("--kd.learning_rate=3", "--training.learning_rate"),
        ("--img_size=32", "--model.img_size or --teachers.0.img_size"),
        ("--optimiser=sgd", "--training.optimizer"),
    ],
)
def test_a_key_without_its_section_gets_its_full_name(argument, names):
    key = argument[2:].partition("=")[0]
    assert mistakes(argument) == [f"command line: {key}: unknown key, did you mean {names}?"]


def test_a_key_in_a_file_gets_its_section_without_dashes():
    said = mistakes(**{"a.yaml": {"temperature": 2}})
    assert said == ["a.yaml: temperature: unknown key, did you mean kd.temperature?"]


def test_every_setting_is_found_by_its_last_part():
    nested = [name for name in keys.all_keys() if "." in name]
    for name in nested:
        last = name.rpartition(".")[2]
        if last not in Config.model_fields:  # `name` and `model` mean the experiment's and the student's
            assert f"--{name}" in re.split(" or | |[?]", mistakes(f"--{last}=1")[0])
    assert len(nested) > 90


def test_a_deep_key_is_a_mistake():
    assert "nested deeper than 32 levels" in mistakes_of_words(f"--{'a.' * 50_000}b=1")


def mistakes_of_words(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        parse_overrides(list(words))
    return str(caught.value)


def test_a_new_method_drops_the_lower_layers_hyperparameters_with_a_notice():
    resolved = resolve(
        [
            Layer("f", {"kd": {"type": "dynamic", "gamma": 3.0}}),
            parse_overrides(["--kd.type=average", TEACHER]),
        ]
    )
    assert resolved.config.kd.type == "average"
    assert resolved.notices == ["kd.gamma dropped: 'average' (from the command line) has no such key"]


def test_another_model_drops_the_arguments_of_the_first_with_a_notice():
    file = Layer("f", {"model": {"name": "test_vit", "img_size": 32, "args": {"patch_size": 16}}})
    resolved = resolve([file, parse_overrides(["--model.name=cifar_resnet8"])])
    assert (resolved.config.model.args, resolved.config.model.img_size) == ({}, 32)
    assert resolved.notices == ["model.args {'patch_size': 16} dropped: they were meant for 'test_vit'"]
    kept = resolve([file, parse_overrides(["--model.name=test_vit", "--model.args.depth=3"])]).config.model.args
    assert kept == {"patch_size": 16, "depth": 3}


def test_a_name_stays_with_a_notice_when_the_method_changes():
    file = Layer("f.yaml", {"name": "mine", "kd": {"type": "baseline"}})
    resolved = resolve([file, parse_overrides(["--kd.type=average", TEACHER])], in_sweep=False)
    assert resolved.config.experiment == "mine"
    assert resolved.notices == [
        "name stays 'mine', as f.yaml says, though kd.type is 'average'; --name=NAME gives another"
    ]
    given = resolve([file, parse_overrides(["--kd.type=average", "--name=2026.10", TEACHER])], in_sweep=False)
    assert (given.config.experiment, given.notices) == ("2026.10", [])
    assert resolve([file, parse_overrides(["--training.seed=3"])], in_sweep=False).notices == []


@pytest.mark.parametrize(("name", "experiment"), [("mine", "mine"), ("x-dynamic-3", "average-cifar_resnet20-1t")])
def test_only_a_trial_drops_the_name_of_another_method(name, experiment):
    file = Layer("f.yaml", {"name": name, "kd": {"type": "dynamic"}})
    layers = [file, parse_overrides(["--kd.type=average", TEACHER])]
    resolved = resolve(layers, in_sweep=True)
    assert resolved.config.experiment == experiment
    assert resolve(layers, in_sweep=False).config.experiment == name
    dropped = [f"name {name!r} dropped in this trial: kd.type is 'average'"]
    assert resolved.notices == (dropped if name != "mine" else [])


def test_another_loss_drops_the_settings_of_the_former_one_with_a_notice():
    """So that it is the run that it would be without them."""
    team = [{"model": "cifar_resnet20", "train": "configs/teachers/digits.yaml"}]
    kd = {"type": "average", "loss": "dkd", "dkd": {"beta": 2.0}, "temperature": 2.0}
    file: dict[str, Any] = {"kd": kd, "teachers": team}
    found = resolve([Layer("x.yaml", file), parse_overrides(["--kd.loss=kd"])])
    plain = load(file={"kd": {"type": "average", "temperature": 2.0}, "teachers": team})
    assert digest(found.config, "d") == digest(plain, "d")
    assert found.notices == ["kd.dkd dropped: loss 'kd' (from the command line) does not use it"]
    found = resolve([Layer("x.yaml", file), parse_overrides(["--kd.loss=ttm"])])
    assert "kd.temperature dropped: loss 'ttm' (from the command line) does not use it" in found.notices
    kept = resolve([Layer("x.yaml", file), parse_overrides(["--kd.loss=rld", "--kd.dkd.beta=4"])])
    assert (kept.config.kd.dkd.beta, kept.notices) == (4.0, [])  # asked for in the same layer
    assert resolve([Layer("x.yaml", {**file, "kd": {**kd, "loss": ["kd"]}}), parse_overrides(["--kd.loss=kd"])]).config


def test_a_loss_of_a_users_own_takes_the_place_of_another(monkeypatch):
    monkeypatch.setitem(logit_losses._added, "mine", lambda *_: None)
    below = Layer("x.yaml", {"kd": {"type": "average", "loss": "dkd", "dkd": {"beta": 2.0}, "temperature": 2.0}})
    _, notices = merge_layers._without_former_loss(below.values, Layer("y.yaml", {"kd": {"loss": "mine"}}))
    assert notices == ["kd.dkd dropped: loss 'mine' (from y.yaml) does not use it"]


def test_foreign_hyperparameters_in_one_layer_are_mistakes_except_in_a_sweep():
    arguments = ("--kd.type=average", "--kd.gamma=3", TEACHER)
    assert mistakes(*arguments, in_sweep=False) == ["command line: kd.gamma: belongs to dynamic, not to this kd.type"]
    resolved = resolve([parse_overrides(list(arguments))], in_sweep=True)
    assert "kd.gamma dropped in this trial" in resolved.notices[0]


def test_a_misspelled_hyperparameter_is_a_mistake_in_a_sweep_too():
    assert (
        "unknown key, did you mean 'gamma'?" in mistakes("--kd.type=dynamic", "--kd.gama=3", TEACHER, in_sweep=True)[0]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not valid YAML"),
        ("- 1", "must hold 'section: ...' lines"),
        ("a: &x 1\nb: *x", "aliases"),
        ("a: 1\na: 2", "is given twice"),
        ("a: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("[" * 5000, "nested deeper than 32 levels"),
        ("? " * 5000, "nested deeper than 32 levels"),
        ("a: !!timestamp x", "tags (tag:yaml.org,2002:timestamp) are not supported"),
        ("a: !!binary //8=", "tags (tag:yaml.org,2002:binary) are not supported"),
        ("a: " + "9" * 99_000, "integers have at most 64 bits"),
        (f"a: {2**63}", "integers have at most 64 bits"),
        ("? [a]\n: 1", "unhashable"),
        ('a: "\\0"', "characters that are not text"),
        ('a: "\\ud800"', "characters that are not text"),
        ('a: "\\UFFFFFFFF"', "not valid YAML"),
        ("%YAML " + "9" * 5000 + ".1\n---\na: 1", "not valid YAML"),
        ("#" * 100_001, "larger than 100,000 bytes"),
    ],
)
def test_bad_files(tmp_path, text, message):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="x.yaml") as caught:
        read_yaml(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "1" * 90_000 + "x",  # a number until its last character
        "".join(f"k{number}: 1\n" for number in range(9_000)),
        "".join(f"- &a{number} x\n" for number in range(7_000)),
        "a: " + "'" * 90_000,
    ],
)
def test_the_largest_files_take_seconds(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    began = time.process_time()
    with pytest.raises(UserError) as caught:
        resolve([Layer("x.yaml", read_yaml(tmp_path / "x.yaml"))])
    assert time.process_time() - began < 10 and len(str(caught.value)) < 100_000


def test_many_mistakes_are_counted():
    lines = mistakes(*(f"--nonsense{number}=1" for number in range(100)))
    assert len(lines) == 31 and lines[-1] == "and 70 more"


def test_keys_are_text():
    assert parse_yaml("1: {true: 2}", "here") == {"1": {"true": 2}}
    config = resolve([parse_overrides([TEACHER, "--kd.type=average", "--teachers={0: {view: clean}}"])]).config
    assert config.teachers[0].view == "clean"


@pytest.mark.parametrize("key", ["output_dir", "data.path", "cache.dir"])
@pytest.mark.parametrize("name", ["a" * 256, "x/" * 2500, "~no-such-user/x"])
def test_names_that_no_file_can_have(key, name):
    assert f"{key}: is '{name[:60]}'" in mistakes(f"--{key}={name}")[0]
    with pytest.raises(UserError, match="--config: is"):
        configuration.find_file(name, "--config")


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match="--config: no such file: nowhere.yaml"):
        configuration.find_file("nowhere.yaml", "--config")


def test_printed_yaml_reads_back_as_the_same_configuration():
    config = load("--kd.type=confidence", TEACHER, "--training.learning_rate=1e-5", "--data.val_size=0.25")
    assert resolve([Layer("printed", yaml.safe_load(config.to_yaml()))]).config == config
    assert resolve([Layer("printed", parse_yaml(config.to_yaml(), "printed"))]).config == config


def test_the_digest_ignores_what_does_not_shape_the_result():
    same = [
        load(),
        load("--output_dir=elsewhere", "--wandb.mode=offline", "--training.log_every=3", "--data.num_workers=2"),
    ]
    assert len({digest(config, "data") for config in same}) == 1
    other = [
        load(),
        load("--training.seed=1"),
        load("--data.split_seed=1"),
        load("--model.name=cifar_resnet8"),
    ]
    assert len({digest(config, "data") for config in other}) == 4
    assert digest(load(), "data") != digest(load(), "other data")


def test_a_test_split_that_is_cut_makes_another_run_and_teachers_inherit_it():
    assert "test_size" not in identity_of(load(), "data")["data"]
    teacher = "--teachers=[{model: cifar_resnet20, train: configs/teachers/digits.yaml}]"
    config = load("--data.test_size=0.2", "--kd.type=average", teacher)
    assert identity_of(config, "data")["data"]["test_size"] == 0.2
    for run in (config, load("--kd.type=average", teacher)):
        own = training_config(run, 0)
        assert own.data.test_size == run.data.test_size
        assert ("test_size" in identity_of(own, "data")["data"]) == (run.data.test_size is not None)
    for wrong in ("0", "-0.1", "1.5"):
        with pytest.raises(UserError, match="data.test_size"):
            load(f"--data.test_size={wrong}")


def test_help_lists_every_key_once_per_place():
    text = configuration.describe_keys()
    for name in kd_methods.names():
        assert f"kd.type={name}" in text
    for key in (
        "--data.val_size=",
        "--training.max_epochs=",
        "--teachers[i].view=",
        "--kd.temperature=",
        "--output_dir=",
    ):
        assert key in text
    assert not re.search(r"^ {8}(;|$)|^ {8}None$", text, re.MULTILINE)  # every key has a description
    assert text.count("--kd.dkd.beta=") == text.count("--augment.mixup.alpha=") == 1
    assert "FieldInfo" not in text and "--augment.mixup={...}|null  [null]\n" in text


def test_flat_keys_for_wandb():
    flat = load("--kd.type=dynamic", TEACHER).flat(100)
    assert flat["kd_type"] == "dynamic" and flat["gamma"] == 10.0 and flat["teacher_models"] == ["cifar_resnet20"]
    assert flat["num_classes"] == 100 and flat["threshold"] == 0.5
