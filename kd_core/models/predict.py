"""Logits of a network on a split, sharded over processes without padding and gathered in the split's order."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils.memory import find_executable_batch_size, should_reduce_batch_size
from torch import Tensor, nn
from tqdm import tqdm

from kd_core.config import Config
from kd_core.data.dataset import Data, Split
from kd_core.data.image_store import ImageStore
from kd_core.data.plan import EpochPlan
from kd_core.data.recipes import Pixels, Recipe
from kd_core.data.views import Augmentation, Views, fixed_views

LARGEST = 2048  # images in an evaluation step on a GPU, while they fit
BLOCK = 3 * 2**19  # bytes of images that a recipe renders at once: 512 of 32 pixels
TOLD_EVERY = 60.0  # seconds between lines about long work where no bar is seen
T = TypeVar("T")


def progress(parts: Sequence[T], label: str, *, hidden: bool = False) -> Iterator[T]:
    """`parts` one by one, with a progress bar; in a file or a pipe, with a line each minute in its place.

    Both are written to stderr; `hidden`: neither is.
    """
    if hidden or sys.stderr.isatty():
        yield from tqdm(parts, desc=label, leave=False, disable=hidden)
        return
    start = told = time.monotonic()
    for done, part in enumerate(parts):
        now = time.monotonic()
        if now - told >= TOLD_EVERY:
            told, left = now, (now - start) / done * (len(parts) - done)
            print(f"{label}: {done / len(parts):.0%}, {max(1, round(left / 60))} min left", file=sys.stderr, flush=True)
        yield part


@dataclass
class Predictor:
    """How networks are evaluated in a run: device, batch size and memory format."""

    accelerator: Accelerator
    config: Config

    def __post_init__(self) -> None:
        asked, usual = self.config.evaluation.batch_size, self.config.data.batch_size
        on_gpu = self.accelerator.device.type == "cuda"
        self._batch_size = asked or (max(usual, LARGEST) if on_gpu else usual)

    def in_batches(self, work: Callable[[int], T]) -> T:
        """`work(batch size per process)`, repeated with smaller batches while memory runs out."""

        def attempt(batch_size: int) -> T:
            self._batch_size = batch_size  # the next call starts with it
            return work(max(1, batch_size // self.accelerator.num_processes))

        try:
            return attempt(self._batch_size)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
        # Only now: it empties the device's cache and collects Python's garbage, half a second, at every call.
        return find_executable_batch_size(attempt, starting_batch_size=int(self._batch_size * 0.9))()

    def prepare(self, model: nn.Module) -> nn.Module:
        """`model` on the device and in the run's memory format."""
        model = model.to(self.accelerator.device)
        return model.to(memory_format=torch.channels_last) if self.config.training.channels_last else model

    @torch.no_grad()
    def __call__(
        self,
        model: nn.Module,
        images: Images,
        views: Views,
        label: str | None = None,
        show: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Logits float32 [n,C] of `images`, on every process, on the device, in the split's order.

        The network runs in evaluation mode; its mode is restored afterwards.  Its input is the clean view, or
        `show(pixels, rows)` of images uint8 [B,H,W,3] and their rows int64 [B].  Process r of R computes rows r, r+R,
        ...; a progress bar is shown if `label` is given.
        """
        accelerator, training = self.accelerator, model.training
        channels_last = self.config.training.channels_last
        model.eval()
        mine = images.rows[accelerator.process_index :: accelerator.num_processes]
        hidden = label is None or not accelerator.is_main_process

        def work(batch_size: int) -> Tensor:
            found, done = torch.empty(0), 0
            for rows in progress(mine.split(batch_size), label or "", hidden=hidden):
                pixels, _ = images.store.gather(rows)
                view = show(pixels, rows) if show else views.clean(pixels, channels_last=channels_last)
                with accelerator.autocast():
                    logits = model(view).float()
                if not done:  # all of it at once: joined at the end, the parts would take twice the memory
                    found = logits.new_empty(len(mine), *logits.shape[1:])
                found[done : done + len(rows)] = logits
                done += len(rows)
            return found

        own = self.in_batches(work)
        model.train(training)
        if accelerator.num_processes == 1:
            return own
        gathered = accelerator.gather(accelerator.pad_across_processes(own, dim=0))
        shares = gathered.view(accelerator.num_processes, -1, own.shape[1])
        return shares.transpose(0, 1).reshape(-1, own.shape[1])[: len(images)]


class Images:
    """A split on a device: its pixels, `labels` int64 [n] on the device, and `rows` int64 [n].

    `rows` are stored with the pixels: with rows on the device, a gather from host memory would synchronize.

    Args:
        recipe: how training shows these images; None: as they are stored.
    """

    def __init__(
        self,
        split: Split,
        device: torch.device,
        where: Literal["auto", "device", "host"],
        recipe: Recipe | None = None,
    ):
        self.split, self.recipe = split, recipe
        self._block: tuple[EpochPlan, range, Pixels, Tensor] | None = None
        self.store = ImageStore(split, device, on_device=where)
        self.rows = split.rows.to(self.store.index_device)
        self.labels = split.labels[split.rows].to(device)

    @classmethod
    def for_training(cls, config: Config, data: Data, device: torch.device) -> Images:
        """The training split with the recipe of `augment`; UserError if that does not fit the images."""
        return cls(data.shown, device, config.data.store, Recipe.of(config, data))

    def second(self, config: Config, data: Data) -> Images | None:
        """The same images as their second view shows them; None without `augment.second`."""
        recipe = Recipe.of_second(config, data)
        if recipe is None:
            return None
        images = copy.copy(self)
        images.recipe, images._block = recipe, None
        return images

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def apart(self) -> Images:
        """Copies of these images alone, as a split of its own."""
        return Images(self.split.apart(), self.labels.device, "auto")

    def show(self, plan: EpochPlan, step: int) -> tuple[Pixels, Tensor]:
        """The images of a step of training, and their labels: int64 [B], or float32 [B,C] where they are mixed."""
        if self.recipe is not None:
            return self._rendered(self.recipe, plan, step)
        pixels, labels = self.store.gather(plan.batch(step, self.store.index_device).rows)
        return Pixels(pixels, pixels), labels

    def _rendered(self, recipe: Recipe, plan: EpochPlan, step: int) -> tuple[Pixels, Tensor]:
        """The images of a step, cut from those of several steps: operations on few small images are slow."""
        share = plan.whole(torch.device("cpu")).rows.shape[1]
        if self._block is None or self._block[0] is not plan or step not in self._block[1]:
            count = max(1, BLOCK // (share * 3 * recipe.side**2))
            steps = range(step // count * count, min(step // count * count + count, len(plan)))
            self._block = plan, steps, *recipe.show(self.store, plan.draws(steps))
        _, steps, pixels, labels = self._block
        part = slice((step - steps.start) * share, (step - steps.start + 1) * share)
        return Pixels(pixels.stored[part], pixels.shown[part]), labels[part]

    def show_fixed(
        self, rows: Tensor, numbers: Tensor, crops: Augmentation, *, shared: bool
    ) -> tuple[Pixels, Tensor]:
        """The images of fixed views `numbers` int64 [B] of rows int64 [B], both on the host, and the views' ids.

        crops: what the ids mean without a recipe.  shared: whether a teacher of shared views will see them.
        """
        ids = fixed_views(rows, numbers, self.recipe or crops)
        if self.recipe is not None and shared:
            pixels, _ = self.recipe.show(self.store, self.recipe.draws(rows, ids))
        else:
            stored, _ = self.store.gather(rows)
            pixels = Pixels(stored, stored)
        return pixels, ids.to(pixels.device)

    def places(self, rows: Tensor) -> Tensor:
        """The place in the split, 0 to n-1, of each of its rows int64 [B], which lie on the device as `labels` do."""
        return self._places.index_select(0, rows)

    @cached_property
    def _places(self) -> Tensor:
        places = torch.full((len(self.split.labels),), -1)
        return places.index_copy(0, self.split.rows, torch.arange(len(self))).to(self.labels.device)
