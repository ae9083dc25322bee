"""A seeded sample of rows that represents every part of an embedding folder.

The parts of LAION are languages, so the first rows of a folder don't stand for the rest. Each part
gives its share.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def sample_rows(part_rows: Sequence[int], n_sample: int, seed: int) -> np.ndarray:
    """Draw rows without repeats, from each part in proportion to its size.

    Parameters
    ----------
    part_rows : sequence of int
        Rows of each part, in row order.
    n_sample : int
        At most the sum of them.
    seed : int

    Returns
    -------
    rows : ndarray of shape (n_sample,), int64, sorted
    """
    sizes = np.asarray(part_rows, np.int64)
    n_rows = int(sizes.sum())
    if not 0 <= n_sample <= n_rows:
        raise ValueError(f"n_sample is {n_sample}, expected 0 to {n_rows}")
    ends = np.cumsum(sizes)
    # Rounding the running total keeps every share within one row and the sum exact.
    bounds = ends.astype(object) * n_sample // n_rows if n_rows else ends
    shares = np.diff(np.concatenate([[0], bounds])).astype(np.int64)
    pieces = [
        np.sort(np.random.default_rng((seed, part)).choice(size, share, replace=False))
        + (ends[part] - size)
        for part, (size, share) in enumerate(zip(sizes.tolist(), shares.tolist(), strict=True))
    ]
    return np.concatenate(pieces).astype(np.int64) if pieces else np.empty(0, np.int64)
