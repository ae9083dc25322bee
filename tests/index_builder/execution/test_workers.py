"""Workers of a cluster, asked one by one."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from index_builder.embeddings.errors import BadRowError, MissingExtraError, VoxseekError
from index_builder.errors import SchedulerError
from index_builder.execution import dask as dask_module
from index_builder.execution.contract import Outcome
from index_builder.execution.workers import DaskWorkers, Questions
from tests.index_builder.execution.clusters import Cluster


@dataclass(frozen=True)
class Sum:
    """Adds a number to what a worker keeps."""

    number: int


def process_of(task: Sum, kept: int) -> tuple[int, int]:
    return os.getpid(), task.number + kept


def refuse(task: Sum) -> None:
    raise BadRowError(f"row {task.number} is bad")


def miss_extra(task: Sum) -> None:
    raise MissingExtraError("s3fs", "s3", "a test")


def err(task: Sum) -> None:
    raise KeyError(task.number)


def be_slow(task: Sum) -> None:
    raise TimeoutError("the file server is slow")


def die(task: Sum) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_ever(task: Sum) -> None:
    time.sleep(3600)


def add(left: int, right: int) -> int:
    return left + right


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster"), n_workers=2, n_threads=2) as started:
        yield started


@pytest.fixture
def workers(cluster: Cluster) -> Iterator[DaskWorkers]:
    with DaskWorkers(str(cluster.file)) as opened:
        while len(opened.addresses()) < 2:
            time.sleep(0.05)
        yield opened


def all_outcomes(questions: Questions, n_questions: int) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    while len(outcomes) < n_questions:
        outcomes.update(questions.outcomes(1))
    return outcomes


def test_each_worker_answers_from_what_it_keeps(workers: DaskWorkers) -> None:
    kept = {each: workers.keep(each, add, 10, n) for n, each in enumerate(workers.addresses())}
    processes = []
    for _ in range(2):  # what is kept serves again
        with workers.questions() as questions:
            for number, (worker, reference) in enumerate(kept.items()):
                questions.ask(worker, worker, process_of, Sum(100 * number), reference)
            outcomes = all_outcomes(questions, 2)
        found = [outcomes[worker].result for worker in kept]
        assert [each[1] for each in found if each] == [10, 111]
        processes.append([each[0] for each in found if each])
    assert len(set(processes[0])) == 2 and processes[0] == processes[1]


def test_errors_come_as_outcomes(workers: DaskWorkers) -> None:
    worker = workers.addresses()[0]
    with workers.questions() as questions:
        for function in (refuse, miss_extra, err, be_slow):
            questions.ask(function.__name__, worker, function, Sum(7))
        outcomes = all_outcomes(questions, 4)
    assert {name: each.may_pass for name, each in outcomes.items()} == {
        "refuse": False,
        "miss_extra": False,
        "err": False,
        "be_slow": True,
    }
    with pytest.raises(BadRowError, match="row 7 is bad"):
        raise outcomes["refuse"].error or AssertionError
    with pytest.raises(VoxseekError, match="s3fs is not installed"):
        raise outcomes["miss_extra"].error or AssertionError
    error = outcomes["err"].error
    assert isinstance(error, KeyError)
    assert "The task was err(number=7)." in error.__notes__[0]


def test_what_is_dropped_or_replaced_has_no_outcome(workers: DaskWorkers) -> None:
    worker, other = workers.addresses()
    with workers.questions() as questions:
        questions.ask("one", worker, refuse, Sum(1))
        questions.ask("one", worker, process_of, Sum(1), 2)
        questions.ask("two", other, refuse, Sum(1))
        questions.drop("two")
        questions.drop("three")
        questions.ask("four", other, process_of, Sum(3), 4)
        outcomes = all_outcomes(questions, 2)
        assert {name: each.result and each.result[1] for name, each in outcomes.items()} == {
            "one": 3,
            "four": 7,
        }
        assert questions.outcomes(0) == []


def test_who_waits_in_vain_comes_back(workers: DaskWorkers) -> None:
    worker = workers.addresses()[0]
    with workers.questions() as questions:
        started = time.monotonic()
        assert questions.outcomes(0.3) == []
        assert time.monotonic() - started >= 0.3
        questions.ask("one", worker, process_of, Sum(1), 2)
        all_outcomes(questions, 1)


@pytest.mark.slow
def test_lost_workers_have_no_outcome_and_a_lost_scheduler_is_an_error(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster, DaskWorkers(cluster.address) as workers:
        while not workers.addresses():
            time.sleep(0.05)
        (worker,) = workers.addresses()
        with workers.questions() as questions:
            questions.ask("die", worker, die, Sum(1))
            while workers.addresses():
                assert questions.outcomes(0.05) == []
            cluster.add_worker()
            while not workers.addresses():
                time.sleep(0.05)
            questions.ask("wait", workers.addresses()[0], wait_for_ever, Sum(1))
            cluster.scheduler.kill()
            with pytest.raises(SchedulerError, match=f"{cluster.address} went away or dropped"):
                while True:
                    questions.outcomes(1)
        with pytest.raises(SchedulerError, match=f"{cluster.address} went away or dropped"):
            workers.addresses()


def test_a_scheduler_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_module, "SECONDS_TO_CONNECT", 1)
    with pytest.raises(SchedulerError, match=r"no Dask scheduler answers at .*none\.json"):
        DaskWorkers(str(tmp_path / "none.json"))


def test_without_dask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingExtraError, match=r"distributed .* a search by many machines needs"):
        DaskWorkers("tcp://127.0.0.1:1")
