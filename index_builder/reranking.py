"""Candidates ranked by their true cosine, from the rows of the embedding folder itself."""

from __future__ import annotations

import numpy as np

from .cosine import best_per_query, pair_scores
from .embeddings.reader import EmbeddingFolder

_ROW_BYTES = 64 << 20  # rows read together, in the stored dtype


def exact_scores(embeddings: EmbeddingFolder, unit: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the cosine of each query and each of its candidates.

    Parameters
    ----------
    embeddings : EmbeddingFolder
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
    row_bytes = embeddings.space.width * embeddings.dtype.itemsize
    step = max(1, _ROW_BYTES // (row_bytes * max(1, rows.shape[1])))
    for start in range(0, len(rows), step):
        wanted = rows[start : start + step]
        query_of, place = np.nonzero(wanted >= 0)
        unique, vector_of = np.unique(wanted[query_of, place], return_inverse=True)
        vectors = embeddings.take(unique).reshape(len(unique), embeddings.space.width)
        query_of += start
        scores[query_of, place] = pair_scores(unit, vectors, query_of, vector_of)
    return scores


def rank_exactly(
    embeddings: EmbeddingFolder, unit: np.ndarray, rows: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ``k`` best candidates of each query by true cosine, ties by smaller row.

    Parameters
    ----------
    embeddings, unit, rows
        As in `exact_scores`; a row comes once for a query.
    k : int

    Returns
    -------
    rows : ndarray of shape (n_queries, k), int64
        -1 where a query has fewer candidates.
    scores : ndarray of shape (n_queries, k), float32
        NaN there.
    """
    scores = exact_scores(embeddings, unit, rows)
    query_of, place = np.nonzero(rows >= 0)
    return best_per_query(query_of, rows[query_of, place], scores[query_of, place], len(unit), k)
