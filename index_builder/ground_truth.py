"""The exact nearest rows, by blocks, in bounded memory: ground truth and flat search."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .cosine import best_per_query, kth_largest, pair_scores, rounding_error, row_norms
from .embeddings.float16 import to_float32
from .embeddings.reader import EmbeddingBatch

_BLOCK_BYTES = 64 << 20  # float32 scores of all queries against a block


def block_rows(n_queries: int, width: int) -> int:
    """Return how many rows to scan at once so that scores and rows stay within 64 MiB each."""
    return int(np.clip(_BLOCK_BYTES // (4 * max(n_queries, width)), 1, 1 << 16))


def exact_search(
    batches: Iterable[EmbeddingBatch],
    queries: np.ndarray,
    k: int,
    *,
    excluded: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ``k`` rows of largest cosine for each query, compared with every row.

    Parameters
    ----------
    batches : iterable of EmbeddingBatch
        All rows, for example of ``EmbeddingFolder.iter_batches``; dead rows are passed over.
    queries : ndarray of shape (n_queries, width), float32, unit rows
    k : int
    excluded : ndarray of shape (n_queries,), int64, or None
        A row that each query must not find: itself.

    Returns
    -------
    rows : ndarray of shape (n_queries, k), int64
        Best first, ties by smaller row; -1 where there are fewer rows.
    scores : ndarray of shape (n_queries, k), float32
        Cosines; NaN there.
    """
    n_queries, width = queries.shape
    tolerance = rounding_error(width)
    best_rows = np.full((n_queries, k), -1, np.int64)
    best_scores = np.full((n_queries, k), np.nan, np.float32)
    for batch in batches:
        vectors = batch.embeddings.reshape(len(batch.embeddings), width)
        widened = to_float32(vectors)
        nominees = queries @ widened.T
        nominees /= row_norms(widened)
        nominees[:, ~batch.is_alive] = -np.inf
        if excluded is not None:
            local = excluded - batch.row_start
            is_here = (local >= 0) & (local < len(vectors))
            nominees[np.flatnonzero(is_here), local[is_here]] = -np.inf
        # NaN, where fewer than k rows are known, must let everything through: cosines exceed -2.
        floor = np.fmax(best_scores[:, -1], np.float32(-2))
        if k <= len(vectors) and np.isnan(best_scores[:, -1]).any():
            floor = np.maximum(floor, kth_largest(nominees, k))
        query_of, local_rows = np.nonzero(nominees >= (floor - tolerance)[:, None])
        is_alive = nominees[query_of, local_rows] > -np.inf
        query_of, local_rows = query_of[is_alive], local_rows[is_alive]
        scores = pair_scores(queries, vectors, query_of, local_rows)
        known = best_rows >= 0
        best_rows, best_scores = best_per_query(
            np.concatenate([np.nonzero(known)[0], query_of]),
            np.concatenate([best_rows[known], local_rows + batch.row_start]),
            np.concatenate([best_scores[known], scores]),
            n_queries,
            k,
        )
    return best_rows, best_scores


def batches_of(
    vectors: np.ndarray, batch_rows: int, is_alive: np.ndarray | None = None
) -> Iterable[EmbeddingBatch]:
    """Yield an array of shape (n, width) that is in memory as batches; all alive by default."""
    alive = np.ones(len(vectors), bool) if is_alive is None else is_alive
    for start in range(0, len(vectors), batch_rows):
        piece = slice(start, start + batch_rows)
        yield EmbeddingBatch(start, vectors[piece], alive[piece])
