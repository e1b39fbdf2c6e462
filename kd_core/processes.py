"""Starting Accelerate."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator


def create_accelerator(mixed_precision: str) -> Accelerator:
    """The process's Accelerator, also where a launcher started several processes on a machine without accelerators.

    Accelerate joins such processes only if it is told to use the CPU; otherwise each would train alone.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return Accelerator(mixed_precision=mixed_precision, cpu=several and not torch.accelerator.is_available())
