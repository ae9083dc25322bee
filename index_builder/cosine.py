"""Cosines that don't depend on how the work was cut: batches, blocks or threads.

A matrix product in float32 is fast, and its last bits change with the shape of the operands. So it
only nominates: whatever comes within its rounding error of the k-th place is scored again in
float64, one pair at a time, and those scores, rounded to float32, decide. Equal scores are ordered
by row, the smaller first.
"""

from __future__ import annotations

import numpy as np

from .embeddings.float16 import to_float32
from .threads import in_threads

_PAIR_BYTES = 32 << 20  # float64 rows of pairs in flight
_BLOCK_ROWS = 512  # worked on together, while they stay in a processor's cache
SMALLEST_NORM = 1e-30
_SHORTEST = 1e-12


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Return rows divided by their norms.

    Parameters
    ----------
    vectors : ndarray of shape (n, width) or (n, tokens, dim), any float
        A zero row stays zero.

    Returns
    -------
    unit : ndarray of shape (n, width), float32
    """
    width = int(np.prod(vectors.shape[1:]))  # -1 would be ambiguous where there are no rows
    stored = vectors.reshape(len(vectors), width)
    unit = np.empty(stored.shape, np.float32)

    def divide(start: int, stop: int) -> None:
        rows = to_float32(stored[start:stop])
        np.divide(rows, row_norms(rows)[:, None], out=unit[start:stop])

    in_threads(divide, len(stored), _BLOCK_ROWS)
    return unit


def row_norms(rows: np.ndarray) -> np.ndarray:
    """Return Euclidean norms (n,), float32, of rows (n, width); never below 1e-30.

    A norm that float32 can't hold is infinite.
    """
    squares = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
    with np.errstate(over="ignore"):
        norms: np.ndarray = np.maximum(np.sqrt(squares), SMALLEST_NORM).astype(np.float32)
    return norms


def has_direction(rows: np.ndarray) -> np.ndarray:
    """Tell which rows (n, width) are finite and of a length in (1e-12, inf): bool, (n,)."""
    is_sound: np.ndarray = np.isfinite(rows).all(axis=1)
    norms = row_norms(rows[is_sound])
    is_sound[is_sound] = (norms > _SHORTEST) & (norms < np.inf)
    return is_sound


def rounding_error(width: int) -> float:
    """Return a bound on how wrong the difference of two float32 cosines of ``width`` terms is.

    Notes
    -----
    Four times the probabilistic bound sqrt(width) * u of Higham & Mary 2019
    (doi:10.1137/18M1226312, Theorem 2.4), u = 2**-24, for rounding of the rows comes on top.
    """
    return float(4 * np.sqrt(width) * 2.0**-24)


def pair_scores(
    queries: np.ndarray, vectors: np.ndarray, query_of: np.ndarray, vector_of: np.ndarray
) -> np.ndarray:
    """Return the cosine of each pair.

    Parameters
    ----------
    queries : ndarray of shape (n_queries, width), float32 or float64
    vectors : ndarray of shape (n_vectors, width), any float
    query_of, vector_of : ndarray of shape (n_pairs,), int64
        Row of ``queries`` and row of ``vectors`` of each pair.

    Returns
    -------
    scores : ndarray of shape (n_pairs,), float32, in [-1, 1]
        Computed in float64; 0 where either side is a zero row.
    """
    scores = np.empty(len(query_of), np.float32)
    step = max(1, _PAIR_BYTES // (16 * queries.shape[1]))
    for start in range(0, len(query_of), step):
        piece = slice(start, start + step)
        left = queries[query_of[piece]].astype(np.float64)
        right = vectors[vector_of[piece]].astype(np.float64)
        dots = np.einsum("ij,ij->i", left, right)
        squares = np.einsum("ij,ij->i", left, left) * np.einsum("ij,ij->i", right, right)
        scores[piece] = dots / np.sqrt(np.maximum(squares, SMALLEST_NORM**2))
    return scores


def best_per_query(
    query_of: np.ndarray, rows: np.ndarray, scores: np.ndarray, n_queries: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ``k`` best pairs of each query: larger score first, then smaller row.

    Parameters
    ----------
    query_of, rows, scores : ndarray of shape (n_pairs,)
        A pair of a query and a row may come once only.
    n_queries, k : int

    Returns
    -------
    rows : ndarray of shape (n_queries, k), int64
        -1 where a query has fewer pairs.
    scores : ndarray of shape (n_queries, k), float32
        NaN there.
    """
    order = np.lexsort((rows, -scores, query_of))
    query_of = query_of[order]
    starts = np.searchsorted(query_of, np.arange(n_queries))
    ranks = np.arange(len(order)) - starts[query_of]
    is_kept = ranks < k
    places = (query_of[is_kept], ranks[is_kept])
    best_rows = np.full((n_queries, k), -1, np.int64)
    best_scores = np.full((n_queries, k), np.nan, np.float32)
    best_rows[places] = rows[order][is_kept]
    best_scores[places] = scores[order][is_kept]
    return best_rows, best_scores


def kth_largest(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the k-th largest of each row of (n, m) scores, counted from 1: shape (n,)."""
    if k == 1:  # far quicker than a partition, and every row that is coded comes through here
        largest: np.ndarray = scores.max(axis=1)
        return largest
    place = scores.shape[1] - k
    kth: np.ndarray = np.partition(scores, place, axis=1)[:, place]
    return kth
