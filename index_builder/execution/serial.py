"""Tasks one after the other, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self, cast

from ..embeddings.progress import track
from .contract import ATTEMPTS, Result, Task, attempt, final_error


class SerialExecutor:
    """Runs tasks here, each with all cores; see `Executor`."""

    def run(
        self, function: Callable[[Task], Result], tasks: Iterable[Task], *, label: str
    ) -> list[Result]:
        """Return the result of each task, in order."""
        chosen = list(tasks)
        tracked = track(chosen, label=label, total=len(chosen), unit="task")
        return [_result(function, task) for task in tracked]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


def _result(function: Callable[[Task], Result], task: Task) -> Result:
    for n_attempts in range(1, ATTEMPTS + 1):
        outcome = attempt(function, task)
        if outcome.error is None:
            return cast(Result, outcome.result)
        if not outcome.may_pass or n_attempts == ATTEMPTS:
            break
    assert outcome.error is not None
    raise final_error(function, task, outcome.error, n_attempts)
