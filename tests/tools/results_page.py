#!/usr/bin/env python
"""Write what comes from records of runs, docs/results/*.json: tables and plot of docs/results.md, a table of README.md.

    python tests/tools/results_page.py [--check]

Each is what compare_kd.py makes of a record with the options below; `compare_kd.py RUNS --record FILE.json` adds runs.
"""

from __future__ import annotations

import shlex
import sys
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import generated_page
import results_cost
import results_facts
import results_plots

import compare_kd
from kd_core.comparison import runs, tables
from kd_core.report import text_table

ROOT = Path(__file__).resolve().parents[2]
PAGE, README, RECORDS = ROOT / "docs" / "results.md", ROOT / "README.md", ROOT / "docs" / "results"


def contrasts(*pairs: str) -> str:
    """The options of compare_kd.py that test these differences between sets of teachers."""
    return "--vary teachers --margin 0.5 " + " ".join(f"--contrast {shlex.quote(pair)}" for pair in pairs)


FIXED = (  # in advance
    "results-56-44:results-56", "results-56-44-32:results-56", "results-56-44-32-20:results-56",
    "results-micronet-56-44-32:results-micronet", "ca_mkd (scope=sample):results-56-44-32", "aekd:results-56-44-32",
)  # fmt: skip
# By the name of the table: records without their suffix, and options of compare_kd.py.
TABLES = {
    "learning rates": (
        "rate",
        "--metric val/accuracy --vary teachers,training.learning_rate --baseline 'alone (training.learning_rate=0.4)' "
        "--also train/accuracy,val/nll",
    ),
    "weight and temperature": (
        "tuning_kd",
        "--metric val/accuracy --baseline 'average (temperature=4.0, soft_weight=1.0)' --also train/accuracy,val/nll",
    ),
    "micronet's temperature": (
        "tuning_micronet", "--metric val/accuracy --baseline 'average (temperature=1.0)' --also train/accuracy,val/nll"
    ),
    "teachers": (
        "teachers",
        "--vary teachers --pooled --margin 0.5 --also train/accuracy,test/ece,test/nll,test/ensemble.agreement",
    ),
    "contrasts": ("teachers weightings", contrasts(*FIXED)),
    "other contrasts": (  # each set of ResNets against a smaller one; micronet, alone and beside ResNets
        "teachers",
        contrasts(
            "results-56-44-32:results-56-44", "results-56-44-32-20:results-56-44-32",
            "results-56-44-32-20:results-56-44", "results-micronet:results-56",
            "results-micronet-56-44-32:results-56-44-32",
        ),
    ),
    "views": (
        "teachers",
        contrasts(
            "results-56-shared:results-56", "results-56-44-shared:results-56-44",
            "results-56-44-32-shared:results-56-44-32", "results-56-44-32-20-shared:results-56-44-32-20",
            "results-56-44-shared:results-56-shared", "results-56-44-32-shared:results-56-shared",
            "results-56-44-32-20-shared:results-56-shared",
        ),
    ),
    "originals": (
        "teachers weightings",
        contrasts("ca_weighted:results-56-44-32", "confidence:results-56-44-32", "dynamic:results-56-44-32"),
    ),
    "weightings": (
        "weightings",
        "--baseline results-56-44-32 --pooled --margin 0.5 --also train/accuracy,test/ece,test/nll,train/kd_weight,"
        "train/teacher/0/weight,train/teacher/1/weight,train/teacher/2/weight",
    ),
    "teachers against one": ("teachers", "--vary teachers --baseline results-56 --pooled --margin 0.5"),
    "losses": ("losses_and_weightings", "--also test/nll,test/ece --pooled --margin 0.5"),
    "losses against average": (
        "losses_and_weightings", "--baseline 'average (loss=kd)' --also test/nll,test/ece --pooled --margin 0.5"
    ),
    "strong views": ("strong_views", "--vary augment --also train/accuracy,test/ece --pooled --margin 0.5"),
}


@cache  # tables, the summary and the differences by seed show the same contrasts
def compared(records: str, options: str) -> tuple[dict[str, Any], list[tables.Table]]:
    """What compare_kd.py finds in records, and its tables; if contrasts were asked for, their table alone."""
    given = compare_kd.parse([*_paths(records), *shlex.split(options)])
    result, found = compare_kd.compared(recorded(records), given)
    return result, found[-1:] if given.contrast else found


