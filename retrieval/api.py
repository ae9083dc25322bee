"""The Python API: an index opened, queries of any kind in, hits out as arrays or tables.

from retrieval import open_index, search

index = open_index("index/")
hits = search(index, vectors, k=10, where="width >= 512")
hits.rows, hits.scores          # ndarrays (n, 10)
hits.to_arrow()                 # one line a hit, with its metadata
hits.to_torch()                 # the same two arrays as tensors
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from .errors import QueryError
from .results import hit_table
from .searching.engine import SearchEngine
from .searching.queries import load_queries
from .searching.request import SearchRequest
from .searching.result import SearchResult

_ARROW_LISTS = (
    pa.types.is_fixed_size_list,
    pa.types.is_list,
    pa.types.is_large_list,
)


@dataclass(frozen=True)
class Hits:
    """The hits of some queries, best first; made by `search`.

    Parameters
    ----------
    index : SearchEngine
    result : SearchResult
    """

    index: SearchEngine
    result: SearchResult

    @property
    def rows(self) -> np.ndarray:
        """Rows of the gallery (n, k), int64; -1 where there are fewer hits."""
        return self.result.rows

    @property
    def scores(self) -> np.ndarray:
        """Cosines (n, k), float32; NaN where there is no hit."""
        return self.result.scores

    def to_arrow(self, columns: Sequence[str] | None = None) -> Any:
        """Return a `pyarrow.Table`: query, rank, row, score, then metadata, one line a hit.

        Parameters
        ----------
        columns : sequence of str or None
            Metadata columns; None: all.
        """
        return hit_table(self.index, self.result, columns=columns)

    def to_torch(self) -> tuple[Any, Any]:
        """Return rows and scores as tensors that share their memory."""
        import torch

        return torch.from_numpy(self.rows), torch.from_numpy(self.scores)


def open_index(
    folder: str | os.PathLike[str],
    *,
    embeddings: Sequence[str | os.PathLike[str]] | None = None,
    device: str = "cpu",
) -> SearchEngine:
    """Open an index for any number of searches, from any number of threads.

    Parameters
    ----------
    folder, embeddings, device
        See `SearchEngine.open`.
    """
    return SearchEngine.open(folder, embeddings=embeddings, device=device)


def search(index: SearchEngine, queries: Any, k: int = 16, **asked: Any) -> Hits:
    """Return the ``k`` nearest rows of each query.

    Parameters
    ----------
    index : SearchEngine
    queries : array, tensor, Arrow data, or path
        Of shape (n, width), (n, tokens, dim) or (width,), any float: whatever NumPy can view, torch
        tensors on any device included; an Arrow array of equally long lists, or a table with one
        such column; an embedding folder or ``.npy`` file by its path.
    k : int
    asked
        The other fields of `SearchRequest`: ``where``, ``duplicate_from``, ``excluded`` ...

    Returns
    -------
    hits : Hits

    Raises
    ------
    QueryError
        If queries have another width, or hold NaN, infinite or zero rows.
    SpaceMismatchError
        If an embedding folder is of another space than the index.
    SearchError, FilterError
        If what is asked is out of range or refused.
    """
    return Hits(index, index.search(_vectors(index, queries), SearchRequest(k, **asked)))


def _vectors(index: SearchEngine, queries: Any) -> np.ndarray:
    if isinstance(queries, (str, os.PathLike)):
        loaded = load_queries(queries)
        index.require_comparable(loaded)
        return np.concatenate(list(loaded.iter_batches(batch_queries=4096)))
    if isinstance(queries, pa.Table | pa.RecordBatch):
        return _of_lists(_only_lists(queries))
    if isinstance(queries, pa.Array | pa.ChunkedArray):
        return _of_lists(queries)
    if hasattr(queries, "detach"):  # a tensor: it may need a gradient, or lie on a device
        queries = queries.detach().cpu()
        if str(queries.dtype) == "torch.bfloat16":  # which NumPy doesn't have
            queries = queries.float()
    vectors = np.asarray(queries)
    return vectors[None] if vectors.ndim == 1 else vectors


def _only_lists(table: Any) -> Any:
    names = [f.name for f in table.schema if any(is_list(f.type) for is_list in _ARROW_LISTS)]
    if len(names) != 1:
        raise QueryError(
            f"the table has {len(names)} columns of lists ({', '.join(names) or 'none'}), expected "
            f"one, the query vectors. Select the column."
        )
    return table.column(names[0])


def _of_lists(lists: Any) -> np.ndarray:
    if not any(is_list(lists.type) for is_list in _ARROW_LISTS):
        raise QueryError(f"queries are an Arrow array of {lists.type}, expected lists of floats.")
    joined = lists.combine_chunks() if isinstance(lists, pa.ChunkedArray) else lists
    lengths = set(pa.compute.list_value_length(joined).to_pylist())
    if len(lengths) > 1 or None in lengths:
        raise QueryError(
            f"query vectors have {sorted(map(str, lengths))} numbers, expected one length for all."
        )
    values: np.ndarray = joined.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(joined), -1)
