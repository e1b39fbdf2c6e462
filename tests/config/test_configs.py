"""Every shipped YAML through the real command line: valid, its models exist, its name says what it holds."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from shipped_configs import (
    CONFIGS,
    EXPERIMENTS,
    LOSS_FILES,
    PAIR_FILES,
    PROTOCOL,
    RESULT_FILES,
    ROOT,
    STRONG_FILES,
    TEACHERS,
    TRIO_FILES,
    WEIGHTING_FILES,
    combine,
    label,
    load,
)

import kd_methods
import train_kd
from kd_core.config import (
    Layer,
    parse_overrides,
    read_layers,
    read_yaml,
    resolve,
    with_precision,
)
from kd_core.config.read import merge
from kd_core.models import build as models
from kd_core.models import weights
from kd_core.models.layer_features import WithFeatures
from kd_core.teachers import load as teachers

TWELVE = {
    "baseline",
    "ca_weighted-rdv",
    "confidence-3resnets",
    "confidence-3resnets-soft_only",
    "confidence-dr-T16",
    "confidence-dr-T8",
    "confidence-rdv",
    "dynamic-3resnets-gamma10-threshold0.5",
    "dynamic-densenet121-alpha0.5",
    "dynamic-rdv-gamma2-threshold0.3",
    "dynamic-resnet50-alpha0.75",
    "dynamic-vit-alpha0.25",
}
# Pairs of the common benchmark (Tian et al. 2020): teacher, student, learning rate, and DKD's beta for them
# (Zhao et al. 2022).
PAIRS = [
    ("resnet32x4", "resnet8x4", 0.05, 8),
    ("wrn_40_2", "wrn_16_2", 0.05, 6),
    ("wrn_40_2", "wrn_40_1", 0.05, 6),
    ("resnet56", "resnet20", 0.05, 2),
    ("resnet110", "resnet32", 0.05, 2),
    ("vgg13", "vgg8", 0.05, 6),
    ("resnet50", "mobilenetv2", 0.01, 8),
    ("vgg13", "mobilenetv2", 0.01, 6),
    ("resnet32x4", "shufflenet_v1", 0.01, 8),
    ("resnet32x4", "shufflenet_v2", 0.01, 8),
    ("wrn_40_2", "shufflenet_v1", 0.01, 8),
]
# hard_weight, soft_weight, temperature
LOSSES = {"kd": (0.1, 0.9, 4), "dkd": (1, 1, 4), "dist": (1, 2, 4), "kd_standardized": (0.1, 9, 2)}
# Pairs for which the authors of standardized KD tuned both: the file, and the same numbers (names of their logs)
TUNED = {
    "vgg13-vgg8": ("kd_standardized-T3", (0.1, 9, 3)),
    "vgg13-mobilenetv2": ("kd_standardized-T3", (0.1, 9, 3)),
    "resnet50-mobilenetv2": ("kd_standardized-T3-weight1", (0.1, 1, 3)),
}

# Losses that no file combines with a pair: hard_weight, soft_weight
FEATURE_LOSSES = {
    "at": 1000, "crd": 0.8, "fitnet": 100, "pkt": 30000, "reviewkd-weight0.6": 0.6, "reviewkd-weight1": 1,
    "reviewkd-weight5": 5, "reviewkd-weight5-wrn": 5, "reviewkd-weight8": 8, "rkd": 1, "sp": 3000,
}  # fmt: skip
OTHER_LOSSES = {"rld-beta4": (1, 1), "rld-beta8": (1, 1), "ttm": (1, 45), "wttm": (1, 4)}
OTHER_LOSSES |= dict.fromkeys(FEATURE_LOSSES, (1, 0))


def written_in(path: Path) -> dict[str, Any]:
    """The settings in a file and in those that it builds on."""
    values: dict[str, Any] = {}
    for layer in read_layers([str(path)]):
        values = merge(values, layer.values)
    return values


def networks() -> Iterator[dict[str, Any]]:
    """Arguments of `create_model` for every network that the files name, each once."""
    seen = set()
    for path in EXPERIMENTS:
        config = load(path)
        student = {"name": config.model.name, **config.model.model_dump(include={"img_size", "stem", "args"})}
        taught_by = [
            {"name": teacher.model, **teacher.model_dump(include={"img_size", "stem", "args"})}
            for teacher in config.teachers
            if teacher.model
        ]
        for wanted in [student, *taught_by]:
            if str(wanted) not in seen:
                seen.add(str(wanted))
                yield wanted


@pytest.mark.parametrize("path", EXPERIMENTS, ids=label)
def test_experiment_is_valid(path: Path) -> None:
    assert path.read_text().startswith("# "), "the first line says what the file is and where it comes from"
    config = load(path)
    for index, teacher in enumerate(config.teachers):
        if teacher.train:
            own = teachers.training_config(config, index)
            assert own.data.val_size == config.data.val_size and own.data.split_seed == config.data.split_seed
        else:
            assert teacher.weights in {f"hf-hub:{name}" for name in weights.KNOWN_CHECKPOINTS}


@pytest.mark.parametrize("path", TEACHERS, ids=label)
def test_teacher_file_is_valid(path: Path) -> None:
    assert path.read_text().startswith("# ")
    layer = parse_overrides(
        ["--kd.type=average", f"--teachers=[{{model: cifar_resnet20, train: {path.relative_to(ROOT)}}}]"]
    )
    run = resolve([layer]).config
    own = teachers.training_config(run, 0)
    assert own.model.name == "cifar_resnet20"
    assert own.training.max_epochs == read_yaml(path)["training"]["max_epochs"]


def test_every_teacher_file_is_used() -> None:
    used = {teacher.train for path in EXPERIMENTS for teacher in load(path).teachers}
    used |= {teacher.train for path in TRIO_FILES for teacher in combine([path, WEIGHTING_FILES[0]]).teachers}
    assert {str(path.relative_to(ROOT)) for path in TEACHERS} <= used


def test_every_network_can_be_built() -> None:
    for wanted in networks():
        assert timm.is_model(models.architecture(wanted["name"], wanted["stem"])), wanted
        with torch.device("meta"):  # names, shapes and arguments, without memory
            assert models.count_parameters(models.create_model(**wanted, num_classes=100)) > 0, wanted


@pytest.mark.parametrize("path", [p for p in EXPERIMENTS if p.parent != CONFIGS], ids=label)
def test_name_agrees_with_contents(path: Path) -> None:
    config = load(path)
    kd = config.kd.model_dump()
    stem, written = path.stem, written_in(path)["kd"]
    assert config.name in (stem, f"{path.parent.name}-{stem}")
    for prefix, key in (
        ("T", "temperature"),
        ("gamma", "gamma"),
        ("threshold", "threshold"),
        ("alpha", "alpha"),
    ):
        for number in re.findall(rf"-{prefix}([\d.]+)(?=-|$)", stem):
            assert float(number) == written[key] == kd[key]
    if path.parent.name == "papers":
        teacher, student, loss = stem.rsplit("-", 2)
        assert [config.teachers[0].model, config.model.name] == [f"cifar_{teacher}", f"cifar_{student}"]
        assert (kd["loss"], kd["standardize"]) == (
            loss.removesuffix("_standardized"),
            loss.endswith("_standardized"),
        )
        return
    assert stem.split("-")[0] == config.kd.type
    assert ("soft_only" in stem) == (kd.get("use_hard_loss") is False)
    if config.kd.type == "dynamic" and len(config.teachers) > 1:
        assert "gamma" in stem and "threshold" in stem
    if kd.get("temperature", 4.0) != 4.0:
        assert "-T" in stem
    family = {"r": "resnet50", "d": "densenet121", "v": "vit_"}
    for group, members in {
        "rdv": [family[x] for x in "rdv"],
        "dr": [family[x] for x in "dr"],
        "3resnets": ["resnet18", "resnet34", "resnet50"],
        "resnet50": ["resnet50"],
        "densenet121": ["densenet121"],
        "vit": ["vit_"],
        "baseline": [],
    }.items():
        if group in stem.split("-"):
            assert len(config.teachers) == len(members)
            for given, member in zip(config.teachers, members, strict=True):
                assert member in (given.model or given.weights or "")
            break
    else:
        raise AssertionError(f"{stem}: names no teachers")


@pytest.mark.parametrize("folder", ["originals", "cifar32"])
def test_the_twelve_and_their_recipe(folder: str) -> None:
    paths = {path.stem: path for path in (CONFIGS / folder).glob("*.yaml")}
    assert set(paths) == TWELVE
    for stem, path in paths.items():
        config = load(path)
        training = config.training
        expected = {"baseline": (100, 15), "ca_weighted-rdv": (100, 20)}.get(stem, (150, 30))
        assert (training.max_epochs, training.patience) == expected
        assert (training.optimizer, training.schedule, training.warmup_epochs) == ("adamw", "cosine", 0)
        assert (training.learning_rate, training.weight_decay, training.min_learning_rate) == (
            1e-3,
            1e-4,
            1e-6,
        )
        assert (config.data.name, config.data.val_size, config.data.batch_size) == (
            "uoft-cs/cifar100",
            None,  # 5,000 for CIFAR, a tenth for other data named on the command line
            128,
        )
        original = folder == "originals"
        assert config.model.name == "mobilenetv2_100"
        assert (config.model.img_size, config.model.stem) == ((224, "default") if original else (None, "cifar"))
        assert {teacher.view for teacher in config.teachers} <= {"clean" if original else "shared"}
        assert getattr(config.kd, "scope", "batch") == "batch"


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0]}-{pair[1]}")
def test_the_benchmark_pairs_and_their_recipe(pair: tuple[str, str, float, int], loss: str) -> None:
    teacher, student, learning_rate, beta = pair
    path = CONFIGS / "papers" / f"{teacher}-{student}-{loss}.yaml"
    config = load(path)
    loss_file, numbers = f"dkd-beta{beta}" if loss == "dkd" else loss, LOSSES[loss]
    if loss == "kd_standardized":
        loss_file, numbers = TUNED.get(f"{teacher}-{student}", (loss, numbers))
    parts = [PAIR_FILES[0].with_stem(f"{teacher}-{student}"), LOSS_FILES[0].with_stem(loss_file)]
    assert config == combine(parts, f"--name={path.stem}")
    training, kd = config.training, config.kd.model_dump()
    assert (kd["type"], kd["hard_weight"], kd["soft_weight"], kd["temperature"]) == ("average", *numbers)
    if loss == "dkd":
        assert (kd["dkd"]["alpha"], kd["dkd"]["beta"]) == (1, beta)
        assert kd["dkd"]["warmup"] * training.max_epochs == pytest.approx(20)
    if loss == "dist":
        assert kd["dist"] == {"beta": 1, "gamma": 1}
    assert (training.optimizer, training.learning_rate, training.momentum) == ("sgd", learning_rate, 0.9)
    assert (training.nesterov, training.weight_decay, training.patience) == (False, 5e-4, None)
    assert (training.max_epochs, training.schedule, training.milestones) == (
        240,
        "multistep",
        [150, 180, 210],
    )
    assert (config.data.batch_size, config.data.val_size, config.evaluation.test_at_end) == (64, 0, True)
    own = teachers.training_config(config, 0)
    assert (own.training.learning_rate, own.training.max_epochs, own.data.batch_size) == (0.05, 240, 64)
    assert [t.view for t in config.teachers] == ["shared"]


def test_there_are_no_other_pairs() -> None:
    names = {f"{teacher}-{student}-{loss}" for teacher, student, *_ in PAIRS for loss in LOSSES}
    assert {path.stem for path in (CONFIGS / "papers").glob("*.yaml")} == names and len(names) == 44
    assert {path.stem for path in PAIR_FILES} == {f"{teacher}-{student}" for teacher, student, *_ in PAIRS}
    dkd = {f"dkd-beta{pair[-1]}" for pair in PAIRS}
    tuned = {file for file, _ in TUNED.values()}
    assert {path.stem for path in LOSS_FILES} == {*LOSSES, *dkd, *tuned, *OTHER_LOSSES} - {"dkd"}


@pytest.mark.parametrize("loss", LOSS_FILES, ids=label)
@pytest.mark.parametrize("pair", PAIR_FILES, ids=label)
def test_every_pair_combines_with_every_loss(pair: Path, loss: Path) -> None:
    assert loss.read_text().startswith("# ") and pair.read_text().startswith("# ")
    config = combine([pair, loss])
    written = written_in(loss)["kd"]
    assert config.kd.model_dump(include=set(written) - {"dkd", "dist", "rld", "features"}).items() <= written.items()
    if weights := OTHER_LOSSES.get(loss.stem):
        assert (config.kd.hard_weight, config.kd.soft_weight) == weights
    if weight := FEATURE_LOSSES.get(loss.stem):
        [entry] = config.kd.features
        assert (entry.loss, entry.weight) == (loss.stem.partition("-")[0], weight)
        if entry.loss == "reviewkd":
            assert entry.warmup * config.training.max_epochs == pytest.approx(20)
    if config.kd.loss == "rld":
        assert config.kd.rld.warmup * config.training.max_epochs == pytest.approx(20)
    assert f"{config.teachers[0].model}-{config.model.name}".replace("cifar_", "") == pair.stem
    without = combine([pair])
    assert (without.kd.type, without.teachers, without.training) == (kd_methods.LABEL_ONLY, [], config.training)


@pytest.mark.parametrize("strong", STRONG_FILES, ids=label)
def test_every_pair_combines_with_every_strong_recipe(strong: Path) -> None:
    assert strong.read_text().startswith("# ")
    for pair in PAIR_FILES:
        config = combine([pair, strong])
        written = written_in(strong)
        assert config.kd.loss == strong.stem.removesuffix("-strong") and config.augment.model_dump()
        training = written.get("training", {})
        assert {key: getattr(config.training, key) for key in training} == training
        # The authors of the losses of two views call the student twice, and their strong view ends in a blotted square.
        of_two, second = config.kd.loss in ("crld", "mlkd"), config.augment.second
        assert (config.augment.passes, second.cutout if second else None) == ((2, 16) if of_two else (1, None))
        without_loss = combine([pair, strong], "--kd.type=baseline", "--teachers=[]")
        assert (without_loss.training, without_loss.augment) == (config.training, config.augment)
    assert {path.stem for path in STRONG_FILES} == {"crld-strong", "kd-strong", "mlkd-strong"}


def test_the_trios_are_the_seven_settings_of_ca_mkd() -> None:
    assert {path.stem for path in TRIO_FILES} == {
        "wrn_40_2-shufflenet_v1", "resnet56-mobilenetv2", "vgg13-vgg8", "vgg13-mobilenetv2", "resnet32x4-resnet8x4",
        "resnet32x4-shufflenet_v2", "resnet32x4-vgg8",
    }  # fmt: skip
    assert {path.stem for path in WEIGHTING_FILES} == {"aekd", "ca_mkd", "ca_mkd-shufflenet_v2", "ca_mkd-wrn", "ebkd"}


@pytest.mark.parametrize("weighting", WEIGHTING_FILES, ids=label)
@pytest.mark.parametrize("trio", TRIO_FILES, ids=label)
def test_every_trio_combines_with_every_weighting(trio: Path, weighting: Path) -> None:
    assert weighting.read_text().startswith("# ") and trio.read_text().startswith("# ")
    config = combine([trio, weighting])
    written, kd = written_in(weighting)["kd"], config.kd.model_dump()
    assert kd["type"] == weighting.stem.partition("-")[0] and kd["temperature"] == 4
    assert kd["hard_weight"] == kd["soft_weight"] == 1
    entries = [(kd["features"][number], own) for number, own in enumerate(written.pop("features", []))]
    assert all({key: entry[key] for key in own} == own for entry, own in entries)
    assert {key: kd[key] for key in written} == {**written, **({"aekd": kd["aekd"]} if "aekd" in written else {})}
    teacher, student = trio.stem.split("-")
    assert [one.model for one in config.teachers] == 3 * [f"cifar_{teacher}"]
    assert config.model.name == f"cifar_{student}"
    assert len({teachers.training_config(config, index).training.seed for index in range(3)}) == 3
    small = student.startswith(("mobilenet", "shufflenet"))
    training = config.training
    assert (training.learning_rate, training.nesterov, training.weight_decay) == (0.01 if small else 0.05, True, 5e-4)
    without = combine([trio])
    assert (without.kd.type, without.teachers, without.training) == (kd_methods.LABEL_ONLY, [], training)


@pytest.mark.parametrize(
    ("first", "second", "student", "teacher"),
    [
        ("trios/resnet32x4-shufflenet_v2", "weightings/ca_mkd-shufflenet_v2", [(1024, 4, 4)], [(256, 8, 8)]),
        ("trios/wrn_40_2-shufflenet_v1", "weightings/ca_mkd-wrn", [(960, 4, 4)], [(128, 8, 8)]),
        (
            "pairs/wrn_40_2-wrn_40_1",
            "losses/reviewkd-weight5-wrn",
            [(16, 32, 32), (32, 16, 16), (64, 8, 8), (64,)],
            [(32, 32, 32), (64, 16, 16), (128, 8, 8), (128,)],
        ),
    ],
)
def test_files_that_name_layers_name_those_of_their_networks(
    first: str, second: str, student: list[tuple[int, ...]], teacher: list[tuple[int, ...]]
) -> None:
    config = combine([CONFIGS / "papers" / f"{part}.yaml" for part in (first, second)])
    [entry] = config.kd.features
    for name, layers, shapes in (
        (config.model.name, entry.student, student),
        (config.teachers[0].model, entry.teacher, teacher),
    ):
        assert name is not None
        network = models.create_model(name, num_classes=100).eval()
        assert WithFeatures(network, layers, 32, name).shapes == shapes


@pytest.mark.parametrize("path", RESULT_FILES, ids=label)
def test_every_row_of_the_results_follows_the_protocol(path: Path) -> None:
    """A row names its teachers; what it trains with is the protocol's."""
    assert path.read_text().startswith("# ")
    config, protocol = combine([PROTOCOL, path]), combine([PROTOCOL])
    assert config.name == f"results-{path.stem}"
    assert (config.data, config.model, config.training) == (protocol.data, protocol.model, protocol.training)
    *teams, view = path.stem.split("-") if path.stem.endswith("-shared") else (*path.stem.split("-"), "clean")
    files = {"micronet": "teachers/micronet.safetensors"}
    wanted = [files.get(team, f"teachers/cifar100_resnet{team}.pth") for team in teams if team != "alone"]
    assert [teacher.logits or teacher.weights for teacher in config.teachers] == wanted
    assert {teacher.view for teacher in config.teachers if teacher.weights} <= {view}
    assert all(teacher.logits or teacher.model in teacher.weights.replace("100_", "_") for teacher in config.teachers)
    assert config.kd.type == ("average" if wanted else kd_methods.LABEL_ONLY)


