"""Hours of a build, predicted: its own code, timed for a few seconds, times how often it runs.

Each piece of work is timed on a few thousand rows, by the code that a build runs, and multiplied
by the times that a build does it: a row of the sample is compared with all centroids in each turn
of k-means that it takes part in, a row of a shard once, and so on. `predict_hours` has the
formulae.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from .certificate import sound_rows
from .code_graph import CodeGraph, GraphLinker
from .cosine import unit_rows
from .costs import MOST_COMPARED_LISTS, Costs, code_bytes
from .embeddings.collection import Collection
from .ground_truth import batches_of, block_rows, exact_search
from .inverted_file import InvertedFile, ListsWriter, ShardLists
from .npy import write_rows
from .planning import IndexPlan
from .quantizer import Quantizer, train_quantizer
from .scalar_codes import encode_eight_bits
from .shards import Shard
from .vector_copy import CopyWriter

# Assumed where there are no embeddings to read: a solid-state disk, or a good network disk.
ASSUMED_READ_RATE = 500 << 20  # bytes a second, in row order
ASSUMED_TAKE_RATE = 20_000  # single rows a second, several reads in flight
# k-means, as `quantizer` takes its turns: how often a point is visited, and how many turns.
VISITS, TURNS = 4.25, 11
N_QUERIES = 200  # of the certificate, its nearest rows, and its candidates
_NEAREST, _CANDIDATES = 100, 1601
_BREADTHS = tuple(1 << power for power in range(7))  # lists, measured until the target is reached
_VIEWS = (16, 32, 64, 128, 256)  # nodes in view, likewise
_WALK_VIEW = 64  # of the walk that is timed
_ROWS, _FEWEST_ROWS, _LISTS = 4096, 16, 64  # timed
_BLOCK_BYTES = 16 << 20  # of float32 rows at most; of what is written
_CENTROID_BYTES = 64 << 20
_READ_BYTES = 64 << 20
_COMPARISONS = 1 << 24  # of rows with centroids
_LATER = 4  # times the rows

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Calibration:
    """Seconds of each piece of work on this machine, all cores at work.

    Parameters
    ----------
    is_read_measured : bool
        Whether embeddings were read, or a rate was assumed (`ASSUMED_READ_RATE`).
    sample_row : float
        A row read at random and made a unit vector.
    read_row : float
        A row read in row order and judged.
    update_row : float
        k-means: a visit of a point, beside comparing it with centroids.
    route_row : float
        A row compared with the centroids of all lists, or led to the nearest by their graph.
    code_row, copy_row, link_row : float
        A row coded; copied; linked into a graph.
    search_row : float
        A row compared with `N_QUERIES` queries.
    open_lists : float
        A breadth of lists searched in one shard, by all queries.
    scan_code : float
        A code that a query is compared with.
    walk : float
        A query walking a graph with `_WALK_VIEW` nodes in view.
    write_byte, hash_byte : float
    """

    is_read_measured: bool
    sample_row: float = 0.0
    read_row: float = 0.0
    update_row: float = 0.0
    route_row: float = 0.0
    code_row: float = 0.0
    copy_row: float = 0.0
    link_row: float = 0.0
    search_row: float = 0.0
    open_lists: float = 0.0
    scan_code: float = 0.0
    walk: float = 0.0
    write_byte: float = 0.0
    hash_byte: float = 0.0


def calibrate(plan: IndexPlan, source: Collection | None) -> Calibration:
    """Time the work of a build of ``plan``: a few seconds, in less than 1 GiB.

    Parameters
    ----------
    plan : IndexPlan
    source : Collection or None
        What the index would be built from; None: random rows, and an assumed rate of reading.

    Notes
    -----
    Routing is timed with random centroids, at most 64 MiB of them, and taken to grow with their
    number. Where a graph leads to the lists, it is linked over the timed rows, and walking it is
    taken to grow with the logarithm of the nodes. Linking takes about as long a node from 4,096
    nodes to 100,000.
    """
    rows, read_row, sample_row = _draw(plan, source)
    if plan.code == "flat":
        return Calibration(source is not None, read_row=read_row)
    n = len(rows)
    unit, unit_seconds = _time(lambda: unit_rows(rows))
    sample = unit.copy()
    n_lists = max(1, min(_LISTS, n // 16))
    quantizer, training = _time(lambda: train_quantizer(sample, n_lists, 0))
    transformed, transforming = _time(lambda: quantizer.transform(unit))
    routing = _time(lambda: quantizer.route(transformed, 1))[1]
    scale = quantizer.low, quantizer.high
    encoding = _time(lambda: encode_eight_bits(transformed, *scale))[1]
    link_row = walk = open_lists = scan_code = copy_row = 0.0
    graph = None
    if plan.code == "hnsw-sq8" or plan.n_lists > MOST_COMPARED_LISTS:
        graph, linking = _time(lambda: _link(transformed))
        link_row = linking / n
        queries = graph.codes[:N_QUERIES]
        walk = _time(lambda: graph.nearest(queries, 10, _WALK_VIEW))[1] / len(queries)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_byte, hash_byte = _time_bytes(folder)
        if plan.rerank != "source":
            copy_row = _time_copy(plan, quantizer, folder, rows)
        if plan.code == "ivf-rabitq":
            coding, open_lists, scan_code = _time_lists(plan, quantizer, folder, rows)
            coding -= routing
            route_row = _time_routing(plan, quantizer, transformed, graph)
        else:
            coding, route_row = unit_seconds + transforming + encoding, 0.0
    return Calibration(
        is_read_measured=source is not None,
        sample_row=sample_row,
        read_row=read_row,
        update_row=max(0.0, training / VISITS - routing) / n,
        route_row=route_row,
        code_row=max(0.0, coding) / n,
        copy_row=copy_row,
        link_row=link_row,
        search_row=_time_search(rows),
        open_lists=open_lists,
        scan_code=scan_code,
        walk=walk,
        write_byte=write_byte,
        hash_byte=hash_byte,
    )


def predict_hours(plan: IndexPlan, calibration: Calibration, n_workers: int) -> dict[str, float]:
    """Return the hours of each stage of a build, and their ``total``.

    Parameters
    ----------
    plan : IndexPlan
    calibration : Calibration
    n_workers : int
        Each as fast as the machine that was timed. They share the shards and the exact search;
        sample, training and the measuring of recall are one process's.

    Notes
    -----
    With n rows, m of them in the sample, L lists, S shards, Q = `N_QUERIES`:

        sample        m read at random
        train         `VISITS` m, compared with L centroids each; where a graph leads to the lists,
                      `TURNS` L nodes linked
        codes         n read, rotated, compared with L centroids, coded; their bytes written
        copy, links   n; the bytes of the copy written
        exact search  n read, and compared with Q queries
        recall        1, 2, ... 64 lists a query in each shard, n / L codes each, read and scanned;
                      of graphs, 16, 32, ... 256 nodes in view
        checksums     all bytes of the index, once

    Queries from a decoder double the last but one and the one before. The copy of the metadata is
    left out.
    """
    each, n = calibration, plan.n_rows
    share = -(-plan.n_shards // n_workers) / plan.n_shards
    costs = Costs(n, plan.space, plan.dtype, plan.rows_per_shard, plan.n_shards)
    if plan.code == "flat":
        seconds = {"read": share * n * each.read_row}
    else:
        n_bytes = costs.disk(plan.layout)
        n_copied = n_bytes - costs.disk(plan.layout._replace(rerank="source"))
        linked = TURNS * plan.n_lists * (plan.n_lists > MOST_COMPARED_LISTS)
        visited = VISITS * plan.n_train * (plan.n_lists > 0)
        coding = each.read_row + each.route_row + each.code_row
        is_graph = plan.code == "hnsw-sq8"
        seconds = {
            "sample": plan.n_train * each.sample_row,
            "train": visited * (each.update_row + each.route_row) + linked * each.link_row,
            "codes": share * (n * coding + (n_bytes - n_copied) * each.write_byte),
            "copy": share * (n * each.copy_row + n_copied * each.write_byte),
            "links": share * n * each.link_row * is_graph,
            "exact search": n * (each.read_row + each.search_row) / n_workers,
            "recall": _recall_seconds(plan, each, costs.row_bytes),
            "checksums": share * n_bytes * each.hash_byte,
        }
    hours = {stage: value / 3600 for stage, value in seconds.items() if value > 0}
    return {**hours, "total": sum(hours.values())}


def _recall_seconds(plan: IndexPlan, each: Calibration, row_bytes: int) -> float:
    if plan.code == "hnsw-sq8":
        return plan.n_shards * N_QUERIES * sum(_VIEWS) / _WALK_VIEW * each.walk
    shares = [min(1.0, breadth / plan.n_lists) for breadth in _BREADTHS]
    scanned = N_QUERIES * plan.n_rows * sum(shares)
    # Queries share the lists that are read.
    n_read = plan.n_rows * sum(min(1.0, N_QUERIES * share) for share in shares)
    reading = n_read * code_bytes(plan.space.width, plan.bits) / row_bytes * each.read_row
    return len(shares) * plan.n_shards * each.open_lists + scanned * each.scan_code + reading


def _draw(plan: IndexPlan, source: Collection | None) -> tuple[np.ndarray, float, float]:
    """Return rows, and the seconds that one takes to be read in row order, and for the sample."""
    width = plan.space.width
    n = min(plan.n_rows, max(_FEWEST_ROWS, min(_ROWS, _BLOCK_BYTES // (4 * width))))
    row_bytes = width * np.dtype(plan.dtype).itemsize
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((n, width), dtype=np.float32)
    unit, seconds = _time(lambda: unit_rows(drawn))
    if source is None:
        sample_row = 1 / ASSUMED_TAKE_RATE + seconds / n
        return unit.astype(plan.dtype), row_bytes / ASSUMED_READ_RATE, sample_row
    n_read = max(n, min(source.n_rows, _READ_BYTES // row_bytes))
    start = int(rng.integers(source.n_rows - n_read + 1))
    batches = source.iter_batches(
        batch_rows=n, start=start, stop=start + n_read, bad_rows="tombstone"
    )
    rows = np.empty((0, width), plan.dtype)
    started = time.perf_counter()
    for batch in batches:
        if len(rows) < n:
            alive = batch.embeddings.reshape(-1, width)[batch.is_alive]
            rows = np.concatenate([rows, alive])[:n]
    read_row = (time.perf_counter() - started) / n_read
    chosen = np.sort(rng.choice(source.n_rows, n, replace=False))
    sample_row = _time(lambda: sound_rows(source, chosen))[1] / n
    # Where most are bad, others stand in.
    return np.concatenate([rows, unit.astype(plan.dtype)])[:n], read_row, sample_row


def _link(transformed: np.ndarray) -> CodeGraph:
    """Return a graph over the directions of rows."""
    width = transformed.shape[1]
    high = 5 / np.sqrt(width)
    linker = GraphLinker(width, len(transformed))
    linker.add(encode_eight_bits(unit_rows(transformed), -high, high))
    return linker.finish()


def _time_routing(
    plan: IndexPlan, quantizer: Quantizer, transformed: np.ndarray, graph: CodeGraph | None
) -> float:
    """Return the seconds that a row takes to be led to its list, of as many as are planned."""
    n, width = len(transformed), len(quantizer.mean)
    parts = quantizer.mean, quantizer.signs
    if graph is not None:
        router = Quantizer(*parts, transformed, quantizer.low, quantizer.high, graph)
        walking = _time(lambda: router.route(transformed, 1))[1]
        return walking / n * math.log(plan.n_lists) / math.log(n)
    n_lists = min(plan.n_lists, max(1, _CENTROID_BYTES // (4 * width)))
    drawn = np.random.default_rng(0).standard_normal((n_lists, width), dtype=np.float32)
    router = Quantizer(*parts, drawn, quantizer.low, quantizer.high)
    timed = transformed[: max(_FEWEST_ROWS, _COMPARISONS // n_lists)]
    comparing = _time(lambda: router.route(timed, 1))[1]
    return comparing / len(timed) * (plan.n_lists / n_lists)


def _time_copy(plan: IndexPlan, quantizer: Quantizer, folder: Path, rows: np.ndarray) -> float:
    """Return the seconds that a row takes to be copied."""
    writer = CopyWriter(folder, plan, quantizer, len(rows))
    numbers = np.arange(len(rows), dtype=np.uint32)
    seconds = _time(lambda: writer.add(numbers, rows))[1]
    writer.finish()
    return seconds / len(rows)


def _time_lists(
    plan: IndexPlan, quantizer: Quantizer, folder: Path, rows: np.ndarray
) -> tuple[float, float, float]:
    """Return the seconds that all rows, a breadth in one shard, and a scanned code take."""
    n = len(rows)
    writer = ListsWriter(folder, plan, quantizer, n)
    coding = _time(lambda: writer.add(np.arange(n, dtype=np.uint32), rows))[1]
    writer.finish()
    size = code_bytes(plan.space.width, plan.bits)
    shard = ShardLists(Shard(folder, 0, n), quantizer.n_lists, size)
    lists = InvertedFile(quantizer, plan.bits, "disk", [shard])
    queries = unit_rows(rows[:N_QUERIES])

    def search(breadth: int) -> float:
        return _time(lambda: lists.candidates(queries, breadth, _CANDIDATES, n_least=1))[1]

    one, every = search(1), search(quantizer.n_lists)
    return coding, one, max(0.0, every - one) / (len(queries) * n)


def _time_search(rows: np.ndarray) -> float:
    """Return the seconds that a row takes to be compared with all queries, exactly."""
    n_queries = min(N_QUERIES, len(rows))
    queries = unit_rows(rows[:n_queries])
    step = block_rows(n_queries, rows.shape[1])
    k = min(_NEAREST, len(rows))
    # The first rows are all among the nearest so far. Later ones hardly ever are: backwards, no row
    # is like a query.
    later = np.tile(rows[:, ::-1], (_LATER, 1))
    both = np.concatenate([rows, later])

    def search(some: np.ndarray) -> float:
        def once() -> object:
            return exact_search(batches_of(some, step), queries, k)

        return min(_time(once)[1], _time(once)[1])

    return max(0.0, search(both) - search(rows)) / len(later) * N_QUERIES / n_queries


def _time_bytes(folder: Path) -> tuple[float, float]:
    """Return the seconds that a byte takes to be written and synced, and to be hashed."""
    block = np.random.default_rng(0).integers(0, 256, _BLOCK_BYTES, dtype=np.uint8)
    path = folder / "bytes.npy"
    writing = _time(lambda: write_rows(path, "|u1", block.shape, [block]))[1]
    path.unlink()
    hashing = _time(lambda: hashlib.sha256(block.data))[1]
    return writing / block.size, hashing / block.size


def _time(work: Callable[[], _Result]) -> tuple[_Result, float]:
    """Return what ``work`` returns, and the seconds it takes."""
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started
