"""Tables as text, for a terminal, in Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from kd_core.errors import printable


def terminal(header: Sequence[str], rows: Sequence[Sequence[str]], *, rule_after: int = 0) -> str:
    """A table for a terminal: first column to the left, the others to the right; a second rule after so many rows."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)])

    rule = "-" * len(line(header))
    lines = [line(header), rule, *map(line, rows)]
    if rule_after:
        lines.insert(2 + rule_after, rule)
    return "\n".join(text.rstrip() for text in lines)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True) -> str:
    """A table in GitHub's Markdown, of escaped cells; `numbers` aligns all columns but the first to the right."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    rule = ["---", *["---:" if numbers else "---"] * (len(header) - 1)]
    return "\n".join(map(line, [header, rule, *rows]))


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Rows of plain values as CSV; text that a spreadsheet would run as a formula gets an apostrophe in front."""

    def cell(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return printable(f"'{value}" if value.startswith(tuple("=+-@\t\r")) else value)

    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([cell(value) for value in row] for row in rows)
    return text.getvalue()
