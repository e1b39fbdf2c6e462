"""What a run tells at its end: the table of results."""

from __future__ import annotations

from typing import Any


def table(header: list[str], rows: list[list[str]]) -> str:
    """Plain-text table: first column to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in [header, *rows]
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def results(summary: dict[str, Any], baseline: dict[str, Any] | None) -> str:
    """Student alone, each teacher, their ensemble and the distilled student: accuracy, AUROC, parameters."""
    rows = []
    if baseline is not None:
        rows.append(_row(f"student alone ({baseline['student_model']})", baseline, baseline["parameters"]))
    for index, teacher in enumerate(summary.get("teachers", [])):
        rows.append(_row(f"teacher {index} ({teacher['name']})", teacher, teacher["parameters"]))
    if summary.get("ensemble"):
        rows.append(_row("teachers' ensemble", summary["ensemble"], sum(t["parameters"] for t in summary["teachers"])))
    kind = f"distilled student ({summary['student_model']}, {summary['kd_type']})" if rows else f"student ({summary['student_model']})"
    rows.append(_row(kind, summary, summary["parameters"]))
    split = "validation" if summary.get("val_accuracy") is not None else "training"
    return table(["", f"{split} accuracy", "AUROC", "parameters"], rows)


def _row(name: str, figures: dict[str, Any], parameters: int) -> list[str]:
    accuracy, area = figures.get("val_accuracy"), figures.get("val_auroc")
    return [name, "-" if accuracy is None else f"{accuracy:.2%}", "-" if area is None else f"{area:.4f}", f"{parameters:,}"]
