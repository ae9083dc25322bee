from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pytest

from index_builder.build import build_index, open_lists
from index_builder.cosine import unit_rows
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.planning import plan_index
from index_builder.quantizer import load_quantizer

WriteFolder = Callable[..., EmbeddingFolder]


def test_candidates_equal_those_of_one_faiss_index(
    cone: Callable[..., np.ndarray], write_folder: WriteFolder, tmp_path: Path
) -> None:
    rows = cone(900)
    embeddings = write_folder(rows)
    plan = plan_index(900, embeddings.space, code="ivf-rabitq", n_shards=3)
    build_index(embeddings, tmp_path / "index", plan)
    lists = open_lists(tmp_path / "index", plan)

    quantizer = load_quantizer(tmp_path / "index" / "quantizer")
    vectors = quantizer.transform(unit_rows(rows))
    chosen = np.ascontiguousarray(quantizer.route(vectors, 1)[:, 0])
    reference = faiss.IndexIVFRaBitQ(quantizer.coarse, 48, plan.n_lists, faiss.METRIC_L2)
    reference.own_fields = False
    reference.is_trained = True
    ids = np.arange(900)
    reference.add_core(900, *(faiss.swig_ptr(array) for array in (vectors, ids, chosen)))
    reference.nprobe = plan.n_lists  # all: the order in which lists are chosen doesn't matter
    queries = unit_rows(cone(20))
    expected = reference.search(quantizer.transform(queries), 40)[1]
    found = lists.candidates(queries, plan.n_lists, 40, n_least=1)
    np.testing.assert_array_equal(found, expected)


def test_lists_are_added_until_they_hold_enough(
    cone: Callable[..., np.ndarray], write_folder: WriteFolder, tmp_path: Path
) -> None:
    embeddings = write_folder(cone(700))
    plan = plan_index(700, embeddings.space, code="ivf-rabitq")
    build_index(embeddings, tmp_path / "index", plan)
    lists = open_lists(tmp_path / "index", plan)
    assert lists.list_rows.max() < 500
    queries = unit_rows(cone(5))
    few = lists.candidates(queries, 1, 700, n_least=1)
    assert ((few >= 0).sum(axis=1) < 500).all()
    enough = lists.candidates(queries, 1, 700, n_least=500)
    assert ((enough >= 0).sum(axis=1) >= 500).all()
    every = lists.candidates(queries, 1, 700, n_least=10_000)
    np.testing.assert_array_equal(np.sort(every, axis=1), np.tile(np.arange(700), (5, 1)))


# Prints the heap that opening an index takes. Run without glibc's caches of freed blocks, which
# count as allocated.
NO_CACHES = {
    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0",
    "OMP_NUM_THREADS": "1",
}
HEAP_OF_OPENING = """
import ctypes, gc, json, sys
from pathlib import Path
from index_builder.build import open_lists
from index_builder.manifest import read_index_manifest
from index_builder.planning import IndexPlan

names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"

class State(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = State

def allocated():
    gc.collect()
    state = libc.mallinfo2()
    return state.uordblks + state.hblkhd

def load(path):
    root = Path(path)
    return open_lists(root, IndexPlan.from_dict(read_index_manifest(root)["plan"]))

load(sys.argv[1])  # and drop it: what Python and FAISS set up once isn't the index's
before = allocated()
lists = load(sys.argv[1])
print(json.dumps(allocated() - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallinfo2 is glibc's")
@pytest.mark.parametrize("n_shards", [1, 3])
def test_predicted_memory_and_disk_are_what_is_used(
    cone: Callable[..., np.ndarray], write_folder: WriteFolder, tmp_path: Path, n_shards: int
) -> None:
    embeddings = write_folder(cone(12_000))
    plan = plan_index(12_000, embeddings.space, code="ivf-rabitq", n_shards=n_shards)
    root = tmp_path / "index"
    manifest = build_index(embeddings, root, plan, n_queries=1)
    run = subprocess.run(
        [sys.executable, "-c", HEAP_OF_OPENING, str(root)],
        capture_output=True,
        check=True,
        text=True,
        env={**os.environ, **NO_CACHES},
    )
    assert json.loads(run.stdout) == pytest.approx(plan.ram_bytes, rel=0.02)
    assert manifest["ram_bytes"] == plan.ram_bytes
    written = sum(path.stat().st_size for path in root.rglob("*.npy"))
    assert written == pytest.approx(plan.disk_bytes, rel=0.02)
