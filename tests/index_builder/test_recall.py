from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from index_builder.cosine import unit_rows
from index_builder.ground_truth import batches_of, exact_search
from index_builder.recall import QuerySet, find_shares, lower_bound, standard_error
from tests.index_builder.stand_ins import Rows, Scan

WIDTH = 16


@pytest.fixture
def rows(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((400, WIDTH)).astype(np.float32)


def truth_of(rows: np.ndarray, unit: np.ndarray, excluded: np.ndarray, dead: np.ndarray) -> Any:
    is_alive = ~np.isin(np.arange(len(rows)), dead)
    return exact_search(batches_of(rows, 64, is_alive), unit, 100, excluded=excluded)[0]


@pytest.mark.parametrize("is_exact", [True, False])
@pytest.mark.parametrize("n_deleted", [0, 150])
def test_shares_are_those_of_a_search_by_hand(
    rows: np.ndarray, is_exact: bool, n_deleted: int
) -> None:
    deleted = np.arange(1, 2 * n_deleted, 2)
    excluded = np.arange(0, 60, 2)
    unit = unit_rows(rows[excluded])
    truth = truth_of(rows, unit, excluded, deleted)
    copy = rows if is_exact else np.round(rows * 2) / 2
    vectors, nominator = Rows(copy, is_exact), Scan(rows)
    query_set = QuerySet(unit, excluded, truth)
    counts = [15, 60, 150]
    for breadth in (1, 4):
        found = find_shares(
            nominator, vectors, query_set, breadth, counts, deleted=deleted, n_rows=len(rows)
        )
        order = nominator.candidates(unit, breadth, len(rows), n_least=10)
        for i in range(len(unit)):
            seen = [r for r in order[i] if r not in deleted and r != excluded[i]]
            for count, shares in zip(counts, found, strict=True):
                kept = np.array(seen[:count])
                scores = (unit_rows(copy[kept]) @ unit[i].astype(np.float64)).astype(np.float32)
                hits = kept[np.lexsort((kept, -scores))]
                for k in (1, 10, 100):
                    expected = np.isin(truth[i, :k], hits[:k]).mean()
                    assert shares.by_k[k][i] == pytest.approx(expected, abs=1e-12)
                assert shares.nearest[i] == (truth[i, 0] in hits[:100])
                assert shares.at_target is shares.by_k[10]


def test_a_pair_is_read_once_in_all(rows: np.ndarray) -> None:
    excluded = np.arange(10)
    unit = unit_rows(rows[:10])
    query_set = QuerySet(unit, excluded, truth_of(rows, unit, excluded, np.empty(0)))
    vectors = Rows(rows, is_exact=False)
    wanted = np.array([[3, 7, -1]] * 10)
    first = query_set.scores_of(wanted, vectors, len(rows))
    assert vectors.n_read == 2  # the same two rows for all queries
    wider = np.array([[9, 7, 3]] * 10)
    second = query_set.scores_of(wider, vectors, len(rows))
    assert vectors.n_read == 3
    np.testing.assert_array_equal(first[:, [1, 0]], second[:, 1:])
    np.testing.assert_allclose(second[:, 0], unit @ unit_rows(rows[9:10])[0], atol=1e-6)
    assert np.isnan(first[:, 2]).all()


def test_fewer_true_neighbors_than_ten_are_measured(rows: np.ndarray) -> None:
    few = rows[:5]
    unit = unit_rows(rows[5:8])
    query_set = QuerySet(unit, np.full(3, -1), truth_of(few, unit, np.full(3, -1), [])[:, :5])
    vectors = Rows(few, is_exact=True)
    found = find_shares(Scan(few), vectors, query_set, 1, [5], deleted=np.empty(0, int), n_rows=5)
    assert set(found[0].by_k) == {1, 5} and (found[0].at_target == 1).all()


def test_the_bound_is_wilsons_where_a_share_is_yes_or_no() -> None:
    # By the formula of Wilson 1927 for 45 of 50 at z = 1.2816, the sample variance as n / (n - 1).
    shares = np.array([1.0] * 45 + [0.0] * 5)
    n, z, p = 50 * 0.09 / shares.var(ddof=1), 1.2815515655446004, 0.9
    expected = (p + z**2 / (2 * n) - z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))) / (
        1 + z**2 / n
    )
    assert lower_bound(shares) == pytest.approx(expected, rel=1e-12)
    assert lower_bound(np.ones(200)) == pytest.approx(200 / (200 + z**2), rel=1e-12)
    assert lower_bound(np.zeros(20)) == 0
    assert 0 < lower_bound(np.array([1.0])) < 0.5


@pytest.mark.parametrize("concentration", [(9.5, 0.5), (0.95, 0.05)])
def test_the_bound_holds_nine_times_of_ten(
    rng: np.random.Generator, concentration: tuple[float, float]
) -> None:
    mean = 0.95
    hits = rng.binomial(10, rng.beta(*concentration, (2000, 200))) / 10
    covers = np.mean([lower_bound(shares) <= mean for shares in hits])
    assert 0.87 < covers < 0.93


def test_the_standard_error_is_that_of_a_mean(rng: np.random.Generator) -> None:
    shares = rng.random(50)
    assert standard_error(shares) == pytest.approx(shares.std(ddof=1) / np.sqrt(50))
    assert standard_error(shares[:1]) == 0
