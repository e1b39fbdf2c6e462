"""Whole sweeps of a toy program: results, interruptions, failures, workers side by side."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path

import optuna
import pytest
from sweep_sandbox import Sandbox
from waiting import wait_for

from kd_sweeps.display import Display
from kd_sweeps.study import SharedStudy, alive
from kd_sweeps.sweep_file import read_sweep
from kd_sweeps.trial import Running, TrialMetrics
from kd_sweeps.trial_command import grid_run_id
from kd_sweeps.worker import Worker


def test_a_grid(sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    sandbox.sweep({"x": {"values": [1, 3, 2]}, "nested": {"parameters": {"y": {"values": [[0], None]}}}})
    assert sandbox.run("--parallel", "2") == 0
    assert len(sandbox.starts) == 6 and len({start[0] for start in sandbox.starts}) == 6
    assert all(re.fullmatch("[a-z0-9]{8}", start[0]) and start[3] == "offline" for start in sandbox.starts)
    rows = sandbox.table()
    assert [row["val/score"] for row in rows] == ["3.02", "3.02", "2.02", "2.02", "1.02", "1.02"]
    assert {row["state"] for row in rows} == {"done"} and {row["nested.y"] for row in rows} == {"[0]", ""}
    assert json.loads((sandbox.results / "best.yaml").read_text())["x"] == "3"
    printed = capsys.readouterr().out
    assert f"--config {sandbox.results}/best.yaml" in printed and "6 finished, 0 failed" in printed
    [tested] = re.findall("evaluate_kd.py --checkpoint (.*) --split test", printed)
    assert json.loads((Path(tested) / "config.yaml").read_text())["x"] == "3"
    assert (sandbox.results / "parallel_coordinates.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((sandbox.results / "logs").iterdir())) == 6

    assert sandbox.run() == 0  # nothing is left to do
    (sandbox.results / "study.journal").unlink()
    assert len(sandbox.starts) == 6
    assert sandbox.run() == 0  # without the storage each run finds that it has finished
    assert [start[1] for start in sandbox.starts] == ["0"] * 6 + ["3"] * 6 and len(sandbox.table()) == 6


def test_no_other_trial_takes_the_place_of_the_best(sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    """The best trial's run folder may be on another machine."""
    assert sandbox.run("--count", "3") == 0
    [run_id] = [row["run_id"] for row in sandbox.table() if row["x"] == "3"]
    shutil.rmtree(sandbox.output / f"toy-{run_id}")
    best = sandbox.results / "best.yaml"
    before = best.read_text()
    capsys.readouterr()
    assert sandbox.run("--count", "3") == 0
    printed = capsys.readouterr().out
    assert best.read_text() == before and "retrain the best" not in printed
    assert f"the best trial's run folder, {sandbox.output}/*-{run_id}, is not on this machine" in printed
    best.unlink()
    assert sandbox.run("--count", "3") == 0
    assert not best.exists()


def test_workers_share_a_grid(sandbox: Sandbox) -> None:
    sandbox.sweep({"x": {"values": list(range(12))}})
    workers = [sandbox.spawn("--parallel", "2") for _ in range(2)]
    assert [worker.wait(300) for worker in workers] == [0, 0]
    assert sorted(int(start[4]) for start in sandbox.starts) == list(range(12))
    assert len(sandbox.table()) == 12


def test_an_interrupted_sweep_continues(sandbox: Sandbox) -> None:
    gate = sandbox.folder / "gate"
    worker = sandbox.spawn("--parallel", "2", "--", f"--gate={gate}")
    wait_for(lambda: len(list(sandbox.output.glob("*/metrics.jsonl"))) == 2, "two trials start")
    worker.send_signal(signal.SIGTERM)
    printed, _ = worker.communicate(timeout=300)
    assert worker.returncode == 143 and "the same command continues: python " in printed
    assert [json.loads(file.read_text())["status"] for file in sandbox.output.glob("*/summary.json")] == [
        "interrupted"
    ] * 2
    gate.touch()
    assert sandbox.run("--", f"--gate={gate}") == 0
    starts = sorted((start[4], start[1]) for start in sandbox.starts)
    assert starts == [("1", "0"), ("1", "1"), ("2", "0"), ("2", "1"), ("3", "0")]  # they go on after their first epoch
    assert len({start[0] for start in sandbox.starts}) == 3  # in the same runs
    assert sorted(row["trial"] for row in sandbox.table()) == ["0", "1", "2"]


