"""docs/slurm/search.sbatch, run with stand-ins for what only a cluster has."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from index_builder.embeddings.reader import EmbeddingFolder
from retrieval.searching.engine import SearchEngine
from retrieval.searching.request import SearchRequest
from tests.index_builder.execution.test_slurm import DASK, ROOT, SLURM, SRUN, wait_for_the_end

VOXSEEK = """#!{python}
import sys
import numpy as np
from distributed import Client
from retrieval.searching.cluster import ClusterSearch
from retrieval.searching.request import SearchRequest

if __name__ == "__main__":
    search, index, queries, out_option, out, scheduler_option, scheduler, *rest = sys.argv[1:]
    assert (search, out_option, scheduler_option) == ("search", "--out", "--scheduler")
    assert rest == ["--deadline", "90", "-k", "3"]
    # A worker that is told to end while it is starting takes a minute or more.
    with Client(scheduler_file=scheduler) as client:
        client.wait_for_workers(2)
    with ClusterSearch.open(index, scheduler=scheduler, deadline_seconds=90) as engine:
        np.save(out, engine.search(np.load(queries), SearchRequest(3)).rows)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_batch_file_searches_and_ends_its_cluster(
    draw_rows: Callable[[int], np.ndarray],
    write_gallery_rows: Callable[..., EmbeddingFolder],
    build: Callable[..., Path],
    tmp_path: Path,
) -> None:
    index = build(write_gallery_rows(draw_rows(200)), "flat", n_shards=3)
    queries = draw_rows(5)
    np.save(tmp_path / "queries.npy", queries)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {"srun": SRUN, "dask": DASK, "voxseek": VOXSEEK}.items():
        (programs / name).write_text(text.replace("{python}", sys.executable))
        (programs / name).chmod(0o755)
    job = subprocess.Popen(
        ["bash", str(SLURM / "search.sbatch")],
        cwd=tmp_path,
        env={
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "INDEX": str(index),
            "QUERIES": "queries.npy",
            "OUT": "rows.npy",
            "DEADLINE": "90",
            "OPTIONS": "-k 3",
            "SLURM_JOB_ID": "17",
            "SLURM_NTASKS": "3",
            "SLURM_CPUS_PER_TASK": "1",
            "SLURM_SUBMIT_DIR": str(tmp_path),
            "TMPDIR": str(tmp_path),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert job.wait(timeout=200) == 0
        wait_for_the_end(job.pid)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
        job.wait()
    expected = SearchEngine.open(index).search(queries, SearchRequest(3)).rows
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), expected)
    assert not list(tmp_path.glob(".dask-*"))
