"""SearchRequest: everything that one may ask of a search beside the queries themselves.

The command line, the server and the Python API fill in the same request, so that they mean the
same. It travels with the call; an engine has no state that a search changes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from index_builder.embeddings.space import EmbeddingSpace

from ..errors import SearchError

UNSAFE_FROM = 0.5  # LAION's own threshold of punsafe
WATERMARKED_FROM = 0.8  # and of pwatermark
DUPLICATE_FROM = 0.94  # cosine; clip-retrieval's threshold


@dataclass(frozen=True)
class SearchRequest:
    """What is asked of a search.

    Parameters
    ----------
    k : int
        Hits a query.
    breadth, n_candidates : int or None
        Effort of a query: how many lists are read (n_probe) or how many nodes of the graph are kept
        in view (ef_search), and how many candidates are ranked exactly. None: the smallest effort
        that the certificate found sufficient for ten hits, with more candidates in proportion for
        more hits, and more lists where a filter leaves few rows.
    where : str or None
        An SQL predicate over the metadata columns; only rows for which it is true are found.
    unsafe_from : float or None
        Rows whose ``punsafe`` is not below this are never found; None: they are. Without effect
        where the index has no such column.
    watermarked_from : float or None
        The same for ``pwatermark``.
    duplicate_from : float or None
        A hit whose vector has at least this cosine with that of a better hit is left out and
        counted as its duplicate; None: all are kept.
    excluded : ndarray of shape (m, width), or None
        Vectors of stimuli that must not be found: rows whose cosine with one of them is at least
        ``excluded_from`` are left out.
    excluded_from : float
    excluded_space : EmbeddingSpace or None
        Of ``excluded``, where it is known: it must be the index's.
    aesthetic_weight : float
        Hits are ordered by score + weight * aesthetic / 10, aesthetic being their metadata
        column; scores stay cosines.

    Raises
    ------
    SearchError
        If a number is out of range.
    """

    k: int = 16
    breadth: int | None = None
    n_candidates: int | None = None
    where: str | None = None
    unsafe_from: float | None = UNSAFE_FROM
    watermarked_from: float | None = None
    duplicate_from: float | None = None
    excluded: np.ndarray | None = field(default=None, compare=False)
    excluded_from: float = DUPLICATE_FROM
    excluded_space: EmbeddingSpace | None = None
    aesthetic_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.k < 1:
            raise SearchError(f"k is {self.k}, expected at least 1.")
        for name in ("unsafe_from", "watermarked_from"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise SearchError(f"{name} is {value}, expected a probability from 0 to 1.")
        for name in ("duplicate_from", "excluded_from"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise SearchError(f"{name} is {value}, expected a cosine above 0, at most 1.")
        if not np.isfinite(self.aesthetic_weight):
            raise SearchError(f"aesthetic_weight is {self.aesthetic_weight}, expected a number.")
