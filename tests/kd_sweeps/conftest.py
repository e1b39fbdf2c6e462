"""The folder in which tests sweep a toy program."""

from pathlib import Path

import pytest
from sweep_sandbox import Sandbox

from kd_sweeps import worker


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(worker, "POLL_EVERY", 0.02)
    return Sandbox(tmp_path)
