"""train_kd.py, which gets SIGTERM in the step of a given number: `python stopped_after.py STEP [train_kd.py's words]`.

A signal from outside comes a little earlier or later each time.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import train_kd
from kd_core.run.script import run_script


def main(arguments: list[str]) -> None:
    last, words = int(arguments[0]), arguments[1:]
    train_step = train_kd.train_step

    def stopping(setup: Any, plan: Any, position: int, step: int) -> None:
        train_step(setup, plan, position, step)
        if step + 1 == last:
            signal.raise_signal(signal.SIGTERM)

    train_kd.train_step = stopping
    train_kd.main(words)


if __name__ == "__main__":
    run_script(main, "train_kd.py")
