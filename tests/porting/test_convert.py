"""`python -m kd_core.porting`: experiment files of mdistiller and torchdistill as settings of train_kd.py."""

import copy
import json
import math
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grid
import pytest
import torch
import yaml

import kd_methods
from kd_core.config import Config, command_line, parse_yaml
from kd_core.errors import UserError
from kd_core.models import build as models
from kd_core.models.layer_features import WithFeatures
from kd_core.porting.command import convert, main
from kd_core.porting.experiment_file import MAX_UNFOLDED, read_experiment
from kd_methods import StudentOutput, TeacherOutputs

ROOT = Path(__file__).resolve().parents[2]
TOOLBOXES = json.loads((ROOT / "tests" / "golden" / "toolboxes.json").read_text())
Convert = Callable[..., dict[str, Any]]

SOLVER = "SOLVER: {BATCH_SIZE: 64, EPOCHS: 240, LR: 0.05, LR_DECAY_STAGES: [150, 180, 210], WEIGHT_DECAY: 0.0005}\n"
TORCHDISTILL = """
datasets:
  &images cifar100/train: !import_call
    _name: &name 'cifar100'
    key: 'torchvision.datasets.CIFAR100'
    init:
      kwargs:
        root: !join ['~/data/', *name]
        transform: !import_call
          key: 'torchvision.transforms.Compose'
          init:
            kwargs:
              transforms:
                - !import_call {key: torchvision.transforms.RandomCrop, init: {kwargs: {size: 32, padding: 4}}}
                - !import_call {key: torchvision.transforms.RandomHorizontalFlip, init: {kwargs: {p: 0.5}}}
                - !import_call {key: torchvision.transforms.ToTensor, init: }
models:
  teacher_model: {key: &teacher wide_resnet40_2, kwargs: {num_classes: 100}, src_ckpt: !join ['a/', *teacher, .pt]}
  student_model: {key: wide_resnet, kwargs: {depth: 16, k: 2, dropout_p: 0.0}}
train:
  num_epochs: 200
  train_data_loader: {dataset_id: *images, kwargs: {batch_size: 128, num_workers: 4}}
  teacher: {requires_grad: False, wrapper: DataParallel, forward_hook: {output: [layer3]}}
  student: {requires_grad: True, frozen_modules: []}
  optimizer: {key: SGD, kwargs: {lr: 0.1, momentum: 0.9, weight_decay: 5e-4, nesterov: True}}
  scheduler: {key: MultiStepLR, kwargs: {milestones: [60, 120, 160], gamma: 0.2}}
  criterion:
    key: WeightedSumLoss
    kwargs:
      sub_terms:
"""
LABELS = (
    "{criterion: {key: CrossEntropyLoss, kwargs: {reduction: mean}}, weight: 1.0, criterion_wrapper: "
    "{key: SimpleLossWrapper, kwargs: {input: {is_from_teacher: False, module_path: '.', io: output}}}}"
)


def td(**terms: str) -> str:
    return TORCHDISTILL + "".join(f"        {name}: {term}\n" for name, term in terms.items())


def term(key: str, kwargs: str, weight: float = 1.0) -> str:
    return f"{{criterion: {{key: {key}, kwargs: {{{kwargs}}}}}, weight: {weight}}}"


def md(kind: str, more: str = "", student: str = "resnet8x4", teacher: str = "resnet32x4") -> str:
    return f"DISTILLER: {{TYPE: {kind}, TEACHER: {teacher}, STUDENT: {student}}}\n{SOLVER}{more}"


@pytest.fixture
def text_of(tmp_path: Path) -> Callable[..., str]:
    """The result for an experiment file with this text."""

    def converted(text: str, **options: Any) -> str:
        path = tmp_path / "theirs.yaml"
        path.write_text(text)
        return convert(path, **options)

    return converted


@pytest.fixture
def mistakes_of(text_of: Callable[..., str]) -> Callable[..., list[str]]:
    """The messages for an experiment file with this text, without its path."""

    def mistakes(text: str, **options: Any) -> list[str]:
        with pytest.raises(UserError) as caught:
            text_of(text, **options)
        lines = str(caught.value).splitlines()
        assert all("theirs.yaml: " in line for line in lines)
        return [line.partition("theirs.yaml: ")[2] for line in lines]

    return mistakes


def loaded(text: str, folder: Path) -> Config:
    """The settings as the command line reads them."""
    path = folder / "ours.yaml"
    path.write_text(text)
    return command_line.parse(["--config", str(path), "--print-config"])[1].config


