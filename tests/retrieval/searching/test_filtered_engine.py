"""Filters in the engine: what is found is what an exact search of the allowed rows finds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index_builder.deletion import delete_rows
from index_builder.embeddings.errors import SpaceMismatchError
from index_builder.embeddings.reader import EmbeddingFolder
from retrieval.errors import FilterError
from retrieval.searching.engine import SearchEngine
from retrieval.searching.request import SearchRequest

Draw = Callable[[int], np.ndarray]
Open = Callable[..., SearchEngine]
N_ROWS = 1200

DESIGNS: dict[str, dict[str, Any]] = {
    "flat from disk": {"code": "flat", "tier": "disk"},
    "flat in memory": {"code": "flat", "tier": "memory"},
    "lists in shards": {"code": "ivf-rabitq", "n_shards": 3},
    "lists from disk": {"code": "ivf-rabitq", "tier": "disk", "n_shards": 2},
    "lists of two bits": {"code": "ivf-rabitq", "bits": 2, "n_shards": 2},
    "graph": {"code": "hnsw-sq8", "n_shards": 2},
}


@pytest.fixture
def columns(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "share": rng.random(N_ROWS),
        "punsafe": rng.random(N_ROWS),
        "pwatermark": rng.random(N_ROWS),
        "aesthetic": rng.uniform(0, 10, N_ROWS),
    }


@pytest.fixture
def rows(draw_rows: Draw) -> np.ndarray:
    return draw_rows(N_ROWS)


@pytest.fixture
def opened(
    rows: np.ndarray,
    columns: dict[str, Any],
    write_gallery_rows: Callable[..., EmbeddingFolder],
    build: Callable[..., Path],
) -> Open:
    def open_design(**design: Any) -> SearchEngine:
        return SearchEngine.open(build(write_gallery_rows(rows, columns=columns), **design))

    return open_design


def nearest(
    rows: np.ndarray, is_allowed: np.ndarray, queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compare in float64, and pad with -1 and NaN."""
    unit, asked = (
        each.astype(np.float64) / np.linalg.norm(each.astype(np.float64), axis=1, keepdims=True)
        for each in (rows, queries)
    )
    scores = (asked @ unit.T).astype(np.float32)
    scores[:, ~is_allowed] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, order, axis=1)
    return np.where(best == -np.inf, -1, order), np.where(best == -np.inf, np.nan, best)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("share", [0.5, 0.08, 0.004, 0])
