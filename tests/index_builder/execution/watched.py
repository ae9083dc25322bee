"""An executor that counts the runs of each task, and kills one worker in the middle of one."""

from __future__ import annotations

import importlib
import os
import signal
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from index_builder.execution import Executor
from index_builder.execution.contract import task_key


@dataclass(frozen=True)
class WatchedTask:
    """A task of another function, with where its runs are counted."""

    module: str
    function: str
    task: Any
    marks: str
    is_victim: bool

    @property
    def name(self) -> str:
        """What its marks are called."""
        return task_key(run_watched, self)

    @property
    def n_runs(self) -> int:
        """How often it was started."""
        return len(list(Path(self.marks).glob(f"{self.name}.*")))


def run_watched(watched: WatchedTask) -> Any:
    """Run the task; the first run of the victim ends when its second file is put in place."""
    is_killed = watched.is_victim and not watched.n_runs
    (Path(watched.marks) / f"{watched.name}.{uuid.uuid4().hex}").touch()
    if is_killed:
        replace, n_replaced = os.replace, 0

        def kill_at_second(*paths: Any) -> None:
            nonlocal n_replaced
            n_replaced += 1
            if n_replaced == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*paths)

        os.replace = kill_at_second
    function = getattr(importlib.import_module(watched.module), watched.function)
    return function(watched.task)


class Watcher:
    """Passes tasks on to another executor, watched."""

    def __init__(self, executor: Executor, marks: Path, *, has_victim: bool) -> None:
        self._executor = executor
        self._marks = marks
        self._has_victim = has_victim
        self.runs: list[int] = []

    def run(self, function: Callable[[Any], Any], tasks: Iterable[Any], *, label: str) -> list[Any]:
        """Run tasks; the second of the first crowd is the victim."""
        listed = list(tasks)
        has_victim = self._has_victim and len(listed) > 1
        self._has_victim = self._has_victim and not has_victim
        watched = [
            WatchedTask(
                function.__module__,
                function.__qualname__,
                task,
                str(self._marks),
                is_victim=has_victim and place == 1,
            )
            for place, task in enumerate(listed)
        ]
        results = self._executor.run(run_watched, watched, label=label)
        self.runs += [task.n_runs for task in watched]
        return results

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        pass
