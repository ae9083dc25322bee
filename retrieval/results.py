"""Results: the hits of a query set as a folder that says which index and effort gave them.

    results.parquet   one line a hit: query, rank, row, score, then the metadata of the hit
    results.json      last: index, queries, what was asked, effort, shards that are missing

``query`` counts the query set from 0 and ``rank`` from 0, the best hit first; ``row`` is the row of
the gallery; ``score`` is the true cosine. A query with fewer hits than ``k`` has fewer lines.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from index_builder.embeddings.artefact import (
    atomic_write,
    read_manifest,
    require_free,
    verify_files,
    write_manifest,
)
from index_builder.embeddings.progress import track

from .confidence.artefact import Assessment, Confidence
from .confidence.observations import read_trials
from .errors import ResultsError
from .searching.engine import SearchEngine
from .searching.queries import QuerySet
from .searching.request import SearchRequest
from .searching.result import SearchResult

if TYPE_CHECKING:
    from .searching.tokens import TokenStage

HITS_FILE = "results.parquet"
MANIFEST_FILE = "results.json"
KIND = "results"
FORMAT_VERSION = 2
HIT_SCHEMA = pa.schema(
    [
        pa.field("query", pa.int64(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
    ]
)


@dataclass(frozen=True)
class HitBatch:
    """The hits of a batch of queries.

    Parameters
    ----------
    table : pyarrow.Table
        One line a hit, ordered by query and rank; see `hit_table`.
    shards_missing : tuple of str
        Shards that didn't answer in time.
    """

    table: Any
    shards_missing: tuple[str, ...]


def hit_table(
    engine: SearchEngine,
    result: SearchResult,
    *,
    first_query: int = 0,
    columns: Sequence[str] | None = None,
    assessment: Assessment | None = None,
) -> Any:
    """Return hits as a `pyarrow.Table`, one line a hit, ordered by query and rank.

    Parameters
    ----------
    engine : SearchEngine
    result : SearchResult
    first_query : int
        Number of the first query of ``result``.
    columns : sequence of str or None
        Metadata columns to add; None: all. One that is called like a column of the hit itself is
        named ``metadata.<name>``.
    assessment : Assessment or None
        Adds ``confidence``, of the query, and ``percentile``, of the hit.
    """
    query_of, rank = np.nonzero(result.rows >= 0)
    rows = result.rows[query_of, rank]
    values = [query_of + first_query, rank.astype(np.int32), rows, result.scores[query_of, rank]]
    table = pa.table(values, schema=HIT_SCHEMA)
    if result.n_duplicates is not None:
        table = table.append_column("n_duplicates", [result.n_duplicates[query_of, rank]])
    if assessment is not None:
        confidence = pa.array(assessment.probabilities[query_of], from_pandas=True)  # NaN is null
        table = table.append_column("confidence", confidence)
        table = table.append_column("percentile", [assessment.percentiles[query_of, rank]])
    if result.token_scores is not None:
        table = table.append_column("token_score", [result.token_scores[query_of, rank]])
    own = set(table.column_names)
    metadata = engine.metadata(rows, columns)
    for name in metadata.column_names:
        table = table.append_column(f"metadata.{name}" if name in own else name, metadata[name])
    return table


def iter_hits(
    engine: SearchEngine,
    queries: QuerySet,
    request: SearchRequest,
    *,
    columns: Sequence[str] | None = None,
    batch_queries: int | None = None,
    confidence: Confidence | None = None,
    stage: TokenStage | None = None,
) -> Iterator[HitBatch]:
    """Return the hits of each batch of queries, in order; searched for as they are asked for.

    Parameters
    ----------
    engine : SearchEngine
    queries : QuerySet
    request : SearchRequest
    columns : sequence of str or None
        Metadata columns to add; None: all.
    batch_queries : int or None
        Queries at a time; bounds the memory. None: as `SearchEngine.batch_queries` says.
    confidence : Confidence or None
        Says how sure the answers of the first stage are.
    stage : TokenStage or None
        Ranks what the index finds by tokens.

    Raises
    ------
    SpaceMismatchError, QueryError, SearchError, ConfidenceError
        What doesn't fit together is refused at once, before any search.
    """
    engine.require_comparable(queries)
    if confidence is not None:
        confidence.require_applicable(request, queries)
    if stage is not None:
        stage.require_applicable(queries, request)
    step = engine.batch_queries(request) if batch_queries is None else batch_queries
    trials = read_trials(queries) if confidence is not None else None
    return _search_batches(engine, queries, request, columns, step, confidence, trials, stage)


def _search_batches(
    engine: SearchEngine,
    queries: QuerySet,
    request: SearchRequest,
    columns: Sequence[str] | None,
    step: int,
    confidence: Confidence | None,
    trials: np.ndarray | None,
    stage: TokenStage | None,
) -> Iterator[HitBatch]:
    first = 0
    for batch in queries.iter_batches(batch_queries=step):
        if stage is None:
            result = engine.search(batch, request, batch_queries=step)
        else:
            result = stage.search(batch, request, first_query=first)
        assessment = None
        if confidence is not None:
            some = None if trials is None else trials[first : first + len(batch)]
            assessment = confidence.assess(batch, result, some)
        table = hit_table(engine, result, first_query=first, columns=columns, assessment=assessment)
        yield HitBatch(table, result.shards_missing)
        first += len(batch)


def write_results(
    folder: str | os.PathLike[str],
    engine: SearchEngine,
    queries: QuerySet,
    request: SearchRequest,
    *,
    columns: Sequence[str] | None = None,
    batch_queries: int | None = None,
    confidence: Confidence | None = None,
    stage: TokenStage | None = None,
    command: str = "voxseek search",
) -> Results:
    """Search for all queries and write the hits, batch by batch.

    Parameters
    ----------
    folder : path
        New, empty, or holding earlier results, which are replaced.
    engine, queries, request, columns, batch_queries, confidence, stage
        As in `iter_hits`.
    command : str

    Raises
    ------
    ResultsError
        If the folder holds something else.
    SpaceMismatchError, QueryError, SearchError, ConfidenceError
    """
    root = Path(folder)
    batches = iter_hits(
        engine,
        queries,
        request,
        columns=columns,
        batch_queries=batch_queries,
        confidence=confidence,
        stage=stage,
    )
    asked = describe_request(engine, request)
    effort = engine.effort(request if stage is None else stage.widen(request))
    require_free(root, (HITS_FILE, MANIFEST_FILE), "results are", ResultsError)
    (root / MANIFEST_FILE).unlink(missing_ok=True)
    n_hits, missing = 0, set[str]()
    n_batches = -(-queries.n_queries // (batch_queries or engine.batch_queries(request)))
    with atomic_write(root / HITS_FILE) as temporary:
        writer = None
        for batch in track(batches, label="search", total=n_batches, unit="block"):
            table = batch.table
            missing.update(batch.shards_missing)
            if writer is None:
                writer = pq.ParquetWriter(temporary, table.schema, compression="zstd")
            # One row group a batch, so that a query is never cut in two.
            writer.write_table(table, row_group_size=max(1, len(table)))
            n_hits += len(table)
        assert writer is not None  # a query set has at least one query
        writer.close()
    write_manifest(
        root,
        MANIFEST_FILE,
        kind=KIND,
        format_version=FORMAT_VERSION,
        command=command,
        files=[HITS_FILE],
        body={
            "index": {
                "fingerprint": engine.fingerprint,
                "design": engine.plan.design,
                "n_rows": engine.n_rows,
            },
            "space": engine.space.to_dict(),
            "queries": {
                "label": queries.name,
                "fingerprint": queries.fingerprint,
                "n_queries": queries.n_queries,
                "mix": [part.to_dict() for part in queries.mix],
            },
            "k": request.k,
            "asked": asked,
            "effort": effort,
            "confidence": confidence.manifest["fingerprint"] if confidence else None,
            "token_stage": stage.to_dict() if stage else None,
            "n_hits": n_hits,
            "shards_missing": sorted(missing),
        },
        packages=("numpy", "pyarrow"),
    )
    return Results.open(root)


def describe_request(engine: SearchEngine, request: SearchRequest) -> dict[str, Any]:
    """Return what of a request has an effect on an index, as JSON: filters and shaping."""
    asked = engine.filters.applied(request)
    if request.duplicate_from is not None:
        asked["duplicate_from"] = request.duplicate_from
    if request.excluded is not None:
        asked["n_excluded"] = len(request.excluded)
        asked["excluded_from"] = request.excluded_from
    if request.aesthetic_weight:
        asked["aesthetic_weight"] = request.aesthetic_weight
    return asked


class Results:
    """The hits of a query set, read back; made by `open`.

    Attributes
    ----------
    path : str
    manifest : dict
    n_queries, k, n_hits : int
    effort : dict
        n_probe or ef_search, and n_candidates; empty where the index was flat.
    shards_missing : tuple of str
        Shards that did not answer some query in time.
    columns : tuple of str
        ``query``, ``rank``, ``row``, ``score``, what else was asked of a hit, and the metadata.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = str(path)
        self.manifest = manifest
        self.n_queries: int = manifest["queries"]["n_queries"]
        self.k: int = manifest["k"]
        self.n_hits: int = manifest["n_hits"]
        self.effort: dict[str, int] = manifest["effort"]
        self.shards_missing: tuple[str, ...] = tuple(manifest["shards_missing"])
        self._file = path / HITS_FILE
        self.columns: tuple[str, ...] = tuple(pq.read_schema(self._file).names)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Results:
        """Open a results folder after its checksum.

        Raises
        ------
        ArtefactError
            If it is missing, incomplete or altered.
        """
        root = Path(path)
        manifest = read_manifest(root, MANIFEST_FILE, kind=KIND, format_version=FORMAT_VERSION)
        verify_files(root, manifest)
        return cls(root, manifest)

    def table(self, columns: Sequence[str] | None = None) -> Any:
        """Return all hits as a `pyarrow.Table`, in memory."""
        return pq.read_table(self._file, columns=None if columns is None else list(columns))

    def iter_queries(self, columns: Sequence[str] | None = None) -> Iterator[tuple[int, Any]]:
        """Yield each query with hits, and its hits as a `pyarrow.Table`, best first.

        Parameters
        ----------
        columns : sequence of str or None
            None: all.

        Notes
        -----
        Memory: a row group, which holds the hits of one batch of queries.
        """
        wanted = None if columns is None else ["query", *(c for c in columns if c != "query")]
        with pq.ParquetFile(self._file) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=wanted)
                query_of = table["query"].to_numpy()
                starts = np.flatnonzero(np.diff(query_of, prepend=-1))
                for start, stop in pairwise([*starts, len(table)]):
                    hits = table.slice(start, stop - start)
                    yield int(query_of[start]), hits if columns is None else hits.select(columns)


def to_json_lines(hits: Any) -> Iterator[str]:
    """Yield each row of a table of hits as a line of JSON.

    Values that JSON doesn't have (dates, bytes) become text.
    """
    for hit in hits.to_pylist():
        yield json.dumps(hit, default=str, ensure_ascii=False)
