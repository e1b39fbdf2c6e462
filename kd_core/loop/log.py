"""Messages of a run: one line each, from the main process only, above any progress bar."""

from __future__ import annotations

import logging
import re

from accelerate.logging import get_logger
from tqdm import tqdm

from kd_core.errors import printable


class _Terminal(logging.Handler):
    """Prints plain messages on stdout, and keeps progress bars below them."""

    def emit(self, record: logging.LogRecord) -> None:
        # Accelerate prefixes every message with the process's rank, but only the main process prints.
        tqdm.write(printable(re.sub(r"^\[RANK \d+\] ", "", record.getMessage())))


_logger = get_logger("kd")
_logger.logger.addHandler(_Terminal())
_logger.logger.setLevel(logging.INFO)
_logger.logger.propagate = False


def say(text: str) -> None:
    """Print `text` if this is the main process.  RuntimeError before an Accelerator is created."""
    _logger.info(text)
