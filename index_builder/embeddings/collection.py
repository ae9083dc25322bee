"""Collection: several embedding folders of one space as one long array of rows.

LAION comes as a folder a language; an index is built over all of them. Rows are numbered one folder
after the other, in the order given, and never otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa

from .artefact import fingerprint
from .batches import EmbeddingBatch
from .errors import EmbeddingError, PartError, RowRangeError, SpaceMismatchError
from .reader import EmbeddingFolder, check_rows
from .space import EmbeddingSpace


class EmbeddingRows(Protocol):
    """What a set of queries needs to be: one folder, or several."""

    @property
    def path(self) -> str:
        """Where it is, for messages."""

    @property
    def space(self) -> EmbeddingSpace:
        """Its space."""

    @property
    def n_rows(self) -> int:
        """How many rows there are."""

    @property
    def part_rows(self) -> list[int]:
        """Rows of each part, in row order."""

    @property
    def fingerprint(self) -> str:
        """Of the content."""

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return rows (n,), int64, as stored."""


class Collection:
    """Embedding folders of one space, one after the other; made by `open` or of opened folders.

    Parameters
    ----------
    folders : sequence of EmbeddingFolder
        At least one; of one space and one dtype.

    Attributes
    ----------
    folders : tuple of EmbeddingFolder
    path : str
        Of all folders, for messages.
    space : EmbeddingSpace
    dtype : numpy.dtype
    n_rows : int
    row_starts : ndarray of shape (n_folders + 1,), int64
        First row of each folder, and the end.
    part_rows : list of int
        Rows of each part of each folder, in row order.
    columns : tuple of str
        Metadata columns that every folder has, in the order of the first.
    fingerprint : str
        Of the folders' fingerprints, in order.
    is_local : bool
        Whether all folders are on this machine's file system.

    Raises
    ------
    SpaceMismatchError
        If folders are of different spaces.
    EmbeddingError
        If their dtypes differ, or a folder comes twice.
    PartError
        If a column has types that don't go together.
    """

    def __init__(self, folders: Sequence[EmbeddingFolder]) -> None:
        if not folders:
            raise ValueError("folders is empty, expected at least one")
        first = folders[0]
        for other in folders[1:]:
            first.space.require_comparable(other.space, mine=first.path, theirs=other.path)
            if other.space != first.space:
                raise SpaceMismatchError(
                    f"{other.path} is in {other.space}, and {first.path} in {first.space}: rows of "
                    f"one index are of one space. Say the same --space for both if they are."
                )
            if other.dtype != first.dtype:
                raise EmbeddingError(
                    f"{other.path} holds {other.dtype}, and {first.path} {first.dtype}; expected "
                    f"one type. Convert one of them, or build an index of each."
                )
        paths = [folder.path for folder in folders]
        places = [
            os.path.realpath(folder.path) if folder.is_local else folder.path for folder in folders
        ]
        for path, place in zip(paths, places, strict=True):
            if places.count(place) > 1:
                raise EmbeddingError(
                    f"{path} was given {places.count(place)} times; expected each folder once, "
                    f"for its rows would be found twice."
                )
        self.folders = tuple(folders)
        self.path = ", ".join(paths)
        self.space, self.dtype = first.space, first.dtype
        self.row_starts = np.cumsum([0, *(folder.n_rows for folder in folders)], dtype=np.int64)
        self.n_rows = int(self.row_starts[-1])
        self.part_rows = [n_rows for folder in folders for n_rows in folder.part_rows]
        self.is_local = all(folder.is_local for folder in folders)
        self.fingerprint = fingerprint([folder.fingerprint for folder in folders])
        self.columns = tuple(
            name for name in first.columns if all(name in folder.columns for folder in folders)
        )
        self._schema = _unify(self.folders, self.columns)

    @classmethod
    def open(
        cls,
        paths: Sequence[str | os.PathLike[str]],
        *,
        space: EmbeddingSpace | None = None,
    ) -> Collection:
        """Open folders by their headers and footers; see `EmbeddingFolder.open`.

        Parameters
        ----------
        paths : sequence of path or fsspec URL
        space : EmbeddingSpace or None
            Of the folders that don't say it.
        """
        return cls([EmbeddingFolder.open(path, space=space) for path in paths])

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as how to open it again, and as what must then be found."""
        return _open_again, (
            tuple(folder.__reduce__()[1] for folder in self.folders),
            self.fingerprint,
        )

    def iter_batches(
        self,
        *,
        batch_rows: int,
        start: int = 0,
        stop: int | None = None,
        bad_rows: Literal["error", "tombstone"] = "error",
    ) -> Iterator[EmbeddingBatch]:
        """Yield rows ``start`` to ``stop`` (exclusive) in order; see `EmbeddingFolder`.

        A batch ends with its folder, so that some are shorter than ``batch_rows``.
        """
        stop = self.n_rows if stop is None else stop
        if not 0 <= start <= stop <= self.n_rows:
            raise RowRangeError(
                f"rows {start} to {stop} were asked for, and {self.path} has {self.n_rows}."
            )
        for folder, first in zip(self.folders, self.row_starts.tolist(), strict=False):
            low, high = max(start - first, 0), min(stop - first, folder.n_rows)
            if low >= high:
                continue
            for batch in folder.iter_batches(
                batch_rows=batch_rows, start=low, stop=high, bad_rows=bad_rows
            ):
                yield EmbeddingBatch(first + batch.row_start, batch.embeddings, batch.is_alive)

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
        """
        wanted = check_rows(rows, self.n_rows, self.path)
        if len(self.folders) == 1:
            return self.folders[0].take(wanted)
        out = np.empty((len(wanted), *self.space.row_shape), self.dtype)
        for folder, places, local_rows in self._by_folder(wanted):
            out[places] = folder.take(local_rows)
        return out

    def release(self) -> None:
        """Let go of the pages that `take` read: they count as this process's memory until then."""
        for folder in self.folders:
            folder.release()

    def metadata(
        self, rows: np.ndarray | Sequence[int], columns: Sequence[str] | None = None
    ) -> Any:
        """Return metadata as a `pyarrow.Table`, rows in the order asked; repeats are allowed.

        Parameters
        ----------
        rows : ndarray of shape (n,), int64
        columns : sequence of str or None
            None: all that every folder has.

        Raises
        ------
        EmbeddingError
            If a folder has no such column.
        RowRangeError
        """
        wanted = check_rows(rows, self.n_rows, self.path)
        schema = self.schema_of(columns)
        tables, places = [schema.empty_table()], [np.empty(0, np.int64)]
        for folder, places_of_folder, local_rows in self._by_folder(wanted):
            tables.append(folder.metadata(local_rows, schema.names).cast(schema))
            places.append(places_of_folder)
        return pa.concat_tables(tables).take(pa.array(np.argsort(np.concatenate(places))))

    def schema_of(self, columns: Sequence[str] | None = None) -> Any:
        """Return the `pyarrow.Schema` of some columns, or of all that every folder has.

        Raises
        ------
        EmbeddingError
            If a folder has no such column.
        """
        chosen = self.columns if columns is None else tuple(columns)
        for name in chosen:
            lacking = [folder for folder in self.folders if name not in folder.columns]
            if lacking:
                raise EmbeddingError(
                    f"{lacking[0].path} has no metadata column {name!r}; it has "
                    f"{', '.join(lacking[0].columns) or 'none at all'}."
                )
        return pa.schema([self._schema.field(name) for name in chosen])

    def _by_folder(
        self, rows: np.ndarray
    ) -> Iterator[tuple[EmbeddingFolder, np.ndarray, np.ndarray]]:
        """Yield each folder that holds some of the rows, their places, their numbers in it."""
        folder_of = np.searchsorted(self.row_starts, rows, side="right") - 1
        for number in np.unique(folder_of):
            places = np.flatnonzero(folder_of == number)
            yield self.folders[number], places, rows[places] - self.row_starts[number]


@lru_cache(maxsize=4)
def _open_again(arguments: tuple[tuple[Any, ...], ...], expected: str) -> Collection:
    """Open folders in another process, once for all of its tasks."""
    opened = Collection([EmbeddingFolder(*each) for each in arguments])
    if opened.fingerprint != expected:
        raise EmbeddingError(
            f"{opened.path} changed while a command was at work: fingerprint "
            f"{opened.fingerprint[:12]}, expected {expected[:12]}. Leave the folders as they are "
            f"until it is done, and run it again."
        )
    return opened


def _unify(folders: Sequence[EmbeddingFolder], columns: Sequence[str]) -> Any:
    """Return one schema for columns that all folders have, their types widened to common ones."""
    schemas = [
        pa.schema([folder.schema.field(name) for name in columns]).remove_metadata()
        for folder in folders
    ]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise PartError(
            f"{', '.join(folder.path for folder in folders)} have a column of types that don't go "
            f"together ({error}). Write one of them anew with the other's type."
        ) from error
