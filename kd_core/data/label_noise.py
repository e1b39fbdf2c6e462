"""Wrong training labels on purpose, for experiments on how methods bear them."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_core.config import LabelNoiseConfig
from kd_core.data.views import random_bits
from kd_core.errors import UserError

CHOSEN, CHANGED = -3, -4  # streams of data.split_seed; views and epochs have the others


def with_noise(labels: Tensor, rows: Tensor, config: LabelNoiseConfig, num_classes: int, seed: int) -> Tensor:
    """A copy of labels int64 [N] in which those of `rows` int64 [n] are wrong, of each class the share `config.rate`.

    symmetric: any other class, all alike; pair: the next class. They depend on the seed, the rows and their labels
    alone.  (Patrini et al., arXiv:1609.03683; Han et al., arXiv:1804.06872.)

    Raises:
        UserError: the share rounds to no label at all.
    """
    own = labels[rows]
    # The first of each class, in a random order, change.
    order = random_bits(seed, CHOSEN, rows).argsort(stable=True)
    order = order[own[order].argsort(stable=True)]
    counts = own.bincount(minlength=num_classes)
    place = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[own[order]]
    changed = order[place < (counts * config.rate).round().long()[own[order]]]
    if not len(changed):
        raise UserError(
            f"data.label_noise.rate: {config.rate:g} of each class is no label, of {int(counts.max())} images at most; "
            "give a larger share"
        )
    step = torch.ones_like(changed)
    if config.kind == "symmetric":
        step += (random_bits(seed, CHANGED, rows[changed]) >> 32 & 0xFFFFFFFF) * (num_classes - 1) >> 32
    noisy = labels.clone()
    noisy[rows[changed]] = (own[changed] + step) % num_classes
    return noisy
