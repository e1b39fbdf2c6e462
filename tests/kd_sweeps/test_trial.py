"""One trial: its metrics, and running it alone."""

from __future__ import annotations

import signal

import pytest
from sweep_sandbox import Sandbox
from waiting import wait_for

from kd_sweeps.sweep_file import read_sweep
from kd_sweeps.trial import TrialMetrics


def test_one_point_of_a_grid(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert sandbox.run("--trial", "1") == 0
    assert sandbox.run("--trial", "1") == 0  # the same run, which finds that it has finished
    start, again = sandbox.starts
    assert start[3:] == ["disabled", "2"] and again[:2] == [start[0], "3"]
    assert not sandbox.results.exists()
    assert sandbox.run("--trial", "2", "--", "--fail=3") == 1
    assert sandbox.run() == 0  # the whole grid takes the finished run over
    assert [(start[4], start[1]) for start in sandbox.starts[2:]] == [("3", "0"), ("1", "0"), ("2", "3"), ("3", "0")]
    assert sorted(row["val/score"] for row in sandbox.table()) == ["1.02", "2.02", "3.02"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_reach_a_single_trial(number: signal.Signals, sandbox: Sandbox) -> None:
    worker = sandbox.spawn("--trial", "1", "--", f"--gate={sandbox.folder}/gate")
    wait_for(lambda: list(sandbox.output.glob("*/metrics.jsonl")), "the trial starts")
    worker.send_signal(number)
    assert worker.wait(300) == 128 + number


def test_torn_and_odd_rows(sandbox: Sandbox) -> None:
    folder = sandbox.output / "toy-abcdefgh"
    folder.mkdir(parents=True)
    metrics = TrialMetrics(read_sweep(sandbox.file), sandbox.output, "abcdefgh")
    metrics.update()
    assert metrics.best is None
    rows = [
        '{"val/score": 0.5}',
        '{"val/score": NaN}',
        '{"val/score": Infinity}',
        '{"train/loss": 9}',
        '{"val/score": null}',
        '{"val/score": 0.',
    ]
    (folder / "metrics.jsonl").write_text("\n".join(rows))
    metrics.update()
    assert len(metrics.values) == 4 and metrics.best == 0.5  # null is what was not finite
    (folder / "metrics.jsonl").write_text('{"val/score": 0.25}\n')  # a resumed run cuts its file back
    metrics.update()
    assert metrics.values == [0.25]