def kd_of(text: str) -> dict[str, Any]:
    return parse_yaml(text, "the result")["kd"]


# ---------------------------------------------------------------------------------------------------------- mdistiller


FEATURES: dict[str, tuple[str, dict[str, Any]]] = {
    "AT": ("", {"loss": "at", "weight": 1000, "student": [1, 2, 3], "teacher": [1, 2, 3], "p": 2.0}),
    "NST": (
        "NST: {LOSS: {FEAT_WEIGHT: 20}}", {"loss": "nst", "weight": 20, "student": [1, 2, 3], "teacher": [1, 2, 3]}
    ),
    "VID": ("", {"loss": "vid", "weight": 1, "student": [1, 2, 3], "teacher": [1, 2, 3], "variance": 5.0}),
    "FITNET": ("FITNET: {HINT_LAYER: 1}", {"loss": "fitnet", "weight": 100, "student": [1], "teacher": [1]}),
    "SP": ("", {"loss": "sp", "weight": 3000, "student": [-1], "teacher": [-1]}),
    "PKT": ("", {"loss": "pkt", "weight": 30000, "student": ["embedding"], "teacher": ["embedding"]}),
    "RKD": (
        "RKD: {ANGLE_WEIGHT: 2, PDIST: {SQUARED: False}}",
        {"loss": "rkd", "weight": 1, "student": ["embedding"], "teacher": ["embedding"], "distance": 25, "angle": 2},
    ),
    "CRD": (
        "CRD: {FEAT: {DIM: 64, STUDENT_DIM: 256}, NCE: {K: 4096}, MODE: exact}",
        {"loss": "crd", "weight": 0.8, "student": ["embedding"], "teacher": ["embedding"], "width": 64,
         "negatives": 4096, "tau": 0.07, "momentum": 0.5},
    ),
    "REVIEWKD": (
        "REVIEWKD: {REVIEWKD_WEIGHT: 5.0, SHAPES: [1, 8, 16, 32]}",
        {"loss": "reviewkd", "weight": 5, "student": [1, 2, 3, "embedding"], "teacher": [1, 2, 3, "embedding"],
         "width": 512, "warmup": 20 / 240},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FEATURES)
def test_feature_losses_of_mdistiller(kind: str, text_of: Any, tmp_path: Path) -> None:
    more, entry = FEATURES[kind]
    text = text_of(md(kind, more))
    assert kd_of(text) == {"type": "average", "hard_weight": 1, "soft_weight": 0, "features": [entry]}
    assert re.search(rf"^# +{entry['weight']:g} x .* +1 +kd\.features\[0\]\.weight {entry['weight']:g}$", text, re.M)
    assert loaded(text, tmp_path).kd.features[0].weight == entry["weight"]


@pytest.mark.parametrize(
    ("text", "shipped"),
    [
        (md("KD"), "resnet32x4-resnet8x4-kd"),
        (md("DKD"), "resnet32x4-resnet8x4-dkd"),
        (md("DKD", "DKD: {BETA: 6.0}", "vgg8", "vgg13"), "vgg13-vgg8-dkd"),
        (md("KD", "", "MobileNetV2", "ResNet50").replace("LR: 0.05", "LR: 0.01"), "resnet50-mobilenetv2-kd"),
    ],
)
def test_benchmarks_of_mdistiller_are_those_in_configs(text: str, shipped: str, text_of: Any, tmp_path: Path) -> None:
    ours = command_line.parse(["--config", f"configs/papers/{shipped}.yaml"])[1].config
    found = loaded(text_of(text), tmp_path)
    assert found.model_dump() == {**ours.model_dump(), "name": None}


def test_a_student_alone(text_of: Any, tmp_path: Path) -> None:
    text = text_of(md("NONE"))
    assert kd_of(text_of("DISTILLER: {}")) == {"type": "baseline"}
    assert kd_of(text) == {"type": "baseline"} and "teachers" not in parse_yaml(text, "")
    assert loaded(text, tmp_path).model.name == "cifar_resnet8x4"


def test_a_cross_entropy_that_is_scaled_alone_is_said(text_of: Any) -> None:
    text = text_of(md("KD", "KD: {LOSS: {CE_WEIGHT: 0.1, KD_WEIGHT: 0}}"))
    assert kd_of(text) == {"type": "baseline"} and "teachers" not in parse_yaml(text, "")
    assert "their cross-entropy counts 0.1; alone it counts 1 here, so its gradient is 10 times theirs" in text


def test_stages_of_reviewkd_count_from_the_last(text_of: Any, mistakes_of: Any) -> None:
    shapes = "REVIEWKD: {SHAPES: [1, 8, 16, 32], MAX_MID_CHANNEL: 256}"
    entry = kd_of(text_of(md("REVIEWKD", shapes, student="vgg8")))["features"][0]
    assert entry["student"] == [2, 3, 4, "embedding"] and entry["teacher"] == [1, 2, 3, "embedding"]
    assert entry["width"] == 512  # mdistiller never uses its MAX_MID_CHANNEL
    entry = kd_of(text_of(md("REVIEWKD", teacher="ResNet50")))["features"][0]
    assert entry["student"] == [0, 1, 2, 3, "embedding"] and entry["teacher"] == [1, 2, 3, 4, "embedding"]
    [mistake] = mistakes_of(md("REVIEWKD", "REVIEWKD: {SHAPES: [1, 8, 16, 32, 32]}"))
    assert mistake.startswith("REVIEWKD.SHAPES: is [1, 8, 16, 32, 32], expected 4 sizes")


@pytest.mark.parametrize("teacher", ["wrn_16_1", "vgg8", "vgg11", "vgg13", "vgg16", "vgg19"])
def test_reviewkd_sees_maps_before_the_relu_where_a_module_gives_them(teacher: str, text_of: Any) -> None:
    text = text_of(md("REVIEWKD", student="resnet8x4", teacher=teacher))
    assert "after the ReLU" not in text
    *names, last = kd_of(text)["features"][0]["teacher"]
    assert last == "embedding"
    network = models.create_model(f"cifar_{teacher}", num_classes=10).eval()
    with torch.no_grad():
        for norm in (module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)):
            norm.bias.normal_()  # else half of the maps would look alike
        stages = list(range(-len(names), 0))
        _, maps = WithFeatures(network, [*names, *stages], 32, teacher)(torch.rand(2, 3, 32, 32))
    for name, before, stage in zip(names, maps, maps[len(names) :], strict=False):
        # A stage of a WRN is the sum that the BatchNorm gets, one of a VGG what the ReLU gives.
        norm = network.get_submodule(name)
        expected = norm(stage) if teacher.startswith("wrn") else before
        assert before.min() < 0 and torch.equal(before, expected), name
        assert teacher.startswith("wrn") or torch.equal(torch.relu(before), stage), name


