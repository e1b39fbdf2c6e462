"""Runs that end within an epoch, as if the process had been killed after a row of metrics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest

from kd_core.run import folder as run_folder


@contextmanager
def cut_off_at(step: int) -> Iterator[None]:
    """A run within the block ends once the row of that step is written; it has to get there."""
    original = run_folder.MetricsFile.append

    def cut(self, row):
        original(self, row)
        if row.get("train_step/step") == step:
            raise KeyboardInterrupt

    with patch.object(run_folder.MetricsFile, "append", cut), pytest.raises(KeyboardInterrupt):
        yield
