"""What a plan predicts, held against what a build writes and what opening takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from index_builder import costs
from index_builder.build import build_index
from index_builder.embeddings.collection import Collection
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.embeddings.writer import EmbeddingWriter
from index_builder.planning import plan_index

from .conftest import draw_cone

N_ROWS = 3000
GRID: list[dict[str, Any]] = [
    {"code": "flat"},
    *({"code": "ivf-rabitq", "bits": bits} for bits in (1, 2, 4)),
    {"code": "ivf-rabitq", "tier": "disk"},
    *({"code": "ivf-rabitq", "rerank": copy} for copy in ("fp16", "sq8", "rabitq4")),
    {"code": "hnsw-sq8"},
    {"code": "hnsw-sq8", "rerank": "rabitq4"},
]


@pytest.fixture(scope="module", params=[48, 96])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return write(tmp_path_factory.mktemp("source"), N_ROWS, request.param)


def write(folder: Path, n_rows: int, width: int) -> Collection:
    space = EmbeddingSpace("ViT-L-14/openai", "final", 1, width, True)
    with EmbeddingWriter(folder / "embeddings", space, command="test", details={}) as writer:
        rows = draw_cone(np.random.default_rng(20231), n_rows, width)
        writer.write(rows, pa.table({"image_id": np.arange(n_rows)}))
        return Collection([writer.finish()])


def npy_bytes(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*.npy"))


@pytest.mark.parametrize("n_shards", [1, 3])
@pytest.mark.parametrize("design", GRID, ids=lambda design: " ".join(map(str, design.values())))
def test_files_are_as_large_as_predicted(
    source: Collection, tmp_path: Path, design: dict[str, Any], n_shards: int
) -> None:
    plan = plan_index(N_ROWS, source.space, rows_per_shard=N_ROWS // n_shards, **design)
    assert plan.n_shards == n_shards
    build_index(source, tmp_path / "index", plan, n_queries=1)
    assert npy_bytes(tmp_path / "index") == pytest.approx(plan.disk_bytes, rel=0.02)


@pytest.mark.parametrize("n_shards", [1, 3])
def test_a_graph_over_the_lists_is_predicted(
    source: Collection, tmp_path: Path, n_shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "MOST_COMPARED_LISTS", 128)
    plan = plan_index(N_ROWS, source.space, n_lists=256, rows_per_shard=N_ROWS // n_shards)
    build_index(source, tmp_path / "index", plan, n_queries=1)
    assert (tmp_path / "index" / "quantizer" / "links.npy").is_file()
    assert npy_bytes(tmp_path / "index") == pytest.approx(plan.disk_bytes, rel=0.02)


# Prints the heap that opening an index takes. Run without glibc's caches of freed blocks, which
# count as allocated.
NO_CACHES = {
    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0",
    "OMP_NUM_THREADS": "1",
}
HEAP_OF_OPENING = """
import ctypes, gc, json, sys
from pathlib import Path
from index_builder import costs
from index_builder.candidates import open_nominator
from index_builder.manifest import read_index_manifest, shards_of
from index_builder.planning import IndexPlan

costs.MOST_COMPARED_LISTS = int(sys.argv[2])
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
    manifest = read_index_manifest(root)
    return open_nominator(root, IndexPlan.from_dict(manifest["plan"]), shards_of(root, manifest))

load(sys.argv[1])  # and drop it: what Python and FAISS set up once isn't the index's
before = allocated()
opened = load(sys.argv[1])
print(json.dumps({"heap": allocated() - before, "said": opened.ram_bytes}))
"""


def heap_of_opening(root: Path) -> dict[str, int]:
    run = subprocess.run(
        [sys.executable, "-c", HEAP_OF_OPENING, str(root), str(costs.MOST_COMPARED_LISTS)],
        capture_output=True,
        check=True,
        text=True,
        env={**os.environ, **NO_CACHES},
    )
    found: dict[str, int] = json.loads(run.stdout)
    return found


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return write(tmp_path_factory.mktemp("many"), 24_000, 48)


@pytest.mark.skipif(sys.platform != "linux", reason="mallinfo2 is glibc's")
@pytest.mark.parametrize("n_shards", [1, 3])
@pytest.mark.parametrize(
    ("design", "n_compared"),
    [
        ({"code": "ivf-rabitq"}, 16_384),
        ({"code": "ivf-rabitq", "bits": 3}, 16_384),
        ({"code": "ivf-rabitq", "n_lists": 256}, 128),
        ({"code": "hnsw-sq8"}, 16_384),
    ],
    ids=["lists", "three bits", "a graph over the lists", "graph"],
)
def test_an_opened_index_takes_the_memory_that_was_predicted(
    many: Collection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    n_shards: int,
    design: dict[str, Any],
    n_compared: int,
) -> None:
    monkeypatch.setattr(costs, "MOST_COMPARED_LISTS", n_compared)
    n_rows = many.n_rows
    plan = plan_index(n_rows, many.space, rows_per_shard=n_rows // n_shards, **design)
    manifest = build_index(many, tmp_path / "index", plan, n_queries=1)
    found = heap_of_opening(tmp_path / "index")
    assert found["heap"] == pytest.approx(plan.ram_bytes, rel=0.02)
    assert found["said"] == manifest["ram_bytes"] == plan.ram_bytes
