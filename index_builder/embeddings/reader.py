"""EmbeddingFolder: a set of embeddings on disk or behind a URL, as one long array of rows.

Opening reads headers and footers only. Rows come out in the stored dtype: float16 stays float16,
which halves the traffic of the billions of rows that only a quantizer will look at.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from .batches import EmbeddingBatch, read_batches
from .errors import EmbeddingError, RowRangeError
from .layout import MODALITIES
from .mapped_reads import read_mapped
from .opening import Part, inspect_folder
from .space import EmbeddingSpace
from .storage import open_storage

__all__ = ["EmbeddingBatch", "EmbeddingFolder", "Part"]

# Of a local folder: by so many rows it shows whether they are in memory ...
_FIRST_ROWS = 24
# ... and if they are, so many are sooner copied by one thread than handed to several.
_MOST_ROWS_IN_TURN = 512


class EmbeddingFolder:
    """Embeddings and their metadata, row for row; made by `open`.

    Attributes
    ----------
    path : str
    space : EmbeddingSpace
    n_rows : int
    dtype : numpy.dtype
        float16 or float32.
    parts : tuple of Part
    part_rows : list of int
        Rows of each part, in row order.
    columns : tuple of str
        Names of the metadata columns.
    schema : pyarrow.Schema
        Their names and types.
    fingerprint : str
        64 hexadecimal digits: of the content where a manifest has checksums, otherwise of names,
        rows and sizes of the parts. Where the folder lies doesn't matter.
    is_local : bool
    details : dict
        What the writer recorded; empty for foreign folders.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        space: EmbeddingSpace | None,
        modality: str,
        n_parts: int | None,
    ) -> None:
        if modality not in MODALITIES:
            raise ValueError(f"modality is {modality!r}, expected one of {MODALITIES}")
        self._arguments = modality, n_parts
        self._storage = open_storage(path)
        contents = inspect_folder(self._storage, space, modality, n_parts)
        self.path = self._storage.path_of("")
        self.is_local = self._storage.is_local
        self.space = contents.space
        self.parts = contents.parts
        self.part_rows = [part.n_rows for part in self.parts]
        self.details = contents.details
        self.fingerprint = contents.fingerprint
        self.n_rows = self.parts[-1].row_stop
        self.dtype = self.parts[0].vectors.dtype
        self.schema = contents.schema
        self.columns: tuple[str, ...] = tuple(self.schema.names)
        self._part_bounds = np.array([part.row_start for part in self.parts] + [self.n_rows])
        self._pool: ThreadPoolExecutor | None = None
        self._pool_process = os.getpid()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        space: EmbeddingSpace | None = None,
        modality: str = "img_emb",
        n_parts: int | None = None,
    ) -> EmbeddingFolder:
        """Open a folder by its headers and footers.

        Parameters
        ----------
        path : path or fsspec URL
        space : EmbeddingSpace or None
            Needed where there is no ``space.json``; compared with it where there is one.
        modality : {"img_emb", "text_emb"}
        n_parts : int or None
            Open the first so many parts alone, as if the folder had no others: what an index was
            built from stays what it was when parts are added. None: all.

        Raises
        ------
        ArtefactError
            If there is no such folder, its writer hasn't finished, or its files differ from its
            manifest.
        EmbeddingError
            If there is neither ``space.json`` nor ``space``, the layout is ambiguous, or there are
            fewer parts than ``n_parts``.
        PartError
            If a part is damaged or contradicts the others.
        SpaceMismatchError
            If ``space`` contradicts ``space.json`` or the arrays.
        """
        return cls(path, space, modality, n_parts)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the arguments of `open`: the copy in another process opens the files again."""
        path = os.path.abspath(self.path) if self.is_local else self.path
        return type(self), (path, self.space, *self._arguments)

    def iter_batches(
        self,
        *,
        batch_rows: int,
        start: int = 0,
        stop: int | None = None,
        bad_rows: Literal["error", "tombstone"] = "error",
    ) -> Iterator[EmbeddingBatch]:
        """Yield rows ``start`` to ``stop`` (exclusive) in order, judged, the next ones read ahead.

        Memory, beside the batch that the caller holds: one batch or 4 MiB a thread, whichever is
        more (8 threads for local files, 16 behind a URL). Parquet adds a row group.

        Parameters
        ----------
        batch_rows : int
            Rows a batch; the last one may be shorter.
        start, stop : int
            None: to the end.
        bad_rows : {"error", "tombstone"}
            What to do about NaN, infinite and zero rows: raise, or replace them by zeros and mark
            them dead, so that all other rows keep their numbers. A norm that contradicts
            ``space.unit_norm`` is an error in either case: the declaration is wrong, not the row.

        Raises
        ------
        BadRowError
            Names the file and the first bad row.
        """
        stop = self.n_rows if stop is None else stop
        if batch_rows < 1:
            raise ValueError(f"batch_rows is {batch_rows}, expected at least 1")
        if not 0 <= start <= stop <= self.n_rows:
            raise RowRangeError(
                f"rows {start} to {stop} were asked for, and {self.path} has {self.n_rows}."
            )
        if bad_rows not in ("error", "tombstone"):
            raise ValueError(f"bad_rows is {bad_rows!r}, expected 'error' or 'tombstone'")
        return read_batches(
            self._storage,
            self.parts,
            self.space,
            batch_rows=batch_rows,
            start=start,
            stop=stop,
            has_tombstones=bad_rows == "tombstone",
        )

    def take(self, rows: np.ndarray | Sequence[int]) -> np.ndarray:
        """Return rows in the order asked, unjudged; repeats are allowed.

        Parameters
        ----------
        rows : ndarray of shape (n,), int64

        Returns
        -------
        embeddings : ndarray of shape (n, dim) or (n, tokens, dim), stored dtype

        Raises
        ------
        RowRangeError
            If a row is below 0 or not below ``n_rows``; it is an IndexError too.
        """
        wanted = check_rows(rows, self.n_rows, self.path)
        out = np.empty((len(wanted), self.space.width), self.dtype)
        chosen, starts = [], [0]
        for part, local_rows, places in self._by_part(wanted):
            if part.vectors.has_random_access:
                chosen.append((part.vectors, local_rows, places))
                starts.append(starts[-1] + len(places))
            else:
                part.vectors.take_into(local_rows, out, places)

        def read(start: int, stop: int) -> None:
            for i in range(bisect_right(starts, start) - 1, bisect_left(starts, stop)):
                vectors, local_rows, places = chosen[i]
                piece = slice(max(0, start - starts[i]), stop - starts[i])
                vectors.take_into(local_rows[piece], out, places[piece])

        is_in_turn = self.is_local and len(wanted) <= _MOST_ROWS_IN_TURN
        read_mapped(
            read,
            starts[-1],
            self._take_pool,
            n_threads=self._storage.n_threads,
            n_first=_FIRST_ROWS if is_in_turn else 0,
        )
        return out.reshape(-1, *self.space.row_shape)

    def release(self) -> None:
        """Let go of the pages that `take` read: they count as this process's memory until then."""
        for part in self.parts:
            part.vectors.release()

    def metadata(
        self,
        rows: np.ndarray | Sequence[int] | None = None,
        columns: Sequence[str] | None = None,
    ) -> Any:
        """Return metadata as a `pyarrow.Table`, rows in the order asked; repeats are allowed.

        Parameters
        ----------
        rows : ndarray of shape (n,), int64, or None
            None: all rows, however many there are, in memory; `iter_metadata` is bounded.
        columns : sequence of str or None
            None: all columns.

        Raises
        ------
        EmbeddingError
            If the folder has no such column.
        RowRangeError
        """
        schema = self._select(columns)
        if rows is None:
            tables = list(self.iter_metadata(batch_rows=1 << 20, columns=columns))
            return pa.concat_tables(tables)
        wanted = check_rows(rows, self.n_rows, self.path)
        tables, places = [schema.empty_table()], [np.empty(0, np.int64)]
        for part, local_rows, places_of_part in self._by_part(wanted):
            assert part.columns is not None  # _select has made sure that all parts have metadata
            tables.append(part.columns.read_rows(local_rows, schema))
            places.append(places_of_part)
        return pa.concat_tables(tables).take(pa.array(np.argsort(np.concatenate(places))))

    def iter_metadata(
        self, *, batch_rows: int, columns: Sequence[str] | None = None
    ) -> Iterator[Any]:
        """Yield the metadata of all rows in order, as tables of ``batch_rows`` rows.

        The last table may be shorter. Memory: two tables, and a row group of the files.

        Raises
        ------
        EmbeddingError
            If the folder has no such column.
        """
        if batch_rows < 1:
            raise ValueError(f"batch_rows is {batch_rows}, expected at least 1")
        return self._iter_metadata(batch_rows, self._select(columns))

    def _take_pool(self) -> ThreadPoolExecutor:
        # Threads don't survive a fork: a child makes its own.
        if self._pool is None or self._pool_process != os.getpid():
            self._pool = ThreadPoolExecutor(self._storage.n_threads)
            self._pool_process = os.getpid()
        return self._pool

    def _iter_metadata(self, batch_rows: int, schema: Any) -> Iterator[Any]:
        held: list[Any] = []
        n_held = 0
        for part in self.parts:
            assert part.columns is not None  # _select has made sure that all parts have metadata
            for table in part.columns.iter_tables(batch_rows, schema):
                held.append(table)
                n_held += len(table)
                if n_held >= batch_rows:
                    joined = pa.concat_tables(held)
                    yield joined.slice(0, batch_rows)
                    held, n_held = [joined.slice(batch_rows)], n_held - batch_rows
        if n_held:
            yield pa.concat_tables(held)

    def _by_part(self, rows: np.ndarray) -> Iterator[tuple[Part, np.ndarray, np.ndarray]]:
        """Yield each part that holds some of the rows, their numbers in it sorted, their places."""
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        bounds = np.searchsorted(ordered, self._part_bounds)
        for i in np.flatnonzero(bounds[1:] > bounds[:-1]):
            span = slice(bounds[i], bounds[i + 1])
            yield self.parts[i], ordered[span] - self._part_bounds[i], order[span]

    def _select(self, columns: Sequence[str] | None) -> Any:
        if not self.columns:
            raise EmbeddingError(
                f"{self.path} holds vectors and no metadata. If it is the img_emb folder of a "
                f"larger one, open that."
            )
        chosen = self.columns if columns is None else tuple(columns)
        for name in chosen:
            if name not in self.columns:
                raise EmbeddingError(
                    f"{self.path} has no metadata column {name!r}; "
                    f"it has {', '.join(self.columns)}."
                )
        return pa.schema([self.schema.field(name) for name in chosen])


def check_rows(rows: np.ndarray | Sequence[int], n_rows: int, path: str) -> np.ndarray:
    """Return row numbers as int64, (n,), once all are from 0 to ``n_rows`` (exclusive).

    Raises
    ------
    ValueError
        If they aren't one axis of integers.
    RowRangeError
        Names ``path``.
    """
    wanted = np.asarray(rows)
    if not wanted.size:
        wanted = wanted.astype(np.int64)
    if wanted.ndim != 1 or wanted.dtype.kind not in "iu":
        raise ValueError(
            f"rows has shape {wanted.shape} and dtype {wanted.dtype}, expected (n,) integers"
        )
    bad = (wanted < 0) | (wanted >= n_rows)
    if bad.any():
        raise RowRangeError(
            f"row {wanted[bad][0]} was asked for, and {path} has rows 0 to {n_rows - 1}."
        )
    return wanted.astype(np.int64)
