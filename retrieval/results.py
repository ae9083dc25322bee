"""Results: the hits of a query set as a folder that says which index and effort gave them.

    results.parquet   one line a hit: query, rank, row, score, then the metadata of the hit
    results.json      last: index, queries, k, effort, fingerprint

``query`` counts the query set from 0 and ``rank`` from 0, the best hit first; ``row`` is the row of
the gallery; ``score`` is the true cosine. A query with fewer hits than ``k`` has fewer lines.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from index_builder.embeddings.artefact import (
    atomic_write,
    read_manifest,
    verify_files,
    write_manifest,
)
from index_builder.embeddings.progress import track

from .errors import ResultsError
from .search.engine import BATCH_QUERIES, SearchEngine
from .search.queries import QuerySet
from .search.request import SearchRequest

HITS_FILE = "results.parquet"
MANIFEST_FILE = "results.json"
KIND = "results"
FORMAT_VERSION = 1
HIT_SCHEMA = pa.schema(
    [
        pa.field("query", pa.int64(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
    ]
)


def iter_hits(
    engine: SearchEngine,
    queries: QuerySet,
    request: SearchRequest,
    *,
    columns: Sequence[str] | None = None,
    batch_queries: int = BATCH_QUERIES,
) -> Iterator[Any]:
    """Yield the hits of each batch of queries as a `pyarrow.Table`, ordered by query and rank.

    Parameters
    ----------
    engine : SearchEngine
    queries : QuerySet
    request : SearchRequest
    columns : sequence of str or None
        Metadata columns to add; None: all. One that is called like a column of the hit itself is
        named ``metadata.<name>``.
    batch_queries : int
        Queries at a time; bounds the memory.
    """
    query_start = 0
    for result in engine.search_set(queries, request, batch_queries=batch_queries):
        query_of, rank = np.nonzero(result.rows >= 0)
        rows = result.rows[query_of, rank]
        table = pa.table(
            [
                query_of + query_start,
                rank.astype(np.int32),
                rows,
                result.scores[query_of, rank],
            ],
            schema=HIT_SCHEMA,
        )
        metadata = engine.metadata(rows, columns)
        for name in metadata.column_names:
            own = name if name not in HIT_SCHEMA.names else f"metadata.{name}"
            table = table.append_column(own, metadata[name])
        yield table
        query_start += len(result.rows)


def write_results(
    folder: str | os.PathLike[str],
    engine: SearchEngine,
    queries: QuerySet,
    request: SearchRequest,
    *,
    columns: Sequence[str] | None = None,
    batch_queries: int = BATCH_QUERIES,
    command: str = "voxseek search",
) -> Results:
    """Search for all queries and write the hits, batch by batch.

    Parameters
    ----------
    folder : path
        New, empty, or holding earlier results, which are replaced.
    engine, queries, request, columns, batch_queries
        As in `iter_hits`.
    command : str

    Raises
    ------
    ResultsError
        If the folder holds something else.
    SpaceMismatchError, QueryError, SearchError
    """
    root = Path(folder)
    engine.require_comparable(queries)
    effort = engine.effort(request)
    _require_free(root)
    (root / MANIFEST_FILE).unlink(missing_ok=True)
    tables = iter_hits(
        engine,
        queries,
        request,
        columns=columns,
        batch_queries=batch_queries,
    )
    n_hits = 0
    n_batches = -(-queries.n_queries // batch_queries)
    with atomic_write(root / HITS_FILE) as temporary:
        writer = None
        for table in track(tables, label="search", total=n_batches, unit="block"):
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
                "label": Path(queries.label).name,
                "fingerprint": queries.fingerprint,
                "n_queries": queries.n_queries,
            },
            "k": request.k,
            "effort": effort,
            "n_hits": n_hits,
        },
        packages=("numpy", "pyarrow"),
    )
    return Results.open(root)


class Results:
    """The hits of a query set, read back; made by `open`.

    Attributes
    ----------
    path : str
    manifest : dict
    n_queries, k, n_hits : int
    effort : dict
        n_probe or ef_search, and n_candidates; empty where the index was flat.
    columns : tuple of str
        ``query``, ``rank``, ``row``, ``score``, and the metadata columns.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = str(path)
        self.manifest = manifest
        self.n_queries: int = manifest["queries"]["n_queries"]
        self.k: int = manifest["k"]
        self.n_hits: int = manifest["n_hits"]
        self.effort: dict[str, int] = manifest["effort"]
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


def _require_free(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise ResultsError(f"{root} is a file; results are a folder. Choose another path.")
    if (root / MANIFEST_FILE).is_file() or (root / HITS_FILE).is_file():
        return
    strangers = sorted(path.name for path in root.glob("*") if not path.name.startswith("."))
    if strangers:
        raise ResultsError(
            f"{root} holds {', '.join(strangers[:5])} and no {HITS_FILE}: it isn't a results "
            f"folder. Write into a new or empty one."
        )