def test_a_random_sweep_continues_with_the_same_values(sandbox: Sandbox) -> None:
    gate = sandbox.folder / "gate"
    sandbox.sweep({"x": {"distribution": "normal"}}, method="random", run_cap=2)
    worker = sandbox.spawn("--", f"--gate={gate}")
    wait_for(lambda: list(sandbox.output.glob("*/metrics.jsonl")), "a trial starts")
    worker.send_signal(signal.SIGINT)
    assert worker.wait(300) == 130
    gate.touch()
    assert sandbox.run("--", f"--gate={gate}") == 0
    first, again, second = sandbox.starts
    assert (first[0], first[4]) == (again[0], again[4]) and second[0] != first[0]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="orphaned trials are told to end on Linux only")
def test_a_killed_worker_is_replaced(sandbox: Sandbox) -> None:
    """By a worker that lives; the dead one's trial ends first, so that no run has two processes."""
    gate = sandbox.folder / "gate"
    victim = sandbox.spawn("--", f"--gate={gate}")
    wait_for(lambda: list(sandbox.output.glob("*/metrics.jsonl")), "a trial starts")
    heir = sandbox.spawn("--", f"--gate={gate}")
    wait_for(lambda: len(list(sandbox.output.glob("*/metrics.jsonl"))) == 2, "a second trial starts")
    victim.kill()
    victim.wait()
    gate.touch()
    assert heir.wait(60) == 0
    starts = sandbox.starts
    assert sorted(start[4] for start in starts) == ["1", "1", "2", "3"]
    orphan, again = (start for start in starts if start[4] == "1")
    assert orphan[0] == again[0] and orphan[1:2] == ["0"] and again[1] == "1"
    assert not alive(int(orphan[2]))


@pytest.mark.parametrize("how", ["a stranger's signal", "taken over"])
def test_a_worker_resumes_a_stopped_trial(how: str, sandbox: Sandbox) -> None:
    gate = sandbox.folder / "gate"
    worker = sandbox.spawn("--count", "1", "--", f"--gate={gate}")
    wait_for(lambda: list(sandbox.output.glob("*/metrics.jsonl")), "a trial starts")
    if how == "taken over":
        study = optuna.load_study(study_name=None, storage=storage_of(sandbox.results / "study.journal"))
        study.tell(0, state=optuna.trial.TrialState.FAIL)
    else:
        os.kill(int(sandbox.starts[0][2]), signal.SIGTERM)
    wait_for(lambda: len(sandbox.starts) == 2, "it starts again")
    gate.touch()
    printed, _ = worker.communicate(timeout=300)
    assert worker.returncode == 0, printed
    first, again = sandbox.starts
    assert first[0] == again[0] and (first[1], again[1]) == ("0", "1")
    assert ("taken over by another worker" in printed) == (how == "taken over")


def storage_of(journal: Path) -> optuna.storages.JournalStorage:
    lock = optuna.storages.journal.JournalFileOpenLock(str(journal))
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal), lock))


def test_early_termination(sandbox: Sandbox) -> None:
    """Poor trials wait at a gate that never opens after the second row, the rung: only being stopped ends them."""
    sandbox.sweep({"x": {"values": [5, 4, 3]}}, early_terminate={"type": "hyperband", "min_iter": 2, "eta": 2})
    assert sandbox.run("--parallel", "2", "--", "--gate=never", "--gate_epoch=1", "--free=5") == 0
    assert [(row["x"], row["state"]) for row in sandbox.table()] == [
        ("5", "done"),
        ("4", "stopped early"),
        ("3", "stopped early"),
    ]
    assert sandbox.run() == 2  # other words after --: another sweep


