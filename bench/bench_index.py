"""Build and search an index beside autofaiss at the same number of bytes a vector.

The peer pins numpy below 2, and autofaiss 2.18.0 as pip resolves it today neither imports (pyarrow)
nor trains OPQ (faiss); so it runs in an environment of its own, named by ``--peer-python``:
``pip install autofaiss==2.18.0 'pyarrow<22' 'faiss-cpu<1.12'``. Each build and each round of
searches is a process of its own; rounds of the contenders alternate, and medians are reported.
autofaiss builds with its own
rules at ``max_index_memory_usage`` and searches with the parameters it tuned for 10 ms a query.
It has no exact ranking; "autofaiss, ranked" adds ours, with as many candidates as voxseek ranks, so
that both contenders may read the float16 rows.

Data: rows = 0.7 axis + 0.5 center + 0.5 noise, normalized. Centers and noise are Gaussian with a
spectrum of i**-0.7 (variances), sqrt(n) clusters with weights i**-0.7: mean cosine about 0.5.
Queries: "in" is drawn like the rows; "shrunk" is half a row and half the axis plus noise of norm
0.6 (a decoder trained on squared error shrinks to the mean); "shifted" adds an offset of 0.6 that
no row has and noise of norm 0.4 (another modality). The certificate of voxseek sees other queries
of the "shrunk" kind, drawn with another seed.

Example: python bench/bench_index.py --peer-python peer/bin/python --rows 50000
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

SEED = 20231
PROTOCOL = "index/1"
DIM = 768
K = 10
ROOT = Path(__file__).resolve().parents[1]
CONTENDERS = ("voxseek", "autofaiss", "autofaiss, ranked")
QUERY_KINDS = ("in", "shrunk", "shifted")


def draw_gallery(n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return unit rows (n_rows, DIM) float32, and the axis of their cone."""
    rng = np.random.default_rng(SEED)
    axis = _unit(rng.standard_normal((1, DIM)).astype(np.float32))[0]
    spectrum = (np.arange(1, DIM + 1) ** -0.35).astype(np.float32)
    spectrum /= np.linalg.norm(spectrum)
    n_clusters = max(20, int(n_rows**0.5))
    centers = rng.standard_normal((n_clusters, DIM), dtype=np.float32) * spectrum
    weights = np.arange(1, n_clusters + 1) ** -0.7
    labels = rng.choice(n_clusters, n_rows, p=weights / weights.sum())
    rows = 0.5 * rng.standard_normal((n_rows, DIM), dtype=np.float32) * spectrum
    rows += 0.7 * axis + 0.5 * centers[labels]
    return _unit(rows), axis


def draw_queries(
    kind: str, spare: np.ndarray, rows: np.ndarray, axis: np.ndarray, seed: int
) -> np.ndarray:
    """Return as many queries of one kind as there are ``spare`` rows, unit rows, float32."""
    if kind == "in":
        return spare
    rng = np.random.default_rng(seed)
    near = rows[rng.choice(len(rows), len(spare), replace=False)]
    noise = rng.standard_normal(near.shape, dtype=np.float32) / np.float32(DIM**0.5)
    if kind == "shrunk":
        return _unit(0.5 * near + 0.5 * axis + 0.6 * noise)
    offset = _unit(np.random.default_rng(SEED + 9).standard_normal((1, DIM)).astype(np.float32))
    return _unit(near + 0.6 * offset + 0.4 * noise)


