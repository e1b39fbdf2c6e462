"""What stands in a run folder is believed only if it is whole."""

import json
import os
import shutil
import threading
from contextlib import ExitStack
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from waiting import wait_for

from kd_core.config import Config, TrainingConfig
from kd_core.errors import UserError
from kd_core.run import folder as checkpoints
from kd_core.run.checkpoints import Checkpoints, Progress
from kd_core.run.folder import RunFolder

STATE = {"epoch": 3, "best": {"epoch": 2, "value": 0.25}}


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "run")
    for epoch in (2, 3):
        checkpoints.save_latest(run, lambda path: path.mkdir(), {"a": torch.ones(3)}, {**STATE, "epoch": epoch})
    return run


def test_a_run_on_other_data_prints_a_notice(tmp_path):
    """Keys that a run of an earlier version lacks are no difference where they say nothing."""
    own = {"output_dir": str(tmp_path), "data": {"source": "digits"}, "kd": {"type": "baseline"}}
    config = Config.model_validate(own)
    old = checkpoints.create_run(config, "a" * 64, "ab12cd34")
    settings = (old.path / "config.yaml").read_text()
    lines = [line for line in settings.splitlines() if line.strip() not in ("import: []", "test_size: null")]
    assert len(lines) == len(settings.splitlines()) - 2
    (old.path / "config.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError) as error:
        checkpoints.open_run(config, "b" * 64, str(old.path))
    assert "the data: fingerprint aaaaaaaaaaaa there, bbbbbbbbbbbb here" in str(error.value)
    assert "import" not in str(error.value) and "test_size" not in str(error.value)


def test_what_was_saved_is_loaded(run):
    path, training, state = checkpoints.load_latest(run, pytest.fail)
    assert path == run.checkpoint("latest") and state == STATE and training["a"].equal(torch.ones(3))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"value": 0.25', '"value": 0.75'),
        lambda text: text.replace('"epoch": 3', '"epoch": 9'),
        lambda text: text.replace('"checksums"', '"checksum"'),
        lambda text: "[]",
        lambda text: json.dumps({**json.loads(text), "checksums": []}),
        lambda text: "[" * 100_000,
        lambda text: "9" * 5000,
    ],
)
def test_a_changed_state_falls_back_to_the_previous_checkpoint(run, change):
    file = run.checkpoint("latest") / "state.json"
    file.write_text(change(file.read_text()))
    notices = []
    assert checkpoints.load_latest(run, notices.append)[2]["epoch"] == 2
    assert len(notices) == 1 and f"checkpoint skipped: {file}: damaged" in notices[0]


def test_checkpoints_without_a_checksum_of_the_state_are_resumed(run):
    file = run.checkpoint("latest") / "state.json"
    state = json.loads(file.read_text())
    del state["checksums"]["state.json"]
    file.write_text(json.dumps(state))
    assert checkpoints.load_latest(run, pytest.fail)[2] == STATE


