"""Queries: an embedding folder or an npy file, read in batches, with what is known of each."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace

from ..errors import QueryError


@dataclass(frozen=True)
class QuerySet:
    """Vectors to search for, and where they come from; made by `load_queries`.

    Parameters
    ----------
    label : str
        What to call the set in messages and results: its path as given.
    n_queries : int
    width : int
        Numbers a query.
    space : EmbeddingSpace or None
        None for an npy file, which doesn't say.
    columns : tuple of str
        Names of the metadata columns; empty for an npy file.
    fingerprint : str or None
        Of the embedding folder.
    source : EmbeddingFolder or ndarray of shape (n_queries, width), memory-mapped
    """

    label: str
    n_queries: int
    width: int
    space: EmbeddingSpace | None
    columns: tuple[str, ...]
    fingerprint: str | None
    source: EmbeddingFolder | np.ndarray

    def iter_batches(self, *, batch_queries: int) -> Iterator[np.ndarray]:
        """Yield queries in order, as arrays of shape (n, width) in the stored dtype.

        Raises
        ------
        BadRowError
            If an embedding folder holds a NaN, infinite or zero row.
        """
        if isinstance(self.source, EmbeddingFolder):
            for batch in self.source.iter_batches(batch_rows=batch_queries):
                yield batch.embeddings.reshape(len(batch.embeddings), -1)
            return
        for start in range(0, self.n_queries, batch_queries):
            yield np.array(self.source[start : start + batch_queries])

    def metadata(self, rows: np.ndarray, columns: Sequence[str] | None = None) -> Any:
        """Return the metadata of queries as a `pyarrow.Table`, or None where there is none."""
        if isinstance(self.source, EmbeddingFolder) and self.columns:
            return self.source.metadata(rows, columns)
        return None


def load_queries(spec: str | os.PathLike[str], *, space: EmbeddingSpace | None = None) -> QuerySet:
    """Open queries by their headers.

    Parameters
    ----------
    spec : path or URL
        An embedding folder, or an ``.npy`` file of shape (n_queries, width) or (width,).
    space : EmbeddingSpace or None
        For an embedding folder without ``space.json``.

    Raises
    ------
    QueryError
        If an npy file is missing, malformed, pickled, or not of a float type and two dimensions.
    ArtefactError, EmbeddingError
        If an embedding folder can't be read.
    """
    label = os.fspath(spec)
    if not label.endswith(".npy"):
        folder = EmbeddingFolder.open(label, space=space)
        return QuerySet(
            label=label,
            n_queries=folder.n_rows,
            width=folder.space.width,
            space=folder.space,
            columns=folder.columns,
            fingerprint=folder.fingerprint,
            source=folder,
        )
    try:
        array = np.load(label, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise QueryError(f"{label} can't be read as an npy file: {error}") from error
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or array.dtype.kind != "f" or not len(array):
        raise QueryError(
            f"{label} has shape {array.shape} and dtype {array.dtype}; expected "
            f"(n_queries, width), float, at least one query."
        )
    return QuerySet(
        label=label,
        n_queries=array.shape[0],
        width=array.shape[1],
        space=None,
        columns=(),
        fingerprint=None,
        source=array,
    )
