"""Planted mistakes are named with the setting to change, and a healthy run is not troubled."""

import ast
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
import yaml
from method_variants import every_variant, method_for
from shipped_configs import EXPERIMENTS, PAIR_FILES, TEACHERS
from torch import Tensor, nn

import kd_methods
import train_kd
from kd_core import config
from kd_core.config import DataConfig, TeacherConfig, TeacherNormalization
from kd_core.data.dataset import load_data
from kd_core.data.plan import epoch_order
from kd_core.data.preprocess import NORMALIZATIONS
from kd_core.data.superclasses import CIFAR100
from kd_core.data.views import Augmentation, Views
from kd_core.errors import UserError
from kd_core.evaluation.diagnosis import CHECKS, Finding, diagnose, findings_lines, simplest_of_best
from kd_core.evaluation.figures import Predictions
from kd_core.models import build as models
from kd_core.models.build import Preprocess
from kd_core.models.exported import check_classes
from kd_core.models.method_on_split import CHUNK, image_weights, per_image
from kd_core.teachers import class_order
from kd_core.teachers.load import Facts
from kd_core.teachers.logits_file import write_logits
from kd_methods import StudentOutput, TeacherOutputs

ROOT = Path(__file__).resolve().parents[2]
CLASSES = 10

# --------------------------------------------------------------------------------------------------- a healthy run


def answers(labels: Tensor, right: float, margin: float, seed: int) -> Tensor:
    """Logits [N,C] of a network that is right on so many images, and as sure as `margin` says."""
    generator = torch.Generator().manual_seed(seed)
    wrong = (labels + torch.randint(1, CLASSES, labels.shape, generator=generator)) % CLASSES
    named = torch.where(torch.rand(len(labels), generator=generator) < right, labels, wrong)
    return torch.randn(len(labels), CLASSES, generator=generator) + margin * F.one_hot(named, CLASSES)


def predictions(split: str, count: int, right: float, seed: int, settings: config.Config) -> Predictions:
    """Three teachers and a student, of which `right` is about the accuracy."""
    labels = torch.randint(CLASSES, (count,), generator=torch.Generator().manual_seed(seed))
    taught = [answers(labels, right - 0.02 * index, 5.0 + index, seed + index) for index in range(3)]
    student = (taught[0] + answers(labels, right, 4.0, seed + 9)) / 2
    found = Predictions(
        split, labels, student, [str(number) for number in range(CLASSES)],
        teachers=torch.stack(taught), teacher_names=["a", "b", "c"], alone=answers(labels, right - 0.03, 4.0, seed + 5),
    )  # fmt: skip
    errors = found.teachers.argmax(-1) != labels
    found.weights = image_weights(
        kd_methods.build(settings.kd.without_features(), teacher_errors=errors), student, found.teachers, labels
    )
    return found


def course(epochs: int, **more: list[float]) -> list[dict[str, Any]]:
    """Rows of metrics as a run leaves them: losses that fall and settle, `more` in their place."""
    rows: list[dict[str, Any]] = [{"epoch": 0, "teacher/0/val_accuracy": 0.9}]
    for epoch in range(epochs):
        left = math.exp(-6 * (epoch + 1) / epochs)
        rows.append({"train_step/step": epoch, "train_step/loss_total": 1.0})
        row = {
            "epoch": epoch + 1, "train/loss_total": 1.2 + 3 * left, "train/loss_label": 0.3 + 1.5 * left,
            "train/loss_distill": 1.0 + 3 * left, "train/accuracy": 0.95 - 0.6 * left, "val/loss_ce": 0.4 + left,
            "train/kd_weight": 0.9, **{f"train/teacher/{index}/weight": 1 / 3 for index in range(3)},
        }  # fmt: skip
        rows.append(row | {f"{name.replace('_in_', '/')}": values[epoch] for name, values in more.items()})
    return rows


def settings_of(*more: str) -> config.Config:
    """The quickstart's, with changes as on the command line."""
    return config.resolve([*config.read_layers([config.QUICKSTART]), config.parse_overrides(list(more))]).config


def run(*more: str, **changes: Any) -> dict[str, Any]:
    """What `diagnose` is asked about a healthy run."""
    settings = settings_of(*more)
    usual = {
        "rows": course(settings.training.max_epochs),
        "train": predictions("train", 1000, 0.97, 0, settings),
        "val": predictions("val", 800, 0.93, 100, settings),
        "steps_per_epoch": 40,
        "batch_norm": True,
    }
    return {"config": settings, **usual, **changes}


def found(run: dict[str, Any]) -> dict[str, Finding]:
    findings = diagnose(**run)
    for finding in findings:
        text = findings_lines([finding])
        assert finding.message in text and finding.key in text and finding.advice in text
        json.dumps(finding.value)
    return {finding.name: finding for finding in findings}


def test_a_healthy_run_has_no_finding():
    assert found(run()) == {}
    assert findings_lines([]) == ""


