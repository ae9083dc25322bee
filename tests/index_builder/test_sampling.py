from __future__ import annotations

import numpy as np
import pytest

from index_builder.sampling import sample_rows


@pytest.mark.parametrize("n_sample", [0, 1, 17, 500, 1111])
def test_every_part_gives_its_share(n_sample: int) -> None:
    sizes = [1000, 1, 0, 110]
    rows = sample_rows(sizes, n_sample, seed=4)
    assert len(np.unique(rows)) == n_sample and (np.diff(rows) > 0).all()
    counts = np.diff(np.searchsorted(rows, np.cumsum([0, *sizes])))
    for count, size in zip(counts, sizes, strict=True):
        assert abs(count - n_sample * size / 1111) < 1


def test_sample_is_seeded() -> None:
    np.testing.assert_array_equal(sample_rows([50, 50], 10, 1), sample_rows([50, 50], 10, 1))
    assert not np.array_equal(sample_rows([50, 50], 10, 1), sample_rows([50, 50], 10, 2))


def test_sample_covers_the_range() -> None:
    np.testing.assert_array_equal(sample_rows([3, 4], 7, 0), np.arange(7))


def test_more_than_there_is_is_refused() -> None:
    with pytest.raises(ValueError, match="n_sample is 8, expected 0 to 7"):
        sample_rows([3, 4], 8, 0)
