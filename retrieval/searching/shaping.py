"""Shaping: what a search does to the nearest rows before they are hits.

Rows that copy an excluded stimulus are left out, near-duplicates of a better hit are folded into
it, and hits are ordered anew by their aesthetic score. Each takes rows away, or looks further down;
so more are asked for, until every query has its hits or the index has no more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from index_builder.cosine import pair_scores, rounding_error, row_norms, unit_rows
from index_builder.embeddings.float16 import to_float32

from ..errors import SearchError
from .request import SearchRequest

AESTHETIC_POOL = 10  # hits that are ordered anew, for each that is asked for
_BLOCK_BYTES = 64 << 20  # vectors, float32, that are compared at a time; cosines come on top
_TILE_RANKS = 128  # ranks of a query that are thinned at a time
_NORMED_ROWS = 1024
_SHORTEST = 1e-12  # of a vector that has a direction

Nearest = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
Take = Callable[[np.ndarray], np.ndarray]


def shape_hits(
    nearest: Nearest,
    take: Take,
    unit: np.ndarray,
    request: SearchRequest,
    *,
    most: int,
    aesthetic: Take | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return the hits of each query, without what was asked to be left out, in the order asked.

    Parameters
    ----------
    nearest : callable
        Given unit rows (n, width), float32, and k: the k nearest rows that may be found, (n, k),
        int64, with -1 where there are fewer; and their cosines, float32, with NaN there. Best
        first, ties by smaller row; what one query is given may not depend on the others.
    take : callable
        Given rows (n,), int64: their stored vectors (n, width) or (n, tokens, dim), any float, of
        any norm.
    unit : ndarray of shape (n_queries, width), float32, unit rows
    request : SearchRequest
        ``k``, ``duplicate_from``, ``excluded``, ``excluded_from`` and ``aesthetic_weight``.
    most : int
        Rows that can be found at all.
    aesthetic : callable or None
        Given rows (n,), int64: their aesthetic scores (n,), NaN where there is none. Needed where
        ``aesthetic_weight`` isn't 0.

    Returns
    -------
    rows : ndarray of shape (n_queries, k), int64
        Best first, ties by smaller row; -1 where the index has no more.
    scores : ndarray of shape (n_queries, k), float32
        Cosines, whatever the order; NaN there.
    n_duplicates : ndarray of shape (n_queries, k), int32, or None
        Of each hit: the rows that were folded into it, among those that are nearer to the query
        than the last row that was kept. None where near-duplicates are kept.

    Raises
    ------
    SearchError
        If excluded vectors have another width, or hold NaN, infinite or zero rows.

    Notes
    -----
    In the order of their cosines, a row whose cosine with an excluded vector is at least
    ``excluded_from`` is left out; one whose cosine with a row that was kept is at least
    ``duplicate_from`` is folded into the first such; all others are kept. So of near-duplicates the
    nearest to the query stays.

    Where there is an aesthetic weight, the pool is the first ten times k rows that are kept, and
    the hits are the k best of the pool by cosine + weight * aesthetic / 10; a row without a score
    counts as 0. What is beyond the pool isn't looked at, however beautiful.

    At first twice as many rows are asked for as are to be kept; then, for queries that lack some,
    twice as many again. Memory: 64 MiB of vectors, and as much of cosines, beside ``nearest``'s.
    Time: an excluded vector costs ``width`` multiplications for each distinct row found.
    """
    if request.aesthetic_weight and aesthetic is None:
        raise SearchError(
            f"aesthetic_weight is {request.aesthetic_weight}, and the index tells no aesthetic "
            f"scores; leave the weight out."
        )
    n_wanted = request.k * (AESTHETIC_POOL if request.aesthetic_weight else 1)
    thinner = _Thinner(take, request, unit.shape[1], n_wanted)
    kept = _Kept.nothing(len(unit), n_wanted)
    unfilled = np.arange(len(unit))
    n_asked = min(2 * n_wanted, most) if thinner.drops else min(n_wanted, most)
    while len(unfilled) and n_asked:
        rows, scores = nearest(unit[unfilled], n_asked)
        found = thinner.thin(rows, scores)
        kept.put(unfilled, found)
        has_more = (rows[:, -1] >= 0) & (n_asked < most)
        unfilled = unfilled[has_more & (found.rows[:, -1] < 0)]
        n_asked = min(2 * n_asked, most)
    if request.aesthetic_weight and aesthetic is not None:
        kept = kept.best(_bonus(kept.rows, request.aesthetic_weight, aesthetic), request.k)
    counts = None if request.duplicate_from is None else kept.n_duplicates
    return kept.rows, kept.scores, counts