def test_full_effort_equals_an_exact_search_of_the_allowed_rows(
    rows: np.ndarray,
    columns: dict[str, Any],
    opened: Open,
    draw_rows: Draw,
    design: str,
    share: float,
) -> None:
    engine = opened(**DESIGNS[design])
    effort: dict[str, Any] = {}
    if engine.plan.code != "flat":
        breadth = engine.plan.n_lists or engine.plan.rows_per_shard
        effort = {"breadth": breadth, "n_candidates": N_ROWS // 2}
    request = SearchRequest(12, where=f"share < {share}", unsafe_from=0.8, **effort)
    queries = draw_rows(30)
    result = engine.search(queries, request)
    is_allowed = (columns["share"] < share) & (columns["punsafe"] < 0.8)
    expected_rows, expected_scores = nearest(rows, is_allowed, queries, 12)
    np.testing.assert_array_equal(result.rows, expected_rows)
    np.testing.assert_allclose(result.scores, expected_scores, rtol=0, atol=2e-7)


@pytest.mark.parametrize("design", ["lists in shards", "lists from disk", "graph"])
@pytest.mark.parametrize("share", [0.5, 0.2])
def test_the_certified_effort_fills_every_query(
    rows: np.ndarray,
    columns: dict[str, Any],
    opened: Open,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    design: str,
    share: float,
) -> None:
    monkeypatch.setattr("retrieval.searching.engine._FEW", 0)  # codes nominate, however few
    engine = opened(**DESIGNS[design])
    queries = rows[::20] + rng.normal(0, 0.05, (60, rows.shape[1]))  # near rows, as certified
    request = SearchRequest(10, where=f"share < {share}", unsafe_from=None)
    result = engine.search(queries, request)
    is_allowed = columns["share"] < share
    assert (result.rows >= 0).all() and is_allowed[result.rows].all()
    expected = nearest(rows, is_allowed, queries, 10)[0]
    hits = [np.isin(few, found).mean() for few, found in zip(expected, result.rows, strict=True)]
    assert np.mean(hits) >= 0.95
    parts = engine.search(queries, request, batch_queries=7)
    np.testing.assert_array_equal(parts.rows, result.rows)


@pytest.mark.parametrize("design", ["flat from disk", "flat in memory", "lists in shards"])
def test_deleted_rows_pass_no_filter(
    rows: np.ndarray,
    columns: dict[str, Any],
    opened: Open,
    draw_rows: Draw,
    tmp_path: Path,
    design: str,
) -> None:
    opened(**DESIGNS[design])
    gone = np.arange(0, N_ROWS, 3)
    delete_rows(tmp_path / "index", gone)
    engine = SearchEngine.open(tmp_path / "index")
    queries = draw_rows(10)
    is_allowed = columns["share"] < 0.05
    is_allowed[gone] = False
    result = engine.search(queries, SearchRequest(80, where="share < 0.05", unsafe_from=None))
    np.testing.assert_array_equal(result.rows, nearest(rows, is_allowed, queries, 80)[0])
    assert (result.rows >= 0).sum() == 10 * is_allowed.sum()


def test_unsafe_rows_are_left_out_unless_asked_for(
    rows: np.ndarray, columns: dict[str, Any], opened: Open, draw_rows: Draw
) -> None:
    engine = opened(code="flat")
    queries = draw_rows(5)
    is_safe = columns["punsafe"] < 0.5
    everything = np.ones(N_ROWS, bool)
    for request, is_allowed in (
        (SearchRequest(9), is_safe),
        (SearchRequest(9, unsafe_from=None), everything),
        (SearchRequest(9, watermarked_from=0.3), is_safe & (columns["pwatermark"] < 0.3)),
    ):
        found = engine.search(queries, request).rows
        np.testing.assert_array_equal(found, nearest(rows, is_allowed, queries, 9)[0])


@pytest.mark.parametrize("design", ["flat in memory", "flat from disk"])
def test_hits_are_shaped(
    rows: np.ndarray, columns: dict[str, Any], opened: Open, draw_rows: Draw, design: str
) -> None:
    engine = opened(**DESIGNS[design])
    queries = draw_rows(8)
    plain = engine.search(queries, SearchRequest(300, unsafe_from=None))
    shaped = engine.search(queries, SearchRequest(20, duplicate_from=0.9, unsafe_from=None))
    assert plain.n_duplicates is None and shaped.n_duplicates is not None
    unit = rows.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    for i in range(8):
        kept: list[int] = []
        for row in plain.rows[i]:
            if len(kept) < 20 and not (unit[kept] @ unit[row] >= 0.9).any():
                kept.append(row)
        np.testing.assert_array_equal(shaped.rows[i], kept)
    excluded = rows[plain.rows[:, 0]]
    without = engine.search(
        queries, SearchRequest(5, excluded=excluded, excluded_from=0.999, unsafe_from=None)
    )
    assert not np.isin(without.rows, plain.rows[:, 0]).any()
    beautiful = engine.search(queries, SearchRequest(5, aesthetic_weight=50, unsafe_from=None))
    scores = columns["aesthetic"][beautiful.rows]
    assert (np.diff(scores, axis=1) < 0.2).all() and scores.mean() > 8


def test_what_is_excluded_must_be_of_the_same_space(opened: Open, draw_rows: Draw) -> None:
    engine = opened(code="flat")
    excluded = draw_rows(3)
    engine.search(draw_rows(1), SearchRequest(excluded=excluded, excluded_space=engine.space))
    other = dataclasses.replace(engine.space, model="ViT-H-14/laion2b")
    with pytest.raises(SpaceMismatchError, match="what is excluded"):
        engine.search(draw_rows(1), SearchRequest(excluded=excluded, excluded_space=other))


def test_filters_that_cannot_be_are_refused(opened: Open, draw_rows: Draw) -> None:
    engine = opened(code="flat")
    with pytest.raises(FilterError, match="width"):
        engine.search(draw_rows(1), SearchRequest(where="width > 512"))
