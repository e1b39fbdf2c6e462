"""Workers that share a study."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from sweep_sandbox import Sandbox
from waiting import wait_for

from kd_sweeps.fork_server import start_time
from kd_sweeps.forked import ForkServer
from kd_sweeps.study import STALE_AFTER, SharedStudy, is_trial
from kd_sweeps.sweep_file import read_sweep
from kd_sweeps.trial import Process, Separate


def shared_study(sandbox: Sandbox, journal: str = "study.journal") -> SharedStudy:
    sweep = read_sweep(sandbox.file)
    return SharedStudy(sweep, [], sandbox.folder / journal, 3)


def test_leases(sandbox: Sandbox) -> None:
    """A trial is taken over once, and only if its worker is dead: untouched for a minute, or gone on this host."""
    mine, other = shared_study(sandbox), shared_study(sandbox)
    other._host = "elsewhere"
    trial = other.next_trial(3)
    assert trial and trial.user_attrs["index"] == 0
    second = mine.next_trial(3)
    assert second and second.user_attrs["index"] == 1  # the other worker is alive
    past = time.time() - STALE_AFTER - 5
    os.utime(other._touched, (past, past))
    heir = mine.next_trial(3)
    assert heir and heir.user_attrs["index"] == 0 and heir.user_attrs["continues"] == trial.number
    with pytest.raises(ValueError):
        other.study.tell(trial.number, 1.0)  # too late
    last = mine.next_trial(3)
    assert last and last.user_attrs["index"] == 2  # the continuation has used up a number, not a point
    assert mine.next_trial(3) is None
    last.set_user_attr("lease", {**mine.lease(None), "pid": ended_process()})
    heir = mine.next_trial(3)
    assert heir and heir.user_attrs["index"] == 2


@pytest.mark.skipif(sys.platform != "linux", reason="trials are forked on Linux alone")
@pytest.mark.parametrize(("forked", "began"), [(True, True), (False, True), (False, False)])
def test_a_trial_that_outlives_its_worker_keeps_its_point(forked: bool, began: bool, sandbox: Sandbox) -> None:
    """Until it has ended: it holds its run folder.  Leases of earlier versions lack its start time."""
    shared = shared_study(sandbox)
    trial = shared.next_trial(1)
    assert trial
    trial.set_user_attr("run_id", "abcdefgh")
    log, script = sandbox.folder / "log", sandbox.folder / "sleeper.py"
    script.write_text("import time; print('ready', flush=True); time.sleep(600)")
    server = ForkServer(sandbox.folder / "server.log", modules=["numpy"]) if forked else None
    child: Process = (
        server.start([str(script)], "abcdefgh", log)
        if server
        else Separate([sys.executable, str(script)], "abcdefgh", log)
    )
    wait_for(lambda: log.exists() and "ready" in log.read_text(), "it runs")
    lease = {**shared.lease(child.pid), "pid": ended_process()}
    if not began:
        del lease["began"]
    trial.set_user_attr("lease", lease)
    assert shared.next_trial(1) is None
    child.send(signal.SIGKILL)
    wait_for(lambda: child.poll() is not None, "it ends")
    heir = shared.next_trial(1)
    assert heir and heir.user_attrs["continues"] == trial.number
    if server:
        server.close()


@pytest.mark.skipif(sys.platform != "linux", reason="start times are read on Linux alone")
def test_a_stranger_with_the_number_of_a_trial_does_not_count() -> None:
    began = start_time(os.getpid())
    assert began and is_trial(os.getpid(), began, "abcdefgh") and not is_trial(os.getpid(), began - 1, "abcdefgh")
    zombie = subprocess.Popen(["sleep", "600"])
    began = start_time(zombie.pid)
    assert is_trial(zombie.pid, began, "abcdefgh")
    zombie.kill()
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    assert not is_trial(zombie.pid, began, "abcdefgh")
    zombie.wait()


def ended_process() -> int:
    """The number of a process that has ended."""
    return int(subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True).stdout)


def test_a_worker_that_died_while_deciding_loses_no_point(sandbox: Sandbox) -> None:
    shared = shared_study(sandbox)
    shared.study.ask()  # and no more: no index, no lease
    indices = []
    while trial := shared.next_trial(3):
        indices.append(trial.user_attrs["index"])
    assert indices == [0, 1, 2]


def test_a_sweep_in_another_folder_stops_the_same_trials_in_runs_of_its_own(sandbox: Sandbox) -> None:
    """The ids of runs come from the study's own id."""
    sandbox.sweep({"x": {"values": list(range(20))}}, early_terminate={"type": "hyperband", "min_iter": 1, "eta": 3})
    here, again, there = (shared_study(sandbox, f"{folder}/study.journal") for folder in ("here", "here", "there"))
    assert stopped_trials(here) == stopped_trials(there) != []
    assert here.id == again.id != there.id


def stopped_trials(shared: SharedStudy) -> list[int]:
    """Trials that are stopped after one epoch if each is worse than those before."""
    stopped = []
    while trial := shared.next_trial(20):
        trial.report(-trial.number, 1)
        if trial.should_prune():
            stopped.append(trial.number)
    return stopped
