from __future__ import annotations

import pytest
from scipy.stats import binomtest

from retrieval.benchmarks.binomial import exact_interval


@pytest.mark.parametrize(("successes", "n"), [(0, 302), (1, 300), (7, 20), (300, 300)])
def test_it_is_the_exact_interval_of_a_binomial(successes: int, n: int) -> None:
    expected = binomtest(successes, n).proportion_ci(method="exact")
    interval = exact_interval(successes / n, n)
    assert interval.low == pytest.approx(expected.low, abs=1e-12)
    assert interval.high == pytest.approx(expected.high, abs=1e-12)


def test_a_rate_is_a_share() -> None:
    with pytest.raises(ValueError, match=r"rate is 1\.5 of 3 images"):
        exact_interval(1.5, 3)
