"""Batching: requests that wait while a search runs go together in the next one.

A search of many queries reads each list once and pays the calls once, so the busier the server, the
larger its batches and the cheaper each query. An idle server starts at once: nothing is gained by
waiting for company that may not come. A request of many queries goes in pieces, each behind what
waited before it, so that it delays a small one by a piece and not by the whole.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ..searching.request import SearchRequest
from .finding import Found
from .problems import Problem

Columns = tuple[str, ...]
Find = Callable[[np.ndarray, SearchRequest, Columns], Found]
Observe = Callable[[int, float], None]

RETRY_AFTER_SECONDS = 1


@dataclass(frozen=True)
class _Piece:
    vectors: np.ndarray
    request: SearchRequest
    columns: Columns
    answer: asyncio.Future[Found]

    @property
    def key(self) -> tuple[SearchRequest, Columns]:
        return self.request, self.columns


class Batcher:
    """The searches of one index, one batch at a time, in a thread of its own.

    Parameters
    ----------
    find : callable
        ``find(vectors, request, columns)``; called by the thread.
    most_waiting : int
        Pieces that wait; another one is refused.
    most_queries : int
        Queries a batch.
    observe : callable
        Told of each batch: its queries, and the seconds it took.
    """

    def __init__(
        self,
        find: Find,
        *,
        most_waiting: int,
        most_queries: int,
        observe: Observe = lambda n_queries, seconds: None,
    ) -> None:
        self._find = find
        self._most_waiting, self._most_queries = most_waiting, most_queries
        self._observe = observe
        self._waiting: deque[_Piece] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="search")
        self._is_busy = False

    @property
    def n_waiting(self) -> int:
        """Pieces that wait for the running batch to end."""
        return len(self._waiting)

    async def submit(self, vectors: np.ndarray, request: SearchRequest, columns: Columns) -> Found:
        """Return what is found for queries, together with those of others.

        Parameters
        ----------
        vectors : ndarray of shape (n, width), float32, each with a direction
        request : SearchRequest
        columns : tuple of str
            Metadata columns of the hits.

        Raises
        ------
        Problem
            503 if too many wait already.
        """
        found = []
        for start in range(0, len(vectors), self._most_queries):
            piece = vectors[start : start + self._most_queries]
            found.append(await self._submit_piece(piece, request, columns))
        return found[0] if len(found) == 1 else Found.joined(found)

    def close(self) -> None:
        """End the thread after its batch."""
        self._thread.shutdown(wait=True)

    async def _submit_piece(
        self, vectors: np.ndarray, request: SearchRequest, columns: Columns
    ) -> Found:
        self._drop_abandoned()
        if len(self._waiting) >= self._most_waiting:
            raise Problem(
                503,
                "busy",
                f"{self._most_waiting} requests wait already; ask again in a moment.",
                {"Retry-After": str(RETRY_AFTER_SECONDS)},
            )
        answer: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Piece(vectors, request, columns, answer))
        self._start()
        return await answer

    def _drop_abandoned(self) -> None:
        """Forget pieces that nobody waits for any longer: their time ran out."""
        if any(piece.answer.done() for piece in self._waiting):
            self._waiting = deque(piece for piece in self._waiting if not piece.answer.done())

    def _start(self) -> None:
        if self._is_busy:
            return
        batch = self._take()
        if not batch:
            return
        self._is_busy = True
        self._thread.submit(self._search, batch, asyncio.get_running_loop())

    def _take(self) -> list[_Piece]:
        """Take the piece that waits longest, and all that go with it while there is room."""
        self._drop_abandoned()
        batch: list[_Piece] = []
        left: deque[_Piece] = deque()
        room = self._most_queries
        while self._waiting:
            piece = self._waiting.popleft()
            if not batch or (piece.key == batch[0].key and len(piece.vectors) <= room):
                batch.append(piece)
                room -= len(piece.vectors)
            else:
                left.append(piece)
        self._waiting = left
        return batch

    def _search(self, batch: Sequence[_Piece], loop: asyncio.AbstractEventLoop) -> None:
        """Search, in the thread, and tell the loop."""
        first = batch[0]
        try:
            vectors = np.concatenate([piece.vectors for piece in batch])
            started = time.perf_counter()
            found = self._find(vectors, first.request, first.columns)
            self._observe(len(vectors), time.perf_counter() - started)
            parts = found.split([len(piece.vectors) for piece in batch])
        except BaseException as error:  # a panic of a library, too, must not end all searches
            loop.call_soon_threadsafe(self._finish, batch, error)
        else:
            loop.call_soon_threadsafe(self._finish, batch, parts)

    def _finish(self, batch: Sequence[_Piece], outcome: Sequence[Found] | BaseException) -> None:
        self._is_busy = False
        for i, piece in enumerate(batch):
            if piece.answer.done():
                continue
            if isinstance(outcome, BaseException):
                piece.answer.set_exception(outcome)
            else:
                piece.answer.set_result(outcome[i])
        self._start()
