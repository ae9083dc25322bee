"""The one door to candidates: whatever nominates them, rows taken down are never among them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from .graph import Graph
from .inverted_file import InvertedFile
from .row_set import RowSet

if TYPE_CHECKING:
    from .planning import IndexPlan
    from .shards import Shard


class Nominator(Protocol):
    """What nominates rows for an exact ranking.

    Attributes
    ----------
    breadth_name : str
        What one may call its effort: "n_probe", lists that are read, or "ef_search", nodes in view.
    """

    breadth_name: str

    @property
    def n_codes(self) -> int:
        """Rows that are alive in the shards."""

    @property
    def ram_bytes(self) -> int:
        """What it keeps in memory."""

    @property
    def most_breadth(self) -> int:
        """The breadth with which nothing is left out."""

    def breadths(self) -> list[int]:
        """Return breadths worth trying, rising."""

    def widened(self, breadth: int, share: float) -> int | None:
        """Return the breadth with which a share of the rows is found as surely as all of them.

        None: with that breadth it would look at as many rows as there are to be found.
        """

    def candidates(
        self,
        unit: np.ndarray,
        breadth: int,
        n_candidates: int,
        *,
        n_least: int,
        allowed: RowSet | None = None,
    ) -> np.ndarray:
        """Return rows that may be near each query, the most promising first.

        Parameters
        ----------
        unit : ndarray of shape (n_queries, width), float32, unit rows
        breadth : int
        n_candidates : int
        n_least : int
            A query for which fewer are found takes more breadth, until they are or there are no
            more.
        allowed : RowSet or None
            Rows that may be found; None: all.

        Returns
        -------
        rows : ndarray of shape (n_queries, n_candidates), int64
            Ties by smaller row; -1 where there are fewer.
        """

    def read_bytes(self, breadth: int) -> int:
        """Return about how many bytes of codes a query is compared with."""


def open_nominator(
    root: Path,
    plan: IndexPlan,
    shards: Sequence[Shard],
    *,
    tier: Literal["memory", "disk"] | None = None,
) -> Nominator | None:
    """Open the codes of an index; their checksums are the caller's business.

    Parameters
    ----------
    root : Path
        The index.
    plan : IndexPlan
    shards : sequence of Shard
    tier : {"memory", "disk"} or None
        Where lists are kept; None: as planned. Graphs are always in memory.

    Returns
    -------
    nominator : Nominator or None
        None where all rows are compared: the plan is flat.
    """
    if plan.code == "flat":
        return None
    if plan.code == "hnsw-sq8":
        return Graph.open(root, shards)
    return InvertedFile.open(root, shards, bits=plan.bits, tier=tier or plan.tier)


def nominate(
    nominator: Nominator,
    unit: np.ndarray,
    breadth: int,
    n_candidates: int,
    *,
    n_least: int,
    deleted: np.ndarray,
    allowed: RowSet | None = None,
) -> np.ndarray:
    """Return candidates as if the deleted rows had never been in the index.

    Parameters
    ----------
    nominator : Nominator
    unit, breadth, n_candidates, n_least
        As for `Nominator.candidates`; only rows that aren't deleted count.
    deleted : ndarray of shape (m,), int64, rising
    allowed : RowSet or None
        Rows that may be found, none of them deleted; None: all that aren't deleted.

    Returns
    -------
    rows : ndarray of shape (n_queries, n_candidates), int64
        The most promising first; -1 where there are fewer.

    Notes
    -----
    A query whose candidates were deleted in part is asked again, for twice as many, until it has
    ``n_candidates`` or the breadth shows no more; and while it has fewer than ``n_least``, with
    more breadth, until all rows were seen.
    """
    if not nominator.n_codes:  # all were taken down, and merged away
        return np.full((len(unit), n_candidates), -1, np.int64)
    if allowed is not None or not len(deleted):
        return nominator.candidates(unit, breadth, n_candidates, n_least=n_least, allowed=allowed)
    rows = np.full((len(unit), n_candidates), -1, np.int64)
    unfilled = np.arange(len(unit))
    n_asked, n_sought = n_candidates, n_least
    while len(unfilled):
        found = nominator.candidates(unit[unfilled], breadth, n_asked, n_least=n_sought)
        is_alive = (found >= 0) & ~is_among(found, deleted)
        order = np.argsort(~is_alive, axis=1, kind="stable")[:, :n_candidates]
        kept = np.take_along_axis(np.where(is_alive, found, -1), order, axis=1)
        rows[unfilled] = kept
        n_alive = is_alive.sum(axis=1)
        n_found = (found >= 0).sum(axis=1)
        has_all = (n_alive >= n_candidates) | (n_found == nominator.n_codes)
        has_enough = (n_found < n_asked) & (n_alive >= n_least)
        unfilled = unfilled[~(has_all | has_enough)]
        n_asked = max(n_candidates, min(2 * n_asked, nominator.n_codes))
        n_sought = min(2 * n_sought, n_asked)
    return rows


def is_among(rows: np.ndarray, rising: np.ndarray) -> np.ndarray:
    """Tell which rows, of any shape, are among others (m,), rising, by bisection."""
    if not len(rising):
        return np.zeros(rows.shape, bool)
    places = np.minimum(np.searchsorted(rising, rows), len(rising) - 1)
    is_same: np.ndarray = rising[places] == rows
    return is_same
