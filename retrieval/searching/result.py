"""SearchResult: the hits of a batch of queries, and what of the index was not searched."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SearchResult:
    """Hits of a batch of queries, best first.

    Parameters
    ----------
    rows : ndarray of shape (n, k), int64
        Row of the gallery; -1 where there are fewer hits.
    scores : ndarray of shape (n, k), float32
        Cosine with the stored vector, in [-1, 1]; NaN where there is no hit.
    n_duplicates : ndarray of shape (n, k), int32, or None
        Near-duplicates that were folded into each hit; None where that wasn't asked for.
    shards_missing : tuple of str
        Shards that did not answer in time; their rows are not among the hits.
    token_scores : ndarray of shape (n, k), float32, or None
        Cosine of the flattened tokens, by which hits are then ordered; None without that stage.
    """

    rows: np.ndarray
    scores: np.ndarray
    n_duplicates: np.ndarray | None = None
    shards_missing: tuple[str, ...] = ()
    token_scores: np.ndarray | None = None