@pytest.mark.parametrize("method", kd_methods.names())
def test_no_method_is_a_finding_by_itself(method):
    more = ["--teachers=[]"] if method == kd_methods.LABEL_ONLY else []
    assert found(run(f"--kd.type={method}", *more)) == {}


def test_a_run_of_which_little_is_known_has_no_finding():
    assert diagnose(settings_of(), rows=[], train=None, val=None, steps_per_epoch=40) == []


@pytest.mark.parametrize("path", [*TEACHERS, *PAIR_FILES, *EXPERIMENTS], ids=lambda path: path.stem)
def test_no_shipped_recipe_has_an_unusual_learning_rate(path):
    layers = config.read_layers([str(path)])
    if "teachers" in path.parts:
        layers.append(config.Layer("test", {"kd": {"type": kd_methods.LABEL_ONLY}}))
    settings = config.resolve(layers).config
    assert diagnose(settings, rows=[], train=None, val=None, steps_per_epoch=40) == []


# ------------------------------------------------------------------------------------------------ planted mistakes


def test_a_saturated_teacher():
    """It memorized its training images: p(label) is 1 on them at any usual temperature, and lower on others."""
    planted = run()
    train = planted["train"]
    train.teachers[1] = 40.0 * F.one_hot(train.labels, CLASSES)
    finding = found(planted)["saturated teacher"]
    assert finding.key == "kd.temperature" and finding.value == 4.0 and "teacher 1 (b)" in finding.message
    for setting in ("standardize=true", "norm_temperature=true", "loss=ttm"):  # which take the scale away
        assert "saturated teacher" not in found(run(f"--kd.{setting}", train=train))
    own = run("--kd.teacher_temperatures=[1.0, 100.0, 1.0]", train=train)
    assert "saturated teacher" not in found(own)
    own = found(run("--kd.teacher_temperatures=[100.0, 2.0, 1.0]", train=train))["saturated teacher"]
    assert own.key == "kd.teacher_temperatures" and "at temperature 2)" in own.message
    easy = run(train=train)
    easy["val"].teachers[1] = 40.0 * F.one_hot(easy["val"].labels, CLASSES)
    assert "saturated teacher" not in found(easy)  # sure of every image, since the task is easy


def test_weights_that_hardly_leave_uniform():
    planted = run("--kd.type=ca_weighted")
    train = planted["train"]
    train.teachers[:] = 30.0 * F.one_hot(train.labels, CLASSES)  # all are sure: nothing to weigh
    method = kd_methods.build(planted["config"].kd)
    train.weights = image_weights(method, train.student, train.teachers, train.labels)
    finding = found(planted)["uniform weights"]
    assert (finding.key, finding.value) == ("kd.type", "ca_weighted")
    plain = run("--kd.type=average", train=replace(train, weights=torch.full_like(train.weights, 1 / 3)))
    assert "uniform weights" not in found(plain)  # equal on purpose


@pytest.mark.parametrize(
    ("more", "weight", "key"),
    [
        (["--kd.type=average", "--kd.soft_weight=0.001"], 0.001, "kd.soft_weight"),
        (["--kd.type=average", "--kd.hard_weight=1000"], 0.001, "kd.hard_weight"),
        (["--kd.threshold=1.0"], 0.0005, "kd.threshold"),
        (["--kd.use_soft_loss=false"], 0.0, "kd.use_soft_loss"),
        (["--kd.type=ca_weighted"], 0.001, "kd.type"),
    ],
)
def test_distillation_that_hardly_counts(more, weight, key):
    rows = course(30, train_in_kd_weight=[weight] * 30)
    finding = found(run(*more, rows=rows))["no distillation term"]
    assert finding.key == key and finding.value == yaml.safe_load(finding_value(more, key))


def test_features_are_distillation():
    """Features alone, as most papers' feature losses: they count for what they are of the loss."""
    more = ("--kd.type=average", "--kd.hard_weight=1", "--kd.soft_weight=0", "--kd.features=[{loss: mse}]")
    for features, name in ((0.6, None), (1e-4, "no distillation term")):
        rows = course(30, train_in_kd_weight=[0.0] * 30, train_in_loss_features=[features] * 30)
        assert ("no distillation term" in found(run(*more, rows=rows))) == (name is not None)


def test_temperatures_of_three_teachers_are_no_obstacle():
    more = ("--kd.type=ca_mkd", "--kd.teacher_temperatures=[2, 4, 8]")
    planted = run(*more)
    planted["train"].weights = torch.full_like(planted["train"].weights, 1 / 3)
    assert "uniform weights" in found(planted)


def finding_value(more: list[str], key: str) -> str:
    return next(word.partition("=")[2] for word in more if word.startswith(f"--{key}="))


