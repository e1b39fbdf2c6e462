"""How far long work is: a bar in a terminal, a line each minute in a log."""

import io
import time

import pytest

from kd_core.models import predict


@pytest.fixture
def minutes(monkeypatch):
    """Lets the clock go on by the given minutes whenever it is read; returns what is written to stderr."""

    def go(step: float, *, terminal: bool = False) -> io.StringIO:
        written = io.StringIO()
        written.isatty = lambda: terminal
        now = iter(60 * step * reading for reading in range(10**6))
        monkeypatch.setattr("sys.stderr", written)
        monkeypatch.setattr(predict.time, "monotonic", lambda: next(now))
        return written

    return go


def test_a_log_gets_a_line_each_minute(minutes):
    written = minutes(0.6)
    assert list(predict.progress(range(7), "caching teacher 0")) == list(range(7))
    assert written.getvalue().splitlines() == [
        "caching teacher 0: 14%, 7 min left",
        "caching teacher 0: 43%, 3 min left",
        "caching teacher 0: 71%, 1 min left",
    ]


@pytest.mark.parametrize(("step", "hidden"), [(0.01, False), (2, True)])
def test_short_work_and_other_processes_write_nothing(minutes, step, hidden):
    written = minutes(step)
    assert list(predict.progress(range(7), "caching", hidden=hidden)) == list(range(7))
    assert written.getvalue() == ""
    assert list(predict.progress((), "caching", hidden=hidden)) == []


def test_a_terminal_shows_a_bar(minutes, monkeypatch):
    written = minutes(0, terminal=True)
    monkeypatch.setattr(predict.time, "monotonic", time.perf_counter)
    assert list(predict.progress(range(3), "caching teacher 0")) == [0, 1, 2]
    assert "caching teacher 0:" in written.getvalue() and "min left" not in written.getvalue()
