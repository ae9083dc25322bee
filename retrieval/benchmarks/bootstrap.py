"""Percentile bootstrap over images.

Images are what an experiment sampled, so images are resampled: a query counts as often as its image
was drawn, and trials of one image come and go together. Calls with the same number of images,
resamples and seed use the same resamples, which makes any two of their statistics paired.

The pool is held fixed: an interval says how far the mean over *these kinds of images* is known, not
what would happen with other distractors.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .identification import FloatArray, IntArray

LEVEL = 0.95
N_RESAMPLES = 2000


def resample_images(n_images: int, n_resamples: int, seed: int) -> Iterator[IntArray]:
    """Yield how often each image was drawn, one array of shape (n_images,) a resample."""
    if n_resamples < 1:
        raise ValueError(f"n_resamples is {n_resamples}, expected at least 1.")
    rng = np.random.default_rng(seed)
    for _ in range(n_resamples):
        yield np.bincount(rng.integers(n_images, size=n_images), minlength=n_images)


def percentile_interval(samples: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the bounds that hold the middle 95 % of ``samples``, along the first axis."""
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(samples, [tail, 100 - tail], axis=0)
    return low, high


def bootstrap_statistics(
    values: FloatArray,
    ranks: IntArray,
    query_images: IntArray,
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int,
) -> tuple[FloatArray, FloatArray]:
    """Resample the means of ``values`` and the median of ``ranks``.

    Parameters
    ----------
    values : float64 array of shape (n_queries, n_statistics)
    ranks : int64 array of shape (n_queries,)
    query_images : int64 array of shape (n_queries,)
        Position of each query's image; every image from 0 to the largest has at least one query.
    n_resamples, seed : int

    Returns
    -------
    means : float64 array of shape (n_resamples, n_statistics)
    medians : float64 array of shape (n_resamples,)
    """
    n_images = int(query_images.max()) + 1
    order = np.argsort(ranks, kind="stable")
    means = np.empty((n_resamples, values.shape[1]))
    medians = np.empty(n_resamples)
    for index, counts in enumerate(resample_images(n_images, n_resamples, seed)):
        weights = counts[query_images]
        total = weights.sum()
        means[index] = weights @ values / total
        reached = np.cumsum(weights[order])
        middle = np.searchsorted(reached, [(total - 1) // 2, total // 2], side="right")
        medians[index] = ranks[order[middle]].mean()
    return means, medians
