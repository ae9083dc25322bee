from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from index_builder.cosine import unit_rows
from index_builder.ground_truth import batches_of, block_rows, exact_search


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
    assert block_rows(1, 768) * 768 * 4 <= 64 << 20
    assert block_rows(100_000, 768) * 100_000 * 4 <= 64 << 20
    assert block_rows(1 << 30, 768) == 1
