"""Write the shard that adjacent shards become, without what deleted rows left in them.

Without deleted rows its files are byte for byte those that a build of the larger shard writes: what
theirs hold in row order, or list by list and in row order within each. Only graphs are made anew:
their nodes are linked from the codes, as that build would link them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from .costs import code_bytes
from .embeddings.artefact import fingerprint, sha256_file
from .graph import GraphWriter
from .inverted_file import CODES_FILE, ROWS_FILE, SIZES_FILE, ShardLists
from .metadata import METADATA_FILE, write_tables
from .npy import save_array, write_rows
from .plan import IndexPlan
from .quantizer import QUANTIZER_FOLDER, load_quantizer
from .shards import RECORD_FILE, TOMBSTONES_FILE, Shard, is_finished, read_record, write_record
from .vector_copy import VECTORS_FILE

_BLOCK_BYTES = 64 << 20  # of codes or vectors that are moved together
_SCAN_ROWS = 1 << 22


@dataclass(frozen=True)
class Join:
    """Adjacent shards, and the one that they become.

    Parameters
    ----------
    shards : tuple of Shard
        At least one, in row order.
    target : Shard
        Its folder is new.
    deleted : ndarray of shape (m,), int64, rising
        Rows of their range that were taken down.
    """

    shards: tuple[Shard, ...]
    target: Shard
    deleted: np.ndarray

    @property
    def is_needed(self) -> bool:
        """Whether there are shards to join, or deleted rows have left something in the one."""
        n_deleted = sum(read_record(shard.folder)["n_deleted"] for shard in self.shards)
        return len(self.shards) > 1 or n_deleted < len(self.deleted)

    @property
    def fingerprint(self) -> str:
        """Of all that the joined shard is made from."""
        records = [sha256_file(shard.folder / RECORD_FILE) for shard in self.shards]
        deleted = hashlib.sha256(np.ascontiguousarray(self.deleted).data).hexdigest()
        return fingerprint({"shards": records, "deleted": deleted})

    @property
    def n_rows(self) -> int:
        """Rows of the joined shard, those without codes counted."""
        return self.target.row_stop - self.target.row_start

    def is_deleted(self, rows: np.ndarray) -> np.ndarray:
        """Tell which rows of the index (n,), int64, were taken down."""
        return np.isin(rows, self.deleted, kind="sort")


def write_joined(root: Path, plan: IndexPlan, join: Join) -> None:
    """Write the joined shard, unless it stands.

    Memory: a few blocks of 64 MiB, and where each list of each shard begins; of a graph, all of it.

    Parameters
    ----------
    root : Path
        The index.
    plan : IndexPlan
    join : Join
    """
    folder = join.target.folder
    if is_finished(folder, join.fingerprint):
        return
    files = [TOMBSTONES_FILE]
    if plan.code == "ivf-rabitq":
        files += _write_lists(plan, join)
    elif plan.code == "hnsw-sq8":
        files += _write_graph(root, plan, join)
    if plan.rerank != "source":
        files.append(_write_copy(join))
    if (join.shards[0].folder / METADATA_FILE).is_file():
        files.append(_write_metadata(join))
    tombstones = np.concatenate(
        [np.load(shard.folder / TOMBSTONES_FILE, allow_pickle=False) for shard in join.shards]
    )
    save_array(folder / TOMBSTONES_FILE, tombstones)
    write_record(
        folder,
        files,
        build_fingerprint=join.fingerprint,
        row_start=join.target.row_start,
        row_stop=join.target.row_stop,
        n_tombstones=len(tombstones),
        n_deleted=len(join.deleted),
        command="voxseek index merge",
    )


class _Lists:
    """The lists of one shard without the codes of deleted rows.

    Attributes
    ----------
    starts : ndarray of shape (n_lists + 1,), int64
        First code of each list as it stands, and the end.
    """

    def __init__(self, shard: Shard, join: Join, plan: IndexPlan) -> None:
        self._lists = ShardLists(shard, plan.n_lists, code_bytes(plan.space.width, plan.bits))
        self._offset = shard.row_start - join.target.row_start
        self.starts = self._lists.starts
        dropped = [np.empty(0, np.int64)]
        for start in range(0, self._lists.n_codes if len(join.deleted) else 0, _SCAN_ROWS):
            rows = self._lists.rows[start : start + _SCAN_ROWS].astype(np.int64)
            dropped.append(start + np.flatnonzero(join.is_deleted(rows + shard.row_start)))
        self._dropped = np.concatenate(dropped)

    def sizes(self, first: int, end: int) -> np.ndarray:
        """Return how many codes of lists ``first`` to ``end`` (exclusive) are kept, int64."""
        starts = self.starts[first : end + 1]
        return np.diff(starts - np.searchsorted(self._dropped, starts))

    def codes(self, start: int, stop: int) -> np.ndarray:
        """Return codes (n, code_bytes) of ``start`` to ``stop`` that are kept."""
        codes = np.empty((stop - start, self._lists.code_size), np.uint8)
        self._lists.read_codes(start, codes)
        return self._keep(codes, start, stop)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return their rows (n,) within the joined shard, uint32."""
        rows = self._lists.rows[start:stop] + np.uint32(self._offset)
        return self._keep(rows, start, stop)

    def _keep(self, values: np.ndarray, start: int, stop: int) -> np.ndarray:
        first, end = np.searchsorted(self._dropped, [start, stop])
        return np.delete(values, self._dropped[first:end] - start, axis=0)


