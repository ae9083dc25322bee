"""Which lists hold the neighbors: routers and ways to train them, at equal codes looked at.

For each set of vectors and each kind of query, the share of the ten nearest rows that stand in the
lists probed, by how many codes these hold. Routers:

    inner product   spherical k-means on unit vectors, as FAISS makes lists for that metric
    Euclidean       k-means on unit vectors
    centered        k-means by direction around the mean: `index_builder.quantizer`

Then, for the centered router: all centroids compared beside a graph walked over them, few and
many, and its k-means beside FAISS's SuperKMeans, by how near held-out rows are to their centroid.

Vectors: both simulated families (bench/galleries.py), and any folders of real embeddings, if there
are any with predictions of a trained model for them, such as the demo's.

Example: python bench/bench_router.py --real demo/targets demo/predictions --out bench/results
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import faiss
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from index_builder import costs  # noqa: E402
from index_builder.cosine import unit_rows  # noqa: E402
from index_builder.embeddings.reader import EmbeddingFolder  # noqa: E402
from index_builder.ground_truth import batches_of, exact_search  # noqa: E402
from index_builder.planning import most_lists  # noqa: E402
from index_builder.quantizer import (  # noqa: E402
    Quantizer,
    _Directions,
    _Walk,
    train_quantizer,
)

PROTOCOL = "router/1"
SEED = 5
K = 10
POINTS_PER_LIST = 64
BLOCK_ROWS = 16_384
N_MANY, K_LISTS = 65_536, 16
# Shares of all codes that a query looks at; recall there is interpolated between probes.
SHARES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1)


class Plain:
    """FAISS's lists over unit vectors, by inner product or Euclidean distance."""

    def __init__(self, unit: np.ndarray, n_lists: int, *, is_spherical: bool) -> None:
        trained = faiss.Kmeans(
            unit.shape[1],
            n_lists,
            niter=10,
            spherical=is_spherical,
            seed=SEED,
            max_points_per_centroid=POINTS_PER_LIST,
        )
        trained.train(unit)
        self.n_lists = n_lists
        self._index = trained.index

    def route(self, unit: np.ndarray, n_probe: int) -> np.ndarray:
        """Return the lists to probe."""
        lists: np.ndarray = self._index.search(unit, n_probe)[1]
        return lists


class Centered:
    """The project's own router."""

    def __init__(self, quantizer: Quantizer) -> None:
        self.n_lists = quantizer.n_lists
        self._quantizer = quantizer

    def route(self, unit: np.ndarray, n_probe: int) -> np.ndarray:
        """Return the lists to probe."""
        return self._quantizer.route(self._quantizer.transform(unit), n_probe)


def measure(router: Any, rows: np.ndarray, queries: dict[str, np.ndarray], truth: Any) -> Any:
    """Return by kind of query the recall at each share of codes, and the rows routed a second."""
    started = time.perf_counter()
    list_of = np.concatenate(
        [
            router.route(unit_rows(rows[start : start + BLOCK_ROWS]), 1)[:, 0]
            for start in range(0, len(rows), BLOCK_ROWS)
        ]
    )
    seconds = time.perf_counter() - started
    sizes = np.bincount(list_of, minlength=router.n_lists)
    found: dict[str, Any] = {}
    for kind, asked in queries.items():
        shares, recalls = [0.0], [0.0]
        n_probe = 1
        while n_probe <= router.n_lists and shares[-1] < SHARES[-1]:
            probed = router.route(asked, n_probe)
            shares.append(float(sizes[probed].sum(axis=1).mean() / len(rows)))
            hits = [
                np.isin(list_of[near], lists).mean()
                for near, lists in zip(truth[kind], probed, strict=True)
            ]
            recalls.append(float(np.mean(hits)))
            n_probe *= 2
        found[kind] = {str(s): round(float(np.interp(s, shares, recalls)), 4) for s in SHARES}
    imbalance = float(np.square(sizes, dtype=np.float64).sum() * router.n_lists / len(rows) ** 2)
    return {"recall": found, "rows_per_second": len(rows) / seconds, "imbalance": imbalance}


