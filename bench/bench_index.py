"""Build and search an index beside autofaiss, at the same number of bytes a vector.

The gallery (bench/galleries.py) lies in clip-retrieval's layout. voxseek is the command itself,
``voxseek index build``, told to keep its peak within ``--memory``; autofaiss builds by its own
rules at ``max_index_memory_usage`` = rows x ``--bytes-per-vector``, and searches with the
parameters it tuned for 10 ms a query. It has no exact ranking; "autofaiss, ranked" adds one, with
as many candidates as voxseek ranks; "autofaiss, widest" probes 1,024 lists, the best its codes do.

Each build and each round of searches is a process of its own; contenders take turns, medians are
reported. Pieces stay in WORK, so that an interrupted run goes on. The peer pins numpy below 2, and
trains OPQ with an older FAISS only; it runs in an environment of its own:
``pip install autofaiss==2.18.0 'pyarrow<22' 'faiss-cpu==1.12.0'``. Without it voxseek runs alone.

Example: python bench/bench_index.py WORK --peer-python peer/bin/python --rows 1000000
         python bench/bench_index.py WORK --rows 10000000 --part-rows 200000 --memory 4GiB
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

SEED = 7
PROTOCOL = "index/2"
K = 10
ROOT = Path(__file__).resolve().parents[1]
CONTENDERS = ("voxseek", "autofaiss", "autofaiss, ranked", "autofaiss, widest")
QUERY_KINDS = ("in", "shrunk", "shifted", "noisy")
WIDEST_PROBES = 1024


def prepare(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Write gallery, queries and ground truth where they aren't yet; describe the data."""
    import pyarrow as pa
    from galleries import DIM, Gallery, write_gallery

    from index_builder.cosine import unit_rows
    from index_builder.embeddings.reader import EmbeddingFolder
    from index_builder.embeddings.space import EmbeddingSpace
    from index_builder.embeddings.writer import EmbeddingWriter
    from index_builder.ground_truth import block_rows, exact_search

    gallery = Gallery(options.family, options.rows, SEED)
    if not (work / "gallery").exists():
        print("gallery", file=sys.stderr)
        write_gallery(work / "gallery", gallery, options.part_rows)
    space = EmbeddingSpace("simulated", "final", 1, DIM, True)
    sample = gallery.draw(0, 10_000)
    if not (work / "calibration" / "space.json").exists():
        with EmbeddingWriter(
            work / "calibration", space, command="bench_index", details={}
        ) as writer:
            rows = gallery.draw_queries("shrunk", options.queries, seed=1)
            writer.write(rows, pa.table({"query": np.arange(len(rows))}))
            writer.finish()
    if not (work / f"truth_{QUERY_KINDS[-1]}.npy").exists():
        print("ground truth", file=sys.stderr)
        drawn = [gallery.draw_queries(kind, options.queries, seed=2) for kind in QUERY_KINDS]
        asked = np.concatenate(drawn)
        folder = EmbeddingFolder.open(work / "gallery", space=space)
        batches = folder.iter_batches(batch_rows=block_rows(len(asked), DIM))
        truth = exact_search(batches, unit_rows(asked), K)[0]
        for kind, queries, rows in zip(
            QUERY_KINDS, drawn, np.split(truth, len(QUERY_KINDS)), strict=True
        ):
            np.save(work / f"queries_{kind}.npy", queries)
            np.save(work / f"truth_{kind}.npy", rows)
    return {
        "family": options.family,
        "n_rows": options.rows,
        "dim": DIM,
        "n_queries": options.queries,
        "mean_cosine": float(np.linalg.norm(sample.mean(axis=0)) ** 2),
        "seed": SEED,
    }


def build(who: str, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Build one contender's index in a process of its own; return seconds, memory and bytes."""
    if who == "voxseek":
        subprocess.run(["rm", "-rf", str(work / "voxseek")], check=True)
        command = [
            *(sys.executable, str(ROOT / "cli.py"), "index", "build"),
            *(str(work / "gallery"), str(work / "voxseek")),
            *("--space", "simulated:final:1x768", "--memory", options.memory),
            *("--code", "ivf-rabitq", "--bits", "1", "--queries", str(work / "calibration")),
            "--json",
        ]
    else:
        limit = f"{options.bytes_per_vector * options.rows / 1e6:.3f}MB"
        command = [options.peer_python, __file__, "--child", "build", str(work), limit]
    load = os.getloadavg()
    started = time.perf_counter()
    with open(work / f"{who}.log", "wb") as log:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        assert child.stdout is not None
        printed = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        sys.exit((work / f"{who}.log").read_text()[-3000:])
    said = json.loads(printed.strip().splitlines()[-1])
    if who == "voxseek":
        certificate = said["certificate"]
        said = {
            "bytes": said["ram_bytes"],
            "design": f"{said['plan']['code']}, {said['plan']['n_lists']} lists",
            "effort": certificate["effort"],
            "certificate": certificate["statement"],
        }
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_rss_bytes": usage.ru_maxrss * 1024,
        "load_average_before": load,
        **said,
    }


