"""The files of docs/slurm, run with stand-ins for what only a cluster has."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.index_builder.execution.toy import contents, n_runs, toy_tasks

ROOT = Path(__file__).resolve().parents[3]
SLURM = ROOT / "docs" / "slurm"
# srun: drops its own options, and starts the command as often as --ntasks says.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do [[ $1 == --ntasks=* ]] && n=${1#--ntasks=}; shift; done
trap 'kill $(jobs -p)' TERM
for ((i = 0; i < n; i++)); do "$@" & done
wait
"""
DASK = """#!/usr/bin/env bash
kind=$1; shift
exec {python} -m distributed.cli.dask_$kind --host 127.0.0.1 "$@"
"""
VOXSEEK = """#!{python}
import sys
from pathlib import Path
from distributed import Client
from index_builder.execution import make_executor
from tests.index_builder.execution import toy

if __name__ == "__main__":
    assert sys.argv[1:5] == ["index", "build", "a", "b"] and sys.argv[-2:] == ["--recall", "0.9"]
    folder = Path(sys.argv[5])
    scheduler = sys.argv[sys.argv.index("--scheduler") + 1]
    # A worker that is told to end while it is starting takes a minute or more.
    with Client(scheduler_file=scheduler) as client:
        client.wait_for_workers(2)
    with make_executor("dask", scheduler=scheduler) as executor:
        executor.run(getattr(toy, folder.name), toy.toy_tasks(folder, 3), label="toy")
"""


@pytest.fixture
def submit(tmp_path: Path) -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Start the batch file for an index; whatever it left running ends with the test."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {
        "srun": SRUN,
        "dask": DASK.replace("{python}", sys.executable),
        "voxseek": VOXSEEK.replace("{python}", sys.executable),
        "scontrol": '#!/bin/sh\necho "scontrol $*"\n',
    }.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    jobs = []

    def start(index: Path) -> subprocess.Popen[str]:
        job = subprocess.Popen(
            ["bash", str(SLURM / "build_index.sbatch")],
            cwd=tmp_path,
            env={
                "PATH": f"{programs}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "EMBEDDINGS": "a b",
                "INDEX": str(index),
                "OPTIONS": "--recall 0.9",
                "SLURM_JOB_ID": "17",
                "SLURM_NTASKS": "3",
                "SLURM_CPUS_PER_TASK": "1",
                "SLURM_SUBMIT_DIR": str(tmp_path),
                "TMPDIR": str(tmp_path),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        jobs.append(job)
        return job

    yield start
    for job in jobs:
        with suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
        job.communicate()


def processes_of(session: int) -> list[str]:
    """Return the processes of a session that are still running."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[3] == str(session) and fields[0] != "Z":
            found.append(status.parent.name)
    return found


def wait_for_the_end(session: int) -> None:
    deadline = time.monotonic() + 60
    while processes_of(session):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_batch_file_builds_and_ends_its_cluster(
    submit: Callable[[Path], subprocess.Popen[str]], tmp_path: Path
) -> None:
    index = tmp_path / "write_file"
    index.mkdir()
    job = submit(index)
    assert job.communicate(timeout=150)[0] == ""
    assert job.returncode == 0
    assert set(contents(index)) == {"0.npy", "1.npy", "2.npy"}
    wait_for_the_end(job.pid)
    assert not list(tmp_path.glob(".dask-*"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_batch_file_is_queued_again_before_its_time_is_up(
    submit: Callable[[Path], subprocess.Popen[str]], tmp_path: Path
) -> None:
    index = tmp_path / "wait_for_ever"
    index.mkdir()
    job = submit(index)
    while sum(map(n_runs, toy_tasks(index, 3))) < 2:
        assert job.poll() is None
        time.sleep(0.1)
    job.send_signal(signal.SIGUSR1)
    assert job.stdout is not None
    assert job.stdout.readline() == "The time is nearly up; finished shards are kept.\n"
    assert job.stdout.readline() == "scontrol requeue 17\n"
    assert job.poll() is None  # it uses the time that is left
    job.terminate()  # as SLURM does
    assert job.wait(60) == 143
    wait_for_the_end(job.pid)
    assert not list(tmp_path.glob(".dask-*"))


@pytest.mark.parametrize("name", ["EMBEDDINGS", "INDEX"])
def test_the_batch_file_says_what_it_needs(name: str) -> None:
    given = {"PATH": os.environ["PATH"], "EMBEDDINGS": "a", "INDEX": "b"}
    del given[name]
    job = subprocess.run(
        ["bash", str(SLURM / "build_index.sbatch")], env=given, capture_output=True, text=True
    )
    assert job.returncode != 0 and f"{name}: folder" in job.stderr


def test_the_queue_script_asks_for_jobs_of_one_task() -> None:
    specification = importlib.util.spec_from_file_location("jobqueue", SLURM / "jobqueue.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    with module.make_cluster("cpu", 8, "16GB", "04:00:00") as cluster:
        script = cluster.job_script()
    for line in (
        "#SBATCH -p cpu",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH -t 04:00:00",
        "export OMP_NUM_THREADS=8",
    ):
        assert line in script.splitlines()
    assert "--nthreads 1 " in script and script.rstrip().endswith("--memory-limit 0")
