from __future__ import annotations

import itertools
from math import comb

import numpy as np
import pytest
from scipy.stats import hypergeom

from retrieval.benchmarks.identification import RankTally, draw_pools, expected_top_rates
from retrieval.errors import BenchmarkError


def tally_of(scores: np.ndarray, tolerance: float = 0.0, tile: int = 1000) -> RankTally:
    n = len(scores)
    tally = RankTally(
        np.diagonal(scores),
        np.arange(n),
        np.ones((1, n), bool),
        is_bidirectional=True,
        tie_tolerance=tolerance,
    )
    for row in range(0, n, tile):
        for column in range(0, n, tile):
            tally.add(row, column, scores[row : row + tile, column : column + tile])
    return tally


def test_counts_of_a_matrix_worked_by_hand() -> None:
    scores = np.array([[3.0, 5.0, 3.0], [0.0, 2.0, 1.0], [4.0, 9.0, 1.0]])
    tally = tally_of(scores)
    # Row 0: 5 beats 3, and 3 ties it. Row 1: 2 is best. Row 2: 4 and 9 beat 1.
    assert tally.brain_to_image.tolist() == [[2, 0, 2]]
    # Column 0: 4 beats 3. Column 1: 5 and 9 beat 2. Column 2: 3 beats 1, and 1 ties it.
    assert tally.image_to_brain is not None
    assert tally.image_to_brain.tolist() == [[1, 2, 2]]


def test_transposing_the_scores_swaps_the_directions(rng: np.random.Generator) -> None:
    scores = rng.normal(size=(30, 30)).round(1)
    forth, back = tally_of(scores), tally_of(scores.T)
    np.testing.assert_array_equal(forth.brain_to_image, back.image_to_brain)
    np.testing.assert_array_equal(forth.image_to_brain, back.brain_to_image)


@pytest.mark.parametrize("tile", [1, 7, 30])
def test_tiles_give_the_counts_of_the_whole_matrix(rng: np.random.Generator, tile: int) -> None:
    scores = rng.normal(size=(30, 30)).round(1)
    truth = np.diagonal(scores)
    tally = tally_of(scores, tile=tile)
    others = ~np.eye(30, dtype=bool)
    np.testing.assert_array_equal(
        tally.brain_to_image[0], ((scores >= truth[:, None]) & others).sum(axis=1)
    )
    np.testing.assert_array_equal(
        tally.image_to_brain[0], ((scores >= truth[None, :]) & others).sum(axis=0)
    )


def test_equal_scores_are_all_failures() -> None:
    tally = tally_of(np.ones((6, 6)))
    assert tally.brain_to_image.tolist() == [[5] * 6]
    assert tally.image_to_brain.tolist() == [[5] * 6]


def test_tolerance_decides_what_ties() -> None:
    scores = np.array([[1.0, 1.0 - 1e-12], [0.0, 1.0]])
    assert tally_of(scores).brain_to_image.tolist() == [[0, 0]]
    assert tally_of(scores, tolerance=1e-9).brain_to_image.tolist() == [[1, 0]]


def test_a_pool_counts_its_members_alone(rng: np.random.Generator) -> None:
    scores = rng.normal(size=(20, 20))
    pools = draw_pools(20, 8, 3, seed=5)
    tally = RankTally(np.diagonal(scores), np.arange(20), pools, is_bidirectional=True)
    tally.add(0, 0, scores)
    for draw, pool in enumerate(pools):
        members = np.flatnonzero(pool)
        inside = tally_of(scores[np.ix_(members, members)])
        np.testing.assert_array_equal(tally.brain_to_image[draw, members], inside.brain_to_image[0])
        np.testing.assert_array_equal(tally.image_to_brain[draw, members], inside.image_to_brain[0])


def test_several_queries_an_image_skip_their_own_column() -> None:
    scores = np.array([[2.0, 1.0], [1.0, 2.0], [0.0, 2.0]])
    queries = np.array([0, 0, 1])
    tally = RankTally(
        scores[np.arange(3), queries], queries, np.ones((1, 2), bool), is_bidirectional=False
    )
    tally.add(0, 0, scores)
    assert tally.brain_to_image.tolist() == [[0, 1, 0]]
    assert tally.image_to_brain is None


