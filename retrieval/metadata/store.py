"""Rows to columns: random access to the metadata of an index, through memory maps.

Nothing is read when the store is opened but the footers; a hundred rows out of millions touch a
hundred pages or so of each column.
"""

from __future__ import annotations

import mmap
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from index_builder.embeddings.mapped_reads import read_mapped
from index_builder.metadata import BATCH_ROWS, METADATA_FILE
from index_builder.shards import Shard
from index_builder.threads import Pool

from ..errors import SearchError

# Requests in flight for pages that aren't in memory.
_N_THREADS = 16
# The system reads ahead of a page that is missed. Files of this size together are soon read as a
# whole that way; of larger ones, only the pages that rows are on shall be.
_READ_AHEAD_BYTES = 1 << 28
# By the rows of so many record batches it shows whether pages are in memory.
_FIRST_BATCHES = 2
# So few rows of a record batch are quicker sliced, one by one, than gathered.
_FEW_ROWS = 4
# What tells where the columns of a record batch are in the file: a few kilobytes each.
_KEPT_BATCHES = 1024


class MetadataStore:
    """The metadata of all rows of an index; made by `open`.

    Parameters
    ----------
    paths : sequence of path
        The metadata files, in row order; empty where the embeddings have no metadata.
    row_starts : sequence of int
        The first row of each.
    n_rows : int
        Of all.

    Attributes
    ----------
    columns : tuple of str
        Empty where the embeddings have no metadata.
    n_rows : int
    """

    def __init__(self, paths: Sequence[Path], row_starts: Sequence[int], n_rows: int) -> None:
        self._scanned = [pa.ipc.open_file(pa.memory_map(str(path))) for path in paths]
        self._scattered = self._scanned
        if sum(path.stat().st_size for path in paths) > _READ_AHEAD_BYTES:
            self._scattered = [pa.ipc.open_file(_map_for_scattered_reads(path)) for path in paths]
        self._row_starts = list(row_starts)
        counts = [reader.num_record_batches for reader in self._scanned]
        self._first_batches = [0, *accumulate(counts)]
        firsts = zip(self._row_starts, counts, strict=True)
        self._batch_starts = np.array(
            [start + BATCH_ROWS * i for start, count in firsts for i in range(count)], np.int64
        )
        self._batch = lru_cache(_KEPT_BATCHES)(self._read_batch)
        self._schema = self._scanned[0].schema if self._scanned else pa.schema([])
        self._pool = Pool(_N_THREADS)
        self.n_rows = n_rows
        self.columns: tuple[str, ...] = tuple(self._schema.names)

    @classmethod
    def open(cls, shards: Sequence[Shard]) -> MetadataStore:
        """Map the metadata files of the shards of a finished index, in row order."""
        described = [each for each in shards if (each.folder / METADATA_FILE).is_file()]
        paths = [shard.folder / METADATA_FILE for shard in described]
        return cls(paths, [shard.row_start for shard in described], shards[-1].row_stop)

    def take(self, rows: np.ndarray, columns: Sequence[str] | None = None) -> Any:
        """Return metadata as a `pyarrow.Table`, rows in the order asked; repeats are allowed.

        Parameters
        ----------
        rows : ndarray of shape (n,), int64
        columns : sequence of str or None
            None: all. Where that is none at all, the table is empty.

        Raises
        ------
        SearchError
            If there is no such row or column.
        """
        wanted = np.asarray(rows, np.int64)
        names = self._known(self.columns if columns is None else columns)
        outside = (wanted < 0) | (wanted >= self.n_rows)
        if outside.any():
            raise SearchError(
                f"row {wanted[outside][0]} was asked for, and the index has rows 0 to "
                f"{self.n_rows - 1}."
            )
        if not names or not len(wanted):
            return self.empty_table(names)
        batches = np.searchsorted(self._batch_starts, wanted, side="right") - 1
        order = np.argsort(batches, kind="stable")
        batches, places = batches[order], (wanted - self._batch_starts[batches])[order]
        starts = np.flatnonzero(batches[1:] != batches[:-1]) + 1
        runs = list(pairwise([0, *starts.tolist(), len(order)]))

        def gather(first: int, last: int) -> Any:
            pieces = []
            for start, stop in runs[first:last]:
                chosen = self._batch(int(batches[start])).select(names)
                if stop - start < _FEW_ROWS:
                    pieces += [chosen.slice(place, 1) for place in places[start:stop].tolist()]
                else:
                    pieces.append(chosen.take(pa.array(places[start:stop])))
            # A slice is read when it is copied: here, beside the others.
            return pa.Table.from_batches(pieces).combine_chunks()

        tables = read_mapped(
            gather,
            len(runs),
            lambda: self._pool.threads,
            n_threads=_N_THREADS,
            n_first=_FIRST_BATCHES,
        )
        table = pa.concat_tables(tables).combine_chunks()
        # The rows of one batch are in the order asked already.
        return table.take(pa.array(np.argsort(order))) if len(runs) > 1 else table

    def iter_tables(
        self, columns: Sequence[str], *, n_batches: int
    ) -> Iterator[tuple[int, int, Any]]:
        """Yield all rows in order, as many record batches at a time: start, stop, and a table.

        Columns stay where they are, in the file that is mapped.

        Parameters
        ----------
        columns : sequence of str
        n_batches : int

        Raises
        ------
        SearchError
            If there is no such column.
        """
        schema = self._schema_of(columns)
        for reader, start in zip(self._scanned, self._row_starts, strict=True):
            for first in range(0, reader.num_record_batches, n_batches):
                last = min(first + n_batches, reader.num_record_batches)
                batches = [reader.get_batch(number) for number in range(first, last)]
                stop = start + sum(batch.num_rows for batch in batches)
                chosen = [batch.select(schema.names) for batch in batches]
                yield start, stop, pa.Table.from_batches(chosen, schema)
                start = stop

    def empty_table(self, columns: Sequence[str]) -> Any:
        """Return a `pyarrow.Table` of columns without rows."""
        return self._schema_of(columns).empty_table()

    def _known(self, columns: Sequence[str]) -> list[str]:
        """Return names of columns, all of which there are."""
        unknown = [name for name in columns if name not in self.columns]
        if unknown:
            raise SearchError(
                f"the index has no metadata column {unknown[0]!r}; "
                f"it has {', '.join(self.columns) or 'none at all'}."
            )
        return list(columns)

    def _schema_of(self, columns: Sequence[str]) -> Any:
        return pa.schema([self._schema.field(name) for name in self._known(columns)])

    def _read_batch(self, number: int) -> Any:
        """Return a record batch by its number among those of all files."""
        file = bisect_right(self._first_batches, number) - 1
        return self._scattered[file].get_batch(number - self._first_batches[file])


def _map_for_scattered_reads(path: Path) -> Any:
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_RANDOM"):
        mapped.madvise(mmap.MADV_RANDOM)
    return pa.BufferReader(pa.py_buffer(mapped))
