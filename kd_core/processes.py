"""Processes and devices: starting Accelerate, and keeping processes in step."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast
from torch import nn

from kd_core.errors import UserError

# One process may decode a large data set, or wait for a teacher that another job trains, while the others wait for it.
PATIENCE = timedelta(hours=24)


def create_accelerator(mixed_precision: str, *, deterministic: bool = False) -> Accelerator:
    """The process's Accelerator: on a GPU if there is one, else on the CPU, in however many processes were started.

    UserError for fp16 on a CPU, and if the launcher's settings ask for gradient accumulation, which the training loop
    does not do.
    """
    if mixed_precision == "fp16" and not torch.cuda.is_available():
        raise UserError("training.mixed_precision: fp16 needs a GPU; on a CPU use bf16 or no")
    # Accelerate joins several processes on a CPU only if it is told to use the CPU; otherwise each would train alone.
    # Apple's GPUs lack float64, in which metrics are summed.
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        cpu=not torch.cuda.is_available(),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    if accelerator.gradient_accumulation_steps != 1:
        raise UserError(
            f"accelerate: gradient_accumulation_steps is {accelerator.gradient_accumulation_steps}, only 1 is "
            "supported; change it with 'accelerate config', or unset ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
        )
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not deterministic  # batches all have one shape
    return accelerator


def is_first_process() -> bool:
    """Whether this process speaks for all, also before Accelerate is started."""
    return os.environ.get("RANK", "0") == "0"


def share_buffers(model: nn.Module, accelerator: Accelerator) -> None:
    """Give all processes the first one's buffers: BatchNorm statistics differ after a step, and one set is exported."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer))
