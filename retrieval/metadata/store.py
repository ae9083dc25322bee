"""Rows to columns: random access to the metadata of an index, through memory maps.

Nothing is read when the store is opened but the footers; a hundred rows out of millions touch a
hundred pages or so of each column.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from index_builder.metadata import BATCH_ROWS, METADATA_FILE
from index_builder.shards import Shard

from ..errors import SearchError


class MetadataStore:
    """The metadata of all rows of an index; made by `open`.

    Attributes
    ----------
    columns : tuple of str
        Empty where the embeddings have no metadata.
    """

    def __init__(self, readers: Sequence[Any], row_starts: Sequence[int], n_rows: int) -> None:
        self._readers = list(readers)
        self._row_starts = np.asarray(row_starts, np.int64)
        self._n_rows = n_rows
        self._schema = self._readers[0].schema if self._readers else pa.schema([])
        self.columns: tuple[str, ...] = tuple(self._schema.names)

    @classmethod
    def open(cls, shards: Sequence[Shard]) -> MetadataStore:
        """Map the metadata files of the shards of a finished index, in row order."""
        paths = [shard.folder / METADATA_FILE for shard in shards]
        readers = [pa.ipc.open_file(pa.memory_map(str(path))) for path in paths if path.is_file()]
        return cls(readers, [shard.row_start for shard in shards], shards[-1].row_stop)

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
        chosen = self.columns if columns is None else tuple(columns)
        unknown = [name for name in chosen if name not in self.columns]
        if unknown:
            raise SearchError(
                f"the index has no metadata column {unknown[0]!r}; "
                f"it has {', '.join(self.columns) or 'none at all'}."
            )
        outside = (wanted < 0) | (wanted >= self._n_rows)
        if outside.any():
            raise SearchError(
                f"row {wanted[outside][0]} was asked for, and the index has rows 0 to "
                f"{self._n_rows - 1}."
            )
        schema = pa.schema([self._schema.field(name) for name in chosen])
        order = np.argsort(wanted, kind="stable")
        shards = np.searchsorted(self._row_starts, wanted[order], side="right") - 1
        local = wanted[order] - self._row_starts[shards]
        pieces = [schema.empty_table()]
        if not chosen:
            return pieces[0]
        batches, places = np.divmod(local, BATCH_ROWS)
        starts = np.flatnonzero(np.diff(shards, prepend=-1) | np.diff(batches, prepend=-1))
        for start, stop in pairwise([*starts, len(order)]):
            batch = self._readers[shards[start]].get_batch(int(batches[start]))
            picked = batch.select(list(chosen)).take(pa.array(places[start:stop]))
            pieces.append(pa.Table.from_batches([picked], schema))
        return pa.concat_tables(pieces).take(pa.array(np.argsort(order)))
