"""A figure has one name, in the console, on the page, in plots, on the model card and in the docs."""

import re
from pathlib import Path

import pytest
import sample_run
from html_tree import Tree

from kd_core.evaluation.figures import evaluate
from kd_core.evaluation.metric_names import LABELS
from kd_core.export import card
from kd_core.report import console

DOCS = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
BOTH = (
    "accuracy", "accuracy_interval", "macro_accuracy", "top5", "auroc", "nll", "brier", "ece", "ece_adaptive",
    "agreement", "kl", "all_agree", "disagree", "all_wrong", "oracle", "alone", "ensemble", "gain", "temperature",
    "parameters", "multiply_adds", "checkpoint_bytes", "latency_ms", "images_per_second",
)  # fmt: skip


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> tuple[str, Tree]:
    """The console's text and the page of one evaluation."""
    path, arguments = sample_run.report(tmp_path_factory.mktemp("labels") / "run")
    printed = console.evaluation("a student", arguments["evaluations"]["val"])
    printed += "\n\n" + console.costs(arguments["summary"]["cost"])
    return printed, Tree(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("key", BOTH)
def test_console_and_page_say_the_same(shown, key):
    printed, page = shown
    words = [text for _, text, _ in page.all("th", "dt", "caption", "p", "dd")]
    assert LABELS[key] in printed
    assert any(LABELS[key] in text for text in words)


def test_console_uses_the_common_metric_labels(shown):
    """The first column and the headers of its tables hold labels, networks and classes alone."""
    printed, page = shown
    blocks = printed.split("\n\n")
    first = [re.split(r"  +", line)[0] for line in blocks[0].splitlines()[2:]]
    assert set(first) - set(LABELS.values()) == {"correct / total"}
    header = re.split(r"  +", blocks[1].splitlines()[0].strip())
    assert set(header) <= set(LABELS.values())
    cost = [re.sub(", batch of .*", "", re.split(r"  +", line)[0]) for line in blocks[-1].splitlines()[2:]]
    assert set(cost) <= set(LABELS.values())
    [further] = [i for i, (_, text, _) in enumerate(page.all("caption")) if text.startswith("The student on the")]
    assert further == 1  # and its rows are named as the console's
    names = [text for attrs, text, _ in page.all("th") if attrs.get("scope") == "row"]
    start = names.index(LABELS["accuracy"])
    assert set(names[start : start + 10]) <= set(LABELS.values())


def test_networks_have_the_same_labels_everywhere():
    made = sample_run.predictions()
    figures = evaluate(made, made)
    known = {"val_accuracy": figures["accuracy"], "val_auroc": figures["auroc"]}
    summary = {
        **sample_run.summary(made, {"val": figures}), **known, "val_images": 400,
        "ensemble": known, "teachers": [{"name": "a", "parameters": 7, **known}],
    }  # fmt: skip
    text = console.results(summary, {**known, "student_model": "vit", "parameters": 9})
    header = text.splitlines()[0]
    assert [part for part in re.split(r"  +", header) if part] == [
        f"validation {LABELS['accuracy']}", f"validation {LABELS['auroc']}", LABELS["parameters"],
    ]  # fmt: skip
    low, high = figures["accuracy_interval"]
    assert f"{LABELS['accuracy_interval']}: {low:.2%} to {high:.2%}" in text
    assert f"{LABELS['gain']}: +6.25 points (25 of 400 images), standard error" in text
    assert LABELS["alone"] in text and LABELS["ensemble"] in text
    for name in ("gain", "gain_images", "gain_error", "gain_p", "gain_verdict"):
        del summary["evaluation"]["val"][name]  # a run of before
    assert LABELS["gain"] not in console.results(summary, None)


def test_interval_of_a_perfect_student_ends_at_100():
    summary = {"student_model": "vit", "kd_type": "x", "parameters": 9, "val_accuracy": 1.0, "val_images": 50}
    assert "(Wilson): 92.87% to 100.00%" in console.results(summary, None)


def test_the_card_and_the_docs_use_them():
    assert {key: title for key, (title, _) in card.FIGURES.items()} == {key: LABELS[key] for key in card.FIGURES}
    section = DOCS.read_text(encoding="utf-8").partition("### What they are called")[2].partition("###")[0]
    assert dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE)) == LABELS