def prepare(folder: Path, n_rows: int, n_queries: int) -> dict[str, Any]:
    """Write gallery, queries and ground truth; describe the data."""
    import pyarrow as pa

    from index_builder.cosine import unit_rows
    from index_builder.embeddings.space import EmbeddingSpace
    from index_builder.embeddings.writer import EmbeddingWriter
    from index_builder.ground_truth import batches_of, exact_search

    drawn, axis = draw_gallery(n_rows + n_queries)
    rows, spare = drawn[:n_rows], drawn[n_rows:]
    space = EmbeddingSpace("simulated", "final", 1, DIM, True)

    def write(name: str, vectors: np.ndarray) -> None:
        with EmbeddingWriter(folder / name, space, command="bench_index", details={}) as writer:
            writer.write(vectors, pa.table({"image_id": np.arange(len(vectors))}))
            writer.finish()

    write("gallery", rows)
    write("calibration", draw_queries("shrunk", spare, rows, axis, SEED + 1))
    stored = rows.astype(np.float16)
    for kind in QUERY_KINDS:
        queries = draw_queries(kind, spare, rows, axis, SEED + 2)
        np.save(folder / f"queries_{kind}.npy", queries)
        truth = exact_search(batches_of(stored, 8192), unit_rows(queries), K)[0]
        np.save(folder / f"truth_{kind}.npy", truth)
    return {
        "n_rows": n_rows,
        "dim": DIM,
        "n_queries": n_queries,
        "mean_cosine": float(np.linalg.norm(rows.mean(axis=0)) ** 2),
        "seed": SEED,
    }


def build(who: str, folder: Path, memory_bytes: int) -> dict[str, Any]:
    """Build one contender's index; return seconds and bytes."""
    started = time.perf_counter()
    if who == "voxseek":
        from index_builder.build import build_index
        from index_builder.embeddings.reader import EmbeddingFolder
        from index_builder.planning import plan_index

        gallery = EmbeddingFolder.open(folder / "gallery")
        plan = plan_index(
            gallery.n_rows, gallery.space, memory_bytes=memory_bytes, code="ivf-rabitq"
        )
        manifest = build_index(
            gallery, folder / "voxseek", plan, queries=EmbeddingFolder.open(folder / "calibration")
        )
        described = {"design": plan.design, "effort": manifest["certificate"]["effort"]}
        n_bytes = manifest["ram_bytes"]
    else:
        from autofaiss import build_index as build_peer

        _, infos = build_peer(
            embeddings=str(folder / "gallery" / "img_emb"),
            index_path=str(folder / "autofaiss.index"),
            index_infos_path=str(folder / "autofaiss.json"),
            max_index_memory_usage=f"{memory_bytes / 1e6:.3f}MB",
            current_memory_available="8GB",
            metric_type="ip",
            nb_cores=os.cpu_count(),
        )
        described = {"design": infos["index_key"], "effort": infos["index_param"]}
        n_bytes = (folder / "autofaiss.index").stat().st_size
    return {"seconds": time.perf_counter() - started, "bytes": n_bytes, **described}


def search(who: str, folder: Path, n_candidates: int) -> dict[str, Any]:
    """Search for all kinds of queries, as one batch and one by one."""
    find = _open_voxseek(folder) if who == "voxseek" else _open_peer(who, folder, n_candidates)
    found: dict[str, Any] = {}
    for kind in QUERY_KINDS:
        queries = np.load(folder / f"queries_{kind}.npy")
        truth = np.load(folder / f"truth_{kind}.npy")
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


def _open_voxseek(folder: Path) -> Any:
    from retrieval.search.engine import SearchEngine

    engine = SearchEngine.open(folder / "voxseek")
    return lambda queries: engine.search(queries, K).rows


def _open_peer(who: str, folder: Path, n_candidates: int) -> Any:
    import faiss

    index = faiss.read_index(str(folder / "autofaiss.index"))
    if who == "autofaiss":
        return lambda queries: index.search(queries, K)[1]
    stored = np.load(folder / "gallery" / "img_emb" / "img_emb_0000.npy", mmap_mode="r")

    def find(queries: np.ndarray) -> np.ndarray:
        candidates = index.search(queries, n_candidates)[1]
        best = np.full((len(queries), K), -1)
        for i, rows in enumerate(candidates):
            rows = rows[rows >= 0]
            scores = stored[rows].astype(np.float32) @ queries[i]
            chosen = rows[np.argsort(-scores)[:K]]
            best[i, : len(chosen)] = chosen
        return best

    return find


