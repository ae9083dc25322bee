from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kstest

from index_builder.deletion import delete_rows
from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.sampling import sample_rows
from retrieval.confidence.random_pairs import RandomPairs, rows_within
from retrieval.errors import ConfidenceError
from retrieval.searching.engine import SearchEngine
from retrieval.searching.request import SearchRequest


def unit(rows: np.ndarray) -> np.ndarray:
    wide = rows.astype(np.float64)
    widened: np.ndarray = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return widened


def test_moments_and_percentiles_against_every_pair(
    engine: SearchEngine, gallery: np.ndarray, rng: np.random.Generator
) -> None:
    pairs = RandomPairs.draw(engine, n_drawn=150, seed=5)
    queries = rng.standard_normal((20, gallery.shape[1])) * 3
    scores = engine.search(queries, SearchRequest(7)).scores
    found = pairs.compare(queries, scores)
    drawn = unit(gallery)[sample_rows(engine.embeddings.part_rows, 150, 5)]
    cosines = unit(queries) @ drawn.T
    np.testing.assert_allclose(found.mean, cosines.mean(axis=1), atol=1e-7)
    np.testing.assert_allclose(found.deviation, cosines.std(axis=1), atol=1e-7)
    # A hit may be among the random rows, which then isn't lower than itself.
    n_lower = (cosines[:, None, :] < scores[:, :, None] - 1e-6).sum(axis=2)
    np.testing.assert_allclose(found.percentiles, 100 * n_lower / 151, rtol=1e-6)


def test_percentiles_of_random_rows_are_uniform(
    engine: SearchEngine, gallery: np.ndarray, rng: np.random.Generator
) -> None:
    pairs = RandomPairs.draw(engine, n_drawn=300, seed=1)
    others = np.setdiff1d(np.arange(600), sample_rows(engine.embeddings.part_rows, 300, 1))
    queries = rng.standard_normal((400, gallery.shape[1]))
    rows = rng.choice(others, 400)
    cosines = (unit(queries) * unit(gallery)[rows]).sum(axis=1).astype(np.float32)
    percentiles = pairs.compare(queries, cosines[:, None]).percentiles[:, 0]
    # Half a step puts the middle of 0, 1, ... n / (n + 1) at one half.
    assert kstest(percentiles / 100 + 0.5 / 301, "uniform").pvalue > 0.01


def test_no_percentile_is_100_and_ties_are_not_lower(
    engine: SearchEngine, gallery: np.ndarray
) -> None:
    pairs = RandomPairs.draw(engine, n_drawn=600, seed=0)
    assert pairs.n_rows == 600
    itself = engine.search(gallery[:30].astype(np.float32), SearchRequest(1))
    np.testing.assert_array_equal(itself.rows[:, 0], np.arange(30))
    percentiles = pairs.compare(gallery[:30], itself.scores).percentiles
    np.testing.assert_allclose(percentiles, 100 * 599 / 601, rtol=1e-6)
    above = pairs.compare(gallery[:1], np.array([[2, -2, np.nan]], np.float32)).percentiles[0]
    np.testing.assert_allclose(above, [100 * 600 / 601, 0, np.nan], rtol=1e-6)


def test_how_queries_are_cut_does_not_matter(
    engine: SearchEngine, rng: np.random.Generator, gallery: np.ndarray
) -> None:
    pairs = RandomPairs.draw(engine, n_drawn=400, seed=0)
    queries = rng.standard_normal((300, gallery.shape[1])).astype(np.float32)
    scores = engine.search(queries, SearchRequest(3)).scores
    whole = pairs.compare(queries, scores)
    for at in (1, 77, 256):
        pieces = [
            pairs.compare(queries[part], scores[part]) for part in (slice(at), slice(at, None))
        ]
        for name in ("mean", "deviation", "percentiles"):
            joined = np.concatenate([getattr(piece, name) for piece in pieces])
            np.testing.assert_array_equal(joined, getattr(whole, name))
    assert pairs.compare(queries[:0], scores[:0]).percentiles.shape == (0, 3)


def test_deleted_rows_are_no_pairs(index: Path, gallery: np.ndarray) -> None:
    drawn = sample_rows(SearchEngine.open(index).embeddings.part_rows, 100, 2)
    delete_rows(index, drawn[::2])
    engine = SearchEngine.open(index)
    pairs = RandomPairs.draw(engine, n_drawn=100, seed=2)
    assert (pairs.n_drawn, pairs.n_rows) == (100, 50)
    found = pairs.compare(gallery[:4], np.zeros((4, 1), np.float32))
    cosines = unit(gallery[:4]) @ unit(gallery[drawn[1::2]]).T
    np.testing.assert_allclose(found.mean, cosines.mean(axis=1), atol=1e-7)


def test_rows_without_direction_are_no_pairs(
    gallery: np.ndarray, build: Callable[..., Path], tmp_path: Path
) -> None:
    rows = gallery[:100].copy()
    rows[40:60] = 0
    (tmp_path / "holes").mkdir()
    np.save(tmp_path / "holes" / "img_emb_0.npy", rows)
    space = EmbeddingSpace("ViT-L-14/openai", "final", 1, rows.shape[1], True)
    folder = EmbeddingFolder.open(tmp_path / "holes", space=space)
    engine = SearchEngine.open(build(folder, "flat", bad_rows="tombstone"))
    pairs = RandomPairs.draw(engine, n_drawn=100, seed=0)
    assert pairs.n_rows == 80
    found = pairs.compare(gallery[:4], np.zeros((4, 1), np.float32))
    alive = unit(np.delete(rows, slice(40, 60), axis=0))
    np.testing.assert_allclose(found.mean, (unit(gallery[:4]) @ alive.T).mean(axis=1), atol=1e-7)


def test_memory_bounds_the_rows(engine: SearchEngine) -> None:
    assert rows_within(256 << 20, 768) == 21845
    assert rows_within(256 << 20, 257 * 768) == 85
    with pytest.raises(ConfidenceError, match=r"12 rows of .* and 12 of them .* at least 20"):
        RandomPairs.draw(engine, n_drawn=12, seed=0)
