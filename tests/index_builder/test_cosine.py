from __future__ import annotations

import numpy as np

from index_builder.cosine import best_per_query, has_direction, pair_scores, unit_rows


def test_unit_rows_flatten_and_normalize(rng: np.random.Generator) -> None:
    tokens = rng.standard_normal((5, 3, 4)).astype(np.float16)
    tokens[2] = 0
    unit = unit_rows(tokens)
    assert unit.shape == (5, 12)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), [1, 1, 0, 1, 1], atol=1e-6)


def test_pair_scores_are_cosines(rng: np.random.Generator) -> None:
    queries = rng.standard_normal((4, 7)).astype(np.float32)
    vectors = rng.standard_normal((6, 7)).astype(np.float16)
    query_of, vector_of = np.divmod(np.arange(24), 6)
    scores = pair_scores(queries, vectors, query_of, vector_of).reshape(4, 6)
    left, right = queries.astype(float), vectors.astype(float)
    expected = (
        left @ right.T / np.outer(np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=1))
    )
    np.testing.assert_array_equal(scores, expected.astype(np.float32))


def test_best_per_query_breaks_ties_by_row_and_pads() -> None:
    query_of = np.array([2, 0, 0, 2, 0])
    rows = np.array([9, 7, 3, 1, 5])
    scores = np.array([0.5, 0.5, 0.5, 0.5, 0.9], np.float32)
    best, best_scores = best_per_query(query_of, rows, scores, 3, 2)
    np.testing.assert_array_equal(best, [[5, 3], [-1, -1], [1, 9]])
    np.testing.assert_array_equal(
        best_scores, np.array([[0.9, 0.5], [np.nan, np.nan], [0.5, 0.5]], np.float32)
    )


def test_has_direction() -> None:
    rows = np.array([[1, 0], [0, 0], [np.nan, 1], [np.inf, 1], [1e-20, 0], [1e-6, 0], [3e38, 3e38]])
    sound = [True, False, False, False, False, True, False]  # the last is longer than float32 holds
    np.testing.assert_array_equal(has_direction(rows), sound)