def test_there_is_an_experiment_for_every_weighting() -> None:
    found = {path.stem.removesuffix("-rdv") for path in (CONFIGS / "weightings").glob("*.yaml")}
    older = {"baseline", "average", "ca_weighted", "dynamic", "confidence"}
    assert found == set(kd_methods.names()) - older


@pytest.mark.parametrize("path", [*EXPERIMENTS, *PAIR_FILES], ids=label)
def test_overrides_named_in_comments_work(path: Path) -> None:
    comments = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    overrides = re.findall(r"--[a-z][\w.]*=\S+", comments)
    if path in PAIR_FILES:
        assert len(overrides) == 2
    paths = [path, LOSS_FILES[0]] if path in PAIR_FILES else [path]
    config = combine(paths, *overrides)
    if overrides:
        assert config != combine(paths)


def test_print_config_prints_what_it_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = "configs/papers/resnet56-resnet20-dkd.yaml"
    train_kd.main(["--print-config", "--config", path, "--training.seed=3"])
    again = tmp_path / "printed.yaml"
    again.write_text(capsys.readouterr().out)
    read_back = resolve([Layer(str(again), read_yaml(again))]).config
    assert read_back == with_precision(load(ROOT / path, "--training.seed=3"), "no") and read_back.training.seed == 3