def test_reviewkd_says_where_it_sees_other_maps(text_of: Any) -> None:
    assert "reviewkd sees the teacher's maps after the ReLU" in text_of(md("REVIEWKD"))


def test_stages_that_both_networks_have(text_of: Any) -> None:
    layers = [[kd_of(text_of(md("AT", "", *pair)))["features"][0]["student"]][0] for pair in (
        ("vgg8", "vgg13"), ("ShuffleV1", "ResNet50"), ("MobileNetV2", "vgg13"),
    )]  # fmt: skip
    assert layers == [[1, 2, 3, 4], [1, 2, 3], [1, 2, 3, 4]]


def test_keys_that_change_nothing_are_named(text_of: Any) -> None:
    text = text_of("EXPERIMENT: {NAME: '', TAG: a}\nLOG: {WANDB: False}\n" + md("KD", "AT: {P: 4}"))
    assert "#   - EXPERIMENT, LOG, AT\n" in text


# -------------------------------------------------------------------------------------------------------- torchdistill


def test_an_experiment_of_torchdistill(text_of: Any, tmp_path: Path) -> None:
    pairs = (
        "one: {teacher: {io: output, path: layer2}, student: {path: layer1}, weight: 2}, "
        "two: {teacher: {path: l3}, student: {path: l2}}"
    )
    terms = {
        "labels": LABELS,
        "kd": term("KDLoss", "temperature: 4.0, alpha: 0.9, student_module_path: '.', reduction: batchmean", 2.0),
        "at": term("ATLoss", f"at_pairs: {{{pairs}}}, mode: paper", 10.0),
        "pkt": term("PKTLoss", ", ".join(f"{w}_module_path: fc, {w}_module_io: input" for w in ("student", "teacher"))),
        "rkd": term(
            "RKDLoss", "teacher_output_path: avgpool, student_output_path: avgpool, dist_factor: 1, reduction: mean"
        ),
    }
    text = text_of(td(**terms))
    layers = [{"loss": "at", "weight": 20, "student": ["layer1"], "teacher": ["layer2"], "form": "paper"},
              {"loss": "at", "weight": 10, "student": ["l2"], "teacher": ["l3"], "form": "paper"}]  # fmt: skip
    assert kd_of(text) == {
        "type": "average", "hard_weight": 2.8, "soft_weight": 0.2, "loss": "kd", "temperature": 4,
        "features": [*layers, {"loss": "pkt", "weight": 1},
                     {"loss": "rkd", "weight": 1, "distance": 1, "angle": 0}],
    }  # fmt: skip
    config = loaded(text, tmp_path)
    assert (config.model.name, config.teachers[0].model) == ("cifar_wrn_16_2", "cifar_wrn_40_2")
    assert (config.data.name, config.data.batch_size, config.data.crop_padding) == ("uoft-cs/cifar100", 128, 4)
    training = config.training
    assert (training.optimizer, training.nesterov, training.momentum, training.weight_decay) == ("sgd", True, 0.9, 5e-4)
    assert (training.milestones, training.decay_factor, training.max_epochs) == ([60, 120, 160], 0.2, 200)


