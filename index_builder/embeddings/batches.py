"""Consecutive rows in batches: read ahead in pieces by several threads, and judged on the way."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from .errors import BadRowError
from .opening import Part
from .soundness import Flaw, describe_flaw, find_flaws
from .space import EmbeddingSpace
from .storage import Storage

_PIECE_BYTES = 4 << 20  # read and judged by one thread, while it is in the cache


@dataclass(frozen=True)
class EmbeddingBatch:
    """Consecutive rows of an embedding folder.

    Parameters
    ----------
    row_start : int
        Row of the folder that ``embeddings[0]`` is.
    embeddings : ndarray of shape (n, dim) or (n, tokens, dim), stored dtype
        The caller's own, to keep or to write to.
    is_alive : ndarray of shape (n,), bool
        False where a bad row was replaced by zeros.
    """

    row_start: int
    embeddings: np.ndarray
    is_alive: np.ndarray

    def without(self, rows: np.ndarray) -> EmbeddingBatch:
        """Return the batch with some rows marked dead.

        Parameters
        ----------
        rows : ndarray of shape (m,), int64, sorted
            Of the folder; those outside of the batch are passed over.
        """
        start, stop = np.searchsorted(rows, [self.row_start, self.row_start + len(self.is_alive)])
        if start == stop:
            return self
        is_alive = self.is_alive.copy()
        is_alive[rows[start:stop] - self.row_start] = False
        return EmbeddingBatch(self.row_start, self.embeddings, is_alive)


def read_batches(
    storage: Storage,
    parts: Sequence[Part],
    space: EmbeddingSpace,
    *,
    batch_rows: int,
    start: int,
    stop: int,
    has_tombstones: bool,
) -> Iterator[EmbeddingBatch]:
    """Yield rows ``start`` to ``stop``; see `EmbeddingFolder.iter_batches`."""
    n_ahead = 1
    if all(part.vectors.has_random_access for part in parts):
        # Batches smaller than a piece need several under way to occupy all threads.
        batch_bytes = batch_rows * space.width * parts[0].vectors.dtype.itemsize
        n_ahead = max(1, min(storage.n_threads, storage.n_threads * _PIECE_BYTES // batch_bytes))
    pool = ThreadPoolExecutor(storage.n_threads)
    pending: deque[_PendingBatch] = deque()
    try:
        for row in range(start, stop, batch_rows):
            ready = pending.popleft() if len(pending) == n_ahead else None
            if ready:
                ready.wait()  # before the next begins: a column of vectors is read in order
            pending.append(_PendingBatch(pool, parts, space, row, min(row + batch_rows, stop)))
            if ready:
                yield ready.result(storage, has_tombstones)
        while pending:
            yield pending.popleft().result(storage, has_tombstones)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _PendingBatch:
    """A batch that the threads of a pool are reading and judging."""

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        parts: Sequence[Part],
        space: EmbeddingSpace,
        start: int,
        stop: int,
    ) -> None:
        dtype = parts[0].vectors.dtype
        self._parts = parts
        self._space = space
        self._row_start = start
        self._rows = np.empty((stop - start, space.width), dtype)
        self._flaws = np.empty(stop - start, np.uint8)
        self._futures: list[Future[None]] = []
        piece_rows = max(1, _PIECE_BYTES // (space.width * dtype.itemsize))
        while start < stop:
            part = self._part_of(start)
            end = min(stop, part.row_stop)
            if part.vectors.has_random_access:
                end = min(end, start + piece_rows)
            self._futures.append(pool.submit(self._read, part, start, end))
            start = end

    def wait(self) -> None:
        """Wait until all pieces are there, and raise what the first bad one raised."""
        for future in self._futures:
            future.result()

    def result(self, storage: Storage, has_tombstones: bool) -> EmbeddingBatch:
        """Return the batch, or raise `BadRowError`."""
        self.wait()
        flaws = self._flaws
        is_error = flaws == Flaw.NORM if has_tombstones else flaws != Flaw.NONE
        if is_error.any():
            i = int(np.argmax(is_error))
            part = self._part_of(self._row_start + i)
            row = self._row_start + i
            raise BadRowError(
                f"{storage.path_of(part.file)}, row {row - part.row_start} "
                f"(row {row} of the folder) {describe_flaw(flaws[i], self._rows[i])}; "
                + (
                    "if the embeddings aren't normalized, declare the space with unit_norm false."
                    if flaws[i] == Flaw.NORM
                    else 'remove or mend it, or read with bad_rows="tombstone" to leave it out.'
                )
            )
        is_alive = flaws == Flaw.NONE
        self._rows[~is_alive] = 0
        return EmbeddingBatch(
            self._row_start, self._rows.reshape(-1, *self._space.row_shape), is_alive
        )

    def _read(self, part: Part, start: int, stop: int) -> None:
        piece = slice(start - self._row_start, stop - self._row_start)
        part.vectors.read_into(start - part.row_start, self._rows[piece])
        self._flaws[piece] = find_flaws(self._rows[piece], unit_norm=self._space.unit_norm)

    def _part_of(self, row: int) -> Part:
        return self._parts[bisect_right(self._parts, row, key=lambda part: part.row_start) - 1]
