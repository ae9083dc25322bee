"""Candidates ranked by their cosine with vectors taken by row: the embeddings' own, or a copy's."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from .cosine import best_per_query, pair_scores
from .embeddings.space import EmbeddingSpace

_ROW_BYTES = 64 << 20  # rows read together, in their dtype


class TakenRows(Protocol):
    """Vectors by row number: embedding folders, collections, and copies of them."""

    @property
    def space(self) -> EmbeddingSpace:
        """Their space."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what `take` returns."""

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return rows (n,), int64, as vectors (n, width) or (n, tokens, dim) of any norm."""


def exact_scores(vectors: TakenRows, unit: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the cosine of each query and each of its candidates.

    Parameters
    ----------
    vectors : TakenRows
    unit : ndarray of shape (n_queries, width), float32, unit rows
    rows : ndarray of shape (n_queries, n_candidates), int64
        -1: no candidate.

    Returns
    -------
    scores : ndarray of shape (n_queries, n_candidates), float32
        NaN where there is no candidate.

    Notes
    -----
    Rows are read once for as many queries as fit in 64 MiB, in increasing order.
    """
    scores = np.full(rows.shape, np.nan, np.float32)
    row_bytes = vectors.space.width * vectors.dtype.itemsize
    step = max(1, _ROW_BYTES // (row_bytes * max(1, rows.shape[1])))
    for start in range(0, len(rows), step):
        wanted = rows[start : start + step]
        query_of, place = np.nonzero(wanted >= 0)
        unique, vector_of = np.unique(wanted[query_of, place], return_inverse=True)
        taken = vectors.take(unique).reshape(len(unique), vectors.space.width)
        query_of += start
        scores[query_of, place] = pair_scores(unit, taken, query_of, vector_of)
    return scores


def rank_exactly(
    vectors: TakenRows, unit: np.ndarray, rows: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ``k`` best candidates of each query by cosine, ties by smaller row.

    Parameters
    ----------
    vectors, unit, rows
        As in `exact_scores`; a row comes once for a query.
    k : int

    Returns
    -------
    rows : ndarray of shape (n_queries, k), int64
        -1 where a query has fewer candidates.
    scores : ndarray of shape (n_queries, k), float32
        NaN there.
    """
    scores = exact_scores(vectors, unit, rows)
    query_of, place = np.nonzero(rows >= 0)
    return best_per_query(query_of, rows[query_of, place], scores[query_of, place], len(unit), k)
