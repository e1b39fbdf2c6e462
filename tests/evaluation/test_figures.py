"""evaluate(): the dictionary that reports, plots and summaries read."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import torch
from logit_cases import CASES, case, sample
from scipy import stats

from kd_core import metrics
from kd_core.data.superclasses import CIFAR100, in_one_spelling, superclasses_of
from kd_core.errors import NonFinite, UserError
from kd_core.evaluation.figures import GAIN, Predictions, evaluate, logged
from kd_core.report import console

PLAIN = {
    "split", "correct", "total", "accuracy", "top5", "macro_accuracy", "loss_ce", "nll", "brier", "ece", "ece_adaptive",
    "auroc", "auroc_classes_left_out", "temperature_scaling", "reliability", "per_class", "confusion", "most_confused",
    "accuracy_interval",
}  # fmt: skip
BESIDE_TEACHERS = {"teachers", "ensemble", "against_teachers"}


def predictions(name="random", count=None, alone=False, split="test"):
    logits, labels = case(name)
    noise = torch.randn(count or 1, *logits.shape, generator=torch.Generator().manual_seed(5))
    names = [f"class {number}" for number in range(logits.shape[1])]
    found = Predictions(split, labels, logits.float(), names)
    if count:
        found.teachers, found.teacher_names = logits + noise, [f"network {index}" for index in range(count)]
    if alone:
        found.alone = logits + 2 * noise[0]
    return found


@pytest.mark.parametrize("count", [None, 1, 3])
@pytest.mark.parametrize("name", CASES)
def test_evaluation_has_the_documented_shape(name, count):
    """On every degenerate input: the keys, plain JSON without NaN, and tables and rows that can be made of it."""
    given = predictions(name, count, alone=count == 1)
    found = evaluate(given, given)
    more = (BESIDE_TEACHERS if count else set()) | ({"alone", *GAIN} if count == 1 else set())
    assert set(found) == PLAIN | more
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    classes = len(given.class_names)
    assert len(found["per_class"]) == len(found["confusion"]) == classes
    assert {key: len(values) for key, values in found["reliability"].items()} == dict.fromkeys(
        ("lower", "upper", "count", "mean_confidence", "accuracy"), 15
    )
    assert sum(map(sum, found["confusion"])) == sum(row["count"] for row in found["per_class"]) == found["total"]
    assert sum(found["confusion"][c][c] for c in range(classes)) == found["correct"]
    assert f"{found['correct']} / {found['total']}" in console.evaluation("a student", found)
    assert all(isinstance(value, float) for value in logged(found).values())


def test_values_are_those_of_the_metrics():
    given, fitted = predictions(count=3, alone=True), predictions("ties", split="val")
    found = evaluate(given, fitted)
    assert {key: found[key] for key in metrics.classification(given.student, given.labels)} == metrics.classification(
        given.student, given.labels
    )
    temperature = metrics.fit_temperature(fitted.student, fitted.labels)
    scaled = metrics.calibration(given.student / temperature, given.labels)
    assert found["temperature_scaling"] == {
        "temperature": temperature,
        "fitted_on": "val",
        **scaled,
        "helped": scaled["nll"] < found["nll"] and scaled["ece"] < found["ece"],
    }
    predicted = given.student.argmax(1)
    assert given.teachers is not None and given.alone is not None
    for row, own in zip(found["teachers"], given.teachers, strict=True):
        known = metrics.classification(own, given.labels)
        assert {key: row[key] for key in ("accuracy", "nll", "ece")} == {
            key: known[key] for key in ("accuracy", "nll", "ece")
        }
        assert row["agreement"] == pytest.approx(float((own.argmax(1) == predicted).double().mean()))
        assert row["kl"] == pytest.approx(float(metrics.divergence(own, given.student)))
    assert [row["name"] for row in found["teachers"]] == given.teacher_names
    mixture = given.teachers.softmax(-1).mean(0)
    assert found["ensemble"]["accuracy"] == float((mixture.argmax(1) == given.labels).double().mean())
    assert found["ensemble"]["kl"] == pytest.approx(float(metrics.divergence(mixture.log(), given.student)), abs=1e-6)
    assert found["against_teachers"]["oracle"] >= max(row["accuracy"] for row in found["teachers"])
    alone = metrics.classification(given.alone, given.labels)
    assert found["alone"] == {key: alone[key] for key in ("accuracy", "nll", "ece", "auroc")}
    assert found["gain"] == found["accuracy"] - alone["accuracy"]


def test_the_difference_to_the_student_alone_has_its_uncertainty():
    given = predictions(count=1, alone=True)
    found = evaluate(given)
    right, alone = (logits.argmax(1) == given.labels for logits in (given.student, given.alone))
    each = right.double() - alone.double()
    assert found["gain_images"] == int(each.sum()) == found["correct"] - int(alone.sum())
    assert found["gain_error"] == pytest.approx(math.sqrt(float(each.var(correction=0)) / len(each)))
    only, other = int((right & ~alone).sum()), int((alone & ~right).sum())
    p = stats.binomtest(only, only + other).pvalue
    assert found["gain_p"] == pytest.approx(p) and p < 0.05 and found["gain_verdict"] == "better"
    text = console.evaluation("a student", found)
    assert (
        f"difference to the student alone: {100 * found['gain']:+.2f} points ({found['gain_images']} of 510 images), "
        f"standard error {100 * found['gain_error']:.2f} points: better on these images"
    ) in text
    assert "one seed each, so another may differ" in text
    same = evaluate(replace(given, alone=given.student))
    assert (same["gain"], same["gain_images"], same["gain_error"]) == (0.0, 0, 1 / 510)
    assert "+0.00 points (0 of 510 images), standard error 0.20 points: inconclusive" in console.evaluation("s", same)


def test_temperature_scaling_says_when_it_did_not_help():
    sure, labels = predictions("random"), torch.arange(510) % 10
    calibrated = Predictions("test", labels, 3.0 * torch.eye(10)[labels], sure.class_names)
    cold = Predictions("val", labels, 0.2 * torch.eye(10)[(labels + 1) % 10], sure.class_names)  # all wrong
    found = evaluate(calibrated, cold)
    scaled = found["temperature_scaling"]
    assert scaled["helped"] is False and scaled["nll"] > found["nll"] and scaled["ece"] > found["ece"]
    text = console.evaluation("a student", found)
    assert "temperature scaling did not help on these images: cross-entropy (nats)" in text
    assert f"calibration error (ECE, 15 bins) {found['ece']:.4f} became {scaled['ece']:.4f}" in text
    helped = evaluate(calibrated, calibrated)
    assert helped["temperature_scaling"]["helped"] is True
    assert "did not help" not in console.evaluation("a student", helped)
    flat = evaluate(replace(calibrated, student=torch.zeros(510, 10)), cold)  # no temperature changes it
    assert flat["temperature_scaling"]["nll"] == flat["nll"] and flat["temperature_scaling"]["helped"] is False


def test_gain_per_class_equals_a_loop():
    given = predictions("a class is missing", alone=True)
    assert given.alone is not None
    found = evaluate(given)
    for number, row in enumerate(found["per_class"]):
        mine = given.labels == number
        assert row["name"] == given.class_names[number] and row["count"] == int(mine.sum())
        if not row["count"]:
            assert row["accuracy"] is row["alone"] is row["gain"] is row["gain_images"] is row["gain_error"] is None
            continue
        accuracy, alone = (
            float((logits[mine].argmax(1) == number).double().mean()) for logits in (given.student, given.alone)
        )
        assert (row["accuracy"], row["alone"]) == (accuracy, alone)
        assert row["gain"] == pytest.approx(accuracy - alone)
        assert row["gain_images"] == round((accuracy - alone) * row["count"])
        each = [(a[mine].argmax(1) == number).double() for a in (given.student, given.alone)]
        spread = float((each[0] - each[1]).var(correction=0)) or 1 / row["count"]
        assert row["gain_error"] == pytest.approx(math.sqrt(spread / row["count"]))
    assert found["per_class"][9]["count"] == 0


def test_most_confused_classes_are_named():
    logits = torch.zeros(4, 3)
    logits[0, 2] = logits[1, 2] = logits[2, 0] = logits[3, 1] = 1.0
    given = Predictions("val", torch.tensor([1, 1, 1, 1]), logits, ["ant", "bee", "cat"])
    assert evaluate(given)["most_confused"] == [
        {"label": "bee", "predicted": "cat", "count": 2, "share": 0.5},
        {"label": "bee", "predicted": "ant", "count": 1, "share": 0.25},
    ]


def test_without_a_validation_split_there_is_no_temperature():
    found = evaluate(predictions())
    assert found["temperature_scaling"] is None and "temperature" not in console.evaluation("a student", found)
    assert not any("temperature" in name or "scaled" in name for name in logged(found))


def test_scaling_on_the_split_itself_never_harms():
    for name in CASES:
        given = predictions(name)
        found = evaluate(given, given)
        assert found["temperature_scaling"]["nll"] <= found["nll"] * (1 + 1e-5) + 1e-6


def test_logged_names_and_values():
    row = logged(evaluate(predictions("one image", count=2), predictions("ties", split="val")))
    assert {name.partition("/")[0] for name in row} == {"test"}
    names = {"accuracy", "top5", "macro_accuracy", "nll", "brier", "ece", "ece_adaptive", "temperature", "ece_scaled"}
    names |= {"agreement", "kl", "oracle", "accuracy_all_agree", "accuracy_disagree", "accuracy_all_wrong"}
    names |= {f"teacher/{index}/{name}" for index in (0, 1) for name in ("accuracy", "agreement", "kl")}
    assert {f"test/{name}" for name in names} <= set(row) and "test/gain" not in row
    assert math.isnan(row["test/auroc"])  # of one image


def test_logged_names_are_documented():
    row = logged(evaluate(predictions(count=1, alone=True), predictions(split="val")))
    names = {
        re.sub("^test/(teacher/0/)?", lambda found: "{split}/" + "teacher/{i}/" * bool(found[1]), name) for name in row
    }
    text = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text()
    assert len(names) == len(row) > 20 and names <= set(re.findall("`([^`]+)`", text))


@pytest.mark.parametrize("who", ["student", "teachers", "alone"])
def test_logits_that_are_not_finite_are_an_error(who):
    given = predictions(count=2, alone=True)
    getattr(given, who)[..., 7, 2] = math.nan
    with pytest.raises(NonFinite, match="logits of 1 of 510 images not finite, number 7 the first"):
        evaluate(given)


def test_no_image_is_an_error():
    with pytest.raises(UserError, match="no images"):
        evaluate(Predictions("val", torch.zeros(0, dtype=torch.long), torch.zeros(0, 2), ["a", "b"]))


def test_too_many_classes_have_no_confusion_matrix():
    logits, labels = sample(20, 1001)
    found = evaluate(Predictions("val", labels, logits, [str(number) for number in range(1001)]))
    assert "confusion" not in found and found["most_confused"] and len(found["per_class"]) == 1001


# --------------------------------------------------------------------------------------------------- superclasses


def test_superclasses_partition_the_classes():
    names = [name for members in CIFAR100.values() for name in members]
    assert len(CIFAR100) == 20 and len(set(names)) == 100 and all(len(members) == 5 for members in CIFAR100.values())
    assert superclasses_of(names[:-1]) is None and superclasses_of([*names[:-1], "digit"]) is None
    found = superclasses_of(sorted(names))
    assert found is not None
    numbers, parents = found
    assert all(name in CIFAR100[parents[number]] for name, number in zip(sorted(names), numbers, strict=True))


def test_class_26_has_its_superclass_in_either_spelling():
    """uoft-cs/cifar100 on the Hub calls it "cra", the archive of 2009 "crab"."""
    archive = sorted(name for members in CIFAR100.values() for name in members)
    hub = ["cra" if name == "crab" else name for name in archive]
    assert archive[26] == "crab" and superclasses_of(hub) == superclasses_of(archive) is not None
    assert superclasses_of([name for name in archive if name != "apple"] + ["cra"]) is None  # both spellings
    assert in_one_spelling(hub) == in_one_spelling(archive) == archive
    assert in_one_spelling(["cra", "fish"]) == ["cra", "fish"]  # other data's


def test_accuracy_per_superclass_equals_a_loop():
    logits, labels = sample(400, 100)
    labels[labels == 3] = 4
    names = sorted(name for members in CIFAR100.values() for name in members)
    given = Predictions("val", labels, logits, names)
    found = evaluate(given)["superclasses"]
    parent_of = {name: parent for parent, members in CIFAR100.items() for name in members}
    named = [
        (names[label], names[guess]) for label, guess in zip(labels.tolist(), logits.argmax(1).tolist(), strict=True)
    ]
    assert [row["name"] for row in found] == list(CIFAR100)
    for row in found:
        mine = [(label, guess) for label, guess in named if parent_of[label] == row["name"]]
        assert row["count"] == len(mine) > 0
        assert row["accuracy"] == pytest.approx(sum(label == guess for label, guess in mine) / len(mine))
        near = sum(parent_of[label] == parent_of[guess] for label, guess in mine) / len(mine)
        assert row["superclass_accuracy"] == pytest.approx(near)


@pytest.mark.cifar100
def test_superclasses_are_those_of_the_data_set(cifar100):
    data = datasets.load_dataset("parquet", data_files={"test": str(cifar100 / "test-*.parquet")}, split="test")
    fine, coarse = data.features["fine_label"].names, data.features["coarse_label"].names
    found = superclasses_of(fine)
    assert found is not None
    numbers, names = found
    assert names == coarse
    pairs = set(zip(data["fine_label"], data["coarse_label"], strict=True))
    assert pairs == set(enumerate(numbers))
