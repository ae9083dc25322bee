from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index_builder import certificate as certificate_module
from index_builder import ground_truth
from index_builder.candidates import nominate
from index_builder.certificate import certify, exact_certificate, sound_rows
from index_builder.cosine import unit_rows
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.execution.serial import SerialExecutor
from index_builder.ground_truth import batches_of, exact_search
from index_builder.recall import lower_bound
from index_builder.sampling import sample_rows
from tests.index_builder.stand_ins import Rows, Scan

WriteFolder = Callable[..., EmbeddingFolder]
SEED = 3


@pytest.fixture
def rows(cone: Callable[..., np.ndarray]) -> np.ndarray:
    return cone(1500)


@pytest.fixture
def noisy(cone: Callable[..., np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Queries outside the distribution: shrunk to the axis, and noisy."""
    rows = cone(60).astype(np.float64)
    rows = 0.5 * rows + 0.5 * rows.mean(axis=0) + rng.standard_normal(rows.shape) * 0.06
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


@pytest.fixture
def measure(
    rows: np.ndarray, write_folder: WriteFolder, tmp_path: Path
) -> Callable[..., dict[str, Any]]:
    """Certify a stand-in index of ``rows``."""
    embeddings = write_folder(rows)

    def run(**changed: Any) -> dict[str, Any]:
        given = {
            "nominator": Scan(rows, noise=0.2),
            "vectors": Rows(rows, is_exact=True),
            "embeddings": embeddings,
            "queries": None,
            "n_queries": 50,
            "target_recall": 0.9,
            "seed": SEED,
            "bad_rows": "error",
            "deleted": np.empty(0, np.int64),
            "executor": SerialExecutor(),
            "workspace": tmp_path / "truth",
        }
        return certify(**{**given, **changed})

    return run


def chosen_effort(certificate: dict[str, Any]) -> dict[str, Any]:
    wanted = certificate["effort"]
    (found,) = [e for e in certificate["efforts"] if {n: e[n] for n in wanted} == wanted]
    return dict(found)


def test_recalls_are_those_of_the_sampled_queries(
    rows: np.ndarray,
    noisy: np.ndarray,
    write_folder: WriteFolder,
    measure: Callable[..., dict[str, Any]],
) -> None:
    deleted = np.arange(0, 1500, 3)
    queries = write_folder(noisy, "queries", 1)
    nominator = Scan(rows, noise=0.2)
    certificate = measure(
        queries=queries, n_queries=40, deleted=deleted, nominator=nominator, target_recall=1.0
    )
    own = sample_rows([500] * 3, 40, SEED + 1)
    own = own[~np.isin(own, deleted)]
    assert 0 < len(own) < 40
    assert certificate["query_sets"] == {
        "held_out": {"n_queries": len(own)},
        "queries": {"n_queries": 40, "fingerprint": queries.fingerprint},
    }
    is_alive = ~np.isin(np.arange(1500), deleted)
    sampled = noisy[sample_rows([60], 40, SEED + 1)]
    for name, unit, excluded in (
        ("held_out", unit_rows(rows[own]), own),
        ("queries", unit_rows(sampled), np.full(40, -1)),
    ):
        truth = exact_search(batches_of(rows, 512, is_alive), unit, 100, excluded=excluded)[0]
        for effort in certificate["efforts"]:
            n, breadth = effort["n_candidates"], effort["n_probe"]
            found = nominate(nominator, unit, breadth, n + 1, n_least=10, deleted=deleted)
            for k in (1, 10, 100):
                shares = [
                    np.isin(t[:k], f[f != x][:n]).mean()
                    for t, f, x in zip(truth, found, excluded, strict=True)
                ]
                assert effort["recall"][name][str(k)] == pytest.approx(np.mean(shares), abs=1e-5)
                if k == 10:
                    error = np.std(shares, ddof=1) / np.sqrt(len(shares))
                    assert effort["standard_error"][name] == pytest.approx(error, abs=1e-5)
            assert effort["nearest_in_100"][name] == effort["recall"][name]["1"]


@pytest.mark.parametrize("breadth_name", ["n_probe", "ef_search"])
def test_the_default_is_the_cheapest_effort_that_surely_reaches_the_target(
    rows: np.ndarray,
    noisy: np.ndarray,
    write_folder: WriteFolder,
    measure: Callable[..., dict[str, Any]],
    breadth_name: str,
) -> None:
    sets = [("raw", write_folder(noisy[:30], "raw")), ("prior", write_folder(noisy[30:], "prior"))]
    nominator = Scan(rows, noise=0.2, breadth_name=breadth_name, factor=30)
    certificate = measure(queries=sets, nominator=nominator)
    assert list(certificate["query_sets"]) == ["held_out", "raw", "prior"]
    assert certificate["is_reached"] and certificate["is_sure"]
    costs = [effort["read_bytes"] for effort in certificate["efforts"]]
    assert costs == sorted(costs)
    chosen = chosen_effort(certificate)
    assert chosen["read_bytes"] == (
        nominator.read_bytes(chosen[breadth_name]) + chosen["n_candidates"] * (48 * 2 + 4096)
    )
    for effort in certificate["efforts"]:
        at_ten = [
            (effort["recall"][name]["10"], effort["standard_error"][name])
            for name in certificate["query_sets"]
        ]
        if effort == chosen:
            assert all(recall - error > 0.9 for recall, error in at_ten)
            break
        # One standard error is less than the 90 % bound takes off.
        assert any(recall - 2.5 * error < 0.9 for recall, error in at_ten)
    if breadth_name == "ef_search":
        assert all(
            effort["n_candidates"] <= effort["ef_search"] for effort in certificate["efforts"]
        )
    hardest = min(recall["10"] for recall in chosen["recall"].values())
    opening = (
        rf"Recall@10 reaches the target of 0.9: {hardest:.4f} on the hardest set \((raw|prior)\)"
    )
    assert re.match(
        rf"{opening}, with 90% confidence above 0\.9\d+ on each; ", certificate["statement"]
    )
    assert f"{breadth_name} {chosen[breadth_name]} of" in certificate["statement"]
    assert certificate["statement"].endswith("candidates ranked exactly.")


def test_what_only_the_estimate_reaches_is_said(measure: Callable[..., dict[str, Any]]) -> None:
    certificate = measure(n_queries=5, target_recall=0.97)
    assert lower_bound(np.ones(5)) < 0.9
    assert certificate["is_reached"] and not certificate["is_sure"]
    assert certificate["statement"].endswith("More queries or a higher effort would make sure.")
    cheaper = [
        effort
        for effort in certificate["efforts"]
        if effort["read_bytes"] < chosen_effort(certificate)["read_bytes"]
    ]
    assert all(effort["recall"]["held_out"]["10"] < 0.97 for effort in cheaper)
    assert chosen_effort(certificate)["recall"]["held_out"]["10"] >= 0.97
    assert certificate["unmeasured"] == []


def test_a_missed_target_is_said_plainly(
    measure: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate_module, "_CANDIDATES", (10, 12))
    certificate = measure(target_recall=0.99)
    assert not certificate["is_reached"] and not certificate["is_sure"]
    assert "Recall@10 DOES NOT reach the target of 0.99: 0." in certificate["statement"]
    best = max(effort["recall"]["held_out"]["10"] for effort in certificate["efforts"])
    assert chosen_effort(certificate)["recall"]["held_out"]["10"] == best


def test_breadths_that_cannot_win_are_left_out(
    rows: np.ndarray, measure: Callable[..., dict[str, Any]]
) -> None:
    certificate = measure(nominator=Scan(rows, noise=0.0))
    cost = chosen_effort(certificate)["read_bytes"]
    assert {effort["n_probe"] for effort in certificate["efforts"]} == {1, 2}
    assert certificate["unmeasured"] == [4, 8]
    assert all(Scan(rows).read_bytes(breadth) > cost for breadth in certificate["unmeasured"])


def test_a_lossy_copy_is_measured_for_what_it_loses(
    rows: np.ndarray, measure: Callable[..., dict[str, Any]]
) -> None:
    nominator = Scan(rows, noise=0.0)  # nominates the truth itself
    copy = np.round(rows.astype(np.float32) * 12) / 12
    certificate = measure(
        nominator=nominator, vectors=Rows(copy, is_exact=False), target_recall=0.999
    )
    own = sample_rows([500] * 3, 50, SEED + 1)
    unit = unit_rows(rows[own])
    truth = exact_search(batches_of(rows, 512), unit, 100, excluded=own)[0]
    by_copy = exact_search(batches_of(copy, 512), unit, 100, excluded=own)[0]
    whole = certificate["efforts"][-1]
    assert whole["n_candidates"] == 1500
    for k in (1, 10, 100):
        shares = [np.isin(t[:k], c[:k]).mean() for t, c in zip(truth, by_copy, strict=True)]
        assert whole["recall"]["held_out"][str(k)] == pytest.approx(np.mean(shares), abs=1e-5)
    assert whole["recall"]["held_out"]["1"] < whole["nearest_in_100"]["held_out"] == 1
    assert not certificate["is_reached"]
    assert certificate["statement"].endswith("candidates ranked by the copy in the index.")


@pytest.mark.parametrize("n_rows", [1, 2, 5])
def test_tiny_indexes_have_a_certificate(
    cone: Callable[..., np.ndarray],
    write_folder: WriteFolder,
    measure: Callable[..., dict[str, Any]],
    n_rows: int,
) -> None:
    rows = cone(n_rows)
    certificate = measure(
        embeddings=write_folder(rows, "tiny", n_parts=1),
        nominator=Scan(rows, noise=0.0, most_breadth=1),
        vectors=Rows(rows, is_exact=True),
    )
    assert certificate["is_reached"] and not certificate["is_sure"]
    assert certificate["effort"] == {"n_probe": 1, "n_candidates": n_rows}


def test_a_sample_of_dead_rows_measures_nothing(
    cone: Callable[..., np.ndarray],
    write_foreign: Callable[..., Path],
    space: EmbeddingSpace,
    measure: Callable[..., dict[str, Any]],
) -> None:
    rows = cone(60)
    rows[int(sample_rows([60], 1, SEED + 1)[0])] = 0
    certificate = measure(
        embeddings=EmbeddingFolder.open(write_foreign(rows), space=space),
        nominator=Scan(rows[:59]),
        n_queries=1,
        bad_rows="tombstone",
    )
    assert certificate["query_sets"] == {} and certificate["efforts"] == []
    assert certificate["effort"] == {"n_probe": 8, "n_candidates": 59}
    assert certificate["statement"] == "Too few rows to measure recall."


def test_an_interrupted_certificate_keeps_its_truth(
    measure: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = measure()
    assert not (tmp_path / "truth").exists()
    with monkeypatch.context() as patched:

        def stop(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        patched.setattr(certificate_module, "find_shares", stop)
        with pytest.raises(KeyboardInterrupt):
            measure()
    assert (tmp_path / "truth").is_dir()
    monkeypatch.setattr(ground_truth, "exact_search", None)  # nothing is searched again
    assert measure() == expected
    assert not (tmp_path / "truth").exists()


def test_sets_of_one_name_are_refused(
    noisy: np.ndarray, write_folder: WriteFolder, measure: Callable[..., dict[str, Any]]
) -> None:
    queries = write_folder(noisy, "queries")
    for names in (("a", "a"), ("held_out", "b")):
        with pytest.raises(ValueError, match=f"query sets are named {', '.join(names)}, expected"):
            measure(queries=[(name, queries) for name in names])


def test_a_certificate_is_small_and_json(
    noisy: np.ndarray, write_folder: WriteFolder, measure: Callable[..., dict[str, Any]]
) -> None:
    queries = write_folder(noisy, "queries")
    certificate = measure(queries=[("a", queries), ("b", queries)], target_recall=1.0)
    n_efforts = len(certificate["efforts"])
    assert n_efforts == 4 * 7
    text = json.dumps(certificate, indent=2, allow_nan=False)
    assert len(text) < 1000 + n_efforts * 900


def test_flat_is_exact_by_construction() -> None:
    certificate = exact_certificate(0.9)
    assert certificate["is_exact"] and certificate["effort"] is None
    assert certificate["is_sure"] and certificate["target_recall"] == 0.9


def test_rows_without_a_direction_are_no_queries(
    write_foreign: Callable[..., Path], space: EmbeddingSpace, cone: Callable[..., np.ndarray]
) -> None:
    rows = cone(5)
    rows[1], rows[3, 0] = 0, np.nan
    folder = EmbeddingFolder.open(write_foreign(rows), space=space)
    numbers, unit = sound_rows(folder, np.arange(5))
    np.testing.assert_array_equal(numbers, [0, 2, 4])
    np.testing.assert_allclose(unit, unit_rows(rows[[0, 2, 4]]))
