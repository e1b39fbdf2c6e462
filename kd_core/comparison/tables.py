"""Comparisons as tables: for the terminal, Markdown, LaTeX, CSV and the page.  Names in them are escaped for each."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kd_core.comparison import compare, runs
from kd_core.comparison.compare import ALONE, is_percent, short
from kd_core.config import import_words
from kd_core.errors import UserError, printable
from kd_core.files import writable_folder, write_json, write_text, writing
from kd_core.loop.timing import clock
from kd_core.report import text_table

NOTHING = "-"
SIZES = {"parameters": "parameters", "multiply_adds": "multiply-adds"}  # of the student
MARKS = {"best": "*", "second": "°"}  # in the terminal, which has neither bold nor underlined text to copy


@dataclass
class Cell:
    """What is shown, the number to sort by, and whether it is the best or second of its column."""

    text: str
    value: float | None = None
    mark: Literal["best", "second"] | None = None


@dataclass
class Table:
    """A title, header cells, rows of cells of which the first names the row, and sentences below."""

    title: str
    header: list[str]
    rows: list[list[Cell]]
    notes: list[str] = field(default_factory=list)
    rule_after: int = 0  # rows above a rule


# ------------------------------------------------------------------------------------------------- what is shown


def figure(value: float, metric: str, *, beside: float | None = None, signed: bool = False) -> str:
    """A value of a metric: shares in percent, anything else with as many decimal places as the number `beside` it."""
    sign = "+" if signed else ""
    if is_percent(metric):
        return f"{100 * value:{sign}.2f}"
    scale = abs(value if beside is None else beside)
    return f"{value:{sign},.{4 if scale < 10 else 2 if scale < 1000 else 0}f}"


def mean_and_deviation(found: dict[str, Any] | None, metric: str, *, count: bool = False) -> Cell:
    """mean ± sample standard deviation, with `count` also the number of seeds; one seed has no deviation."""
    if found is None:
        return Cell(NOTHING)
    text = figure(found["mean"], metric)
    if found["deviation"] is not None:
        text += f" ± {figure(found['deviation'], metric, beside=found['mean'])}"
    return Cell(text + (f" ({found['n']})" if count else ""), found["mean"], found.get("mark"))


def _heading(metric: str) -> str:
    return f"{metric} %" if is_percent(metric) else metric


def _count(value: float | None) -> Cell:
    return Cell(NOTHING if value is None else f"{value:,.0f}", value)


def tables_of(compared: dict[str, Any]) -> list[Table]:
    """A table for each set of what `compare.compare` gives."""
    metric, also = compared["metric"], compared["also"]
    level = f"{100 * compared['confidence_level']:g}%"
    tables = []
    for number, one in enumerate(compared["sets"], 1):
        known = {key for row in one["groups"] for key, value in row["cost"].items() if value is not None}
        same = _same_costs(one["groups"])
        known -= same.keys()
        tested = any(row["against_baseline"] for row in one["groups"])
        header = ["method", "seeds", _heading(metric)]
        header += [f"against {one['baseline_label']} [{level}]", "p (Holm)", "verdict"] if tested else []
        header += [_heading(name) for name in also]
        costs = {"training_seconds": "training", **SIZES}
        header += [title for key, title in costs.items() if key in known]
        rows = []
        for row in one["groups"]:
            cells = [Cell(row["label"]), Cell(str(row["n"]), row["n"]), mean_and_deviation(row, metric)]
            cells += _test(row["against_baseline"], metric, compared["margin"]) if tested else []
            cells += [mean_and_deviation(row["also"][name], name) for name in also]
            seconds = row["cost"]["training_seconds"]
            if "training_seconds" in known:
                cells.append(Cell(NOTHING if seconds is None else clock(seconds), seconds))
            cells += [_count(row["cost"][key]) for key in SIZES if key in known]
            rows.append(cells)
        several = f"set {number}: " if len(compared["sets"]) > 1 else ""
        student = f"; every student has {' and '.join(same.values())}" if same else ""
        notes = [f"budget: {one['budget']}{student}", *_pooled(one["pooled"], metric), *one["warnings"]]
        tables.append(Table(f"{several}{one['title']}", header, rows, notes))
    return [*tables, *_contrasts(compared, level)]


def _same_costs(groups: list[dict[str, Any]]) -> dict[str, str]:
    """The sizes that several rows have in common, in words: they need no columns."""
    found = {}
    for key, words in SIZES.items():
        values = {row["cost"][key] for row in groups}
        if len(groups) > 1 and len(values) == 1 and (value := values.pop()) is not None:
            found[key] = f"{value:,.0f} {words}"
    return found


def _pooled(pooled: dict[str, Any] | None, metric: str) -> list[str]:
    """What tests with a pooled variance assume, as a note."""
    if pooled is None:
        return []
    unit = " points" if is_percent(metric) else ""
    return [
        f"exploratory: one variance for all {pooled['groups']} groups, of {pooled['runs']} runs: a run deviates by "
        f"{figure(pooled['deviation'], metric)}{unit} ({pooled['freedom']} degrees of freedom)"
    ]


def _contrasts(compared: dict[str, Any], level: str) -> list[Table]:
    """The table of the differences that were asked for by name, if there are any."""
    metric = compared["metric"]
    rows = [
        [
            Cell(f"{test['label']} against {test['against']}" + (f", {test['title']}" if test["title"] else "")),
            Cell(str(len(test["seeds"])), len(test["seeds"])),
            *_test(test, metric, compared["margin"]),
        ]
        for test in compared["contrasts"]
    ]
    header = ["contrast", "seeds", f"{_heading(metric)}: difference [{level}]", "p (Holm)", "verdict"]
    notes = dict.fromkeys(warning for test in compared["contrasts"] for warning in test["warnings"])
    corrected = "p is corrected for the number of these contrasts alone"
    return [Table("contrasts", header, rows, [corrected, *notes])] if rows else []


def _test(test: dict[str, Any] | None, metric: str, margin: float | None) -> list[Cell]:
    if test is None:
        return [Cell(NOTHING)] * 3
    text = figure(test["mean"], metric, signed=True)
    if test["interval"]:
        edges = (figure(edge, metric, beside=test["mean"], signed=True) for edge in test["interval"])
        text += f" [{', '.join(edges)}]"
    p = test["p_holm"]
    shown = NOTHING if p is None else "<0.0001" if p < 1e-4 else f"{p:.4f}"
    within = f", within {margin:g}" if test["within_margin"] else ""
    return [Cell(text, test["mean"]), Cell(shown, p), Cell(test["verdict"] + within)]


def table_of(pivoted: dict[str, Any]) -> Table:
    """The paper's table of what `pivot.pivot` gives."""
    metric = pivoted["metric"]
    rows = []
    if any(pivoted["teachers"]):
        cells = [Cell("teacher")]
        for teachers in pivoted["teachers"]:
            values = [None if one["value"] is None else figure(one["value"], metric) for one in teachers]
            cells.append(Cell(" / ".join(value or NOTHING for value in values) if values else NOTHING))
        rows.append(cells)
    if any(pivoted["alone"]):
        rows.append([Cell(f"student {ALONE}"), *(mean_and_deviation(c, metric, count=True) for c in pivoted["alone"])])
    headers = len(rows)
    for name, cells in zip(pivoted["rows"], pivoted["cells"], strict=True):
        rows.append([Cell(name), *(mean_and_deviation(cell, metric, count=True) for cell in cells)])
    unit = ", percent" if is_percent(metric) else ""
    title = f"{metric}{unit}: mean ± sample standard deviation (number of seeds n)"
    header = [", ".join(pivoted["row_keys"]), *pivoted["cols"]]
    return Table(title, header, rows, [*pivoted["warnings"], *_gaps(pivoted), _marks(pivoted)], headers)