@dataclass(frozen=True)
class _Kept:
    """Rows that were kept, of each query, best first; -1, NaN and 0 where there are fewer."""

    rows: np.ndarray
    scores: np.ndarray
    n_duplicates: np.ndarray

    @classmethod
    def nothing(cls, n_queries: int, n_wanted: int) -> _Kept:
        shape = n_queries, n_wanted
        return cls(np.full(shape, -1), np.full(shape, np.nan, "f4"), np.zeros(shape, "i4"))

    def put(self, queries: np.ndarray, other: _Kept) -> None:
        """Overwrite some queries."""
        self.rows[queries] = other.rows
        self.scores[queries] = other.scores
        self.n_duplicates[queries] = other.n_duplicates

    def of(self, queries: np.ndarray) -> _Kept:
        """Return a copy of some queries."""
        return _Kept(self.rows[queries], self.scores[queries], self.n_duplicates[queries])

    def best(self, bonus: np.ndarray, k: int) -> _Kept:
        """Return the k of largest score and bonus, ties by smaller row."""
        total = np.where(self.rows < 0, -np.inf, self.scores.astype(np.float64) + bonus)
        order = np.lexsort((self.rows, -total), axis=1)[:, :k]
        arrays = (self.rows, self.scores, self.n_duplicates)
        return _Kept(*(np.take_along_axis(array, order, axis=1) for array in arrays))


def _bonus(rows: np.ndarray, weight: float, aesthetic: Take) -> np.ndarray:
    """Return what is added to the cosine of each row (n, m), float64; 0 where it isn't known."""
    unique, place = np.unique(rows, return_inverse=True)
    known = unique >= 0
    bonus = np.zeros(len(unique))
    bonus[known] = np.nan_to_num(weight * np.asarray(aesthetic(unique[known]), np.float64) / 10)
    return bonus[place.reshape(rows.shape)]