def table(records: str, options: str) -> str:
    """The command and its tables in Markdown."""
    _, shown = compared(records, options)
    command = f"```bash\npython compare_kd.py {' '.join(_paths(records))} {options}\n```"
    return "\n\n".join([command, *map(tables.markdown, shown)])


def _paths(records: str) -> list[str]:
    return [f"docs/results/{name}.json" for name in records.split()]


def summary() -> str:
    """The teachers in short: mean accuracy, and gains with intervals; those over one teacher were fixed in advance."""
    alone, taught = results_plots.rows(recorded("teachers").runs)
    tests = compared(*TABLES["contrasts"])[0]["contrasts"]
    fixed = {pair.partition(":")[0]: _gain(test) for pair, test in zip(FIXED, tests, strict=True)}
    rows = []
    for one, found in zip((alone, *taught), (None, *results_plots.gains(alone, taught)), strict=True):
        values = one.values(results_plots.METRIC)
        cells = [results_plots.name(one), str(len(values)), f"{100 * fmean(values.values()):.2f}%"]
        rows.append([*cells, _gain(found) if found else "", fixed.get(one.first.config.name, "")])
    gains = ["gain over the student alone [95%]", "over the first teacher alone [95%]"]
    return text_table.markdown(["teachers", "seeds", "test accuracy", *gains], rows)


def _gain(found: dict[str, Any]) -> str:
    interval = found["interval"] and " [{:+.2f}, {:+.2f}]".format(*(100 * edge for edge in found["interval"]))
    return f"{100 * found['mean']:+.2f}{interval or ''}"


def costs() -> str:
    """What each set of teachers costs in one training of the student."""
    rows = []
    alone, taught = results_plots.rows(recorded("teachers").runs)
    for one in (alone, *taught):
        cost, times = results_cost.of(one.first), [run.training_seconds for run in one.runs.values()]
        known = sorted({f"{seconds / 60:.0f}" for seconds in times if seconds is not None}, key=int)
        cells = [results_plots.name(one), f"{cost.student_passes}", f"{cost.teacher_passes}"]
        cells += [f"{cost.student:.1f}", f"{cost.teachers:.1f}"]
        rows.append([*cells, " to ".join(dict.fromkeys((known[0], known[-1]))) if known else ""])
    header = ["teachers", "student's passes", "teachers' passes", "student's arithmetic", "teachers'", "minutes"]
    return text_table.markdown(header, rows)


def hours() -> str:
    """What the training of each record took, and of all, where a run that two records hold counts once."""
    rows = []
    every: dict[str, runs.Run] = {}
    for path in sorted(RECORDS.glob("*.json")):
        found = {run.run_id: run for run in recorded(path.stem).runs}
        rows.append([f"[{path.stem}](results/{path.name})", *_time(found)])
        every |= found
    return text_table.markdown(["record", "runs", "hours"], [*rows, ["all", *_time(every)]])


def _time(found: dict[str, runs.Run]) -> tuple[str, str]:
    return str(len(found)), f"{sum(run.training_seconds or 0 for run in found.values()) / 3600:.1f}"


@cache  # several tables, the plot and the hours are of one record
def recorded(records: str) -> runs.Found:
    return runs.find([str(RECORDS / f"{name}.json") for name in records.split()])


def filled_in(text: str) -> str:
    """The page with its tables as they should be."""
    made = {name: table(*given) for name, given in TABLES.items()} | {"hours": hours(), "costs": costs()}
    found = recorded("teachers").runs
    made |= {
        "the teachers": results_facts.the_teachers(found),
        "classes": results_facts.classes(found),
        "by epoch": results_facts.by_epoch(found),
        "by seed": results_facts.by_seed(compared(*TABLES["contrasts"])[0], FIXED),
    }
    return generated_page.filled_in(text, "results_page.py", made)


def filled_in_readme(text: str) -> str:
    return generated_page.filled_in(text, "results_page.py", {"teachers in short": summary()})


PAGES = {PAGE: filled_in, README: filled_in_readme}


def draw(folder: Path) -> None:
    """Write the page's plot into `folder`."""
    results_plots.teachers(recorded("teachers").runs, folder / "teachers.png")


if __name__ == "__main__":
    status = generated_page.main(PAGES, __doc__, sys.argv[1:])
    if "--check" not in sys.argv:
        draw(RECORDS)
    sys.exit(status)
