"""Images and labels of a split, on the device or memory-mapped, from which a batch is gathered by its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from kd_core.data.dataset import Split


class ImageStore:
    """A split's images, stored where batches are formed.

    Args:
        on_device: "device" copies the split's images to the device (on a CPU: into memory); "host" leaves them
            memory-mapped; "auto" copies if they take less than 40% of a GPU's free memory.  On a CPU, "auto" leaves
            them: a memory map in the page cache is as fast, and all processes share it.

    index_device: the device of the rows for `gather`.  Rows on another device are copied, which synchronizes.
    """

    def __init__(self, split: Split, device: torch.device, *, on_device: Literal["auto", "device", "host"]):
        self.device = torch.device(device)
        if on_device == "auto":
            size = split.images[0].numel() * len(split)
            free = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else 0
            on_device = "device" if size < 0.4 * free else "host"
        if on_device == "device":
            self.index_device = self.device
            # Only the split's own rows are copied; `_position` maps source rows to them.
            self._images = torch.empty((len(split), *split.images.shape[1:]), dtype=torch.uint8, device=self.device)
            for start in range(0, len(split), 1024):
                rows = split.rows[start : start + 1024]
                self._images[start : start + len(rows)] = split.images.index_select(0, rows).to(self.device)
            position = torch.full((len(split.labels),), -1)
            position[split.rows] = torch.arange(len(split))
            self._position: Tensor | None = position.to(self.device)
        else:
            self.index_device = torch.device("cpu")
            self._images, self._position = split.images, None
        self._labels = split.labels.to(self.index_device)

    def gather(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Images uint8 [B,H,W,3] and labels int64 [B] of rows int64 [B], all on the device.

        From host memory the copy is asynchronous.  Rows outside the split are an error.
        """
        rows = rows.to(self.index_device)
        labels = self._labels.index_select(0, rows)
        if self._position is not None:
            return self._images.index_select(0, self._position.index_select(0, rows)), labels
        pinned = self.device.type == "cuda"  # a new buffer per batch: the allocator knows when a copy is done
        images = torch.empty((len(rows), *self._images.shape[1:]), dtype=torch.uint8, pin_memory=pinned)
        torch.index_select(self._images, 0, rows, out=images)
        labels = labels.pin_memory() if pinned else labels
        return images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
