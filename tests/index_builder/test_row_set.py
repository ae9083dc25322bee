from __future__ import annotations

import numpy as np
import pytest

from index_builder import row_set
from index_builder.row_set import RowSet

SIZES = [1, 7, 8, 9, 64, 1000, 1003]


def draw(rng: np.random.Generator, n_rows: int, share: float) -> np.ndarray:
    mask: np.ndarray = rng.random(n_rows) < share
    return mask


@pytest.mark.parametrize("n_rows", SIZES)
@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 1.0])
def test_a_set_equals_its_mask(rng: np.random.Generator, n_rows: int, share: float) -> None:
    mask = draw(rng, n_rows, share)
    chosen = np.flatnonzero(mask)
    for made in (RowSet.of_mask(mask), RowSet.of_rows(rng.permutation(chosen), n_rows)):
        assert len(made) == mask.sum()
        assert made.n_rows == n_rows and made.n_bytes == -(-n_rows // 8)
        np.testing.assert_array_equal(made.rows(), chosen)
        assert made.rows().dtype == np.int64
        np.testing.assert_array_equal(made.holds(np.arange(n_rows)), mask)
        np.testing.assert_array_equal(made.mask(0, n_rows), mask)


@pytest.mark.parametrize("n_rows", SIZES)
def test_any_range_of_rows_has_its_mask(rng: np.random.Generator, n_rows: int) -> None:
    mask = draw(rng, n_rows, 0.4)
    made = RowSet.of_mask(mask)
    for _ in range(40):
        start, stop = np.sort(rng.integers(0, n_rows + 1, 2)).tolist()
        piece = made.mask(start, stop)
        np.testing.assert_array_equal(piece, mask[start:stop])
        assert piece.dtype == bool


@pytest.mark.parametrize("n_rows", SIZES)
def test_intersection_and_difference(rng: np.random.Generator, n_rows: int) -> None:
    left, right = draw(rng, n_rows, 0.6), draw(rng, n_rows, 0.5)
    one, other = RowSet.of_mask(left), RowSet.of_mask(right)
    both = one & other
    np.testing.assert_array_equal(both.mask(0, n_rows), left & right)
    assert len(both) == (left & right).sum()
    removed = rng.permutation(np.repeat(np.flatnonzero(right), 2))
    rest = one.without(removed)
    np.testing.assert_array_equal(rest.mask(0, n_rows), left & ~right)
    assert len(rest) == (left & ~right).sum()
    # Neither was changed.
    np.testing.assert_array_equal(one.mask(0, n_rows), left)
    np.testing.assert_array_equal(other.mask(0, n_rows), right)
    np.testing.assert_array_equal(one.without(np.empty(0, np.int64)).mask(0, n_rows), left)


def test_rows_may_have_any_shape_and_repeat(rng: np.random.Generator) -> None:
    mask = draw(rng, 500, 0.3)
    made = RowSet.of_mask(mask)
    rows = rng.integers(0, 500, (6, 3, 4))
    np.testing.assert_array_equal(made.holds(rows), mask[rows])
    repeated = np.repeat(np.flatnonzero(mask), 3)
    assert len(RowSet.of_rows(repeated, 500)) == mask.sum()
    np.testing.assert_array_equal(
        RowSet.of_rows(repeated.astype(np.uint32), 500).rows(), made.rows()
    )


def test_blocks_do_not_change_what_is_counted(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = draw(rng, 5003, 0.2)
    monkeypatch.setattr(row_set, "_BLOCK_BYTES", 16)
    made = RowSet.of_mask(mask)
    assert len(made) == mask.sum()
    np.testing.assert_array_equal(made.rows(), np.flatnonzero(mask))


def test_a_set_of_no_rows() -> None:
    for made in (RowSet.of_mask(np.zeros(0, bool)), RowSet.of_rows(np.empty(0, np.int64), 0)):
        assert len(made) == 0 and len(made.rows()) == 0 and len(made.mask(0, 0)) == 0


def test_unsound_bits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"bits are int64 \(2,\), expected uint8 \(2,\)"):
        RowSet(np.zeros(2, np.int64), 12)
    with pytest.raises(ValueError, match=r"bits are uint8 \(3,\), expected uint8 \(2,\)"):
        RowSet(np.zeros(3, np.uint8), 12)
    with pytest.raises(ValueError, match="bits beyond the last of 12 rows are set"):
        RowSet(np.array([0, 0b10000], np.uint8), 12)
    with pytest.raises(ValueError, match=r"sets of 12 and of 13 rows don't meet"):
        RowSet.of_mask(np.ones(12, bool)) & RowSet.of_mask(np.ones(13, bool))
