"""Trials forked from one process: output, statuses, signals, isolation, and no thread but one."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import wait_for

from kd_sweeps.forked import Forked, ForkServer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="trials are forked on Linux alone")
SCRIPT = """
import os, random, signal, sys, time
print(os.environ["KD_TRIAL"], sys.argv[1:], os.getpgrp() == os.getpid(), sys.stdin.read() == "", flush=True)
print(random.random(), file=sys.stderr, flush=True)
what = sys.argv[1]
if what == "sleep":
    signal.signal(signal.SIGTERM, lambda *_: (print("asked to end", flush=True), sys.exit(143)))
    print("sleeping", flush=True)
    while True:
        time.sleep(0.05)
if what == "stay":
    signal.signal(signal.SIGTERM, lambda *_: print("asked to end", flush=True))
    print("sleeping", flush=True)
    while True:
        time.sleep(0.05)
if what == "die":
    os.kill(os.getpid(), signal.SIGSEGV)
sys.exit(int(what))
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ForkServer]:
    (tmp_path / "toy.py").write_text(SCRIPT)
    server = ForkServer(tmp_path / "server.log", modules=["numpy"])
    yield server
    server.close()


def start(server: ForkServer, tmp_path: Path, what: str, run_id: str = "abc") -> Forked:
    return server.start([str(tmp_path / "toy.py"), what], run_id, tmp_path / f"{run_id}.log")


def ended(process: Forked) -> int:
    wait_for(lambda: process.poll() is not None, "the process ends")
    status = process.poll()
    assert status is not None
    return status


def until_it_sleeps(log: Path) -> None:
    wait_for(lambda: log.exists() and "sleeping" in log.read_text(), "it is ready")


def test_a_child_runs_the_script_as_python_does(server: ForkServer, tmp_path: Path) -> None:
    assert [ended(start(server, tmp_path, what)) for what in ("0", "3", "die")] == [0, 3, -signal.SIGSEGV]
    lines = (tmp_path / "abc.log").read_text().splitlines()  # one after another, as a trial that is continued
    assert lines[0::2] == [f"abc [{what!r}] True True" for what in ("0", "3", "die")]
    assert len(set(lines[1::2])) == 3  # each draws for itself
    assert (tmp_path / "server.log").read_text() == ""


def test_children_run_at_the_same_time_and_get_their_own_signals(server: ForkServer, tmp_path: Path) -> None:
    one, two, three = (start(server, tmp_path, "sleep", name) for name in "abc")
    for name in "abc":
        until_it_sleeps(tmp_path / f"{name}.log")
    assert one.poll() is two.poll() is three.poll() is None
    one.send(signal.SIGTERM)
    two.send(signal.SIGKILL)
    assert (ended(one), ended(two), three.poll()) == (143, -signal.SIGKILL, None)
    one.send(signal.SIGTERM)  # has ended: nothing happens
    three.send(signal.SIGTERM)
    assert ended(three) == 143


def test_descriptors_and_threads_stay_as_many(server: ForkServer, tmp_path: Path) -> None:
    def held() -> tuple[int, int]:
        return tuple(len(os.listdir(f"/proc/{server.pid}/{kind}")) for kind in ("fd", "task"))  # type: ignore[return-value]

    ended(start(server, tmp_path, "0"))
    before = held()
    for _ in range(20):
        ended(start(server, tmp_path, "0"))
    assert held() == before and before[1] == 1


def test_without_the_server_children_end_gracefully(server: ForkServer, tmp_path: Path) -> None:
    child = start(server, tmp_path, "sleep")
    until_it_sleeps(tmp_path / "abc.log")
    os.kill(server.pid, signal.SIGKILL)
    wait_for(lambda: not os.path.exists(f"/proc/{server.pid}/fd/0"), "the server has ended")
    child.send(signal.SIGTERM)  # before the worker has noticed
    assert ended(child) == -signal.SIGTERM  # a status after which a worker continues the trial
    wait_for(lambda: "asked to end" in (tmp_path / "abc.log").read_text(), "it gets SIGTERM")
    with pytest.raises(OSError, match="the process that trials are forked from has ended|Broken pipe"):
        start(server, tmp_path, "0")


def test_a_child_has_not_ended_because_the_server_has(server: ForkServer, tmp_path: Path) -> None:
    """It still holds its run folder, so nothing may be started there."""
    child = start(server, tmp_path, "stay")
    until_it_sleeps(tmp_path / "abc.log")
    os.kill(server.pid, signal.SIGKILL)
    wait_for(lambda: "asked to end" in (tmp_path / "abc.log").read_text(), "it gets SIGTERM")
    assert child.poll() is None
    child.send(signal.SIGKILL)  # as a worker does after KILL_AFTER
    assert ended(child) == -signal.SIGTERM


def test_a_number_that_comes_again_is_another_child(server: ForkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(*answers: dict[str, int]) -> int | None:
        os.write(write, "".join(json.dumps(answer) + "\n" for answer in answers).encode())
        return server.status(7)

    read, write = os.pipe()
    with open(read, "rb", buffering=0) as file, monkeypatch.context() as patch:
        patch.setattr(server, "_answers", file)
        assert told({"started": 7}, {"ended": 7, "status": 3}) == 3  # at once
        assert told({"started": 7}) is None
        assert told({"ended": 7, "status": 0}, {"started": 7}) is None
        assert told({"ended": 7, "status": 0}) == 0
        os.close(write)
        assert server.status(7) == 0  # what the server told before it ended


def test_an_import_that_fails_is_named(tmp_path: Path) -> None:
    server = ForkServer(tmp_path / "server.log", modules=["no_such_module"])
    with pytest.raises(OSError, match="has ended: ModuleNotFoundError: No module named 'no_such_module'"):
        while True:  # until the server has ended, a request may still be written
            server.start(["x.py"], "abc", tmp_path / "abc.log")
    server.close()


def test_what_trials_import_starts_no_thread(tmp_path: Path) -> None:
    """A fork takes along one thread alone, and locks that another one holds stay locked."""
    (tmp_path / "toy.py").write_text("import sys; print({'torch', 'timm', 'wandb'} <= sys.modules.keys())")
    server = ForkServer(tmp_path / "server.log")
    assert ended(start(server, tmp_path, "0")) == 0 and (tmp_path / "abc.log").read_text() == "True\n"
    assert len(os.listdir(f"/proc/{server.pid}/task")) == 1
    assert (tmp_path / "server.log").read_text() == ""
    server.close()