def test_labels_that_hardly_count():
    more, rows = ("--kd.type=average", "--kd.hard_weight=1e-4"), course(30, train_in_kd_weight=[0.9999] * 30)
    assert found(run(*more, rows=rows))["no label term"].key == "kd.hard_weight"
    alone = course(30, train_in_kd_weight=[1.0] * 30)  # distillation alone is a choice
    assert found(run("--kd.type=average", "--kd.hard_weight=0", rows=alone)) == {}


@pytest.mark.parametrize(
    "more",
    [
        ["--training.optimizer=sgd", "--data.batch_size=64", "--training.learning_rate=2.5"],
        ["--training.optimizer=sgd", "--data.batch_size=64", "--training.learning_rate=0.001"],
        ["--training.optimizer=sgd", "--data.batch_size=2048", "--training.learning_rate=0.05"],  # not scaled
        ["--training.optimizer=adamw", "--data.batch_size=128", "--training.learning_rate=0.05"],
        ["--training.optimizer=adamw", "--data.batch_size=128", "--training.learning_rate=2e-5"],
    ],
)
def test_a_learning_rate_50_times_too_high_or_low_for_the_batch(more):
    finding = found(run(*more))["learning rate"]
    assert finding.key == "training.learning_rate"
    assert finding.value == float(more[2].partition("=")[2])


def test_low_rates_are_usual_in_fine_tuning_and_unknown_optimizers_are_left_alone():
    low = ["--training.optimizer=adamw", "--data.batch_size=128", "--training.learning_rate=2e-5"]
    assert "learning rate" not in found(run(*low, "--model.pretrained=true"))
    assert "learning rate" not in found(run("--training.optimizer=lion", *low[1:]))


def test_a_student_that_memorizes():
    planted = run("--data.crop_padding=0")
    val = planted["val"]
    val.student = answers(val.labels, 0.5, 4.0, 77)
    assert found(planted)["memorized"].key == "data.crop_padding"  # neither that nor flip: no augmentation at all
    planted["config"] = settings_of()
    assert found(planted)["memorized"].key == "training.weight_decay"


def test_a_student_that_cannot_follow():
    planted = run()
    for split in (planted["train"], planted["val"]):
        split.student = answers(split.labels, 0.35, 4.0, 77)
    assert found(planted)["cannot follow"].key == "model.name"
    short = {"train_in_accuracy": [0.02 * epoch for epoch in range(30)],
             "train_in_loss_total": [4 - 0.1 * epoch for epoch in range(30)]}  # fmt: skip
    assert found({**planted, "rows": course(30, **short)})["cannot follow"].key == "training.max_epochs"


def test_too_few_epochs():
    accuracy, loss = [0.2, 0.35, 0.48], [4.0, 3.4, 2.9]
    rows = course(3, train_in_accuracy=accuracy, train_in_loss_total=loss)
    finding = found(run("--training.max_epochs=3", rows=rows))["too few epochs"]
    assert (finding.key, finding.value) == ("training.max_epochs", 3) and "13.0 points" in finding.message
    assert "120 steps" in finding.message
    assert "too few epochs" not in found(run("--training.max_epochs=100", rows=rows))  # it was stopped early


# Measured on digits (229 validation images) by `--teachers=[] --kd.type=baseline` on the quickstart: as it is; with
# training.schedule=constant at 2e-3 for 40 epochs; and with a student of one block of 8 features, by its epochs.
COSINE = [0.6114, 0.6157, 0.7555, 0.7642, 0.7773, 0.8472, 0.8297, 0.869, 0.8996, 0.917, 0.8472, 0.9127, 0.9083, 0.9258,
          0.9214, 0.9083, 0.9389, 0.9432, 0.9389, 0.952, 0.9432, 0.9389, 0.9651, 0.9607, 0.9607, 0.9607, 0.9607, 0.9607,
          0.9607, 0.9607]  # fmt: skip
CONSTANT = [0.5502, 0.6681, 0.7729, 0.7991, 0.8297, 0.8821, 0.869, 0.8646, 0.8952, 0.8908, 0.8559, 0.869, 0.9083,
            0.8996, 0.9432, 0.9301, 0.9301, 0.9214, 0.8908, 0.9258, 0.952, 0.952, 0.9301, 0.9389, 0.9258, 0.952, 0.9039,
            0.9301, 0.9389, 0.9389, 0.9258, 0.952, 0.9389, 0.952, 0.9389, 0.917, 0.9432, 0.917, 0.9432,
            0.9345]  # fmt: skip
TINY_TRAIN = [0.1867, 0.382, 0.4602, 0.5242, 0.5281, 0.5773, 0.5844, 0.5805, 0.6258, 0.6125, 0.6281, 0.6609, 0.6438,
              0.6648, 0.7016, 0.6906, 0.6945, 0.6844, 0.7023, 0.7094, 0.725, 0.7312, 0.7281, 0.7625, 0.7492, 0.7375,
              0.7508, 0.7508, 0.7461, 0.7391]  # fmt: skip
