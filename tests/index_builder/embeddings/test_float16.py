from __future__ import annotations

import numpy as np
import pytest

from index_builder.embeddings import float16
from index_builder.embeddings.float16 import to_float32, widen_finite

EVERY = np.arange(1 << 16, dtype=np.uint16).view(np.float16)


def bits(array: np.ndarray) -> np.ndarray:
    """Bits as integers, all NaN alike: infinities and signs of zero count."""
    return np.where(np.isnan(array), np.float32(0.5), array).view(np.uint32)


@pytest.mark.parametrize("block_values", [100, 1 << 17])
def test_every_float16_is_what_numpy_makes_of_it(
    monkeypatch: pytest.MonkeyPatch, block_values: int
) -> None:
    monkeypatch.setattr(float16, "_BLOCK_VALUES", block_values)
    widened = to_float32(EVERY)
    assert widened.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(widened), np.isnan(EVERY))
    np.testing.assert_array_equal(bits(widened), bits(EVERY.astype(np.float32)))


def test_shapes_and_strides(rng: np.random.Generator) -> None:
    array = rng.standard_normal((6, 4, 10)).astype(np.float16)
    for view in (array, array[::2], array.T, array[:, :0], array[0, 0, 0].reshape(())):
        np.testing.assert_array_equal(to_float32(view), view.astype(np.float32))
        assert to_float32(view).shape == view.shape


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_they_are_written_where_that_is_said(rng: np.random.Generator, dtype: type) -> None:
    array = rng.standard_normal((7, 5)).astype(dtype)
    array[3, 2] = -np.inf
    out = np.zeros((9, 5), np.float32)
    written = to_float32(array, out=out[1:8])
    assert written.base is out
    np.testing.assert_array_equal(out[1:8], array.astype(np.float32))
    assert not out[[0, 8]].any()


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, np.copysign(np.nan, -1)])
def test_one_that_is_not_finite_is_seen_among_many(value: float) -> None:
    array = np.full(100, -0.0, np.float16)
    array[77] = value
    np.testing.assert_array_equal(bits(to_float32(array)), bits(array.astype(np.float32)))
    assert np.array_equal(to_float32(array)[77], np.float32(value), equal_nan=True)


def test_other_floats_are_cast_and_float32_is_not_copied() -> None:
    single = np.ones(3, np.float32)
    assert to_float32(single) is single
    assert to_float32(np.full(3, 0.1)).tolist() == np.full(3, 0.1, np.float32).tolist()


def test_what_is_not_finite_comes_out_enormous() -> None:
    out = np.empty(EVERY.shape, np.float32)
    widen_finite(EVERY, out)
    is_finite = np.isfinite(EVERY)
    assert (np.abs(out[~is_finite]) >= 2**16).all()
    np.testing.assert_array_equal(bits(out[is_finite]), bits(EVERY[is_finite].astype(np.float32)))
