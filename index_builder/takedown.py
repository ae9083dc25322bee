"""Rows of an index that a list of hashes, URLs or keys names: what a takedown is to remove.

`deletion.delete_rows` then leaves them out of every search.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from .embeddings.artefact import verify_files
from .embeddings.drop_list import DropList
from .embeddings.row_keys import columns_of_key, key_values
from .manifest import read_index_manifest, shards_of
from .metadata import METADATA_FILE
from .shards import read_record

_BATCHES = 16  # of 65,536 rows, compared together


def find_listed_rows(folder: str | os.PathLike[str], dropped: DropList) -> np.ndarray:
    """Return the rows of an index that are listed.

    A hash that the index lacks is computed from its columns url and caption. The files that are
    read are verified first. Memory: the list, and some columns of a million rows.

    Parameters
    ----------
    folder : path
        The index.
    dropped : DropList

    Returns
    -------
    rows : ndarray of shape (n,), int64, rising
        All of them, where a value comes several times.

    Raises
    ------
    EmbeddingError
        If the index has no such column.
    ArtefactError
        If a file is missing or altered.
    """
    root = Path(folder)
    manifest = read_index_manifest(root)
    columns = columns_of_key(manifest["columns"], dropped.by, str(root))
    verify_files(root, manifest)
    rows = [np.empty(0, np.int64)]
    for first, table in _tables(root, manifest, columns):
        is_listed = dropped.is_listed(key_values(table, dropped.by, str(root)))
        rows.append(first + np.flatnonzero(is_listed))
    return np.concatenate(rows)


def _tables(
    root: Path, manifest: dict[str, Any], columns: tuple[str, ...]
) -> Iterator[tuple[int, Any]]:
    """Yield some columns, some batches at a time, and the first row of each."""
    for shard in shards_of(root, manifest):
        files = read_record(shard.folder)["files"]
        verify_files(shard.folder, {"files": {METADATA_FILE: files[METADATA_FILE]}})
        with pa.memory_map(str(shard.folder / METADATA_FILE)) as mapped:
            reader = pa.ipc.open_file(mapped)
            first = shard.row_start
            for start in range(0, reader.num_record_batches, _BATCHES):
                numbers = range(start, min(start + _BATCHES, reader.num_record_batches))
                batches = [reader.get_batch(i).select(list(columns)) for i in numbers]
                table = pa.Table.from_batches(batches)
                yield first, table
                first += len(table)
