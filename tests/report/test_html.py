"""The report of a run tells what summary.json holds, in a page that anybody can read and that loads nothing."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import sample_run
from browser import Browser
from compared_runs import evil, make
from html_tree import Tree

from kd_core.comparison.tables import tables_of, write
from kd_core.evaluation.figures import evaluate
from kd_core.report import closing, html, run_page
from kd_core.run.folder import RunFolder, lookup
from kd_core.run.tracking import without_images


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """The page of a run with hostile names, and what it was made of."""
    made = sample_run.predictions(names=sample_run.HOSTILE, **sample_run.superclasses(10))
    made.teacher_names = sample_run.HOSTILE[:3]
    made.labels[made.labels == 4] = 5  # a class without images
    return sample_run.report(tmp_path_factory.mktemp("runs") / "<run>", made)


@pytest.fixture(scope="module")
def tree(report) -> Tree:
    return Tree(report[0].read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------------------------------------ figures


def leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, dict | list):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from leaves(value, f"{prefix}{key}.")
    else:
        yield prefix[:-1], values


def read(text: str) -> tuple[float, float]:
    """The number that a text says, and how far it may have been rounded."""
    [digits] = re.findall(r"[+−-]?[\d,]+(?:\.\d+)?(?:e[+-]?\d+)?", text)
    decimals = len(re.sub(r"e.*", "", digits).partition(".")[2])
    unit = {"%": 0.01, "p": 0.01, "M": 1e6, "": 1.0}[text.removeprefix(digits).strip()[:1]]
    return float(digits.replace(",", "").replace("−", "-")) * unit, 0.500001 * 10**-decimals * unit


def test_every_number_is_the_one_of_the_summary(report, tree):
    summary, shown = report[1]["summary"], {}
    for attributes, text, _ in tree.all("data", "span"):
        if "data-key" not in attributes:
            continue
        key = attributes["data-key"]
        value = lookup(summary, key)
        shown[key] = text
        if text == html.MISSING:
            assert value is None
        elif "value" in attributes:
            assert float(attributes["value"]) == value, key
            number, rounding = read(text)
            assert number == pytest.approx(value, abs=max(rounding, 1e-12)), (key, text, value)
        else:
            assert text == " ".join(html.printable(str(value)).split()), key
    # every figure is there, but for a second name of the same one and what is no figure
    unshown = {key for key, _ in leaves(summary)} - set(shown)
    assert {re.sub(r"\d+", "0", key) for key in unshown} == {
        "run_id", "status", "findings.0.value", "evaluation.val.split", "evaluation.val.loss_ce",
        "evaluation.val.ensemble.name", "evaluation.val.alone.auroc", "teachers.0.name",
        "evaluation.val.temperature_scaling.helped",
    }  # fmt: skip
    numbers = [text for attrs, text, _ in tree.all("td") if re.search(r"\d", text)]
    assert len(numbers) > 60


def test_numbers_in_cells_and_cards_carry_their_keys(report):
    """No number stands in a table or a card of the result that is not an element with a key."""
    text = report[0].read_text(encoding="utf-8")
    body = text[text.index("<main") : text.index('id="settings"')]
    body = re.sub(r"<data .*?</data>|<span .*?</span>|<(script|style).*?</\1>|<t?h[\dr] .*?>", "", body, flags=re.S)
    for cell in re.findall(r"<(?:td|dd)[^>]*>(.*?)</(?:td|dd)>", body, flags=re.S):
        assert not re.search(r"\d", re.sub("<.*?>", "", cell)), cell


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (0.96071, "share", "96.07%"), (1.0, "share", "100.00%"), (0.0123, "points", "+1.23 points"),
        (-0.2, "points", "−20.00 points"), (0.0, "points", "0.00 points"), (1.5, "figure", "1.500"),
        (0.011, "error", "1.10 points"),
        (0.00012345, "figure", "0.0001234"), (123456.7, "figure", "123,457"), (0.0, "figure", "0.000"),
        (1234567, "count", "1,234,567"), (321987, "bytes", "0.32 MB"), ("<b>", "text", "<b>"),
        (None, "share", "–"), (float("nan"), "figure", "–"),
    ],
)  # fmt: skip
def test_values_are_formatted(value, kind, text):
    assert html.shown(value, kind) == text


def test_keys_are_looked_up_and_missing_ones_are_none():
    values = {"a": [{"b": 0}, 1], "1": {"x": 2}}
    assert [lookup(values, key) for key in ("a.0.b", "a.1", "1.x")] == [0, 1, 2]
    assert [lookup(values, key) for key in ("a.2", "a.-1", "b", "a.x", "a.0.b.c", "")] == [None] * 6


def test_the_whole_evaluation_is_written_beside_the_page(report):
    path, arguments = report
    assert json.loads((path.parent / "evaluation-val.json").read_text()) == arguments["evaluations"]["val"]
    names = {file.name for file in path.parent.iterdir()}
    assert names == {"index.html", "evaluation-val.json", "training-curves.png", "method.png", "reliability-val.png",
                     "confusion-val.png", "gains-val.png", "teacher-weights-val.png", "mistakes-val.png"}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- structure


def test_data_are_escaped_and_nothing_is_loaded(report, tree):
    text = report[0].read_text(encoding="utf-8")
    assert "<script>document" not in text and "<img src=x" not in text
    assert "{{ 7 * 7 }}" in text and "\x1b" not in text and "bell\\x07" in text and "\u202e" not in text
    [script], [style] = tree.all("script"), tree.all("style")
    assert script[1].startswith('"use strict"') and style[1].startswith(":root")
    for tag, attributes, _, _ in tree.found:
        for name in ("src", "href", "srcset", "data", "poster", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes[name][:80])
        assert not any(name.startswith("on") or name == "style" for name in attributes)
    assert not re.search(r"url\(|@import", style[1])


def test_the_policy_allows_this_script_and_style_and_nothing_else(report, tree):
    [policy] = [attrs["content"] for attrs, _, _ in tree.all("meta") if "content-security" in str(attrs).lower()]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    text = report[0].read_text(encoding="utf-8")
    for tag in ("script", "style"):
        [content] = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules.pop(f"{tag}-src") == f"'sha256-{digest}'"
    assert rules == {"default-src": "'none'", "img-src": "data:", "base-uri": "'none'", "form-action": "'none'"}


def test_the_page_is_accessible(tree):
    assert [text for _, text, _ in tree.all("h1")] == ["Report of <run>"] == [text for _, text, _ in tree.all("title")]
    levels = [int(tag[1]) for tag, *_ in tree.found if re.fullmatch("h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    assert [len(tree.all(tag)) for tag in ("header", "nav", "main", "footer")] == [1, 1, 1, 1]
    ids = [attributes["id"] for _, attributes, _, _ in tree.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for attributes, _, _ in tree.all("a")]
    assert links[0] == "#content" and {link[1:] for link in links} <= set(ids)
    images = tree.all("img")
    assert len(images) == 7 and all(len(attributes["alt"]) > 80 for attributes, _, _ in images)
    assert any("Calibration error" in attributes["alt"] for attributes, _, _ in images)
    tables, captions = tree.all("table"), tree.all("caption")
    assert len(tables) == len(captions) == 8
    assert all(attributes.get("scope") in ("col", "row") for attributes, _, _ in tree.all("th"))
    assert all("div" in up for _, _, up in tables)
    assert next(attrs["lang"] for attrs, _, _ in tree.all("html")) == "en"


# -------------------------------------------------------------------------------------------------- what is not there


def headings(path: Path) -> list[str]:
    return [text for _, text, _ in Tree(path.read_text(encoding="utf-8")).all("h2", "h3")]


def test_a_student_without_teachers(tmp_path):
    path, _ = sample_run.report(tmp_path / "run", sample_run.predictions(teachers=0, pixels=None), rows=[])
    text = path.read_text(encoding="utf-8")
    assert "no teachers" in text and "Student and teachers" not in headings(path)
    assert not list(path.parent.glob("teacher-weights*")) + list(path.parent.glob("gains*"))
    for word in ("agreement", "ensemble", "alone", html.MISSING):
        assert word not in text[text.index("<main") : text.index('id="cost"')], word


SUMMARY = {"student_model": "vit", "kd_type": "x", "epochs": 0, "best_epoch": None, "seed": 0, "teachers": []}
NOTHING = {"summary": SUMMARY, "rows": [], "evaluations": {}, "predictions": None}


def test_a_run_without_evaluation_cost_or_findings(tmp_path):
    path, _ = sample_run.report(tmp_path / "run", **NOTHING)
    assert headings(path) == ["Settings and environment", "Files and next steps"]
    assert not list(path.parent.glob("*.png"))
    path, _ = sample_run.report(tmp_path / "run", **{**NOTHING, "summary": {**SUMMARY, "findings": []}})
    assert headings(path)[0] == "Findings" and "Nothing suspicious found." in path.read_text(encoding="utf-8")


def test_both_splits_and_no_scaling(tmp_path):
    made = sample_run.predictions(pixels=None)
    evaluations = {"val": evaluate(made), "test": {**evaluate(made), "split": "test"}}
    del evaluations["test"]["confusion"]  # as with very many classes
    summary = sample_run.summary(made, evaluations)
    path, _ = sample_run.report(tmp_path / "run", made, evaluations=evaluations, summary=summary, rows=[])
    text = path.read_text(encoding="utf-8")
    assert [name for name in headings(path) if "split" in name] == ["Test split", "Validation split"] * 2
    assert not re.search("at temperature|temperature scaling", text)
    pictures = {file.stem for file in path.parent.glob("*.png")}
    assert pictures == {"reliability-test", "gains-test", "reliability-val", "gains-val", "confusion-val",
                        "teacher-weights-val"}  # fmt: skip


def test_the_difference_to_the_student_alone_is_no_claim(report, tree):
    own = report[1]["summary"]["evaluation"]["val"]
    [card] = [text for attrs, text, _ in tree.all("dl") if text.startswith("difference to the student alone")]
    images, error = f"{own['gain_images']} of {own['total']} images", 100 * own["gain_error"]
    assert f"{images}, standard error {error:.2f} points:" in card
    assert f"{own['gain_verdict']} on these images" in card and "one seed each, so another may differ" in card


def test_the_page_says_which_weights_the_student_has(tmp_path):
    own = {**SUMMARY, "best_epoch": 7, "weights": "average", "val_images": 90}
    path, _ = sample_run.report(tmp_path / "run", **{**NOTHING, "summary": own})
    words = [text for _, text, _ in Tree(path.read_text(encoding="utf-8")).all("p")]
    assert any(text.startswith("weights: the moving average at the end of epoch 7 (training.ema)") for text in words)
    path, _ = sample_run.report(tmp_path / "run", **NOTHING)
    assert "weights:" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("helped", [True, False])
def test_the_page_says_when_temperature_scaling_did_not_help(tmp_path, helped):
    made = sample_run.predictions()
    figures = evaluate(made, made)
    assert figures["temperature_scaling"]["helped"]
    figures["temperature_scaling"]["helped"] = helped
    evaluations = {"val": figures}
    summary = sample_run.summary(made, evaluations)
    path, _ = sample_run.report(tmp_path / "run", made, evaluations=evaluations, summary=summary)
    words = " ".join(text for _, text, _ in Tree(path.read_text(encoding="utf-8")).all("p", "dd"))
    assert ("Temperature scaling did not help on these images: cross-entropy (nats)" in words) is not helped
    assert (": it did not help" in words) is not helped


def test_an_evaluation_of_an_older_version_is_shown_without_what_it_lacks(tmp_path):
    made = sample_run.predictions()
    figures = evaluate(made, made)
    for name in ("accuracy_interval", "gain_images", "gain_error", "gain_p", "gain_verdict"):
        del figures[name]
    del figures["temperature_scaling"]["helped"]
    for row in figures["per_class"]:
        del row["gain_images"], row["gain_error"]
    summary = sample_run.summary(made, {"val": figures})
    path, _ = sample_run.report(tmp_path / "run", made, evaluations={"val": figures}, summary=summary)
    text = path.read_text(encoding="utf-8")
    main = text[text.index("<main") : text.index('id="cost"')]
    assert "standard error of the difference" not in main and "did not help" not in main and "Wilson" not in main


def test_the_page_of_a_run_says_how_to_test_it_with_its_own_code(tmp_path):
    made = sample_run.predictions()
    _, given = sample_run.report(tmp_path / "run", made)
    config = make().config.model_copy(update={"imports": ["own code.py"]})
    (tmp_path / "run" / "summary.json").write_text("{}")
    closing.write_page(
        config,
        RunFolder(tmp_path / "run"),
        {**given["summary"], "environment": {}},
        given["rows"],
        given["evaluations"],
        {"val": made},
    )
    text = unescape((tmp_path / "run" / "report" / "index.html").read_text(encoding="utf-8"))
    command = f"python evaluate_kd.py --import 'own code.py' --checkpoint {tmp_path / 'run'} --split test"
    assert command in text
    listed = text[text.index('id="next"') :]
    assert "<code>summary.json</code>" in listed and "metrics.jsonl" not in listed  # what is there


def test_a_report_is_replaced_as_a_whole(tmp_path, monkeypatch):
    path, arguments = sample_run.report(tmp_path / "run", **NOTHING)
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    monkeypatch.setattr(html, "render", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_page.write_report(tmp_path / "run", **{**arguments, "settings": "new"})
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["report"]


def test_a_home_folder_is_not_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    command, settings = f"python train_kd.py --output_dir={tmp_path}", f"path: {tmp_path}/data"
    path, _ = sample_run.report(
        tmp_path / "run", **{**NOTHING, "settings": settings, "environment": {"command": command}}
    )
    text = path.read_text(encoding="utf-8")
    assert "path: ~/data" in text and "--output_dir=~" in text and "~/run" in text and str(tmp_path) not in text


def test_images_of_the_data_can_be_left_out(report):
    text = report[0].read_text(encoding="utf-8")
    without = without_images(text)
    picture = html.data_uri(report[0].parent / "mistakes-val.png")
    assert picture in text and picture not in without
    assert len(Tree(without).all("img")) == 6


# ------------------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    started = Browser(tmp_path_factory.mktemp("browser") / "home")
    yield started
    started.close()


@pytest.mark.parametrize("width", [375, 1280])
def test_the_page_fits_the_screen_and_requests_nothing(browser, report, width):
    browser.open(report[0], width)
    assert browser.run("document.documentElement.scrollWidth") <= width == browser.run("innerWidth")
    beyond = """[...document.body.querySelectorAll('*')].filter(e => e.getBoundingClientRect().right > innerWidth + 1
        && !e.closest('.scroll, .plot, pre')).map(e => e.outerHTML.slice(0, 100))"""
    assert browser.run(beyond) == []
    assert [url for url in browser.requests if not url.startswith("data:")] == [report[0].resolve().as_uri()]
    assert browser.problems == [] and browser.run("document.title") == "Report of <run>"
    assert browser.run("[...document.images].every(i => i.complete && i.naturalWidth === 1280)")
    # what is wider than a phone can be scrolled to with the keyboard
    lost = "[...document.querySelectorAll('.scroll, .plot, pre')].filter(e => e.tabIndex !== 0).length"
    assert browser.run(lost) == 0


CONTRAST = """
(() => {
  const rgb = (c) => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = (c) => rgb(c).slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if (rgb(color)[3] !== 0) return color;
    }
    return "rgb(255, 255, 255)";
  };
  let worst = [99, ""];
  for (const e of document.body.querySelectorAll("*")) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()) || e.tagName === "SCRIPT") continue;
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < worst[0]) worst = [ratio, e.outerHTML.slice(0, 80)];
  }
  return [worst[0], worst[1], light(ground(document.body))];
})()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast_in_light_and_dark(browser, report, scheme):
    browser.open(report[0], prefers_color_scheme=scheme)
    worst, where, ground = browser.run(CONTRAST)
    assert worst >= 4.5, where  # WCAG 2.2, level AA
    assert (ground < 0.05) == (scheme == "dark")
    assert browser.run("getComputedStyle(document.querySelector('.plot')).backgroundColor") == "rgb(255, 255, 255)"


