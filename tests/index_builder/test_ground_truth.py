from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index_builder import ground_truth
from index_builder.cosine import unit_rows
from index_builder.execution import make_executor
from index_builder.execution.serial import SerialExecutor
from index_builder.ground_truth import (
    batches_of,
    block_rows,
    exact_search,
    find_truth,
    truth_tasks,
)


def brute_force(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    vectors, queries = vectors.astype(np.float64), queries.astype(np.float64)
    cosines = (queries @ vectors.T) / np.outer(
        np.linalg.norm(queries, axis=1), np.linalg.norm(vectors, axis=1)
    )
    scores = cosines.astype(np.float32)
    order = np.lexsort((np.broadcast_to(np.arange(len(vectors)), scores.shape), -scores), axis=1)
    return order[:, :k], np.take_along_axis(scores, order[:, :k], axis=1)


@pytest.mark.parametrize("batch_rows", [1, 7, 64, 1000])
def test_equals_brute_force_for_every_block(
    cone: Callable[..., np.ndarray], rng: np.random.Generator, batch_rows: int
) -> None:
    vectors, queries = cone(300), unit_rows(rng.standard_normal((9, 48)))
    rows, scores = exact_search(batches_of(vectors, batch_rows), queries, 10)
    expected_rows, expected_scores = brute_force(vectors, queries, 10)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)


@pytest.mark.parametrize("batch_rows", [3, 50])
def test_copies_come_by_row(cone: Callable[..., np.ndarray], batch_rows: int) -> None:
    vectors = np.repeat(cone(4), 25, axis=0)
    rows, scores = exact_search(batches_of(vectors, batch_rows), unit_rows(vectors[30:31]), 10)
    np.testing.assert_array_equal(rows[0], np.arange(25, 35))
    assert (scores == scores[0, 0]).all()


def test_dead_and_excluded_rows_are_never_found(cone: Callable[..., np.ndarray]) -> None:
    vectors = cone(40)
    is_alive = np.arange(40) % 2 == 0
    batches = list(batches_of(vectors, 16, is_alive))
    excluded = np.arange(6)
    rows, scores = exact_search(batches, unit_rows(vectors[:6]), 40, excluded=excluded)
    for query, found in enumerate(rows):
        expected = set(range(0, 40, 2)) - {query}
        assert set(found[found >= 0].tolist()) == expected
        assert np.isnan(scores[query][found < 0]).all()
        assert (found[len(expected) :] == -1).all()


def test_fewer_rows_than_k_are_padded(cone: Callable[..., np.ndarray]) -> None:
    rows, scores = exact_search(batches_of(cone(3), 2), unit_rows(cone(2)), 5)
    assert (rows[:, 3:] == -1).all() and np.isnan(scores[:, 3:]).all()
    assert (np.sort(rows[:, :3], axis=1) == [0, 1, 2]).all()


def test_block_rows_bounds_scores_and_rows() -> None:
    assert block_rows(1, 768) * 768 * 4 <= 32 << 20
    assert block_rows(100_000, 768) * 100_000 * 4 <= 32 << 20
    assert block_rows(1 << 30, 768) == 1


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ground_truth, "_TASK_BYTES", 96 * 70)  # 70 rows of 48 float16


def arguments(embeddings: Any, cone: Callable[..., np.ndarray], workspace: Path) -> dict[str, Any]:
    return {
        "embeddings": embeddings,
        "unit": unit_rows(cone(9)),
        "k": 10,
        "excluded": np.array([5, 80, *[-1] * 7]),
        "deleted": np.arange(3, 300, 4),
        "bad_rows": "error",
        "workspace": workspace,
    }


@pytest.mark.parametrize("name", ["serial", "processes"])
def test_pieces_make_the_truth_of_the_whole(
    cone: Callable[..., np.ndarray],
    write_folder: Callable[..., Any],
    tmp_path: Path,
    small_tasks: None,
    name: str,
) -> None:
    rows = np.concatenate([cone(200), np.repeat(cone(20), 5, axis=0)])  # copies across the cuts
    given = arguments(write_folder(rows), cone, tmp_path / "truth")
    with make_executor(name, n_workers=None if name == "serial" else 2) as executor:
        found = find_truth(**given, executor=executor)
    is_alive = ~np.isin(np.arange(300), given["deleted"])
    expected = exact_search(
        batches_of(rows, 300, is_alive), given["unit"], 10, excluded=given["excluded"]
    )[0]
    np.testing.assert_array_equal(found, expected)
    assert len(list((tmp_path / "truth").glob("*/*-*"))) == 5


def test_an_interrupted_search_goes_on_and_trusts_no_other_piece(
    cone: Callable[..., np.ndarray],
    write_folder: Callable[..., Any],
    tmp_path: Path,
    small_tasks: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = arguments(write_folder(cone(300)), cone, tmp_path / "truth")
    searched: list[int] = []

    def counting(batches: Any, *rest: Any, **options: Any) -> Any:
        listed = list(batches)
        searched.append(listed[0].row_start)
        if searched == [0, 70, 140]:
            raise KeyboardInterrupt
        return exact_search(listed, *rest, **options)

    monkeypatch.setattr(ground_truth, "exact_search", counting)
    with pytest.raises(KeyboardInterrupt):
        find_truth(**given, executor=SerialExecutor())
    whole = find_truth(**given, executor=SerialExecutor())
    assert searched == [0, 70, 140, 140, 210, 280]
    np.testing.assert_array_equal(find_truth(**given, executor=SerialExecutor()), whole)
    assert len(searched) == 6
    # A damaged piece is searched again; other queries, or other rows taken down, have their own.
    piece = next((tmp_path / "truth").glob("*/*70-*140/rows.npy"))
    piece.write_bytes(piece.read_bytes()[:-1] + b"\x7f")
    np.testing.assert_array_equal(find_truth(**given, executor=SerialExecutor()), whole)
    assert searched[6:] == [70]
    find_truth(**{**given, "deleted": np.arange(0)}, executor=SerialExecutor())
    assert len(searched) == 12
    find_truth(**{**given, "unit": given["unit"][::-1]}, executor=SerialExecutor())
    assert len(searched) == 17


def test_the_number_of_pieces_is_bounded_and_depends_on_rows_alone(
    cone: Callable[..., np.ndarray],
    write_folder: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = arguments(write_folder(cone(300)), cone, tmp_path / "truth")
    assert [task.row_stop for task in truth_tasks(**given)] == [300]
    monkeypatch.setattr(ground_truth, "_TASK_BYTES", 1)
    monkeypatch.setattr(ground_truth, "_MOST_TASKS", 4)
    tasks = truth_tasks(**given)
    assert [(task.row_start, task.row_stop) for task in tasks] == [
        (0, 75),
        (75, 150),
        (150, 225),
        (225, 300),
    ]