TINY_VAL = [0.4716, 0.476, 0.5808, 0.5546, 0.559, 0.6376, 0.6201, 0.6419, 0.6987, 0.7031, 0.7249, 0.7424, 0.7293,
            0.7118, 0.7511, 0.7336, 0.7424, 0.7249, 0.7205, 0.7555, 0.7467, 0.7424, 0.738, 0.7598, 0.7598, 0.7555,
            0.7555, 0.7642, 0.7642, 0.7598]  # fmt: skip


def measured(accuracies: list[float], *more: str) -> dict[str, Finding]:
    """Findings of a run that had these validation accuracies."""
    rows = course(len(accuracies), val_in_accuracy=accuracies)
    val = predictions("val", 229, 0.93, 100, settings_of())
    return found(run(f"--training.max_epochs={len(accuracies)}", *more, rows=rows, val=val))


@pytest.mark.parametrize("epochs", [6, 10])
def test_a_schedule_that_never_came_down_while_validation_rose(epochs):
    finding = measured(CONSTANT[:epochs], "--training.schedule=constant")["unfinished schedule"]
    assert (finding.key, finding.value) == ("training.schedule", "constant") and "cosine" in finding.advice
    assert "over the last 2 epochs (standard error 2." in finding.message
    later = ("--training.schedule=multistep", "--training.milestones=[30, 40]")
    assert measured(CONSTANT[:epochs], *later)["unfinished schedule"].key == "training.milestones"
    high = "--training.min_learning_rate=3e-3"
    assert measured(CONSTANT[:epochs], high)["unfinished schedule"].key == "training.min_learning_rate"
    assert "unfinished schedule" not in measured(CONSTANT[:epochs])  # cosine comes down, whatever the length
    down = ("--training.schedule=multistep", "--training.milestones=[4, 6]")
    assert "unfinished schedule" not in measured(CONSTANT[:epochs], *down)


def test_a_schedule_is_left_alone_where_validation_has_settled_or_the_run_was_stopped():
    for accuracies in (CONSTANT, COSINE):
        assert "unfinished schedule" not in measured(accuracies, "--training.schedule=constant")
    assert "unfinished schedule" not in measured(COSINE)
    rising = [0.5 + 0.01 * epoch for epoch in range(40)]
    assert "unfinished schedule" in measured(rising, "--training.schedule=constant")
    rows = course(20, val_in_accuracy=rising[:20])  # of 40: stopped early
    stopped = run("--training.max_epochs=40", "--training.schedule=constant", rows=rows)
    assert "unfinished schedule" not in found(stopped)


def test_underfitting():
    """A student too small for the task, by clean views; and by the rows where no images were looked at."""
    planted = run()
    planted["train"].student = answers(planted["train"].labels, 0.75, 4.0, 77)
    planted["val"].student = answers(planted["val"].labels, 0.75, 4.0, 78)
    finding = found(planted)["underfitting"]
    assert finding.key == "model.name" and finding.value == "test_vit" and "larger student" in finding.advice
    tiny = course(30, train_in_accuracy=TINY_TRAIN, val_in_accuracy=TINY_VAL)
    assert "73.9% of training and 76.0% of val" in found(run(rows=tiny, train=None, val=None))["underfitting"].message
    short = course(6, train_in_accuracy=TINY_TRAIN[:6], val_in_accuracy=TINY_VAL[:6],
                   train_in_loss_total=[2.201, 1.826, 1.552, 1.401, 1.292, 1.219])  # fmt: skip
    finding = found(run("--training.max_epochs=6", rows=short, train=None, val=None))["underfitting"]
    assert finding.key == "training.max_epochs" and "still learning" in finding.advice


def test_what_is_no_underfitting():
    for seen, unseen in ((0.97, 0.93), (0.75, 0.6), (0.85, 0.84)):  # healthy; a hard task, learned; learned enough
        planted = run()
        planted["train"].student = answers(planted["train"].labels, seen, 4.0, 77)
        planted["val"].student = answers(planted["val"].labels, unseen, 4.0, 78)
        assert "underfitting" not in found(planted), (seen, unseen)
    healthy = course(30, val_in_accuracy=COSINE)
    assert "underfitting" not in found(run(rows=healthy, train=None, val=None))


def test_training_that_diverges_or_gets_stuck():
    diverged = course(30, train_in_accuracy=[*[0.3 + 0.02 * epoch for epoch in range(20)], *[0.1] * 10])
    assert found(run(rows=diverged))["diverged"].key == "training.learning_rate"
    stuck = course(30, train_in_accuracy=[0.1 + 0.001 * (epoch % 3) for epoch in range(30)])
    assert found(run(rows=stuck))["stuck"].key == "training.learning_rate"


def test_overfitting():
    rows = course(30, train_in_loss_label=[2 / (epoch + 1) ** 2 for epoch in range(30)],
                  val_in_loss_ce=[abs(epoch - 8) / 10 + 0.5 for epoch in range(30)])  # fmt: skip
    finding = found(run(rows=rows))["overfitting"]
    assert finding.key == "training.weight_decay" and "0.500 in epoch 9" in finding.message


