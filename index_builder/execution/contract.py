"""What every executor promises, and what they share to keep it.

A task is a small frozen dataclass that can be pickled; a function of a module turns it into a
result. Tasks are idempotent: what they leave on disk is complete or absent, so a task that was cut
short is run again. What may pass, such as a lost worker or an error of the file system, is tried
`ATTEMPTS` times. Any other error is final at once.
"""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from ..embeddings.artefact import fingerprint
from ..embeddings.errors import VoxseekError
from ..errors import TaskError

ATTEMPTS = 3
_LASTING = {errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.EROFS}
Task = TypeVar("Task")
Result = TypeVar("Result")


class Executor(Protocol):
    """Runs tasks; a context manager whose workers end with the block."""

    def run(
        self, function: Callable[[Task], Result], tasks: Iterable[Task], *, label: str
    ) -> list[Result]:
        """Return the result of each task, in the order of the tasks.

        Parameters
        ----------
        function : callable
            Of a module, not a lambda or a closure.
        tasks : iterable of frozen dataclass
            No two alike.
        label : str
            What is being done, for the progress line.

        Raises
        ------
        TaskError
            If a task fails as often as it is tried; it is named.
        VoxseekError
            Whatever of this kind a task raises, as it is. Other tasks are canceled.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """How an attempt ended: with a result, or with an error, final or not."""

    result: Result | None = None
    error: Exception | None = None
    may_pass: bool = False

    def sendable(self) -> Outcome[Result]:
        """Return the same outcome with an error that another process can build again."""
        error = self.error
        if error is None:
            return self
        try:
            type(error)(*error.args)
        except Exception:  # its class takes other arguments than its message
            text = f"{type(error).__name__}: {error}"
            error = VoxseekError(text) if isinstance(error, VoxseekError) else RuntimeError(text)
        if not isinstance(error, VoxseekError):
            assert self.error is not None
            error.add_note("In the worker:\n" + "".join(traceback.format_exception(self.error)))
        return Outcome(None, error, self.may_pass)


def attempt(function: Callable[[Task], Result], task: Task) -> Outcome[Result]:
    """Run a task once."""
    try:
        return Outcome(function(task))
    except VoxseekError as error:
        return Outcome(error=error)
    except OSError as error:
        return Outcome(error=error, may_pass=error.errno not in _LASTING)
    except Exception as error:
        error.add_note(f"The task was {describe_task(function, task)}.")
        return Outcome(error=error)


def task_failed(
    function: Callable[[Task], Any], task: Task, n_attempts: int, reason: str
) -> TaskError:
    """Return the error of a task that is given up."""
    times = "once" if n_attempts == 1 else f"{n_attempts} times"
    return TaskError(
        f"{describe_task(function, task)} failed {times}, the last time because {reason}. Finished "
        f"work is kept: mend the cause and run the command again."
    )


def final_error(
    function: Callable[[Task], Any], task: Task, error: Exception, n_attempts: int
) -> Exception:
    """Return what to raise for the error of the last attempt."""
    if isinstance(error, VoxseekError) or not isinstance(error, OSError):
        return error
    failed = task_failed(function, task, n_attempts, f"of {type(error).__name__}: {error}")
    failed.__cause__ = error
    return failed


def describe_task(function: Callable[[Task], Any], task: Task) -> str:
    """Name a task for people: its function, and those of its fields that are words and numbers."""
    named = (
        [(field.name, getattr(task, field.name)) for field in fields(task)]
        if is_dataclass(task)
        else [("task", task)]
    )
    shown = [
        f"{name}={value}" for name, value in named if isinstance(value, int | str | os.PathLike)
    ]
    return f"{function.__name__}({', '.join(shown)})"


def task_key(function: Callable[[Task], Any], task: Task) -> str:
    """Name a task for machines: the same in every process, another where any field differs.

    Raises
    ------
    TypeError
        If a field can't be told apart by its value.
    """
    name = f"{function.__module__}.{function.__qualname__}"
    return f"{name}-{fingerprint(_plain(task))[:32]}"


def _plain(value: Any) -> Any:
    """Return a value as JSON can have it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(getattr(value, "fingerprint", None), str):  # opened embeddings
        return [str(value.path), value.fingerprint]
    raise TypeError(
        f"a task holds a {type(value).__name__}, expected numbers, words, paths, dataclasses of "
        f"them, or opened embeddings: anything else can't be told apart by its value"
    )
