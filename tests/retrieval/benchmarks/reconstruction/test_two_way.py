from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from retrieval.benchmarks.reconstruction import correlation
from retrieval.benchmarks.reconstruction.correlation import (
    FeatureRows,
    correlate_features,
    correlation_rows,
    is_flat,
    paired_correlations,
)
from retrieval.benchmarks.reconstruction.two_way import TwoWay, two_way_rates

N, WIDTH = 17, 50
DEFINITIONS = ("reconstruction", "image", "pairs")


@pytest.fixture
def keep(tmp_path: Path):
    def write(features: np.ndarray, name: str) -> FeatureRows:
        kept = FeatureRows(tmp_path / name, *features.shape)
        for start in range(0, len(features), 5):
            kept.write(start, features[start : start + 5].astype(np.float32))
        return kept

    return write


def brute_force(seen: np.ndarray, made: np.ndarray, definition: TwoWay) -> np.ndarray:
    """Compare every image with every other one, by numpy's correlations."""
    n = len(seen)
    r = np.corrcoef(seen, made)[:n, n:]
    rates = []
    for i in range(n):
        wins = 0.0
        for j in set(range(n)) - {i}:
            right, wrong = {
                "reconstruction": (r[i, i], r[j, i]),
                "image": (r[i, i], r[i, j]),
                "pairs": (r[i, i] + r[j, j], r[i, j] + r[j, i]),
            }[definition]
            wins += 0.5 if abs(right - wrong) < 1e-6 else float(right > wrong)
        rates.append(wins / (n - 1))
    return np.array(rates)


def noisy(rng: np.random.Generator, noise: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    seen = rng.normal(size=(N, WIDTH)) + 3
    return seen, seen + noise * rng.normal(size=(N, WIDTH))


@pytest.mark.parametrize("chunk_bytes", [1, 1000, 64 << 20])
@pytest.mark.parametrize("definition", DEFINITIONS)
def test_rates_are_those_of_all_comparisons(
    rng: np.random.Generator, keep, definition: TwoWay, chunk_bytes: int, monkeypatch
) -> None:
    monkeypatch.setattr(correlation, "_CHUNK_BYTES", chunk_bytes)
    seen, made = noisy(rng)
    made[4] = made[9]  # ties
    rates = two_way_rates(keep(seen, "a"), keep(made, "b"), np.arange(N), definition)
    np.testing.assert_allclose(rates, brute_force(seen, made, definition), atol=1e-12)
    assert 0.5 < rates.mean() < 1


def test_definitions_differ(rng: np.random.Generator, keep) -> None:
    seen, made = (keep(side, name) for side, name in zip(noisy(rng, 4.0), "ab", strict=True))
    means = {d: two_way_rates(seen, made, np.arange(N), d).mean() for d in DEFINITIONS}
    assert len(set(means.values())) == 3


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_identical_pictures_always_win(rng: np.random.Generator, keep, definition: TwoWay) -> None:
    seen = rng.normal(size=(N, WIDTH))
    rates = two_way_rates(keep(seen, "a"), keep(seen, "b"), np.arange(N), definition)
    np.testing.assert_array_equal(rates, 1)


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_one_picture_for_all_is_at_chance(
    rng: np.random.Generator, keep, definition: TwoWay
) -> None:
    seen, one = rng.normal(size=(N, WIDTH)), rng.normal(size=(1, WIDTH))
    rates = two_way_rates(keep(seen, "a"), keep(one, "b"), np.zeros(N, int), definition)
    assert rates.mean() == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_both_sides_reordered_alike_give_the_same(
    rng: np.random.Generator, keep, definition: TwoWay
) -> None:
    seen, made = noisy(rng)
    order = rng.permutation(N)
    before = two_way_rates(keep(seen, "a"), keep(made, "b"), np.arange(N), definition)
    after = two_way_rates(keep(seen[order], "c"), keep(made, "d"), order, definition)
    np.testing.assert_allclose(after, before[order], atol=1e-12)


def test_correlations_are_numpys(rng: np.random.Generator, keep) -> None:
    seen, made = noisy(rng)
    rows = rng.permutation(N)
    expected = np.corrcoef(seen, made)[:N, N:][:, rows]
    first, second = keep(seen, "a"), keep(made, "b")
    np.testing.assert_allclose(
        correlate_features(first, second, rows), np.diag(expected), atol=1e-7
    )
    np.testing.assert_allclose(paired_correlations(seen, made[rows]), np.diag(expected), atol=1e-12)
    ((tile, of_first, of_second),) = correlation_rows(first, second, rows)
    assert tile == slice(0, N)
    np.testing.assert_allclose(of_first, expected, atol=1e-7)
    np.testing.assert_allclose(of_second, expected.T, atol=1e-7)


def test_a_flat_row_correlates_with_nothing(rng: np.random.Generator) -> None:
    rows = rng.random((3, WIDTH)).astype(np.float32)
    rows[1] = np.float32(0.3) * (1 + 1e-7 * rng.random(WIDTH).astype(np.float32))
    rows[2] = 0.3
    rows[2, 0] += 1 / 255  # one pixel, one level
    assert is_flat(rows).tolist() == [False, True, False]
    assert paired_correlations(rows, rows).tolist() == pytest.approx([1, 0, 1])
