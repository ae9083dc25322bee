"""SearchEngine: an opened index. Codes nominate candidates, vectors rank them.

Every answer ends with the rows of the embedding folders or with a copy of them: scores are cosines
with these, not estimates, whatever the codes. Parameters travel with the call; an engine has no
state that a search changes, so that threads may share it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from index_builder.candidates import Nominator, nominate, open_nominator
from index_builder.cosine import has_direction, unit_rows
from index_builder.embeddings.collection import Collection
from index_builder.embeddings.float16 import to_float32
from index_builder.embeddings.reader import EmbeddingBatch
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.embeddings.verified import Verified
from index_builder.ground_truth import batches_of, block_rows, exact_search
from index_builder.manifest import (
    open_sources,
    read_deleted,
    read_index_manifest,
    shards_of,
    verify_index_files,
)
from index_builder.planning import IndexPlan
from index_builder.recall import TARGET_K
from index_builder.reranking import rank_exactly
from index_builder.vector_copy import open_vectors

from ..errors import QueryError, SearchError
from ..metadata.store import MetadataStore
from .queries import QuerySet
from .request import SearchRequest

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
    embeddings : Collection
        The vectors that the index refers to.
    n_rows : int
        Rows that are left out counted.
    fingerprint : str
        Of the index.
    columns : tuple of str
        Metadata columns.
    deleted : ndarray of shape (n,), int64, sorted
        Rows that were taken down.
    ram_bytes : int
        What the opened index keeps in memory.
    """

    def __init__(
        self,
        path: Path,
        manifest: dict[str, Any],
        embeddings: Collection,
        nominator: Nominator | None,
    ) -> None:
        self.path = str(path)
        self.manifest = manifest
        self.plan = IndexPlan.from_dict(manifest["plan"])
        self.space: EmbeddingSpace = self.plan.space
        self.embeddings = embeddings
        self.n_rows = self.plan.n_rows
        self.fingerprint: str = manifest["fingerprint"]
        shards = shards_of(path, manifest)
        self._nominator = nominator
        self.deleted = read_deleted(path, manifest)
        self._vectors = open_vectors(path, self.plan, shards, embeddings)
        self._held: EmbeddingBatch | None = None
        if nominator is None and self.plan.tier == "memory":
            self._held = self._hold()
        self._metadata = MetadataStore.open(shards)
        self.columns = self._metadata.columns
        self.ram_bytes = nominator.ram_bytes if nominator else self.plan.ram_bytes

    @classmethod
    def open(
        cls,
        index_folder: str | os.PathLike[str],
        *,
        embeddings: Sequence[str | os.PathLike[str]] | None = None,
    ) -> SearchEngine:
        """Open an index: compare every file with its SHA-256, then load the codes.

        Every byte of the index is read and hashed, metadata included, before anything else parses
        it: about a second a GiB. Files that were verified before and haven't been touched since
        (`Verified`) are not read again. What was altered is refused.

        Parameters
        ----------
        index_folder : path
        embeddings : sequence of path or URL, or None
            Where the embedding folders are, in the order of the index, if they moved since it was
            built.

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
        verify_index_files(path, manifest, verified=Verified.of(path))
        plan = IndexPlan.from_dict(manifest["plan"])
        sources = open_sources(path, manifest, embeddings)
        nominator = open_nominator(path, plan, shards_of(path, manifest))
        return cls(path, manifest, sources, nominator)

    def search(
        self,
        queries: np.ndarray,
        request: SearchRequest | None = None,
        *,
        batch_queries: int = BATCH_QUERIES,
    ) -> SearchResult:
        """Return the nearest rows of each query, by cosine.

        Parameters
        ----------
        queries : ndarray of shape (n, width) or (n, tokens, dim), any float
            Of any norm but zero.
        request : SearchRequest or None
            What is asked; None: the sixteen nearest.
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
            If the effort is out of range.
        """
        request = request or SearchRequest()
        k, effort = request.k, self.effort(request)
        if batch_queries < 1:
            raise SearchError(f"batch_queries is {batch_queries}, expected at least 1.")
        vectors = self._check(np.asarray(queries))
        rows = np.empty((len(vectors), k), np.int64)
        scores = np.empty((len(vectors), k), np.float32)
        for start in range(0, len(vectors), batch_queries):
            piece = slice(start, start + batch_queries)
            unit = unit_rows(vectors[piece])
            rows[piece], scores[piece] = self._nearest(unit, k, effort)
        return SearchResult(rows, scores)

    def search_set(
        self,
        queries: QuerySet,
        request: SearchRequest | None = None,
        *,
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
            yield self.search(batch, request, batch_queries=batch_queries)

    def require_comparable(self, queries: QuerySet) -> None:
        """Raise `SpaceMismatchError` if queries that know their space are of another one."""
        if queries.space is not None:
            self.space.require_comparable(queries.space, mine=self.path, theirs=queries.label)

    def effort(self, request: SearchRequest) -> dict[str, int]:
        """Return the effort that a search makes; empty for a flat index.

        Raises
        ------
        SearchError
            If the effort that is asked for is out of range.
        """
        k, breadth, n_candidates = request.k, request.breadth, request.n_candidates
        nominator = self._nominator
        if nominator is None:
            if breadth is not None or n_candidates is not None:
                raise SearchError(
                    f"{self.path} is a flat index, which compares every row: leave the effort out."
                )
            return {}
        name = nominator.breadth_name
        certified = self.manifest["certificate"]["effort"]
        if breadth is None:
            breadth = int(certified[name])
        if n_candidates is None:
            in_proportion = -(-certified["n_candidates"] * max(k, TARGET_K) // TARGET_K)
            n_candidates = max(k, min(in_proportion, nominator.n_codes))
        if not 1 <= breadth <= nominator.most_breadth:
            raise SearchError(
                f"{name} is {breadth}, expected 1 to {nominator.most_breadth} in {self.path}."
            )
        if n_candidates < k:
            raise SearchError(f"n_candidates is {n_candidates}, expected at least k, which is {k}.")
        return {name: breadth, "n_candidates": n_candidates}

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

    def _nearest(
        self, unit: np.ndarray, k: int, effort: dict[str, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        nominator = self._nominator
        if nominator is None:
            return exact_search(self._batches(len(unit)), unit, k)
        rows = nominate(
            nominator,
            unit,
            effort[nominator.breadth_name],
            min(effort["n_candidates"], nominator.n_codes),
            n_least=k,
            deleted=self.deleted,
        )
        return rank_exactly(self._vectors, unit, rows, k)

    def _batches(self, n_queries: int) -> Iterable[EmbeddingBatch]:
        """Return all rows of a flat index that aren't deleted, from memory or from disk."""
        batch_rows = block_rows(n_queries, self.space.width)
        if self._held is not None:
            return batches_of(self._held.embeddings, batch_rows, self._held.is_alive)
        batches = self.embeddings.iter_batches(
            batch_rows=batch_rows, bad_rows=self.manifest["bad_rows"]
        )
        return (batch.without(self.deleted) for batch in batches)

    def _hold(self) -> EmbeddingBatch:
        """Read all rows of a flat index into memory, in their stored dtype."""
        source = self.embeddings
        embeddings = np.empty((source.n_rows, self.space.width), source.dtype)
        is_alive = np.empty(source.n_rows, bool)
        for batch in self._batches(1):
            piece = slice(batch.row_start, batch.row_start + len(batch.is_alive))
            embeddings[piece] = batch.embeddings.reshape(len(batch.is_alive), -1)
            is_alive[piece] = batch.is_alive
        return EmbeddingBatch(0, embeddings, is_alive)

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
