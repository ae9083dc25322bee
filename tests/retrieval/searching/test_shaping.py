from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from index_builder.cosine import best_per_query, pair_scores, unit_rows
from retrieval.errors import SearchError
from retrieval.searching import shaping
from retrieval.searching.request import SearchRequest
from retrieval.searching.shaping import AESTHETIC_POOL, shape_hits

WIDTH = 24


class Index:
    """Rows in memory, searched by comparing all of them, in float64."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows
        self.asked: list[tuple[int, int]] = []

    def all_scores(self, unit: np.ndarray) -> np.ndarray:
        query_of, row = np.indices((len(unit), len(self.rows))).reshape(2, -1)
        return pair_scores(unit, self.rows, query_of, row).reshape(len(unit), -1)

    def nearest(self, unit: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        self.asked.append((len(unit), k))
        query_of, row = np.indices((len(unit), len(self.rows))).reshape(2, -1)
        scores = self.all_scores(unit).reshape(-1)
        return best_per_query(query_of, row, scores, len(unit), k)

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self.rows[rows]

    def shape(
        self, unit: np.ndarray, request: SearchRequest, aesthetic: Any = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        return shape_hits(
            self.nearest, self.take, unit, request, most=len(self.rows), aesthetic=aesthetic
        )


def brute_force(
    index: Index,
    unit: np.ndarray,
    request: SearchRequest,
    aesthetics: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Walk down all rows of each query, one by one."""
    k = request.k
    n_wanted = k * (AESTHETIC_POOL if request.aesthetic_weight else 1)
    n_rows = len(index.rows)
    pairs = np.indices((n_rows, n_rows)).reshape(2, -1)
    alike = pair_scores(index.rows, index.rows, *pairs).reshape(n_rows, n_rows)
    shape = len(unit), k
    rows, scores = np.full(shape, -1), np.full(shape, np.nan, np.float32)
    counts = np.zeros(shape, np.int32)
    for query, of_query in enumerate(index.all_scores(unit)):
        kept: list[int] = []
        folded: dict[int, int] = {}
        for row in np.lexsort((np.arange(n_rows), -of_query)).tolist():
            if len(kept) == n_wanted:
                break
            if request.excluded is not None:
                n_excluded = len(request.excluded)
                cosines = pair_scores(
                    request.excluded,
                    index.rows,
                    np.arange(n_excluded),
                    np.full(n_excluded, row),
                )
                if (cosines >= request.excluded_from).any():
                    continue
            if request.duplicate_from is not None:
                originals = [one for one in kept if alike[row, one] >= request.duplicate_from]
                if originals:
                    folded[originals[0]] += 1
                    continue
            kept.append(row)
            folded[row] = 0
        bonus = np.zeros(n_rows)
        if request.aesthetic_weight and aesthetics is not None:
            bonus = np.nan_to_num(request.aesthetic_weight * aesthetics / 10)
        best = sorted(kept, key=lambda row: (-(float(of_query[row]) + bonus[row]), row))[:k]
        rows[query, : len(best)] = best
        scores[query, : len(best)] = of_query[best]
        counts[query, : len(best)] = [folded[row] for row in best]
    return rows, scores, counts


