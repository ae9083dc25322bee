"""Shards searched side by side, and what they find put together."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from .factory import set_threads
from .threads import Pool

_Shard = TypeVar("_Shard")
Found = tuple[np.ndarray, np.ndarray]  # distances and global rows, (n_queries, k); -1: none


class FanOut:
    """Threads for the shards of an index; each has its share of the cores.

    Parameters
    ----------
    n_shards : int
    """

    def __init__(self, n_shards: int) -> None:
        n_cores = os.cpu_count() or 1
        n_threads = max(1, min(n_cores, n_shards))
        # OpenMP's thread count belongs to the calling thread: the pool's threads share the cores.
        self._pool = Pool(n_threads, set_threads, n_cores // n_threads)

    def search(
        self, search_one: Callable[[_Shard], Found], shards: Sequence[_Shard]
    ) -> list[Found]:
        """Return what each shard finds, in their order."""
        run = self._pool.threads.map if len(shards) > 1 else map
        return list(run(search_one, shards))


def merge_nearest(found: Sequence[Found], k: int) -> Found:
    """Return the ``k`` smallest distances of each query and their rows, ties by smaller row.

    Parameters
    ----------
    found : sequence of (distances, rows)
        At least one; of any number of columns.
    k : int

    Returns
    -------
    distances, rows : ndarray of shape (n_queries, k)
        Infinite and -1 where there are fewer.
    """
    distances = np.concatenate([each for each, _ in found], axis=1)
    rows = np.concatenate([each for _, each in found], axis=1)
    distances = np.where(rows < 0, np.inf, distances)
    order = np.lexsort((rows, distances), axis=1)[:, :k]
    best = np.full((len(rows), k), np.inf, distances.dtype), np.full((len(rows), k), -1, rows.dtype)
    for array, chosen in zip((distances, rows), best, strict=True):
        chosen[:, : order.shape[1]] = np.take_along_axis(array, order, axis=1)
    return best
