"""Who does the work: this process, several processes, or a Dask cluster; the bytes are the same."""

from __future__ import annotations

import logging

from .contract import Executor
from .cores import available_cores, workers_within
from .dask import DaskExecutor
from .processes import ProcessExecutor
from .serial import SerialExecutor

__all__ = ["EXECUTORS", "Executor", "make_executor"]

EXECUTORS = ("serial", "processes", "dask")
logger = logging.getLogger("voxseek")


def make_executor(
    name: str,
    n_workers: int | None = None,
    scheduler: str | None = None,
    worker_bytes: int | None = None,
    memory_bytes: int | None = None,
) -> Executor:
    """Return an executor; enter it with ``with``, so that its workers end with the block.

    Parameters
    ----------
    name : {"serial", "processes", "dask"}
    n_workers : int or None
        Worker processes on this machine; None: one a core. Not with ``scheduler``, whose workers
        are there already, nor with ``"serial"``.
    scheduler : str or None
        Of ``"dask"``: the address of a running scheduler (``tcp://host:port``), or the path of the
        scheduler file that it wrote. None: a cluster of processes on this machine.
    worker_bytes, memory_bytes : int or None
        What a worker may need, and what all workers of this machine may need together. Fewer
        workers are started where it takes that, at least one.

    Raises
    ------
    ValueError
        If the name is unknown, or an argument doesn't go with it.
    MissingExtraError
        If Dask is wanted and not installed.
    """
    if name not in EXECUTORS:
        raise ValueError(f"executor is {name!r}, expected one of {', '.join(EXECUTORS)}")
    if n_workers is not None and n_workers < 1:
        raise ValueError(f"n_workers is {n_workers}, expected at least 1")
    if scheduler is not None and name != "dask":
        raise ValueError(f"scheduler is {scheduler!r}, and only the dask executor has one")
    if name == "serial":
        return SerialExecutor()
    if scheduler is not None:
        if n_workers is not None:
            raise ValueError(
                f"n_workers is {n_workers}, and the scheduler {scheduler} has its own workers; "
                f"leave one of them out"
            )
        return DaskExecutor(scheduler=scheduler)
    wanted = available_cores() if n_workers is None else n_workers
    n_workers = workers_within(wanted, worker_bytes, memory_bytes)
    if n_workers < wanted:
        logger.info(
            "%d worker(s) instead of %d: each may need %d MiB of the %d MiB allowed",
            n_workers,
            wanted,
            (worker_bytes or 0) >> 20,
            (memory_bytes or 0) >> 20,
        )
    return DaskExecutor(n_workers) if name == "dask" else ProcessExecutor(n_workers)
