"""A cluster that runs already, as on SLURM: found by its file, lost, absent."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path

import pytest

from index_builder.errors import SchedulerError
from index_builder.execution import dask as dask_module
from index_builder.execution import make_executor
from tests.index_builder.execution.clusters import Cluster
from tests.index_builder.execution.toy import (
    n_runs,
    nothing,
    toy_tasks,
    wait_for_ever,
    write_file,
)


@pytest.mark.slow
def test_a_running_cluster_by_file_and_address_until_it_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_module, "SECONDS_TO_CONNECT", 5)
    work = tmp_path / "work"
    work.mkdir()
    with Cluster(tmp_path) as cluster:
        file, address = cluster.file, cluster.address
        with make_executor("dask", scheduler=str(file)) as executor:
            assert executor.run(write_file, toy_tasks(work, 3), label="toy") == [0, 1, 4]
        # The cluster outlives the executor, and what ran is not run again where nobody asks.
        with make_executor("dask", scheduler=address) as executor:
            executor.run(nothing, toy_tasks(work, 3), label="toy")
            assert [n_runs(task) for task in toy_tasks(work, 3)] == [1, 1, 1]
            killer = threading.Timer(1.0, cluster.scheduler.kill)
            killer.start()
            with pytest.raises(SchedulerError, match=f"{address} went away or dropped the work"):
                executor.run(wait_for_ever, toy_tasks(work, 3), label="toy")
            killer.join()
        # Its file is still there.
        with (
            pytest.raises(SchedulerError, match=r"no Dask scheduler answers.*Start one with"),
            make_executor("dask", scheduler=str(file)) as executor,
        ):
            executor.run(nothing, toy_tasks(work, 3), label="toy")


@pytest.mark.parametrize("where", ["tcp://127.0.0.1:9", "no-such.json", "empty.json", "odd.json"])
def test_a_scheduler_that_does_not_answer(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_module, "SECONDS_TO_CONNECT", 1)
    monkeypatch.chdir(tmp_path)
    Path("empty.json").touch()
    Path("odd.json").write_text("{}")
    with (
        pytest.raises(SchedulerError, match=f"no Dask scheduler answers at {where} within 1 s"),
        make_executor("dask", scheduler=where) as executor,
    ):
        executor.run(nothing, toy_tasks(Path("."), 1), label="toy")


def test_a_local_cluster_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with make_executor("dask", n_workers=1) as executor:
        executor.run(nothing, toy_tasks(tmp_path, 1), label="toy")
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


def test_tasks_that_are_alike_are_refused(tmp_path: Path) -> None:
    with (
        make_executor("dask", n_workers=1) as executor,
        pytest.raises(ValueError, match="4 tasks, of which 2 come twice"),
    ):
        executor.run(nothing, toy_tasks(tmp_path, 2) * 2, label="toy")