def test_clipping_and_what_changes_nothing_stand_with_the_optimizer(text_of: Any, tmp_path: Path) -> None:
    more = "max_grad_norm: 2.0, grad_accum_step: 1, filters_params: True, "
    text = td(x=LABELS).replace("{key: SGD", f"{{{more}key: SGD")
    text = text.replace("gamma: 0.2}", "gamma: 0.2}, scheduling_step: 0")
    assert loaded(text_of(text), tmp_path).training.clip == 2.0
    assert loaded(text_of(td(x=LABELS)), tmp_path).training.clip is None


def test_networks_that_are_not_quite_theirs_are_said(text_of: Any) -> None:
    text = td(kd=term("KDLoss", "temperature: 4.0, alpha: 0.5"))
    whole = text_of(text)
    assert "no checkpoint of theirs fits" in whole and "--teachers.0.weights" not in whole
    assert "checkpoint" not in text_of(text, only_kd=True)


def test_data_in_splits_adamw_and_cosine(text_of: Any, tmp_path: Path) -> None:
    text = td(kd=term("KDLoss", "temperature: 4.0, alpha: 0.5"))
    text = text[: text.index("datasets:")] + text[text.index("models:") :].replace("*images", "c/train").replace(
        "key: SGD, kwargs: {lr: 0.1, momentum: 0.9, weight_decay: 5e-4, nesterov: True}",
        "key: AdamW, kwargs: {lr: 0.01}",
    ).replace(
        "key: MultiStepLR, kwargs: {milestones: [60, 120, 160], gamma: 0.2}",
        "key: CosineAnnealingLR, kwargs: {T_max: 200}",
    )
    split = "{dataset_id: c/train, kwargs: {transform_configs: [{key: ToTensor}]}}"
    text += f"datasets: {{c: {{key: CIFAR10, splits: {{train: {split}}}}}}}"
    config = loaded(text_of(text), tmp_path)
    assert (config.data.name, config.data.crop_padding, config.data.flip) == ("uoft-cs/cifar10", 0, False)
    training = config.training
    assert (training.optimizer, training.weight_decay, training.schedule) == ("adamw", 0.01, "cosine")
    assert training.min_learning_rate == 0


def test_regressors_of_vid(text_of: Any, tmp_path: Path) -> None:
    pair = "p{0}: {{teacher: {{io: output, path: layer{0}}}, student: {{path: regressor_dict.r{0}}}, weight: {0}}}"
    regressor = "r{0}: {{io: output, path: student_model.layer{1}, regressor_kwargs: {{init_pred_var: {0}.5}}}}"
    pairs = ", ".join(pair.format(i) for i in (1, 2))
    regressors = ", ".join(regressor.format(i, i + 1) for i in (1, 2))
    wrapper = f"{{key: VariationalDistributor4VID, kwargs: {{regressors: {{{regressors}}}}}}}"
    text = td(ce=LABELS, vid=term("VIDLoss", f"feature_pairs: {{{pairs}}}, margin: 1.0", 3.0))
    text = text_of(text.replace("frozen_modules: []", f"auxiliary_model_wrapper: {wrapper}"))
    assert kd_of(text)["features"] == [
        {"loss": "vid", "weight": 3 * i, "student": [f"layer{i + 1}"], "teacher": [f"layer{i}"], "variance": i + 0.5}
        for i in (1, 2)
    ]
    assert loaded(text, tmp_path).kd.hard_weight == 1


