"""Service: what all routes ask: indexes and runs by name, searches within the limits, threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np

from index_builder.cosine import has_direction

from ..searching.request import SearchRequest
from .batching import Batcher
from .finding import Found, find
from .metrics import Metrics
from .problems import Problem, Secrets
from .served import ServedIndex, ServedRun
from .settings import ServerSettings

T = TypeVar("T")

_N_THREADS = 4
_CANDIDATES_A_HIT = 100  # of the most hits a query may have


class Service:
    """The state of a server, made by `create_app`.

    Parameters
    ----------
    settings : ServerSettings
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings, self.limits = settings, settings.limits
        self.metrics = Metrics()
        self.hidden = Secrets(_paths(settings))
        self._threads = ThreadPoolExecutor(_N_THREADS, thread_name_prefix="serve")
        # One text or picture after the other: an encoder uses all cores itself.
        self._encoder_thread = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._batchers = {
            name: Batcher(
                partial(find, served.engine),
                most_waiting=self.limits.most_waiting,
                most_queries=served.engine.batch_queries(SearchRequest()),
                observe=partial(self.metrics.count_batch, name),
            )
            for name, served in settings.indexes.items()
        }
        for name, batcher in self._batchers.items():
            self.metrics.watch(name, partial(getattr, batcher, "n_waiting"))

    def index(self, name: str | None) -> ServedIndex:
        """Return an index by its name, or the only one.

        Raises
        ------
        Problem
            404 with the names there are; 422 if none is named and there are several.
        """
        indexes = self.settings.indexes
        if name is None:
            if len(indexes) == 1:
                return next(iter(indexes.values()))
            raise Problem(422, "no_index", f"say which index; there are {', '.join(indexes)}.")
        if name not in indexes:
            raise Problem(
                404,
                "unknown_index",
                f"there is no index {name[:100]!r}; there are {', '.join(indexes)}.",
            )
        return indexes[name]

    def run(self, name: str) -> ServedRun:
        """Return a run by its name.

        Raises
        ------
        Problem
            404 with the names there are.
        """
        runs = self.settings.runs
        if name not in runs:
            known = f"there are {', '.join(runs)}" if runs else "none is served"
            raise Problem(404, "unknown_run", f"there is no run {name[:100]!r}; {known}.")
        return runs[name]

    async def search(
        self,
        served: ServedIndex,
        vectors: np.ndarray,
        request: SearchRequest,
        columns: Sequence[str],
    ) -> Found:
        """Return the hits of queries, searched together with those of other requests.

        Parameters
        ----------
        served : ServedIndex
        vectors : ndarray of shape (n, width), float32, each with a direction
        request : SearchRequest
        columns : sequence of str
            Metadata columns, known ones.

        Raises
        ------
        Problem
            422 if that is more than a request may ask for, 503 if too many wait.
        """
        self.check_size(len(vectors), request)
        return await self._batchers[served.name].submit(vectors, request, tuple(columns))

    def check_size(self, n_queries: int, request: SearchRequest) -> None:
        """Refuse what is more than a request may ask for, before any of it is worked on."""
        limits = self.limits
        for what, number, most in (
            ("k", request.k, limits.most_k),
            ("queries", n_queries, limits.most_queries),
            ("k times queries", n_queries * request.k, limits.most_hits),
            ("n_candidates", request.n_candidates or 0, _CANDIDATES_A_HIT * limits.most_k),
        ):
            if number > most:
                raise Problem(
                    422, "too_many", f"{what}: {number}, expected at most {most} in one request."
                )
        if not n_queries:
            raise Problem(422, "no_queries", "there are no queries; expected at least one.")

    def columns(self, served: ServedIndex, wanted: Sequence[str] | None) -> tuple[str, ...]:
        """Return metadata columns, all for None.

        Raises
        ------
        Problem
            422 if the index has no such column.
        """
        known = served.engine.columns
        if wanted is None:
            return known
        for name in wanted:
            if name not in known:
                raise Problem(
                    422,
                    "unknown_column",
                    f"index {served.name} has no column {name[:100]!r}; it has "
                    f"{', '.join(known) or 'none at all'}.",
                )
        return tuple(dict.fromkeys(wanted))

    def check_rows(self, served: ServedIndex, rows: np.ndarray) -> None:
        """Refuse row numbers (n,), int64, with one among them that isn't there any longer."""
        alive = served.is_alive(rows)
        if not alive.all():
            row = int(rows[np.argmin(alive)])
            raise Problem(404, "unknown_row", f"index {served.name} has no row {row}.")

    async def in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a function that takes its time, beside the event loop."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, function, *arguments)

    async def encode(self, function: Callable[[T], np.ndarray], queries: T) -> np.ndarray:
        """Call an encoder, one call at a time."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._encoder_thread, function, queries)

    def close(self) -> None:
        """End all threads, each after what it is at."""
        for batcher in self._batchers.values():
            batcher.close()
        for threads in (self._threads, self._encoder_thread):
            threads.shutdown(wait=True, cancel_futures=True)


def check_vectors(served: ServedIndex, vectors: np.ndarray) -> np.ndarray:
    """Return queries (n, width) as float32, found to be of the index's width, and directions.

    Raises
    ------
    Problem
        422; names the first query that isn't.
    """
    if vectors.shape[1] != served.engine.space.width:
        raise wrong_width(served, vectors.shape[1], "each query has")
    with np.errstate(over="ignore"):  # what overflows becomes infinite, an error below
        rows = vectors.astype(np.float32, copy=False)
    sound = has_direction(rows)
    if not sound.all():
        raise Problem(
            422,
            "no_direction",
            f"query {int(np.argmin(sound))} is zero or holds NaN or infinite numbers; a query "
            f"needs a direction.",
        )
    return rows


def wrong_width(served: ServedIndex, n_numbers: int, what: str) -> Problem:
    """Return the problem of queries that aren't of the index's space."""
    space = served.engine.space
    return Problem(
        422,
        "wrong_width",
        f"{what} {n_numbers} numbers, and index {served.name} holds {space}: {space.width}.",
    )


def _paths(settings: ServerSettings) -> list[tuple[str, str]]:
    """Return the paths of what is served, with what stands for them in answers."""
    paths = []
    for name, served in settings.indexes.items():
        paths.append((served.engine.path, f"index {name}"))
        paths.extend(
            (folder.path, f"the embeddings of {name}")
            for folder in served.engine.embeddings.folders
        )
    return paths
