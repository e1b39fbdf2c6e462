"""How a script ends: its exit status, and one message for a mistake of the user."""

from __future__ import annotations

import io
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

import torch

from kd_core.config import own_code
from kd_core.errors import UserError, first_line
from kd_core.loop import launcher
from kd_core.loop.processes import is_first_process
from kd_core.loop.signals import Stopped


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
