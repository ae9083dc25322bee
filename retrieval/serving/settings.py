"""What a server is told once, when it starts: limits, the token, and what it may fetch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from .served import ServedIndex, ServedRun

MOST_K = 10_000
MOST_QUERIES = 1024
MOST_BODY_BYTES = 8 << 20
MOST_WAITING = 64
TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class Limits:
    """What a request may cost.

    Parameters
    ----------
    most_k : int
        Hits a query.
    most_queries : int
        Queries a request.
    most_hits : int
        Hits a request, of all its queries: their metadata stand in memory together.
    most_body_bytes : int
    most_waiting : int
        Requests that wait for the searches of an index; another one is refused with 503.
    timeout_seconds : float
        For a request to arrive, for its answer to be found, and for the answer to be taken.
    """

    most_k: int = MOST_K
    most_queries: int = MOST_QUERIES
    most_hits: int = 1 << 18
    most_body_bytes: int = MOST_BODY_BYTES
    most_waiting: int = MOST_WAITING
    timeout_seconds: float = TIMEOUT_SECONDS

    def __post_init__(self) -> None:
        for name in ("most_k", "most_queries", "most_hits", "most_body_bytes", "most_waiting"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1.")
        if not self.timeout_seconds > 0:
            raise ValueError(f"timeout_seconds is {self.timeout_seconds}, expected more than 0.")

    @property
    def most_in_hand(self) -> int:
        """Requests that are read, waiting or being answered at once, of all kinds."""
        return 4 * self.most_waiting + 64


@dataclass(frozen=True)
class ServerSettings:
    """What a server serves, and under which rules.

    Parameters
    ----------
    indexes : mapping of str to ServedIndex
        At least one; in the order of ``/api/indexes``.
    runs : mapping of str to ServedRun
    limits : Limits
    token : str or None
        What ``Authorization: Bearer`` must say; None: nobody is asked.
    is_loopback : bool
        Whether only this machine can connect. Then a request must name this machine in ``Host``
        unless there is a token: a page of another site can't reach the server by a name of its own.
    aesthetic_vectors : mapping of int to ndarray of shape (width,), or None
        Vectors of the ratings 0 to 9 that clip-retrieval's ``aesthetic_score`` adds to a query;
        None: the field is without effect.
    may_fetch : bool
        Whether ``image_url`` is fetched.
    """

    indexes: Mapping[str, ServedIndex]
    runs: Mapping[str, ServedRun] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    token: str | None = None
    is_loopback: bool = True
    aesthetic_vectors: Mapping[int, np.ndarray] | None = None
    may_fetch: bool = False

    def __post_init__(self) -> None:
        if not self.indexes:
            raise ValueError("indexes is empty, expected at least one.")
