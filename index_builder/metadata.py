"""The metadata of a shard's rows as an Arrow IPC file: uncompressed, so that a map of it is enough.

Compressed row groups must be inflated whole for one row; from a memory-mapped IPC file the columns
of a hundred random rows among millions come in milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from .embeddings.artefact import atomic_write

if TYPE_CHECKING:
    from .embeddings.collection import Collection

METADATA_FILE = "metadata.arrow"
BATCH_ROWS = 65_536
_READ_ROWS = 4 * BATCH_ROWS  # amortizes foreign files whose row groups hold a million rows


def write_metadata(
    embeddings: Collection,
    path: Path,
    row_start: int,
    row_stop: int,
    columns: Sequence[str] | None = None,
) -> None:
    """Copy the metadata of rows ``row_start`` to ``row_stop`` (exclusive), in record batches.

    Any column may hold nulls there: rows that are taken down become such. Memory: 262,144 rows.

    Parameters
    ----------
    embeddings : Collection
    path : Path
    row_start, row_stop : int
    columns : sequence of str or None
        None: all that every folder has.
    """
    tables = (
        embeddings.metadata(np.arange(start, min(start + _READ_ROWS, row_stop)), columns)
        for start in range(row_start, row_stop, _READ_ROWS)
    )
    schema = pa.schema([field.with_nullable(True) for field in embeddings.schema_of(columns)])
    write_tables(path, schema, tables)
    pa.default_memory_pool().release_unused()  # Arrow would keep it for the next shard


def write_tables(path: Path, schema: Any, tables: Iterable[Any]) -> None:
    """Write tables one after the other.

    Every record batch but the last has `BATCH_ROWS` rows, so that a row's batch is a division away.
    """
    with (
        atomic_write(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        for batch in _even_batches(schema, tables):
            writer.write_batch(batch)


def _even_batches(schema: Any, tables: Iterable[Any]) -> Iterator[Any]:
    held = schema.empty_table()
    for table in tables:
        held = pa.concat_tables([held, table.cast(schema)])
        n_whole = len(held) // BATCH_ROWS * BATCH_ROWS
        if n_whole:
            yield from held.slice(0, n_whole).combine_chunks().to_batches(BATCH_ROWS)
            held = held.slice(n_whole)
    yield from held.combine_chunks().to_batches(BATCH_ROWS)
