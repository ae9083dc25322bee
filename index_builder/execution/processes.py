"""Tasks in processes of this machine, each process with its own pipe.

`concurrent.futures.ProcessPoolExecutor` breaks as a whole when one process is killed, and doesn't
say which task that process had. Here a lost process costs its own task alone, and is replaced.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing import connection, get_context, parent_process
from types import FrameType, TracebackType
from typing import Any, Self, cast

from ..embeddings.progress import track
from .contract import ATTEMPTS, Outcome, Result, Task, attempt, final_error, task_failed
from .cores import environment_with, worker_environment

_SECONDS_TO_END = 5.0  # that a worker has to clean up after SIGTERM
# A fork would copy the locks of OpenMP and of other threads, in whatever state they are.
_CONTEXT = get_context("spawn")


class ProcessExecutor:
    """Runs tasks in ``n_workers`` processes, which share the cores; see `Executor`.

    Parameters
    ----------
    n_workers : int
        Processes are started when the first task needs them, and end with the ``with`` block, or
        when this process ends in whatever way.
    """

    def __init__(self, n_workers: int) -> None:
        self.n_workers = n_workers
        self._workers: list[_Worker] = []

    def run(
        self, function: Callable[[Task], Result], tasks: Iterable[Task], *, label: str
    ) -> list[Result]:
        """Return the result of each task, in order."""
        chosen = list(tasks)
        results: list[Any] = [None] * len(chosen)
        try:
            finished = self._finished(function, chosen)
            for place, result in track(finished, label=label, total=len(chosen), unit="task"):
                results[place] = result
        except BaseException:
            self._stop()
            raise
        return results

    def _finished(
        self, function: Callable[[Task], Result], tasks: list[Task]
    ) -> Iterator[tuple[int, Result]]:
        """Yield place and result of each task as it is finished."""
        waiting = deque((place, 1) for place in range(len(tasks)))
        idle = self._idle_workers(min(self.n_workers, len(tasks)))
        busy: dict[connection.Connection, tuple[_Worker, int, int]] = {}
        while waiting or busy:
            while waiting and idle:
                worker = idle.pop()
                place, n_attempts = waiting.popleft()
                worker.give(function, tasks[place])
                busy[worker.pipe] = worker, place, n_attempts
            for pipe in connection.wait(list(busy)):
                worker, place, n_attempts = busy.pop(cast("connection.Connection", pipe))
                outcome = worker.take()
                if outcome is None:
                    reason = worker.end()
                    self._workers.remove(worker)
                    if n_attempts == ATTEMPTS:
                        raise task_failed(function, tasks[place], n_attempts, reason)
                    worker = self._start_worker()
                elif outcome.error is None:
                    yield place, cast(Result, outcome.result)
                elif not outcome.may_pass or n_attempts == ATTEMPTS:
                    raise final_error(function, tasks[place], outcome.error, n_attempts)
                idle.append(worker)
                if outcome is None or outcome.error is not None:
                    waiting.append((place, n_attempts + 1))

    def _idle_workers(self, n_workers: int) -> list[_Worker]:
        while len(self._workers) < n_workers:
            self._start_worker()
        return self._workers[:n_workers]

    def _start_worker(self) -> _Worker:
        worker = _Worker(worker_environment(self.n_workers))
        self._workers.append(worker)
        return worker

    def _stop(self) -> None:
        for worker in self._workers:
            worker.pipe.close()
            worker.process.terminate()
        while self._workers:
            self._workers.pop().end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()


class _Worker:
    """A process that waits for tasks, and this side of its pipe."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.pipe, far_end = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=_serve, args=(far_end,), daemon=True)
        with environment_with(environment):
            self.process.start()
        far_end.close()  # so that the end of the process is the end of the pipe

    def give(self, function: Callable[[Task], Result], task: Task) -> None:
        """Send a task; a process that ended meanwhile is noticed by `take`."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send((function, task))

    def take(self) -> Outcome[Any] | None:
        """Return the outcome of the task, or None if the process ended before."""
        try:
            outcome: Outcome[Any] = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            return None
        return outcome

    def end(self) -> str:
        """Wait until the process ended, kill it if that takes too long, and say how it ended."""
        self.pipe.close()
        self.process.join(_SECONDS_TO_END)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        code = cast(int, self.process.exitcode)
        self.process.close()
        if code < 0:
            return f"its process was killed by {signal.Signals(-code).name} (too little memory?)"
        return f"its process ended with exit status {code}"


def _serve(pipe: connection.Connection) -> None:
    """Run tasks that come through a pipe until it is closed: the main function of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first decides
    signal.signal(signal.SIGTERM, _exit)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            function, task = pipe.recv()
        except (EOFError, ConnectionResetError):
            return
        outcome = attempt(function, task).sendable()
        with suppress(BrokenPipeError):
            pipe.send(outcome)


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)  # as an exception, so that temporary files are removed


def _end_with_parent() -> None:
    """End this process with the one that started it, even where that was killed."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
