from __future__ import annotations

import numpy as np
import pytest

from retrieval.benchmarks.bootstrap import (
    bootstrap_statistics,
    percentile_interval,
    resample_images,
)


def test_a_resample_draws_as_many_images_as_there_are() -> None:
    counts = list(resample_images(50, 20, seed=3))
    assert [int(count.sum()) for count in counts] == [50] * 20
    assert all(len(count) == 50 for count in counts)


def test_the_standard_error_is_that_of_the_mean(rng: np.random.Generator) -> None:
    values = rng.normal(size=(400, 1))
    means, _ = bootstrap_statistics(
        values, np.zeros(400, np.int64), np.arange(400), n_resamples=4000, seed=0
    )
    assert means.std() == pytest.approx(values.std() / 20, rel=0.04)
    assert means.mean() == pytest.approx(values.mean(), abs=4 * values.std() / 20 / 4000**0.5)


@pytest.mark.parametrize("n_images", [7, 8])
def test_medians_are_those_of_the_repeated_values(rng: np.random.Generator, n_images: int) -> None:
    ranks = rng.integers(1, 30, size=n_images)
    values = rng.random((n_images, 2))
    means, medians = bootstrap_statistics(
        values, ranks, np.arange(n_images), n_resamples=50, seed=1
    )
    for index, counts in enumerate(resample_images(n_images, 50, seed=1)):
        repeated = np.repeat(np.arange(n_images), counts)
        np.testing.assert_allclose(means[index], values[repeated].mean(axis=0))
        assert medians[index] == np.median(ranks[repeated])


def test_trials_of_an_image_are_resampled_together(rng: np.random.Generator) -> None:
    by_image = rng.random(100)
    once = bootstrap_statistics(
        by_image[:, None], np.ones(100, np.int64), np.arange(100), n_resamples=200, seed=2
    )
    images = np.repeat(np.arange(100), 3)
    thrice = bootstrap_statistics(
        by_image[images][:, None], np.ones(300, np.int64), images, n_resamples=200, seed=2
    )
    # Three identical trials know no more than one: resampling trials alone would say otherwise.
    np.testing.assert_allclose(thrice[0], once[0])


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(11)
    n_covered, n_experiments, truth = 0, 250, 0.8
    for experiment in range(n_experiments):
        outcomes = (rng.random((150, 1)) < truth).astype(float)
        means, _ = bootstrap_statistics(
            outcomes, np.ones(150, np.int64), np.arange(150), n_resamples=200, seed=experiment
        )
        low, high = percentile_interval(means)
        n_covered += bool(low[0] <= truth <= high[0])
    # 95 % nominal; the percentile interval of a proportion runs a little short.
    assert 0.90 <= n_covered / n_experiments <= 0.985


def test_no_resamples_are_refused() -> None:
    with pytest.raises(ValueError, match="n_resamples is 0, expected at least 1"):
        list(resample_images(5, 0, seed=0))