def _gaps(pivoted: dict[str, Any]) -> list[str]:
    """Notes on a paper's table: its empty cells, and cells with fewer seeds than others of the column."""
    lines = [(f"student {ALONE}", pivoted["alone"])] if any(pivoted["alone"]) else []
    lines += list(zip(pivoted["rows"], pivoted["cells"], strict=True))
    empty, fewer, unknown = "missing, no finished run", "missing seeds that others of the column have", "missing values"
    gaps: dict[str, list[str]] = {empty: [], fewer: [], unknown: []}
    for row, cells in lines:
        for column, cell in zip(pivoted["cols"], cells, strict=True):
            lacking = [one for one in pivoted["missing"] if (one["row"], one["column"]) == (row, column)]
            if cell is None and (lacking or cells is not pivoted["alone"]):  # else several students alone fit
                finished = any(one["finished"] for one in lacking)
                gaps[unknown if finished else empty].append(f"{row} in {column}")
            elif cell and lacking:
                seeds = ", ".join(map(str, sorted(seed for one in lacking for seed in one["seeds"])))
                gaps[fewer].append(f"{row} in {column} ({seeds})")
    for column, teachers in zip(pivoted["cols"], pivoted["teachers"], strict=True):
        if any(pivoted["teachers"]) and not (teachers and all(one["value"] is not None for one in teachers)):
            gaps[unknown].append(f"teacher in {column}")
    return [f"{reason}: {'; '.join(cells)}" for reason, cells in gaps.items() if cells]


