"""Tasks that a worker can import: they write a file, count their runs, fail or die on demand."""

from __future__ import annotations

import os
import signal
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from index_builder.embeddings.artefact import atomic_write
from index_builder.embeddings.errors import BadRowError, MissingExtraError


@dataclass(frozen=True)
class ToyTask:
    """Writes ``folder/{number}.npy``; what else it does is up to the function."""

    folder: str
    number: int
    bad_number: int = -1


def write_file(task: ToyTask) -> int:
    """Write seeded numbers; leave a mark for every run."""
    _mark(task)
    rows = np.random.default_rng(task.number).standard_normal((50, 8))
    with atomic_write(Path(task.folder) / f"{task.number}.npy") as temporary:
        temporary.write_bytes(rows.tobytes())
    return task.number**2


def write_or_die_once(task: ToyTask) -> int:
    """As `write_file`, but the first run of the bad task kills its process after a while."""
    if task.number == task.bad_number and not n_runs(task):
        _mark(task)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    return write_file(task)


def die(task: ToyTask) -> int:
    """As `write_file`, but every run of the bad task kills its process."""
    if task.number == task.bad_number:
        _mark(task)
        os.kill(os.getpid(), signal.SIGKILL)
    return write_file(task)


def fail_twice(task: ToyTask) -> int:
    """As `write_file`, but the bad task meets an error of the file system twice."""
    if task.number == task.bad_number and n_runs(task) < 2:
        _mark(task)
        raise TimeoutError("the file server is slow")
    return write_file(task)


def fail_always(task: ToyTask) -> int:
    """As `write_file`, but the bad task meets an error of the file system always."""
    if task.number == task.bad_number:
        _mark(task)
        raise TimeoutError("the file server is slow")
    return write_file(task)


def refuse(task: ToyTask) -> int:
    """As `write_file`, but the bad task refuses."""
    if task.number == task.bad_number:
        _mark(task)
        raise BadRowError("part 3 has NaN")
    return write_file(task)


def miss_extra(task: ToyTask) -> int:
    """Raise an error that takes other arguments than its message."""
    raise MissingExtraError("s3fs", "s3", f"task {task.number}")


def err(task: ToyTask) -> int:
    """Raise what only a mistake in the code raises."""
    raise KeyError(f"no {task.number}")


def threads(task: ToyTask) -> str | None:
    """Return how many threads BLAS may take."""
    return os.environ.get("OPENBLAS_NUM_THREADS")


def wait_for_ever(task: ToyTask) -> int:
    """Leave a mark, then take an hour."""
    _mark(task)
    with atomic_write(Path(task.folder) / f"{task.number}.npy") as temporary:
        temporary.write_bytes(b"half")
        time.sleep(3600)
    return task.number


def nothing(task: ToyTask) -> None:
    """Do nothing."""


def toy_tasks(folder: Path, n_tasks: int, bad_number: int = -1) -> list[ToyTask]:
    """Return tasks that share a folder."""
    return [ToyTask(str(folder), number, bad_number) for number in range(n_tasks)]


def n_runs(task: ToyTask) -> int:
    """Return how often a task was started."""
    return len(list(Path(task.folder).glob(f"{task.number}.run-*")))


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files that tasks left, without the marks."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if ".run-" not in path.name}


def _mark(task: ToyTask) -> None:
    (Path(task.folder) / f"{task.number}.run-{uuid.uuid4().hex}").touch()
