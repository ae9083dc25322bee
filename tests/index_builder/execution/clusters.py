"""Dask clusters of processes, started as `dask scheduler` and `dask worker` start them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).resolve().parents[3]


@dataclass
class Cluster:
    """A scheduler and workers without nannies, ended with the ``with`` block.

    Parameters
    ----------
    folder : Path
        For the scheduler file, and what workers write.
    n_workers : int
    n_threads : int
        Tasks that a worker runs at a time.
    """

    folder: Path
    n_workers: int = 1
    n_threads: int = 1
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _started: ExitStack = field(default_factory=ExitStack)

    @property
    def file(self) -> Path:
        return self.folder / "scheduler.json"

    @property
    def address(self) -> str:
        return str(json.loads(self.file.read_bytes())["address"])

    def add_worker(self) -> subprocess.Popen[bytes]:
        threads = ("--no-nanny", "--nthreads", str(self.n_threads), "--memory-limit", "0")
        self.workers.append(self._start("dask_worker", *threads))
        return self.workers[-1]

    def _start(self, command: str, *options: str) -> subprocess.Popen[bytes]:
        common = ("--scheduler-file", str(self.file), "--host", "127.0.0.1", "--no-dashboard")
        process = subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{command}", *common, *options],
            cwd=self.folder,
            env={
                "PYTHONPATH": str(ROOT),
                "PATH": "/usr/bin:/bin",
                "XDG_CACHE_HOME": str(self.folder / "cache"),
                "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._started.callback(process.wait)
        self._started.callback(process.kill)
        return process

    def __enter__(self) -> Self:
        self.scheduler = self._start("dask_scheduler", "--port", "0")
        while not self.file.exists():
            time.sleep(0.05)
        for _ in range(self.n_workers):
            self.add_worker()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._started.close()
