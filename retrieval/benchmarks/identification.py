"""The arithmetic of identification: who beats the truth, and what that is worth in a small pool.

Each query has one true image among `n_images`. All that matters is how many other images score at
least as high: that count decides the rank, whether the query succeeds in the whole pool, and, in
closed form, how often it succeeds in a random pool of `n_way` images. No pool need be drawn.

Ties count as failures: a decoder that gives every image the same score has identified nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BenchmarkError

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


class RankTally:
    """Counts, tile by tile of a score matrix, the distractors that beat or tie each truth.

    The score matrix has one row a query (brain) and one column an image; it is never held whole.

    Parameters
    ----------
    true_scores : float64 array of shape (n_queries,)
        Score of each query with its own image.
    query_images : int64 array of shape (n_queries,), in [0, n_images)
        Column of each query's own image.
    pools : bool array of shape (n_pools, n_images)
        The pools in which to count: a distractor counts in a pool if it is a member of it.
    is_bidirectional : bool
        Count down the columns too, where query and image ``i`` belong together.
    tie_tolerance : float >= 0
        Scores that fall short of the truth by this much or less still tie: the rounding of the
        arithmetic that made the scores. 0 for scores taken as exact.

    Attributes
    ----------
    brain_to_image : int64 array of shape (n_pools, n_queries)
        For each query, distractor images in the pool that score at least as high as its own.
    image_to_brain : int64 array of shape (n_pools, n_images), or None
        For each image, distractor queries in the pool that score at least as high as its own.
    """

    def __init__(
        self,
        true_scores: FloatArray,
        query_images: IntArray,
        pools: BoolArray,
        *,
        is_bidirectional: bool,
        tie_tolerance: float = 0.0,
    ) -> None:
        n_pools, n_images = pools.shape
        if is_bidirectional and not np.array_equal(query_images, np.arange(n_images)):
            raise ValueError("both directions need exactly one query an image, in the same order.")
        self._thresholds = np.asarray(true_scores, np.float64) - tie_tolerance
        self._query_images = query_images
        # float32 makes the count a matrix product; it is exact below 2**24 images.
        self._members = pools.astype(np.float32)
        self.brain_to_image: IntArray = np.zeros((n_pools, len(query_images)), np.int64)
        self.image_to_brain: IntArray | None = None
        if is_bidirectional:
            self.image_to_brain = np.zeros((n_pools, n_images), np.int64)

    def add(self, query_start: int, image_start: int, scores: NDArray[Any]) -> None:
        """Count one tile.

        Parameters
        ----------
        query_start, image_start : int
            Position of the tile's first row and column in the whole matrix.
        scores : float array of shape (n_tile_queries, n_tile_images)
            Larger is better.

        Raises
        ------
        BenchmarkError
            If a score is NaN.
        """
        bad = np.isnan(scores)
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise BenchmarkError(
                f"the score of query {query_start + row} with image {image_start + column} is NaN, "
                f"expected a number. A NaN has no rank; mend the scores first."
            )
        queries = slice(query_start, query_start + scores.shape[0])
        images = slice(image_start, image_start + scores.shape[1])
        is_distractor = self._query_images[queries, None] != np.arange(images.start, images.stop)
        beats = (scores >= self._thresholds[queries, None]) & is_distractor
        self.brain_to_image[:, queries] += _count(self._members[:, images], beats.T)
        if self.image_to_brain is not None:
            beats = (scores >= self._thresholds[images]) & is_distractor
            self.image_to_brain[:, images] += _count(self._members[:, queries], beats)


def _count(members: NDArray[np.float32], beats: BoolArray) -> IntArray:
    return (members @ beats.astype(np.float32)).astype(np.int64)


def expected_top_rates(pool_size: int, n_way: int, top: int) -> FloatArray:
    """Return the chance of success in a random pool, by the number of distractors that win.

    A query that ``k`` of its ``pool_size - 1`` distractors beat or tie is put before a pool of its
    own image and ``n_way - 1`` distractors drawn without replacement. It succeeds if fewer than
    ``top`` of the ``k`` are among them.

    Parameters
    ----------
    pool_size : int >= 2
        Images there are, the true one included.
    n_way : int in [2, pool_size]
        Images of one pool, the true one included.
    top : int in [1, n_way]

    Returns
    -------
    rates : float64 array of shape (pool_size,), in [0, 1]
        ``rates[k]`` for ``k`` = 0 ... pool_size - 1.

    Notes
    -----
    The number of winners drawn is hypergeometric: ``rates[k] = P(X <= top - 1)``; for top-1 it is
    ``C(n - 1 - k, N - 1) / C(n - 1, N - 1)`` with ``n = pool_size`` and ``N = n_way``. The first
    term of each sum is a running product of ratios, the others follow by the ratio of neighbouring
    terms, all in logarithms of same-signed terms: the relative error stays near 1e-12 for pools of
    1e5 images, where factorials would lose four digits more.
    """
    if not 2 <= n_way <= pool_size:
        raise ValueError(f"n_way is {n_way}, expected 2 to the pool size {pool_size}.")
    if not 1 <= top <= n_way:
        raise ValueError(f"top is {top}, expected 1 to n_way = {n_way}.")
    n_others, n_drawn = pool_size - 1, n_way - 1
    n_left_out = n_others - n_drawn
    winners = np.arange(pool_size)
    fewest = np.maximum(0, winners - n_left_out)  # winners that even the luckiest draw contains
    log_term = np.full(pool_size, -np.inf)
    steps = np.log1p(-n_drawn / (n_others - np.arange(n_left_out)))
    log_term[: n_left_out + 1] = np.concatenate([[0.0], np.cumsum(steps)])
    for k in range(n_left_out + 1, min(n_left_out + top, pool_size)):
        # The luckiest draw leaves out winners alone: C(k, left out) of C(others, left out) ways.
        log_term[k] = np.log1p(-(n_others - k) / (n_others - np.arange(n_left_out))).sum()
    rates = np.exp(log_term)
    drawn = fewest.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        for _ in range(top - 1):
            n_ways_up = (winners - drawn) * (n_drawn - drawn)
            n_ways_down = (drawn + 1) * (n_others - winners - n_drawn + drawn + 1)
            log_term = log_term + np.log(n_ways_up) - np.log(n_ways_down)
            drawn += 1
            # Past its last possible value (no way up) the distribution has ended.
            is_possible = (drawn < top) & (drawn <= np.minimum(winners, n_drawn))
            rates += np.where(is_possible, np.exp(log_term), 0.0)
    rates[fewest >= top] = 0.0
    rates[:top] = 1.0  # Fewer winners than places: certain, and exactly so.
    clipped: FloatArray = np.minimum(rates, 1.0)
    return clipped


def draw_pools(n_images: int, n_way: int, n_draws: int, seed: int) -> BoolArray:
    """Draw pools of ``n_way`` images, each shared by the queries of its own images.

    Parameters
    ----------
    n_images, n_way, n_draws : int
    seed : int
        Together with ``n_way`` it decides the draws.

    Returns
    -------
    pools : bool array of shape (n_draws, n_images)

    Notes
    -----
    The protocol of MindEye2 (Scotti et al. 2024, arXiv:2403.11207, section 3.3): 30 draws of 300 of
    the 1,000 test images without replacement.
    """
    rng = np.random.default_rng([seed, n_way])
    pools = np.zeros((n_draws, n_images), bool)
    for pool in pools:
        pool[rng.choice(n_images, n_way, replace=False)] = True
    return pools
