"""Recall of an index: how many of the exact nearest images a search finds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from index_builder.cosine import unit_rows
from index_builder.embeddings.float16 import to_float32
from index_builder.ground_truth import block_rows, exact_search

from ..errors import BenchmarkError
from ..searching.engine import SearchEngine
from ..searching.queries import QuerySet
from ..searching.request import SearchRequest
from .bootstrap import N_RESAMPLES, percentile_interval, resample_images
from .report import Estimate


@dataclass(frozen=True)
class RecallReport:
    """Recall of one index for one set of queries, at one effort.

    Parameters
    ----------
    index, queries : str
        What was searched, and with what.
    n_queries : int
        Queries measured; fewer than the set has, if it was sampled.
    n_rows : int
        Vectors in the index.
    recall : dict of int to Estimate
        By k: the mean share of the k exact nearest rows among the k found, after re-rank; the
        interval is a percentile bootstrap over queries.
    effort : dict of int to dict
        By k: the search parameters; empty for a flat index.
    ram_bytes : int
        What the opened index keeps in memory, everything included.
    seed : int
    """

    index: str
    queries: str
    n_queries: int
    n_rows: int
    recall: dict[int, Estimate]
    effort: dict[int, dict[str, int]]
    ram_bytes: int
    seed: int

    @property
    def bytes_per_vector(self) -> float:
        """Memory a vector."""
        return self.ram_bytes / self.n_rows

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        return {
            "index": self.index,
            "queries": self.queries,
            "n_queries": self.n_queries,
            "n_rows": self.n_rows,
            "recall": {str(k): estimate.to_dict() for k, estimate in self.recall.items()},
            "effort": {str(k): effort for k, effort in self.effort.items()},
            "ram_bytes": self.ram_bytes,
            "bytes_per_vector": self.bytes_per_vector,
            "seed": self.seed,
        }

    def lines(self) -> Iterator[str]:
        """Yield the report as lines for people."""
        yield f"{self.n_queries} queries of {self.queries} in {self.index} ({self.n_rows} rows)"
        for k, share in self.recall.items():
            effort = ", ".join(f"{name} {value}" for name, value in self.effort[k].items())
            yield (
                f"recall@{k:<4} {share.value:.4f} [{share.low:.4f}, {share.high:.4f}] against an "
                f"exact search ({effort or 'exact'})"
            )
        yield f"{self.bytes_per_vector:.1f} bytes of RAM a vector"


def measure_recall(
    engine: SearchEngine,
    queries: QuerySet,
    *,
    ks: tuple[int, ...] = (1, 10, 100),
    n_queries: int = 1000,
    breadth: int | None = None,
    n_candidates: int | None = None,
    seed: int = 0,
    n_resamples: int = N_RESAMPLES,
) -> RecallReport:
    """Search, scan exactly, and compare.

    Parameters
    ----------
    engine : SearchEngine
    queries : QuerySet
    ks : tuple of int
        Those larger than the index are left out.
    n_queries : int
        At most so many queries, a seeded sample of the set.
    breadth, n_candidates : int or None
        Effort; by default the one that the index chose when it was built.
    seed, n_resamples : int
        Of the sample and the bootstrap.

    Raises
    ------
    BenchmarkError
        If every k is larger than the index.
    """
    engine.require_comparable(queries)
    kept = tuple(k for k in sorted(set(ks)) if 1 <= k <= engine.n_rows)
    if not kept or n_queries < 1:
        raise BenchmarkError(
            f"recall@{ks} of {n_queries} queries can't be measured on {engine.n_rows} rows; give a "
            f"k from 1 to {engine.n_rows}, and at least one query."
        )
    vectors = _sample(queries, n_queries, seed)
    largest = kept[-1]
    batches = engine.embeddings.iter_batches(
        batch_rows=block_rows(len(vectors), vectors.shape[1]), bad_rows="tombstone"
    )
    alive = (batch.without(engine.deleted) for batch in batches)
    exact = exact_search(alive, unit_rows(vectors), largest)[0]
    requests = {
        k: SearchRequest(k, breadth=breadth, n_candidates=n_candidates, unsafe_from=None)
        for k in kept
    }
    by_k = []
    for k in kept:  # One search each: a search for more hits may look at more candidates.
        found = engine.search(vectors, requests[k]).rows
        by_k.append([np.isin(exact[i, :k], found[i]).mean() for i in range(len(vectors))])
    shares = np.array(by_k).T
    resampled = np.stack(
        [
            counts @ shares / len(shares)
            for counts in resample_images(len(shares), n_resamples, seed)
        ]
    )
    low, high = percentile_interval(resampled)
    return RecallReport(
        index=engine.path,
        queries=queries.label,
        n_queries=len(vectors),
        n_rows=engine.n_rows,
        recall={
            k: Estimate(float(mean), float(low[i]), float(high[i]))
            for i, (k, mean) in enumerate(zip(kept, shares.mean(axis=0), strict=True))
        },
        effort={k: engine.effort(request) for k, request in requests.items()},
        ram_bytes=engine.ram_bytes,
        seed=seed,
    )


def _sample(queries: QuerySet, n_queries: int, seed: int) -> np.ndarray:
    """Return a seeded sample of the queries in their order, float32 (n, width)."""
    chosen = np.arange(queries.n_queries)
    if queries.n_queries > n_queries:
        rng = np.random.default_rng(seed)
        chosen = np.sort(rng.choice(queries.n_queries, n_queries, replace=False))
    taken, start = [], 0
    for batch in queries.iter_batches(batch_queries=1024):
        here = chosen[(chosen >= start) & (chosen < start + len(batch))]
        taken.append(to_float32(batch[here - start]))
        start += len(batch)
    return np.concatenate(taken)
