"""SearchEngine: an opened index. Candidates from the lists, true cosines from the vectors.

Every answer ends with the rows of the embedding folder itself: scores are cosines, not estimates,
whatever the codes. Parameters travel with the call; an engine has no state that a search changes,
so that threads may share it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from index_builder.build import open_lists
from index_builder.certificate import TARGET_K
from index_builder.cosine import has_direction, unit_rows
from index_builder.embeddings.float16 import to_float32
from index_builder.embeddings.reader import EmbeddingBatch, EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.ground_truth import batches_of, block_rows, exact_search
from index_builder.inverted_file import InvertedFile
from index_builder.manifest import open_source, read_index_manifest, verify_index_files
from index_builder.planning import IndexPlan
from index_builder.reranking import rank_exactly

from ..errors import QueryError, SearchError
from ..metadata.store import MetadataStore
from .queries import QuerySet

BATCH_QUERIES = 256


@dataclass(frozen=True)
class SearchResult:
    """Hits of a batch of queries, best first.

    Parameters
    ----------
    rows : ndarray of shape (n, k), int64
        Row of the embedding folder; -1 where there are fewer hits.
    scores : ndarray of shape (n, k), float32
        Cosine with the stored vector, in [-1, 1]; NaN where there is no hit.
    """

    rows: np.ndarray
    scores: np.ndarray


class SearchEngine:
    """An index, opened for searching; made by `open`.

    Attributes
    ----------
    path : str
        The index folder.
    manifest : dict
    plan : IndexPlan
    space : EmbeddingSpace
    embeddings : EmbeddingFolder
        The vectors that the index refers to.
    n_rows : int
        Tombstoned rows counted.
    fingerprint : str
        Of the index.
    columns : tuple of str
        Metadata columns.
    ram_bytes : int
        What the opened index keeps in memory.
    """

    def __init__(
        self,
        path: Path,
        manifest: dict[str, Any],
        embeddings: EmbeddingFolder,
        lists: InvertedFile | None,
        held: EmbeddingBatch | None,
    ) -> None:
        self.path = str(path)
        self.manifest = manifest
        self.plan = IndexPlan.from_dict(manifest["plan"])
        self.space: EmbeddingSpace = self.plan.space
        self.embeddings = embeddings
        self.n_rows = self.plan.n_rows
        self.fingerprint: str = manifest["fingerprint"]
        self._lists = lists
        self._held = held
        self._metadata = MetadataStore.open(path, self.plan)
        self.columns = self._metadata.columns
        self.ram_bytes = lists.ram_bytes if lists else self.plan.ram_bytes

    @classmethod
    def open(
        cls,
        index_folder: str | os.PathLike[str],
        *,
        embeddings: str | os.PathLike[str] | None = None,
    ) -> SearchEngine:
        """Open an index: compare every file with its SHA-256, then load the codes.

        Every byte of the index is read and hashed at each opening, metadata included, before
        anything else parses it: about a second a GiB. What was altered is refused, always.

        Parameters
        ----------
        index_folder : path
        embeddings : path, URL or None
            Where the embedding folder is, if it moved since the index was built.

        Raises
        ------
        ArtefactError
            Names the file that is missing or altered.
        SourceError
            If the embedding folder isn't found or changed.
        FaissVersionError
            If the installed FAISS makes other codes than the one that built the index.
        """
        path = Path(index_folder)
        manifest = read_index_manifest(path)
        verify_index_files(path, manifest)
        plan = IndexPlan.from_dict(manifest["plan"])
        source = open_source(path, manifest, embeddings)
        lists = open_lists(path, plan) if plan.n_lists else None
        held = _hold(source, manifest["bad_rows"]) if plan.is_held else None
        return cls(path, manifest, source, lists, held)

    def search(
        self,
        queries: np.ndarray,
        k: int,
        *,
        n_probe: int | None = None,
        n_candidates: int | None = None,
        batch_queries: int = BATCH_QUERIES,
    ) -> SearchResult:
        """Return the ``k`` nearest rows of each query, by cosine.

        Parameters
        ----------
        queries : ndarray of shape (n, width) or (n, tokens, dim), any float
            Of any norm but zero.
        k : int
        n_probe, n_candidates : int or None
            Effort: lists read and candidates ranked exactly, a query. None: the smallest effort
            that the certificate found sufficient for ten hits, with more candidates in proportion
            for more hits. A flat index has no effort to choose.
        batch_queries : int
            Queries at a time; it bounds the memory, and doesn't change the result.

        Returns
        -------
        result : SearchResult
            Ties ordered by row, the smaller first.

        Raises
        ------
        QueryError
            If queries have another width, or hold NaN, infinite or zero rows.
        SearchError
            If ``k`` or the effort is out of range.
        """
        effort = self.effort(k, n_probe=n_probe, n_candidates=n_candidates)
        if batch_queries < 1:
            raise SearchError(f"batch_queries is {batch_queries}, expected at least 1.")
        vectors = self._check(np.asarray(queries))
        rows = np.empty((len(vectors), k), np.int64)
        scores = np.empty((len(vectors), k), np.float32)
        for start in range(0, len(vectors), batch_queries):
            piece = slice(start, start + batch_queries)
            unit = unit_rows(vectors[piece])
            rows[piece], scores[piece] = (
                self._search_lists(self._lists, unit, k, **effort)
                if self._lists
                else exact_search(self._batches(len(unit)), unit, k)
            )
        return SearchResult(rows, scores)

    def search_set(
        self,
        queries: QuerySet,
        k: int,
        *,
        n_probe: int | None = None,
        n_candidates: int | None = None,
        batch_queries: int = BATCH_QUERIES,
    ) -> Iterator[SearchResult]:
        """Yield the hits of a query set batch by batch, in order; see `search`.

        Raises
        ------
        SpaceMismatchError
            If the queries are of another space than the index.
        """
        self.require_comparable(queries)
        for batch in queries.iter_batches(batch_queries=batch_queries):
            yield self.search(
                batch, k, n_probe=n_probe, n_candidates=n_candidates, batch_queries=batch_queries
            )

    def require_comparable(self, queries: QuerySet) -> None:
        """Raise `SpaceMismatchError` if queries that know their space are of another one."""
        if queries.space is not None:
            self.space.require_comparable(queries.space, mine=self.path, theirs=queries.label)

    def effort(
        self, k: int, *, n_probe: int | None = None, n_candidates: int | None = None
    ) -> dict[str, int]:
        """Return the effort that a search for ``k`` hits makes; empty for a flat index.

        Raises
        ------
        SearchError
            If ``k`` or the effort is out of range.
        """
        if k < 1:
            raise SearchError(f"k is {k}, expected at least 1.")
        if not self._lists:
            if n_probe is not None or n_candidates is not None:
                raise SearchError(
                    f"{self.path} is a flat index, which compares every row: "
                    f"leave out n_probe and n_candidates."
                )
            return {}
        certified = self.manifest["certificate"]["effort"]
        if n_probe is None:
            n_probe = int(certified["n_probe"])
        if n_candidates is None:
            in_proportion = -(-certified["n_candidates"] * max(k, TARGET_K) // TARGET_K)
            n_candidates = max(k, min(in_proportion, self._lists.n_codes))
        if not 1 <= n_probe <= self._lists.n_lists:
            raise SearchError(
                f"n_probe is {n_probe}, expected 1 to {self._lists.n_lists}, the lists of "
                f"{self.path}."
            )
        if n_candidates < k:
            raise SearchError(f"n_candidates is {n_candidates}, expected at least k, which is {k}.")
        return {"n_probe": n_probe, "n_candidates": n_candidates}

    def metadata(self, rows: np.ndarray, columns: Sequence[str] | None = None) -> Any:
        """Return the metadata of rows as a `pyarrow.Table`, in the order asked.

        Parameters
        ----------
        rows : ndarray of shape (n,), int64
            Hits; -1 is not one.
        columns : sequence of str or None
            None: all.

        Raises
        ------
        SearchError
            If there is no such row or column.
        """
        return self._metadata.take(rows, columns)

    def _search_lists(
        self, lists: InvertedFile, unit: np.ndarray, k: int, n_probe: int, n_candidates: int
    ) -> tuple[np.ndarray, np.ndarray]:
        n_candidates = min(n_candidates, lists.n_codes)
        rows = lists.candidates(unit, n_probe, n_candidates, n_least=k)
        return rank_exactly(self.embeddings, unit, rows, k)

    def _batches(self, n_queries: int) -> Iterable[EmbeddingBatch]:
        """Return all rows of a flat index, from memory or from disk."""
        batch_rows = block_rows(n_queries, self.space.width)
        if self._held is None:
            return self.embeddings.iter_batches(
                batch_rows=batch_rows, bad_rows=self.manifest["bad_rows"]
            )
        return batches_of(self._held.embeddings, batch_rows, self._held.is_alive)

    def _check(self, queries: np.ndarray) -> np.ndarray:
        if queries.ndim < 2 or queries.dtype.kind != "f":
            raise QueryError(
                f"queries have shape {queries.shape} and dtype {queries.dtype}, expected "
                f"(n, {self.space.width}), float."
            )
        rows = queries.reshape(len(queries), -1) if queries.size else queries
        if rows.shape[1:] != (self.space.width,):
            raise QueryError(
                f"queries have {queries.shape[1:]} numbers each, and {self.path} holds "
                f"{self.space}: {self.space.width}."
            )
        for start in range(0, len(rows), BATCH_QUERIES):
            piece = to_float32(rows[start : start + BATCH_QUERIES])
            is_bad = ~has_direction(piece)
            if is_bad.any():
                row = int(np.argmax(is_bad))
                raise QueryError(
                    f"query {start + row} is zero or holds NaN or infinite numbers; a query "
                    f"needs a direction. Leave it out, or look where it was made."
                )
        return rows


def _hold(source: EmbeddingFolder, bad_rows: Any) -> EmbeddingBatch:
    """Read all rows of a flat index into memory, in their stored dtype."""
    embeddings = np.empty((source.n_rows, source.space.width), source.dtype)
    is_alive = np.empty(source.n_rows, bool)
    for batch in source.iter_batches(
        batch_rows=block_rows(1, source.space.width), bad_rows=bad_rows
    ):
        piece = slice(batch.row_start, batch.row_start + len(batch.is_alive))
        embeddings[piece] = batch.embeddings.reshape(len(batch.is_alive), -1)
        is_alive[piece] = batch.is_alive
    return EmbeddingBatch(0, embeddings, is_alive)
