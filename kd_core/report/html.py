"""Self-contained HTML pages: one file that loads nothing, safe for any names that it shows."""

from __future__ import annotations

import base64
import hashlib
import math
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from kd_core.errors import printable
from kd_core.evaluation.metric_names import LABELS
from kd_core.run.folder import lookup

TEMPLATES = Path(__file__).parent / "templates"
MISSING = "–"  # shown if nothing was measured
Kind = Literal["share", "points", "error", "figure", "count", "bytes", "text"]


def render(template_name: str, **values: Any) -> str:
    """The page that `template_name` in kd_core/report/templates makes of `values`.  It extends base.html.

    Strings in `values` are data: they are escaped, and control characters are spelled out.  jinja2.UndefinedError if
    the template uses a name that `values` lacks.
    """
    return _environment.get_template(template_name).render(**values)


def data_uri(path: Path) -> str:
    """The PNG file `path` as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def shown(value: Any, kind: Kind) -> str:
    """A value as text for a page.

    share: a fraction in percent; points: a difference of fractions in percentage points, with its sign; error: its
    standard error, without a sign; figure: four significant digits; count: a whole number; bytes: a size in MB; text:
    unchanged.  None and NaN become MISSING.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    if kind == "share":
        return f"{100 * value:.2f}%"
    if kind == "points":
        return f"{100 * value:{'+' if value else ''}.2f} points".replace("-", "−")
    if kind == "error":
        return f"{100 * value:.2f} points"
    if kind == "figure":
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}"
    if kind == "count":
        return f"{value:,}"
    if kind == "bytes":
        return f"{value / 1e6:,.2f} MB"
    return str(value)


def _finalize(value: Any) -> Any:
    """Spell out control characters in text; a macro's HTML is left alone, since its parts have been through here."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _policy(style: str, script: str) -> str:
    """A Content-Security-Policy: this style and this script, images that the page holds itself, and nothing else."""

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; style-src {digest(style)}; script-src {digest(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _create_environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    environment.globals.update(
        style=style,
        script=script,
        policy=_policy(style, script),
        lookup=lookup,
        shown=shown,
        labels=LABELS,
        MISSING=MISSING,
    )
    return environment


_environment = _create_environment()
_environment.get_template("report.html")  # compiled once here, so that processes forked from this one need not
