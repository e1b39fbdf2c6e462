"""Processes and devices: starting Accelerate, keeping processes in step, and stopping them."""

from __future__ import annotations

import ctypes
import io
import os
import random
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast, broadcast_object_list, is_bf16_available
from torch import nn
from torch.distributed import DistNetworkError, DistStoreError

from kd_core import launcher, own_code
from kd_core.errors import UserError, first_line

# One process may decode a large data set, or wait for a teacher that another job trains, while the others wait for it.
PATIENCE = timedelta(hours=24)
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
QUIET_SECONDS = 10.0  # of waiting for other processes, after which the user is told


def create_accelerator(mixed_precision: str | None, *, deterministic: bool = False) -> Accelerator:
    """The process's Accelerator: on a GPU if there is one, else on the CPU, in however many processes were started.

    `mixed_precision` is the settings'; if it is None the first process's launcher decides for all, and what is returned
    says what that was.

    UserError for a precision that the device lacks, for what a launcher asks for and the training loop does not do, and
    for variables of launchers that do not fit together (`launcher.check`).
    """
    several = launcher.check(os.environ)
    precision = launcher.precision(mixed_precision, os.environ)
    on_gpu = launcher.uses_gpu(os.environ)
    key = launcher.PRECISION if mixed_precision is None else "training.mixed_precision"
    if precision == "fp16" and not on_gpu:
        raise UserError(f"{key}: fp16 needs a GPU; on a CPU use bf16 or no")
    if precision == "bf16" and on_gpu and not is_bf16_available(True):
        raise UserError(f"{key}: this GPU has no bf16; use fp16 or no")
    notice = launcher.about_precision(mixed_precision, os.environ)
    if notice and is_first_process():
        print(notice)
    # Accelerate joins several processes on a CPU only if it is told to use the CPU; otherwise each would train alone.
    # Apple's GPUs lack float64, in which metrics are summed.
    if several:
        _join(cpu=not on_gpu)
        [precision] = broadcast_object_list([precision])
    accelerator = Accelerator(mixed_precision=precision, cpu=not on_gpu)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not deterministic  # batches all have one shape
    return accelerator


def keep_freed_memory() -> None:
    """Let glibc keep large blocks that are freed, for the next ones; nothing where there is no glibc.

    Every step allocates its activations anew.  By default glibc gives blocks of 32 MiB back to the system each time,
    and fetching their pages again takes a fifth of a ResNet-8x4 step (docs/performance.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)  # large blocks too come from the heap,
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # whose free end is kept up to this size


def _join(*, cpu: bool) -> None:
    """Meet the other processes; UserError if they cannot be met, and the first signal ends the process meanwhile."""
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        with StopSignals().installed(), _ended_by_signals(f"waiting for the other processes at {address}"):
            PartialState(cpu, timeout=PATIENCE)
    except (DistNetworkError, DistStoreError) as error:
        raise UserError(
            f"MASTER_ADDR, MASTER_PORT: the processes cannot meet at {address}: {first_line(error, 200)}; is the port "
            "taken, or the first process gone?"
        ) from error


@contextmanager
def _ended_by_signals(doing: str) -> Iterator[None]:
    """Let the first signal end the process at once, though its main thread waits in code that runs no Python.

    Python's own handlers run between two steps of the main thread's Python, which there are none of; what the signal's
    arrival writes to the wakeup descriptor another thread reads.  After `QUIET_SECONDS` that thread says what the
    process is `doing`.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)  # as set_wakeup_fd demands
    speaks = os.environ.get("LOCAL_RANK", "0") == "0"  # one process a machine

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


def is_first_process() -> bool:
    """Whether this process speaks for all, also before Accelerate is started."""
    return launcher.is_first(os.environ)


def share_buffers(model: nn.Module, accelerator: Accelerator) -> None:
    """Give all processes the first one's buffers: BatchNorm statistics differ after a step, and one set is exported."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer))


def shares_batch_norm(accelerator: Accelerator, sync_bn: bool) -> bool:
    """Whether BatchNorm's statistics are those of all processes: as `training.sync_bn` asks, on GPUs."""
    return sync_bn and accelerator.num_processes > 1 and accelerator.device.type == "cuda"


