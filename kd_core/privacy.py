"""Removes home folder paths and URL credentials from what is stored or sent."""

import re
from pathlib import Path
from typing import Any

CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")  # user:password@ of a URL


def redacted(value: Any) -> Any:
    """Plain data or text with `~` for the home folder and without URL credentials."""
    if isinstance(value, dict):
        return {redacted(key): redacted(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted(item) for item in value]
    if not isinstance(value, str):
        return value
    for home in {str(Path.home()), str(Path.home().resolve())} - {"/"}:
        value = re.sub(rf"(?<![\w.~-]){re.escape(home)}(?![\w-]|\.\w)", "~", value)
    return CREDENTIALS.sub("", value)
