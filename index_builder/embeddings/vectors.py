"""The vectors of one part, in an npy file or in a column of a parquet file.

Both kinds open by their header or footer alone and then read any range of rows, or any rows.
"""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .errors import PartError
from .npy_header import read_npy_header
from .storage import Storage

VECTOR_COLUMNS = ("embedding", "vector")
_STORED_DTYPES = (np.dtype(np.float16), np.dtype(np.float32))
# Longest npy header that is read: numpy itself refuses to parse more than 10,000 bytes.
_LONGEST_HEADER_BYTES = 12_000
_BLOCK_BYTES = 8 << 20
_TAKEN_BYTES = 128 << 10  # copied twice, the second time out of the processor's cache


class Vectors(Protocol):
    """The vectors of one part: ``n_rows`` rows of ``row_shape`` in ``dtype``."""

    file: str
    n_rows: int
    row_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    has_random_access: bool

    def read_into(self, start: int, out: np.ndarray) -> None:
        """Fill ``out`` (n, width) with the rows from ``start`` on."""

    def take_into(self, rows: np.ndarray, out: np.ndarray, places: np.ndarray) -> None:
        """Put row ``rows[i]``, for increasing ``rows``, at ``out[places[i]]``."""

    def release(self) -> None:
        """Let go of what `take_into` keeps between calls."""


class NpyVectors:
    """An npy file of shape (rows, dim) or (rows, tokens, dim).

    Parameters
    ----------
    storage : Storage
    file : str
    n_bytes : int
        Size of the file, from the listing of its folder.

    Raises
    ------
    PartError
        If the file is not npy, is truncated, is in Fortran order, or has another dtype than
        float16 and float32 or another number of axes than 2 and 3.
    """

    has_random_access = True

    def __init__(self, storage: Storage, file: str, n_bytes: int) -> None:
        self.file = file
        self._storage = storage
        path = storage.path_of(file)
        shape, is_fortran, self.dtype, self._first_byte = _read_header(storage, file, n_bytes)
        if self.dtype.hasobject:
            raise PartError(
                f"{path} holds Python objects, and voxseek never unpickles. Save the embeddings "
                f"as one float16 array."
            )
        if self.dtype not in _STORED_DTYPES:
            raise PartError(
                f"{path} holds {self.dtype.str} ({self.dtype.name}), expected little-endian "
                f"float16 or float32. Convert it: np.save(file, np.load(file).astype('float16'))."
            )
        if len(shape) not in (2, 3):
            raise PartError(
                f"{path} has shape {shape}, expected (rows, dim) or (rows, tokens, dim). "
                f"Reshape it with one embedding a row."
            )
        if is_fortran and sum(n > 1 for n in shape) > 1:
            raise PartError(
                f"{path} is in Fortran order, so a row is not contiguous. Convert it: "
                f"np.save(file, np.ascontiguousarray(np.load(file)))."
            )
        self._mapped: np.ndarray | None = None
        self.n_rows, self.row_shape = shape[0], shape[1:]
        self._row_bytes = math.prod(self.row_shape) * self.dtype.itemsize
        expected = self._first_byte + self.n_rows * self._row_bytes
        if n_bytes != expected:
            raise PartError(
                f"{path} has {n_bytes} bytes, and its header promises {expected} "
                f"({self.n_rows} rows): it was truncated or is still being written. "
                f"Copy or make it again."
            )

    def read_into(self, start: int, out: np.ndarray) -> None:
        """Fill ``out`` with the rows from ``start`` on."""
        if out.size:
            self._storage.read_into(self.file, self._first_byte + start * self._row_bytes, out)

    def take_into(self, rows: np.ndarray, out: np.ndarray, places: np.ndarray) -> None:
        """Put row ``rows[i]``, for increasing ``rows``, at ``out[places[i]]``."""
        if self._mapped is None:
            shape = (self.n_rows, math.prod(self.row_shape))
            self._mapped = self._storage.map_rows(self.file, self._first_byte, shape, self.dtype)
        mapped = self._mapped
        if mapped is not None:
            step = max(1, _TAKEN_BYTES // self._row_bytes)
            for i in range(0, len(rows), step):
                # Unlike indexing, take lets other threads run while it waits for the disk.
                block = mapped.take(rows[i : i + step], axis=0, mode="clip")
                out[places[i : i + step]] = block
            return
        # Runs of neighbours are one request each.
        for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) > 1) + 1):
            first, last = int(rows[run[0]]), int(rows[run[-1]])
            block = np.empty((last - first + 1, out.shape[1]), self.dtype)
            self.read_into(first, block)
            out[places[run]] = block[rows[run] - first]

    def release(self) -> None:
        """Unmap the file, where `take_into` mapped it; the next call maps it again."""
        self._mapped = None