class Stopped(BaseException):
    """A signal asked this process to end.  Not an Exception: nothing that guards against failures may catch it."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number

    @property
    def status(self) -> int:
        """The exit status: 130 after Ctrl-C, 143 after SIGTERM, as shells have it."""
        return 128 + self.number

    @property
    def preempted(self) -> bool:
        """Whether it was a machine that wants to go on elsewhere or later, not a person."""
        return self.number != signal.SIGINT


def exit_status(error: BaseException | None) -> int:
    """The script's exit status after `error`: 0 without one, 2 for a mistake of the user, 1 for a failure here."""
    if isinstance(error, Stopped):
        return error.status
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    return 0 if error is None else 2 if isinstance(error, (UserError, torch.OutOfMemoryError)) else 1


def escape_what_cannot_be_shown() -> None:
    """Let the terminal's encoding stop no output: characters that it lacks are written as escapes, such as \\u8682."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run_script(main: Callable[[list[str]], None], name: str, after_stop: str = "") -> NoReturn:
    """Run `main` with the command line's words, and end the process with its exit status.

    A mistake of the user is one message, anything else a traceback and what to report, unless it comes from the user's
    own code.  `after_stop` says what somebody may do whose script was stopped by a signal.
    """
    escape_what_cannot_be_shown()
    try:
        main(sys.argv[1:])
    except launcher.RankMistake as mistake:
        print(f"{name}: {mistake}", file=sys.stderr)
        sys.exit(exit_status(mistake))
    except UserError as mistake:
        _last_words(name, str(mistake))
        sys.exit(exit_status(mistake))
    except torch.OutOfMemoryError as full:
        _last_words(
            name,
            f"the device's memory is full ({first_line(full, 200)}). Try a smaller data.batch_size or "
            "training.mixed_precision=bf16; data.store=host keeps the images elsewhere",
        )
        sys.exit(exit_status(full))
    except (Stopped, KeyboardInterrupt) as stop:
        _last_words(name, (str(stop) or "interrupted") + after_stop)
        sys.exit(exit_status(stop))
    except Exception as error:
        traceback.print_exc()
        if place := own_code.place_of(error):
            said = f"{type(error).__name__}: {first_line(error, 300)}"
            _last_words(name, f"{place}: {said}. That file is your own code, which --import has named: fix it there")
            sys.exit(exit_status(error))
        python = sys.version.split()[0]
        _last_words(
            name,
            "this is a failure of the program, not a mistake of yours. Please report it, with all lines from "
            f"'Traceback' on, the command, and config.yaml of the run folder if there is one (Python {python}, torch "
            f"{torch.__version__}, {sys.platform})",
        )
        sys.exit(1)
    sys.exit(0)


def _last_words(name: str, text: str) -> None:
    if is_first_process():
        print(f"{name}: {text}", file=sys.stderr)


class StopSignals:
    """SIGTERM, SIGUSR1 (batch systems) and Ctrl-C.

    Within `deferred` the first of them waits until `agreed` is asked, so that a step is finished and no file is left
    half-written.  Elsewhere, and the second time anywhere, it raises `Stopped` at once.
    """

    NUMBERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self._received = 0
        self._deferring = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals within the block; must be the main thread."""
        before = {number: signal.signal(number, self._handle) for number in self.NUMBERS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let the first signal wait until `agreed` is asked, within the block."""
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

        Processes must stop and save at the same step: several of them agree only where all call this with `together`,
        since that costs an exchange.
        """
        received = self._received
        if accelerator.num_processes == 1:
            return received, due
        if not together:
            return 0, False
        told = torch.tensor([received, int(due)], device=accelerator.device)
        highest = accelerator.gather(told).view(-1, 2).amax(0)
        return int(highest[0]), bool(highest[1])


def random_state(device: torch.device) -> dict[str, Any]:
    """Where this process's random generators stand, as tensors and plain values."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    assert isinstance(keys, np.ndarray)
    return {
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": [version, list(words), gauss],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Continue this process's random generators from what `random_state` gave."""
    torch.set_rng_state(state["torch"])
    if state["device"] is not None:
        torch.cuda.set_rng_state(state["device"], device)
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