def compare(rows: np.ndarray, queries: dict[str, np.ndarray], n_lists: int) -> dict[str, Any]:
    """Measure every router on one set of vectors."""
    asked = {kind: unit_rows(vectors) for kind, vectors in queries.items()}
    together = np.concatenate(list(asked.values()))
    nearest = exact_search(batches_of(rows, BLOCK_ROWS), together, K)[0]
    bounds = np.cumsum([len(vectors) for vectors in asked.values()])[:-1]
    truth = dict(zip(asked, np.split(nearest, bounds), strict=True))
    rng = np.random.default_rng(SEED)
    n_train = min(len(rows), POINTS_PER_LIST * n_lists)
    sample = unit_rows(rows[np.sort(rng.choice(len(rows), n_train, replace=False))])
    quantizer = train_quantizer(sample.copy(), n_lists, SEED)
    routers: dict[str, Any] = {
        "inner product": Plain(sample, n_lists, is_spherical=True),
        "Euclidean": Plain(sample, n_lists, is_spherical=False),
        "centered": Centered(quantizer),
    }
    most = costs.MOST_COMPARED_LISTS
    costs.MOST_COMPARED_LISTS = 0
    walk = Quantizer(
        quantizer.mean, quantizer.signs, quantizer.centroids, quantizer.low, quantizer.high
    )
    routers["centered, by a graph"] = Centered(walk)
    costs.MOST_COMPARED_LISTS = most
    measured = {name: measure(router, rows, asked, truth) for name, router in routers.items()}
    return {"n_rows": len(rows), "n_lists": n_lists, "routers": measured}


