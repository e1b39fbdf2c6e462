"""SIGTERM, SIGUSR1 and Ctrl-C: handled at the end of a step, or at once while a process waits for others."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate import Accelerator

QUIET_SECONDS = 10.0  # waiting time for other processes before a message is printed


class Stopped(BaseException):
    """A signal asked this process to end.  Not an Exception, so that no `except Exception` catches it."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number

    @property
    def status(self) -> int:
        """The exit status: 130 after Ctrl-C, 143 after SIGTERM, as in shells."""
        return 128 + self.number

    @property
    def preempted(self) -> bool:
        """Whether a batch system stopped the process, to continue elsewhere or later, and not the user."""
        return self.number != signal.SIGINT


class StopSignals:
    """SIGTERM, SIGUSR1 (batch systems) and Ctrl-C.

    Within `deferred`, the first signal is held until `agreed` is called, so that the step is finished and no file is
    left half-written.  Elsewhere, and from the second signal on, `Stopped` is raised at once.
    """

    NUMBERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self._received = 0
        self._deferring = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals within the block; main thread only."""
        before = {number: signal.signal(number, self._handle) for number in self.NUMBERS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Hold the first signal within the block until `agreed` is called."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def _handle(self, number: int, frame: Any) -> None:
        if self._deferring and not self._received:
            self._received = number
        else:
            raise Stopped(number)

    def agreed(self, accelerator: Accelerator, *, together: bool, due: bool = False) -> tuple[int, bool]:
        """The number of a signal that any process has received, 0 for none, and whether a checkpoint is `due` on any.

        Processes must stop and save at the same step.  Several processes agree only when all call this with `together`,
        since it costs communication.
        """
        received = self._received
        if accelerator.num_processes == 1:
            return received, due
        if not together:
            return 0, False
        import torch  # not above: scripts import `Stopped` before they import torch

        own = torch.tensor([received, int(due)], device=accelerator.device)
        highest = accelerator.gather(own).view(-1, 2).amax(0)
        return int(highest[0]), bool(highest[1])


@contextmanager
def ended_by_signals(doing: str) -> Iterator[None]:
    """Let the first signal end the process at once, even while its main thread waits inside native code.

    Python runs signal handlers between two bytecode instructions of the main thread, which is blocked here; instead,
    another thread reads the signal number from the wakeup file descriptor.  After `QUIET_SECONDS` that thread prints
    what the process is `doing`.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)  # as set_wakeup_fd demands
    speaks = os.environ.get("LOCAL_RANK", "0") == "0"  # one process per machine

    def watch() -> None:
        if speaks and not select.select([reader], [], [], QUIET_SECONDS)[0]:
            print(f"{doing} (process {os.environ['RANK']} of {os.environ['WORLD_SIZE']})", file=sys.stderr, flush=True)
        while received := reader.recv(1):
            if received[0] in StopSignals.NUMBERS:
                if speaks:
                    print(f"stopped by {signal.Signals(received[0]).name}, {doing}", file=sys.stderr)
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(128 + received[0])

    watcher = threading.Thread(target=watch, name="signals", daemon=True)
    before = signal.set_wakeup_fd(writer.fileno())
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.close()  # ends the watcher
        watcher.join()
        reader.close()
