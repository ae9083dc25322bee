"""Search beside peers at equal memory: recall, queries a second, latency, bytes, for every effort.

The gallery, queries and exact truth are those of bench_index.py. Each contender is a module in
bench/peers, run by the Python of an environment of its own (``--install`` makes them, from the
versions below). Each build and each round of searches is a process of its own; in a round, every
contender sweeps its efforts, with two threads and then pinned to one core; contenders take
turns, medians over rounds are reported. Pieces stay in WORK, so that an interrupted run goes on;
``touch WORK/stop`` ends a run, the build that is under way included.

Memory is what the process holds (anonymous memory, grown from before the index was opened to after
all searches). voxseek, and FAISS where float16 rows re-rank, read rows from a file beside that:
``read`` is its size, memory of the page cache if searches shall not wait for the disk.

clip-retrieval's back end, over HTTP, is in bench_http.py.

Example: python bench/bench_search.py WORK --peers ENVIRONMENTS --install
         python bench/bench_search.py WORK --peers ENVIRONMENTS --rows 1000000 --only-build
         python bench/bench_search.py WORK --peers ENVIRONMENTS --rows 1000000 --only-search
         python bench/bench_search.py --table bench/results/search_….json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from search_tables import medians_of, print_tables

ROOT = Path(__file__).resolve().parents[1]
PROTOCOL = "search/1"
BUILD_THREADS = 2
MOST_BUILD_BYTES = 8 << 30
POLL_SECONDS = 0.5
REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "faiss": ("faiss-cpu==1.15.1", "numpy"),
    "scann": ("scann==1.4.2", "numpy"),
    "svs": ("scalable-vs==0.5.0", "numpy"),
    "usearch": ("usearch==2.26.6", "numpy"),
    "lancedb": ("lancedb==0.40.0", "pylance==14.0.2", "numpy"),
    "hnswlib": ("hnswlib==0.8.0", "numpy"),
    "voyager": ("voyager==2.2.3", "numpy"),
    "autofaiss": ("autofaiss==2.18.0", "pyarrow<22", "faiss-cpu==1.12.0", "setuptools<81"),
}
# In the order in which they are built: what a time box leaves out is at the end.
CONTENDERS = (
    *("voxseek/rabitq1", "voxseek/rabitq2", "voxseek/hnsw-sq8", "faiss/ivf-rabitqfs1"),
    *("faiss/ivf-rabitqfs2", "scann/tree-ah-bf16", "usearch/f16", "svs/lvq4x8"),
    *("faiss/hnsw32-sqfp16", "lancedb/ivf-rq", "voxseek/rabitq4", "svs/leanvec"),
    *("scann/tree-ah-soar-bf16", "faiss/hnsw32-sq8", "usearch/i8", "hnswlib/m16"),
    *("lancedb/ivf-hnsw-sq", "lancedb/ivf-pq", "faiss/ivf-pq192x4fs", "faiss/ivf-sq8"),
    *("voxseek/flat", "faiss/ivf-rabitqfs4", "svs/lvq4x4", "scann/tree-ah-int8", "voyager/e4m3"),
    *("faiss/ivf-pq96", "autofaiss/3600", "autofaiss/144", "faiss/opq-pq96"),
)


class StoppedError(Exception):
    """WORK/stop was made."""


def install(environments: Path) -> None:
    """Make the environment of each peer that has none."""
    for library, requirements in REQUIREMENTS.items():
        folder = environments / f"venv-{library}"
        if not folder.exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            command = [str(folder / "bin" / "pip"), "install", "--prefer-binary", *requirements]
            subprocess.run(command, check=True)


def python_of(contender: str, environments: Path) -> str:
    """Return the interpreter that has a contender's library."""
    library = contender.partition("/")[0]
    if library == "voxseek":
        return sys.executable
    return str(environments / f"venv-{library}" / "bin" / "python")


