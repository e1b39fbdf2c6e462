"""One worker of a sweep, from the first trial's settings to the plots."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import Path

import optuna

from kd_core.errors import UserError
from kd_sweeps.display import Display
from kd_sweeps.plots import plot
from kd_sweeps.results import best_of, write_results
from kd_sweeps.samplers import create_pruner
from kd_sweeps.study import SharedStudy, failed, ranking
from kd_sweeps.sweep_file import Sweep
from kd_sweeps.trial import Signals, default_storage
from kd_sweeps.trial_command import command_again, probe, require_metric
from kd_sweeps.worker import Worker


def run_sweep(
    sweep: Sweep, extra: list[str], *, limit: int, parallel: int, storage: Path | None, fork: bool = True
) -> int:
    """Run trials, `parallel` at a time, until `limit` of the study have ended; the exit status.

    `extra` are extra arguments for every trial's command, `storage` is the study's journal file.  `fork`: whether
    trials are forked from one process where that is possible.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sweep, output_dir, max_epochs = probe(sweep, extra)
    require_metric(sweep)
    create_pruner(sweep, max_epochs)  # finds mistakes before any file is written
    storage = (storage or default_storage(sweep, output_dir)).absolute()
    os.environ["KD_SWEEP"] = str(storage)  # beside it trials keep what all of them share: a precision that is measured
    try:
        shared = SharedStudy(sweep, extra, storage, max_epochs)
    except OSError as error:
        raise UserError(f"--storage {storage}: {error.strerror}") from None
    display = Display(sweep, max_epochs)
    if sweep.early_terminate and sweep.early_terminate.get("strict"):
        display.say("early_terminate.strict is not supported here and changes nothing")
    with Signals() as signals:
        try:
            with display:
                why = Worker(shared, output_dir, limit, parallel, display, fork=fork).run(signals)
        finally:
            shared.leave()
    best_run = write_results(shared, output_dir)
    display.closing(shared)
    if why == "stopped":
        words = shlex.join(["python", *sys.argv])
        display.say(f"stopped by {signal.Signals(signals.number).name}; the same command continues: {words}")
        return 128 + signals.number
    plot(shared, display)
    best = best_of(ranking(sweep, shared.trials()))
    if best:
        display.say(f"results: {storage.parent}")
    if best_run:
        display.say(f"retrain the best: {command_again(sweep, storage.parent / 'best.yaml')}")
        test = shlex.join(["python", "evaluate_kd.py", "--checkpoint", str(best_run), "--split", "test"])
        display.say(f"or measure the one that is trained on the test split: {test}")
    elif best:
        missing = f"{output_dir}/*-{best.user_attrs['run_id']}"
        display.say(f"best.yaml is not written: the best trial's run folder, {missing}, is not on this machine; "
                    "the same command writes it where the folder is")  # fmt: skip
    if why == "failures":
        print("three trials failed and none succeeded: the sweep ends here", file=sys.stderr)
    return int(any(map(failed, shared.trials())))