def test_cross_entropies_that_smooth_labels_differently_are_refused(mistakes_of: Any) -> None:
    smooth = LABELS.replace("reduction: mean", "reduction: mean, label_smoothing: 0.1")
    kd = term("KDLoss", "temperature: 4, alpha: 0.5")
    for terms in ({"ce": smooth, "kd": kd}, {"kd": kd, "ce": smooth}, {"ce": smooth, "other": LABELS}):
        [mistake] = mistakes_of(td(**terms))
        assert "training.label_smoothing is for all cross-entropies" in mistake


@pytest.mark.parametrize("more", ["padding_mode: reflect", "fill: 3", "pad_if_needed: True"])
def test_arguments_of_transforms_are_not_dropped(more: str, mistakes_of: Any) -> None:
    text = td(kd=term("KDLoss", "temperature: 4, alpha: 0.5")).replace("padding: 4}", f"padding: 4, {more}}}")
    [mistake] = mistakes_of(text)
    assert "'RandomCrop' with" in mistake and more.split(":")[0] in mistake


def test_label_smoothing_goes_with_the_losses(text_of: Any) -> None:
    smooth = LABELS.replace("reduction: mean", "label_smoothing: 0.1")
    text = text_of(td(ce=smooth, kd=term("KDLoss", "temperature: 1.0, alpha: 0")), only_kd=True)
    assert parse_yaml(text, "") == {
        "training": {"label_smoothing": 0.1},
        "kd": {"type": "average", "hard_weight": 1, "soft_weight": 1, "loss": "kd", "temperature": 1},
    }


# ----------------------------------------------------------------------------------- both: the losses are those there


LOSSES = [
    (td(kd=term("KDLoss", "temperature: 4.0, alpha: 0", 3.0)), "torchdistill/KDLoss(alpha=0)", 3.0),
    (td(kd=term("KDLoss", "temperature: 4.0, beta: 5.0", 3.0)), "torchdistill/KDLoss(alpha=0)", 3.0),
    (td(kd=term("LogitStdKDLoss", "temperature: 2.0, alpha: 0")), "torchdistill/LogitStdKDLoss(alpha=0)", 1),
    (td(kd=term("DISTLoss", "tau: 4.0", 2.0)), "torchdistill/DISTLoss(tau=4)", 2.0),
    (md("KD", "KD: {TEMPERATURE: 4, LOSS: {CE_WEIGHT: 0, KD_WEIGHT: 2.5}}"), "kd/T4", 2.5),
    (md("DKD", "DKD: {CE_WEIGHT: 0, BETA: 2, WARMUP: 0}"), "dkd/alpha1_beta2_T4", 1.0),
]  # fmt: skip


@pytest.mark.parametrize(("text", "key", "weight"), LOSSES)
def test_the_translated_loss_is_theirs(text: str, key: str, weight: float, text_of: Any) -> None:
    """The file's loss, computed with the settings that it becomes, is the value of the other project's own code."""
    method = kd_methods.build(kd_of(text_of(text, only_kd=True)))
    for case in grid.cases():
        x = grid.inputs(case)
        actual = method(StudentOutput(x["logits_s"]), TeacherOutputs(x["logits_t"][:1]), x["labels"], 1.0)[0]
        theirs = TOOLBOXES[key][case] if key in TOOLBOXES else grid.entries(case)[key]["value"]
        assert actual.item() == pytest.approx(weight * theirs, rel=3e-5 if "DIST" in key else 2e-9), case


def test_alpha_and_beta_of_torchdistill(text_of: Any) -> None:
    """alpha CE + beta T^2 KL."""
    kd = kd_of(text_of(td(kd=term("KDLoss", "temperature: 4.0, alpha: 0.3, beta: 2.0", 2.0)), only_kd=True))
    method, x = kd_methods.build(kd), grid.inputs(grid.cases()[0])
    actual = method(StudentOutput(x["logits_s"]), TeacherOutputs(x["logits_t"][:1]), x["labels"], 1.0)[0]
    labels = torch.nn.functional.cross_entropy(x["logits_s"], x["labels"])
    expected = 2 * (0.3 * labels.item() + 2 * TOOLBOXES["torchdistill/KDLoss(beta=1)"][grid.cases()[0]])
    assert actual.item() == pytest.approx(expected, rel=2e-9)


# ------------------------------------------------------------------------------------------- what cannot be translated


