"""Keep Dask workers in the SLURM queue, each a job of its own, until Ctrl-C.

For clusters where many short jobs start sooner than one large one. Run it where it may stay, for
example on a login node, with the options of your site; then, in another shell:

    voxseek index build EMBEDDINGS INDEX --executor dask --scheduler scheduler.json
"""

from __future__ import annotations

import argparse
import json
import signal
from pathlib import Path

from dask_jobqueue import SLURMCluster


def make_cluster(queue: str | None, threads: int, memory: str, walltime: str) -> SLURMCluster:
    """Return a cluster without workers; its jobs run one task at a time."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return SLURMCluster(
        queue=queue,
        cores=1,
        processes=1,
        job_cpu=threads,
        memory=memory,
        walltime=walltime,
        job_extra_directives=["--requeue"],
        job_script_prologue=[f"export {name}={threads}" for name in names],
        worker_extra_args=["--memory-limit", "0"],
        scheduler_options={"dashboard": False, "dashboard_address": ":0"},
    )


def main() -> None:
    """Submit the jobs, and write the scheduler file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=16)
    parser.add_argument("--queue", help="partition")
    parser.add_argument("--threads", type=int, default=8, help="of a job")
    parser.add_argument("--memory", default="16GB", help="of a job: what the plan says of building")
    parser.add_argument("--walltime", default="04:00:00", help="longer than a shard takes")
    parser.add_argument("--file", type=Path, default=Path("scheduler.json"))
    chosen = parser.parse_args()
    with make_cluster(chosen.queue, chosen.threads, chosen.memory, chosen.walltime) as cluster:
        cluster.adapt(minimum_jobs=1, maximum_jobs=chosen.jobs)
        chosen.file.write_text(json.dumps({"address": cluster.scheduler_address}))
        try:
            signal.pause()
        except KeyboardInterrupt:
            chosen.file.unlink()


if __name__ == "__main__":
    main()
