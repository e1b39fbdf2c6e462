"""Removes home folder paths and URL credentials from what is stored or sent."""

import re
from pathlib import Path
from typing import Any

CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")  # user:password@ of a URL


def redacted(value: Any) -> Any:
    """Plain data or text with `~` for the home folder and without URL credentials."""
    homes = {str(Path.home()), str(Path.home().resolve())} - {"/"}
    patterns = [re.compile(rf"(?<![\w.~-]){re.escape(home)}(?![\w-]|\.\w)") for home in homes]
    return _redacted(value, patterns)


def _redacted(value: Any, homes: list[re.Pattern[str]]) -> Any:
    if isinstance(value, dict):
        return {_redacted(key, homes): _redacted(item, homes) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_redacted(item, homes) for item in value]
    if not isinstance(value, str):
        return value
    for home in homes:
        value = home.sub("~", value)
    return CREDENTIALS.sub("", value)
