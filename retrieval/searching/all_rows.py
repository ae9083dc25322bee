"""AllRows: every row that a search may find compared with every query, without codes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

import numpy as np

from index_builder.embeddings.collection import Collection
from index_builder.embeddings.reader import EmbeddingBatch
from index_builder.ground_truth import batches_of, block_rows, exact_search
from index_builder.row_set import RowSet
from index_builder.vector_copy import Vectors

# Of all rows: what is less is quicker taken row by row than read past.
_FEW_SHARE = 1 / 16


class AllRows:
    """The rows of an index's embeddings.

    Parameters
    ----------
    embeddings : Collection
    vectors : Vectors
        What single rows are taken from.
    bad_rows : {"error", "tombstone"}
        As the index was built.
    deleted : ndarray of shape (m,), int64, rising
        Rows that are never found.
    in_memory : bool
        Read all of them now, in their stored dtype.
    """

    def __init__(
        self,
        embeddings: Collection,
        vectors: Vectors,
        *,
        bad_rows: Literal["error", "tombstone"],
        deleted: np.ndarray,
        in_memory: bool,
    ) -> None:
        self._embeddings, self._vectors = embeddings, vectors
        self._bad_rows, self._deleted = bad_rows, deleted
        self._held = self._hold() if in_memory else None

    def nearest(
        self, unit: np.ndarray, k: int, allowed: RowSet | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the ``k`` rows of largest cosine, and the cosines; see `exact_search`.

        Parameters
        ----------
        unit : ndarray of shape (n_queries, width), float32, unit rows
        k : int
        allowed : RowSet or None
            Rows that may be found, none of them deleted; None: all that aren't deleted.
        """
        if allowed is not None and len(allowed) <= _FEW_SHARE * allowed.n_rows:
            return self.nearest_of_few(unit, k, allowed)
        return exact_search(self._batches(len(unit), allowed), unit, k)

    def nearest_of_few(
        self, unit: np.ndarray, k: int, allowed: RowSet
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what `nearest` does; rows that may not be found are not read."""
        rows = allowed.rows()
        step = block_rows(len(unit), unit.shape[1])
        batches = (
            EmbeddingBatch(start, self._take(some), np.ones(len(some), bool))
            for start in range(0, len(rows), step)
            for some in [rows[start : start + step]]
        )
        places, scores = exact_search(batches, unit, k)
        return np.append(rows, -1)[places], scores

    def _take(self, rows: np.ndarray) -> np.ndarray:
        return self._vectors.take(rows).reshape(len(rows), self._vectors.space.width)

    def _batches(self, n_queries: int, allowed: RowSet | None) -> Iterator[EmbeddingBatch]:
        for batch in self._read(block_rows(n_queries, self._embeddings.space.width)):
            if allowed is None:
                yield batch
                continue
            may_be_found = allowed.mask(batch.row_start, batch.row_start + len(batch.is_alive))
            yield dataclasses.replace(batch, is_alive=batch.is_alive & may_be_found)

    def _read(self, batch_rows: int) -> Iterator[EmbeddingBatch]:
        if self._held is not None:
            yield from batches_of(self._held.embeddings, batch_rows, self._held.is_alive)
            return
        batches = self._embeddings.iter_batches(batch_rows=batch_rows, bad_rows=self._bad_rows)
        for batch in batches:
            yield batch.without(self._deleted)

    def _hold(self) -> EmbeddingBatch:
        width = self._embeddings.space.width
        embeddings = np.empty((self._embeddings.n_rows, width), self._embeddings.dtype)
        is_alive = np.empty(self._embeddings.n_rows, bool)
        self._held = None
        for batch in self._read(block_rows(1, width)):
            piece = slice(batch.row_start, batch.row_start + len(batch.is_alive))
            embeddings[piece] = batch.embeddings.reshape(len(batch.is_alive), -1)
            is_alive[piece] = batch.is_alive
        return EmbeddingBatch(0, embeddings, is_alive)