class _Thinner:
    """Leaves out excluded rows and near-duplicates."""

    def __init__(self, take: Take, request: SearchRequest, width: int, n_wanted: int) -> None:
        self._take, self._width, self._n_wanted = take, width, n_wanted
        duplicate_from = request.duplicate_from
        self._duplicate_from = None if duplicate_from is None else float(duplicate_from)
        self._excluded_from = float(request.excluded_from)
        excluded = np.empty((0, width)) if request.excluded is None else request.excluded
        self._excluded, self._norms = _checked(np.asarray(excluded), width)
        self.drops = self._duplicate_from is not None or len(self._excluded) > 0

    def thin(self, rows: np.ndarray, scores: np.ndarray) -> _Kept:
        """Return what is kept of rows (n, m) and scores (n, m): the first ``n_wanted``, or all."""
        kept = _Kept.nothing(len(rows), self._n_wanted)
        if not self.drops:
            n_found = min(self._n_wanted, rows.shape[1])
            kept.rows[:, :n_found] = rows[:, :n_found]
            kept.scores[:, :n_found] = scores[:, :n_found]
            return kept
        n_ranks = min(_TILE_RANKS, rows.shape[1])
        step = max(1, _BLOCK_BYTES // (4 * n_ranks * max(self._width, n_ranks)))
        for first in range(0, len(rows), step):
            block = np.arange(first, min(first + step, len(rows)))
            n_kept = np.zeros(len(block), np.int64)
            for start in range(0, rows.shape[1], n_ranks):
                lacking = np.flatnonzero(n_kept < self._n_wanted)
                if not len(lacking):
                    break
                ranks = slice(start, start + n_ranks)
                queries = block[lacking]
                tile = kept.of(queries)
                n_kept[lacking] = self._thin_tile(
                    rows[queries, ranks], scores[queries, ranks], tile, n_kept[lacking]
                )
                kept.put(queries, tile)
        return kept

    def _thin_tile(
        self, rows: np.ndarray, scores: np.ndarray, kept: _Kept, n_kept: np.ndarray
    ) -> np.ndarray:
        """Thin some ranks of some queries; append what is kept, and return how many there are."""
        is_in = rows >= 0
        if not is_in.any():
            return n_kept
        vectors = _Vectors(self._take, rows, self._width)
        is_in[is_in] = ~self._is_excluded(vectors)[vectors.place_of(rows[is_in])]
        # The place among the kept rows that a rank is a copy of; -1: none.
        original = np.full(rows.shape, -1)
        copies = np.zeros((len(rows), rows.shape[1], 0), bool)
        if self._duplicate_from is not None:
            self._find_originals(vectors, rows, kept, n_kept, original)
            copies = self._copies(vectors, rows, vectors, rows)
        n_kept, everyone = n_kept.copy(), np.arange(len(rows))
        place = np.full(rows.shape, -1)
        for rank in range(rows.shape[1]):
            if copies.shape[2]:
                is_copy = copies[:, rank, :rank] & (place[:, :rank] >= 0)
                first = is_copy.argmax(axis=1) if rank else everyone
                found = is_copy.any(axis=1) & (original[:, rank] < 0)
                original[found, rank] = place[found, first[found]]
            is_met = is_in[:, rank] & (n_kept < self._n_wanted)
            folded = is_met & (original[:, rank] >= 0)
            kept.n_duplicates[everyone[folded], original[folded, rank]] += 1
            new = everyone[is_met & ~folded]
            place[new, rank] = n_kept[new]
            kept.rows[new, n_kept[new]] = rows[new, rank]
            kept.scores[new, n_kept[new]] = scores[new, rank]
            n_kept[new] += 1
        return n_kept

    def _find_originals(
        self,
        vectors: _Vectors,
        rows: np.ndarray,
        kept: _Kept,
        n_kept: np.ndarray,
        original: np.ndarray,
    ) -> None:
        """Tell which rows are copies of rows that earlier tiles kept."""
        for start in range(0, int(n_kept.max(initial=0)), _TILE_RANKS):
            earlier = kept.rows[:, start : start + _TILE_RANKS]
            of_earlier = _Vectors(self._take, earlier, self._width)
            copies = self._copies(vectors, rows, of_earlier, earlier)
            found = copies.any(axis=2) & (original < 0)
            original[found] = start + copies.argmax(axis=2)[found]

    def _copies(
        self, left: _Vectors, rows: np.ndarray, right: _Vectors, others: np.ndarray
    ) -> np.ndarray:
        """Return which rows (n, a) are near-duplicates of which others (n, b): bool, (n, a, b)."""
        assert self._duplicate_from is not None
        first, second = left.place_of(rows), right.place_of(others)
        cosines = left.unit[first] @ right.unit[second].swapaxes(1, 2)
        reaches: np.ndarray = cosines >= self._duplicate_from
        # What rounding could decide is decided in float64, however the work was cut.
        doubtful = np.abs(cosines - self._duplicate_from) <= rounding_error(self._width)
        query, a, b = np.nonzero(doubtful)
        exact = pair_scores(left.stored, right.stored, first[query, a], second[query, b])
        reaches[query, a, b] = exact >= self._duplicate_from
        reaches &= (rows >= 0)[:, :, None] & (others >= 0)[:, None, :]
        return reaches

    def _is_excluded(self, vectors: _Vectors) -> np.ndarray:
        """Return which distinct rows are copies of an excluded vector."""
        is_excluded = np.zeros(len(vectors.stored), bool)
        tolerance = rounding_error(self._width)
        n_excluded = max(1, _BLOCK_BYTES // (4 * self._width))
        for start in range(0, len(self._excluded), n_excluded):
            block = slice(start, start + n_excluded)
            excluded, norms = to_float32(self._excluded[block]), self._norms[block]
            step = max(1, _BLOCK_BYTES // (4 * len(excluded)))
            for first in range(0, len(is_excluded), step):
                cosines = vectors.unit[first : first + step] @ excluded.T
                cosines /= norms
                nearest = cosines.max(axis=1)
                is_excluded[first : first + step] |= nearest > self._excluded_from + tolerance
                near = np.flatnonzero(nearest >= self._excluded_from - tolerance)
                row, place = np.nonzero(np.abs(cosines[near] - self._excluded_from) <= tolerance)
                row = first + near[row]
                exact = pair_scores(excluded, vectors.stored, place, row)
                is_excluded[row[exact >= self._excluded_from]] = True
        return is_excluded


class _Vectors:
    """The vectors of some rows (n, m), each of them once; -1 has the first one's."""

    def __init__(self, take: Take, rows: np.ndarray, width: int) -> None:
        self._rows = np.unique(rows[rows >= 0])
        self.stored = take(self._rows).reshape(len(self._rows), width)
        self.unit = unit_rows(self.stored)

    def place_of(self, rows: np.ndarray) -> np.ndarray:
        """Return where the vector of each row stands."""
        places: np.ndarray = np.searchsorted(self._rows, np.maximum(rows, self._rows[0]))
        return places


def _checked(excluded: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return excluded vectors as rows (m, width), and their norms (m,), float32."""
    rows = excluded.reshape(len(excluded), -1) if excluded.size else excluded.reshape(0, width)
    if rows.shape[1] != width or rows.dtype.kind != "f":
        raise SearchError(
            f"excluded vectors are {rows.dtype} with {rows.shape[1]} numbers each, expected "
            f"floats, {width} each, as the index has."
        )
    norms = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _NORMED_ROWS):
        piece = slice(start, start + _NORMED_ROWS)
        norms[piece] = row_norms(to_float32(rows[piece]))
    is_bad = ~(np.isfinite(norms) & (norms > _SHORTEST))
    if is_bad.any():
        raise SearchError(
            f"excluded vector {int(np.argmax(is_bad))} is zero or holds NaN or infinite numbers; "
            f"leave it out, or look where it was made."
        )
    return rows, norms