@pytest.mark.parametrize("width", [375, 1280])
def test_a_comparison_fits_the_screen_and_has_enough_contrast(browser, tmp_path, width):
    found = evil()
    write(tmp_path, found, tables_of(found))
    browser.open(tmp_path / "comparison.html", width, prefers_color_scheme="dark" if width == 375 else "light")
    assert browser.run("document.documentElement.scrollWidth") <= width == browser.run("innerWidth")
    assert browser.problems == [] and browser.run("document.title") == "Comparison: val/accuracy"
    worst, where, _ = browser.run(CONTRAST)
    assert worst >= 4.5, where
    browser.run("document.querySelectorAll('.sortable button')[2].click()")
    values = [float(text.split()[0]) for text in column(browser, 2)]
    assert values == sorted(values) and len(values) == 3


def column(browser: Browser, number: int) -> list[str]:
    cells = f"[...t.tBodies[0].rows].map(r => r.cells[{number}].innerText)"
    return browser.run(f"(() => {{ const t = [...document.querySelectorAll('.sortable')].pop(); return {cells}; }})()")


def test_tables_are_sorted_by_keyboard(browser, report):
    browser.open(report[0])
    browser.press("Tab", 9)
    assert browser.run("document.activeElement.innerText") == "Skip to the content"
    assert browser.run("document.activeElement.getBoundingClientRect().x") >= 0  # seen while it has the focus
    classes = [row["name"] for row in report[1]["summary"]["evaluation"]["val"]["per_class"]]
    assert column(browser, 2)[4] == html.MISSING and len(classes) == 10
    browser.run("[...document.querySelectorAll('.sortable')].pop().querySelectorAll('button')[2].focus()")
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    orders = []
    for key, code, text in (("Enter", 13, "\r"), (" ", 32, " ")):
        browser.press(key, code, text)
        *values, last = column(browser, 2)
        assert last == html.MISSING  # whichever way it goes
        orders.append([float(value.rstrip("%")) for value in values])
    assert orders[0] == sorted(orders[0]) and orders[1] == orders[0][::-1] and orders[0] != orders[1]
    assert browser.run("document.activeElement.closest('th').getAttribute('aria-sort')") == "descending"
    browser.press("Tab", 9)
    browser.press("Enter", 13, "\r")
    assert browser.run("document.querySelectorAll('[aria-sort]').length") == 1  # the other column has none any more
    counts = [int(value) for value in column(browser, 1)]
    assert sorted(counts) == sorted(row["count"] for row in report[1]["summary"]["evaluation"]["val"]["per_class"])