def _marks(pivoted: dict[str, Any]) -> str:
    """The meaning of the marks in a paper's table."""
    level = f"{100 * pivoted['confidence_level']:g}%"
    rule = f"if the {level} interval of its difference to the next one, the student alone counted, leaves out 0"
    marked = any(cell and cell["mark"] for row in pivoted["cells"] for cell in row)
    return f"the best of a column, and then the second, is marked only {rule}{'' if marked else '; none is here'}"


def remarks(compared: dict[str, Any]) -> list[str]:
    """Remarks on a whole comparison: why its sets are separate, and which runs were left out."""
    lines = list(compared.get("notes", []))
    if compared.get("differences"):
        if compared["forced"]:
            names = "; ".join(f"{number}: {title}" for number, title in enumerate(compared["apart"], 1))
            lines.append(f"compared anyway (--force), although these differ in more than the method: {names}")
        else:
            lines.append("the sets differ in more than the method, so they are not compared (--force compares them):")
        for difference in compared["differences"]:
            places = _by_value((short(value), str(number)) for number, value in enumerate(difference["values"], 1))
            values = "; ".join(f"{value} in {', '.join(numbers)}" for value, numbers in places.items())
            lines.append(f"  {difference['key']}: {values}")
    if compared["left_out"]:
        lines.append("left out:")
        reasons = _by_value((one["reason"], one["run"]) for one in compared["left_out"])
        lines += [f"  {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    return lines


def _by_value(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for value, name in pairs:
        found.setdefault(value, []).append(name)
    return found


# ----------------------------------------------------------------------------------------------------- the formats


def one_line(text: str) -> str:
    """Text from data on one line, without control characters."""
    return printable(" ".join(text.split()))


def terminal(table: Table) -> str:
    """A table as plain text; the best of a column is marked `*`, the second `°`."""
    rows = [[one_line(cell.text) + MARKS.get(cell.mark or "", "") for cell in row] for row in table.rows]
    body = text_table.terminal([one_line(cell) for cell in table.header], rows, rule_after=table.rule_after)
    marks = {cell.mark for row in table.rows for cell in row if cell.mark}
    legend = [", ".join(f"{sign} {mark}" for mark, sign in MARKS.items() if mark in marks)] if marks else []
    notes = [f"note: {one_line(note)}" for note in table.notes]
    return "\n".join([one_line(table.title), body, *legend, *notes])


def markdown(table: Table) -> str:
    """A table in GitHub's Markdown; the best bold, the second underlined."""

    def escape(text: str) -> str:
        return re.sub(r"([\\`*_\[\]<>|~#&])", r"\\\1", one_line(text))

    wrap: dict[str | None, Callable[[str], str]] = {
        None: str,
        "best": lambda text: f"**{text}**",
        "second": lambda text: f"<u>{text}</u>",
    }
    rows = [[wrap[cell.mark](escape(cell.text)) for cell in row] for row in table.rows]
    body = text_table.markdown([escape(cell) for cell in table.header], rows)
    notes = ["", *(f"- {escape(note)}" for note in table.notes)] if table.notes else []
    return "\n".join([f"**{escape(table.title)}**", "", body, *notes])


TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "±": r"$\pm$", "°": r"\textdegree{}",
}  # fmt: skip


def tex_escape(text: str) -> str:
    """Text of data for LaTeX; `->` becomes an arrow, the sign of a number a minus."""
    parts = one_line(text).split("->")
    escaped = ["".join(TEX.get(character, character) for character in part) for part in parts]
    return re.sub(r"(?<![\w.$-])-(?=\d)", "$-$", r"$\rightarrow$".join(escaped))


def latex(table: Table) -> str:
    """A table in LaTeX with booktabs; the best bold, the second underlined."""
    wrap = {None: "{}", "best": r"\textbf{{{}}}", "second": r"\underline{{{}}}"}

    def line(cells: list[str]) -> str:
        return f"{' & '.join(cells)} \\\\"

    rows = [line([wrap[cell.mark].format(tex_escape(cell.text)) for cell in row]) for row in table.rows]
    if table.rule_after:
        rows.insert(table.rule_after, r"\midrule")
    return "\n".join(
        [
            rf"% {one_line(table.title)}",
            r"% needs \usepackage{booktabs}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
            r"\toprule",
            line([tex_escape(cell) for cell in table.header]),
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            *_latex_notes(table),
        ]
    )


def _latex_notes(table: Table) -> list[str]:
    """The title, which names the metric, and the notes, in small print below a table."""
    return [
        r"\par\smallskip",
        r"{\footnotesize",
        *(rf"{tex_escape(line)}.\par" for line in (table.title, *table.notes)),
        "}",
    ]


def csv_of(compared: dict[str, Any]) -> str:
    """One line for each group of each set, numbers as they are."""
    header = ["set", "title", "method", "experiment", "label", "metric", "n", "seeds", "mean", "deviation"]
    header += ["low", "high", "baseline_label", "test", "difference", "difference_low", "difference_high"]
    header += ["p", "p_holm", "verdict", "training_seconds", "parameters", "multiply_adds"]
    header += [f"{name}{part}" for name in compared["also"] for part in ("", " deviation")]
    rows = []
    for number, one in enumerate(compared["sets"], 1):
        for row in one["groups"]:
            test = row["against_baseline"] or {}
            seeds = " ".join(str(seed["seed"]) for seed in row["seeds"])
            cells = [number, one["title"], row["method"], row["experiment"], row["label"], compared["metric"], row["n"]]
            cells += [seeds, row["mean"], row["deviation"], *(row["interval"] or (None, None))]
            cells += [one["baseline_label"] if test else None, test.get("kind"), test.get("mean")]
            cells += [*(test.get("interval") or (None, None)), test.get("p"), test.get("p_holm"), test.get("verdict")]
            cells += [row["cost"][key] for key in ("training_seconds", "parameters", "multiply_adds")]
            for name in compared["also"]:
                other = row["also"][name] or {}
                cells += [other.get("mean"), other.get("deviation")]
            rows.append(cells)
    return text_table.csv_text([header, *rows])


def csv_of_contrasts(compared: dict[str, Any]) -> str:
    """One line for each contrast, numbers as they are."""
    header = ["label", "against", "metric", "seeds", "test", "difference", "difference_low", "difference_high"]
    judged = ["p", "p_holm", "verdict", "within_margin", "title"]
    rows = []
    for one in compared["contrasts"]:
        cells = [one["label"], one["against"], compared["metric"], " ".join(map(str, one["seeds"])), one["kind"]]
        rows.append([*cells, one["mean"], *(one["interval"] or (None, None)), *(one[key] for key in judged)])
    return text_table.csv_text([[*header, *judged], *rows])


def csv_of_pivot(pivoted: dict[str, Any]) -> str:
    """One line for each cell of the paper's table, numbers as they are."""
    rows: list[list[Any]] = []
    for column, teachers in zip(pivoted["cols"], pivoted["teachers"], strict=True):
        for one in teachers:
            rows.append([f"teacher {one['name']}", column, pivoted["metric"], None, None, one["value"], None])
    filled = [(f"student {ALONE}", pivoted["alone"]), *zip(pivoted["rows"], pivoted["cells"], strict=True)]
    for name, cells in filled:
        for column, cell in zip(pivoted["cols"], cells, strict=True):
            if cell:
                seeds = " ".join(map(str, cell["seeds"]))
                rows.append([name, column, pivoted["metric"], cell["n"], seeds, cell["mean"], cell["deviation"]])
    return text_table.csv_text([["row", "column", "metric", "n", "seeds", "mean", "deviation"], *rows])


# ------------------------------------------------------------------------------------------------------- all of it


def text(result: dict[str, Any], tables: list[Table]) -> str:
    """What the terminal shows of a comparison or a paper's table."""
    parts = [terminal(table) for table in tables]
    below = [printable(line) for line in remarks(result)]
    if result.get("missing"):
        below += ["missing, and what would train it:"]
        for one in result["missing"]:
            below += [f"  {one_line(one['row'])}, {one_line(one['column'])}:", f"    {one_line(one['command'])}"]
    return "\n\n".join([*parts, *(["\n".join(below)] if below else [])])


def of_folders(folders: list[str], imports: Iterable[str] = ()) -> str:
    """The comparison of the finished runs in these folders as text, and the command that prints it again.

    `imports`: the files of --import.
    """
    command = shlex.join(["python", "compare_kd.py", *import_words(imports), *folders])
    try:
        compared = compare.compare(runs.find(folders))
    except UserError as error:  # data with neither a validation nor a test split, say: no reason to fail after all
        return f"nothing to compare: {error}"
    return f"{text(compared, tables_of(compared))}\n\ncompare: {command}"


def write(folder: Path, result: dict[str, Any], tables: list[Table]) -> list[Path]:
    """Write comparison.json, .csv, .md, .tex and .html, the plots of the page, and contrasts.csv where there are any.

    Returns the paths of the files but the plots.

    UserError if the folder cannot be written.
    """
    from kd_core.report import html  # not above: only files need it

    writable_folder(folder, "--out")
    below = remarks(result)
    files = {
        "comparison.csv": csv_of(result) if "sets" in result else csv_of_pivot(result),
        "comparison.md": "\n\n".join(map(markdown, tables)) + "\n",
        "comparison.tex": "\n\n".join(map(latex, tables)) + "\n",
        **({"contrasts.csv": csv_of_contrasts(result)} if result.get("contrasts") else {}),
    }
    with writing(folder):
        drawn = _plots(folder, result)
        values = {
            "result": result,
            "tables": tables,
            "remarks": below,
            "missing": result.get("missing", []),
            "plots": [(html.data_uri(path), alt, caption) for path, alt, caption in drawn],
        }
        for name, content in {**files, "comparison.html": html.render("comparison.html", **values)}.items():
            write_text(folder / name, content)
        write_json(folder / "comparison.json", result)
    return [folder / name for name in (*files, "comparison.html", "comparison.json")]


def _plots(folder: Path, result: dict[str, Any]) -> list[tuple[Path, str, str]]:
    """(file, what it shows, how to read it) of the plots of each set; of several those in which groups are compared."""
    from kd_core.report import plots  # not above: imports matplotlib, which takes a second

    found = []
    for number, one in enumerate(result.get("sets", []), 1):
        if len(one["groups"]) == 1 < len(result["sets"]):
            continue
        groups, metric = one["groups"], result["metric"]
        suffix = f"-{number}" if len(result["sets"]) > 1 else ""
        percent, level = is_percent(metric), f"{100 * result['confidence_level']:g}%"
        points = {row["label"]: [seed["value"] for seed in row["seeds"]] for row in groups}
        path = folder / f"seeds{suffix}.png"
        plots.save(
            plots.seeds(points, [(row["mean"], row["interval"]) for row in groups], metric, percent=percent), path
        )
        alt = "; ".join(f"{row['label']}: {figure(row['mean'], metric)}" for row in groups)
        reads = f"Each small point is a seed, each large one the mean, with its {level} t confidence interval."
        found.append((path, f"{metric} of {alt}", f"{one['title']}: {metric}. {reads}"))
        timed = [row for row in groups if row["cost"]["training_seconds"] is not None]
        if timed:
            path = folder / f"cost{suffix}.png"
            costs = {row["label"]: (row["cost"]["training_seconds"], row["mean"], row["deviation"]) for row in timed}
            plots.save(plots.against_cost(costs, metric, percent=percent, within=compare.limits(metric)), path)
            times = "; ".join(f"{row['label']}: {clock(row['cost']['training_seconds'])}" for row in timed)
            caption = f"{one['title']}: {metric} against training time, mean and standard deviation over the seeds."
            found.append((path, f"training time of {times}", f"{caption} Compare times on equal machines only."))
    return found
