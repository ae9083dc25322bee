"""Cores and memory of this machine, shared out among workers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def available_cores() -> int:
    """Return the cores that this process may run on: on a cluster, those of its job."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def workers_within(n_workers: int, worker_bytes: int | None, memory_bytes: int | None) -> int:
    """Return the most workers, up to ``n_workers``, that need no more than the memory; at least 1.

    Parameters
    ----------
    n_workers : int
    worker_bytes, memory_bytes : int or None
        None: no limit.
    """
    if not worker_bytes or memory_bytes is None:
        return n_workers
    return max(1, min(n_workers, memory_bytes // worker_bytes))


def worker_environment(n_workers: int) -> dict[str, str]:
    """Return what the environment of a worker adds: its share of the cores, and no bars.

    A lower number of threads that is set already stays. It must stand before the worker loads
    NumPy, whose BLAS reads it once.
    """
    share = max(1, available_cores() // n_workers)
    added = {"TQDM_DISABLE": "1"}
    for name in _THREAD_VARIABLES:
        found = os.environ.get(name, "")
        added[name] = str(min(share, int(found)) if found.isdigit() else share)
    return added


@contextmanager
def environment_with(added: dict[str, str]) -> Iterator[None]:
    """Add to the environment that new processes inherit; leave it as it was afterwards."""
    before = dict(os.environ)
    os.environ.update(added)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)