def compare_training(rows: np.ndarray, n_lists: int) -> dict[str, Any]:
    """Return seconds, and the mean cosine of held-out rows with their centroid, around the mean."""
    order = np.random.default_rng(SEED).permutation(len(rows))
    n_train = min(len(rows) // 2, POINTS_PER_LIST * n_lists)
    sample = unit_rows(rows[np.sort(order[:n_train])])
    held_out = unit_rows(rows[order[n_train : n_train + 10_000]])
    started = time.perf_counter()
    quantizer = train_quantizer(sample.copy(), n_lists, SEED)
    found = {"ours": (time.perf_counter() - started, quantizer.centroids)}
    points = quantizer.transform(sample)
    directions = np.ascontiguousarray(points / np.linalg.norm(points, axis=1, keepdims=True))
    for name, maker in (
        ("FAISS, 10 iterations", faiss.ClusteringParameters),
        ("SuperKMeans", None),
    ):
        parameters = maker() if maker else faiss.SuperKMeansParameters()
        parameters.niter, parameters.seed = 10, SEED
        parameters.max_points_per_centroid = POINTS_PER_LIST
        started = time.perf_counter()
        if maker:
            parameters.spherical = True
            clustering = faiss.Clustering(directions.shape[1], n_lists, parameters)
            clustering.train(directions, faiss.IndexFlatIP(directions.shape[1]))
        else:
            clustering = faiss.SuperKMeans(directions.shape[1], n_lists, parameters)
            clustering.train(directions)
        centroids = faiss.vector_to_array(clustering.centroids).reshape(n_lists, -1)
        found[name] = (time.perf_counter() - started, centroids)
    asked = quantizer.transform(held_out)
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    return {
        name: {
            "seconds": seconds,
            "mean_cosine": float(
                (asked @ (centroids / np.linalg.norm(centroids, axis=1, keepdims=True)).T)
                .max(axis=1)
                .mean()
            ),
        }
        for name, (seconds, centroids) in found.items()
    }


def compare_finders(gallery: Any) -> dict[str, float]:
    """Compare a graph over many centroids with comparing all; rows stand in for centroids."""
    drawn = unit_rows(np.concatenate([gallery.draw(part, 10_000) for part in range(7)]))
    quantizer = train_quantizer(drawn[::2].copy(), 0, SEED)
    turned = quantizer.transform(drawn)
    directions = _Directions.of(np.ascontiguousarray(turned[:N_MANY]))
    walk = _Walk(directions)
    rows = np.ascontiguousarray(turned[N_MANY : N_MANY + 4000])
    found, seconds = {}, {}
    for name, finder in (("compared", directions), ("walked", walk)):
        started = time.perf_counter()
        found[name] = finder.nearest(rows, 1)
        seconds[name] = time.perf_counter() - started
    asked = quantizer.transform(unit_rows(gallery.draw_queries("shrunk", 300, 1)))
    wanted, reached = directions.nearest(asked, K_LISTS), walk.nearest(asked, K_LISTS)
    shares = [np.isin(w, r).mean() for w, r in zip(wanted, reached, strict=True)]
    return {
        "n_lists": N_MANY,
        "same_list": float((found["compared"] == found["walked"]).mean()),
        "nearest_lists_reached": float(np.mean(shares)),
        "compared_us_a_row": 1e6 * seconds["compared"] / len(rows),
        "walked_us_a_row": 1e6 * seconds["walked"] / len(rows),
    }


def load_real(folders: list[Path]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return real embeddings; queries: held-out rows, these moved, and predictions."""
    folder = EmbeddingFolder.open(folders[0])
    rows = folder.take(np.arange(folder.n_rows)).reshape(folder.n_rows, -1)
    rng = np.random.default_rng(SEED)
    is_held = rng.permutation(len(rows)) < min(1000, len(rows) // 8)
    held, mean = unit_rows(rows[is_held]), unit_rows(rows).mean(axis=0)
    noise = rng.standard_normal(held.shape, dtype=np.float32) / np.float32(held.shape[1] ** 0.5)
    queries = {"in": held, "shrunk": 0.5 * held + 0.5 * mean + 0.3 * noise, "noisy": held + noise}
    if len(folders) > 1:
        predicted = EmbeddingFolder.open(folders[1])
        asked = predicted.take(np.arange(predicted.n_rows))
        queries["predicted"] = asked.reshape(predicted.n_rows, -1)
    return rows[~is_held], queries


def main() -> None:
    """Parse, run, print, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument(
        "--real", nargs="+", type=Path, action="append", default=[], help="TARGETS [PREDICTIONS]"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    options = parser.parse_args()
    from galleries import FAMILIES, QUERY_KINDS, Gallery
    from machine import describe_machine, hardware_name

    machine = describe_machine()
    sets: dict[str, Any] = {}
    for family in FAMILIES:
        gallery = Gallery(family, options.rows, SEED)
        rows = np.concatenate(
            [
                gallery.draw(part, 10_000).astype(np.float16)
                for part in range(options.rows // 10_000)
            ]
        )
        queries = {kind: gallery.draw_queries(kind, options.queries, 1) for kind in QUERY_KINDS}
        n_lists = most_lists(len(rows))
        sets[family] = compare(rows, queries, n_lists)
        sets[family]["training"] = compare_training(rows, 2 * n_lists)
        sets[family]["finders"] = compare_finders(gallery)
        print_set(family, sets[family])
    for folders in options.real:
        rows, queries = load_real(folders)
        name = f"{folders[0].parent.name}/{folders[0].name}"
        sets[name] = compare(rows, queries, most_lists(len(rows)))
        print_set(name, sets[name])
    record = {"protocol": PROTOCOL, "machine": machine, "shares": SHARES, "sets": sets}
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"router_{hardware_name(machine)}_{date.today():%Y%m%d}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"recorded in {path.name}", file=sys.stderr)


def print_set(name: str, measured: dict[str, Any]) -> None:
    """Print a set's table."""
    print(
        f"{name}: {measured['n_rows']} rows, {measured['n_lists']} lists; codes looked at", SHARES
    )
    for router, found in measured["routers"].items():
        print(f"  {router} ({found['rows_per_second']:.0f} rows/s, {found['imbalance']:.2f})")
        for kind, recalls in found["recall"].items():
            print(f"    {kind:10} " + "  ".join(f"{recalls[str(s)]:.3f}" for s in SHARES))
    for trained, found in measured.get("training", {}).items():
        print(f"  {trained}: {found['seconds']:.1f} s, cosine {found['mean_cosine']:.4f}")
    if "finders" in measured:
        print("  graph over many lists:", json.dumps(measured["finders"]))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