def _write_lists(plan: IndexPlan, join: Join) -> list[str]:
    """Join lists, a block of them at a time: within a list one shard after the other."""
    parts = [_Lists(shard, join, plan) for shard in join.shards]
    sizes = np.zeros(plan.n_lists, np.int64)
    for part in parts:
        sizes += part.sizes(0, plan.n_lists)
    code_size, n = code_bytes(plan.space.width, plan.bits), int(sizes.sum())
    folder, most = join.target.folder, max(1, _BLOCK_BYTES // code_size)
    write_rows(folder / CODES_FILE, "|u1", (n, code_size), _interleave(parts, _Lists.codes, most))
    write_rows(folder / ROWS_FILE, "<u4", (n,), _interleave(parts, _Lists.rows, most))
    write_rows(folder / SIZES_FILE, "<i8", (plan.n_lists,), [sizes])
    return [CODES_FILE, ROWS_FILE, SIZES_FILE]


def _interleave(
    parts: Sequence[_Lists], read: Callable[[_Lists, int, int], np.ndarray], most: int
) -> Iterator[np.ndarray]:
    """Yield what is read of the parts in the order of lists, about ``most`` codes at a time."""
    starts = np.zeros_like(parts[0].starts)
    for part in parts:
        starts += part.starts
    for first, end in _cut(starts, most):
        if end - first == 1:  # one list, of whatever length
            for part in parts:
                start, stop = part.starts[[first, end]].tolist()
                for code in range(start, stop, most):
                    yield read(part, code, min(code + most, stop))
            continue
        pieces = [read(part, *part.starts[[first, end]].tolist()) for part in parts]
        numbers = np.arange(first, end)
        list_of = np.concatenate([np.repeat(numbers, part.sizes(first, end)) for part in parts])
        yield np.concatenate(pieces)[np.argsort(list_of, kind="stable")]


def _cut(starts: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of lists of at most ``most`` codes together, or of one list."""
    first, n_lists = 0, len(starts) - 1
    while first < n_lists:
        end = int(np.searchsorted(starts, starts[first] + most, side="right")) - 1
        end = max(first + 1, end)
        yield first, end
        first = end


def _write_graph(root: Path, plan: IndexPlan, join: Join) -> list[str]:
    """Link the nodes of all shards anew, in row order."""
    writer = GraphWriter(
        join.target.folder, plan, load_quantizer(root / QUANTIZER_FOLDER), join.n_rows
    )
    step = max(1, _BLOCK_BYTES // plan.space.width)
    for shard in join.shards:
        codes, rows = (
            np.load(shard.folder / name, mmap_mode="r", allow_pickle=False)
            for name in (CODES_FILE, ROWS_FILE)
        )
        for start in range(0, len(rows), step):
            numbers = rows[start : start + step].astype(np.int64) + shard.row_start
            kept = ~join.is_deleted(numbers)
            local_rows = (numbers[kept] - join.target.row_start).astype(np.uint32)
            writer.add_codes(local_rows, codes[start : start + step][kept])
    return writer.finish()


def _write_copy(join: Join) -> str:
    """Write the copies of vectors one after the other; those of deleted rows become zeros."""
    copies = [
        np.load(shard.folder / VECTORS_FILE, mmap_mode="r", allow_pickle=False)
        for shard in join.shards
    ]
    width, dtype = copies[0].shape[1], copies[0].dtype
    step = max(1, _BLOCK_BYTES // (width * dtype.itemsize))

    def pieces() -> Iterator[np.ndarray]:
        for shard, copy in zip(join.shards, copies, strict=True):
            for start in range(0, len(copy), step):
                piece = np.array(copy[start : start + step])
                first = shard.row_start + start
                piece[join.is_deleted(np.arange(first, first + len(piece)))] = 0
                yield piece

    shape = join.n_rows, width
    write_rows(join.target.folder / VECTORS_FILE, dtype.str, shape, pieces())
    return VECTORS_FILE


def _write_metadata(join: Join) -> str:
    """Write the metadata one after the other; those of deleted rows become nulls."""
    readers = [
        pa.ipc.open_file(pa.memory_map(str(shard.folder / METADATA_FILE))) for shard in join.shards
    ]

    def tables() -> Iterator[Any]:
        first = join.target.row_start
        for reader in readers:
            for number in range(reader.num_record_batches):
                table = pa.Table.from_batches([reader.get_batch(number)])
                is_gone = join.is_deleted(np.arange(first, first + len(table)))
                first += len(table)
                places = pa.array(np.arange(len(table)), mask=is_gone)
                yield table.take(places) if is_gone.any() else table

    write_tables(join.target.folder / METADATA_FILE, readers[0].schema, tables())
    return METADATA_FILE
