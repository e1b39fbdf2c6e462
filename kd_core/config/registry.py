"""What later rooms tell the settings: data sources that were added, and artifacts that were downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

OwnSource = Literal["hub", "parquet", "imagefolder", "disk", "cifar_python", "digits"]


class Download(NamedTuple):
    """An artifact in a local folder; version: its full name, since an alias may have moved."""

    folder: Path
    version: str


added_sources: dict[str, Callable[..., Any]] = {}  # what opens a data source, by the source's name
downloads: dict[str, Download] = {}  # by the name that the settings give, ENTITY/PROJECT/NAME:ALIAS


def sources() -> list[str]:
    """Names of all data sources: the project's own, and those that were added."""
    return [*get_args(OwnSource), *added_sources]
