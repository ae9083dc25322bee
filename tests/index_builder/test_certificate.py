from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from index_builder import certificate as certificate_module
from index_builder.build import build_index, open_lists
from index_builder.certificate import sound_rows
from index_builder.cosine import best_per_query
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.ground_truth import batches_of, exact_search
from index_builder.planning import plan_index
from index_builder.reranking import exact_scores
from index_builder.sampling import sample_rows

WriteFolder = Callable[..., EmbeddingFolder]


@pytest.fixture
def noisy(cone: Callable[..., np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Queries outside the distribution: shrunk to the axis, and noisy."""
    rows = cone(60).astype(np.float64)
    rows = 0.5 * rows + 0.5 * rows.mean(axis=0) + rng.standard_normal(rows.shape) * 0.06
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def test_recalls_are_those_of_search_and_exact_rank(
    cone: Callable[..., np.ndarray],
    noisy: np.ndarray,
    write_folder: WriteFolder,
    tmp_path: Path,
) -> None:
    rows = cone(1500)
    embeddings, queries = write_folder(rows), write_folder(noisy, "queries", 1)
    plan = plan_index(1500, embeddings.space, code="ivf-rabitq")
    manifest = build_index(
        embeddings, tmp_path / "index", plan, queries=queries, n_queries=40, seed=3
    )
    certificate = manifest["certificate"]
    assert certificate["query_sets"]["queries"] == {
        "n_queries": 40,
        "fingerprint": queries.fingerprint,
    }
    lists = open_lists(tmp_path / "index", plan)
    for name, folder in (("held_out", embeddings), ("queries", queries)):
        sizes = [part.row_stop - part.row_start for part in folder.parts]
        own, unit = sound_rows(folder, sample_rows(sizes, 40, 4))
        excluded = own if name == "held_out" else None
        truth = exact_search(batches_of(rows, 512), unit, 100, excluded=excluded)[0]
        for effort in certificate["efforts"]:
            n = effort["n_candidates"]
            found = lists.candidates(unit, effort["n_probe"], n + 1, n_least=10)
            if name == "held_out":
                pairs = zip(found, own, strict=True)
                found = np.array([np.append(f[f != o], [-1, -1])[:n] for f, o in pairs])
            found = found[:, :n]
            query_of, place = np.nonzero(found >= 0)
            best = best_per_query(
                query_of,
                found[query_of, place],
                exact_scores(embeddings, unit, found)[query_of, place],
                len(unit),
                100,
            )[0]
            for k in (1, 10, 100):
                shares = [np.isin(t[:k], b[:k]).mean() for t, b in zip(truth, best, strict=True)]
                assert effort["recall"][name][str(k)] == pytest.approx(np.mean(shares), abs=1e-9)


def test_the_default_is_the_smallest_effort_that_reaches_the_target_everywhere(
    cone: Callable[..., np.ndarray],
    noisy: np.ndarray,
    write_folder: WriteFolder,
    tmp_path: Path,
) -> None:
    embeddings, queries = write_folder(cone(1500)), write_folder(noisy, "queries", 1)
    plan = plan_index(1500, embeddings.space, code="ivf-rabitq")
    certificate = build_index(
        embeddings, tmp_path / "index", plan, queries=queries, target_recall=0.9
    )["certificate"]
    assert certificate["is_reached"]
    assert certificate["statement"].startswith("Recall@10 reaches the target of 0.9: 0.9")
    costs = [effort["read_bytes"] for effort in certificate["efforts"]]
    assert costs == sorted(costs)
    for effort in certificate["efforts"]:
        reaches = min(recall["10"] for recall in effort["recall"].values()) >= 0.9
        chosen = {name: effort[name] for name in ("n_probe", "n_candidates")}
        if chosen == certificate["effort"]:
            assert reaches
            break
        assert not reaches
    full = certificate["efforts"][-1]
    assert full["n_candidates"] == 1500 and full["n_probe"] == plan.n_lists
    assert full["recall"]["held_out"] == {"1": 1.0, "10": 1.0, "100": 1.0}


def test_a_missed_target_is_said_plainly(
    cone: Callable[..., np.ndarray],
    write_folder: WriteFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(certificate_module, "_CANDIDATES", (10, 20))
    monkeypatch.setattr(certificate_module, "_MOST_PROBES", 1)
    embeddings = write_folder(cone(1500))
    plan = plan_index(1500, embeddings.space, code="ivf-rabitq")
    certificate = build_index(embeddings, tmp_path / "index", plan)["certificate"]
    assert not certificate["is_reached"]
    assert "Recall@10 DOES NOT reach the target of 0.95: 0." in certificate["statement"]
    best = max(certificate["efforts"], key=lambda effort: effort["recall"]["held_out"]["10"])
    assert certificate["effort"]["n_candidates"] == best["n_candidates"]


def test_flat_is_exact_by_construction(
    cone: Callable[..., np.ndarray], write_folder: WriteFolder, tmp_path: Path
) -> None:
    embeddings = write_folder(cone(50))
    plan = plan_index(50, embeddings.space)
    certificate = build_index(embeddings, tmp_path / "index", plan)["certificate"]
    assert certificate["is_exact"] and certificate["effort"] is None


@pytest.mark.parametrize("n_rows", [1, 2, 5])
def test_tiny_indexes_have_a_certificate(
    cone: Callable[..., np.ndarray], write_folder: WriteFolder, tmp_path: Path, n_rows: int
) -> None:
    embeddings = write_folder(cone(n_rows), n_parts=1)
    plan = plan_index(n_rows, embeddings.space, code="ivf-rabitq")
    certificate = build_index(embeddings, tmp_path / "index", plan)["certificate"]
    assert certificate["is_reached"]
    assert certificate["effort"] == {"n_probe": 1, "n_candidates": n_rows}


def test_a_sample_of_dead_rows_measures_nothing(
    cone: Callable[..., np.ndarray],
    write_foreign: Callable[..., Path],
    space: EmbeddingSpace,
    tmp_path: Path,
) -> None:
    rows = cone(60)
    dead = int(sample_rows([60], 1, 1)[0])
    rows[dead] = 0
    embeddings = EmbeddingFolder.open(write_foreign(rows), space=space)
    plan = plan_index(60, space, code="ivf-rabitq")
    certificate = build_index(
        embeddings, tmp_path / "index", plan, n_queries=1, bad_rows="tombstone"
    )["certificate"]
    assert certificate["query_sets"] == {} and certificate["efforts"] == []
    assert certificate["effort"] == {"n_probe": 1, "n_candidates": 59}
