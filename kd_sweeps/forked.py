"""Trials as children of one process that has imported what they need: the worker's side of `fork_server`."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from kd_sweeps.fork_server import PRELOADED, end_with_parent, signal_child, start_time
from kd_sweeps.trial_command import ROOT, environment


class Forked:
    """A trial's process: see `trial.Process`."""

    def __init__(self, server: ForkServer, pid: int):
        self._server, self.pid, self._began = server, pid, start_time(pid)

    def poll(self) -> int | None:
        try:
            return self._server.status(self.pid)
        except OSError:  # the child has got SIGTERM, and holds its run folder until it has ended
            return None if self._runs() else -signal.SIGTERM

    def send(self, number: int) -> None:
        """Send a signal if the child runs.  Without the server SIGKILL alone: the child has got SIGTERM."""
        try:
            self._server.send(self.pid, number)
        except BrokenPipeError:
            if number == signal.SIGKILL and self._runs():
                with suppress(ProcessLookupError):
                    signal_child(self.pid, number)

    def _runs(self) -> bool:
        return self._began is not None and start_time(self.pid) == self._began


class ForkServer:
    """Starts the server; its messages, if an import fails, are in `log`.

    If the server ends, by a signal or for lack of memory, its children get SIGTERM, finish their step and can be
    resumed.
    """

    def __init__(self, log: Path, modules: Sequence[str] = PRELOADED):
        self._log = log
        with open(log, "wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, str(ROOT / "kd_sweeps" / "fork_server.py"), *modules],
                env=environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                process_group=0,
                preexec_fn=partial(end_with_parent, os.getpid()),
                bufsize=0,
            )
        assert self._process.stdin and self._process.stdout
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self._unread, self._ended = b"", dict[int, int]()

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self, words: list[str], run_id: str, log: Path) -> Forked:
        """Run a script and its arguments as a trial; waits until the server has imported everything.

        OSError if the server has ended.
        """
        self._ask(words=words, run_id=run_id, log=str(log))
        while True:
            for answer in self._read(wait=True):
                if "started" in answer:
                    return Forked(self, answer["started"])

    def status(self, pid: int) -> int | None:
        """The exit status of a child, as `subprocess` gives it; None while it runs.

        OSError if the server has ended before the child.
        """
        try:
            self._read()
        except OSError:
            if pid not in self._ended:
                raise
        return self._ended.get(pid)

    def send(self, pid: int, number: int) -> None:
        """Send a signal to a child; nothing happens if it has ended.  BrokenPipeError if the server has."""
        self._ask(pid=pid, signal=number)

    def close(self) -> None:
        """End the server."""
        self._requests.close()
        self._answers.close()
        self._process.wait()

    def _ask(self, **request: object) -> None:
        self._requests.write(json.dumps(request).encode() + b"\n")

    def _read(self, *, wait: bool = False) -> list[dict[str, int]]:
        """New answers; those about ended children are remembered.  OSError if the server has ended."""
        answers: list[dict[str, int]] = []
        while select.select([self._answers], [], [], None if wait and not answers else 0)[0]:
            if not (received := self._answers.read(1 << 16)):
                words = self._log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
                raise OSError(f"the process that trials are forked from has ended{words and f': {words}'}")
            *lines, self._unread = (self._unread + received).split(b"\n")
            for answer in map(json.loads, lines):
                answers.append(answer)
                if "ended" in answer:
                    self._ended[answer["ended"]] = answer["status"]
                else:
                    self._ended.pop(answer["started"], None)  # an earlier child had the same number
        return answers