@pytest.fixture
def draw(rng: np.random.Generator) -> Callable[[int], Index]:
    """Rows in clusters, of any norm; half of them near-duplicates of others, some exact copies."""

    def make(n: int) -> Index:
        rows = (
            rng.standard_normal((n, WIDTH))
            + 1.5 * rng.standard_normal((8, WIDTH))[rng.integers(8, size=n)]
        )
        copied = rng.integers(0, n // 2, n // 2)
        noise = rng.standard_normal((n // 2, WIDTH)) * rng.choice([0, 0.1, 0.4, 0.8], (n // 2, 1))
        rows[n - n // 2 :] = rows[copied] + noise
        rows *= rng.uniform(0.5, 2, (n, 1))
        return Index(rows.astype(np.float16)[rng.permutation(n)])

    return make


def check(found: Any, expected: Any) -> None:
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    if found[2] is not None:
        np.testing.assert_array_equal(found[2], expected[2])
        assert found[2].dtype == np.int32
    assert (found[0].dtype, found[1].dtype) == (np.int64, np.float32)


@pytest.mark.parametrize("k", [1, 7, 40])
@pytest.mark.parametrize(
    "asked",
    [
        {"duplicate_from": 0.94},
        {"duplicate_from": 0.5},
        {"duplicate_from": 1.0},
        {"excluded": True},
        {"excluded": True, "duplicate_from": 0.9},
        {"aesthetic_weight": 0.4},
        {"aesthetic_weight": -0.4, "duplicate_from": 0.9},
        {"aesthetic_weight": 2, "duplicate_from": 0.9, "excluded": True},
    ],
    ids=lambda asked: " ".join(asked),
)
def test_hits_equal_a_walk_down_all_rows(
    draw: Callable[[int], Index], rng: np.random.Generator, asked: dict[str, Any], k: int
) -> None:
    index = draw(300)
    unit = unit_rows(index.rows[rng.integers(0, 300, 12)].astype(np.float32) + 0.5)
    if asked.get("excluded"):
        excluded = index.rows[rng.integers(0, 300, 60)].astype(np.float32)
        asked = {**asked, "excluded": excluded, "excluded_from": 0.9}
    aesthetics = rng.uniform(0, 10, 300)
    aesthetics[rng.integers(0, 300, 60)] = np.nan
    request = SearchRequest(k, **asked)
    found = index.shape(unit, request, lambda rows: aesthetics[rows])
    check(found, brute_force(index, unit, request, aesthetics))
    assert (found[2] is None) == (request.duplicate_from is None)


def test_small_blocks_and_tiles_change_nothing(
    draw: Callable[[int], Index], monkeypatch: pytest.MonkeyPatch
) -> None:
    index = draw(400)
    unit = unit_rows(index.rows[:9])
    request = SearchRequest(30, duplicate_from=0.8, excluded=index.rows[20:40], excluded_from=0.95)
    expected = brute_force(index, unit, request)
    monkeypatch.setattr(shaping, "_TILE_RANKS", 8)
    monkeypatch.setattr(shaping, "_BLOCK_BYTES", 8 * 4 * WIDTH * 3)
    monkeypatch.setattr(shaping, "_NORMED_ROWS", 7)
    check(index.shape(unit, request), expected)


def test_batches_do_not_change_the_result(draw: Callable[[int], Index]) -> None:
    index = draw(300)
    unit = unit_rows(index.rows[:25])
    request = SearchRequest(9, duplicate_from=0.9, excluded=index.rows[:3])
    whole = index.shape(unit, request)
    for step in (1, 4):
        parts = [index.shape(unit[start : start + step], request) for start in range(0, 25, step)]
        for each, together in zip(zip(*parts, strict=True), whole, strict=True):
            np.testing.assert_array_equal(np.concatenate(each), together)


def test_only_queries_that_lack_hits_are_asked_again(draw: Callable[[int], Index]) -> None:
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((200, WIDTH))
    rows[100:180] = rows[7] + 0.01 * rng.standard_normal((80, WIDTH))
    index = Index(rows.astype(np.float32))
    unit = unit_rows(np.stack([rows[7], -rows[7], rows[7]]))
    found = index.shape(unit, SearchRequest(10, duplicate_from=0.94))
    assert index.asked == [(3, 20), (2, 40), (2, 80), (2, 160)]
    assert (found[0] >= 0).all()
    assert found[2] is not None
    assert found[2][0, 0] == 80 and found[2][0, 1:].sum() == 0


def test_k_are_found_while_there_are_k_and_no_more(draw: Callable[[int], Index]) -> None:
    rng = np.random.default_rng(3)
    groups = rng.standard_normal((6, WIDTH))
    index = Index(np.repeat(groups, 50, axis=0).astype(np.float32))
    unit = unit_rows(rng.standard_normal((4, WIDTH)))
    rows, scores, counts = index.shape(unit, SearchRequest(10, duplicate_from=0.999))
    assert counts is not None
    assert ((rows >= 0).sum(axis=1) == 6).all() and np.isnan(scores[:, 6:]).all()
    assert (counts[:, :6] == 49).all() and (counts[:, 6:] == 0).all()
    # Copies come by row, so the first of each stays.
    np.testing.assert_array_equal(np.sort(rows[:, :6]), np.tile(50 * np.arange(6), (4, 1)))


def test_an_index_without_rows_gives_no_hits() -> None:
    def nearest(unit: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return np.full((len(unit), k), -1), np.full((len(unit), k), np.nan, np.float32)

    unit = unit_rows(np.ones((2, WIDTH)))
    for most in (0, 30):
        rows, scores, counts = shape_hits(
            nearest,
            lambda rows: np.empty((0, WIDTH)),
            unit,
            SearchRequest(3, duplicate_from=0.9),
            most=most,
            aesthetic=None,
        )
        assert counts is not None
        assert (rows == -1).all() and np.isnan(scores).all() and not counts.any()


def test_tokens_are_compared_as_one_vector(draw: Callable[[int], Index]) -> None:
    index = draw(120)
    unit = unit_rows(index.rows[:5])
    request = SearchRequest(6, duplicate_from=0.9, excluded=index.rows[:2].reshape(2, 3, 8))
    flat = SearchRequest(6, duplicate_from=0.9, excluded=index.rows[:2])
    found = shape_hits(
        index.nearest,
        lambda rows: index.rows[rows].reshape(len(rows), 3, 8),
        unit,
        request,
        most=120,
        aesthetic=None,
    )
    check(found, brute_force(index, unit, flat))


def test_unsound_requests_are_refused(draw: Callable[[int], Index]) -> None:
    index = draw(40)
    unit = unit_rows(index.rows[:2])
    with pytest.raises(
        SearchError, match=r"excluded vectors are float64 with 5 numbers each, .* 24"
    ):
        index.shape(unit, SearchRequest(3, excluded=np.ones((2, 5))))
    bad = np.ones((3, WIDTH))
    bad[1, 3] = np.nan
    with pytest.raises(SearchError, match="excluded vector 1 is zero or holds NaN"):
        index.shape(unit, SearchRequest(3, excluded=bad))
    with pytest.raises(SearchError, match="tells no aesthetic scores"):
        index.shape(unit, SearchRequest(3, aesthetic_weight=0.5))
