"""DaskWorkers: the workers of a cluster, each asked for what it keeps.

A `DaskExecutor` has the scheduler choose who runs a task, and waits for all of them. Here who asks
chooses, and goes on with what has come.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from types import TracebackType
from typing import Any, Self

from .contract import Outcome, Result, Task, attempt
from .dask import SECONDS_TO_CONNECT, connect, load_distributed, scheduler_lost, without_logs

_SECONDS_BETWEEN_LOOKS = 0.02


class DaskWorkers:
    """The workers of a Dask scheduler that runs already, each asked for what it keeps.

    Parameters
    ----------
    scheduler : str
        Its address, or the scheduler file that it wrote.

    Raises
    ------
    MissingExtraError
        If ``distributed`` is not installed.
    SchedulerError
        If the scheduler can't be reached.
    """

    def __init__(self, scheduler: str) -> None:
        self._distributed = load_distributed("a search by many machines")
        with ExitStack() as opened:
            opened.enter_context(without_logs())
            self._client = opened.enter_context(connect(self._distributed, scheduler))
            self._opened = opened.pop_all()
        self.address: str = self._client.scheduler.address

    def addresses(self, seconds: float = SECONDS_TO_CONNECT) -> tuple[str, ...]:
        """Return the addresses of the workers that are there now, in increasing order.

        Parameters
        ----------
        seconds : float
            For the scheduler to answer.

        Raises
        ------
        SchedulerError
            If it doesn't.
        """
        status = self._client.status
        if status != "running":
            raise scheduler_lost(self.address, status)
        try:
            found = self._client.sync(self._client.scheduler.identity, callback_timeout=seconds)
        except (OSError, RuntimeError) as error:
            raise scheduler_lost(self.address, error or type(error).__name__) from error
        workers = found["workers"].items()
        return tuple(sorted(name for name, facts in workers if facts["status"] == "running"))

    def keep(self, worker: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Have a worker make a value and keep it as long as the reference is kept here.

        Returns
        -------
        reference
            For `Questions.ask`. The value stays where it is.
        """
        return self._submit(worker, function, *arguments)

    def questions(self) -> Questions:
        """Return a round of questions; enter it with ``with``."""
        waiting = self._distributed.as_completed(
            loop=self._client.loop, with_results=True, raise_errors=False
        )
        return Questions(self, waiting)

    def close(self) -> None:
        """Leave the scheduler and its workers, which go on."""
        self._opened.close()

    def _submit(self, worker: str, function: Callable[..., Any], *arguments: Any) -> Any:
        key = f"voxseek-{function.__name__}-{uuid.uuid4().hex}"
        return self._client.submit(function, *arguments, key=key, workers=[worker], pure=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Questions:
    """Tasks, each for one worker, whose outcomes are taken as they come; of `DaskWorkers`.

    A task is tried once. One of a worker that is lost has no outcome: who asks looks which workers
    are there, and asks another. What isn't answered when the ``with`` block ends is dropped.
    """

    def __init__(self, workers: DaskWorkers, waiting: Any) -> None:
        self._workers, self._waiting = workers, waiting
        self._asked: dict[str, Any] = {}
        self._name_of: dict[str, str] = {}

    def ask(
        self, name: str, worker: str, function: Callable[..., Any], task: Any, *kept: Any
    ) -> None:
        """Have a worker run ``function(task, *values)``.

        Parameters
        ----------
        name : str
            Of the question; one that is asked again replaces the one before.
        worker : str
            Its address.
        function : callable
            Of a module.
        task : frozen dataclass
        kept
            References of `DaskWorkers.keep` of the same worker, and plain values.
        """
        self.drop(name)
        future = self._workers._submit(worker, _answer, function, task, *kept)
        self._asked[name] = future
        self._name_of[future.key] = name
        self._waiting.add(future)

    def drop(self, name: str) -> None:
        """Wait no longer for an answer, if it was asked for."""
        future = self._asked.pop(name, None)
        if future is not None:
            del self._name_of[future.key]
            future.release()

    def outcomes(self, seconds: float) -> list[tuple[str, Outcome[Any]]]:
        """Return what has come, by name; where that is nothing, wait for it so long at most.

        Raises
        ------
        SchedulerError
            If the scheduler went away.
        """
        end = time.monotonic() + seconds
        while True:
            batch = self._waiting.next_batch(block=False)
            named = [(self._name_of.get(future.key), found) for future, found in batch]
            outcomes = [(name, self._outcome(found)) for name, found in named if name is not None]
            for name, _ in outcomes:
                self.drop(name)
            left = end - time.monotonic()
            if outcomes or left <= 0:
                return outcomes
            with self._waiting.thread_condition:
                self._waiting.thread_condition.wait(min(left, _SECONDS_BETWEEN_LOOKS))

    def _outcome(self, found: Any) -> Outcome[Any]:
        if isinstance(found, Outcome):
            return found
        if isinstance(found, tuple):  # of type, exception, traceback: not of the task itself
            killed = self._workers._distributed.KilledWorker
            return Outcome(error=found[1], may_pass=isinstance(found[1], killed))
        if self._workers._client.status != "running":
            raise scheduler_lost(self._workers.address, found)
        return Outcome(error=ConnectionError(f"the task was dropped: {found}"), may_pass=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in list(self._asked):
            self.drop(name)


def _answer(function: Callable[..., Result], task: Task, *values: Any) -> Outcome[Result]:
    """Run a task with values that its worker keeps, once."""

    @wraps(function)
    def bound(task: Task) -> Result:
        return function(task, *values)

    return attempt(bound, task).sendable()