def test_both_directions_need_one_query_an_image() -> None:
    with pytest.raises(ValueError, match="exactly one query an image"):
        RankTally(np.zeros(3), np.array([0, 0, 1]), np.ones((1, 2), bool), is_bidirectional=True)


def test_a_nan_score_is_an_error_with_its_place() -> None:
    scores = np.eye(4)
    scores[2, 1] = np.nan
    with pytest.raises(BenchmarkError, match="query 2 with image 1 is NaN, expected a number"):
        tally_of(scores, tile=2)


@pytest.mark.parametrize(
    ("n_way", "top"), [(n_way, top) for n_way in range(2, 8) for top in (1, 2, 3) if top <= n_way]
)
def test_closed_form_is_the_mean_over_every_pool(n_way: int, top: int) -> None:
    pool_size = 7
    rates = expected_top_rates(pool_size, n_way, top)
    for n_winners in range(pool_size):
        pools = itertools.combinations(range(pool_size - 1), n_way - 1)
        outcomes = [sum(other < n_winners for other in pool) < top for pool in pools]
        assert rates[n_winners] == pytest.approx(np.mean(outcomes), abs=1e-14)


@pytest.mark.parametrize(
    ("pool_size", "n_way", "top"),
    [(982, 300, 1), (982, 300, 5), (982, 300, 10), (1000, 999, 10), (50, 50, 5), (40, 12, 12)],
)
def test_closed_form_is_the_hypergeometric_distribution(
    pool_size: int, n_way: int, top: int
) -> None:
    reference = hypergeom.cdf(top - 1, pool_size - 1, np.arange(pool_size), n_way - 1)
    np.testing.assert_allclose(
        expected_top_rates(pool_size, n_way, top), reference, rtol=1e-9, atol=1e-300
    )


@pytest.mark.parametrize("n_way", [2, 300, 20_000, 99_990, 100_000])
def test_closed_form_is_exact_in_a_pool_of_1e5(n_way: int) -> None:
    n = 100_000
    rates = {top: expected_top_rates(n, n_way, top) for top in (1, min(4, n_way))}
    for k in (1, 12, 1000):
        for top, found in rates.items():
            ways = sum(comb(k, x) * comb(n - 1 - k, n_way - 1 - x) for x in range(min(top, n_way)))
            expected = ways / comb(n - 1, n_way - 1)  # exact integers, one correctly rounded ratio
            assert found[k] == pytest.approx(expected, rel=1e-11, abs=1e-300), (k, top)


def test_the_whole_pool_leaves_nothing_to_chance() -> None:
    assert expected_top_rates(12, 12, 5).tolist() == [1.0] * 5 + [0.0] * 7


def test_more_winners_never_help() -> None:
    for top in (1, 5, 10):
        rates = expected_top_rates(1000, 300, top)
        assert rates[0] == 1.0
        assert (np.diff(rates) <= 1e-14).all()


@pytest.mark.parametrize(
    ("pool_size", "n_way", "top", "match"),
    [
        (5, 6, 1, "n_way is 6, expected 2 to the pool size 5"),
        (5, 1, 1, "n_way is 1, expected 2"),
        (5, 3, 4, "top is 4, expected 1 to n_way = 3"),
        (5, 3, 0, "top is 0, expected 1"),
    ],
)
def test_impossible_pools_are_refused(pool_size: int, n_way: int, top: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        expected_top_rates(pool_size, n_way, top)


def test_drawn_pools_have_their_size_and_differ() -> None:
    pools = draw_pools(100, 30, 10, seed=0)
    assert (pools.sum(axis=1) == 30).all()
    assert len({pool.tobytes() for pool in pools}) == 10
    np.testing.assert_array_equal(pools, draw_pools(100, 30, 10, seed=0))
    assert not np.array_equal(pools, draw_pools(100, 30, 10, seed=1))
