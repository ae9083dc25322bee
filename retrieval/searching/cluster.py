"""ClusterSearch: one index, its shards held by the workers of a Dask cluster.

Each query goes to every shard. A worker nominates candidates within the shard with the effort that
is asked for, ranks them exactly, and returns the ``k`` best; these are merged by score, then row.

What that means beside one machine. Where no filter restricts and the breadth is the same, each row
that one machine nominates, one of the ``n_candidates`` most promising of all shards, is among the
``n_candidates`` most promising of its own shard, and nominated there. So a cluster ranks at least
the same rows: its score at each rank is the same or larger, and the hits are the same, bit for bit,
where both nominate all that matters: for a flat index, for one shard, and with an effort at which
nothing is left out. ``n_candidates`` counts for each shard: an index in many shards ranks as many
times more rows, spread over its workers. With a filter, each shard widens its breadth by its own
share of rows that may be found. None of this depends on how many workers there are, or on which of
them is lost.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from index_builder.embeddings.collection import Collection
from index_builder.execution.workers import DaskWorkers
from index_builder.manifest import open_sources, shards_of
from index_builder.planning import IndexPlan
from index_builder.row_set import RowSet
from index_builder.shards import Shard, read_record
from index_builder.vector_copy import open_vectors

from ..errors import SearchError
from .engine import SearchEngine
from .held_shards import Found, ShardQuestion, answer_shard, read_checked_manifest
from .request import SearchRequest
from .result import SearchResult
from .shard_workers import Answer, ShardWorkers

_SENT_BYTES = 16 << 20  # queries on their way to a worker


@dataclass(frozen=True)
class _CodesElsewhere:
    """What an effort is chosen by, of codes that are opened by others.

    Its names are those of `Nominator`; a flat index has no name for its breadth.
    """

    breadth_name: str
    n_codes: int
    most_breadth: int
    ram_bytes: int = 0

    @classmethod
    def of(cls, plan: IndexPlan, shards: Sequence[Shard]) -> _CodesElsewhere:
        """Read it from the plan and the records of the shards."""
        records = [read_record(shard.folder) for shard in shards]
        n_alive = [
            record["row_stop"] - record["row_start"] - record["n_tombstones"] - record["n_deleted"]
            for record in records
        ]
        if plan.code == "flat":
            return cls("", sum(n_alive), 1)
        if plan.code == "hnsw-sq8":
            return cls("ef_search", sum(n_alive), max(1, *n_alive))
        return cls("n_probe", sum(n_alive), plan.n_lists)


@dataclass
class _Call:
    """A call of `ClusterSearch.search`: when it ends, and which shards it lacks."""

    end: float | None
    missing: set[str] = field(default_factory=set)


_call: ContextVar[_Call] = ContextVar("_call")


class ClusterSearch(SearchEngine):
    """An index, searched by the workers of a Dask cluster; made by `open`.

    It is used as a `SearchEngine` is, and closed in the end. A worker opens a shard when it is
    first asked, after its checksums, and keeps it for later searches, those of other processes
    included. When a worker is lost, others open its shards, within the same search where there is
    time. Metadata and filters are read here, by the same paths.

    Attributes
    ----------
    deadline_seconds : float or None
        For each call of `search`.
    """

    def __init__(
        self,
        path: Path,
        manifest: dict[str, Any],
        embeddings: Collection,
        shard_workers: ShardWorkers,
        deadline_seconds: float | None,
    ) -> None:
        plan, shards = IndexPlan.from_dict(manifest["plan"]), shards_of(path, manifest)
        codes: Any = _CodesElsewhere.of(plan, shards)
        vectors = open_vectors(path, plan, shards, embeddings)
        super().__init__(path, manifest, embeddings, codes, vectors)
        self._shard_workers, self.deadline_seconds = shard_workers, deadline_seconds

    @classmethod
    def open(  # type: ignore[override]  # a scheduler must be named
        cls,
        index_folder: str | os.PathLike[str],
        *,
        scheduler: str,
        embeddings: Sequence[str | os.PathLike[str]] | None = None,
        deadline_seconds: float | None = None,
        answer: Answer = answer_shard,
    ) -> ClusterSearch:
        """Open an index for a search by many machines.

        Parameters
        ----------
        index_folder : path
            All workers must see it, and the embeddings, by the same path.
        scheduler : str
            Address of a running Dask scheduler, or the scheduler file that it wrote.
        embeddings : sequence of path or URL, or None
            Where the embedding folders are, in the order of the index, if they moved.
        deadline_seconds : float or None
            For each call of `search`: shards that don't answer in time are left out, and named in
            the result. None: all are waited for.
        answer : callable
            What a worker runs for a shard: `answer_shard`, or a function of a module that calls it.

        Raises
        ------
        ArtefactError, SourceError
            As of `SearchEngine.open`; files of a shard are verified by the worker that opens it.
        SchedulerError
            If the scheduler can't be reached.
        SearchError
            If the deadline isn't above 0.
        """
        if deadline_seconds is not None and not deadline_seconds > 0:
            raise SearchError(f"deadline_seconds is {deadline_seconds}, expected more than 0.")
        path = Path(index_folder).resolve()
        manifest = read_checked_manifest(path)
        sources = open_sources(path, manifest, embeddings)
        moved = None if embeddings is None else tuple(each.path for each in sources.folders)
        shards = shards_of(path, manifest)
        n_rows = manifest["plan"]["n_rows"]
        question = ShardQuestion(str(path), manifest["fingerprint"], moved)
        workers = ShardWorkers(DaskWorkers(scheduler), shards, question, n_rows, answer)
        try:
            return cls(path, manifest, sources, workers, deadline_seconds)
        except BaseException:
            workers.close()
            raise

    def search(
        self,
        queries: np.ndarray,
        request: SearchRequest | None = None,
        *,
        batch_queries: int | None = None,
    ) -> SearchResult:
        """Return the nearest rows of each query; see `SearchEngine.search`.

        Returns
        -------
        result : SearchResult
            ``shards_missing`` names the shards that didn't answer everything in time.

        Raises
        ------
        ClusterError
            If no shard answers before the deadline; or, without one, if a shard can't be searched
            by any worker.
        SchedulerError
            If the scheduler goes away.
        """
        seconds = self.deadline_seconds
        call = _Call(None if seconds is None else time.monotonic() + seconds)
        token = _call.set(call)
        try:
            result = super().search(queries, request, batch_queries=batch_queries)
        finally:
            _call.reset(token)
        return replace(result, shards_missing=tuple(sorted(call.missing)))

    def batch_queries(self, request: SearchRequest) -> int:
        """Return how many queries are best sent at a time; at most 16 MiB of them."""
        most = max(1, _SENT_BYTES // (4 * self.space.width))
        return min(most, super().batch_queries(request))

    def close(self) -> None:
        """Leave the cluster, which keeps what it opened."""
        self._shard_workers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def nearest(self, unit: np.ndarray, request: SearchRequest, allowed: RowSet | None) -> Found:
        """Return the nearest rows that shards find in time; see `SearchEngine.nearest`."""
        call = _call.get()
        found, missing = self._shard_workers.nearest(
            unit,
            request.k,
            breadth=request.breadth,
            n_candidates=self.effort(request).get("n_candidates"),
            allowed=allowed,
            end=call.end,
        )
        call.missing |= missing
        return found