def build_peer(work: Path, limit: str) -> dict[str, Any]:
    """Build autofaiss's index; runs in its environment."""
    from autofaiss import build_index

    _, infos = build_index(
        embeddings=str(work / "gallery" / "img_emb"),
        index_path=str(work / "autofaiss.index"),
        index_infos_path=str(work / "autofaiss.json"),
        max_index_memory_usage=limit,
        current_memory_available="10GB",
        metric_type="ip",
        nb_cores=os.cpu_count(),
    )
    return {
        "bytes": (work / "autofaiss.index").stat().st_size,
        "design": infos["index_key"],
        "effort": infos["index_param"],
    }


def search(who: str, work: Path, n_candidates: int) -> dict[str, Any]:
    """Search for all kinds of queries, as one batch and one by one."""
    find = _open_voxseek(work) if who == "voxseek" else _open_peer(who, work, n_candidates)
    found: dict[str, Any] = {}
    for kind in QUERY_KINDS:
        queries = np.load(work / f"queries_{kind}.npy")
        truth = np.load(work / f"truth_{kind}.npy")
        find(queries[:8])
        started = time.perf_counter()
        rows = find(queries)
        batch_seconds = time.perf_counter() - started
        singles = queries[:50]
        started = time.perf_counter()
        for query in singles:
            find(query[None])
        single_seconds = time.perf_counter() - started
        shares = [np.isin(t, r).mean() for t, r in zip(truth, rows, strict=True)]
        found[kind] = {
            "recall_at_10": float(np.mean(shares)),
            "batch_ms_per_query": 1e3 * batch_seconds / len(queries),
            "single_ms_per_query": 1e3 * single_seconds / len(singles),
        }
    return found


def _open_voxseek(work: Path) -> Any:
    from retrieval.searching.engine import SearchEngine
    from retrieval.searching.request import SearchRequest

    engine = SearchEngine.open(work / "voxseek")
    return lambda queries: engine.search(queries, SearchRequest(K)).rows


def _open_peer(who: str, work: Path, n_candidates: int) -> Any:
    import faiss

    index = faiss.read_index(str(work / "autofaiss.index"))
    if who == "autofaiss, widest":
        faiss.ParameterSpace().set_index_parameters(
            index, f"nprobe={WIDEST_PROBES},quantizer_efSearch={2 * WIDEST_PROBES}"
        )
    if who != "autofaiss, ranked":
        return lambda queries: index.search(queries, K)[1]
    files = sorted((work / "gallery" / "img_emb").glob("*.npy"))
    parts = [np.load(file, mmap_mode="r") for file in files]
    starts = np.cumsum([0, *map(len, parts)])

    def take(rows: np.ndarray) -> np.ndarray:
        part_of = np.searchsorted(starts, rows, side="right") - 1
        return np.stack([parts[p][row - starts[p]] for p, row in zip(part_of, rows, strict=True)])

    def find(queries: np.ndarray) -> np.ndarray:
        candidates = index.search(queries, n_candidates)[1]
        best = np.full((len(queries), K), -1)
        for i, rows in enumerate(candidates):
            rows = np.sort(rows[rows >= 0])
            scores = take(rows).astype(np.float32) @ queries[i]
            chosen = rows[np.argsort(-scores)[:K]]
            best[i, : len(chosen)] = chosen
        return best

    return find


