from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from index_builder.embeddings.errors import MissingExtraError
from index_builder.execution import available_cores, make_executor
from index_builder.execution.cores import environment_with, worker_environment, workers_within
from index_builder.execution.dask import DaskExecutor
from index_builder.execution.processes import ProcessExecutor
from index_builder.execution.serial import SerialExecutor


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "ray"}, "executor is 'ray', expected one of serial, processes, dask"),
        ({"name": "processes", "n_workers": 0}, "n_workers is 0, expected at least 1"),
        ({"name": "serial", "scheduler": "tcp://a:1"}, "only the dask executor has one"),
        (
            {"name": "dask", "scheduler": "tcp://a:1", "n_workers": 2},
            "n_workers is 2, and the scheduler tcp://a:1 has its own workers",
        ),
    ],
)
def test_arguments_that_do_not_go_together(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_executor(**arguments)


def test_each_name_has_its_executor() -> None:
    assert isinstance(make_executor("serial"), SerialExecutor)
    processes = make_executor("processes")
    assert isinstance(processes, ProcessExecutor) and processes.n_workers == available_cores()
    dask = make_executor("dask", n_workers=3)
    assert isinstance(dask, DaskExecutor) and dask.n_workers == 3


@pytest.mark.parametrize("name", ["processes", "dask"])
def test_workers_stay_within_the_memory(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="voxseek"):
        executor = make_executor(
            name, n_workers=8, worker_bytes=300 << 20, memory_bytes=(1 << 30) + 1
        )
    assert isinstance(executor, ProcessExecutor | DaskExecutor) and executor.n_workers == 3
    assert caplog.messages == [
        "3 worker(s) instead of 8: each may need 300 MiB of the 1024 MiB allowed"
    ]


@pytest.mark.parametrize(
    ("worker_bytes", "memory_bytes", "expected"),
    [(None, 10, 4), (10, None, 4), (10, 40, 4), (10, 39, 3), (10, 9, 1)],
)
def test_workers_within(worker_bytes: int | None, memory_bytes: int | None, expected: int) -> None:
    assert workers_within(4, worker_bytes, memory_bytes) == expected


def test_a_lower_number_of_threads_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("index_builder.execution.cores.available_cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MKL_NUM_THREADS", "64")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    added = worker_environment(2)
    assert added["OMP_NUM_THREADS"] == "1"
    assert added["MKL_NUM_THREADS"] == added["OPENBLAS_NUM_THREADS"] == "4"
    assert worker_environment(99)["MKL_NUM_THREADS"] == "1"


def test_an_environment_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("VOXSEEK_A", "1")
    monkeypatch.delenv("VOXSEEK_B", raising=False)
    before = dict(os.environ)
    with environment_with({"VOXSEEK_A": "2", "VOXSEEK_B": "3"}):
        assert (os.environ["VOXSEEK_A"], os.environ["VOXSEEK_B"]) == ("2", "3")
    assert dict(os.environ) == before


def test_without_dask_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'voxseek\[dask\]'"):
        make_executor("dask")


def test_the_package_loads_no_heavy_library() -> None:
    import subprocess

    script = (
        "import sys, index_builder.execution; "
        "print({'numpy', 'faiss', 'distributed', 'dask'} & set(sys.modules))"
    )
    root = Path(__file__).resolve().parents[3]
    finished = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True
    )
    assert finished.stdout.strip() == "set()"
