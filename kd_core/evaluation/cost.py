"""The cost of a student at inference: size, arithmetic, latency and throughput."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kd_core.loop.timing import wait_for
from kd_core.models.build import count_parameters
from kd_core.run.precision import TYPES

BATCHES = (1, 256)
SECONDS = 0.25  # for which passes are timed at each batch size
FEWEST = 3  # timed passes, if these take longer


@torch.no_grad()
def measure(
    model: nn.Module,
    size: int,
    device: torch.device,
    *,
    checkpoint: Path,
    precision: str = "no",
    channels_last: bool = False,
) -> dict[str, Any]:
    """The cost of `model`, which lies on `device`, for images of `size` pixels a side, ready for JSON.

    `parameters`; `multiply_adds` for one image, in convolutions and matrix products; `checkpoint_bytes` of the weights
    in the export's folder `checkpoint`; `latency_ms` of one pass, the median over SECONDS of passes per batch size, and
    `images_per_second`, under "1" and "256" images: None if memory does not suffice.  Images are on the device before
    the clock starts.  `device` and `precision` ("no", "fp16" or "bf16", the autocast type) are those of the times.

    Changes neither the modes of the model's modules nor any random number generator.
    """
    # a separate generator, so that no other random numbers change
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)

    def batch_of(count: int) -> Tensor:
        batch = images.repeat(count, 1, 1, 1)
        return batch.to(memory_format=torch.channels_last) if channels_last else batch

    def run(batch: Tensor) -> None:
        with torch.autocast(device.type, TYPES.get(precision), enabled=precision in TYPES):
            model(batch)

    with in_evaluation_mode(model):
        multiply_adds = count_multiply_adds(model, images)
        times = {count: _seconds_of(run, batch_of, count, device) for count in BATCHES}
    return {
        "parameters": count_parameters(model),
        "multiply_adds": multiply_adds,
        "checkpoint_bytes": (checkpoint / "model.safetensors").stat().st_size,
        "device": device_name(device),
        "precision": precision,
        "latency_ms": {str(count): each and 1000 * each for count, each in times.items()},
        "images_per_second": {str(count): each and count / each for count, each in times.items()},
    }


@torch.no_grad()
def count_multiply_adds(model: nn.Module, images: Tensor) -> int:
    """Multiply-adds of one pass over images [B,3,h,w]: convolutions and matrix products, attention's included."""
    # On some devices PyTorch's counter does not count fused attention; and it counts a multiply-add as two operations.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(images)
    return int(counter.get_total_flops()) // 2


@contextmanager
def in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """`model` in evaluation mode; afterwards each of its modules in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU with the number of threads that PyTorch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} thread(s)"


def _seconds_of(
    run: Callable[[Tensor], None], batch_of: Callable[[int], Tensor], count: int, device: torch.device
) -> float | None:
    """The median time of a pass over `count` images; None if memory does not suffice."""
    try:
        batch, times = batch_of(count), list[float]()
        run(batch)  # to warm up: libraries choose their algorithms for a shape when they first see it
        wait_for(device)
        end = time.perf_counter() + SECONDS
        while len(times) < FEWEST or time.perf_counter() < end:
            began = time.perf_counter()
            run(batch)
            wait_for(device)
            times.append(time.perf_counter() - began)
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        clear_device_cache()
        return None
    return statistics.median(times)
