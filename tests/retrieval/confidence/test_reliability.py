from __future__ import annotations

from math import comb, floor

import numpy as np
import pytest

from retrieval.benchmarks.bootstrap import resample_images
from retrieval.confidence.reliability import (
    calibration_error,
    equal_bins,
    measure_reliability,
    wilson_interval,
)


def test_scores_of_hand_made_probabilities() -> None:
    probabilities = np.array([0.25, 0.25, 0.25, 0.25, 0.8, 0.8])
    is_right = np.array([True, False, False, False, True, False])
    found = measure_reliability(probabilities, is_right, np.arange(6), seed=0, n_resamples=50)
    # Half of those at .8 were right, and a quarter of those at .25: only the former err, by .3.
    assert found.calibration_error == pytest.approx(0.3 * 2 / 6)
    assert found.brier.value == pytest.approx((0.75**2 + 3 * 0.25**2 + 0.2**2 + 0.8**2) / 6)
    expected = -(np.log(0.25) + 3 * np.log(0.75) + np.log(0.8) + np.log(0.2)) / 6
    assert found.log_loss.value == pytest.approx(expected)
    assert [(each.n_queries, each.frequency.value) for each in found.bins] == [(4, 0.25), (2, 0.5)]
    assert [each.probability for each in found.bins] == pytest.approx([0.25, 0.8])


def test_a_constant_at_the_rate_is_calibrated_and_scores_its_variance() -> None:
    is_right = np.arange(100) < 30
    found = measure_reliability(np.full(100, 0.3), is_right, np.arange(100), seed=0, n_resamples=50)
    assert found.calibration_error == pytest.approx(0, abs=1e-12)
    assert found.brier.value == pytest.approx(0.3 * 0.7)
    assert found.log_loss.value == pytest.approx(-0.3 * np.log(0.3) - 0.7 * np.log(0.7))


@pytest.mark.parametrize(("n", "probability"), [(20, 0.5), (45, 0.13), (80, 0.97)])
def test_the_error_of_true_probabilities_is_that_of_a_binomial(n: int, probability: float) -> None:
    # Mean absolute deviation of a binomial number: de Moivre's closed form.
    k = floor(n * probability) + 1
    moivre = 2 * k * comb(n, k) * probability**k * (1 - probability) ** (n - k + 1) / n
    found = measure_reliability(
        np.full(n, probability), np.arange(n) % 2 > 0, np.arange(n), seed=3, n_resamples=20000
    ).calibration_error_if_true
    assert found.value == pytest.approx(moivre, rel=0.03)
    assert found.low < moivre < found.high


def test_intervals_resample_images_with_all_their_queries(rng: np.random.Generator) -> None:
    images = np.repeat(np.arange(30), 3)
    probabilities, is_right = rng.uniform(0.05, 0.95, 90), rng.random(90) < 0.5
    found = measure_reliability(probabilities, is_right, images, seed=9, n_resamples=300)
    means = []
    for counts in resample_images(30, 300, 9):
        drawn = np.concatenate([np.flatnonzero(images == i) for i in np.repeat(range(30), counts)])
        means.append(((probabilities - is_right) ** 2)[drawn].mean())
    np.testing.assert_allclose(
        [found.brier.low, found.brier.high], np.percentile(means, [2.5, 97.5])
    )


def test_bins_hold_equal_shares_and_never_part_equals(rng: np.random.Generator) -> None:
    bins = equal_bins(rng.permutation(1000) / 1000, 10)
    np.testing.assert_array_equal(np.bincount(bins), np.full(10, 100))
    crowded = np.array([0.1, 0.2, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.95])
    bins = equal_bins(crowded, 4)
    assert len(set(bins[crowded == 0.9])) == 1
    assert (np.diff(bins) >= 0).all() and set(bins) == set(range(bins.max() + 1))
    assert equal_bins(np.full(7, 0.5), 10).tolist() == [0] * 7


def test_the_calibration_error_against_a_loop(rng: np.random.Generator) -> None:
    probabilities, is_right = rng.random(200), rng.random(200) < 0.4
    bins = equal_bins(probabilities, 10)
    expected = sum(
        (bins == b).mean() * abs(is_right[bins == b].mean() - probabilities[bins == b].mean())
        for b in range(10)
    )
    assert calibration_error(is_right - probabilities, bins) == pytest.approx(expected)


@pytest.mark.parametrize(("n_right", "n"), [(0, 10), (3, 10), (10, 10), (250, 400)])
def test_wilsons_bounds_are_rates_that_a_z_test_just_keeps(n_right: int, n: int) -> None:
    found = wilson_interval(np.arange(n) < n_right)
    for bound in (found.low, found.high):
        if 1e-9 < bound < 1 - 1e-9:
            z = (found.value - bound) / np.sqrt(bound * (1 - bound) / n)
            assert abs(z) == pytest.approx(1.959964, rel=1e-6)
    assert found.low <= found.value <= found.high


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan])
def test_certainty_is_no_probability(value: float) -> None:
    with pytest.raises(ValueError, match="above 0 and below 1"):
        measure_reliability(np.array([0.5, value]), np.array([True, True]), np.arange(2), seed=0)
