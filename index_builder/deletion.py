"""Take rows of an index down: no search finds them again.

The rows are listed in one file, which the manifest names:

    deleted-{16 hex}.npy    (m,) int64, rising; the digits are those of its content's SHA-256

Each deletion writes a new list with the earlier ones in it, and swaps the manifest in one step.
Codes, copies of vectors and metadata stay in the shards until `merging` removes them.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .build import records_of
from .embeddings.artefact import verify_files
from .embeddings.errors import RowRangeError
from .errors import BuildError
from .manifest import (
    body_of,
    read_deleted,
    read_index_manifest,
    remove_unlisted,
    shards_of,
    write_index_manifest,
)
from .metadata import METADATA_FILE
from .npy import save_array
from .shards import read_record

_BATCHES = 16  # of 65,536 rows, compared together
logger = logging.getLogger("voxseek")


def find_rows(folder: str | os.PathLike[str], column: str, values: Sequence[str]) -> np.ndarray:
    """Return the rows whose metadata has one of some values.

    The files that are read are verified first. Memory: the values, and a column of a million rows.

    Parameters
    ----------
    folder : path
        The index.
    column : str
    values : sequence of str
        Compared with the column's values as text; blank ones are ignored.

    Returns
    -------
    rows : ndarray of shape (n,), int64, rising
        All of them, where a value comes several times.

    Raises
    ------
    BuildError
        If the index has no such column, or it can't be compared with text.
    ArtefactError
        If a file is missing or altered.
    """
    root = Path(folder)
    manifest = read_index_manifest(root)
    if column not in manifest["columns"]:
        raise BuildError(
            f"{root} has no metadata column {column!r}; it has "
            f"{', '.join(manifest['columns']) or 'none at all'}."
        )
    verify_files(root, manifest)
    wanted = {value for value in values if value.strip()}
    value_set = pa.array(sorted(wanted), pa.large_string())
    rows, seen = [np.empty(0, np.int64)], set()
    for first, texts in _texts(root, manifest, column):
        is_wanted = pc.is_in(texts, value_set=value_set)
        rows.append(first + np.flatnonzero(is_wanted.to_numpy()))
        seen.update(pc.unique(texts.filter(is_wanted)).to_pylist())
    if wanted - seen:
        logger.warning(
            "%d of %d values are in no row of column %s", len(wanted - seen), len(wanted), column
        )
    return np.concatenate(rows)


def read_rows(path: str | os.PathLike[str]) -> np.ndarray:
    """Read row numbers from a file: text with one a line, or an npy file of integers.

    Returns
    -------
    rows : ndarray of shape (n,), int64
        In the order of the file.

    Raises
    ------
    BuildError
        If it holds something else; names the line.
    """
    if os.fspath(path).endswith(".npy"):
        return _read_array(path)
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise BuildError(
            f"{path} is not text ({error}), expected a row number a line. Save an array as .npy."
        ) from error
    rows = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if text and not re.fullmatch("[0-9]{1,18}", text):
            raise BuildError(
                f"{path}, line {number} is {text[:40]!r}, expected a row number. Mend the line, or "
                f"give the file as --values with its --column."
            )
        rows += [int(text)] if text else []
    return np.array(rows, np.int64)


def delete_rows(folder: str | os.PathLike[str], rows: np.ndarray) -> dict[str, Any]:
    """Leave rows out of every search from now on, with those that were taken down before.

    The certificate stays: it says what was measured with the rows that stood then.

    Parameters
    ----------
    folder : path
        The index.
    rows : ndarray of shape (n,), integers
        In any order; repeats are allowed.

    Returns
    -------
    manifest : dict
        Unchanged if all were taken down before.

    Raises
    ------
    RowRangeError
        If there is no such row.
    ArtefactError
        If a record of the index is missing or altered.
    """
    root = Path(folder)
    manifest = read_index_manifest(root)
    wanted = np.asarray(rows)
    if wanted.ndim != 1 or wanted.dtype.kind not in "iu":
        raise ValueError(
            f"rows has shape {wanted.shape} and dtype {wanted.dtype}, expected (n,) integers"
        )
    n_rows = manifest["plan"]["n_rows"]
    is_bad = (wanted < 0) | (wanted >= n_rows)
    if is_bad.any():
        raise RowRangeError(
            f"row {wanted[is_bad][0]} was to be deleted, and {root} has rows 0 to {n_rows - 1}. "
            f"Nothing was changed; mend the list of rows."
        )
    verify_files(root, manifest)  # records alone: the files that they list keep their checksums
    earlier = read_deleted(root, manifest)
    deleted = np.union1d(earlier, wanted.astype("<i8"))
    if len(deleted) > len(earlier):
        name = f"deleted-{hashlib.sha256(deleted.data).hexdigest()[:16]}.npy"
        save_array(root / name, deleted)
        body = {**body_of(manifest), "deleted": {"n_rows": len(deleted), "file": name}}
        manifest = write_index_manifest(
            root, command="voxseek index delete", records=records_of(body), body=body
        )
    remove_unlisted(root, manifest, "deleted-*.npy")
    return manifest


def _texts(root: Path, manifest: dict[str, Any], column: str) -> Iterator[tuple[int, Any]]:
    """Yield the values of a column as text, some batches at a time, and the first row of each."""
    for shard in shards_of(root, manifest):
        files = read_record(shard.folder)["files"]
        verify_files(shard.folder, {"files": {METADATA_FILE: files[METADATA_FILE]}})
        reader = pa.ipc.open_file(pa.memory_map(str(shard.folder / METADATA_FILE)))
        first = shard.row_start
        for start in range(0, reader.num_record_batches, _BATCHES):
            numbers = range(start, min(start + _BATCHES, reader.num_record_batches))
            stored = pa.chunked_array([reader.get_batch(i).column(column) for i in numbers])
            try:
                texts = stored.cast(pa.large_string())
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise BuildError(
                    f"column {column!r} of {root} holds {stored.type}, which can't be compared "
                    f"with text ({error}). Find the rows by another column, or give their numbers."
                ) from error
            yield first, texts
            first += len(texts)


def _read_array(path: str | os.PathLike[str]) -> np.ndarray:
    try:
        rows = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise BuildError(
            f"{path} is not an npy file of integers ({error}). Save row numbers with numpy.save."
        ) from error
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise BuildError(
            f"{path} holds {rows.dtype} of shape {rows.shape}, expected (n,) integers: row numbers."
        )
    return np.asarray(rows, np.int64)
