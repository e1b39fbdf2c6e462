"""Logits of a network over a split: sharded over processes without padding, gathered once, in the split's order."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from kd_core.data import ImageStore
from kd_core.views import Views


def set_memory_format(model: nn.Module, channels_last: bool) -> nn.Module:
    """Move 4-d parameters to channels_last, if asked."""
    return model.to(memory_format=torch.channels_last) if channels_last else model


@torch.no_grad()
def predict(
    model: nn.Module,
    store: ImageStore,
    rows: Tensor,
    views: Views,
    accelerator: Accelerator,
    *,
    batch_size: int,
    channels_last: bool = True,
    label: str | None = None,
) -> Tensor:
    """Logits float32 [n,C] for `rows` int64 [n], on every process, on the device, in the order of `rows`.

    The network sees the clean view.  Process r of R computes rows r, r+R, ...; a progress bar is shown if `label` is
    given.  `model.training` is restored afterwards.
    """
    was_training = model.training
    model.eval()
    mine = rows[accelerator.process_index :: accelerator.num_processes]
    per_process = max(1, batch_size // accelerator.num_processes)
    starts = range(0, len(mine), per_process)
    parts = []
    for start in tqdm(starts, desc=label, leave=False, disable=label is None or not accelerator.is_main_process):
        images, _ = store.gather(mine[start : start + per_process])
        with accelerator.autocast():
            parts.append(model(views.clean(images, channels_last=channels_last)).float())
    model.train(was_training)
    own = torch.cat(parts) if parts else None
    if accelerator.num_processes == 1:
        assert own is not None
        return own
    if own is None:
        raise AssertionError(f"process {accelerator.process_index} got none of {len(rows)} rows")
    gathered = accelerator.gather(accelerator.pad_across_processes(own, dim=0))
    shares = gathered.view(accelerator.num_processes, -1, own.shape[1])
    return shares.transpose(0, 1).reshape(-1, own.shape[1])[: len(rows)]
