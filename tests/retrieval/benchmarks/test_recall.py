from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from index_builder.build import build_index
from index_builder.embeddings.collection import Collection
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.embeddings.writer import EmbeddingWriter
from index_builder.planning import plan_index
from retrieval.benchmarks.recall import measure_recall
from retrieval.errors import BenchmarkError
from retrieval.searching.engine import SearchEngine
from retrieval.searching.queries import load_queries
from retrieval.searching.request import SearchRequest

DIM, N_ROWS = 64, 1500


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingFolder:
    rng = np.random.default_rng(11)
    centres = rng.standard_normal((40, DIM))
    vectors = centres[rng.integers(40, size=N_ROWS)] + 0.7 * rng.standard_normal((N_ROWS, DIM))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    space = EmbeddingSpace("a model", "final", 1, DIM, True)
    folder = tmp_path_factory.mktemp("gallery") / "embeddings"
    with EmbeddingWriter(folder, space, command="test", details={}) as writer:
        writer.write(vectors.astype(np.float32), pa.table({"image_id": np.arange(N_ROWS)}))
        return writer.finish()


@pytest.fixture(scope="module")
def queries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("queries") / "queries.npy"
    np.save(path, np.random.default_rng(12).standard_normal((70, DIM)).astype(np.float32))
    return path


def open_engine(gallery: EmbeddingFolder, code: str, folder: Path) -> SearchEngine:
    plan = plan_index(gallery.n_rows, gallery.space, code=code)  # type: ignore[arg-type] # a literal of the tests
    build_index(Collection.open([gallery.path]), folder, plan)
    return SearchEngine.open(folder)


def test_an_exact_index_has_recall_1(
    gallery: EmbeddingFolder, queries: Path, tmp_path: Path
) -> None:
    report = measure_recall(open_engine(gallery, "flat", tmp_path / "flat"), load_queries(queries))
    assert {k: share.value for k, share in report.recall.items()} == {1: 1, 10: 1, 100: 1}


def test_recall_is_the_overlap_with_a_brute_force_search(
    gallery: EmbeddingFolder, queries: Path, tmp_path: Path
) -> None:
    engine = open_engine(gallery, "ivf-rabitq", tmp_path / "lists")
    report = measure_recall(engine, load_queries(queries), ks=(5,), breadth=2, n_candidates=8)
    asked = np.load(queries, allow_pickle=False)
    stored = gallery.take(np.arange(N_ROWS)).astype(np.float64)
    cosines = asked @ stored.T / np.linalg.norm(stored, axis=1)
    exact = np.argsort(-cosines, axis=1)[:, :5]
    found = engine.search(asked, SearchRequest(5, breadth=2, n_candidates=8)).rows
    shares = [len(set(e) & set(f)) / 5 for e, f in zip(exact, found, strict=True)]
    share = report.recall[5]
    assert share.value == pytest.approx(np.mean(shares)) and 0 < share.value < 1
    standard_error = np.std(shares) / len(shares) ** 0.5
    assert share.low == pytest.approx(share.value - 1.96 * standard_error, abs=standard_error)
    assert report.effort == {5: {"n_probe": 2, "n_candidates": 8}}
    assert "recall@5" in "\n".join(report.lines())


def test_a_sample_of_the_queries_is_seeded(
    gallery: EmbeddingFolder, queries: Path, tmp_path: Path
) -> None:
    engine = open_engine(gallery, "ivf-rabitq", tmp_path / "lists")
    first = measure_recall(engine, load_queries(queries), n_queries=20, seed=3)
    again = measure_recall(engine, load_queries(queries), n_queries=20, seed=3)
    assert first == again and first.n_queries == 20


def test_a_k_larger_than_the_index_is_refused(
    gallery: EmbeddingFolder, queries: Path, tmp_path: Path
) -> None:
    engine = open_engine(gallery, "flat", tmp_path / "flat")
    with pytest.raises(BenchmarkError, match=r"give a k from 1 to 1500"):
        measure_recall(engine, load_queries(queries), ks=(2000,))
