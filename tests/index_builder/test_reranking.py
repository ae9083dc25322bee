from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from index_builder import reranking
from index_builder.cosine import unit_rows
from index_builder.reranking import exact_scores, rank_exactly

Cone = Callable[..., np.ndarray]


def as_rows(rows: np.ndarray) -> Any:
    space = SimpleNamespace(width=int(np.prod(rows.shape[1:])))
    return SimpleNamespace(space=space, dtype=rows.dtype, take=lambda wanted: rows[wanted])


@pytest.mark.parametrize("block_bytes", [1, 64 << 20])
@pytest.mark.parametrize("row_shape", [(48,), (3, 16)])
def test_scores_are_cosines(
    rng: np.random.Generator,
    cone: Cone,
    monkeypatch: pytest.MonkeyPatch,
    block_bytes: int,
    row_shape: tuple[int, ...],
) -> None:
    monkeypatch.setattr(reranking, "_ROW_BYTES", block_bytes)
    stored = (cone(100) * np.float16(0.6)).reshape(-1, *row_shape)
    queries = unit_rows(cone(7))
    rows = np.array([rng.permutation(100)[:12] for _ in queries])
    rows[2, 4:] = -1
    scores = exact_scores(as_rows(stored), queries, rows)
    expected = np.einsum("qj,qkj->qk", queries, unit_rows(stored)[rows])
    np.testing.assert_allclose(scores[rows >= 0], expected[rows >= 0], atol=1e-6)
    assert np.isnan(scores[rows < 0]).all()


def test_best_first_and_equal_scores_by_row() -> None:
    stored = np.array([[0, 1], [2, 0], [1, 0], [1, 1]], np.float32)
    rows, scores = rank_exactly(
        as_rows(stored), np.array([[1, 0]], np.float32), np.array([[3, 2, -1, 1, 0]]), 5
    )
    np.testing.assert_array_equal(rows, [[1, 2, 3, 0, -1]])
    np.testing.assert_allclose(scores, [[1, 1, np.sqrt(0.5), 0, np.nan]], atol=1e-6)
