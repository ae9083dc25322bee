"""Plain FAISS: inverted lists and graphs by its own factory, re-ranked by its own `IndexRefine`.

The float16 rows that re-rank stand in a file that FAISS maps (`IO_FLAG_MMAP_IFC`), so that they
cost page cache and no memory of the process, as with voxseek. Lists share one k-means: its time is
counted in the build of each. Distances are Euclidean, which orders unit vectors as cosines do and
codes them better (measured for RaBitQ and 4-bit PQ).
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from contender import DIM, K, Opened, Rows, Setting

SEED = 7
_BLOCK_ROWS = 50_000
_POINTS_PER_CENTROID = 64
_HNSW_BREADTH = 100  # of the build; FAISS's own default is 40
# Factory string, and whether float16 rows re-rank.
_FACTORY: dict[str, tuple[str, bool]] = {
    "ivf-rabitqfs1": ("RR768,IVF{lists},RaBitQfs", True),
    "ivf-rabitqfs2": ("RR768,IVF{lists},RaBitQfs2", True),
    "ivf-rabitqfs4": ("RR768,IVF{lists},RaBitQfs4", True),
    "ivf-pq192x4fs": ("IVF{lists},PQ192x4fs", True),
    "ivf-pq96": ("IVF{lists},PQ96x8", True),
    "opq-pq96": ("OPQ96,IVF{lists},PQ96x8", True),
    "ivf-sq8": ("IVF{lists},SQ8", True),
    "hnsw32-sqfp16": ("HNSW32_SQfp16", False),
    "hnsw32-sq8": ("HNSW32_SQ8", True),
}
DESIGNS = tuple(_FACTORY)
_PROBES = (4, 8, 16, 32, 64, 128, 256, 512)
# Candidates by 10: how many times K are re-ranked.
_FACTORS = {
    "ivf-rabitqfs1": (5, 10, 20, 40),
    "ivf-rabitqfs2": (5, 10, 20),
    "ivf-rabitqfs4": (2, 4, 8),
    "ivf-pq192x4fs": (20, 40, 80),
    "ivf-pq96": (20, 40, 80),
    "opq-pq96": (20, 40, 80),
    "ivf-sq8": (1, 2),
    "hnsw32-sq8": (1, 2, 4),
}
_IN_VIEW = (16, 24, 32, 48, 64, 96, 128, 256)


def build(design: str, rows: Rows, folder: Path, n_threads: int) -> dict[str, Any]:
    """Train on a sample, add all rows in blocks, write; and the float16 rows where they re-rank."""
    faiss.omp_set_num_threads(n_threads)
    n_lists = 1 << round(math.log2(4 * math.sqrt(rows.n_rows)))
    factory, refined = _FACTORY[design]
    key = factory.format(lists=n_lists)
    index = faiss.index_factory(DIM, key, faiss.METRIC_L2)
    said: dict[str, Any] = {"design": key + (", refined by float16" if refined else "")}
    if "IVF" in key:
        said.update(_kmeans(rows, n_lists))
        sample = rows.sample(100_000, SEED)
        _set_centroids(index, sample, np.load(rows.work / "faiss_centroids.npy"))
    else:
        index.hnsw.efConstruction = _HNSW_BREADTH
        sample = rows.sample(100_000, SEED)
    index.train(sample)
    for block in rows.blocks(_BLOCK_ROWS):
        index.add(block.astype(np.float32))
    faiss.write_index(index, str(folder / "index.faiss"))
    if refined and not _fp16_file(rows).exists():
        _write_fp16(rows)
    return said


def open_index(design: str, rows: Rows, folder: Path, n_threads: int) -> Opened:
    """Read the index, map the float16 rows."""
    faiss.omp_set_num_threads(n_threads)
    file = folder / "index.faiss"
    base = faiss.read_index(str(file))
    refined = _FACTORY[design][1]
    rerank = faiss.read_index(str(_fp16_file(rows)), faiss.IO_FLAG_MMAP_IFC) if refined else None
    index = faiss.IndexRefine(base, rerank) if refined else base
    is_graph = design.startswith("hnsw")
    is_turned = isinstance(base, faiss.IndexPreTransform)

    def find(queries: np.ndarray, setting: Setting) -> np.ndarray:
        if is_graph:
            parameters = faiss.SearchParametersHNSW(efSearch=setting["efSearch"])
        else:
            parameters = faiss.SearchParametersIVF(nprobe=setting["nprobe"])
        if is_turned:
            parameters = faiss.SearchParametersPreTransform(index_params=parameters)
        if refined:
            parameters = faiss.IndexRefineSearchParameters(
                k_factor=float(setting["k_factor"]), base_index_params=parameters
            )
        found: np.ndarray = index.search(queries, K, params=parameters)[1]
        return found

    name, values = ("efSearch", _IN_VIEW) if is_graph else ("nprobe", _PROBES)
    settings = [
        {name: value, **({"k_factor": factor} if refined else {})}
        for value in values
        for factor in _FACTORS.get(design, (1,))
    ]
    return Opened(find, settings, file.stat().st_size, [_fp16_file(rows)] if refined else [])


def _kmeans(rows: Rows, n_lists: int) -> dict[str, float]:
    """Make the centroids, or return what it took to make those that stand."""
    record = rows.work / "faiss_centroids.json"
    if record.exists():
        took: dict[str, float] = json.loads(record.read_text())
        return took
    started, processor = time.perf_counter(), time.process_time()
    sample = rows.sample(_POINTS_PER_CENTROID * n_lists, SEED)
    kmeans = faiss.Kmeans(
        DIM, n_lists, niter=10, seed=SEED, max_points_per_centroid=_POINTS_PER_CENTROID
    )
    kmeans.train(sample)
    np.save(rows.work / "faiss_centroids.npy", kmeans.centroids)
    took = {
        "shared_seconds": time.perf_counter() - started,
        "shared_cpu_seconds": time.process_time() - processor,
    }
    record.write_text(json.dumps(took))
    return {}


def _set_centroids(index: Any, sample: np.ndarray, centroids: np.ndarray) -> None:
    """Give the lists their centroids, turned as the index turns rows."""
    turned = centroids
    lists = index
    if isinstance(index, faiss.IndexPreTransform):
        transform = faiss.downcast_VectorTransform(index.chain.at(0))
        transform.train(sample)
        turned = transform.apply(centroids)
        lists = faiss.downcast_index(index.index)
    lists.quantizer.add(turned)


def _fp16_file(rows: Rows) -> Path:
    return rows.work / "faiss_fp16.index"


def _write_fp16(rows: Rows) -> None:
    stored = faiss.IndexScalarQuantizer(DIM, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_L2)
    for block in rows.blocks(_BLOCK_ROWS):
        stored.add(block.astype(np.float32))
    partial = _fp16_file(rows).with_suffix(".partial")
    faiss.write_index(stored, str(partial))
    partial.rename(_fp16_file(rows))