def _unit(rows: np.ndarray) -> np.ndarray:
    unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def run_child(python: str, *arguments: str, timeout_seconds: float) -> dict[str, Any]:
    """Run one task of a contender in its environment, and return what it prints last."""
    finished = subprocess.run(
        [python, str(Path(__file__).resolve()), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    if finished.returncode:
        sys.exit(finished.stderr)
    answer: dict[str, Any] = json.loads(finished.stdout.strip().splitlines()[-1])
    return answer


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Prepare, build, search in turns, and return the record."""
    from machine import describe_machine

    memory_bytes = int(options.bytes_per_vector * options.rows)
    pythons = {who: options.peer_python for who in CONTENDERS} | {"voxseek": sys.executable}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        machine = describe_machine()
        data = prepare(folder, options.rows, options.queries)
        builds = {}
        for who in ("voxseek", "autofaiss"):
            print(f"build {who}", file=sys.stderr)
            builds[who] = run_child(
                pythons[who],
                "--child",
                "build",
                who,
                name,
                str(memory_bytes),
                timeout_seconds=options.most_build_seconds,
            )
        n_candidates = builds["voxseek"]["effort"]["n_candidates"]
        rounds: dict[str, list[dict[str, Any]]] = {who: [] for who in CONTENDERS}
        for number in range(options.rounds):
            for who in CONTENDERS:
                print(f"search {who}, round {number}", file=sys.stderr)
                rounds[who].append(
                    run_child(
                        pythons[who],
                        "--child",
                        "search",
                        who,
                        name,
                        str(n_candidates),
                        timeout_seconds=600,
                    )
                )
    medians = {
        who: {
            kind: {
                field: statistics.median(each[kind][field] for each in rounds[who])
                for field in rounds[who][0][kind]
            }
            for kind in QUERY_KINDS
        }
        for who in CONTENDERS
    }
    return {
        "protocol": PROTOCOL,
        "machine": machine,
        "load_average_after": describe_machine()["load_average"],
        "peer": run_child(options.peer_python, "--child", "versions", timeout_seconds=60),
        "data": data,
        "bytes_per_vector_allowed": options.bytes_per_vector,
        "builds": builds,
        "medians": medians,
        "rounds": rounds,
    }


def print_table(record: dict[str, Any]) -> None:
    """Print one line a contender."""
    print(f"{'':18} {'B/vector':>8} {'build s':>8}  recall@10 {'/'.join(QUERY_KINDS)}   ms/query")
    for who, kinds in record["medians"].items():
        built = record["builds"][who.split(",")[0]]
        recalls = " / ".join(f"{kinds[kind]['recall_at_10']:.3f}" for kind in QUERY_KINDS)
        milliseconds = kinds["shrunk"]["batch_ms_per_query"]
        per_vector = built["bytes"] / record["data"]["n_rows"]
        print(
            f"{who:18} {per_vector:8.1f} {built['seconds']:8.1f}  {recalls}   "
            f"{milliseconds:.2f}   {built['design']}"
        )


def run_as_child(task: str, arguments: list[str]) -> None:
    """Do one task of a contender, and print a JSON object as the last line."""
    if task == "versions":
        from importlib.metadata import version

        names = ("autofaiss", "faiss-cpu", "numpy", "pyarrow")
        print(json.dumps({name: version(name) for name in names}))
        return
    who, folder, number = arguments
    work = build if task == "build" else search
    print(json.dumps(work(who, Path(folder), int(number)), default=str))


def main() -> None:
    """Parse, run, print, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", required=True, help="interpreter that has autofaiss")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--bytes-per-vector", type=float, default=150.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--most-build-seconds", type=float, default=3600.0)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    options = parser.parse_args()
    record = run(options)
    print_table(record)
    from machine import hardware_name

    machine = record["machine"]
    commit = (machine["commit"] or "uncommitted")[:12]
    today = f"{date.today():%Y%m%d}"
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"index_{hardware_name(machine)}_{today}_{commit}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"recorded in {path.name}", file=sys.stderr)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        run_as_child(sys.argv[2], sys.argv[3:])
    else:
        main()
