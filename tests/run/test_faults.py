"""Faults that are injected into the real scripts: what was complete stays, and the same command continues."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import kill_campaign
import pytest
from kill_campaign import STUDENTS, Run
from waiting import wait_for_checkpoint

from kd_core import files
from kd_core.errors import UserError
from kd_core.run import checkpoints
from kd_core.run.folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, digits_teachers) -> tuple:
    """The result of a run that nothing happened to."""
    run = Run(tmp_path_factory.mktemp("whole"), digits_teachers, 1, STUDENTS[0])
    run.finish()
    return run.result()


@pytest.fixture
def cut(tmp_path, digits_teachers) -> Run:
    """A run that was killed after it had written a few checkpoints."""
    run = Run(tmp_path, digits_teachers, 1, STUDENTS[0])
    process = begun(run, ".latest.previous")
    time.sleep(random.random() / 4)
    kill_campaign.kill_all(process.pid)
    process.communicate()
    return run


def begun(run: Run, sign: str = "latest") -> subprocess.Popen:
    """The process of a run, once it has written a checkpoint."""
    process = run.start()
    wait_for_checkpoint(run.home / "runs", process, sign)
    return process


def folder_of(run: Run) -> Path:
    [folder] = run.home.glob("runs/run-????????")
    return folder


def output_of(run: Run) -> str:
    """Run to the end; what it printed."""
    process = run.start()
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    return text


# ----------------------------------------------------------------------------------------------------------- killed


def test_killed_runs_resume_bit_for_bit(tmp_path, digits_teachers):
    assert kill_campaign.campaign(tmp_path, digits_teachers, kills=2, seed=1) == 2


def test_a_damaged_checkpoint_falls_back_to_the_previous_one(cut, whole):
    latest = folder_of(cut) / "checkpoints" / "latest"
    data = bytearray((latest / "training.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (latest / "training.pt").write_bytes(data)
    text = output_of(cut)
    assert "checkpoint skipped" in text and "training.pt: damaged (its checksum differs)" in text
    assert not kill_campaign.differences(whole, cut.result())


def test_two_damaged_checkpoints_are_one_message(cut):
    for name in ("latest", ".latest.previous"):
        os.truncate(folder_of(cut) / "checkpoints" / name / "student" / "model.safetensors", 10)
    process = cut.start()
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 2 and "no checkpoint can be read; --fresh begins another run" in text
    assert "Traceback" not in text


def test_half_written_files_of_a_killed_process_are_removed(cut, whole):
    left = folder_of(cut) / "checkpoints" / ".latest.0123abcd"
    left.mkdir()
    (left / "training.pt").write_bytes(b"half")
    output_of(cut)
    assert not left.exists()
    assert not kill_campaign.differences(whole, cut.result())


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGUSR1, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_signal_within_an_epoch_loses_no_step(tmp_path, digits_teachers, whole, number):
    run = Run(tmp_path, digits_teachers, 1, STUDENTS[0])
    process = begun(run)
    process.send_signal(number)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + number, text
    state = json.loads((folder_of(run) / "checkpoints" / "latest" / "state.json").read_text())
    text = output_of(run)
    steps = f" and {state['position']} steps" if state["position"] else ""
    assert f"after epoch {state['epoch']}{steps}\n" in text
    assert not kill_campaign.differences(whole, run.result())
    assert (state["seconds"] > 0) is (state["position"] > 0)
    rows = [json.loads(line) for line in (folder_of(run) / "metrics.jsonl").read_text().splitlines()]
    again = next(row for row in rows if row.get("epoch") == state["epoch"] + 1 and "perf/epoch_time" in row)
    assert again["perf/epoch_time"] > state["seconds"], "the time before the stop counts"


# --------------------------------------------------------------------------------------------------- disks, folders


def test_a_full_disk_is_one_message_and_the_run_resumes_later(tmp_path, cut, whole):
    """No file may grow beyond a size, which is what a full disk looks like to a program: here in a checkpoint."""
    before = sorted(path.name for path in (folder_of(cut) / "checkpoints").iterdir())
    latest = folder_of(cut) / "checkpoints" / "latest"
    most = (latest / "student" / "model.safetensors").stat().st_size + 1000
    assert most < (latest / "training.pt").stat().st_size  # the optimizer's state, which does not fit

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    done = subprocess.run(
        [*cut.command(), "--cache.mode=off"], cwd=ROOT, preexec_fn=limit, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "cannot be written" in done.stderr and "Traceback" not in done.stderr
    assert sorted(path.name for path in (folder_of(cut) / "checkpoints").iterdir()) == before
    output_of(cut)
    assert not kill_campaign.differences(whole, cut.result())


def test_a_folder_that_vanishes_is_one_message(tmp_path, digits_teachers):
    run = Run(tmp_path, digits_teachers, 1, STUDENTS[0])
    process = begun(run)
    folder_of(run).rename(tmp_path / "elsewhere")
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 2, text
    assert "Traceback" not in text and not list(tmp_path.glob("runs/run-*"))
    shutil.rmtree(tmp_path / "elsewhere")


# ----------------------------------------------------------------------------------------------------- several at once


def test_a_second_process_is_refused_and_the_owner_is_named(tmp_path, digits_teachers):
    run = Run(tmp_path, digits_teachers, 1, STUDENTS[0])
    first = begun(run)
    first.send_signal(signal.SIGSTOP)  # it is slow, not dead
    second = run.start()
    text, _ = second.communicate(timeout=120)
    first.send_signal(signal.SIGCONT)
    first.communicate(timeout=300)
    assert second.returncode == 2 and first.returncode == 0
    assert f"is being trained by process {first.pid} on {os.uname().nodename}; --fresh starts a second run" in text


def other_machine(lock: Path) -> None:
    """A lock whose owner ran on another machine, of which nobody can say whether it lives."""
    held = files.held_lock(lock, lambda owner: None)
    text = lock.read_text().replace(f"host={os.uname().nodename}", "host=elsewhere")
    held.release()
    lock.write_text(text)


def test_the_lock_of_a_dead_owner_on_another_machine_is_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LEASE", 2.0)
    other_machine(tmp_path / ".owner")
    began = time.monotonic()
    RunFolder(tmp_path).lock().release()
    assert time.monotonic() - began > 1.9  # it was given the time to show that it lives


def test_the_lock_of_a_live_owner_on_another_machine_is_not_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LEASE", 4.0)
    other_machine(tmp_path / ".owner")
    os.utime(tmp_path / ".owner", (1, 1))
    beat = subprocess.Popen(
        [sys.executable, "-c", "import os, sys, time\nwhile True: os.utime(sys.argv[1]); time.sleep(0.1)",
         str(tmp_path / ".owner")]
    )  # fmt: skip
    try:
        while (tmp_path / ".owner").stat().st_mtime == 1:  # until its heart beats
            time.sleep(0.01)
        with pytest.raises(UserError, match="is being trained by process .* on elsewhere; --fresh"):
            RunFolder(tmp_path).lock()
    finally:
        beat.kill()
        beat.wait()


def test_a_process_that_lost_its_lock_writes_nothing_more(tmp_path, digits_teachers, monkeypatch):
    """Another process takes the lock over, as if this one had been suspended for long."""
    import train_kd

    original, kept = checkpoints.save_latest, {}

    def content(folder: RunFolder) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}

    def robbed(folder, *rest):
        original(folder, *rest)
        (folder.path / ".owner").unlink()
        (folder.path / ".owner").write_text("somebody else")
        kept.update(content(folder))

    monkeypatch.setattr(checkpoints, "save_latest", robbed)
    run = Run(tmp_path, digits_teachers, 1, STUDENTS[0])
    with pytest.raises(UserError, match="another process has taken it over .*; nothing more is written"):
        train_kd.main(run.command()[2:])
    assert kept and content(RunFolder(folder_of(run))) == kept


def test_a_worker_that_dies_takes_the_run_down(tmp_path, digits_teachers):
    run = Run(tmp_path, digits_teachers, 2, STUDENTS[0])
    process = begun(run)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and f"(pid: {children[-1]})" in text and "SIGKILL" in text
