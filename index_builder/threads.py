"""Threads: work cut into pieces where NumPy uses one alone, and pools that survive a fork."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

from .execution.cores import available_cores


class Pool:
    """Threads that a forked child makes anew: those of its parent don't live on in it.

    Parameters
    ----------
    n_threads : int
    initializer : callable or None
        Called with ``arguments`` by each thread before its first task.
    arguments
    """

    def __init__(
        self, n_threads: int, initializer: Callable[..., None] | None = None, *arguments: Any
    ) -> None:
        self._settings: tuple[Any, ...] = n_threads, "", initializer, arguments
        self._process = -1

    @property
    def threads(self) -> ThreadPoolExecutor:
        """The threads of this process."""
        if self._process != os.getpid():
            self._threads = ThreadPoolExecutor(*self._settings)
            self._process = os.getpid()
        return self._threads


def in_threads(function: Callable[[int, int], None], n: int, step: int) -> None:
    """Call ``function(start, stop)`` for pieces of 0 to ``n``, at most ``step`` long, side by side.

    Parameters
    ----------
    function : callable
        Pieces must not meet: what it writes is of its own piece.
    n, step : int
    """
    pieces = [(start, min(start + step, n)) for start in range(0, n, step)]
    pool = _pool(os.getpid()) if len(pieces) > 1 else None
    if pool is None:
        for piece in pieces:
            function(*piece)
        return
    for future in [pool.submit(function, *piece) for piece in pieces]:
        future.result()


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor | None:
    """Return the threads of a process, as many as its share of the cores."""
    share = os.environ.get("OMP_NUM_THREADS", "")
    n_threads = min(available_cores(), int(share)) if share.isdigit() else available_cores()
    return ThreadPoolExecutor(n_threads) if n_threads > 1 else None
