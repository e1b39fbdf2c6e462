#!/usr/bin/env python
"""Run a W&B sweep file on this machine or cluster: no account, no server, no network.

    python sweeps/run_local.py SWEEP.yaml                      a whole grid; the same command resumes it
    python sweeps/run_local.py SWEEP.yaml --count 30           until 30 trials have finished
    python sweeps/run_local.py SWEEP.yaml --parallel 2         two trials at a time
    python sweeps/run_local.py SWEEP.yaml --count 30 -- --training.max_epochs=5     extra arguments for every trial
    python sweeps/run_local.py SWEEP.yaml --count 30 --storage /shared/study.journal
                                                               the same command on any number of nodes: one sweep
    python sweeps/run_local.py SWEEP.yaml --trial 7            only point 7 of the grid (the first is 0), for job arrays

The file is one that `wandb sweep` accepts: methods grid, random and bayes (Optuna's TPE), all distributions,
hyperband.  Each trial gets its run id in KD_TRIAL, and WANDB_MODE=offline unless WANDB_MODE is set.  A trial's value is
the best value of the sweep's metric in its run folder's metrics.jsonl.  Beside the storage, by default
OUTPUT_DIR/sweeps/NAME/study.journal, are logs/, trials.csv, best.yaml, parallel_coordinates.png and importance.png.

--config may be given several times, in the file's command and after --; later files win.  Files named after -- replace
those of the sweep file's command.

On Linux, trials of `python train_kd.py` are forked from one process that has imported what all of them need, which is
what most of a short trial's time goes to; --separate lets each start on its own.

Ctrl-C, SIGTERM and SIGUSR1 stop the trials; the same command continues them.  If a worker dies, the others take over
its trials.  To retry the failed points of a grid, delete the storage: finished runs are not repeated.

exit status: 0 done, 2 a mistake in the file or command (no trial has run), 1 trials failed (three failures without a
             success end the sweep), 130, 143 or 138 stopped by a signal.  With --trial: the trial's own
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kd_core.errors import UserError
from kd_sweeps.sweep_file import Sweep, read_sweep
from kd_sweeps.trial_command import check_extra, with_own_configs


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names that the terminal cannot encode must not end the sweep
            stream.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if arguments is None else arguments)
    cut = words.index("--") if "--" in words else len(words)
    options, extra = parser().parse_args(words[:cut]), words[cut + 1 :]
    try:
        return run(options, extra)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        usage="run_local.py SWEEP.yaml [--count N] [--parallel P] [--storage FILE] [--separate] [-- ARGUMENTS...]\n"
        "       run_local.py SWEEP.yaml --trial N [-- ARGUMENTS...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("sweep", type=Path, metavar="SWEEP.yaml")
    made.add_argument("--count", type=int, metavar="N", help="stop when N trials have finished (default: the size of "
                      "the grid, or the file's run_cap)")  # fmt: skip
    made.add_argument("--parallel", type=int, default=1, metavar="P", help="number of concurrent trials (default: 1)")
    made.add_argument("--storage", type=Path, metavar="FILE", help="the study's journal; workers that name the same "
                      "file share a sweep")  # fmt: skip
    made.add_argument("--separate", action="store_true", help="let each trial start and import everything itself")
    made.add_argument("--trial", type=int, metavar="N", help="run only point N of the grid, without a storage")
    return made


def run(options: argparse.Namespace, extra: list[str]) -> int:
    """Check the file and the arguments, then run; the modules that run trials are imported after the checks."""
    sweep = read_sweep(options.sweep)
    check_extra(sweep, extra)
    sweep = with_own_configs(sweep, extra)
    if options.trial is not None:
        if options.count is not None or options.storage or options.parallel != 1:
            raise UserError("--trial runs one trial without a storage: leave out --count, --parallel and --storage")
        from kd_sweeps.trial import run_one

        return run_one(sweep, options.trial, extra)
    if options.parallel < 1:
        raise UserError(f"--parallel {options.parallel}: must be at least 1")
    limit = trials_to_run(sweep, options.count)
    from kd_sweeps.run import run_sweep

    return run_sweep(
        sweep, extra, limit=limit, parallel=options.parallel, storage=options.storage, fork=not options.separate
    )


def trials_to_run(sweep: Sweep, count: int | None) -> int:
    """--count, else the file's run_cap, else the size of the grid, which is also the maximum of a grid."""
    limit = count if count is not None else sweep.run_cap
    if sweep.method == "grid":
        limit = min(limit, sweep.grid_size()) if limit is not None else sweep.grid_size()
    if limit is None:
        raise UserError(f"--count: {sweep.path} has method {sweep.method} and no run_cap; set the number of trials")
    if limit < 1:
        raise UserError(f"--count {limit}: must be at least 1")
    return limit


if __name__ == "__main__":
    sys.exit(main())
