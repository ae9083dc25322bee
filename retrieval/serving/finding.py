"""Found: the hits of some queries with their metadata, cut and joined as requests need it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from ..searching.engine import SearchEngine
from ..searching.request import SearchRequest

PATH_COLUMN = "image_path"


@dataclass(frozen=True)
class Found:
    """Hits of a batch of queries, best first, and the metadata of the hits alone.

    Parameters
    ----------
    rows : ndarray of shape (n, k), int64
        -1 where a query has fewer hits; these come last.
    scores : ndarray of shape (n, k), float32
    n_duplicates : ndarray of shape (n, k), int32
        Rows that were left out as near-duplicates of the hit.
    metadata : pyarrow.Table
        One line a hit, by query and rank.
    shards_missing : tuple of str
        Shards that did not answer in time.
    seconds : float
        That the search took, of the whole batch.
    """

    rows: np.ndarray
    scores: np.ndarray
    n_duplicates: np.ndarray
    metadata: Any
    shards_missing: tuple[str, ...]
    seconds: float

    @property
    def ends(self) -> np.ndarray:
        """Lines of the metadata up to the end of each query, from 0: int64, (n + 1,)."""
        counts: np.ndarray = (self.rows >= 0).sum(axis=1)
        return np.concatenate([[0], np.cumsum(counts)])

    def split(self, lengths: Sequence[int]) -> list[Found]:
        """Return the hits of the first ``lengths[0]`` queries, of the next ``lengths[1]``, ..."""
        if len(lengths) == 1:
            return [self]
        ends = self.ends
        parts = []
        for start, stop in pairwise(np.cumsum([0, *lengths]).tolist()):
            low, high = int(ends[start]), int(ends[stop])
            parts.append(
                Found(
                    self.rows[start:stop],
                    self.scores[start:stop],
                    self.n_duplicates[start:stop],
                    self.metadata.slice(low, high - low),
                    self.shards_missing,
                    self.seconds,
                )
            )
        return parts

    @classmethod
    def joined(cls, parts: Sequence[Found]) -> Found:
        """Return the hits of parts of one request, in order."""
        return cls(
            np.concatenate([part.rows for part in parts]),
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.n_duplicates for part in parts]),
            pa.concat_tables([part.metadata for part in parts]),
            tuple(sorted({shard for part in parts for shard in part.shards_missing})),
            sum(part.seconds for part in parts),
        )


def find(
    engine: SearchEngine, vectors: np.ndarray, request: SearchRequest, columns: Sequence[str]
) -> Found:
    """Search, and look up the metadata of all hits together."""
    started = time.perf_counter()
    result = engine.search(vectors, request)
    seconds = time.perf_counter() - started
    metadata = read_metadata(engine, result.rows[result.rows >= 0], columns)
    counts = result.n_duplicates
    n_duplicates = np.zeros(result.rows.shape, np.int32) if counts is None else counts
    return Found(result.rows, result.scores, n_duplicates, metadata, result.shards_missing, seconds)


def read_metadata(engine: SearchEngine, rows: np.ndarray, columns: Sequence[str]) -> Any:
    """Return the metadata of rows as clients may see it, as a `pyarrow.Table`.

    A picture that lies elsewhere than in its embedding folder is called by its name alone: where
    else it lies is this machine's business.
    """
    table = engine.metadata(rows, columns)
    if PATH_COLUMN not in columns:
        return table
    paths = [_told(path) for path in table[PATH_COLUMN].to_pylist()]
    place = table.schema.get_field_index(PATH_COLUMN)
    return table.set_column(place, PATH_COLUMN, pa.array(paths, pa.string()))


def metadata_lines(table: Any, n_lines: int) -> list[dict[str, Any]]:
    """Return each line of a table as a dict; the values of a column are converted together.

    A table without columns doesn't know how many lines it has, hence ``n_lines``.
    """
    if not table.num_columns:
        return [{} for _ in range(n_lines)]
    names = table.column_names
    values = (column.to_pylist() for column in table.columns)
    return [dict(zip(names, line, strict=True)) for line in zip(*values, strict=True)]


def _told(path: object) -> str | None:
    if path is None:
        return None
    named = PurePosixPath(str(path).replace("\\", "/"))
    is_inside = not named.is_absolute() and ".." not in named.parts
    return str(path) if is_inside else named.name