def with_hyperband(sandbox: Sandbox, xs: list[int], min_iter: int, epochs: int) -> tuple[SharedStudy, Worker]:
    """The study of a grid over x that halves, and a worker that has not begun."""
    sandbox.sweep({"x": {"values": xs}}, early_terminate={"type": "hyperband", "min_iter": min_iter, "eta": 2})
    sweep = read_sweep(sandbox.file)
    shared = SharedStudy(sweep, [], sandbox.folder / "study.journal", epochs)
    return shared, Worker(shared, sandbox.output, 2, 1, Display(sweep, epochs))


@pytest.mark.parametrize("seen", [True, False])
def test_a_poor_trial_that_broke_is_a_failure(seen: bool, sandbox: Sandbox) -> None:
    """It breaks before its last rows are read, or between that and the judgment."""
    shared, worker = with_hyperband(sandbox, [1, 2], min_iter=1, epochs=3)
    good, poor = shared.next_trial(2), shared.next_trial(2)
    assert good and poor
    good.report(2.0, 1)
    assert not good.should_prune()
    folder = sandbox.output / "toy-abcdefgh"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"val/score": 1.0}\n')
    (folder / "log").write_text("it broke\n")
    metrics = TrialMetrics(shared.sweep, sandbox.output, "abcdefgh")
    process = Broken([] if seen else [None])
    worker.running = [Running(poor, 1, "abcdefgh", {}, metrics, folder / "log", process)]
    while worker.running:
        worker.poll()
    ended = shared.trials()[poor.number]
    assert (ended.state.name, ended.user_attrs["error"], ended.intermediate_values) == ("FAIL", "it broke", {1: 1.0})
    assert (worker.failures, worker.successes, process.sent) == (1, 0, [])


def test_a_trial_is_not_judged_again_where_it_has_passed(sandbox: Sandbox) -> None:
    """It was interrupted after its first row; better trials have come there since."""
    shared, worker = with_hyperband(sandbox, [1, 2], min_iter=1, epochs=9)
    first, better = shared.next_trial(2), shared.next_trial(2)
    assert first and better
    first.report(1.0, 1)
    for row in (1, 2):
        better.report(2.0, row)
    shared.continue_later(first.number)
    again = shared.next_trial(2)
    assert again and shared.last_row_before(again) == 1 and shared.last_row_before(better) == 0
    folder = sandbox.output / "toy-abcdefgh"
    folder.mkdir(parents=True)
    metrics = TrialMetrics(shared.sweep, sandbox.output, "abcdefgh")
    process = Broken([None] * 9)
    run = Running(again, 0, "abcdefgh", {}, metrics, folder / "log", process, judged=shared.last_row_before(again))
    (folder / "metrics.jsonl").write_text('{"val/score": 1.0}\n')
    metrics.update()
    worker.report(run)
    assert (run.reported, run.stopping) == (1, "")
    (folder / "metrics.jsonl").write_text('{"val/score": 1.0}\n' * 2)
    metrics.update()
    worker.report(run)
    assert (run.reported, run.stopping, process.sent) == (2, "pruned", [signal.SIGTERM])


def test_each_trial_has_its_own_last_epoch(sandbox: Sandbox) -> None:
    """Poor trials wait at a gate after the second row, the rung, where only being stopped ends them."""
    parameters = {"training.max_epochs": {"values": [4, 2]}, "x": {"values": [2, 1]}}
    sandbox.sweep(parameters, early_terminate={"type": "hyperband", "min_iter": 2, "eta": 2})
    gate = sandbox.folder / "gate"
    worker = sandbox.spawn("--", f"--gate={gate}", "--gate_epoch=1", "--free=2")
    wait_for(lambda: len(list(sandbox.output.glob("*/metrics.jsonl"))) == 4, "the last trial is at the gate")
    gate.touch()  # its second row is its last
    printed, _ = worker.communicate(timeout=300)
    assert worker.returncode == 0, printed
    ended = {(row["training.max_epochs"], row["x"]): row["state"] for row in sandbox.table()}
    assert ended == {("4", "2"): "done", ("4", "1"): "stopped early", ("2", "2"): "done", ("2", "1"): "done"}


