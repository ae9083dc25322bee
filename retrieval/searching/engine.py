"""SearchEngine: an opened index. Codes nominate candidates, vectors rank them.

Every answer ends with the rows of the embedding folders or with a copy of them: scores are cosines
with these, not estimates, whatever the codes. What is asked travels with the call; an engine has no
state that a search changes, so that threads may share it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from index_builder.candidates import Nominator, nominate, open_nominator
from index_builder.cosine import has_direction, unit_rows
from index_builder.embeddings.collection import Collection
from index_builder.embeddings.float16 import to_float32
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.embeddings.verified import Verified
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
from index_builder.row_set import RowSet
from index_builder.vector_copy import Vectors, open_vectors

from ..errors import QueryError, SearchError
from ..metadata.filters import RowFilters
from ..metadata.store import MetadataStore
from .all_rows import AllRows
from .queries import QuerySet
from .request import SearchRequest
from .result import SearchResult
from .shaping import shape_hits

BATCH_QUERIES = 256
SWEEP_QUERIES = 4096  # from disk: what a batch asks of a list is answered by reading it once
_MOST_CANDIDATES = 1 << 22  # of a batch
# Survivors of a filter that are all ranked, for each candidate that would be: codes save nothing.
_FEW = 32


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
    filters : RowFilters
        Over the metadata.
    ram_bytes : int
        What the opened index keeps in memory.
    """

    def __init__(
        self,
        path: Path,
        manifest: dict[str, Any],
        embeddings: Collection,
        nominator: Nominator | None,
        vectors: Vectors,
        filter_seconds: float | None = None,
    ) -> None:
        self.path = str(path)
        self.manifest = manifest
        self.plan = IndexPlan.from_dict(manifest["plan"])
        self.space: EmbeddingSpace = self.plan.space
        self.embeddings = embeddings
        self.n_rows = self.plan.n_rows
        self.fingerprint: str = manifest["fingerprint"]
        self.deleted = read_deleted(path, manifest)
        self._nominator, self._vectors = nominator, vectors
        self._all_rows = AllRows(
            embeddings,
            vectors,
            bad_rows=manifest["bad_rows"],
            deleted=self.deleted,
            in_memory=nominator is None and self.plan.tier == "memory",
        )
        self._metadata = MetadataStore.open(shards_of(path, manifest))
        self.columns = self._metadata.columns
        self.filters = RowFilters(
            self._metadata, deleted=self.deleted, timeout_seconds=filter_seconds
        )
        self.ram_bytes = nominator.ram_bytes if nominator else self.plan.ram_bytes

    @classmethod
    def open(
        cls,
        index_folder: str | os.PathLike[str],
        *,
        embeddings: Sequence[str | os.PathLike[str]] | None = None,
        device: str = "cpu",
        filter_seconds: float | None = None,
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
        device : str
            ``cpu``, or GPUs that hold all rows and compare every one: ``cuda``, ``cuda:0,cuda:1``,
            ``auto``. Where that can't be, one line is logged and the processor searches.
        filter_seconds : float or None
            For the evaluation of one predicate; None: as long as it takes.

        Raises
        ------
        ArtefactError
            Names the file that is missing or altered.
        SourceError
            If the embedding folder isn't found or changed.
        FaissVersionError
            If the installed FAISS makes other codes than the one that built the index.
        SearchError
            If ``device`` can't be read.
        """
        path = Path(index_folder)
        manifest = read_index_manifest(path)
        verify_index_files(path, manifest, verified=Verified.of(path))
        plan = IndexPlan.from_dict(manifest["plan"])
        sources = open_sources(path, manifest, embeddings)
        shards = shards_of(path, manifest)
        if device != "cpu":
            from .device import hold_on_devices

            held = hold_on_devices(
                device,
                sources,
                bad_rows=manifest["bad_rows"],
                deleted=read_deleted(path, manifest),
            )
            if held is not None:
                return cls(path, manifest, sources, held, held.vectors, filter_seconds)
        nominator = open_nominator(path, plan, shards)
        vectors = open_vectors(path, plan, shards, sources)
        return cls(path, manifest, sources, nominator, vectors, filter_seconds)

    def search(
        self,
        queries: np.ndarray,
        request: SearchRequest | None = None,
        *,
        batch_queries: int | None = None,
    ) -> SearchResult:
        """Return the nearest rows of each query, by cosine.

        Parameters
        ----------
        queries : ndarray of shape (n, width) or (n, tokens, dim), any float
            Of any norm but zero.
        request : SearchRequest or None
            What is asked; None: the sixteen nearest.
        batch_queries : int or None
            Queries at a time; it bounds the memory, and doesn't change the result. None: as
            `batch_queries` says.

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
        FilterError
            If a filter is refused, fails, takes too long, or names a column that isn't there.
        SpaceMismatchError
            If what is excluded is of another space.
        """
        request = request or SearchRequest()
        step = self.batch_queries(request) if batch_queries is None else batch_queries
        if step < 1:
            raise SearchError(f"batch_queries is {batch_queries}, expected at least 1.")
        vectors = self._check(np.asarray(queries))
        if request.excluded_space is not None:
            self.space.require_comparable(
                request.excluded_space, mine=self.path, theirs="what is excluded"
            )
        allowed = self.filters.allowed(request)
        self.effort(request)
        shape = len(vectors), request.k
        rows, scores = np.empty(shape, np.int64), np.empty(shape, np.float32)
        n_duplicates = None if request.duplicate_from is None else np.empty(shape, np.int32)
        for start in range(0, len(vectors), step):
            piece = slice(start, start + step)
            unit = unit_rows(vectors[piece])
            rows[piece], scores[piece], counts = self._hits(unit, request, allowed)
            if n_duplicates is not None and counts is not None:
                n_duplicates[piece] = counts
        return SearchResult(rows, scores, n_duplicates)

    def search_set(
        self,
        queries: QuerySet,
        request: SearchRequest | None = None,
        *,
        batch_queries: int | None = None,
    ) -> Iterator[SearchResult]:
        """Yield the hits of a query set batch by batch, in order; see `search`.

        Raises
        ------
        SpaceMismatchError
            If the queries are of another space than the index.
        """
        self.require_comparable(queries)
        request = request or SearchRequest()
        step = self.batch_queries(request) if batch_queries is None else batch_queries
        for batch in queries.iter_batches(batch_queries=step):
            yield self.search(batch, request, batch_queries=step)

    def require_comparable(self, queries: QuerySet) -> None:
        """Raise `SpaceMismatchError` if queries that know their space are of another one."""
        if queries.space is not None:
            self.space.require_comparable(queries.space, mine=self.path, theirs=queries.label)

    def batch_queries(self, request: SearchRequest) -> int:
        """Return how many queries are best searched at a time.

        As many as 4,096 where codes or rows are read from disk, for a batch reads each once, and
        where GPUs hold all rows; 256 otherwise; fewer where they would have more than four million
        candidates.
        """
        n_candidates = self.effort(request).get("n_candidates", request.k)
        on_devices = self._nominator is not None and not self._nominator.breadth_name
        most = SWEEP_QUERIES if on_devices or self.plan.tier == "disk" else BATCH_QUERIES
        return max(1, min(most, _MOST_CANDIDATES // n_candidates))

    def effort(self, request: SearchRequest) -> dict[str, int]:
        """Return the effort that a search makes without a filter; empty where all are compared.

        Raises
        ------
        SearchError
            If the effort that is asked for is out of range.
        """
        k, breadth, n_candidates = request.k, request.breadth, request.n_candidates
        nominator = self._nominator
        if nominator is None or not nominator.breadth_name:
            if breadth is not None or n_candidates is not None:
                raise SearchError(
                    f"{self.path} is searched by comparing every row: leave the effort out."
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

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return the vectors (n, width) that rows (n,), int64, are ranked by, of any norm."""
        return self._vectors.take(rows).reshape(len(rows), self.space.width)

    def nearest(
        self, unit: np.ndarray, request: SearchRequest, allowed: RowSet | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and scores (n, k) of the nearest rows that may be found; unshaped.

        Parameters
        ----------
        unit : ndarray of shape (n, width), float32, unit rows
        request : SearchRequest
            Its ``k`` and effort; its filters are ``allowed`` already.
        allowed : RowSet or None
            Rows that may be found, none of them deleted; None: all that aren't deleted.
        """
        k, effort, nominator = request.k, self.effort(request), self._nominator
        n_candidates = effort.get("n_candidates", k)
        if nominator is None:
            return self._all_rows.nearest(unit, k, allowed)
        if allowed is not None and len(allowed) <= _FEW * n_candidates:
            return self._all_rows.nearest_of_few(unit, k, allowed)
        if not nominator.breadth_name:  # it compares every row, and may give more than k
            rows = nominator.candidates(unit, 1, k, n_least=k, allowed=allowed)
            return rank_exactly(self._vectors, unit, rows, k)
        breadth = effort[nominator.breadth_name]
        if allowed is not None and request.breadth is None:
            share = min(1, len(allowed) / nominator.n_codes)
            wide = nominator.widened(breadth, share)
            if wide is None:
                return self._all_rows.nearest_of_few(unit, k, allowed)
            breadth = wide
        rows = nominate(
            nominator,
            unit,
            breadth,
            min(n_candidates, nominator.n_codes),
            n_least=k,
            deleted=self.deleted,
            allowed=allowed,
        )
        return rank_exactly(self._vectors, unit, rows, k)

    def _hits(
        self, unit: np.ndarray, request: SearchRequest, allowed: RowSet | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return rows, scores and, where asked for, the number of duplicates of each hit."""
        shapes = request.duplicate_from, request.excluded, request.aesthetic_weight or None
        if all(each is None for each in shapes):
            return *self.nearest(unit, request, allowed), None

        def nearest(some: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
            n_candidates = request.n_candidates and max(k, request.n_candidates)
            asked = dataclasses.replace(request, k=k, n_candidates=n_candidates)
            return self.nearest(some, asked, allowed)

        return shape_hits(
            nearest,
            self.take,
            unit,
            request,
            most=self.n_rows - len(self.deleted) if allowed is None else len(allowed),
            aesthetic=self.filters.aesthetic() if request.aesthetic_weight else None,
        )

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
