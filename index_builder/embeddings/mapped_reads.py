"""Reads of mapped files: in turn while the pages are in memory, side by side where a disk has them.

A few rows that are in memory are copied before a thread would have woken for them; a disk is fast
only when it is asked for several pages at once. Which of the two it is nobody knows before, and the
system tells after: it counts the faults for which it had to read.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

if sys.platform == "linux":
    from resource import RUSAGE_THREAD, getrusage

T = TypeVar("T")


def read_mapped(
    read: Callable[[int, int], T],
    n: int,
    threads: Callable[[], Executor],
    *,
    n_threads: int,
    n_first: int,
) -> list[T]:
    """Call ``read(start, stop)`` for pieces of 0 to ``n``, in threads once one had to wait.

    Parameters
    ----------
    read : callable
        Pieces must not meet: what it writes is of its own piece.
    n : int
    threads : callable
        Returns those that do the rest; called only where there is one.
    n_threads : int
        Pieces that the rest is cut into.
    n_first : int
        Length of the first piece; each is twice as long as the one before. 0: all is the rest.

    Returns
    -------
    results : list
        What was returned for each piece, in their order.

    Raises
    ------
    Exception
        The first that was raised, in the order of the pieces.
    """
    results = []
    start, step = 0, n_first
    n_before = _n_pages_read()
    while step and start < n and _n_pages_read() == n_before:
        stop = min(start + step, n)
        results.append(read(start, stop))
        start, step = stop, 2 * step
    if start < n:
        starts = range(start, n, -(-(n - start) // n_threads))
        results.extend(threads().map(read, starts, [*starts[1:], n]))
    return results


def _n_pages_read() -> float:
    """Return how many pages this thread waited for so far; NaN, like no other, where nobody counts.

    Major faults (getrusage(2)); by thread only Linux counts them.
    """
    return getrusage(RUSAGE_THREAD).ru_majflt if sys.platform == "linux" else math.nan
