"""Stratified subsets, classes in proportion: what is cut for validation, and `data.train_size`."""

import numpy as np
from torch import from_numpy

from kd_core.data.views import random_bits

STREAMS = 1 << 40  # disjoint from the streams that order and augment an epoch


def stratified(labels: np.ndarray, rows: np.ndarray, count: int, *, seed: int, stream: int) -> np.ndarray:
    """`count` of `rows`, sorted: int64 [count], classes in proportion, and of no class all rows.

    Args:
        labels: int64 [n], the class of each of rows, int64 [n].
        count: between 0 and n minus the number of classes.
        stream: another number gives another subset for the same seed.
    """
    bits = random_bits(seed, STREAMS + stream, from_numpy(rows)).numpy()
    order = np.lexsort((bits, labels))  # by class, in random order within each
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    assert 0 <= count <= len(rows) - len(sizes), (count, len(rows), len(sizes))
    rank = np.arange(len(rows)) - np.repeat(starts, sizes)
    size = np.repeat(sizes, sizes)
    # Taking the smallest (rank + 1/2) / size takes the same fraction of every class (Sainte-Lague's method).
    priority = np.where(rank == size - 1, np.inf, (rank + 0.5) / size)
    return np.sort(rows[order[priority.argsort(kind="stable")[:count]]])
