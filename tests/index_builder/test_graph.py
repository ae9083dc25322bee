from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest

from index_builder import code_graph
from index_builder import graph as graph_module
from index_builder.code_graph import LINKS_FILE
from index_builder.cosine import unit_rows
from index_builder.costs import MOST_WIDTH, graph_disk_bytes
from index_builder.errors import IndexDamagedError, PlanError
from index_builder.graph import FILES, Graph, GraphWriter
from index_builder.scalar_codes import encode_eight_bits

Cone = Callable[..., np.ndarray]


@pytest.fixture
def build(
    tmp_path: Path, make_quantizer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Write a graph for each range of rows, without the dead ones, and return the shards."""

    def write(
        unit: np.ndarray,
        stops: Sequence[int] = (),
        dead: Sequence[int] = (),
        batch: int = 500,
        name: str = "index",
    ) -> list[Any]:
        quantizer = make_quantizer(unit)
        monkeypatch.setattr(graph_module, "load_quantizer", lambda folder: quantizer)
        plan = SimpleNamespace(space=SimpleNamespace(width=unit.shape[1]))
        shards = []
        for start, stop in zip([0, *stops], [*stops, len(unit)], strict=True):
            folder = tmp_path / name / f"{start}"
            writer = GraphWriter(folder, plan, quantizer, stop - start)
            alive = np.setdiff1d(np.arange(start, stop), dead)
            for first in range(0, len(alive), batch):
                rows = alive[first : first + batch]
                writer.add((rows - start).astype(np.uint32), unit[rows])
            assert writer.finish() == list(FILES)
            shards.append(SimpleNamespace(folder=folder, row_start=start, row_stop=stop))
        return shards

    return write


def hashes(shards: Sequence[Any]) -> list[str]:
    return [
        hashlib.sha256((shard.folder / name).read_bytes()).hexdigest()
        for shard in shards
        for name in FILES
    ]


def nearest_codes(unit: np.ndarray, queries: np.ndarray, quantizer: Any, k: int) -> np.ndarray:
    """Rows by squared distance of codes, ties by smaller row."""
    codes, wanted = (
        encode_eight_bits(quantizer.transform(each), quantizer.low, quantizer.high).astype(np.int64)
        for each in (unit, queries)
    )
    distances = ((wanted[:, None] - codes[None]) ** 2).sum(axis=2)
    return np.argsort(distances, axis=1, kind="stable")[:, :k]


def test_recall_against_exact_search(cone: Cone, build: Callable[..., Any], tmp_path: Path) -> None:
    drawn = unit_rows(cone(5200, 64))
    unit, queries = drawn[:5000], drawn[5000:]
    graph = Graph.open(tmp_path, build(unit))
    exact = np.argsort(-(queries @ unit.T), axis=1)[:, :10]
    nominated = graph.candidates(queries, 64, 20, n_least=10)
    recall = np.mean([np.isin(*pair).mean() for pair in zip(exact, nominated, strict=True)])
    assert recall >= 0.95


@pytest.mark.parametrize("stops", [(), (300, 301, 700)])
def test_the_most_breadth_compares_all_codes(
    cone: Cone,
    build: Callable[..., Any],
    make_quantizer: Callable[..., Any],
    tmp_path: Path,
    stops: tuple[int, ...],
) -> None:
    unit, queries = unit_rows(cone(900)), unit_rows(cone(10))
    graph = Graph.open(tmp_path, build(unit, stops))
    assert graph.n_codes == 900
    assert graph.most_breadth == max(np.diff([0, *stops, 900]))
    expected = nearest_codes(unit, queries, make_quantizer(unit), 40)
    found = graph.candidates(queries, graph.most_breadth, 40, n_least=40)
    np.testing.assert_array_equal(found, expected)


def test_shards_are_searched_as_one_set(
    cone: Cone, build: Callable[..., Any], tmp_path: Path
) -> None:
    drawn = unit_rows(cone(3020))
    unit, queries = drawn[:3000], drawn[3000:]
    whole = Graph.open(tmp_path, build(unit, name="whole"))
    parts = Graph.open(tmp_path, build(unit, (1000, 1500), name="parts"))
    expected = whole.candidates(queries, 3000, 10, n_least=10)
    found = parts.candidates(queries, 200, 10, n_least=10)
    assert np.mean([np.isin(*pair).mean() for pair in zip(expected, found, strict=True)]) > 0.95


def test_rows_left_out_have_no_node(cone: Cone, build: Callable[..., Any], tmp_path: Path) -> None:
    unit = unit_rows(cone(400))
    dead = [0, 1, 57, 200, 399]
    graph = Graph.open(tmp_path, build(unit, (200,), dead))
    assert graph.n_codes == 395
    found = graph.candidates(unit[:5], graph.most_breadth, 500, n_least=395)
    alive = np.setdiff1d(np.arange(400), dead)
    np.testing.assert_array_equal(np.sort(found, axis=1)[:, 105:], np.tile(alive, (5, 1)))
    assert (found[:, 395:] == -1).all()


def test_each_row_finds_itself_first(cone: Cone, build: Callable[..., Any], tmp_path: Path) -> None:
    unit = unit_rows(cone(800))
    found = Graph.open(tmp_path, build(unit, (300,))).candidates(unit, 32, 5, n_least=1)
    assert (found[:, 0] == np.arange(800)).mean() > 0.98


def test_a_shard_without_rows_and_an_index_of_such(
    cone: Cone, build: Callable[..., Any], tmp_path: Path
) -> None:
    unit = unit_rows(cone(40))
    graph = Graph.open(tmp_path, build(unit, (10,), dead=range(10), name="half"))
    assert (graph.candidates(unit[:3], 16, 30, n_least=30) >= 10).all()
    graph = Graph.open(tmp_path, build(unit, dead=range(40), name="none"))
    assert graph.n_codes == 0
    np.testing.assert_array_equal(graph.candidates(unit[:3], 16, 4, n_least=2), np.full((3, 4), -1))


def test_a_query_that_finds_too_few_sees_more(
    cone: Cone, build: Callable[..., Any], tmp_path: Path
) -> None:
    unit = unit_rows(cone(600))
    shards = build(unit)
    links = np.load(shards[0].folder / LINKS_FILE)
    np.save(shards[0].folder / LINKS_FILE, np.full_like(links, -1))  # no node leads to another
    graph = Graph.open(tmp_path, shards)
    alone = graph.candidates(unit[:4], 16, 50, n_least=1)
    assert ((alone >= 0).sum(axis=1) == 1).all()
    found = graph.candidates(unit[:4], 16, 50, n_least=50)
    assert (found >= 0).all()


def test_the_same_bytes_in_any_batches_and_on_any_number_of_threads(
    cone: Cone, build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_graph, "_BLOCK_BYTES", 4 * 48 * 700)
    unit = unit_rows(cone(2500))
    expected = hashes(build(unit, name="first"))
    assert hashes(build(unit, name="second")) == expected
    assert hashes(build(unit, batch=999, name="third")) == expected
    threads = faiss.omp_get_max_threads()
    for n_threads in (1, 3):
        faiss.omp_set_num_threads(n_threads)
        try:
            assert hashes(build(unit, name=f"{n_threads} threads")) == expected
        finally:
            faiss.omp_set_num_threads(threads)


def test_nothing_stands_until_all_of_it_does(
    cone: Cone, build: Callable[..., Any], tmp_path: Path, make_quantizer: Callable[..., Any]
) -> None:
    unit = unit_rows(cone(100))
    plan = SimpleNamespace(space=SimpleNamespace(width=48))
    writer = GraphWriter(tmp_path / "shard", plan, make_quantizer(unit), 100)
    writer.add(np.arange(100, dtype=np.uint32), unit)
    assert not (tmp_path / "shard").exists()
    writer.finish()
    assert {path.name for path in (tmp_path / "shard").iterdir()} == set(FILES)


def test_bytes_on_disk_are_as_predicted(cone: Cone, build: Callable[..., Any]) -> None:
    folder = build(unit_rows(cone(5000)))[0].folder
    written = sum((folder / name).stat().st_size for name in FILES)
    assert written == pytest.approx(graph_disk_bytes(5000, 48), rel=0.02)


# Prints the heap that opening takes, without glibc's caches of freed blocks, which count as used.
NO_CACHES = {
    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0",
    "OMP_NUM_THREADS": "1",
}
HEAP_OF_OPENING = """
import ctypes, gc, sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from index_builder import graph

names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"

class State(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = State

def allocated():
    gc.collect()
    state = libc.mallinfo2()
    return state.uordblks + state.hblkhd

graph.load_quantizer = lambda folder: SimpleNamespace(mean=np.zeros(48, np.float32))
shards = [SimpleNamespace(folder=Path(path), row_start=0) for path in sys.argv[1:]]
graph.Graph.open(Path("."), shards)  # and drop it: what is set up once isn't the graph's
before = allocated()
opened = graph.Graph.open(Path("."), shards)
print(allocated() - before, opened.ram_bytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallinfo2 is glibc's")
@pytest.mark.parametrize("stops", [(), (4000, 8000)])
def test_memory_is_as_predicted(
    cone: Cone, build: Callable[..., Any], stops: tuple[int, ...]
) -> None:
    shards = build(unit_rows(cone(12_000)), stops)
    run = subprocess.run(
        [sys.executable, "-c", HEAP_OF_OPENING, *(str(shard.folder) for shard in shards)],
        capture_output=True,
        check=True,
        text=True,
        env={**os.environ, **NO_CACHES},
    )
    used, predicted = map(int, run.stdout.split())
    assert used == pytest.approx(predicted, rel=0.02)


def test_breadths_rise_and_read_more(cone: Cone, build: Callable[..., Any], tmp_path: Path) -> None:
    graph = Graph.open(tmp_path, build(unit_rows(cone(1100))))
    breadths = graph.breadths()
    assert breadths == [16, 32, 64, 128, 256, 512, 1024]
    assert graph.read_bytes(16) < graph.read_bytes(32) <= 1100 * 48 == graph.read_bytes(1024)
    assert Graph.open(tmp_path, build(unit_rows(cone(9)), name="tiny")).breadths() == [9]


def test_too_wide_for_integers(tmp_path: Path) -> None:
    plan = SimpleNamespace(space=SimpleNamespace(width=MOST_WIDTH + 1))
    with pytest.raises(PlanError, match=r"rows of 33026 numbers are too wide .* 33025"):
        GraphWriter(tmp_path, plan, None, 10)


@pytest.mark.parametrize(
    "array", [np.zeros(599, np.uint32), np.zeros(600, np.int64), np.zeros((600, 1), np.uint32)]
)
def test_rows_that_do_not_fit(
    cone: Cone, build: Callable[..., Any], tmp_path: Path, array: np.ndarray
) -> None:
    shards = build(unit_rows(cone(600)))
    np.save(shards[0].folder / "rows.npy", array)
    with pytest.raises(
        IndexDamagedError,
        match=r"rows\.npy holds .*, expected uint32 \(600,\), a row for each node",
    ):
        Graph.open(tmp_path, shards)