def test_a_teacher_with_permuted_classes():
    order = torch.randperm(CLASSES, generator=torch.Generator().manual_seed(1))
    planted = run()
    planted["val"].teachers[2] = planted["val"].teachers[2][:, order]
    finding = found(planted)["class order"]
    assert finding.key == "teachers.2.class_order" and finding.value is None
    outputs = order.argsort().tolist()
    assert finding.advice == f"set class_order: {outputs}"


def test_a_teacher_that_is_worse_or_has_no_weight():
    planted = run(rows=course(30, **{"train_in_teacher/1/weight": [0.01] * 30}))
    val = planted["val"]
    val.teachers[1] = answers(val.labels, 0.6, 4.0, 55)
    findings = found(planted)
    assert findings["worse teacher"].key == findings["idle teacher"].key == "teachers.1"
    assert findings["idle teacher"].value["model"] == "mobilenetv3_small_050"


def test_a_negative_weight_is_not_idle():
    """Of `covariance` without limits: the teacher pushes the student away."""
    rows = course(30, **{"train_in_teacher/1/weight": [-0.59] * 30})
    assert "idle teacher" not in found(run("--kd.type=covariance", "--kd.unconstrained=true", rows=rows))


def test_a_weight_that_somebody_chose_is_no_finding():
    rows = course(30, **{"train_in_teacher/1/weight": [0.0] * 30})
    assert "idle teacher" not in found(run("--kd.type=best", rows=rows))


def test_a_teacher_that_is_worse_than_the_student_alone():
    planted = run()
    val = planted["val"]
    val.teachers[2] = answers(val.labels, 0.87, 4.0, 55)  # not so far below its student
    finding = found(planted)["worse teacher"]
    right, alone = ((logits.argmax(1) == val.labels).double().mean() for logits in (val.teachers[2], val.alone))
    assert finding.key == "teachers.2"
    assert f"{100 * (alone - right):.1f} points less than the student alone" in finding.message
    assert "than its student" not in finding.message and "standard error 1." in finding.message
    val.alone = None  # then there is nothing to compare it with
    assert "worse teacher" not in found(planted)
    val.teachers[2] = answers(val.labels, 0.6, 4.0, 55)
    assert "points less than its student" in found(planted)["worse teacher"].message


def test_teachers_as_good_as_the_student_alone_are_no_finding():
    planted = run()
    val = planted["val"]
    for seed in range(40, 45):
        val.teachers[1] = answers(val.labels, 0.9, 4.0, seed)  # as good as the student alone
        assert "worse teacher" not in found(planted)
    few = predictions("val", 60, 0.9, 100, settings_of())
    few.teachers[1] = answers(few.labels, 0.8, 4.0, 55)  # who knows, of 60 images
    assert "worse teacher" not in found(run(val=few))


def test_batches_and_validation_sets_that_are_too_small():
    assert found(run(processes=4))["small batch"].key == "data.batch_size"
    assert "small batch" not in found(run(processes=4, batch_norm=False))
    few = predictions("val", 60, 0.8, 100, settings_of())
    assert found(run(val=few))["few validation images"].key == "data.val_size"
    few.alone = None
    assert "another student" in found(run(val=few))["few validation images"].message