@pytest.mark.parametrize("line", ["3", "[1]", "{", '{"a": 1', "9" * 5000, "\x00"])
def test_damaged_rows_are_named(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{{"a": 1}}\n{line}\n')
    with pytest.raises(UserError, match="metrics.jsonl: line 2: damaged, not a JSON object"):
        checkpoints.read_metrics(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize("text", ["[]", "3", "{", "\x00"])
def test_a_damaged_summary_is_named_or_skipped(tmp_path, text, capsys):
    config = Config.model_validate({"output_dir": str(tmp_path)})
    run = checkpoints.create_run(config, "abc", "ab12cd34")
    run.summary_file.write_text(text)
    assert (
        checkpoints.find_run(config, "abc") is None
        and f"skipped: {run.summary_file}: damaged" in capsys.readouterr().out
    )
    with pytest.raises(UserError, match="summary.json: damaged"):
        checkpoints.open_run(config, "abc", str(run.path))


def test_runs_that_differ_only_in_the_datas_fingerprint_are_reported(tmp_path, capsys):
    def start(fingerprint, resume="auto", **settings):
        config = Config.model_validate({"output_dir": str(tmp_path), **settings})
        return checkpoints.find_or_create(config, fingerprint, resume, None), capsys.readouterr().out

    old, new = "0123456789ab" + "0" * 52, "ba9876543210" + "0" * 52
    first, said = start(old)
    assert said == ""
    other, said = start(old, training={"seed": 1})
    assert said == "" and other.path != first.path
    second, said = start(new)
    assert second.path != first.path and said.count("\n") == 1  # of one run folder, not of the one with another seed
    assert said.startswith(f"{first.path}: was trained with these settings on data with fingerprint 0123456789ab, ")
    assert "these have ba9876543210, so this is another run" in said
    assert f"python compare_kd.py {tmp_path} --same-data 0123456789ab=ba9876543210" in said
    assert start(new) == (second, "")  # which goes on: it has been said
    assert start(new, "never")[1] == said
    first.identity_file.write_text("{")
    assert "skipped: " in start("f" * 64)[1]


def test_a_run_is_found_wherever_the_same_images_lie(tmp_path, capsys):
    def settings(path, **more):
        data = {"source": "imagefolder", "path": path, "unlabeled": {"source": "imagefolder", "path": path + "/more"}}
        return Config.model_validate({"output_dir": str(tmp_path), "data": data, **more})

    def start(path, resume="auto", images="a" * 64, **more):
        return checkpoints.find_or_create(settings(path, **more), images, resume, None)

    run = start("/scratch/job1")
    capsys.readouterr()
    assert start("/scratch/job2").path == run.path
    assert capsys.readouterr().out == (
        f"{run.path}: is the run with these settings and the same images, from elsewhere: data.path: '/scratch/job1' "
        "there, '/scratch/job2' here, data.unlabeled.path: '/scratch/job1/more' there, '/scratch/job2/more' here\n"
    )
    assert start("/scratch/job2", str(run.path)).path == run.path
    capsys.readouterr()
    assert start("/scratch/job1").path == run.path and capsys.readouterr().out == ""
    run.write_summary(final_test_accuracy=0.5)
    tested_elsewhere = start("/scratch/job3")  # whose test images may be others
    assert tested_elsewhere.path != run.path and start("/scratch/job1").path == run.path
    shutil.rmtree(tested_elsewhere.path)
    capsys.readouterr()
    others = [
        start("/scratch/job2", images="b" * 64), start("/scratch/job2", training={"seed": 1}),
        start("/scratch/job2", "never"),
    ]  # fmt: skip
    assert len({other.path for other in [run, *others]}) == 4
    assert start("/scratch/job2").path == others[2].path, "that of the same place comes first"
    with pytest.raises(UserError, match="training.seed: 0 there, 2 here"):
        start("/scratch/job2", str(run.path), training={"seed": 2})


def test_an_evaluation_does_not_change_which_run_goes_on(tmp_path):
    config = Config.model_validate({"output_dir": str(tmp_path)})
    first, second = (checkpoints.find_or_create(config, "a" * 64, "never", None) for _ in range(2))
    os.utime(first.identity_file, (1, 1))
    os.utime(second.summary_file, (1, 1))
    first.write_summary(evaluation={})
    assert checkpoints.find_run(config, "a" * 64) == second
    second.identity_file.unlink()  # as earlier versions left it
    assert checkpoints.find_run(config, "a" * 64) == first


def test_a_mistake_removes_no_folder_that_holds_checkpoints(run):
    """Even without the rows of its metrics."""
    run.write_summary(status="running")
    with ExitStack() as cleanup:
        cleanup.callback(run.lock().release)
        run.record_failure(UserError("what is wrong"))
        assert run.summary()["error"] == "what is wrong" and run.checkpoint("latest").is_dir()
        shutil.rmtree(run.path / "checkpoints")
        run.record_failure(UserError("what is wrong"))
        assert not run.path.exists()


def test_who_have_the_same_images_train_a_teacher_once(tmp_path):
    def lock(path, images="a" * 64):
        data = {"source": "imagefolder", "path": path}
        config = Config.model_validate({"output_dir": str(tmp_path), "data": data})
        return checkpoints.teacher_lock(config, images, owners.append)

    owners = []
    held = [lock("/scratch/job1"), lock("/scratch/job1", "b" * 64)]
    thread = threading.Thread(target=lambda: held.append(lock("/scratch/job2")))
    thread.start()
    wait_for(lambda: owners, "the notice")
    held[0].release()
    thread.join()
    for one in held[1:]:
        one.release()
    assert len(held) == 3 and len(owners) == 1


def test_what_cannot_go_on_says_what_begins_it_anew(tmp_path):
    """Also for teachers and trials, which --fresh does not begin anew."""
    run = RunFolder(tmp_path / "teacher")
    checkpoints.save_latest(run, lambda path: path.mkdir(), {}, asdict(Progress(processes=1)))
    two = SimpleNamespace(say=pytest.fail, accelerator=SimpleNamespace(num_processes=2))
    parts = dict.fromkeys(("network", "optimizer", "method", "meter"))
    anew = "--fresh begins another run; a teacher or a sweep's trial begins anew if you move its folder away and .*"
    with pytest.raises(UserError, match=f"trained by 1 process.*this is 2: .*{anew}"):
        Checkpoints(run, two, TrainingConfig(), **parts).load()
    (run.checkpoint("latest") / "training.pt").write_bytes(b"")
    with pytest.raises(UserError, match=f"teacher: no checkpoint can be read; {anew}"):
        checkpoints.load_latest(run, str)
    run.metrics_file.write_bytes(b"")
    with pytest.raises(UserError, match=f"the checkpoint expects 9 bytes; {anew}"):
        checkpoints.MetricsFile(run.metrics_file, 9)
    run.metrics_file.write_text("{")
    with pytest.raises(UserError, match=anew):
        checkpoints.read_metrics(run.metrics_file)


def test_a_trial_whose_settings_changed_does_not_continue_the_old_weights(tmp_path):
    """A sweep gives it the same id again, and with it the same folder."""

    def start(resume="auto", **settings):
        config = Config.model_validate({"output_dir": str(tmp_path), **settings})
        return checkpoints.find_or_create(config, "a" * 64, resume, "ab12cd34")

    run = start()
    assert start(training={"learning_rate": 0.2}).path == run.path  # nothing has been trained yet
    run = start()
    checkpoints.save_latest(run, lambda path: path.mkdir(), {"a": torch.ones(3)}, STATE)
    assert start() == run
    identity = run.identity_file.read_bytes()
    with pytest.raises(UserError) as error:
        start(training={"learning_rate": 0.2})
    assert "training.learning_rate: 0.001 there, 0.2 here" in str(error.value) and str(run.path) in str(error.value)
    assert start("never") == run  # as a sweep's command may say: an interrupted trial goes on all the same
    assert run.identity_file.read_bytes() == identity and checkpoints.load_latest(run, pytest.fail)[2] == STATE


def test_rows_that_a_checkpoint_counts_on_are_synced_before_it(run, monkeypatch):
    synced = []
    monkeypatch.setattr(checkpoints, "sync_file", lambda path: synced.append((path, run.checkpoint("latest").exists())))
    run.metrics_file.write_text("{}\n")
    checkpoints.save_latest(run, lambda path: path.mkdir(), {}, STATE)
    assert [path for path, _ in synced] == [run.metrics_file]