POOL = "teacher_output_path: avgpool, student_output_path: avgpool"
NOT_TRANSLATED = [
    (md("OFD"), "DISTILLER.TYPE: 'OFD' cannot be translated: it compares maps before the ReLU"),
    (md("KDSVD"), "DISTILLER.TYPE: 'KDSVD' cannot be translated: the loss is not offered"),
    (md("DKDD"), "DISTILLER.TYPE: 'DKDD' cannot be translated: no method of this name, did you mean 'DKD'?"),
    (md("KD", "", "resnet9"), "DISTILLER.STUDENT: 'resnet9' cannot be translated: no network of this name"),
    (md("KD", "KD: {TEMPERATUR: 4}"), "KD.TEMPERATUR: cannot be translated: nothing is known about this key"),
    (md("KD", "KD: {TEMPERATURE: -4}"), "KD.TEMPERATURE: is -4, expected a number >= 0"),
    (md("KD", "KD: {TEMPERATURE: .inf}"), "KD.TEMPERATURE: is inf, expected a number >= 0"),
    (md("KD", "KD: {TEMPERATURE: true}"), "KD.TEMPERATURE: is True, expected a number >= 0"),
    (md("DKD", "DKD: {WARMUP: 500}"), "DKD.WARMUP: is 500, more than the 240 epochs of training"),
    (md("KD", "KD: {LOSS: {CE_WEIGHT: 0, KD_WEIGHT: 0}}"), "DISTILLER.TYPE: all weights are 0, which leaves no loss"),
    (td(x=term("KDLoss", "temperature: 1.0e-300, alpha: 0")), "kwargs.temperature: is 1e-300, expected a number above"),
    (md("KD", "DATASET: {TYPE: imagenet}"), "DATASET.TYPE: 'imagenet' cannot be translated: only cifar100"),
    (md("RKD", "RKD: {PDIST: {SQUARED: True}}"), "RKD.PDIST.SQUARED: True cannot be translated: rkd"),
    (md("CRD", "CRD: {MODE: relax}"), "CRD.MODE: 'relax' cannot be translated: crd draws negatives"),
    (md("CRD", "CRD: {NCE: {K: 1.5}}"), "CRD.NCE.K: is 1.5, expected a whole number"),
    (md("KD").replace("LR: 0.05", "LR: 0.05, TRAINER: dot"), "SOLVER.TRAINER: 'dot' cannot be"),
    (md("KD").replace("[150, 180, 210]", "150"), "SOLVER.LR_DECAY_STAGES: is 150, expected a list of"),
    (td(x=term("SPKDLoss", "reduction: batchmean")), "sub_terms.x.criterion.key: 'SPKDLoss' cannot be translated: it"),
    (td(x=term("CCKDLoss", "")), "'CCKDLoss' cannot be translated: it is the distance of kernel"),
    (td(x=term("VIDLoss", "")), "x.criterion.kwargs.feature_pairs: is missing"),
    (
        td(x=LABELS).replace("frozen_modules: []", "auxiliary_model_wrapper: {key: Other}"),
        "wrapper: networks are used as they",
    ),
    (td(x=term("FTLoss", "p: 1")), "'FTLoss' cannot be translated: no loss of this name"),
    (
        td(x=term("RKDLoss", POOL[:30] + "student_output_path: conv, reduction: mean")),
        "'conv' cannot be translated: rkd",
    ),
    (td(x=term("RKDLoss", f"{POOL}, reduction: sum")), "x.criterion.kwargs.reduction: 'sum' cannot be translated"),
    (td(x=term("KDLoss", "temperature: 4.0")), "x.criterion.kwargs.alpha: is missing"),
    (td(x=term("KDLoss", "alpha: 0.1")), "x.criterion.kwargs.temperature: is missing"),
    (td(x=term("KDLoss", "temperature: 4, alpha: 0, reduction: mean")), "'mean' cannot be translated"),
    (td(a=term("KDLoss", "temperature: 4, alpha: 0"), b=term("DISTLoss", "tau: 1")), "b.criterion.kwargs: a second"),
    (td(x=LABELS.replace("is_from_teacher: False", "is_from_teacher: True")), "input.is_from_teacher: True cannot be"),
    (td(x=LABELS).replace("dataset_id: *images", "dataset_id: part"), "train_data_loader.dataset_id: 'part' cannot be"),
    (td(x=LABELS).replace("root: !join", "train: False\n        root: !join"), "init.kwargs.train: False cannot be"),
    (td(x=LABELS).replace("k: 2", "k: 4"), "models.student_model.key: 'wide_resnet16_4' cannot be"),
    (td(x=LABELS).replace("padding: 4", "padding: 40"), "cifar100/train.transform: 'RandomCrop' with"),
    (td(x=LABELS).replace("datasets.CIFAR100", "datasets.SVHN"), "cifar100/train.key: 'SVHN' cannot be"),
    (td(x=LABELS).replace("modules: []", "modules: [conv1]"), "train.student.frozen_modules: ['conv1'] cannot"),
    (td(x=LABELS).replace("key: SGD", "key: LBFGS"), "train.optimizer.key: 'LBFGS' cannot be translated"),
    (td(x=LABELS).replace("key: MultiStepLR", "key: StepLR"), "train.scheduler.key: 'StepLR' cannot be"),
    (td(x=LABELS).replace("  optimizer:", "  max_grad_norm: 2\n  optimizer:"), "train.max_grad_norm: cannot be"),
    (td(x=LABELS).replace("key: SGD", "max_grad_norm: 0, key: SGD"), "train.optimizer.max_grad_norm: is 0, which"),
    (td(x=LABELS).replace("key: SGD", "max_grad_norm: yes, key: SGD"), "optimizer.max_grad_norm: is 'yes', expected"),
    (td(x=LABELS).replace("key: SGD", "grad_accum_step: 2, key: SGD"), "train.optimizer.grad_accum_step: 2 cannot be"),
    (td(x=LABELS).replace("key: Multi", "scheduling_step: 9, key: Multi"), "train.scheduler.scheduling_step: 9 cannot"),
    (td(x=LABELS).replace("num_epochs: 200", "stage1: {num_epochs: 2}"), "train.stage1: training in several"),
    (td(x=LABELS).replace("student_model: {key", "student_model: {name"), "models.student_model.name: this is the"),
]


