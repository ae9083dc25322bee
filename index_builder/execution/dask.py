"""Tasks on a Dask cluster: one of this machine, or one that runs already, for example on SLURM.

The one home of Dask, and of what `workers` needs of it.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from ..embeddings.errors import MissingExtraError
from ..embeddings.progress import track
from ..errors import SchedulerError
from .contract import (
    ATTEMPTS,
    Outcome,
    Result,
    Task,
    attempt,
    final_error,
    task_failed,
    task_key,
)
from .cores import environment_with, worker_environment

SECONDS_TO_CONNECT = 30
logger = logging.getLogger("voxseek")


class DaskExecutor:
    """Runs tasks on the workers of a Dask scheduler; see `Executor`.

    A task's key is its function and the fingerprint of its fields. Results are fetched and let go
    one by one, so a worker that is lost later doesn't take finished tasks with it.

    Parameters
    ----------
    n_workers : int
        Processes of a cluster on this machine; they share its cores and end with the ``with``
        block.
    scheduler : str or None
        Address or scheduler file of a cluster that runs already, and goes on running.

    Raises
    ------
    MissingExtraError
        If ``distributed`` is not installed.
    """

    def __init__(self, n_workers: int = 1, scheduler: str | None = None) -> None:
        self._distributed = load_distributed("the dask executor")
        self.n_workers = n_workers
        self._scheduler = scheduler
        self._client: Any = None
        self._opened = ExitStack()

    def run(
        self, function: Callable[[Task], Result], tasks: Iterable[Task], *, label: str
    ) -> list[Result]:
        """Return the result of each task, in order.

        Raises
        ------
        SchedulerError
            If the scheduler can't be reached, or no longer.
        """
        chosen = list(tasks)
        if self._client is None:
            self._start()
        results: list[Any] = [None] * len(chosen)
        finished = self._finished(function, chosen)
        for place, result in track(finished, label=label, total=len(chosen), unit="task"):
            results[place] = result
        return results

    def _finished(
        self, function: Callable[[Task], Result], tasks: list[Task]
    ) -> Iterator[tuple[int, Result]]:
        """Yield place and result of each task as it is finished."""
        if not tasks:
            return
        keys = [task_key(function, task) for task in tasks]
        place_of = {key: place for place, key in enumerate(keys)}
        if len(place_of) < len(tasks):
            raise ValueError(
                f"{len(tasks)} tasks, of which {len(tasks) - len(place_of)} come twice"
            )
        futures = self._client.map(
            _attempt, [function] * len(tasks), tasks, key=keys, retries=ATTEMPTS - 1
        )
        waiting = self._distributed.as_completed(
            futures, loop=self._client.loop, with_results=True, raise_errors=False
        )
        held = dict(zip(keys, futures, strict=True))
        del futures
        try:
            for future, outcome in waiting:
                held.pop(future.key).release()
                place = place_of[future.key]
                yield place, cast(Result, self._result(function, tasks[place], outcome))
        except BaseException:
            if self._client.status == "running":
                self._client.cancel(list(held.values()))
            raise

    def _result(self, function: Callable[[Task], Any], task: Task, outcome: Any) -> Any:
        if isinstance(outcome, Outcome):
            if outcome.error is not None:
                raise final_error(function, task, outcome.error, 1)
            return outcome.result
        if isinstance(outcome, tuple):  # of type, exception, traceback, where the task failed
            error = outcome[1]
            if isinstance(error, self._distributed.KilledWorker):
                reason = "the worker that ran it was lost (too little memory?)"
                raise task_failed(function, task, error.allowed_failures + 1, reason) from error
            raise final_error(function, task, error, ATTEMPTS)
        raise scheduler_lost(self._address, outcome)

    def _start(self) -> None:
        """Connect to the scheduler, or to a new cluster of this machine."""
        if self._scheduler is None:
            self._client = self._opened.enter_context(self._local_client())
        else:
            self._client = self._opened.enter_context(connect(self._distributed, self._scheduler))
        self._address = self._client.scheduler.address
        n_workers = len(self._client.scheduler_info(n_workers=-1)["workers"])
        logger.info("Dask scheduler %s has %d worker(s)", self._address, n_workers)

    def _local_client(self) -> Any:
        import dask

        folder = self._opened.enter_context(tempfile.TemporaryDirectory(prefix="voxseek-dask-"))
        self._opened.enter_context(without_logs())
        # Dask sets variables of this process when it starts a worker, and starts a lost one again.
        self._opened.enter_context(environment_with({"DASK_LOGGING__DISTRIBUTED": "critical"}))
        environment = worker_environment(self.n_workers)
        settings = {
            "distributed.scheduler.allowed-failures": ATTEMPTS - 1,
            "distributed.scheduler.worker-saturation": 1.0,
            "distributed.scheduler.http.routes": [],
            "temporary-directory": folder,
        }
        with environment_with(environment), dask.config.set(settings):
            cluster = self._distributed.LocalCluster(
                n_workers=self.n_workers,
                threads_per_worker=1,
                processes=True,
                memory_limit=0,  # the plan bounds it; Dask would count mapped files too
                host="127.0.0.1",
                scheduler_port=0,
                dashboard_address="127.0.0.1:0",  # None would be port 8787
                scheduler_kwargs={"dashboard": False},
                local_directory=folder,
                silence_logs=logging.CRITICAL,
                env=environment,
            )
        self._opened.enter_context(cluster)
        return self._distributed.Client(cluster, set_as_default=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client = None
        self._opened.close()


def load_distributed(purpose: str) -> Any:
    """Return the module ``distributed``, or raise `MissingExtraError`."""
    try:
        import distributed
    except ImportError as error:
        raise MissingExtraError("distributed", "dask", purpose) from error
    return distributed


def connect(distributed: Any, scheduler: str) -> Any:
    """Return a client of a scheduler that runs already.

    Parameters
    ----------
    distributed : module
    scheduler : str
        Its address, or the scheduler file that it wrote.

    Raises
    ------
    SchedulerError
        If it can't be reached.
    """
    try:
        return distributed.Client(
            address=_address_of(scheduler), timeout=SECONDS_TO_CONNECT, set_as_default=False
        )
    except (OSError, ValueError, LookupError) as error:
        raise SchedulerError(
            f"no Dask scheduler answers at {scheduler} within {SECONDS_TO_CONNECT} s: "
            f"{error or type(error).__name__}. Start one with `dask scheduler`, or leave "
            f"--scheduler out to run on this machine."
        ) from error


def scheduler_lost(address: str, sign: Any) -> SchedulerError:
    """Return the error of a scheduler that no longer answers, and by what sign that was seen."""
    return SchedulerError(
        f"the Dask scheduler {address} went away or dropped the work ({sign}). "
        f"Finished work is kept: start it and run the command again."
    )


def _address_of(scheduler: str) -> str:
    """Return an address as it is, or the one in a scheduler file, once there is the file."""
    if "://" in scheduler:
        return scheduler
    deadline = time.monotonic() + SECONDS_TO_CONNECT
    while not os.path.exists(scheduler) and time.monotonic() < deadline:
        time.sleep(0.1)
    return str(json.loads(Path(scheduler).read_bytes())["address"])


def _attempt(function: Callable[[Task], Result], task: Task) -> Outcome[Result]:
    """Run a task on a worker; raise what may pass, so that the scheduler has it tried elsewhere."""
    outcome = attempt(function, task).sendable()
    if outcome.error is not None and outcome.may_pass:
        raise outcome.error
    return outcome


@contextmanager
def without_logs() -> Iterator[None]:
    """Silence Dask in this process: what matters comes as an exception."""
    import dask

    noisy = logging.getLogger("distributed")
    level = noisy.level
    noisy.setLevel(logging.CRITICAL)
    try:
        # What is sent with a task, such as a batch of queries, is as large as it has to be.
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 GiB"}):
            yield
    finally:
        noisy.setLevel(level)