def test_every_check_has_its_row_in_the_docs():
    table = (ROOT / "docs" / "diagnosis.md").read_text().partition("| finding |")[2].partition("\n\n")[0]
    documented = [row.split("|")[1].strip() for row in table.splitlines()[2:]]
    constants = {
        node.value
        for node in ast.walk(ast.parse((ROOT / "kd_core" / "evaluation" / "diagnosis.py").read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert len(documented) >= len(CHECKS) and set(documented) <= constants
    planted = set(re.findall(r'\["([a-z ]+)"\]', Path(__file__).read_text()))
    assert set(documented) <= planted  # each is planted above


# ------------------------------------------------------------------------------------------------ image by image


@every_variant
@pytest.mark.parametrize("num_teachers", [1, 3])
def test_each_images_measures_are_those_of_a_batch_of_one(config, num_teachers):
    generator = torch.Generator().manual_seed(0)
    student = 2 * torch.randn(12, CLASSES, generator=generator)
    labels = torch.randint(CLASSES, (12,), generator=generator)
    method = method_for(config, num_teachers)
    if method.shared_weights:
        pytest.skip("weights of a batch as a whole: see below")
    taught = 3 * torch.randn(num_teachers, 12, CLASSES, generator=generator) if method.requires_teachers else None
    method.reduce_mean = reduce_mean = lambda values: pytest.fail("reduced over processes")
    method.train()
    measures = per_image(method, student, taught, labels)
    assert method.training and method.reduce_mean is reduce_mean
    weights = image_weights(method, student, taught, labels)
    method.reduce_mean = lambda values: values
    for row in range(12):
        one = slice(row, row + 1)
        teachers = TeacherOutputs(None if taught is None else taught[:, one])
        _, slow = method.eval()(StudentOutput(student[one]), teachers, labels[one])
        assert slow.keys() == measures.keys()
        for name, value in slow.items():
            torch.testing.assert_close(measures[name][row], value, msg=lambda text, name=name: f"{name}: {text}")
    assert all(values.shape == (12,) for values in measures.values())
    if weights is None:
        assert taught is None
    else:
        assert weights.shape == (num_teachers, 12)
        torch.testing.assert_close(weights.sum(0), torch.ones(12))


@pytest.mark.parametrize("name", ["aekd", "best", "random"])
def test_weights_of_a_whole_batch_are_those_of_batches(name):
    generator = torch.Generator().manual_seed(0)
    student, taught = torch.randn(10, CLASSES, generator=generator), torch.randn(3, 10, CLASSES, generator=generator)
    labels = torch.arange(10) % CLASSES
    method = method_for({"type": name}, 3)
    weights = image_weights(method, student, taught, labels, batch_size=4)
    assert weights.shape == (3, 10) and method.training
    method.eval()
    for batch in (slice(0, 4), slice(4, 8), slice(8, 10)):
        outputs = StudentOutput(student[batch]), TeacherOutputs(taught[:, batch])
        own = method.teacher_weights(*outputs, labels[batch], 1.0)
        torch.testing.assert_close(weights[:, batch], own.expand(-1, len(labels[batch])))
    assert (name == "aekd") == bool((weights[:, :1] != weights[:, 9:]).any())


def test_images_beyond_a_chunk_are_measured_too():
    labels = torch.arange(CHUNK + 5) % CLASSES
    taught = torch.stack([answers(labels, 0.8, 3.0, seed) for seed in range(2)])
    method = kd_methods.build({"type": "confidence"})
    weights = image_weights(method, taught[0], taught, labels)
    sure = taught.softmax(-1).gather(-1, labels.expand(2, -1)[..., None]).squeeze(-1)
    assert torch.equal(weights.argmax(0), sure.argmax(0)) and weights.shape == (2, CHUNK + 5)


# --------------------------------------------------------------------------------------------------- class orders


def test_orders_by_name_say_which_output_stands_for_a_class():
    names = ["pear", "apple", "fig"]
    assert class_order.outputs_in_order("alphabetical", names) == [2, 0, 1]
    twelve = [f"kind {number}" for number in range(12)]
    by_text = [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]  # what the outputs stand for
    outputs = class_order.outputs_in_order("numbers_as_text", twelve)
    assert [by_text[output] for output in outputs] == list(range(12))
    assert class_order.outputs_in_order([1, 0], names[:2]) == [1, 0]
    text = ["1", "10", "2", "a10", "a9"]  # as folders are listed; a network that was trained on 1, 2, 10, a9, a10
    assert class_order.outputs_in_order("natural", text) == [0, 2, 1, 4, 3]
    natural = ["1", "2", "10", "a9", "a10"]  # and the other way round
    assert class_order.outputs_in_order("alphabetical", natural) == [0, 2, 1, 4, 3]
    assert class_order.outputs_in_order("natural", natural) == [0, 1, 2, 3, 4]
    assert class_order.outputs_in_order(None, names) == [0, 1, 2]


@pytest.mark.parametrize("seed", range(3))
def test_the_order_that_explains_the_answers_is_found(seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(100, (2000,), generator=generator)
    order = torch.randperm(100, generator=generator)
    anything = torch.randint(100, (2000,), generator=generator)
    named = torch.where(torch.rand(2000, generator=generator) < 0.6, order[labels], anything)
    logits = F.one_hot(named, 100).float()
    assert class_order.best_order(logits, labels) == order.tolist()
    tried = class_order.accuracies(logits, labels, [str(number) for number in range(100)])
    assert tried[0][0] is None and tried[-1][0] == order.tolist() and tried[-1][1] == pytest.approx(0.6, abs=0.05)


def test_an_order_fitted_to_noise_is_not_good_on_other_images():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(100, (2000,), generator=generator)
    logits = torch.randn(2000, 100, generator=generator)
    order = class_order.best_order(logits[::2], labels[::2])
    fitted = float((torch.tensor(order)[labels[::2]] == logits[::2].argmax(1)).double().mean())
    assert fitted > 0.03 and class_order.accuracies(logits, labels, [""] * 100)[-1][1] < 0.03


def test_no_order_is_fitted_to_fewer_than_two_images_per_class():
    labels = torch.arange(39) % 10
    assert [order for order, _ in class_order.accuracies(torch.eye(10)[labels], labels, ["x"] * 10)] == [
        None, "alphabetical", "natural", "numbers_as_text",
    ]  # fmt: skip
    labels = torch.arange(40) % 10
    assert len(class_order.accuracies(torch.eye(10)[labels], labels, ["x"] * 10)) == 5


def test_an_order_on_top_of_another():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randperm(6, generator=generator) for _ in range(2))
    logits = torch.randn(4, 6, generator=generator)
    both = class_order.on_top_of(first.tolist(), second.tolist(), list("abcdef"))
    assert torch.equal(logits[:, first][:, second], logits[:, both])
    assert class_order.on_top_of(None, "alphabetical", list("abcdef")) == "alphabetical"
    assert class_order.on_top_of(first.tolist(), None, list("abcdef")) == first.tolist()


def test_of_settings_that_work_alike_the_simplest_is_advised_and_of_these_the_best():
    def best(*accuracies: float) -> Any:
        orders = [None, "alphabetical", "numbers_as_text", [1, 0]]
        return simplest_of_best(list(zip(orders, accuracies, strict=True)), 1000, class_order.effort)[0]

    assert best(0.71, 0.2, 0.2, 0.72) is None
    assert best(0.1, 0.70, 0.71, 0.72) == "numbers_as_text"
    assert best(0.1, 0.2, 0.2, 0.72) == [1, 0]


def test_names_sort_with_their_numbers_by_value():
    names = ["10", "9", "b", "a10b", "a9b", "01", "1", "", "-5", "a", "10a", "1" * 50]
    assert sorted(names, key=class_order.natural_key) == [
        "", "01", "1", "9", "10", "10a", "1" * 50, "-5", "a", "a9b", "a10b", "b",
    ]  # fmt: skip


@pytest.mark.parametrize("wrong", [[0, 0, 1], [1, 2, 3], [], "sorted", 3, [0.0, 1.0], [True, 0], {"a": 1}])
def test_what_is_no_order_of_classes_is_refused_once(wrong):
    layer = config.Layer("x.yaml", {"teachers": [{"model": "cifar_resnet8", "weights": "a.pt", "class_order": wrong}]})
    with pytest.raises(UserError) as refused:
        config.resolve([*config.read_layers([config.QUICKSTART]), layer])
    assert str(refused.value).count("\n") == 0
    assert "x.yaml: teachers[0].class_order: is " in str(refused.value) and "numbers_as_text" in str(refused.value)


def test_an_export_with_its_classes_in_another_order_says_how_to_set_it():
    data: Any = SimpleNamespace(num_classes=3, class_names=["ant", "bee", "cat"])
    known = Facts("x", 3, ["cat", "ant", "bee"], Preprocess(8, 8, "bilinear", (0.5,), (0.5,)), 1)
    natural = class_order.outputs_in_order(None, data.class_names)
    with pytest.raises(UserError, match=r"another order: 'cat' comes first, .* 'ant'; set class_order: \[1, 2, 0\]"):
        check_classes(known, data, "teachers[0]", natural)
    check_classes(known, data, "teachers[0]", [1, 2, 0])
    with pytest.raises(UserError, match="another order: 'bee' comes first"):
        check_classes(known, data, "teachers[0]", [2, 1, 0])


def test_the_two_spellings_of_cifar100_are_the_same_classes():
    archive = sorted(name for members in CIFAR100.values() for name in members)
    hub = ["cra" if name == "crab" else name for name in archive]
    plain = Preprocess(8, 8, "bilinear", (0.5,), (0.5,))
    for here, there in ((archive, hub), (hub, archive)):
        data: Any = SimpleNamespace(num_classes=100, class_names=here)
        check_classes(Facts("x", 100, there, plain, 1), data, "teachers[0]")
        with pytest.raises(UserError, match="another order: 'worm' comes first, .* 'apple'"):
            check_classes(Facts("x", 100, there[::-1], plain, 1), data, "teachers[0]")


def test_normalizations_have_their_values():
    assert {"auto", "data", *NORMALIZATIONS} == set(get_args(TeacherNormalization))
    assert all(len(mean) == len(std) == 3 for mean, std in NORMALIZATIONS.values())


def test_settings_of_foreign_weights_are_not_for_teachers_trained_here():
    for key, value in {"normalization": "imagenet", "class_order": "alphabetical"}.items():
        with pytest.raises(ValueError, match="a teacher that is trained here"):
            TeacherConfig.model_validate({"model": "cifar_resnet8", "train": "x.yaml", key: value})


def test_what_changes_logits_changes_the_run_and_what_does_not_leaves_it():
    def digest(**more):
        teacher = {"model": "cifar_resnet8", "weights": "nowhere.pt", **more}
        layers = [*config.read_layers([config.QUICKSTART]), config.Layer("", {"teachers": [teacher]})]
        return config.digest(config.resolve(layers).config, "")

    plain = digest()
    assert plain == digest(class_order=None)
    assert len({plain, digest(class_order="alphabetical"), digest(normalization="imagenet")}) == 3


# --------------------------------------------------------------------------------- the script and foreign teachers

ORDER = [3, 7, 0, 9, 1, 8, 2, 6, 5, 4]  # class c is the permuted network's output ORDER[c]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with two checkpoints of one network: `bytes.pt` wants pixels in [0,255], and `permuted.pt` also has its
    outputs in another order, as have the right answers in `permuted.safetensors`."""
    home = tmp_path_factory.mktemp("home")
    data = load_data(
        DataConfig.model_validate({"source": "digits"}), model_sizes=[16], cache_dir=home / "cache", show_progress=False
    )
    torch.manual_seed(0)
    model: nn.Module = models.create_model("cifar_resnet8", num_classes=10)
    preprocess = Preprocess(16, 16, "bilinear", *NORMALIZATIONS["bytes"])
    views = Views(preprocess, data.image_size, Augmentation(0, False))
    for epoch, rate in enumerate((5e-3, 5e-4)):
        optimizer = torch.optim.AdamW(model.parameters(), rate)
        for rows in epoch_order(0, epoch, data.train.rows).split(32):
            loss = F.cross_entropy(model(views.clean(data.train.images[rows])), data.train.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    weights = model.state_dict()
    torch.save(weights, home / "bytes.pt")
    head = [name for name, value in weights.items() if value.ndim and value.shape[0] == 10]
    assert sorted(name.rpartition(".")[2] for name in head) == ["bias", "weight"]
    stands_for = torch.tensor(ORDER).argsort()  # the class of each output
    torch.save(weights | {name: weights[name][stands_for] for name in head}, home / "permuted.pt")
    answers = 5 * F.one_hot(data.train.labels, CLASSES)[:, stands_for].float()
    write_logits(home / "permuted.safetensors", {"train": answers}, {"train": data.train.fingerprint})
    return home


def check(home: Path, *teachers: str, switch: str = "--check") -> None:
    """Run the script on teachers, each said as `file, more settings`."""
    network = "model: cifar_resnet8, img_size: 16, weights: "
    kinds = ["logits: " if teacher.endswith(".safetensors") else network for teacher in teachers]
    entries = ", ".join(f"{{{kind}{home}/{teacher}}}" for kind, teacher in zip(kinds, teachers, strict=True))
    train_kd.main([
        "--no-wandb", f"--teachers=[{entries}]", f"--output_dir={home / 'runs'}", f"--cache.dir={home / 'cache'}",
        "--model.name=cifar_resnet8", "--model.img_size=16", "--kd.type=average", switch,
    ])  # fmt: skip


def test_check_finds_a_teachers_normalization(home, capsys):
    with pytest.raises(UserError, match=r"teachers\[0\].*near chance.*; --check tries the usual normalizations"):
        check(home, "bytes.pt", switch="--fresh")
    with pytest.raises(UserError, match=r"teachers\[0\].*with normalization bytes: set normalization: bytes$"):
        check(home, "bytes.pt")
    check(home, "bytes.pt, normalization: bytes")
    assert "finding" not in capsys.readouterr().out


def test_check_finds_a_teachers_class_order(home, capsys):
    with pytest.raises(UserError) as refused:
        check(home, "permuted.pt, normalization: bytes")
    assert str(refused.value).endswith(f"with another class_order: set class_order: {ORDER}")
    check(home, f"permuted.pt, normalization: bytes, class_order: {ORDER}")
    assert "finding" not in capsys.readouterr().out
    with pytest.raises(UserError, match=r"teachers\[0\].class_order: has 3 numbers, the data have 10 classes"):
        check(home, "permuted.pt, class_order: [2, 1, 0]")


def test_check_finds_both_at_once_and_beside_a_good_teacher(home):
    with pytest.raises(UserError) as refused:
        check(home, "bytes.pt, normalization: bytes", "permuted.pt")
    assert str(refused.value).startswith("teachers[1] 'cifar_resnet8': accuracy")
    assert str(refused.value).endswith(f"set normalization: bytes, class_order: {ORDER}")


def test_check_finds_the_order_of_a_file_of_logits(home):
    with pytest.raises(UserError) as refused:
        check(home, "permuted.safetensors")
    assert str(refused.value).endswith(f"write the columns of {home}/permuted.safetensors in the order {ORDER}")


def test_check_says_when_nothing_helps(home):
    torch.save(models.create_model("cifar_resnet8", num_classes=10).state_dict(), home / "random.pt")
    with pytest.raises(UserError, match="near chance.*were tried for teachers from elsewhere: none helps"):
        check(home, "random.pt")


def test_check_helps_teachers_that_are_merely_weak(home, capsys):
    swapped = [1, 0, *range(2, 10)]
    check(home, "bytes.pt, normalization: bytes", f"bytes.pt, normalization: bytes, class_order: {swapped}")
    out = capsys.readouterr().out
    assert "1 finding:" in out and f"set class_order: {list(range(10))}" in out and "check passed" in out
