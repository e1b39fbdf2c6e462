"""How the scripts end: one message for a mistake, a traceback and what to report for a failure."""

from __future__ import annotations

import re
import signal
import sys

import pytest
import torch

from kd_core.errors import UserError
from kd_core.loop.signals import Stopped
from kd_core.run import script
from kd_core.run.script import run_script


def ended(error: BaseException | None, monkeypatch, capsys) -> tuple[int, str]:
    """The exit status and what is printed to stderr when a script's main ends with `error`."""

    def main(words: list[str]) -> None:
        assert words == ["--a=1"]
        if error:
            raise error

    monkeypatch.setattr(sys, "argv", ["script.py", "--a=1"])
    with pytest.raises(SystemExit) as end:
        run_script(main, "script.py", after_stop="; go on")
    return end.value.code, capsys.readouterr().err  # type: ignore[return-value]


def test_success_is_status_zero_without_a_message(monkeypatch, capsys):
    assert ended(None, monkeypatch, capsys) == (0, "")


def test_a_user_error_is_one_message(monkeypatch, capsys):
    assert ended(UserError("a: wrong"), monkeypatch, capsys) == (2, "script.py: a: wrong\n")


def test_a_failure_of_the_program_says_what_to_report(monkeypatch, capsys):
    status, text = ended(KeyError("odd"), monkeypatch, capsys)
    assert status == 1 and "Traceback" in text and "KeyError: 'odd'" in text
    assert "Please report it, with all lines from 'Traceback' on, the command, and config.yaml" in text
    assert torch.__version__ in text


def test_a_full_device_is_a_mistake_with_advice(monkeypatch, capsys):
    status, text = ended(torch.OutOfMemoryError("Tried to allocate 2 GiB\nand more"), monkeypatch, capsys)
    assert status == 2 and "Traceback" not in text
    assert "memory is full (Tried to allocate 2 GiB). Try a smaller data.batch_size" in text


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (Stopped(signal.SIGTERM), 143, "stopped by SIGTERM"),
        (Stopped(signal.SIGUSR1), 138, "stopped by SIGUSR1"),
        (Stopped(signal.SIGINT), 130, "stopped by SIGINT"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_a_signal_has_its_status(error, status, text, monkeypatch, capsys):
    assert ended(error, monkeypatch, capsys) == (status, f"script.py: {text}; go on\n")


def test_only_the_first_process_prints_at_once(monkeypatch, capsys):
    """Others wait for their launcher to end them; a mistake that they alone meet would not be told otherwise."""
    monkeypatch.setenv("RANK", "1")
    waited = []
    monkeypatch.setattr(script.time, "sleep", lambda seconds: waited.append((seconds, capsys.readouterr().err)))
    status, told = ended(UserError("a: wrong"), monkeypatch, capsys)
    assert status == 2 and re.fullmatch(r"script.py: process 1 on \S+: a: wrong\n", told)
    assert waited == [(script.SECONDS_TO_BE_ENDED, "")]
    assert ended(Stopped(signal.SIGTERM), monkeypatch, capsys)[1] == ""