def test_finished_runs_are_not_stopped_while_they_find_that(sandbox: Sandbox) -> None:
    shared, worker = with_hyperband(sandbox, [2, 1], min_iter=2, epochs=9)
    worker.start = lambda *_: Broken([None] * 99)  # type: ignore[method-assign]
    for index, value in enumerate((2, 1)):
        folder = sandbox.output / f"toy-{grid_run_id(shared.sweep, [], index)}"
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(f'{{"val/score": {value}}}\n' * 3)
        (folder / "summary.json").write_text('{"status": "finished"}')
        trial = shared.next_trial(2)
        assert trial
        worker.begin(trial)
    worker.poll()
    assert [(run.reported, run.stopping) for run in worker.running] == [(3, ""), (3, "")]


class Broken:
    """A process that ends with an error once it has answered `running` times that it runs."""

    pid = 0

    def __init__(self, running: list[None]):
        self.running, self.sent = running, list[int]()

    def poll(self) -> int | None:
        return self.running.pop() if self.running else 1

    def send(self, number: int) -> None:
        self.sent.append(number)


def test_failures(sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    sandbox.sweep({"x": {"values": [1, 2, 3, 4, 5]}})
    assert sandbox.run("--", "--fail=2,3,4") == 1  # three, but not without a success
    rows = sandbox.table()
    assert [row["state"] for row in rows] == ["done"] * 2 + ["failed"] * 3
    assert rows[-1]["error"] == "it broke"
    assert "failed: it broke" in capsys.readouterr().out


def test_three_failures_end_the_sweep(sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    sandbox.sweep({"x": {"values": [1, 2, 3, 4, 5]}})
    assert sandbox.run("--", "--fail=1,2,3,4,5") == 1
    assert len(sandbox.starts) == 3
    assert "three trials failed and none succeeded" in capsys.readouterr().err


def test_a_run_without_the_metric_failed(sandbox: Sandbox) -> None:
    sandbox.sweep({"x": {"values": [1]}}, metric={"name": "val/other", "goal": "maximize"})
    assert sandbox.run() == 1
    assert "'val/other', the metric of s.yaml, was not measured" in sandbox.table()[0]["error"]
    assert "has epoch, val/score" in sandbox.table()[0]["error"]


def test_another_sweep_is_refused(sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    assert sandbox.run("--count", "1") == 0
    sandbox.sweep({"x": {"values": [1, 2]}})
    assert sandbox.run() == 2
    assert "holds another sweep" in capsys.readouterr().err
    assert sandbox.run("--storage", str(sandbox.folder / "other" / "x.journal")) == 0
    assert (sandbox.folder / "other" / "best.yaml").exists()


def test_a_change_behind_the_command_makes_another_sweep(sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    assert sandbox.run() == 0
    (sandbox.folder / "base.txt").write_text("other settings")
    assert sandbox.run() == 2
    assert "holds another sweep (other parameters, settings," in capsys.readouterr().err
    before = {run_id for run_id, *_ in sandbox.starts}
    assert sandbox.run("--storage", str(sandbox.folder / "other" / "x.journal")) == 0
    assert len({run_id for run_id, *_ in sandbox.starts} - before) == 3  # finished runs of the former are not taken


def test_count(sandbox: Sandbox) -> None:
    """The trials of the study that have finished, whoever ran them."""
    sandbox.sweep({"x": {"min": 0.0, "max": 1.0}}, method="random", run_cap=1)
    for words, total in (
        ((), 1),
        (("--count", "1"), 1),
        (("--count", "4", "--parallel", "3"), 4),
        (("--count", "2"), 4),
    ):
        assert sandbox.run(*words) == 0
        assert len(sandbox.starts) == total


def test_the_best_row_counts(sandbox: Sandbox) -> None:
    """Not the last; the lowest when minimizing."""
    assert sandbox.run("--count", "1", "--", "--peak=1") == 0
    assert sandbox.table()[0]["val/score"] == "2.0"
    sandbox.sweep({"x": {"values": [1, 2]}}, name="min", metric={"name": "val/score", "goal": "minimize"})
    assert sandbox.run("--", "--peak=0") == 0
    assert [row["val/score"] for row in sandbox.table()] == ["1.0", "2.0"]
