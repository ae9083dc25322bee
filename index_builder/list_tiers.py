"""Where inverted lists are scanned: in memory, or from disk list by list.

In memory, FAISS scans the codes of a shard where they were read to. From disk, the lists that a
batch of queries wants are read once, neighbors together, into one buffer while FAISS scans another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .costs import READ_BUFFER_BYTES
from .embeddings.progress import track
from .embeddings.storage import LocalStorage
from .factory import CodeLists
from .fan_out import FanOut, merge_nearest
from .threads import Pool

if TYPE_CHECKING:
    from .inverted_file import ShardLists

_GAP_BYTES = 64 << 10  # between two lists, read with them: sooner done than another request
_READ_BYTES = 4 << 20  # of one request; several are in flight


class ListTier(Protocol):
    """Codes of all shards, in memory or on disk."""

    def search(
        self, vectors: np.ndarray, lists: np.ndarray, distances: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return estimates and global rows (n_queries, k), the best first; -1 where none is."""


class InMemory:
    """One FAISS object a shard, searched side by side."""

    def __init__(self, coarse: Any, bits: int, shards: Sequence[ShardLists]) -> None:
        self._opened = []
        for shard in track(shards, label="open", total=len(shards), unit="shard"):
            lists = CodeLists(coarse, bits)
            codes = np.empty(shard.n_codes * shard.code_size, np.uint8)
            shard.read_codes(0, codes)
            shard.rows = np.array(shard.rows)
            held = np.flatnonzero(np.diff(shard.starts))
            lists.show(
                codes,
                held,
                np.diff(shard.starts)[held],
                shard.starts[held] * shard.code_size,
            )
            self._opened.append((shard, lists))
        self._fan_out = FanOut(len(self._opened))

    def search(
        self, vectors: np.ndarray, lists: np.ndarray, distances: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what `ListTier.search` promises."""

        def search_one(opened: tuple[ShardLists, CodeLists]) -> tuple[np.ndarray, np.ndarray]:
            shard, codes = opened
            estimates, list_of, places = codes.search(vectors, k, lists, distances)
            return estimates, shard.rows_at(list_of, places)

        return merge_nearest(self._fan_out.search(search_one, self._opened), k)


@dataclass(frozen=True)
class _Chunk:
    """Lists of one shard that are read into one buffer; parts of lists where they are long.

    ``lists``, ``sizes`` and ``places`` (of the first code within its list) have shape (m,);
    ``reads`` are codes from, codes to (exclusive), and the byte of the buffer they go to.
    """

    shard: ShardLists
    lists: np.ndarray
    sizes: np.ndarray
    places: np.ndarray
    firsts: np.ndarray
    reads: tuple[tuple[int, int, int], ...]
    n_bytes: int


class OnDisk:
    """Two buffers: FAISS scans one while the lists that come next are read into the other."""

    def __init__(self, coarse: Any, bits: int, shards: Sequence[ShardLists]) -> None:
        self._shards = list(shards)
        self._n_lists = coarse.ntotal
        self._coarse, self._bits = coarse, bits
        self._pool = Pool(LocalStorage.n_threads)

    def search(
        self, vectors: np.ndarray, lists: np.ndarray, distances: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what `ListTier.search` promises."""
        best = np.full((len(vectors), k), np.inf, np.float32), np.full((len(vectors), k), -1)
        wanted = np.unique(lists)
        chunks = [chunk for shard in self._shards for chunk in _cut(shard, wanted)]
        if not chunks:
            return best
        # Buffers are of the call: calls of several threads don't meet in them.
        size = max(chunk.n_bytes for chunk in chunks)
        buffers = [np.empty(size, np.uint8) for _ in range(min(2, len(chunks)))]
        opened = [CodeLists(self._coarse, self._bits) for _ in buffers]
        reading = self._read(chunks[0], buffers[0])
        for number, chunk in enumerate(chunks):
            for read in reading:
                read.result()
            if number + 1 < len(chunks):
                reading = self._read(chunks[number + 1], buffers[(number + 1) % 2])
            turn = number % len(buffers)
            opened[turn].show(buffers[turn], chunk.lists, chunk.sizes, chunk.firsts)
            is_here = np.isin(lists, chunk.lists)
            asking = np.flatnonzero(is_here.any(axis=1))
            estimates, list_of, places = opened[turn].search(
                vectors[asking], k, np.where(is_here, lists, -1)[asking], distances[asking]
            )
            first = np.zeros(self._n_lists, np.int64)
            first[chunk.lists] = chunk.places
            places = np.where(places < 0, -1, places + first[list_of])
            rows = chunk.shard.rows_at(list_of, places)
            merged = merge_nearest([(best[0][asking], best[1][asking]), (estimates, rows)], k)
            best[0][asking], best[1][asking] = merged
        return best

    def _read(self, chunk: _Chunk, buffer: np.ndarray) -> list[Future[None]]:
        code_size, step = chunk.shard.code_size, max(1, _READ_BYTES // chunk.shard.code_size)
        return [
            self._pool.threads.submit(
                chunk.shard.read_codes,
                code,
                buffer[
                    first + (code - start) * code_size : first
                    + (min(code + step, stop) - start) * code_size
                ],
            )
            for start, stop, first in chunk.reads
            for code in range(start, stop, step)
        ]


def _cut(shard: ShardLists, wanted: np.ndarray) -> Iterator[_Chunk]:
    """Yield chunks that hold all codes of the wanted lists (m,), rising, of one shard."""
    most = max(1, READ_BUFFER_BYTES // shard.code_size)  # codes of a chunk
    gap = _GAP_BYTES // shard.code_size
    # Pieces: lists, and parts of those that are longer than a buffer.
    pieces: list[tuple[int, int, int]] = []  # list, first code, end
    for number in wanted[np.diff(shard.starts)[wanted] > 0].tolist():
        start, stop = int(shard.starts[number]), int(shard.starts[number + 1])
        pieces += [(number, code, min(code + most, stop)) for code in range(start, stop, most)]
    held: list[tuple[int, int, int, int]] = []  # list, first code, end, code of the buffer
    reads: list[tuple[int, int, int]] = []  # first code, end, code of the buffer
    used = 0
    for number, start, stop in pieces:
        joins = bool(reads) and start - reads[-1][1] <= gap
        added = stop - (reads[-1][1] if joins else start)
        if held and (used + added > most or held[-1][0] == number):
            yield _chunk(shard, held, reads, used)
            held, reads, used, joins, added = [], [], 0, False, stop - start
        if joins:
            first, _, at = reads[-1]
            reads[-1] = (first, stop, at)
        else:
            reads.append((start, stop, used))
        used += added
        held.append((number, start, stop, used - (stop - start)))
    if held:
        yield _chunk(shard, held, reads, used)


def _chunk(
    shard: ShardLists,
    held: Sequence[tuple[int, int, int, int]],
    reads: Sequence[tuple[int, int, int]],
    used: int,
) -> _Chunk:
    lists, starts, stops, at = np.array(held, np.int64).T
    return _Chunk(
        shard=shard,
        lists=lists,
        sizes=stops - starts,
        places=starts - shard.starts[lists],
        firsts=at * shard.code_size,
        reads=tuple((start, stop, first * shard.code_size) for start, stop, first in reads),
        n_bytes=used * shard.code_size,
    )
