"""What is printed and written can be read everywhere: on any terminal, and as JSON by any reader."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from warm_process import WarmProcess

from kd_core.comparison.runs import read_folder
from kd_core.files import finite, json_sha256, json_text, write_json, write_text
from kd_core.report import epoch_line
from kd_core.run import folder as checkpoints
from kd_core.run.folder import MetricsFile, RunFolder, read_metrics

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["蚂蚁", "пчела", "cow"]
PLAIN = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "WANDB_MODE": "offline"}
SETTINGS = [
    "--data.source=imagefolder", "--data.batch_size=16", "--model.name=cifar_resnet8", "--kd.type=baseline",
    "--training.max_epochs=2", "--training.learning_rate=0.01", "--teachers=[]", "--wandb.notes=蚂蚁",
]  # fmt: skip


def test_an_epoch_whose_steps_were_all_skipped_is_told():
    row = {"epoch": 2, "train/skipped_steps": 1, "val/accuracy": 0.5, "learning_rate": 0.1, "perf/epoch_time": 3.0}
    line = epoch_line(row, 9, left=21.0, best=False)
    assert line == "epoch 2/9  loss - (every step was skipped)  val 50.00%  lr 0.1  3.0 s  left 0:21"


def call(*words: object) -> subprocess.CompletedProcess[str]:
    """A script on a terminal that knows ASCII alone, without Python's start."""
    process = WarmProcess([*map(str, words)], env={**os.environ, **PLAIN})
    text, _ = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, text, text)


def call_anew(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The same in a new Python, which chooses the encodings by itself."""
    command = [sys.executable, script, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **PLAIN}, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run whose class names ASCII lacks, and whose validation images are of one class: no AUROC."""
    where = tmp_path_factory.mktemp("names")
    for label, name in enumerate(NAMES):
        for split, count in (("train", 20), ("val", 8 if label == 1 else 0)):
            for number in range(count):
                path = where / "data" / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                noise = np.random.default_rng(100 * label + number).integers(0, 60, (32, 32, 3))
                Image.fromarray((60 * label + noise).astype(np.uint8)).save(path)
    (where / "empty.yaml").write_text("name: names\nevaluation: {report: true}\n")
    done = call(
        "train_kd.py", "--config", where / "empty.yaml", *SETTINGS, f"--data.path={where / 'data'}",
        f"--output_dir={where / 'runs'}", f"--cache.dir={where / 'cache'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return next((where / "runs").glob("names-*"))


def strict(path: Path) -> list:
    """The JSON values of a file, as readers take them that know no NaN."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{path}: {word}")

    lines = path.read_bytes().splitlines() if path.suffix == ".jsonl" else [path.read_bytes()]
    return [json.loads(line, parse_constant=refuse) for line in lines]


def test_names_that_the_terminal_cannot_encode_are_escaped(folder, tmp_path):
    picture = folder.parent.parent / "data" / "train" / NAMES[0] / "0.png"
    told = call_anew("evaluate_kd.py", "--checkpoint", folder, "--images", picture, "--csv", tmp_path / "seen.csv")
    assert told.returncode == 0 and "\\u8682\\u8681" in told.stdout, told.stderr
    assert NAMES[0] in (tmp_path / "seen.csv").read_text(encoding="utf-8")
    assert NAMES[0] in (folder / "report" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "words",
    [
        ["train_kd.py", "--名=1"],
        ["compare_kd.py", "名"],
        ["sweeps/run_local.py", "名.yaml"],
        ["-m", "kd_core.tracking", "名"],
    ],
)
def test_messages_with_such_names_are_printed(words):
    done = call(*words)
    assert done.returncode == 2 and "\\u540d" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_every_json_file_of_a_run_is_json(folder):
    evaluated = call("evaluate_kd.py", "--checkpoint", folder, "--no-wandb")
    assert evaluated.returncode == 0, evaluated.stderr
    files = sorted(path for path in folder.rglob("*.json*") if path.suffix in (".json", ".jsonl"))
    assert {"summary.json", "metrics.jsonl", "evaluation-val.json", "state.json", "metrics.json", "identity.json"} <= {
        path.name for path in files
    }
    for path in files:
        strict(path)
    (summary,), rows = strict(folder / "summary.json"), strict(folder / "metrics.jsonl")
    assert summary["val_auroc"] is None and [row["val/auroc"] for row in rows if "val/auroc" in row] == [None, None]


def test_readers_cope_with_null(folder, tmp_path):
    run = read_folder(folder)
    assert run.figure("val/auroc") is None and run.figure("val/accuracy") is not None
    compared = call("compare_kd.py", folder, "--metric", "val/accuracy", "--also", "val/ece", "--out", tmp_path)
    assert compared.returncode == 0, compared.stderr
    strict(tmp_path / "comparison.json")


VALUES = {
    "a": float("nan"),
    "b": [float("inf"), (1.5, -float("inf"))],
    "c": {"d": np.float64("nan")},
    "e": True,
    "f": "x",
}
READ = {"a": None, "b": [None, [1.5, None]], "c": {"d": None}, "e": True, "f": "x"}


def test_what_is_not_finite_is_null(tmp_path):
    assert finite(VALUES) == READ and json.loads(json_text(VALUES)) == READ
    write_json(tmp_path / "x.json", VALUES)
    assert strict(tmp_path / "x.json") == [READ]
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append(VALUES)
    file.close()
    assert strict(tmp_path / "metrics.jsonl") == read_metrics(tmp_path / "metrics.jsonl") == [READ]


@pytest.mark.parametrize("older", [False, True])
def test_a_checkpoint_with_what_is_not_finite_is_whole(tmp_path, older):
    """`older` ones hold NaN, as they were written before."""
    run, state = RunFolder(tmp_path / "run"), {"epoch": 3, "best": {"val/auroc": float("nan"), "epoch": 2}}
    checkpoints.save_latest(run, lambda path: path.mkdir(), {}, state)
    if older:
        checksums = strict(run.checkpoint("latest") / "state.json")[0]["checksums"]
        checksums["state.json"] = json_sha256(state)
        text = json.dumps({**state, "checksums": checksums})
        (run.checkpoint("latest") / "state.json").write_text(text)
    found = checkpoints.load_latest(run, pytest.fail)
    assert found and found[2]["epoch"] == 3 and finite(found[2]["best"]) == {"val/auroc": None, "epoch": 2}


def test_text_with_names_that_are_not_utf8_is_written(tmp_path):
    write_text(tmp_path / "x.html", "caf\udce9 蚂蚁")
    assert (tmp_path / "x.html").read_text(encoding="utf-8") == "caf\\udce9 蚂蚁"
