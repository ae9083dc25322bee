"""The same promises, whoever does the work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from index_builder.embeddings.errors import BadRowError, VoxseekError
from index_builder.errors import TaskError
from index_builder.execution import Executor, make_executor
from tests.index_builder.execution.toy import (
    contents,
    die,
    err,
    fail_always,
    fail_twice,
    miss_extra,
    n_runs,
    refuse,
    threads,
    toy_tasks,
    write_file,
    write_or_die_once,
)

N_TASKS = 7
BAD = 3


@pytest.fixture(scope="module", params=["serial", "processes", "dask"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    n_workers = None if request.param == "serial" else 2
    with make_executor(request.param, n_workers=n_workers) as started:
        yield started


@pytest.fixture(scope="module", params=["processes", "dask"])
def crew(request: pytest.FixtureRequest) -> Iterator[Executor]:
    """Executors that survive the loss of a worker."""
    with make_executor(request.param, n_workers=2) as started:
        yield started


@pytest.fixture
def expected(tmp_path: Path) -> dict[str, bytes]:
    folder = tmp_path / "expected"
    folder.mkdir()
    for task in toy_tasks(folder, N_TASKS):
        write_file(task)
    return contents(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "work"
    made.mkdir()
    return made


def runs(folder: Path) -> list[int]:
    return [n_runs(task) for task in toy_tasks(folder, N_TASKS)]


def test_results_are_in_order_and_files_alike(
    executor: Executor, folder: Path, expected: dict[str, bytes]
) -> None:
    results = executor.run(write_file, toy_tasks(folder, N_TASKS), label="toy")
    assert results == [number**2 for number in range(N_TASKS)]
    assert contents(folder) == expected
    assert runs(folder) == [1] * N_TASKS
    assert executor.run(write_file, [], label="nothing") == []


def test_what_passes_is_tried_again(
    executor: Executor, folder: Path, expected: dict[str, bytes]
) -> None:
    results = executor.run(fail_twice, toy_tasks(folder, N_TASKS, BAD), label="toy")
    assert results == [number**2 for number in range(N_TASKS)]
    assert contents(folder) == expected
    assert runs(folder) == [1, 1, 1, 3, 1, 1, 1]


def test_what_does_not_pass_is_named(executor: Executor, folder: Path) -> None:
    message = r"fail_always\(folder=.*number=3.*failed 3 times.*TimeoutError: the file server is"
    with pytest.raises(TaskError, match=message):
        executor.run(fail_always, toy_tasks(folder, N_TASKS, BAD), label="toy")
    assert runs(folder)[BAD] == 3


def test_a_refusal_is_final_and_passed_on(
    executor: Executor, folder: Path, expected: dict[str, bytes]
) -> None:
    with pytest.raises(BadRowError, match="part 3 has NaN"):
        executor.run(refuse, toy_tasks(folder, N_TASKS, BAD), label="toy")
    assert runs(folder)[BAD] == 1
    # The executor is as good as new, and finished pieces stand.
    executor.run(write_file, toy_tasks(folder, N_TASKS), label="toy")
    assert contents(folder) == expected


def test_a_mistake_keeps_its_kind_and_names_the_task(executor: Executor, folder: Path) -> None:
    with pytest.raises(KeyError, match="no 0") as caught:
        executor.run(err, toy_tasks(folder, 1), label="toy")
    assert "err(folder=" in "".join(caught.value.__notes__)


def test_any_refusal_of_ours_comes_through(executor: Executor, folder: Path) -> None:
    with pytest.raises(VoxseekError, match=r"s3fs is not installed, and task 0 needs it"):
        executor.run(miss_extra, toy_tasks(folder, 1), label="toy")


def test_a_lost_worker_costs_its_task_alone(
    crew: Executor, folder: Path, expected: dict[str, bytes]
) -> None:
    results = crew.run(write_or_die_once, toy_tasks(folder, N_TASKS, BAD), label="toy")
    assert results == [number**2 for number in range(N_TASKS)]
    assert contents(folder) == expected
    assert runs(folder) == [1, 1, 1, 2, 1, 1, 1]


def test_a_task_that_kills_every_worker_is_named(crew: Executor, folder: Path) -> None:
    with pytest.raises(TaskError, match=r"die\(folder=.*number=3.*failed 3 times.*little memory"):
        crew.run(die, toy_tasks(folder, N_TASKS, BAD), label="toy")
    assert runs(folder)[BAD] == 3


def test_workers_share_the_cores(crew: Executor, folder: Path) -> None:
    before = dict(os.environ)
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert n_cores is not None
    shares = crew.run(threads, toy_tasks(folder, 2), label="toy")
    assert all(1 <= int(share) <= max(1, n_cores // 2) for share in shares if share)
    assert len(list(filter(None, shares))) == 2
    assert dict(os.environ) == before
