#!/usr/bin/env python
"""Compare finished runs: seeds of one experiment together, methods side by side, and how certain a difference is.

    python compare_kd.py runs                                     all runs in a folder
    python compare_kd.py runs/average-* runs/dynamic-* --baseline average --also val/ece,val/auroc
    python compare_kd.py ENTITY/PROJECT --metric test/accuracy    the runs of a W&B project
    python compare_kd.py runs --rows kd.type,kd.loss --cols pair  a paper's table: methods by pairs of networks

switches:
    RUN ...              run folders, folders that hold run folders, records of runs (--record), ENTITY/PROJECT/ID or
                         ENTITY/PROJECT of W&B
    --metric NAME        what to compare (default: test/accuracy if all runs have it, else val/accuracy), such as
                         val/ece, or with dots a key of summary.json: cost.latency_ms.1
    --also NAMES         further metrics to show, separated by commas
    --baseline NAME      the group that others are compared with: a kd.type, an experiment's name, a group's label, or
                         "alone" (default: the student without teachers, of several the plainest, else the first group)
    --confidence LEVEL   confidence level of intervals and verdicts (default: 0.95)
    --vary KEYS          settings besides the method's in which compared runs may differ, separated by commas: teachers,
                         training.max_epochs, augment
    --contrast A:B       also test group A against group B, named as for --baseline, in each set that has both; may be
                         given several times, and p-values are corrected for their number
    --margin NUMBER      say of a difference whose interval lies within it that it does; in points of a percentage
    --pooled             test with one variance for all groups of a table: exploratory, for few seeds and many groups
    --rows KEYS          with --cols: a table of mean and standard deviation by any keys of the configuration,
    --cols KEYS          separated by commas; "pair" stands for TEACHERS -> STUDENT.  Missing cells are listed with the
                         commands that train them
    --same-data A=B      treat data with the fingerprints A and B (their first 8 characters or more) as one data set;
                         may be given several times
    --force              also compare runs that differ in more than the method, with a warning
    --import FILE.py     run a file of your own code first, with which runs were trained; repeatable (docs/own_code.md)
    --record FILE.json   also write the runs there, without what makes them large: a file to keep and to compare again
    --out FOLDER         also write comparison.html, .csv, .md, .tex, .json and plots there
    --help               this text

Runs that differ in data, teachers, epochs or other settings than the method's are not compared with each other: the
differences are listed, and each set has its own table.  How it is computed: docs/comparing.md.

exit status: 0 done, 2 a mistake in the arguments or files (one clear message), 1 a failure of this program
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: waiting threads spin, which starves other processes

import argparse
import re
from typing import Any

from kd_core.errors import CommandLine, UserError
from kd_core.files import check_writable, local_path
from kd_core.run.script import answer_early, run_script, show_help


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line -> switches, checked.  Imports nothing heavy."""
    parser = CommandLine("compare_kd.py")
    parser.add_argument("runs", nargs="*")
    for option in ("--metric", "--baseline", "--rows", "--cols", "--out", "--margin", "--record"):
        parser.add_argument(option)
    parser.add_argument("--import", dest="imports", action="append", default=[])
    for option in ("--also", "--vary"):
        parser.add_argument(option, default="")
    for option in ("--same-data", "--contrast"):
        parser.add_argument(option, action="append", default=[])
    parser.add_argument("--confidence", default="0.95")
    for switch in ("--force", "--pooled", "--help", "-h"):
        parser.add_argument(switch, action="store_true")
    options = parser.parse_intermixed_args(arguments)
    if options.help or options.h:
        show_help(__doc__ or "")
    if not options.runs:
        raise UserError("say what to compare: run folders, a folder that holds them, or ENTITY/PROJECT of W&B")
    if bool(options.rows) != bool(options.cols):
        raise UserError("--rows and --cols: one needs the other, such as --rows kd.type,kd.loss --cols pair")
    unused = ("--also", "--baseline", "--vary", "--contrast", "--margin", "--pooled")
    if options.rows and (given := [name for name in unused if getattr(options, name[2:])]):
        raise UserError(f"{', '.join(given)}: cannot be used with --rows and --cols, whose table shows means alone")
    for name, example in (("--confidence", "0.95"), ("--margin", "0.5")):
        try:
            value = getattr(options, name[2:])
            setattr(options, name[2:], None if value is None else float(value))
        except ValueError:
            raise UserError(f"{name}: is {value!r}, a number such as {example} is needed") from None
    for index, pair in enumerate(options.same_data):
        if not re.fullmatch("[0-9a-f]{8,64}=[0-9a-f]{8,64}", pair.lower()):
            raise UserError(
                f"--same-data: is {pair!r}, expected two fingerprints, A=B, each by its first 8 or more of the "
                "characters 0-9, a-f"
            )
        options.same_data[index] = tuple(pair.lower().split("="))
    for name in ("also", "vary"):
        setattr(options, name, [part.strip() for part in getattr(options, name).split(",") if part.strip()])
    if options.out:
        options.out = local_path(options.out, "--out")
        check_writable(options.out, "--out")
    if options.record:
        options.record = local_path(options.record, "--record")
        if options.record.suffix != ".json":
            raise UserError(f"--record: is {str(options.record)!r}, expected the name of a .json file")
        check_writable(options.record.parent, "--record")
    return options


if __name__ == "__main__":  # before the imports below, which take seconds
    answer_early(parse, "compare_kd.py")

from kd_core.comparison import compare, pivot, recorded, runs, tables
from kd_core.config import own_code


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    own_code.run(options.imports)
    found = runs.find(options.runs)
    runs.as_same_data(found, options.same_data)
    result, shown = compared(found, options)
    text = tables.text(result, shown)
    if options.out:
        written = tables.write(options.out, result, shown)
        text += f"\n\nwritten to {options.out}: {', '.join(path.name for path in written)}"
    if options.record:
        counted = compare.that_count(found.runs)
        recorded.write(options.record, counted)
        text += f"\n\n{len(counted)} runs recorded; compare them by: python compare_kd.py {options.record}"
    print(text)


def compared(found: runs.Found, options: argparse.Namespace) -> tuple[dict[str, Any], list[tables.Table]]:
    """What the options ask of the runs, and its tables."""
    settings = dict(metric=options.metric, confidence=options.confidence, force=options.force)
    if options.rows:
        result = pivot.pivot(found, options.rows, options.cols, **settings)
        return result, [tables.table_of(result)]
    tests = dict(vary=options.vary, contrasts=options.contrast, margin=options.margin, pool=options.pooled)
    result = compare.compare(found, also=options.also, baseline=options.baseline, **tests, **settings)
    return result, tables.tables_of(result)


if __name__ == "__main__":
    run_script(main, "compare_kd.py")
