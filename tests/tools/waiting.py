"""Wait for what other processes do."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def wait_for(condition: Callable[[], Any], what: str, process: Any = None, seconds: float = 300) -> None:
    """Wait until `condition` holds; fails after a timeout, or once `process`, if one is given, has ended before."""
    limit = time.monotonic() + seconds
    while not condition():
        alive = process is None or process.poll() is None
        assert alive and time.monotonic() < limit, f"waited in vain for {what}\n{getattr(process, 'printed', '')}"
        time.sleep(0.02)


def wait_for_checkpoint(output: Path, process: Any, name: str = "latest") -> None:
    """Wait until a run in folder `output` has written a checkpoint."""
    wait_for(lambda: list(output.glob(f"*/checkpoints/{name}")), "a checkpoint", process, 120)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
