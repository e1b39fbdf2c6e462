"""Processes and devices: starting Accelerate, keeping processes in step, and stopping them."""

from __future__ import annotations

import ctypes
import os
import random
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast, broadcast_object_list, is_bf16_available
from torch import Tensor, nn
from torch.distributed import DistNetworkError, DistStoreError

from kd_core.errors import UserError, first_line
from kd_core.loop import launcher
from kd_core.loop.ranks import is_first_process
from kd_core.loop.signals import StopSignals, ended_by_signals
from kd_methods.feature_losses._base import with_own_rows

# The others wait while one process decodes a large data set, or waits for a teacher that another job trains.
PATIENCE = timedelta(hours=24)
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def create_accelerator(
    mixed_precision: str | None,
    *,
    deterministic: bool = False,
    choose: Callable[[torch.device], str] | None = None,
) -> Accelerator:
    """The process's Accelerator: on a GPU if there is one, else on the CPU, for any number of processes.

    `mixed_precision` is that of the settings; if it is None, the first process's launcher decides for all, and the
    Accelerator holds the result.  If it is "auto", the first process asks `choose`.

    UserError if the device lacks the precision, if a launcher asks for a feature that the training loop does not
    support, or if its variables contradict each other (`launcher.check`).
    """
    several = launcher.check(os.environ)
    precision = launcher.precision(mixed_precision, os.environ)
    on_gpu = launcher.uses_gpu(os.environ)
    key = launcher.PRECISION if mixed_precision is None else "training.mixed_precision"
    if precision == "fp16" and not on_gpu:
        raise UserError(f"{key}: fp16 needs a GPU; on a CPU use bf16 or no")
    if precision == "bf16" and on_gpu and not is_bf16_available(True):
        raise UserError(f"{key}: this GPU has no bf16; use fp16 or no")
    notice = launcher.about_precision(mixed_precision, os.environ)
    if notice and is_first_process():
        print(notice)
    # Accelerate joins several processes on CPUs only if cpu=True; otherwise each would train alone.  Apple's GPUs are
    # not used: they lack float64, in which metrics are summed.
    if several:
        _join(cpu=not on_gpu)
    device = PartialState(cpu=not on_gpu).device
    if device.type == "cpu":
        keep_freed_memory()
    elif device.index is not None:  # Accelerate does not, for a device that ACCELERATE_TORCH_DEVICE names
        torch.cuda.set_device(device)
    if deterministic:  # before anything is computed: cuBLAS reads its setting once
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if deterministic != torch.are_deterministic_algorithms_enabled():
        # A run before in this process may have set it.  The call imports PyTorch's compiler, so not in every run.
        torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic  # batches all have one shape
    mistake = ""
    if precision == "auto" and is_first_process():
        try:
            precision = choose(device) if choose else precision
        except UserError as error:  # the others wait
            mistake = str(error)
    if several:
        [precision, mistake] = broadcast_object_list([precision, mistake])
    if precision == "auto":
        raise UserError(mistake or "training.mixed_precision: auto is for training; give no, bf16 or fp16")
    return Accelerator(mixed_precision=precision, cpu=not on_gpu)


def keep_freed_memory() -> None:
    """Let glibc reuse large freed blocks; does nothing without glibc.

    Every step allocates its activations again.  By default glibc returns blocks of 32 MiB and more to the system each
    time, and faulting their pages back in takes a fifth of a ResNet-8x4 step (docs/performance.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)  # allocate large blocks from the heap, too,
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # and keep up to this many free bytes at its end


def _join(*, cpu: bool) -> None:
    """Connect to the other processes; UserError if that fails.  Meanwhile the first signal ends the process."""
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        with StopSignals().installed(), ended_by_signals(f"waiting for the other processes at {address}"):
            PartialState(cpu, timeout=PATIENCE)
    except (DistNetworkError, DistStoreError) as error:
        raise UserError(
            f"MASTER_ADDR, MASTER_PORT: the processes cannot meet at {address}: {first_line(error, 200)}; is the port "
            "taken, or the first process gone?"
        ) from error


def share_buffers(model: nn.Module, accelerator: Accelerator) -> None:
    """Broadcast the first process's buffers: BatchNorm statistics differ after a step, and one set is exported."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer))


def gather_rows(own: Tensor, accelerator: Accelerator) -> Tensor:
    """The rows [B,...] of all P processes, in their order, [P*B,...], with the gradient that `with_own_rows` tells."""
    if accelerator.num_processes == 1:
        return own
    return with_own_rows(accelerator.gather(own.detach()), own, accelerator.process_index)


def shares_batch_norm(accelerator: Accelerator, sync_bn: bool) -> bool:
    """Whether BatchNorm is synchronized over processes: with `training.sync_bn`, on GPUs only."""
    return sync_bn and accelerator.num_processes > 1 and accelerator.device.type == "cuda"


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of this process's random generators, as tensors and plain values."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    assert isinstance(keys, np.ndarray)
    return {
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": [version, list(words), gauss],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore this process's random generators from what `random_state` returned."""
    torch.set_rng_state(state["torch"])
    if state["device"] is not None:
        torch.cuda.set_rng_state(state["device"], device)
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