class ParquetVectors:
    """A parquet column of equally long lists of floats; float64 is read as float32.

    Parameters
    ----------
    storage : Storage
    file : str
    row_shape : tuple of int or None
        What a list is reshaped to; None: the lists as they are.

    Raises
    ------
    PartError
        If the file is not parquet, has no such column, or its lists can't all have that length.
    """

    has_random_access = False

    def __init__(self, storage: Storage, file: str, row_shape: tuple[int, ...] | None) -> None:
        self.file = file
        self._storage = storage
        path = storage.path_of(file)
        footer, schema, self._group_rows = read_footer(storage, file)
        self.n_rows = footer.num_rows
        self.column = find_vector_column(schema, path)
        value_type = schema.field(self.column).type.value_type
        self.dtype = np.dtype(np.float16 if pa.types.is_float16(value_type) else np.float32)
        self._lock = threading.Lock()
        self._next_row = -1
        n_values = _count_values(footer, self.column)
        width = math.prod(row_shape) if row_shape else n_values // max(1, self.n_rows)
        self.row_shape = row_shape or (width,)
        if n_values != self.n_rows * width:
            raise PartError(
                f"{path} has {n_values} numbers in the column {self.column!r} of {self.n_rows} "
                f"rows, expected {width} a row, {self.n_rows * width} in all: lists are missing or "
                f"of another length. Write them anew without null rows."
            )

    def read_into(self, start: int, out: np.ndarray) -> None:
        """Fill ``out`` with the rows from ``start`` on.

        Reading on where the last call stopped decodes nothing twice.
        """
        with self._lock:
            if start != self._next_row:
                self._blocks, self._rest = self._decode_from(start), out[:0]
            n_done = 0
            while n_done < len(out):
                if not len(self._rest):
                    self._rest = next(self._blocks)
                n_new = min(len(self._rest), len(out) - n_done)
                out[n_done : n_done + n_new] = self._rest[:n_new]
                self._rest = self._rest[n_new:]
                n_done += n_new
            self._next_row = start + n_done

    def release(self) -> None:
        """Do nothing: columns aren't mapped."""

    def _decode_from(self, start: int) -> Iterator[np.ndarray]:
        """Yield blocks of rows (m, width) from row ``start`` to the end."""
        bounds = np.cumsum([0, *self._group_rows])
        first_group = int(np.searchsorted(bounds, start, side="right")) - 1
        row_bytes = math.prod(self.row_shape) * self.dtype.itemsize
        row = int(bounds[first_group])
        with open_parquet(self._storage, self.file) as parquet:
            for batch in parquet.iter_batches(
                batch_size=max(1, _BLOCK_BYTES // row_bytes),
                row_groups=list(range(first_group, len(self._group_rows))),
                columns=[self.column],
            ):
                if row + len(batch) > start:
                    rows = np.arange(row, row + len(batch))
                    yield self._to_rows(batch.column(0), rows)[max(0, start - row) :]
                row += len(batch)
            require_all_rows(row, self.n_rows)

    def take_into(self, rows: np.ndarray, out: np.ndarray, places: np.ndarray) -> None:
        """Put row ``rows[i]``, for increasing ``rows``, at ``out[places[i]]``."""
        bounds = np.cumsum([0, *self._group_rows])
        groups = np.searchsorted(bounds, rows, side="right") - 1
        with open_parquet(self._storage, self.file) as parquet:
            for group in np.unique(groups):
                chosen = groups == group
                lists = parquet.read_row_group(int(group), columns=[self.column]).column(0)
                lists = lists.take(pa.array(rows[chosen] - bounds[group])).combine_chunks()
                out[places[chosen]] = self._to_rows(lists, rows[chosen])

    def _to_rows(self, lists: Any, rows: np.ndarray) -> np.ndarray:
        """Return the lists of ``rows`` as an array (n, width); nulls in them become NaN."""
        width = math.prod(self.row_shape)
        is_odd = lists.value_lengths().to_numpy(zero_copy_only=False) != width
        if is_odd.any():
            raise PartError(
                f"{self._storage.path_of(self.file)}, row {rows[np.argmax(is_odd)]}: the list in "
                f"the column {self.column!r} is null or not {width} long. "
                f"Write the file anew with one length."
            )
        values: np.ndarray = lists.flatten().to_numpy(zero_copy_only=False)
        with np.errstate(over="ignore"):
            values = values.astype(self.dtype, copy=False)
        return values.reshape(len(lists), width)


@contextmanager
def open_parquet(storage: Storage, file: str) -> Iterator[Any]:
    """Yield a `pyarrow.parquet.ParquetFile`, its footer read.

    What Arrow finds wrong with the file, now or while it is being read, becomes a `PartError`.
    """
    try:
        with storage.open(file) as handle, pq.ParquetFile(handle) as parquet:
            yield parquet
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise PartError(
            f"{storage.path_of(file)} is not a readable parquet file ({error}): it was truncated, "
            f"damaged, or is something else. Copy or make it again."
        ) from error


def read_footer(storage: Storage, file: str) -> tuple[Any, Any, list[int]]:
    """Return the footer of a parquet file, its Arrow schema, and the rows of each row group."""
    with open_parquet(storage, file) as parquet:
        footer, schema = parquet.metadata, parquet.schema_arrow
        group_rows = [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]
        str(schema.names)  # decodes them: names in a damaged footer need not be text
        require_all_rows(sum(group_rows), footer.num_rows)
        return footer, schema, group_rows


def require_all_rows(n_read: int, n_promised: int) -> None:
    """Raise, for `open_parquet` to name the file, if pages hold other rows than the footer says."""
    if n_read != n_promised:
        raise pa.ArrowInvalid(f"its footer promises {n_promised} rows, and it holds {n_read}")


def find_vector_column(schema: Any, path: str) -> str:
    """Return the name of the column of vectors: one of `VECTOR_COLUMNS`, in any case."""
    for name in schema.names:
        if name.lower() in VECTOR_COLUMNS:
            kind = schema.field(name).type
            if _is_list(kind) and pa.types.is_floating(kind.value_type):
                return str(name)
            raise PartError(f"{path} has a column {name!r} of {kind}, expected lists of floats.")
    raise PartError(
        f"{path} has no column of vectors: found {schema.names}, expected one named "
        f"{' or '.join(VECTOR_COLUMNS)}. If the vectors are in npy files, put those into img_emb/."
    )


def _is_list(kind: Any) -> bool:
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _count_values(footer: Any, column: str) -> int:
    """Return how many list items a column has by the footer; an absent list counts as one."""
    total = 0
    for group in range(footer.num_row_groups):
        chunks = footer.row_group(group)
        for i in range(chunks.num_columns):
            if chunks.column(i).path_in_schema.startswith(f"{column}."):
                total += chunks.column(i).num_values
    return total


def _read_header(
    storage: Storage, file: str, n_bytes: int
) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return shape, whether in Fortran order, dtype, and the position of the first row."""
    n_header_bytes = min(n_bytes, _LONGEST_HEADER_BYTES)
    handle = io.BytesIO(storage.read_range(file, 0, n_header_bytes) if n_bytes else b"")
    try:
        shape, is_fortran, dtype = read_npy_header(handle)
    except ValueError as error:
        raise PartError(
            f"{storage.path_of(file)} ({n_bytes} bytes) is not an npy file: {error}. "
            f"It was truncated or is something else; copy or make it again."
        ) from error
    return shape, is_fortran, dtype, handle.tell()
