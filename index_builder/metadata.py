"""The metadata of a shard's rows as an Arrow IPC file: uncompressed, so that a map of it is enough.

Compressed row groups must be inflated whole for one row; from a memory-mapped IPC file the columns
of a hundred random rows among millions come in milliseconds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from .embeddings.artefact import atomic_write
from .embeddings.reader import EmbeddingFolder

METADATA_FILE = "metadata.arrow"
BATCH_ROWS = 65_536
_READ_ROWS = 4 * BATCH_ROWS  # amortizes foreign files whose row groups hold a million rows


def write_metadata(embeddings: EmbeddingFolder, path: Path, row_start: int, row_stop: int) -> None:
    """Copy the metadata of rows ``row_start`` to ``row_stop`` (exclusive), in record batches.

    Every record batch but the last has `BATCH_ROWS` rows, so that a row's batch is a division away.
    Memory: 262,144 rows.
    """
    with atomic_write(path) as temporary, pa.OSFile(str(temporary), "wb") as sink:
        schema = embeddings.metadata(np.empty(0, np.int64)).schema
        with pa.ipc.new_file(sink, schema) as writer:
            for start in range(row_start, row_stop, _READ_ROWS):
                rows = np.arange(start, min(start + _READ_ROWS, row_stop))
                table = embeddings.metadata(rows).combine_chunks()
                for batch in table.to_batches(max_chunksize=BATCH_ROWS):
                    writer.write_batch(batch)
