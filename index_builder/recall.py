"""How much of the truth the candidates of one effort hold, query by query, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .candidates import Nominator, nominate
from .reranking import exact_scores

if TYPE_CHECKING:
    from .vector_copy import Vectors

TARGET_K = 10
CONFIDENCE = 0.9
KS = (1, 10, 100)
NEAR = 100
_QUANTILE = 1.2815515655446004  # of the standard normal distribution, at CONFIDENCE


@dataclass
class QuerySet:
    """Queries of one kind and their truth.

    Parameters
    ----------
    unit : ndarray of shape (n_queries, width), float32, unit rows
    excluded : ndarray of shape (n_queries,), int64
        The row that each query must not find, itself; or -1.
    truth : ndarray of shape (n_queries, n_true), int64
        The nearest rows, the best first; no -1.
    """

    unit: np.ndarray
    excluded: np.ndarray
    truth: np.ndarray
    _pairs: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    _scores: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))

    def scores_of(self, rows: np.ndarray, vectors: Vectors, n_rows: int) -> np.ndarray:
        """Return the score of each candidate by ``vectors``; each pair is read once in all.

        Parameters
        ----------
        rows : ndarray of shape (n_queries, n_candidates), int64
            -1: no candidate.
        vectors : Vectors
        n_rows : int
            Rows below this.

        Returns
        -------
        scores : ndarray of shape (n_queries, n_candidates), float32
            NaN where there is no candidate.
        """
        scores = np.full(rows.shape, np.nan, np.float32)
        pairs = np.arange(len(rows))[:, None] * n_rows + rows
        places = np.searchsorted(self._pairs, pairs)
        is_known = np.zeros(rows.shape, bool)
        if len(self._pairs):
            places = np.minimum(places, len(self._pairs) - 1)
            is_known = (self._pairs[places] == pairs) & (rows >= 0)
            scores[is_known] = self._scores[places[is_known]]
        is_new = ~is_known & (rows >= 0)
        scores[is_new] = exact_scores(vectors, self.unit, np.where(is_new, rows, -1))[is_new]
        known = np.concatenate([self._pairs, pairs[is_new]])
        order = np.argsort(known)
        self._pairs = known[order]
        self._scores = np.concatenate([self._scores, scores[is_new]])[order]
        return scores


@dataclass(frozen=True)
class Shares:
    """What each query of a set finds at one effort.

    Parameters
    ----------
    by_k : dict of int to ndarray of shape (n_queries,), float
        The share of the k nearest rows that are among the k first hits.
    nearest : ndarray of shape (n_queries,), bool
        Whether the nearest row is among the first 100 hits.
    """

    by_k: dict[int, np.ndarray]
    nearest: np.ndarray

    @property
    def at_target(self) -> np.ndarray:
        """The share that a target is about: of the ten nearest, or of all if they are fewer."""
        return self.by_k[max(k for k in self.by_k if k <= TARGET_K)]


def find_shares(
    nominator: Nominator,
    vectors: Vectors,
    query_set: QuerySet,
    breadth: int,
    counts: Sequence[int],
    *,
    deleted: np.ndarray,
    n_rows: int,
) -> list[Shares]:
    """Return what the queries find at one breadth, for each count of candidates.

    Parameters
    ----------
    nominator : Nominator
    vectors : Vectors
        What candidates are ranked by. Where it is exact, nothing is ranked: no candidate beats a
        true neighbor that isn't a true neighbor itself, so a nominated one is found.
    query_set : QuerySet
    breadth : int
    counts : sequence of int, rising
    deleted : ndarray of shape (m,), int64, rising
    n_rows : int
        Rows of the sources.
    """
    # One more than the most, for a query may find the row that it excludes.
    n_asked = min(counts[-1] + 1, nominator.n_codes)
    rows = nominate(nominator, query_set.unit, breadth, n_asked, n_least=TARGET_K, deleted=deleted)
    rows = _without(rows, query_set.excluded)
    truth = query_set.truth
    places = _places(rows, truth)
    n_true = truth.shape[1]
    ks = {k for k in (*KS, min(TARGET_K, n_true)) if k <= n_true}
    if not vectors.is_exact:
        order = np.lexsort((rows, -query_set.scores_of(rows, vectors, n_rows)), axis=1)
    found = []
    for count in counts:
        if vectors.is_exact:
            ranks = np.where(places < count, np.arange(n_true), rows.shape[1])
        else:
            ranks = _ranks(order, places, count)
        by_k = {k: (ranks[:, :k] < k).mean(axis=1) for k in sorted(ks)}
        found.append(Shares(by_k, (ranks[:, 0] < NEAR) & (places[:, 0] < count)))
    return found


def lower_bound(shares: np.ndarray) -> float:
    """Return what the mean over all queries exceeds with 90 % confidence, given a sample.

    Parameters
    ----------
    shares : ndarray of shape (n_queries,), float in [0, 1]
        Of one query each.

    Returns
    -------
    bound : float in [0, 1]

    Notes
    -----
    The lower end of the one-sided score interval of Wilson 1927 (doi:10.2307/2276774), for as many
    independent yes-or-no trials as would have the standard error seen, after Korn & Graubard 1998
    (Survey Methodology 24: 193-201): ``n m (1 - m) / s**2``. Recalls near 1 are skewed, and a
    sample that misses nothing has no spread; a normal interval would be too narrow for both.
    """
    n, mean = len(shares), float(shares.mean())
    variance = float(shares.var(ddof=1)) if n > 1 else 0.0
    n_trials = n * mean * (1 - mean) / variance if variance > 0 else float(n)
    z = _QUANTILE
    center = mean + z**2 / (2 * n_trials)
    spread = z * np.sqrt(mean * (1 - mean) / n_trials + z**2 / (4 * n_trials**2))
    return float(max(0.0, (center - spread) / (1 + z**2 / n_trials)))


def standard_error(shares: np.ndarray) -> float:
    """Return the standard error of the mean of shares (n_queries,); 0 of a single one."""
    return float(shares.std(ddof=1) / np.sqrt(len(shares))) if len(shares) > 1 else 0.0


def _without(rows: np.ndarray, excluded: np.ndarray) -> np.ndarray:
    """Move the row that each query excludes, where found, behind the others, marked missing."""
    rows = np.where(rows == excluded[:, None], -1, rows)
    order = np.argsort(rows < 0, axis=1, kind="stable")
    return np.take_along_axis(rows, order, axis=1)


def _places(rows: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return where each true row stands among the candidates; beyond any count if it doesn't."""
    places = np.full(truth.shape, np.iinfo(np.int64).max)
    for i, (found, wanted) in enumerate(zip(rows, truth, strict=True)):
        order = np.argsort(found, kind="stable")
        at = np.minimum(np.searchsorted(found[order], wanted), len(order) - 1)
        is_found = found[order[at]] == wanted
        places[i, is_found] = order[at[is_found]]
    return places


def _ranks(order: np.ndarray, places: np.ndarray, count: int) -> np.ndarray:
    """Return the rank of each true row among the first ``count`` candidates, ranked by a copy.

    Parameters
    ----------
    order : ndarray of shape (n_queries, n_candidates), int64
        Places of the candidates, the best by the copy first.
    places : ndarray of shape (n_queries, n_true), int64
        As `_places` returns them.
    count : int

    Returns
    -------
    ranks : ndarray of shape (n_queries, n_true), int64
        From 0; beyond all candidates where it isn't among them.
    """
    rank_of_place = np.empty_like(order)
    np.put_along_axis(rank_of_place, order, np.cumsum(order < count, axis=1) - 1, axis=1)
    reached = np.minimum(places, order.shape[1] - 1)
    ranks = np.take_along_axis(rank_of_place, reached, axis=1)
    found: np.ndarray = np.where(places < count, ranks, np.iinfo(np.int64).max)
    return found