@pytest.mark.parametrize(("text", "message"), NOT_TRANSLATED, ids=[message for _, message in NOT_TRANSLATED])
def test_a_key_that_cannot_be_translated_is_one_message(text: str, message: str, mistakes_of: Any) -> None:
    found = mistakes_of(text)
    assert len(found) == 1 and message in found[0], found


def test_all_mistakes_are_reported_at_once(mistakes_of: Any) -> None:
    text = md("KD", "KD: {A: 1, TEMPERATURE: hot}\nDATASET: {TYPE: tiny_imagenet}", "a", "b")
    keys = [line.partition(":")[0] for line in mistakes_of(text)]
    assert sorted(keys) == ["DATASET.TYPE", "DISTILLER.STUDENT", "DISTILLER.TEACHER", "KD.A", "KD.TEMPERATURE"]


def test_many_mistakes_are_counted(text_of: Any) -> None:
    many = ", ".join(f"K{number}: 1" for number in range(100))
    with pytest.raises(UserError, match="and 70 more$") as caught:
        text_of(md("KD", f"KD: {{{many}}}"))
    assert len(str(caught.value).splitlines()) == 31


def test_only_kd_leaves_out_networks_and_data(text_of: Any, mistakes_of: Any, tmp_path: Path) -> None:
    text = md("KD", "DATASET: {TYPE: imagenet}", "ResNet18", "ResNet34")
    assert len(mistakes_of(text)) == 3
    ours = tmp_path / "losses.yaml"
    ours.write_text(text_of(text, only_kd=True))
    config = command_line.parse(["--config", "configs/papers/pairs/vgg13-vgg8.yaml", "--config", str(ours)])[1].config
    assert config.kd.hard_weight == 0.1 and config.model.name == "cifar_vgg8"
    assert list(yaml.safe_load(ours.read_text())) == ["kd"]


def test_a_value_that_training_refuses_is_named_too(text_of: Any) -> None:
    with pytest.raises(UserError, match="theirs.yaml, translated: kd.temperature: is 0.0: .* greater than 0"):
        text_of(md("KD", "KD: {TEMPERATURE: 0}"))


# -------------------------------------------------------------------------------------------------- files from outside


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [" + ", ".join(["x" * 50] * 50) + "]"]
    return "\n".join([*lines, *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels))])


