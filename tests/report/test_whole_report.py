"""The report of a real run: what it tells is what was measured, in the page as in the files."""

import json
import re
import shlex
import shutil
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from small_students import TEACHER_RECIPE

import evaluate_kd
import train_kd
from kd_core.report.html import MISSING, shown
from kd_core.run.folder import lookup, read_metrics

KINDS = ("share", "points", "error", "figure", "count", "bytes", "text")
VIT = "{name: test_vit, img_size: 32, args: {patch_size: 8}}"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The run folder of a student that two teachers have taught, after one that had none."""
    home = tmp_path_factory.mktemp("reported")
    (home / "teacher.yaml").write_text(yaml.safe_dump(TEACHER_RECIPE))
    team = ", ".join(f"{{model: {name}, train: {home / 'teacher.yaml'}}}" for name in ("cifar_resnet8", "test_resnet"))
    train_kd.main([
        f"--output_dir={home}", f"--cache.dir={home / 'cache'}", "--name=run", f"--model={VIT}",
        f"--teachers=[{team}]", "--kd.type=confidence", "--data.train_size=600", "--training.max_epochs=3",
        "--training.learning_rate=0.1", "--training.compare_with_baseline=true", "--evaluation.test_at_end=true",
        "--no-wandb",
    ])  # fmt: skip
    [folder] = home.glob("run-????????")
    return folder


@pytest.fixture
def summary(run) -> dict:
    return json.loads((run / "summary.json").read_text())


class Figures(HTMLParser):
    """(key, text) of every element that names a key of summary.json, and where the page would load things from."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self.sources: list[str] = []
        self._key: str | None = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self._key = given.get("data-key")
        self.sources += [given[name] for name in ("src", "href") if given.get(name)]

    def handle_data(self, data):
        if self._key:
            self.found.append((self._key, data.strip()))
            self._key = None


def page_of(run: Path) -> Figures:
    return Figures((run / "report" / "index.html").read_text(encoding="utf-8"))


def test_every_number_of_the_page_is_one_of_the_summary(run, summary):
    page = page_of(run)
    for key, text in page.found:
        value = lookup(summary, key)
        assert text == MISSING or text in {shown(value, kind) for kind in KINDS if fits(value, kind)}, key
        assert (text == MISSING) == (value is None), key
    told = {key for key, _ in page.found}
    figures = ("accuracy", "auroc", "ece", "nll", "gain", "alone.accuracy", "ensemble.accuracy", "per_class.9.gain")
    assert {f"evaluation.{split}.{name}" for split in ("val", "test") for name in figures} <= told
    assert {"cost.multiply_adds", "cost.latency_ms.256"} <= told
    assert not [source for source in page.sources if "://" in source or source.startswith("//")]


def fits(value, kind: str) -> bool:
    numbers = isinstance(value, (int, float)) and not isinstance(value, bool)
    return kind == "text" or numbers and (kind != "count" or isinstance(value, int))


def test_the_summary_says_what_was_measured(run, summary):
    own = summary["evaluation"]
    best = next(row for row in read_metrics(run / "metrics.jsonl") if row.get("epoch") == summary["best_epoch"])
    assert own["val"]["accuracy"] == best["val/accuracy"] == summary["val_accuracy"]
    assert own["val"]["loss_ce"] == pytest.approx(best["val/loss_ce"], rel=1e-6)
    assert own["test"]["accuracy"] == summary["final_test_accuracy"]
    alone = json.loads((Path(summary["baseline_run"]) / "summary.json").read_text())
    assert own["val"]["alone"]["accuracy"] == alone["val_accuracy"] and not alone.get("findings")
    assert own["val"]["gain"] == summary["val_accuracy"] - alone["val_accuracy"]
    assert [row["accuracy"] for row in own["val"]["teachers"]] == [row["val_accuracy"] for row in summary["teachers"]]
    assert own["test"]["temperature_scaling"]["temperature"] == own["val"]["temperature_scaling"]["temperature"]
    weights = load_file(run / "student" / "model.safetensors")
    trained = [name for name in weights if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert summary["cost"]["parameters"] == sum(weights[name].numel() for name in trained)
    assert summary["environment"]["packages"]["torch"] and "command" in summary["environment"]
    findings = {finding["key"]: finding["value"] for finding in summary["findings"]}
    assert findings["training.learning_rate"] == 0.1  # a hundred times the reference


def test_the_plots_of_a_run(run):
    plots = {path.stem for path in (run / "report").glob("*.png")}
    assert {"training-curves", "method", "mistakes-test", "teacher-weights-test"} <= plots
    assert {f"{name}-{split}" for name in ("reliability", "confusion", "gains") for split in ("val", "test")} <= plots
    confusion = json.loads((run / "report" / "evaluation-test.json").read_text())["confusion"]
    assert sum(map(sum, confusion)) == 270


@pytest.mark.parametrize("more", [(), ("--no-teachers",)])
def test_an_evaluation_finds_the_same_again_and_keeps_the_rest(run, summary, more, capsys):
    evaluate_kd.main(["--checkpoint", str(run), "--split", "test", "--no-wandb", *more])
    assert f"to look at: {run / 'report' / 'index.html'}" in capsys.readouterr().out
    after = json.loads((run / "summary.json").read_text())
    assert after == summary
    told = [key for key, _ in page_of(run).found]
    assert "evaluation.val.accuracy" in told and "findings.0.message" in told


def test_figures_of_other_images_go(run, tmp_path):
    """Those of teachers, which the new evaluation does not have, were of the images of before."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    file = copy / "report" / "evaluation-test.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "images": "of another split"}))
    evaluate_kd.main(["--checkpoint", str(copy), "--split", "test", "--no-wandb", "--no-teachers"])
    found = json.loads(file.read_text())
    assert "teachers" not in found and found["images"] != "of another split"
    assert "teachers" not in json.loads((copy / "summary.json").read_text())["evaluation"]["test"]


@pytest.mark.parametrize("named", [False, True])
def test_the_page_of_a_student_without_its_run_tells_what_is_known(run, tmp_path, named):
    export, more = tmp_path / "an export", ["--config", str(run / "config.yaml")] if named else []
    shutil.copytree(run / "student", export)
    words = ["--checkpoint", str(export), *more]
    evaluate_kd.main([*words, "--no-wandb", "--no-teachers", f"--output_dir={tmp_path}"])
    [page] = tmp_path.glob("evaluation-*/report/index.html")
    text = unescape(page.read_text(encoding="utf-8"))
    lead = text[text.index("<h1") : text.index("<h2")]
    assert "2 teachers" in lead and "epochs" not in lead and "seed" in lead
    below = text[text.index('id="next"') :]
    assert f"python evaluate_kd.py {shlex.join(words)} --split test" in below
    for name in re.findall("<code>([^<]+)</code>", below):
        assert list(page.parent.parent.glob(name)), name


def test_other_checkpoints_leave_the_result_alone(run, summary, capsys):
    evaluate_kd.main(["--checkpoint", str(run / "checkpoints" / "latest"), "--no-wandb", "--no-teachers"])
    assert "to look at" not in capsys.readouterr().out
    assert json.loads((run / "summary.json").read_text()) == summary
