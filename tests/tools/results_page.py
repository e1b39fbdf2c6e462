#!/usr/bin/env python
"""Write the tables and the plot of docs/results.md that come from records of runs, docs/results/*.json.

    python tests/tools/results_page.py [--check]

Each is what compare_kd.py makes of a record with the options below; `compare_kd.py RUNS --record FILE.json` adds runs.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import generated_page
import results_plots

import compare_kd
from kd_core.comparison import runs, tables

ROOT = Path(__file__).resolve().parents[2]
PAGE, RECORDS = ROOT / "docs" / "results.md", ROOT / "docs" / "results"
# By the name of the table: the record without its suffix, and options of compare_kd.py.
TABLES = {
    "learning rates": (
        "rate", "--metric val/accuracy --vary teachers,training.learning_rate --also train/accuracy,val/nll"
    ),
    "teachers": (
        "teachers", "--vary teachers --also train/accuracy,test/ece,test/nll,test/ensemble.agreement --margin 0.5"
    ),
    "losses": ("losses_and_weightings", "--also test/nll,test/ece --pooled --margin 0.5"),
    "losses against average": (
        "losses_and_weightings", "--baseline 'average (loss=kd)' --also test/nll,test/ece --pooled --margin 0.5"
    ),
    "strong views": ("strong_views", "--vary augment --also train/accuracy,test/ece --pooled --margin 0.5"),
}


def compared(record: str, options: str) -> tuple[dict[str, Any], list[tables.Table]]:
    """What compare_kd.py finds in a record, and its tables."""
    given = compare_kd.parse([f"docs/results/{record}.json", *shlex.split(options)])
    return compare_kd.compared(runs.find([str(RECORDS / f"{record}.json")]), given)


def table(record: str, options: str) -> str:
    """The command and its tables in Markdown."""
    _, shown = compared(record, options)
    command = f"```bash\npython compare_kd.py docs/results/{record}.json {options}\n```"
    return "\n\n".join([command, *map(tables.markdown, shown)])


def filled_in(text: str) -> str:
    """The page with its tables as they should be."""
    return generated_page.filled_in(text, "results_page.py", {name: table(*given) for name, given in TABLES.items()})


def draw(folder: Path) -> None:
    """Write the page's plot into `folder`."""
    results_plots.teachers(runs.find([str(RECORDS / "teachers.json")]).runs, folder / "teachers.png")


if __name__ == "__main__":
    status = generated_page.main(PAGE, filled_in, __doc__, sys.argv[1:])
    if "--check" not in sys.argv:
        draw(RECORDS)
    sys.exit(status)