CHAIN = "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 40))])
HOSTILE = {
    "a: !!python/object/apply:os.system ['touch owned']": "tags .* are not supported",
    "a: !import_file {key: owned}": r"tags \(!import_file\) are not supported",
    "a: &a [*a]": r"\*a stands within what it stands for",
    "a: &a {b: [1, *a]}": r"\*a stands within what it stands for",
    "a: *b": "found undefined alias",
    bomb(9): f"aliases unfold to more than {MAX_UNFOLDED:,} characters",
    CHAIN: "nested deeper than 32 levels",
    "[" * 40 + "]" * 40: "nested deeper than 32 levels",
    "a: 1\na: 2": "key 'a' is given twice",
    "a: !join {b: c}": "!join takes a list of words",
    "a: !join [[b]]": "!join takes a list of words",
    "a: [": "not valid YAML",
    "x" * 200_000: "larger than 100,000 bytes",
    "- a\n- b": "holds no sections of settings",
    "a: 1": "neither an experiment file of mdistiller, .* nor one of torchdistill",
    "DISTILLER: 5": "neither an experiment file of mdistiller",
    "models: {}\ntrain: {}": "train.criterion.key: is missing",
    "DISTILLER: {TYPE: KD}\nA.B: 1\nA: {B: 2}": "A.B: is given twice",
    "DISTILLER: {TYPE: KD, " + ", ".join(f"k{i}: 1" for i in range(2500)) + "}": "more than 2,000 keys",
    "DISTILLER: {TYPE: KD, ? " + "k" * 2000 + " : 1}": "a name over 1,000 letters",
    'DISTILLER: {TYPE: "KD\\e[31m"}': r"'KD\\x1b\[31m' cannot be translated",
}


@pytest.mark.parametrize(("text", "message"), HOSTILE.items(), ids=[text[:30] for text in HOSTILE])
def test_hostile_files(text: str, message: str, text_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        text_of(text)
    assert not (tmp_path / "owned").exists() and "\x1b" not in str(caught.value)


WRONG = [
    None, True, -1, 0.5, 2**62, 1e308, math.nan, "", "auto", "\0", "a" * 300, [], {}, [[]], [1, "a"], {"": 1},
    {"a": {"b": {}}}, {"key": 5}, [{"key": "RandomCrop", "kwargs": {"size": 32, "padding": "x"}}],
]  # fmt: skip
WHOLE = [md(kind, more) for kind, (more, _) in FEATURES.items()] + [
    td(
        ce=LABELS,
        kd=term("KDLoss", "temperature: 4.0, alpha: 0.9"),
        at=term("ATLoss", "at_pairs: {p: {teacher: {io: output, path: a}, student: {path: b}, weight: 2}}"),
        rkd=term("RKDLoss", f"{POOL}, dist_factor: 1, reduction: mean"),
    )
]


def places(values: Any) -> list[tuple[Any, Any]]:
    """(mapping or list, key) of everything in nested values."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    return [place for key, value in items for place in ((values, key), *places(value))]


def test_values_that_are_wrong_at_random(tmp_path: Path) -> None:
    """Settings that are valid, or messages; never another exception."""
    draw, experiments, valid = random.Random(0), [], 0
    for text in WHOLE:
        (tmp_path / "theirs.yaml").write_text(text)
        experiments.append(read_experiment(tmp_path / "theirs.yaml"))
    for _ in range(150):
        values = copy.deepcopy(draw.choice(experiments))
        for _ in range(draw.choice((1, 1, 2, 4))):
            holder, key = draw.choice(places(values) or [({}, "")])
            holder[key] = copy.deepcopy(draw.choice(WRONG))
        (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(values).replace("\\0", ""))
        try:
            kd_of(convert(tmp_path / "wrong.yaml", only_kd=draw.random() < 0.5))
            valid += 1
        except UserError:
            pass
    assert 20 < valid < 130


def test_what_is_no_file_of_text(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("none", "no such file"), ("bytes", "not UTF-8 text"), ("pipe", "is no file of text")):
        with pytest.raises(UserError, match=message):
            read_experiment(tmp_path / name)


def test_names_from_a_file_stay_within_comments(text_of: Any) -> None:
    text = text_of(md("KD", "", '"a\\nkd: {type: x}"'), only_kd=True)
    assert kd_of(text)["type"] == "average" and "\nkd: {type: x}" not in text


# ------------------------------------------------------------------------------------------------------------- command


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(md("KD"))
    (tmp_path / "bad.yaml").write_text(md("OFD", "LOGS: {A: 1}"))

    def run(name: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "kd_core.porting", str(tmp_path / name)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    good, bad = run("good.yaml"), run("bad.yaml")
    assert good.returncode == 0 and good.stderr == "" and kd_of(good.stdout)["type"] == "average"
    assert bad.returncode == 2 and bad.stdout == "" and len(bad.stderr.splitlines()) == 2


def test_its_help_and_its_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "train_kd.py --config mine.yaml --check" in capsys.readouterr().out
    for words, message in (
        ([], "FILE.yaml is missing"),
        (["a", "--only", "data"], "invalid choice"),
        (["a", "b"], "b"),
    ):
        with pytest.raises(UserError, match=message):
            main(words)
