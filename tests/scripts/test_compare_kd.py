"""compare_kd.py on real runs, and several seeds by one command."""

import os
import re
import runpy
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import compare_kd
import kd_methods
import train_kd
from kd_core.comparison import runs
from kd_core.errors import UserError
from kd_core.files import read_object, write_json
from kd_core.loop.signals import Stopped
from kd_core.run.folder import read_metrics

ROOT = Path(__file__).resolve().parents[2]
LABEL_ONLY = kd_methods.LABEL_ONLY
METHOD = next(name for name in kd_methods.names() if name != LABEL_ONLY)


def words(home: Path, *more: str, teachers: str = "[]", method: str = LABEL_ONLY) -> list[str]:
    """A tiny run on digits; with `teachers` also the student alone."""
    return [
        f"--output_dir={home / 'runs'}", f"--cache.dir={home / 'cache'}", "--no-wandb", "--data.train_size=320",
        f"--teachers={teachers}", f"--kd.type={method}", "--training.max_epochs=2",
        "--evaluation.report=false", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Two seeds of a student alone and of one with a teacher, and the teacher, in runs/."""
    home = tmp_path_factory.mktemp("compare")
    (home / "teacher.yaml").write_text("training: {max_epochs: 3, learning_rate: 4e-3}\ndata: {batch_size: 32}\n")
    teachers = f"[{{model: test_resnet, img_size: 32, train: {home / 'teacher.yaml'}}}]"
    train_kd.main(words(home, "--seeds=0,1", f"--name={METHOD}", teachers=teachers, method=METHOD))
    return home


def folders(home: Path) -> dict[tuple[str, int], Path]:
    """(method, seed) -> run folder of the students."""
    found = {}
    for path in (home / "runs").glob(f"{METHOD}-*"):
        summary = read_object(path / "summary.json")
        found[summary["kd_type"], summary["seed"]] = path
    return found


def compared(capsys, *arguments: str) -> str:
    capsys.readouterr()
    compare_kd.main([*arguments])
    return capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------- --seeds


def without_times(folder: Path) -> list[dict]:
    timed = ("perf/", "train/step_time", "train_step/step_time")
    rows = read_metrics(folder / "metrics.jsonl")
    return [{key: value for key, value in row.items() if not key.startswith(timed)} for row in rows]


def test_seeds_train_what_separate_commands_would(home, tmp_path):
    assert set(folders(home)) == {(method, seed) for method in (METHOD, LABEL_ONLY) for seed in (0, 1)}
    config = folders(home)[METHOD, 1] / "config.yaml"
    alone = [f"--output_dir={tmp_path}", "--training.seed=1", "--training.compare_with_baseline=false", "--no-wandb"]
    shutil.copytree(next((home / "runs").glob("teacher-*")), tmp_path / "teacher-copy")
    train_kd.main(["--config", str(config), *alone])
    [again] = tmp_path.glob(f"{METHOD}-*")
    assert without_times(again) == without_times(folders(home)[METHOD, 1])
    assert without_times(again) != without_times(folders(home)[METHOD, 0])


def test_finished_seeds_are_found_again(home, capsys):
    before = set((home / "runs").iterdir())
    capsys.readouterr()
    config = str(folders(home)[METHOD, 0] / "config.yaml")
    train_kd.main(["--config", config, "--no-wandb", "--seeds", "1,0"])
    text = capsys.readouterr().out
    assert set((home / "runs").iterdir()) == before and text.count("already finished") == 4
    [command] = re.findall(r"^compare: python compare_kd.py (.*)$", text, re.MULTILINE)
    assert command.split() == [str(folders(home)[key]) for key in
                               ((LABEL_ONLY, 1), (METHOD, 1), (LABEL_ONLY, 0), (METHOD, 0))]  # fmt: skip
    values = [100 * read_object(folders(home)[METHOD, seed] / "summary.json")["best_val_accuracy"] for seed in (1, 0)]
    shown = f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"
    assert re.search(rf"^{METHOD} +2 +{re.escape(shown)} ", text, re.MULTILINE)


def test_a_signal_stops_all_seeds_and_the_same_command_continues(tmp_path, monkeypatch, capsys):
    given = words(tmp_path, "--seeds=0,1", "--name=s")
    epochs = train_kd.epochs

    def interrupted(*stages):
        for row in epochs(*stages):
            if len(list((tmp_path / "runs").iterdir())) == 2 and row["epoch"] == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield row

    with monkeypatch.context() as patched:
        patched.setattr(train_kd, "epochs", interrupted)
        with pytest.raises(Stopped):
            train_kd.main(given)
    states = [read_object(path)["status"] for path in (tmp_path / "runs").glob("*/summary.json")]
    assert sorted(states) == ["finished", "preempted"]
    text = compared(capsys, str(tmp_path / "runs"))
    assert re.search(r"s-\w+: has not finished \(status 'preempted'\)", text)
    train_kd.main(given)
    found = [read_object(path) for path in (tmp_path / "runs").glob("*/summary.json")]
    assert sorted(one["seed"] for one in found) == [0, 1] and {one["status"] for one in found} == {"finished"}
    text = capsys.readouterr().out
    assert "already finished" in text and "resuming" in text and "compare: python compare_kd.py" in text


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["--seeds=0,x"], "--seeds: is '0,x', expected different whole numbers below 2.31, such as 0,1,2"),
        (["--seeds=1,1"], "--seeds: is '1,1', expected different"),
        (["--seeds=-1"], "--seeds: is '-1', expected different"),
        (["--seeds="], "--seeds: is '', expected different"),
        (["--seeds=2147483648"], "--seeds: is '2147483648', expected different"),
        (["--seeds=1,2", "--training.seed=3"], "--seeds: replaces training.seed; give only one of them"),
        (["--seeds=1,2", "--resume=runs/x"], "--seeds: one run folder cannot be continued for all"),
    ],
)
def test_seeds_that_are_none(given, text):
    with pytest.raises(UserError, match=text):
        train_kd.main(given)


@pytest.mark.parametrize("variable", ["KD_TRIAL", "WANDB_SWEEP_ID"])
def test_a_trial_is_one_run(variable, monkeypatch):
    monkeypatch.setenv(variable, "testtest")
    with pytest.raises(UserError, match="--seeds: not in a sweep's trial"):
        train_kd.main(["--seeds=0,1"])


# ------------------------------------------------------------------------------------------------- compare_kd.py


def test_a_folder_of_runs(home, capsys, tmp_path):
    text = compared(capsys, str(home / "runs"), "--also=val/loss_ce", f"--out={tmp_path / 'out'}")
    found = read_object(tmp_path / "out" / "comparison.json")
    [one] = found["sets"]
    values = {
        method: [read_object(folders(home)[method, seed] / "summary.json")["best_val_accuracy"] for seed in (0, 1)]
        for method in (LABEL_ONLY, METHOD)
    }
    assert [(row["label"], row["method"]) for row in one["groups"]] == [("alone", LABEL_ONLY), (METHOD, METHOD)]
    for row in one["groups"]:
        assert [seed["value"] for seed in row["seeds"]] == values[row["method"]]
        rows = {seed: read_metrics(folders(home)[row["method"], seed] / "metrics.jsonl") for seed in (0, 1)}
        times = [sum(entry.get("perf/epoch_time", 0) for entry in every) for every in rows.values()]
        assert row["cost"]["training_seconds"] == pytest.approx(np.mean(times))
    test = stats.ttest_rel(values[METHOD], values[LABEL_ONLY])
    assert one["groups"][1]["against_baseline"]["p"] == pytest.approx(test.pvalue)
    assert one["title"] == "test_resnet -> test_vit"
    teacher = next((home / "runs").glob("teacher-*"))
    assert f"{teacher}: a teacher that was trained on demand" in text
    assert "alone" in text and "against alone [95%]" in text and "val/loss_ce" in text
    assert (tmp_path / "out" / "comparison.html").read_text().count("data:image/png;base64,") == 2


def test_a_teacher_that_is_named_is_compared(home, capsys):
    teacher = next((home / "runs").glob("teacher-*"))
    text = compared(capsys, str(home / "runs"), str(teacher))
    assert "set 2: test_resnet" in text and "left out" not in text
    assert "model.name: test_vit in 1; test_resnet in 2" in text


def test_a_papers_table_of_real_runs(home, capsys):
    text = compared(capsys, str(home / "runs"), "--rows=kd.type", "--cols=pair")
    teacher = read_object(next((home / "runs").glob("teacher-*")) / "summary.json")
    assert re.search(rf"^teacher +{100 * teacher['best_val_accuracy']:.2f}$", text, re.MULTILINE)
    assert re.search(rf"^{METHOD} .* \(2\)$", text, re.MULTILINE) and "missing" not in text


@pytest.fixture
def copies(home, tmp_path) -> Path:
    """A folder of copies of two runs, to be damaged."""
    for seed in (0, 1):
        shutil.copytree(folders(home)[METHOD, seed], tmp_path / "runs" / f"run{seed}")
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("summary.json", None, "has no summary.json"),
        ("config.yaml", None, "has no config.yaml"),
        ("summary.json", b"{", "damaged, not valid JSON"),
        ("summary.json", b"[1]", "damaged, holds a list"),
        ("summary.json", b"\xff", "not UTF-8 text"),
        ("config.yaml", b"kd: {type: nothing}", "unknown method 'nothing'"),
        ("config.yaml", b"a: &a [1]\nb: *a", "aliases"),
        ("metrics.jsonl", b"{}\nnonsense\n", "line 2: damaged"),
    ],
)
def test_damaged_runs_are_left_out_with_the_reason(copies, capsys, file, content, reason):
    path = copies / "run1" / file
    path.unlink() if content is None else path.write_bytes(content)
    text = compared(capsys, str(copies))
    assert re.search(rf"run1: .*{re.escape(reason)}", text) and re.search(rf"^{METHOD} +1 ", text, re.MULTILINE)


@pytest.mark.parametrize(
    "identity", ["3", "{}", '{"data": [], "model": {}, "training": {}, "kd": {}, "teachers": []}', "DEEP", "[" * 9**5]
)
def test_settings_that_are_none_are_damage(copies, capsys, identity):
    path = copies / "run1" / "identity.json"
    deep = path.read_text().replace('"recipe"', f'"x": {"[" * 400}{"]" * 400}, "recipe"')
    path.write_text(identity.replace("DEEP", deep))
    assert re.search(r"run1: .*identity.json: damaged", compared(capsys, str(copies)))


def test_runs_of_an_older_version_are_identified_by_their_settings(copies):
    """Earlier versions did not record the identity; the recipe of the teacher must still be there."""
    before = runs.read_folder(copies / "run1").identity
    (copies / "run1" / "identity.json").unlink()
    assert runs.read_folder(copies / "run1").identity == before


def test_a_recipe_that_changed_later_does_not_make_runs_equal(copies, capsys):
    """What shaped a run is what its teacher's recipe said then."""
    identity = read_object(copies / "run1" / "identity.json")
    identity["teachers"][0]["train"]["training"]["max_epochs"] = 50
    write_json(copies / "run1" / "identity.json", identity)
    assert "teachers.0.train.training.max_epochs: 3 in 1; 50 in 2" in compared(capsys, str(copies))


def test_the_same_run_twice_counts_once(copies, capsys):
    text = compared(capsys, str(copies), str(copies / "run1"))
    assert re.search(rf"^{METHOD} +2 ", text, re.MULTILINE)
    shutil.copytree(copies / "run1", copies / "run2")
    assert f"run2: the same run as {copies / 'run1'}" in compared(capsys, str(copies))


def test_runs_on_data_declared_the_same(copies, capsys):
    identity = read_object(copies / "run1" / "identity.json")
    write_json(copies / "run1" / "identity.json", {**identity, "images": "0f" * 32})
    words = (str(copies), f"--same-data={identity['images'][:8]}=0F0F0F0F")
    assert "the data's fingerprints differ" in compared(capsys, str(copies))
    text = compared(capsys, *words)
    assert re.search(rf"^{METHOD} +2 ", text, re.MULTILINE) and "are treated as the same" in text


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([], "say what to compare"),
        (["RUNS", "--same-data=abc=def"], "--same-data: is 'abc=def', expected two fingerprints, A=B"),
        (["RUNS", "--same-data=01234567"], "--same-data: is '01234567', expected two fingerprints, A=B"),
        (["RUNS", "--same-data=01234567=89abcdef"], "--same-data: 01234567: no run's data have such a fingerprint"),
        (["nowhere"], "nowhere: no such folder; expected run folders"),
        (["tests/nowhere"], "tests/nowhere: no such folder"),
        (["docs"], "docs: holds no run folder"),
        (["README.md"], "README.md: no such folder"),
        (["RUNS", "--rows=kd.type"], "--rows and --cols: one needs the other"),
        (["RUNS", "--rows=kd.type", "--cols=pair", "--also=val/auroc"], "--also: cannot be used with"),
        (["RUNS", "--confidence=high"], "--confidence: is 'high', a number"),
        (["RUNS", "--confidence=2"], "--confidence: is 2, must lie between 0 and 1"),
        (["RUNS", "--metric=val/typo"], "--metric: val/typo: no run has such a metric; there are .*val/accuracy"),
        (["RUNS", "--baseline=typo"], "--baseline: no group is called 'typo'; there are aekd, aekd-alone, alone"),
        (["RUNS", "--margin=wide"], "--margin: is 'wide', a number such as 0.5"),
        (["RUNS", "--rows=kd.type", "--cols=pair", "--pooled", "--vary=teachers"], "--vary, --pooled: cannot be used"),
        (["RUNS", "--record=runs"], "--record: is '.*runs', expected the name of a .json file"),
        (["RUNS", "--typo"], "unrecognized arguments: --typo; --help lists all"),
        (["RUNS", "--out=README.md"], "--out: cannot write to README.md"),
    ],
)
def test_bad_input(home, given, text, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=text):
        compare_kd.main([str(home / "runs") if word == "RUNS" else word for word in given])


def test_a_mistake_is_one_message_and_status_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare_kd.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(ROOT / "compare_kd.py"), run_name="__main__")
    assert capsys.readouterr().err.startswith(f"compare_kd.py: {tmp_path}: holds no run folder")


def test_wandb_that_cannot_be_asked(monkeypatch):
    def refuse(**options):
        raise ValueError("401: verify credentials")

    monkeypatch.setattr("wandb.Api", refuse)
    with pytest.raises(UserError, match="entity/project: no such folder, and as a name at W&B: W&B refuses the cred"):
        compare_kd.main(["entity/project"])