def run_apart(
    task: str, contender: str, n_threads: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Do a task of a contender in a process of its own; return what it printed, and what it took.

    A process that needs more than 8 GiB of its own is ended, and recorded as failed.
    """
    work: Path = options.work
    library, _, design = contender.partition("/")
    command = [
        *(python_of(contender, options.peers), str(ROOT / "bench" / "peers" / "measure.py")),
        *(task, library, design, str(work), str(n_threads)),
    ]
    names = (
        *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"),
        *("LANCE_CPU_THREADS", "TOKIO_WORKER_THREADS"),
    )
    environment = {**os.environ, **dict.fromkeys(names, str(n_threads))}
    load = os.getloadavg()
    said_path, log_path = (work / f"{library}_{design}.{task}.{end}" for end in ("out", "log"))
    started = time.perf_counter()
    with open(said_path, "wb") as said_file, open(log_path, "wb") as log:
        child = subprocess.Popen(
            command, stdout=said_file, stderr=log, env=environment, start_new_session=True
        )
        try:
            ended = wait(child, work)
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            raise
    seconds = time.perf_counter() - started
    if child.returncode:
        log_end = log_path.read_text(errors="replace").strip()[-600:]
        error = ended["why"] or f"exit status {child.returncode}. {log_end}"
        return {"failed": error, "seconds": seconds}
    said: dict[str, Any] = json.loads(said_path.read_text().strip().splitlines()[-1])
    return {
        "seconds": seconds,
        "cpu_seconds": ended["cpu_seconds"],
        "peak_rss_bytes": ended["peak_rss_bytes"],
        "load_average_before": load,
        **said,
    }


def wait(child: subprocess.Popen[bytes], work: Path) -> dict[str, Any]:
    """Wait for a child, and watch its memory and WORK/stop; return what it took."""
    why = ""
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            return {
                "why": why,
                "cpu_seconds": usage.ru_utime + usage.ru_stime,
                "peak_rss_bytes": usage.ru_maxrss * 1024,
            }
        if (work / "stop").exists():
            raise StoppedError
        if not why and anonymous_bytes(child.pid) > MOST_BUILD_BYTES:
            why = f"needs more than {MOST_BUILD_BYTES >> 30} GiB of memory"
            os.killpg(child.pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS)


def anonymous_bytes(pid: int) -> int:
    """Return the anonymous memory of a process; 0 if it ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def keep(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return a piece that stands, or make it and write it."""
    if not path.exists():
        print(f"{time.strftime('%H:%M:%S')} {path.stem}", file=sys.stderr, flush=True)
        text = json.dumps(make(), indent=1)
        partial = path.with_suffix(".partial")
        partial.write_text(text)
        partial.rename(path)
    piece: dict[str, Any] = json.loads(path.read_text())
    return piece


def prepare(options: argparse.Namespace) -> dict[str, Any]:
    """Make gallery, queries and truth where they aren't yet; describe them."""
    from bench_index import prepare as prepare_gallery

    # Apart: the peak memory of a child counts what its parent had when it was forked.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
        return apart.submit(prepare_gallery, options.work, options).result()


def build_all(options: argparse.Namespace) -> None:
    """Build what isn't built yet, one after the other."""
    for contender in options.only:
        slug = contender.replace("/", "_")

        def build(contender: str = contender, slug: str = slug) -> dict[str, Any]:
            shutil.rmtree(options.work / slug, ignore_errors=True)
            return run_apart("build", contender, BUILD_THREADS, options)

        piece = keep(options.work / f"build_{slug}.json", build)
        if "failed" in piece:
            print(f"  {contender} failed: {piece['failed'][-300:]}", file=sys.stderr, flush=True)


def search_all(options: argparse.Namespace) -> dict[str, Any]:
    """Search in rounds; return builds and rounds of those that were built."""
    builds: dict[str, Any] = {}
    rounds: dict[str, dict[str, list[Any]]] = {}
    for contender in options.only:
        path = options.work / f"build_{contender.replace('/', '_')}.json"
        if path.exists():
            builds[contender] = json.loads(path.read_text())
    able = [who for who, piece in builds.items() if "failed" not in piece]
    for number in range(options.rounds):
        for n_threads in options.threads:
            for who in able:
                name = f"search_{number}_{n_threads}_{who.replace('/', '_')}.json"

                def search(who: str = who, n_threads: int = n_threads) -> dict[str, Any]:
                    return run_apart("search", who, n_threads, options)

                piece = keep(options.work / name, search)
                rounds.setdefault(who, {}).setdefault(str(n_threads), []).append(piece)
    return {"builds": builds, "rounds": rounds}


def run(options: argparse.Namespace) -> dict[str, Any] | None:
    """Prepare, build and search, as far as it is asked; return the record of the searches."""
    from machine import describe_machine

    options.work.mkdir(parents=True, exist_ok=True)
    data = keep(options.work / "data.json", lambda: prepare(options))
    if not options.only_search:
        build_all(options)
    if options.only_build:
        return None
    machine = describe_machine()
    found = search_all(options)
    return {
        "protocol": PROTOCOL,
        "machine": machine,
        "load_average_after": os.getloadavg(),
        "data": data,
        "requirements": REQUIREMENTS,
        "medians": medians_of(found["rounds"]),
        **found,
    }


def main() -> None:
    """Parse, run, print, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, nargs="?", help="folder of the pieces")
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments")
    parser.add_argument("--install", action="store_true", help="make environments, no more")
    parser.add_argument("--family", default="cone", choices=["cone", "copies"])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--part-rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1], help="of searches")
    parser.add_argument("--only", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--only-build", action="store_true")
    parser.add_argument("--only-search", action="store_true")
    parser.add_argument("--table", type=Path, metavar="RECORD", help="print a record, no more")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    options = parser.parse_args()
    if options.table:
        print_tables(json.loads(options.table.read_text()))
        return
    if options.work is None or options.peers is None:
        parser.error("WORK and --peers are needed")
    if options.install:
        install(options.peers)
        return
    sys.path.insert(0, str(ROOT))
    try:
        record = run(options)
    except StoppedError:
        sys.exit(f"stopped by {options.work / 'stop'}; remove it to go on")
    if record is None:
        return
    print_tables(record)
    from machine import hardware_name

    size = f"{record['data']['family']}-{record['data']['n_rows']}"
    name = f"search_{size}_{hardware_name(record['machine'])}_{date.today():%Y%m%d}.json"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / name).write_text(json.dumps(record, indent=1) + "\n")
    print(f"recorded in {name}", file=sys.stderr)


if __name__ == "__main__":
    main()
