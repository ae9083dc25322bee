"""Where inverted lists are scanned: in memory, or from disk list by list.

In memory, FAISS scans the codes of a shard where they were read to. From disk, the lists that a
batch of queries wants are read once, neighbors together, into one buffer while FAISS scans another.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .chunks import Chunk, cut, scan
from .embeddings.progress import track
from .embeddings.storage import LocalStorage
from .factory import CodeLists
from .fan_out import FanOut, Found, merge_nearest
from .row_set import RowSet
from .threads import Pool

if TYPE_CHECKING:
    from .inverted_file import ShardLists

_READ_BYTES = 4 << 20  # of one request; several are in flight


class ListTier(Protocol):
    """Codes of all shards, in memory or on disk."""

    def search(
        self,
        vectors: np.ndarray,
        lists: np.ndarray,
        distances: np.ndarray,
        k: int,
        allowed: RowSet | None,
    ) -> Found:
        """Return the ``k`` nearest allowed codes of the lists that each query wants.

        Parameters
        ----------
        vectors : ndarray of shape (n_queries, width), float32
        lists : ndarray of shape (n_queries, n_probe), int64
        distances : ndarray of shape (n_queries, n_probe), float32
            Squared distance of each query to the centroid of each list.
        k : int
        allowed : RowSet or None
            Rows that may be found; None: all.

        Returns
        -------
        estimates : ndarray of shape (n_queries, k), float32
            Of squared distances, the best first; infinite where there are fewer.
        rows : ndarray of shape (n_queries, k), int64
            -1 there.
        """


class InMemory:
    """One FAISS object a shard, searched side by side."""

    def __init__(self, coarse: Any, bits: int, shards: Sequence[ShardLists]) -> None:
        self._coarse, self._bits = coarse, bits
        self._opened = []
        for shard in track(shards, label="open", total=len(shards), unit="shard"):
            lists = CodeLists(coarse, bits)
            codes = np.empty((shard.n_codes, shard.code_size), np.uint8)
            shard.read_codes(0, codes.reshape(-1))
            shard.rows = np.array(shard.rows)
            held = np.flatnonzero(np.diff(shard.starts))
            lists.show(
                codes.reshape(-1),
                held,
                np.diff(shard.starts)[held],
                shard.starts[held] * shard.code_size,
            )
            self._opened.append((shard, lists, codes))
        self._fan_out = FanOut(len(self._opened))

    def search(
        self,
        vectors: np.ndarray,
        lists: np.ndarray,
        distances: np.ndarray,
        k: int,
        allowed: RowSet | None,
    ) -> Found:
        """Return what `ListTier.search` promises."""

        def search_one(opened: tuple[ShardLists, CodeLists, np.ndarray]) -> Found:
            shard, all_lists, codes = opened
            if allowed is None:
                estimates, list_of, places = all_lists.search(vectors, k, lists, distances)
                rows = np.full(places.shape, -1, np.int64)
                is_found = places >= 0
                rows[is_found] = shard.rows_of(shard.starts[list_of[is_found]] + places[is_found])
                return estimates, rows
            best = _nothing(len(vectors), k)
            scanner = CodeLists(self._coarse, self._bits)
            for chunk in cut(shard, np.unique(lists)):
                queries = vectors, lists, distances
                scan(scanner, chunk, codes, chunk.starts, queries, best, allowed)
            return best

        return merge_nearest(self._fan_out.search(search_one, self._opened), k)


class OnDisk:
    """Two buffers: FAISS scans one while the lists that come next are read into the other."""

    def __init__(self, coarse: Any, bits: int, shards: Sequence[ShardLists]) -> None:
        self._shards = list(shards)
        self._coarse, self._bits = coarse, bits
        self._pool = Pool(LocalStorage.n_threads)

    def search(
        self,
        vectors: np.ndarray,
        lists: np.ndarray,
        distances: np.ndarray,
        k: int,
        allowed: RowSet | None,
    ) -> Found:
        """Return what `ListTier.search` promises."""
        best = _nothing(len(vectors), k)
        wanted = np.unique(lists)
        chunks = [chunk for shard in self._shards for chunk in cut(shard, wanted)]
        if not chunks:
            return best
        # Buffers are of the call: calls of several threads don't meet in them.
        shape = max(chunk.n_codes for chunk in chunks), chunks[0].shard.code_size
        buffers = [np.empty(shape, np.uint8) for _ in range(min(2, len(chunks)))]
        scanners = [CodeLists(self._coarse, self._bits) for _ in buffers]
        reading = self._read(chunks[0], buffers[0])
        for number, chunk in enumerate(chunks):
            for read in reading:
                read.result()
            if number + 1 < len(chunks):
                reading = self._read(chunks[number + 1], buffers[(number + 1) % 2])
            turn = number % len(buffers)
            queries = vectors, lists, distances
            scan(scanners[turn], chunk, buffers[turn], chunk.firsts, queries, best, allowed)
        return best

    def _read(self, chunk: Chunk, buffer: np.ndarray) -> list[Future[None]]:
        step = max(1, _READ_BYTES // chunk.shard.code_size)
        return [
            self._pool.threads.submit(
                chunk.shard.read_codes,
                code,
                buffer[first + code - start : first + min(code + step, stop) - start].reshape(-1),
            )
            for start, stop, first in chunk.reads
            for code in range(start, stop, step)
        ]


def _nothing(n_queries: int, k: int) -> Found:
    return np.full((n_queries, k), np.inf, np.float32), np.full((n_queries, k), -1, np.int64)
