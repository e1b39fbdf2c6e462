"""Trials forked from one process that has imported what all of them need.

Importing PyTorch, timm and this project takes longer than a short trial trains.  A worker starts this module once, as a
process in the trials' environment.  It imports, and then forks a child for each trial: a process with its own group,
output, signals and exit status, which runs the script as `python SCRIPT` does.

A child inherits only the thread that forks it, so the server has no other, and runs no operation of PyTorch: no thread
pool, no CUDA, no W&B and no Arrow.

Requests and answers are lines of JSON on stdin and stdout:

    {"words": [script, ...], "run_id": ..., "log": file}   ->  {"started": pid}
    {"pid": pid, "signal": number}                         SIGKILL goes to the whole group, others to the process
                                                           {"ended": pid, "status": as subprocess gives it}
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import sys
from collections.abc import Sequence
from typing import Any, BinaryIO

# What a trial imports anyway; first the script, which sets what PyTorch reads as it is imported.  Not pyarrow and what
# imports it (datasets, sklearn.datasets): it starts a thread.
PRELOADED = ("train_kd", "timm", "torchvision", "scipy.stats", "wandb", "matplotlib.pyplot", "kd_core.report.run_page")


def end_with_parent(parent: int) -> None:
    """Linux: let this process get SIGTERM when the process `parent`, which has started it, ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(143)


def start_time(pid: int) -> int | None:
    """Linux: when a process began, in clock ticks since the machine did; None if it has ended.

    Of the processes that have had one number, each has a start time of its own.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state, *fields = file.read().rpartition(b")")[2].split()  # the name before may hold spaces
    except OSError:
        return None
    return None if state in (b"Z", b"X") else int(fields[18])


class Server:
    """Forks a child per request, until stdin ends."""

    def __init__(self, requests: BinaryIO, answers: BinaryIO):
        self._requests, self._answers, self._unread = requests, answers, b""
        self._children: dict[int, int] = {}  # a descriptor that becomes readable when the process ends -> the process
        self._waiting = select.poll()
        self._waiting.register(requests, select.POLLIN)

    def run(self) -> dict[str, Any] | None:
        """Returns in each child, with its request, and at the end in the server, with None."""
        while True:
            for descriptor, _ in self._waiting.poll():
                if descriptor in self._children:
                    self._end(descriptor)
                    continue
                if not (received := self._requests.read(1 << 16)):
                    return None
                *lines, self._unread = (self._unread + received).split(b"\n")
                for request in map(json.loads, lines):
                    if "signal" in request:
                        self._signal(**request)
                    elif self._is_child():
                        return dict(request)

    def _is_child(self) -> bool:
        """Fork: whether this is the child, which has a process group of its own and ends with the server."""
        server = os.getpid()
        if pid := os.fork():
            os.setpgid(pid, pid)  # by both, so that it is done when either goes on
            descriptor = os.pidfd_open(pid)
            self._children[descriptor] = pid
            self._waiting.register(descriptor, select.POLLIN)
            self._answer(started=pid)
            return False
        os.setpgid(0, 0)
        end_with_parent(server)
        for descriptor in self._children:
            os.close(descriptor)
        return True

    def _signal(self, pid: int, signal: int) -> None:
        if pid in self._children.values():  # else it has ended, and the number may be another's
            signal_child(pid, signal)

    def _end(self, descriptor: int) -> None:
        pid = self._children.pop(descriptor)
        self._waiting.unregister(descriptor)
        os.close(descriptor)
        self._answer(ended=pid, status=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    def _answer(self, **values: int) -> None:
        self._answers.write(json.dumps(values).encode() + b"\n")


def signal_child(pid: int, number: int) -> None:
    """SIGKILL goes to all processes of a trial, others to the main process only.

    A data worker that dies of SIGTERM would break the step that the trial is about to finish.
    """
    (os.killpg if number == signal.SIGKILL else os.kill)(pid, number)


def become(words: Sequence[str], run_id: str, log: str) -> None:
    """In a child: what `python *words` does, with its output appended to `log`."""
    with open(os.devnull, "rb") as nothing, open(log, "ab") as output:
        os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ["KD_TRIAL"] = run_id
    # Where a new process draws from the system, every child would draw what the others draw.
    random.seed()
    sys.modules["numpy"].random.seed()
    sys.argv = list(words)
    runpy.run_path(words[0], run_name="__main__")


def main(modules: Sequence[str]) -> None:
    requests, answers = open(os.dup(0), "rb", buffering=0), open(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what an import prints is no answer
    for module in modules:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    # OpenBLAS, NumPy's and SciPy's, ends its threads when a process forks, and starts them again when it needs them.
    if not (pid := os.fork()):
        os._exit(0)
    os.waitpid(pid, 0)
    request = Server(requests, answers).run()
    requests.close()
    answers.close()
    if request is None:
        os._exit(0)
    become(**request)


if __name__ == "__main__":
    sys.path[0] = os.path.dirname(sys.path[0])  # the project's folder, as for a script that lies there
    main(sys.argv[1:])
