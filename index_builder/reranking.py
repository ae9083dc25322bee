"""Candidates ranked by their cosine with vectors taken by row: the embeddings' own, or a copy's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from .cosine import SMALLEST_NORM, best_per_query, kth_largest, pair_scores, rounding_error
from .embeddings.float16 import to_float32
from .embeddings.space import EmbeddingSpace
from .factory import inner_products
from .threads import in_threads

_ROW_BYTES = 64 << 20  # rows read together, in their dtype
_BLOCK_ROWS = 128  # widened together, while they stay in a processor's cache


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
    for piece, taken, places in _take_pieces(vectors, rows):
        query_of, place = np.nonzero(places >= 0)
        vector_of = places[query_of, place]
        scores[piece][query_of, place] = pair_scores(unit[piece], taken, query_of, vector_of)
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

    Notes
    -----
    float32 tells which candidates can be among the first ``k``; those alone are scored in float64,
    as `cosine` describes.
    """
    best_rows = np.full((len(rows), k), -1, np.int64)
    best_scores = np.full((len(rows), k), np.nan, np.float32)
    for piece, taken, places in _take_pieces(vectors, rows):
        nominees = _float32_cosines(unit[piece], taken, places)
        is_near = places >= 0
        if k < places.shape[1]:
            floor = kth_largest(nominees, k) - 2 * rounding_error(unit.shape[1])
            is_near &= nominees >= floor[:, None]
        query_of, place = np.nonzero(is_near)
        scores = pair_scores(unit[piece], taken, query_of, places[query_of, place])
        best_rows[piece], best_scores[piece] = best_per_query(
            query_of, rows[piece][query_of, place], scores, len(places), k
        )
    return best_rows, best_scores


def _take_pieces(
    vectors: TakenRows, rows: np.ndarray
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Yield some queries, the vectors (n, width) that they want, and where each of its own is."""
    row_bytes = vectors.space.width * vectors.dtype.itemsize
    step = max(1, _ROW_BYTES // (row_bytes * max(1, rows.shape[1])))
    for start in range(0, len(rows), step):
        wanted = rows[start : start + step]
        is_row = wanted >= 0
        unique, vector_of = np.unique(wanted[is_row], return_inverse=True)
        places = np.full(wanted.shape, -1, np.int64)
        places[is_row] = vector_of
        taken = vectors.take(unique).reshape(len(unique), vectors.space.width)
        yield slice(start, start + step), taken, places


def _float32_cosines(unit: np.ndarray, taken: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return cosines (n_queries, n_candidates), to float32's precision; -infinity: none.

    Their difference is wrong by less than twice `rounding_error`: norms are rounded too.
    """
    widened = np.empty(taken.shape, np.float32)
    norms = np.empty(len(taken), np.float32)

    def widen(start: int, stop: int) -> None:
        rows = to_float32(taken[start:stop], out=widened[start:stop])
        norms[start:stop] = np.sqrt(np.einsum("ij,ij->i", rows, rows))

    in_threads(widen, len(taken), _BLOCK_ROWS)
    products = inner_products(unit, widened, places)
    if len(taken):
        products /= np.maximum(norms, SMALLEST_NORM)[places]
    return products
