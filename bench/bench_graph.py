"""A graph over 8-bit codes beside inverted lists of RaBitQ codes, at equal recall.

One thread. Both nominate candidates, which are then ranked exactly by the float16 rows, held in
memory, with the code that a search uses. Reported for each kind of query and each target is the
quickest effort (breadth x candidates) whose recall@10 reaches the target, median of passes in turn.
Seconds to build leave out reading and rotating the rows, which both need.

The second table is about a copy of the vectors: how many pages of 4 KiB the 200 nearest rows of a
query lie on, in row order and in the order of 256 lists.

Example: python bench/bench_graph.py --out bench/results
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from index_builder.cosine import unit_rows  # noqa: E402
from index_builder.factory import add_nodes, make_graph, read_graph, search_graph  # noqa: E402
from index_builder.reranking import rank_exactly  # noqa: E402
from index_builder.rotation import draw_signs, rotate  # noqa: E402
from index_builder.scalar_codes import encode_eight_bits  # noqa: E402

PROTOCOL = "graph/1"
SEED = 20231
K = 10
PASSES = 3
TARGETS = (0.95, 0.99)
GRAPHS = ((16, 40), (16, 100), (32, 40), (32, 100))  # links, breadth of the build
BITS = (1, 2)
EF_SEARCH = (16, 32, 64, 128, 256, 512)
N_PROBE = (4, 8, 16, 32, 64, 128, 256)
GRAPH_CANDIDATES, LIST_CANDIDATES = (12, 20, 40), (25, 50, 100, 200)
GRAPH_BLOCK_ROWS = 21_845  # linked together, as `GraphWriter` does at 768 numbers
PART_ROWS = 10_000
PAGE_BYTES, HEADER_BYTES, PAGE_LISTS, PAGE_CANDIDATES = 4096, 128, 256, 200
ROW_BYTES = {"fp16": 1536, "sq8": 768, "rabitq4": 388}

Nominate = Callable[[np.ndarray, int, int], np.ndarray]


class Data:
    """One gallery in memory: float16 rows, their rotated form by block, queries and their truth."""

    def __init__(self, family: str, n_rows: int, n_queries: int) -> None:
        from galleries import DIM, QUERY_KINDS, Gallery

        gallery = Gallery(family, n_rows, SEED)
        self.rows = np.empty((n_rows, DIM), np.float16)
        for start in range(0, n_rows, PART_ROWS):
            part = gallery.draw(start // PART_ROWS, min(PART_ROWS, n_rows - start))
            self.rows[start : start + PART_ROWS] = part
        self.sample = unit_rows(self.rows[:: -(-n_rows // 65_536)])
        self.mean = self.sample.mean(axis=0, dtype=np.float64).astype(np.float32)
        self.signs = draw_signs(DIM, SEED)
        self.turned_sample = self.transform(self.sample)
        self.queries = {kind: gallery.draw_queries(kind, n_queries, 1) for kind in QUERY_KINDS}
        self.nearest = {kind: self._search(queries) for kind, queries in self.queries.items()}
        space = SimpleNamespace(width=DIM)
        self.vectors: Any = SimpleNamespace(
            space=space, dtype=self.rows.dtype, take=lambda rows: self.rows.take(rows, axis=0)
        )

    def transform(self, unit: np.ndarray) -> np.ndarray:
        """Return unit rows centered and rotated."""
        return rotate(unit - self.mean, self.signs)

    def blocks(self, block_rows: int) -> Any:
        """Yield the first row of each block, and the block transformed."""
        for start in range(0, len(self.rows), block_rows):
            yield start, self.transform(unit_rows(self.rows[start : start + block_rows]))

    def _search(self, queries: np.ndarray) -> np.ndarray:
        scores = np.concatenate(
            [
                queries @ unit_rows(self.rows[start : start + PART_ROWS]).T
                for start in range(0, len(self.rows), PART_ROWS)
            ],
            axis=1,
        )
        best = np.argpartition(-scores, PAGE_CANDIDATES, axis=1)[:, :PAGE_CANDIDATES]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
        nearest: np.ndarray = np.take_along_axis(best, order, axis=1)
        return nearest


def build_graph(data: Data, n_links: int, breadth: int) -> tuple[Nominate, float, float]:
    """Return what nominates, seconds, and bytes a vector."""
    low, high = float(data.turned_sample.min()), float(data.turned_sample.max())
    graph = make_graph(len(data.mean), n_links, breadth, len(data.rows))
    seconds = 0.0
    for _, vectors in data.blocks(GRAPH_BLOCK_ROWS):
        started = time.perf_counter()
        add_nodes(graph, encode_eight_bits(vectors, low, high))
        seconds += time.perf_counter() - started
    codes, levels, links, _ = read_graph(graph)
    n_bytes = codes.nbytes + links.nbytes + len(levels) * (4 + 8 + 4)

    def nominate(queries: np.ndarray, breadth: int, k: int) -> np.ndarray:
        codes = encode_eight_bits(data.transform(queries), low, high)
        return search_graph(graph, codes, k, max(breadth, k))[1]

    return nominate, seconds, n_bytes / len(data.rows)


class Lists:
    """Centroids trained on the sample, and the list of each row."""

    def __init__(self, data: Data, n_lists: int) -> None:
        started = time.perf_counter()
        points = data.turned_sample
        directions = points / np.linalg.norm(points, axis=1, keepdims=True)
        trained = faiss.Kmeans(
            points.shape[1], n_lists, niter=10, spherical=True, seed=1, max_points_per_centroid=64
        )
        trained.train(directions)
        of_point = trained.index.search(directions, 1)[1][:, 0]
        sums = np.zeros((n_lists, points.shape[1]), np.float32)
        np.add.at(sums, of_point, points)
        sizes = np.maximum(np.bincount(of_point, minlength=n_lists), 1)
        self.centroids = sums / sizes[:, None].astype(np.float32)
        norms = np.linalg.norm(self.centroids, axis=1, keepdims=True)
        self.directions = self.centroids / np.maximum(norms, 1e-30)
        self.coarse = faiss.IndexFlatL2(points.shape[1])
        self.coarse.add(self.centroids)
        self.seconds = time.perf_counter() - started
        self.list_of = np.empty(len(data.rows), np.int64)
        for start, vectors in data.blocks(PART_ROWS):
            started = time.perf_counter()
            self.list_of[start : start + PART_ROWS] = self.route(vectors, 1)[:, 0]
            self.seconds += time.perf_counter() - started

    def route(self, vectors: np.ndarray, n_probe: int) -> np.ndarray:
        """Return the lists nearest in direction."""
        scores = vectors @ self.directions.T
        lists: np.ndarray = np.argpartition(-scores, n_probe - 1, axis=1)[:, :n_probe]
        return lists

    def encode(self, data: Data, bits: int) -> tuple[Nominate, float, float]:
        """Return what nominates, seconds, and bytes a vector."""
        n_lists, width = self.centroids.shape
        index = faiss.IndexIVFRaBitQ(self.coarse, width, n_lists, faiss.METRIC_L2, True, bits)
        index.own_fields, index.is_trained = False, True
        seconds = self.seconds
        for start, vectors in data.blocks(PART_ROWS):
            started = time.perf_counter()
            ids = np.arange(start, start + len(vectors))
            lists = self.list_of[start : start + len(vectors)]
            index.add_core(len(vectors), *map(faiss.swig_ptr, (vectors, ids, lists)))
            seconds += time.perf_counter() - started
        n_bytes = index.code_size + 4 + 4 * width * n_lists / len(data.rows)

        def nominate(queries: np.ndarray, n_probe: int, k: int) -> np.ndarray:
            vectors = data.transform(queries)
            lists = self.route(vectors, n_probe)
            distances = np.stack(
                [
                    np.square(self.centroids[probed] - vector).sum(axis=1)
                    for probed, vector in zip(lists, vectors, strict=True)
                ]
            )
            index.nprobe, index.qb = n_probe, 4
            rows: np.ndarray = index.search_preassigned(vectors, k, lists, distances)[1]
            return rows

        return nominate, seconds, n_bytes


def measure(
    data: Data,
    built: tuple[Nominate, float, float],
    breadths: tuple[int, ...],
    counts: tuple[int, ...],
) -> dict[str, Any]:
    """Return what a contender cost and, by kind of query, recall and time of each effort."""
    nominate, seconds, n_bytes = built
    efforts: dict[str, list[dict[str, float]]] = {}
    for kind, queries in data.queries.items():
        efforts[kind] = []
        for breadth in breadths:
            for n_candidates in counts:
                nominating, ranking = [], []
                for _ in range(PASSES):
                    started = time.perf_counter()
                    rows = nominate(queries, breadth, n_candidates)
                    nominated = time.perf_counter()
                    found = rank_exactly(data.vectors, queries, rows, K)[0]
                    nominating.append(nominated - started)
                    ranking.append(time.perf_counter() - nominated)
                shares = [
                    np.isin(nearest[:K], rows).mean()
                    for nearest, rows in zip(data.nearest[kind], found, strict=True)
                ]
                efforts[kind].append(
                    {
                        "breadth": breadth,
                        "n_candidates": n_candidates,
                        "recall_at_10": float(np.mean(shares)),
                        "nominate_ms": 1e3 * statistics.median(nominating) / len(queries),
                        "rank_ms": 1e3 * statistics.median(ranking) / len(queries),
                    }
                )
    return {"build_s": seconds, "bytes_a_vector": n_bytes, "efforts": efforts}


def quickest(efforts: list[dict[str, float]], target: float) -> dict[str, float] | None:
    """Return the quickest effort that reaches a recall."""
    able = [effort for effort in efforts if effort["recall_at_10"] >= target]
    return min(able, key=lambda each: each["nominate_ms"] + each["rank_ms"], default=None)


def count_pages(data: Data) -> dict[str, dict[str, dict[str, float]]]:
    """Return how many pages the nearest rows of a query lie on, by row size and order."""
    list_of = Lists(data, PAGE_LISTS).list_of
    place = np.empty(len(list_of), np.int64)
    place[np.argsort(list_of, kind="stable")] = np.arange(len(list_of))

    def pages(places: np.ndarray, row_bytes: int) -> float:
        first = (HEADER_BYTES + places * row_bytes) // PAGE_BYTES
        last = (HEADER_BYTES + (places + 1) * row_bytes - 1) // PAGE_BYTES
        both = np.concatenate([first, last], axis=1)
        return float(np.mean([len(np.unique(row)) for row in both]))

    return {
        kind: {
            name: {"row order": pages(rows, size), "list order": pages(place[rows], size)}
            for name, size in ROW_BYTES.items()
        }
        for kind, rows in data.nearest.items()
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure all contenders on all families, and return the record."""
    from machine import describe_machine

    faiss.omp_set_num_threads(1)
    machine = describe_machine()
    families: dict[str, Any] = {}
    for family in options.families:
        data = Data(family, options.rows, options.queries)
        contenders: dict[str, Any] = {}
        for n_links, breadth in GRAPHS:
            contenders[f"graph {n_links}/{breadth}"] = measure(
                data, build_graph(data, n_links, breadth), EF_SEARCH, GRAPH_CANDIDATES
            )
        for n_lists in options.lists:
            lists = Lists(data, n_lists)
            breadths = tuple(n_probe for n_probe in N_PROBE if n_probe <= n_lists)
            for bits in BITS:
                contenders[f"{n_lists} lists, {bits} bits"] = measure(
                    data, lists.encode(data, bits), breadths, LIST_CANDIDATES
                )
        for name, contender in contenders.items():
            print_contender(f"{family}, {name}", contender)
        families[family] = {"contenders": contenders, "pages": count_pages(data)}
        for kind, sizes in families[family]["pages"].items():
            print(f"{family}, {kind}: pages {json.dumps(sizes)}", flush=True)
    return {
        "protocol": PROTOCOL,
        "machine": machine,
        "load_average_after": describe_machine()["load_average"],
        "seed": SEED,
        "n_rows": options.rows,
        "n_queries": options.queries,
        "n_threads": 1,
        "families": families,
    }


def print_contender(name: str, contender: dict[str, Any]) -> None:
    """Print the quickest efforts of a contender, a line a target."""
    print(f"{name}: {contender['build_s']:.0f} s, {contender['bytes_a_vector']:.0f} B a vector")
    for target in TARGETS:
        cells = []
        for kind, efforts in contender["efforts"].items():
            best = quickest(efforts, target)
            cells.append(
                f"{kind} -"
                if best is None
                else f"{kind} {best['nominate_ms']:.2f}+{best['rank_ms']:.2f} ms "
                f"({best['breadth']:.0f}, {best['n_candidates']:.0f})"
            )
        print(f"  recall@10 {target}: {'   '.join(cells)}", flush=True)


def main() -> None:
    """Parse, run, print, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--families", nargs="+", default=["cone", "copies"])
    parser.add_argument("--lists", nargs="+", type=int, default=[512, 1024])
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    options = parser.parse_args()
    record = run(options)
    from machine import hardware_name

    machine = record["machine"]
    commit = (machine["commit"] or "uncommitted")[:12]
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"graph_{hardware_name(machine)}_{date.today():%Y%m%d}_{commit}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"recorded in {path.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
