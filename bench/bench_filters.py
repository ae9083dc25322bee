"""Search under SQL predicates, beside filtering what an unfiltered search finds.

A simulated gallery (bench/galleries.py, *cone*) with ten columns drawn from the same seed. Four
predicates over columns that know nothing of the vectors pass 50, 10, 1 and 0.1 % of the rows. Two
more are over ``aesthetic``, which follows a direction of the vectors, so that what passes lies on
one side of the gallery and most queries on the other.

*Filtered* is ``voxseek search --where``. *Post-filtered* asks the same index, without a filter, for
twenty hits, and for twice as many again while fewer than ten of them pass. Queries are half of the
kind *in*, drawn like the rows, and half *shrunk*, as a decoder predicts. Recall is of the ten
nearest rows that pass, by comparing all of them. The two take turns; medians over rounds. At small
shares post-filtering takes too long for all queries: it gets as many as fit in ``--seconds``.

Example: python bench/bench_filters.py WORK --rows 50000 --out bench/results
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PROTOCOL = "filters/1"
SEED = 20231
SPACE = "simulated:final:1x768"
PART_ROWS = 50_000
K = 10
KINDS = ("in", "shrunk")
BATCH = 256
FIRST_ASKED = 2 * K
MOST_ASKED = 1 << 15  # hits that post-filtering asks for before it gives up
PREDICATES = {
    "50 %": "lang = 'en' AND punsafe < 0.999",
    "10 %": "width >= 1844 AND height < 1024",
    "1 %": "caption LIKE '%zebra%'",
    "0.1 %": "caption LIKE '%zebra%' AND pwatermark < 0.1",
    "1 %, by direction": "aesthetic >= 7.326",
    "0.1 %, by direction": "aesthetic >= 8.090",
}
DESIGNS = {
    "lists": ["--code", "ivf-rabitq", "--bits", "1"],
    "graph": ["--code", "hnsw-sq8"],
}


def write_gallery(folder: Path, n_rows: int) -> None:
    """Write vectors and ten columns as clip-retrieval's inference leaves them."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from galleries import DIM, Gallery, unit

    gallery = Gallery("cone", n_rows, SEED)
    direction = np.random.default_rng((SEED, 1)).standard_normal((1, DIM), dtype=np.float32)
    direction -= direction @ gallery.axis * gallery.axis
    along = unit(direction)[0]
    sample = gallery.draw(0, min(PART_ROWS, n_rows)) @ along
    for name in ("img_emb", "metadata"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for part in range(-(-n_rows // PART_ROWS)):
        first = part * PART_ROWS
        rows = gallery.draw(part, min(PART_ROWS, n_rows - first))
        np.save(folder / "img_emb" / f"img_emb_{part:03d}.npy", rows.astype(np.float16))
        rng, n = np.random.default_rng((SEED, 2, part)), len(rows)
        is_zebra = rng.random(n) < 0.01
        keys = [f"{first + i:09d}" for i in range(n)]
        columns = {
            "key": keys,
            "url": [f"https://example.org/{key}.jpg" for key in keys],
            "caption": [
                f"a photo of a {'zebra' if each else 'horse'} in field {key}"
                for each, key in zip(is_zebra, keys, strict=True)
            ],
            "width": rng.integers(100, 2281, n).astype(np.int32),  # a fifth from 1844 on
            "height": rng.integers(0, 2048, n).astype(np.int32),
            "punsafe": rng.random(n).astype(np.float32),
            "pwatermark": rng.random(n).astype(np.float32),
            "aesthetic": (5 + (rows @ along - sample.mean()) / sample.std()).astype(np.float32),
            "similarity": rng.uniform(0.2, 0.4, n).astype(np.float32),
            "lang": np.where(rng.random(n) < 0.5005, "en", "multi"),
        }
        pq.write_table(pa.table(columns), folder / "metadata" / f"metadata_{part:03d}.parquet")


def prepare(work: Path, options: argparse.Namespace) -> np.ndarray:
    """Write the gallery, build the indexes, and return the queries."""
    import pyarrow as pa
    from galleries import Gallery

    from index_builder.embeddings.space import EmbeddingSpace
    from index_builder.embeddings.writer import EmbeddingWriter

    gallery = work / "gallery"
    if not (work / "gallery.done").exists():
        write_gallery(gallery, options.rows)
        (work / "gallery.done").touch()
    drawn = Gallery("cone", options.rows, SEED)
    predicted = work / "predicted"
    if not (predicted / "space.json").exists():
        with EmbeddingWriter(
            predicted, EmbeddingSpace.parse(SPACE), command="bench_filters", details={"seed": SEED}
        ) as writer:
            rows = drawn.draw_queries("shrunk", 1000, 2)
            writer.write(rows, pa.table({"query": np.arange(len(rows))}))
            writer.finish()
    for design in options.designs:
        command = [
            *(sys.executable, str(ROOT / "cli.py"), "index", "build", str(gallery)),
            *(str(work / design), "--space", SPACE, "--memory", options.memory),
            *("--queries", str(predicted), *DESIGNS[design]),
        ]
        subprocess.run(command, check=True, stdout=sys.stderr)
    n_each = options.queries // len(KINDS)
    return np.concatenate([drawn.draw_queries(kind, n_each, 1) for kind in KINDS])


def find_truth(engine: Any, queries: np.ndarray, allowed: Any) -> np.ndarray:
    """Return the nearest rows that pass, (n, K), by comparing all that do."""
    from index_builder.cosine import unit_rows
    from index_builder.ground_truth import batches_of, block_rows, exact_search

    passing = allowed.rows()
    step = block_rows(len(queries), queries.shape[1])
    best_rows = np.full((len(queries), 0), -1)
    best_scores = np.full((len(queries), 0), np.nan, np.float32)
    for start in range(0, len(passing), PART_ROWS):
        rows = passing[start : start + PART_ROWS]
        vectors = engine.embeddings.take(rows).reshape(len(rows), -1)
        found, scores = exact_search(batches_of(vectors, step), unit_rows(queries), K)
        found = np.where(found < 0, -1, rows[np.maximum(found, 0)])
        best_rows = np.concatenate([best_rows, found], axis=1)
        best_scores = np.concatenate([best_scores, scores], axis=1)
        order = np.lexsort((best_rows, -np.nan_to_num(best_scores, nan=-2)), axis=1)[:, :K]
        best_rows = np.take_along_axis(best_rows, order, axis=1)
        best_scores = np.take_along_axis(best_scores, order, axis=1)
    return best_rows


def search_filtered(engine: Any, queries: np.ndarray, where: str) -> np.ndarray:
    """Return rows (n, K): what voxseek does."""
    from retrieval.searching.request import SearchRequest

    request = SearchRequest(K, where=where, unsafe_from=None)
    rows: np.ndarray = engine.search(queries, request, batch_queries=BATCH).rows
    return rows


def search_then_filter(engine: Any, queries: np.ndarray, allowed: Any) -> tuple[np.ndarray, int]:
    """Return rows (n, K), -1 where it gave up, and the most hits that were asked for."""
    from retrieval.searching.request import SearchRequest

    rows = np.full((len(queries), K), -1)
    lacking, n_asked = np.arange(len(queries)), FIRST_ASKED
    while True:
        request = SearchRequest(n_asked, unsafe_from=None)
        found = engine.search(queries[lacking], request, batch_queries=BATCH).rows
        passes = (found >= 0) & allowed.holds(np.maximum(found, 0))
        order = np.argsort(~passes, axis=1, kind="stable")[:, :K]
        kept = np.where(passes, found, -1)
        rows[lacking] = np.take_along_axis(kept, order, axis=1)
        lacking = lacking[passes.sum(axis=1) < K]
        if not len(lacking) or 2 * n_asked > min(MOST_ASKED, engine.n_rows):
            return rows, n_asked
        n_asked *= 2


def alone(search: Callable[[np.ndarray], Any], queries: np.ndarray, seconds: float) -> list[float]:
    """Return ms of each query, asked one at a time, as many as fit in the time."""
    taken: list[float] = []
    for query in range(len(queries)):
        started = time.perf_counter()
        search(queries[query : query + 1])
        taken.append(1e3 * (time.perf_counter() - started))
        if sum(taken) > 1e3 * seconds:
            break
    return taken


def together(
    search: Callable[[np.ndarray], Any], queries: np.ndarray, single_ms: float, seconds: float
) -> tuple[float, int]:
    """Return ms a query of a batch, and how many queries the batch had."""
    n = min(BATCH, len(queries), max(8, math.ceil(1e3 * seconds / single_ms)))
    batch = queries[np.linspace(0, len(queries) - 1, n).astype(int)]
    started = time.perf_counter()
    search(batch)
    return 1e3 * (time.perf_counter() - started) / n, n


def describe(rows: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Return recall by kind of query, and how many hits the queries got."""
    shares = np.array([np.isin(t, r).mean() for t, r in zip(truth, rows, strict=True)])
    kinds = np.array_split(shares, len(KINDS))
    return {
        "recall_at_10": {kind: float(of.mean()) for kind, of in zip(KINDS, kinds, strict=True)},
        "least_hits": int((rows >= 0).sum(axis=1).min()),
        "mean_hits": float((rows >= 0).sum(axis=1).mean()),
    }


def measure(engine: Any, queries: np.ndarray, where: str, options: Any) -> dict[str, Any]:
    """Measure one predicate on one index."""
    from index_builder.manifest import shards_of
    from retrieval.metadata.store import MetadataStore
    from retrieval.metadata.where import rows_where

    store = MetadataStore.open(shards_of(engine.path, engine.manifest))
    evaluated, seconds = [], options.seconds
    for _ in range(options.rounds):
        started = time.perf_counter()
        allowed = rows_where(store, where)
        evaluated.append(1e3 * (time.perf_counter() - started))
    truth = find_truth(engine, queries, allowed)
    searches: dict[str, Callable[[np.ndarray], Any]] = {
        "filtered": lambda some: search_filtered(engine, some, where),
        "post-filtered": lambda some: search_then_filter(engine, some, allowed)[0],
    }
    result: dict[str, Any] = {
        "where": where,
        "n_passing": len(allowed),
        "evaluate_ms": statistics.median(evaluated),
        "filtered": describe(search_filtered(engine, queries, where), truth),
    }
    # As many queries for post-filtering as fit: those of both kinds in turn.
    mixed = np.arange(len(queries)).reshape(len(KINDS), -1).T.ravel()
    search_then_filter(engine, queries[mixed[:2]], allowed)
    started = time.perf_counter()
    search_then_filter(engine, queries[mixed[:2]], allowed)
    pair_seconds = time.perf_counter() - started
    n_post = len(KINDS) * int(np.clip(seconds / pair_seconds, 4, len(queries) // len(KINDS)))
    chosen = np.sort(mixed[:n_post])
    rows, n_asked = search_then_filter(engine, queries[chosen], allowed)
    result["post-filtered"] = describe(rows, truth[chosen])
    result["post-filtered"] |= {"n_queries": n_post, "n_asked": n_asked}
    rounds: dict[str, list[Any]] = {name: [] for name in searches}
    for _ in range(options.rounds):
        for name, search in searches.items():
            single = alone(search, queries[mixed], seconds / 2)
            batch, n_batch = together(search, queries, statistics.median(single), seconds / 2)
            rounds[name].append({"alone_ms": single, "batch_ms": batch, "n_batch": n_batch})
    for name, of_name in rounds.items():
        pooled = [ms for each in of_name for ms in each["alone_ms"]]
        result[name] |= {
            "alone_ms": statistics.median(pooled),
            "alone_p99_ms": float(np.percentile(pooled, 99)),
            "n_alone": len(pooled),
            "batch_ms": statistics.median(each["batch_ms"] for each in of_name),
            "n_batch": of_name[0]["n_batch"],
        }
    return result


def measure_unfiltered(engine: Any, queries: np.ndarray, options: Any) -> dict[str, Any]:
    """Measure the same queries without a filter."""
    from retrieval.searching.request import SearchRequest

    def search(some: np.ndarray) -> Any:
        return engine.search(some, SearchRequest(K, unsafe_from=None), batch_queries=BATCH)

    search(queries)
    single = [ms for _ in range(options.rounds) for ms in alone(search, queries, options.seconds)]
    batch = [together(search, queries, 1, options.seconds)[0] for _ in range(options.rounds)]
    return {
        "alone_ms": statistics.median(single),
        "alone_p99_ms": float(np.percentile(single, 99)),
        "batch_ms": statistics.median(batch),
    }


def format_tables(record: dict[str, Any]) -> str:
    """Return the tables of a record as Markdown, one a design."""
    lines = []
    for design, of_design in record["designs"].items():
        plain = of_design["unfiltered"]
        lines += [
            f"{design} ({of_design['plan']}; without a filter {plain['alone_ms']:.1f} ms alone, "
            f"{plain['batch_ms']:.2f} ms in batches):",
            "",
            "| rows that pass | predicate | evaluated once | hits, least | recall@10 in / shrunk | "
            "ms alone, p50 / p99 | ms in batches | post-filtered: hits, mean | recall@10 | "
            "ms alone | ms in batches | asked for |",
            "|" + "---|" * 12,
        ]
        for name, each in of_design["predicates"].items():
            mine, theirs = each["filtered"], each["post-filtered"]
            cells = [
                f"{name} ({each['n_passing']:,})",
                f"`{each['where']}`",
                f"{each['evaluate_ms']:.0f} ms",
                str(mine["least_hits"]),
                " / ".join(f"{share:.3f}" for share in mine["recall_at_10"].values()),
                f"{mine['alone_ms']:.1f} / {mine['alone_p99_ms']:.1f}",
                f"{mine['batch_ms']:.2f}",
                f"{theirs['mean_hits']:.1f}",
                " / ".join(f"{share:.3f}" for share in theirs["recall_at_10"].values()),
                f"{theirs['alone_ms']:.1f}",
                f"{theirs['batch_ms']:.2f}",
                f"{theirs['n_asked']:,}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything, and return the record."""
    from machine import describe_machine

    from retrieval.searching.engine import SearchEngine

    options.work.mkdir(parents=True, exist_ok=True)
    queries = prepare(options.work, options)
    machine = describe_machine()
    designs: dict[str, Any] = {}
    for design in options.designs:
        engine = SearchEngine.open(options.work / design)
        designs[design] = {
            "plan": engine.plan.design,
            "effort": engine.manifest["certificate"]["effort"],
            "unfiltered": measure_unfiltered(engine, queries, options),
            "predicates": {},
        }
        for name, where in PREDICATES.items():
            found = measure(engine, queries, where, options)
            designs[design]["predicates"][name] = found
            print(f"{design}, {name}: {json.dumps(found)}", file=sys.stderr, flush=True)
    return {
        "protocol": PROTOCOL,
        "seed": SEED,
        "n_rows": options.rows,
        "n_queries": len(queries),
        "k": K,
        "n_rounds": options.rounds,
        "seconds": options.seconds,
        "machine": machine,
        "load_average_after": describe_machine()["load_average"],
        "designs": designs,
    }


def main() -> None:
    """Parse, measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, nargs="?", help="folder for the gallery and indexes")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20, help="for a contender and round")
    parser.add_argument("--memory", default="3GiB", help="for building and for the open index")
    parser.add_argument("--designs", nargs="+", default=list(DESIGNS), choices=list(DESIGNS))
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--table", type=Path, help="print the tables of this record and stop")
    options = parser.parse_args()
    if options.table:
        print(format_tables(json.loads(options.table.read_text())))
        return
    if options.work is None:
        parser.error("WORK is needed")
    sys.path.insert(0, str(ROOT))
    record = run(options)
    from machine import hardware_name

    options.out.mkdir(parents=True, exist_ok=True)
    name = f"filters-{options.rows}_{hardware_name(record['machine'])}_{date.today():%Y%m%d}.json"
    (options.out / name).write_text(json.dumps(record, indent=1) + "\n")
    print(format_tables(record))
    print(f"recorded in {name}", file=sys.stderr)


if __name__ == "__main__":
    main()
