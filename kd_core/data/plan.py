"""Which images each step of an epoch shows, labeled and unlabeled, in which order, and their views."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from kd_core.data.views import Augmentation, draw_views, random_bits

if TYPE_CHECKING:
    from kd_core.config import Config
    from kd_core.data.dataset import Data
    from kd_core.data.recipes import Draws, Recipe

CHOICE = 1 << 56  # added to rows to draw other bits for them: more than any key of a view
REPEAT = 1 << 40  # between the keys of an image's first and second showing in an epoch; more than there are rows


def epoch_order(seed: int, epoch: int, rows: Tensor) -> Tensor:
    """The order of `rows` (int64 [n]) in epoch `epoch`: int64 [n] on their device."""
    return rows[random_bits(seed, 2 * epoch, rows).argsort(stable=True)]


def augmentation_of(config: Config, recipe: Recipe | None) -> Augmentation | Recipe:
    """How training shows images: by the recipe that `augment` asks for, else in crops and flips."""
    return recipe or Augmentation.of(config.data)


def epoch_seed(seed: int, epoch: int, process: int) -> int:
    """The seed of what a process draws in an epoch besides images and views, such as dropout."""
    return int(random_bits(seed, -1 - epoch, torch.tensor([process]))) % 2**32


@dataclass(frozen=True)
class Sampler:
    """Which images an epoch shows, and in which order.

    Args:
        rows: int64 [n], on the host, those of the training split.
        labels: int64 [n]; given, all classes that occur come equally often, and so images of small ones several times.
        unlabeled: int64 [m], on the host, rows of images without labels; an epoch goes on in them where the last ended.
        share: of a batch, that they are.
    """

    rows: Tensor
    labels: Tensor | None = None
    unlabeled: Tensor | None = None
    share: float = 0.0

    @classmethod
    def of(cls, config: Config, data: Data) -> Sampler:
        """The sampler that `data.sampler` and `data.unlabeled` ask for."""
        rows, settings = data.train.rows, config.data
        labels = data.train.labels[rows] if settings.sampler == "balanced" else None
        if data.pool is None or settings.unlabeled is None:
            return cls(rows, labels)
        without = data.pool.rows[data.pool.labels[data.pool.rows] < 0]
        return cls(rows, labels, without, settings.unlabeled.share)

    @property
    def number_unlabeled(self) -> int:
        return 0 if self.unlabeled is None else len(self.unlabeled)

    def labeled_in(self, batch: int) -> int:
        """How many images of a batch have labels."""
        return batch - round(batch * self.share)

    def steps(self, batch: int) -> int:
        """The steps of an epoch, in which each image with a label is due once (if none is, each without); the
        remainder is not used."""
        labeled = self.labeled_in(batch)
        return len(self.rows) // labeled if labeled else self.number_unlabeled // batch

    def order(self, seed: int, epoch: int, batch: int, processes: int) -> tuple[Tensor, Tensor]:
        """Two of int64 [steps,processes,B]: the rows of an epoch, and keys to draw their views by, which are the rows,
        or other numbers where an image comes again.

        Of images with and without labels each process has as many as the others in every step.
        """
        steps, labeled = self.steps(batch), self.labeled_in(batch)

        def parts(found: tuple[Tensor, Tensor], count: int) -> list[Tensor]:
            return [values[: steps * count].view(steps, processes, count // processes) for values in found]

        own = parts(self._labeled(seed, epoch), labeled)
        if self.unlabeled is None:
            return own[0], own[1]
        count = batch - labeled
        without = parts(self._unlabeled(seed, epoch * steps * count, steps * count), count)
        rows, keys = (torch.cat(pair, 2) for pair in zip(own, without, strict=True))
        return rows, keys

    def _labeled(self, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        if self.labels is None:
            rows = epoch_order(seed, epoch, self.rows)
            return rows, rows
        rows, keys = self._balanced(seed, epoch)
        shuffled = random_bits(seed, 2 * epoch, keys).argsort(stable=True)
        return rows[shuffled], keys[shuffled]

    def _balanced(self, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Rows and keys, class by class: of each class some of its images or all, as often as needed."""
        assert self.labels is not None
        # not by the bits that shuffle the epoch, which would bring the chosen images of large classes to its start
        order = random_bits(seed, 2 * epoch, self.rows + CHOICE).argsort(stable=True)
        order = order[self.labels[order].argsort(stable=True)]
        counts = self.labels.bincount()
        present = counts.nonzero().flatten()
        quotas = torch.full_like(present, len(self.rows) // len(present))
        more = random_bits(seed, 2 * epoch, present).argsort(stable=True)[: len(self.rows) % len(present)]
        quotas[more] += 1  # the remainder goes to other classes in each epoch
        of = present.repeat_interleave(quotas)
        place = torch.arange(len(self.rows)) - (quotas.cumsum(0) - quotas).repeat_interleave(quotas)
        rows = self.rows[order[(counts.cumsum(0) - counts)[of] + place % counts[of]]]
        return rows, rows + place // counts[of] * REPEAT

    def _unlabeled(self, seed: int, start: int, count: int) -> tuple[Tensor, Tensor]:
        """Rows and keys from place `start` of an endless sequence, one random order of all after another."""
        assert self.unlabeled is not None
        size = len(self.unlabeled)
        first, last = start // size, (start + max(count, 1) - 1) // size
        orders = [epoch_order(seed, number, self.unlabeled) for number in range(first, last + 1)]
        keys = torch.cat([rows + number * REPEAT for number, rows in enumerate(orders)])
        chosen = slice(start - first * size, start - first * size + count)
        return torch.cat(orders)[chosen], keys[chosen]


class Batch(NamedTuple):
    """One process's share of a step, all int64 [B]: rows, their views, and the keys of these views in a cache."""

    rows: Tensor
    ids: Tensor
    numbers: Tensor


class EpochPlan:
    """Rows and views of all steps of one epoch, computed once, on the host and on the device, so no step waits.

    Args:
        sampler: which images, in which order.
        augmentation: how each is shown.
        device: of the networks.
        batch_size: of all processes together.
        rank, world_size: index of this process, and the number of processes that share each step.
        fixed: draw views from this number of fixed views per row; None: from all views.

    Order and views are functions of (seed, epoch, row), whatever the number of processes.
    """

    def __init__(
        self,
        sampler: Sampler,
        device: torch.device,
        *,
        seed: int,
        epoch: int,
        batch_size: int,
        rank: int,
        world_size: int,
        augmentation: Augmentation | Recipe,
        fixed: int | None = None,
    ):
        assert batch_size % world_size == 0, (batch_size, world_size)
        share = batch_size // world_size
        rows, keys = (part[:, rank] for part in sampler.order(seed, epoch, batch_size, world_size))  # [steps,B]
        steps, own, keys = len(rows), rows.flatten(), keys.flatten()
        view = draw_views(seed, epoch, own, augmentation, fixed=fixed, keys=keys)
        self._host = torch.stack([own, view.ids, view.numbers]).view(3, steps, share)
        self._device = self._host.to(device)
        self._latest: dict[str, tuple[int, Batch]] = {}
        self.second: EpochPlan | None = None  # the plan of second views of the same images
        self._draws = None if isinstance(augmentation, Augmentation) else augmentation.draws(own, view.ids)

    def __len__(self) -> int:
        return self._host.shape[1]

    def batch(self, step: int, device: torch.device) -> Batch:
        """Step `step`, on the host or on the plan's device."""
        latest, batch = self._latest.get(device.type, (None, None))
        if batch is None or latest != step:  # several parts of a step ask for the same batch
            batch = Batch(*(part[step] for part in self.whole(device)))
            self._latest[device.type] = step, batch
        return batch

    def draws(self, steps: range) -> Draws:
        """What the recipe of the plan draws for these steps."""
        assert self._draws is not None
        share = self._host.shape[2]
        return self._draws.part(slice(steps.start * share, steps.stop * share))

    def whole(self, device: torch.device) -> Batch:
        """All steps, each int64 [steps,B], on the host or on the plan's device."""
        return Batch(*(self._host if device.type == "cpu" else self._device).unbind())
