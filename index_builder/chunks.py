"""Chunks: lists of one shard that are scanned out of one buffer, all their codes or allowed ones.

FAISS is shown where the codes of each list stand. Where a search may find some rows only, their
codes are packed first: what is left out costs a look at its bit, and no scan.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .costs import READ_BUFFER_BYTES
from .factory import CodeLists
from .fan_out import Found, merge_nearest
from .row_set import RowSet

if TYPE_CHECKING:
    from .inverted_file import ShardLists

_GAP_BYTES = 64 << 10  # between two lists, read with them: sooner done than another request


@dataclass(frozen=True)
class Chunk:
    """Lists of one shard that stand in one buffer; parts of lists where they are long.

    Parameters
    ----------
    shard : ShardLists
    lists : ndarray of shape (m,), int64
    starts, sizes : ndarray of shape (m,), int64
        Number of the first code of each within the shard, and how many there are.
    firsts : ndarray of shape (m,), int64
        Code of the buffer at which each begins, once it is read.
    reads : tuple of (int, int, int)
        Codes from, codes to (exclusive), and the code of the buffer that they go to.
    n_codes : int
        That the buffer holds.
    """

    shard: ShardLists
    lists: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    firsts: np.ndarray
    reads: tuple[tuple[int, int, int], ...]
    n_codes: int


def cut(shard: ShardLists, wanted: np.ndarray) -> Iterator[Chunk]:
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


def scan(
    scanner: CodeLists,
    chunk: Chunk,
    codes: np.ndarray,
    firsts: np.ndarray,
    queries: tuple[np.ndarray, np.ndarray, np.ndarray],
    best: Found,
    allowed: RowSet | None,
) -> None:
    """Scan a chunk for the queries that want one of its lists, and better what they have.

    Parameters
    ----------
    scanner : CodeLists
    chunk : Chunk
    codes : ndarray of shape (n, code_size), uint8
    firsts : ndarray of shape (m,), int64
        Row of ``codes`` at which each list of the chunk begins.
    queries : tuple of vectors, lists, distances
        As in `ListTier.search`.
    best : tuple of estimates, rows
        Of shape (n_queries, k); changed in place.
    allowed : RowSet or None
    """
    vectors, lists, distances = queries
    begin = np.zeros(scanner.n_lists, np.int64)
    if allowed is None:
        numbers, sizes = None, chunk.sizes
        begin[chunk.lists] = chunk.starts
    else:
        numbers, codes, sizes = _pack(chunk, codes, firsts, allowed)
        firsts = np.cumsum(sizes) - sizes
        begin[chunk.lists] = firsts
    scanner.show(codes.reshape(-1), chunk.lists, sizes, firsts * chunk.shard.code_size)
    is_here = np.isin(lists, chunk.lists)
    asking = np.flatnonzero(is_here.any(axis=1))
    estimates, list_of, places = scanner.search(
        vectors[asking], best[0].shape[1], np.where(is_here, lists, -1)[asking], distances[asking]
    )
    is_found = places >= 0
    at = begin[list_of[is_found]] + places[is_found]
    rows = np.full(places.shape, -1, np.int64)
    rows[is_found] = chunk.shard.rows_of(at if numbers is None else numbers[at])
    merged = merge_nearest(
        [(best[0][asking], best[1][asking]), (estimates, rows)], best[0].shape[1]
    )
    best[0][asking], best[1][asking] = merged


def _pack(
    chunk: Chunk, codes: np.ndarray, firsts: np.ndarray, allowed: RowSet
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return numbers, codes and sizes of the allowed codes, list after list."""
    bounds = np.concatenate([[0], np.cumsum(chunk.sizes)])
    within = np.arange(bounds[-1]) - np.repeat(bounds[:-1], chunk.sizes)
    numbers = within + np.repeat(chunk.starts, chunk.sizes)
    is_kept = allowed.holds(chunk.shard.rows_of(numbers))
    n_before = np.concatenate([[0], np.cumsum(is_kept)])
    at = within[is_kept] + np.repeat(firsts, chunk.sizes)[is_kept]
    return numbers[is_kept], codes.take(at, axis=0), np.diff(n_before[bounds])


def _chunk(
    shard: ShardLists,
    held: Sequence[tuple[int, int, int, int]],
    reads: Sequence[tuple[int, int, int]],
    used: int,
) -> Chunk:
    lists, starts, stops, at = np.array(held, np.int64).T
    return Chunk(
        shard=shard,
        lists=lists,
        starts=starts,
        sizes=stops - starts,
        firsts=at,
        reads=tuple(reads),
        n_codes=used,
    )