def keep(path: Path, make: Any) -> dict[str, Any]:
    """Return a piece that stands, or make it and write it."""
    if not path.exists():
        print(path.stem, file=sys.stderr)
        path.write_text(json.dumps(make(), indent=2, default=str))
    piece: dict[str, Any] = json.loads(path.read_text())
    return piece


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Prepare, build, search in turns, and return the record."""
    from machine import describe_machine

    work = options.work
    work.mkdir(parents=True, exist_ok=True)
    # Not in this process: the peak memory of a child counts what its parent had when it was forked.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
        data = keep(work / "data.json", lambda: apart.submit(prepare, work, options).result())
    builds: dict[str, list[dict[str, Any]]] = {}
    contenders = CONTENDERS if options.peer_python else CONTENDERS[:1]
    if options.peer_python:
        peer = keep(work / "build_autofaiss.json", lambda: build("autofaiss", work, options))
        builds["autofaiss"] = [peer]
    builds["voxseek"] = [
        keep(work / f"build_voxseek_{i}.json", lambda: build("voxseek", work, options))
        for i in range(options.builds)
    ]
    n_candidates = builds["voxseek"][-1]["effort"]["n_candidates"]

    def search_apart(who: str) -> dict[str, Any]:
        python = sys.executable if who == "voxseek" else options.peer_python
        finished = subprocess.run(
            [python, __file__, "--child", "search", str(work), who, str(n_candidates)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=True,
        )
        answer: dict[str, Any] = json.loads(finished.stdout.strip().splitlines()[-1])
        return answer

    rounds: dict[str, list[dict[str, Any]]] = {who: [] for who in contenders}
    for number in range(options.rounds):
        for who in contenders:
            path = work / f"search_{number}_{who.replace(', ', '_')}.json"
            rounds[who].append(keep(path, lambda who=who: search_apart(who)))
    medians = {
        who: {
            kind: {
                field: statistics.median(each[kind][field] for each in rounds[who])
                for field in rounds[who][0][kind]
            }
            for kind in QUERY_KINDS
        }
        for who in contenders
    }
    return {
        "protocol": PROTOCOL,
        "machine": describe_machine(),
        "peer": peer_versions(options.peer_python),
        "data": data,
        "bytes_per_vector_allowed": options.bytes_per_vector,
        "memory": options.memory,
        "builds": builds,
        "medians": medians,
        "rounds": rounds,
    }


def peer_versions(python: str | None) -> dict[str, str] | None:
    """Return the versions of the peer's environment."""
    if python is None:
        return None
    finished = subprocess.run(
        [python, __file__, "--child", "versions"], stdout=subprocess.PIPE, check=True
    )
    versions: dict[str, str] = json.loads(finished.stdout)
    return versions


def print_table(record: dict[str, Any]) -> None:
    """Print builds and searches, one line a contender."""
    medians = {
        who: {
            field: statistics.median(each[field] for each in builds)
            for field in ("seconds", "cpu_seconds", "peak_rss_bytes", "bytes")
        }
        for who, builds in record["builds"].items()
    }
    n_rows = record["data"]["n_rows"]
    for who, build in medians.items():
        print(
            f"{who:18} {build['bytes'] / n_rows:6.1f} B/vector   build {build['seconds']:8.1f} s, "
            f"{build['cpu_seconds']:8.1f} s of processor, peak "
            f"{build['peak_rss_bytes'] / 2**20:6.0f} MiB   {record['builds'][who][-1]['design']}"
        )
    for field in ("seconds", "cpu_seconds") if "autofaiss" in medians else ():
        ratio = medians["autofaiss"][field] / medians["voxseek"][field]
        print(f"autofaiss / voxseek, {field}: {ratio:.1f}")
    print(f"recall@10 {' / '.join(QUERY_KINDS)}; ms a query, batch and single ({QUERY_KINDS[1]})")
    for who, kinds in record["medians"].items():
        recalls = " / ".join(f"{kinds[kind]['recall_at_10']:.3f}" for kind in QUERY_KINDS)
        brain = kinds[QUERY_KINDS[1]]
        print(
            f"{who:18} {recalls}   {brain['batch_ms_per_query']:.2f}  "
            f"{brain['single_ms_per_query']:.2f}"
        )


def run_as_child(task: str, arguments: list[str]) -> None:
    """Do one task of a contender, and print a JSON object as the last line."""
    if task == "versions":
        from importlib.metadata import version

        names = ("autofaiss", "faiss-cpu", "numpy", "pyarrow")
        print(json.dumps({name: version(name) for name in names}))
    elif task == "build":
        print(json.dumps(build_peer(Path(arguments[0]), arguments[1]), default=str))
    else:
        print(json.dumps(search(arguments[1], Path(arguments[0]), int(arguments[2]))))


def main() -> None:
    """Parse, run, print, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder of the pieces; tens of gigabytes may come")
    parser.add_argument("--peer-python", help="interpreter that has autofaiss")
    parser.add_argument("--family", default="cone", choices=["cone", "copies"])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--part-rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--bytes-per-vector", type=float, default=144.0)
    parser.add_argument("--memory", default="1GiB")
    parser.add_argument("--builds", type=int, default=3, help="of voxseek; autofaiss builds once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    record = run(options)
    print_table(record)
    from machine import hardware_name

    machine = record["machine"]
    size = f"{record['data']['family']}-{record['data']['n_rows']}"
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"index_{size}_{hardware_name(machine)}_{date.today():%Y%m%d}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"recorded in {path.name}", file=sys.stderr)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        run_as_child(sys.argv[2], sys.argv[3:])
    else:
        main()
