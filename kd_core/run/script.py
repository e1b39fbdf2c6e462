"""How a script starts and ends: its switches, its exit status, and one message for a user error.

Imports neither PyTorch nor Accelerate nor W&B, so that a script answers `--help` and mistakes in its switches at once:
it calls `answer_early` above its own imports.
"""

from __future__ import annotations

import gc
import io
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TypeVar

from kd_core.errors import UserError, first_line
from kd_core.loop.ranks import RankMistake, is_first_process, rank_in
from kd_core.loop.signals import Stopped

T = TypeVar("T")
SECONDS_TO_BE_ENDED = 5.0  # that a launcher may take to end a process once the first one has ended


def show_help(text: str) -> NoReturn:
    """Print the help text and end the process."""
    print(text, flush=True)
    sys.exit(0)


def exit_status(error: BaseException | None) -> int:
    """The script's exit status after `error`: 0 without one, 2 for a user error, 1 for a failure of the program."""
    if isinstance(error, Stopped):
        return error.status
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    return 0 if error is None else 2 if isinstance(error, (UserError, *_out_of_memory())) else 1


def answer_early(parse: Callable[[list[str]], T], name: str) -> T:
    """Let `parse` answer --help and mistakes in the command line; returns what it returns if there is work to do.

    For the top of a script, above imports that take seconds.
    """
    with _exit_on_error(name):
        return parse(sys.argv[1:])
    raise AssertionError("errors have ended the process")


def run_script(main: Callable[[list[str]], None], name: str, after_stop: str = "") -> NoReturn:
    """Run `main` with the command line's words, and end the process with its exit status.

    A user error is one message; anything else is a traceback and what to report, unless it comes from the user's own
    code.  `after_stop` is added to the message after a signal: what the user can do then.
    """
    gc.freeze()  # libraries hold a million objects, which every later collection would look through
    with _exit_on_error(name, after_stop):
        main(sys.argv[1:])
        sys.stdout.flush()
    sys.exit(0)


@contextmanager
def _exit_on_error(name: str, after_stop: str = "") -> Iterator[None]:
    """Within the block every error ends the process, with a message on stderr and `exit_status`."""
    _escape_unsupported_characters()
    try:
        yield
    except RankMistake as mistake:
        print(f"{name}: {mistake}", file=sys.stderr)
        sys.exit(exit_status(mistake))
    except UserError as mistake:
        _print_mistake(name, str(mistake))
        sys.exit(exit_status(mistake))
    except _out_of_memory() as full:
        _print_mistake(
            name,
            f"the device's memory is full ({first_line(full, 200)}). Try a smaller data.batch_size or "
            "training.mixed_precision=bf16; data.store=host keeps the images elsewhere",
        )
        sys.exit(exit_status(full))
    except (Stopped, KeyboardInterrupt) as stop:
        _print_once(name, (str(stop) or "interrupted") + after_stop)
        sys.exit(exit_status(stop))
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads_stdout():
            sys.exit(exit_status(error))
        _report_failure(name, error)
        sys.exit(exit_status(error))


def _out_of_memory() -> tuple[type[BaseException], ...]:
    """PyTorch's exception for full device memory; empty if PyTorch is not imported, since nothing can raise it then."""
    found = getattr(sys.modules.get("torch"), "OutOfMemoryError", None)
    return (found,) if found else ()


def _escape_unsupported_characters() -> None:
    """Print characters that the terminal's encoding lacks as escapes, such as \\u8682, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _nobody_reads_stdout() -> bool:
    """Whether stdout is a pipe without a reader, as after `| head`; if so, drop what has not been written.

    Python would fail again when it flushes stdout at exit (docs.python.org/3/library/signal.html#note-on-sigpipe).
    """
    try:
        descriptor = sys.stdout.fileno()
    except io.UnsupportedOperation:  # not a file, as in tests
        return False
    pipe = select.poll()
    pipe.register(descriptor, 0)  # errors are reported without asking for them
    if not any(events & (select.POLLERR | select.POLLHUP) for _, events in pipe.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return True


def _report_failure(name: str, error: Exception) -> None:
    """Print the traceback and what to do: fix the user's own code, or report a bug."""
    import torch  # not above: takes seconds

    from kd_core.config import own_code

    traceback.print_exception(error)
    if place := own_code.place_of(error):
        said = f"{type(error).__name__}: {first_line(error, 300)}"
        _print_once(name, f"{place}: {said}. That file is your own code, which --import has named: fix it there")
        return
    _print_once(
        name,
        "this is a failure of the program, not a mistake of yours. Please report it, with all lines from 'Traceback' "
        f"on, the command, and config.yaml of the run folder if there is one (Python {sys.version.split()[0]}, torch "
        f"{torch.__version__}, {sys.platform})",
    )


def _print_mistake(name: str, text: str) -> None:
    """Print a message to stderr, once if all processes meet the mistake: their launcher ends those that still wait.

    A mistake that only another process meets, such as a full disk of its machine, is printed by that process.
    """
    if not is_first_process():
        time.sleep(SECONDS_TO_BE_ENDED)
        text = f"process {rank_in(os.environ)} on {socket.gethostname()}: {text}"
    print(f"{name}: {text}", file=sys.stderr, flush=True)


def _print_once(name: str, text: str) -> None:
    """Print a message to stderr, in the first process only."""
    if is_first_process():
        print(f"{name}: {text}", file=sys.stderr)
