from __future__ import annotations

import numpy as np
import pytest

from index_builder.scalar_codes import (
    decode_eight_bits,
    decode_four_bits,
    encode_eight_bits,
    encode_four_bits,
    four_bit_bytes,
)


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return np.einsum("ij,ij->i", left, right) / norms


def test_eight_bits_round_to_the_nearest_step(rng: np.random.Generator) -> None:
    vectors = rng.uniform(-2, 3, (50, 24)).astype(np.float32)
    codes = encode_eight_bits(vectors, -2, 3)
    assert codes.dtype == np.uint8
    decoded = decode_eight_bits(codes, -2, 3)
    assert np.abs(decoded - vectors).max() <= 5 / 255 / 2 + 1e-6
    np.testing.assert_array_equal(encode_eight_bits(decoded, -2, 3), codes)


def test_eight_bits_end_where_the_range_does() -> None:
    vectors = np.array([[-9.0, -1.0, 1.0, 9.0]], np.float32)
    np.testing.assert_array_equal(encode_eight_bits(vectors, -1, 1), [[0, 0, 255, 255]])
    np.testing.assert_allclose(
        decode_eight_bits(encode_eight_bits(vectors, -1, 1), -1, 1), [[-1, -1, 1, 1]]
    )


def best_cosine(vector: np.ndarray) -> float:
    """Cosine with the best point of the grid, from every scale at which a coordinate's changes."""
    sizes = np.abs(vector.astype(np.float64))
    scales = np.concatenate([step / sizes * (1 + 1e-9) for step in range(1, 8)])
    grid = np.minimum(np.floor(sizes * scales[:, None]), 7) + 0.5
    return float((grid @ sizes / np.linalg.norm(grid, axis=1)).max() / np.linalg.norm(sizes))


@pytest.mark.parametrize("width", [64, 257])
def test_four_bits_are_near_the_best_point_of_the_grid(
    rng: np.random.Generator, width: int
) -> None:
    vectors = rng.standard_normal((40, width)).astype(np.float32) * np.float32(0.03)
    codes = encode_four_bits(vectors)
    assert codes.shape == (40, four_bit_bytes(width))
    found = cosines(vectors, decode_four_bits(codes, width))
    best = np.array([best_cosine(vector) for vector in vectors])
    assert (found <= best + 1e-6).all()
    assert (best - found).mean() < 1e-4
    assert found.min() > 0.985


def test_four_bits_hold_the_direction_and_a_factor() -> None:
    vector = np.array([[1.0, -1.0, 0.25]], np.float32)
    code = encode_four_bits(vector)
    numbers = [code[0, 0] & 15, code[0, 0] >> 4, code[0, 1] & 15]
    factor = code[0, -4:].view("<f4")
    expected = (np.array(numbers) - 7.5) * factor
    np.testing.assert_allclose(decode_four_bits(code, 3), expected[None], rtol=1e-6)
    assert expected[0] == -expected[1] > 0


def test_four_bits_keep_the_inner_product_with_the_vector(rng: np.random.Generator) -> None:
    vectors = rng.standard_normal((300, 48)).astype(np.float32)
    decoded = decode_four_bits(encode_four_bits(vectors), 48)
    squares = np.einsum("ij,ij->i", vectors, vectors)
    np.testing.assert_allclose(np.einsum("ij,ij->i", vectors, decoded), squares, rtol=1e-5)


def test_four_bits_of_a_row_do_not_depend_on_its_neighbors(rng: np.random.Generator) -> None:
    vectors = rng.standard_normal((600, 30)).astype(np.float32)
    codes = encode_four_bits(vectors)
    for start, stop in ((0, 1), (250, 260), (599, 600)):
        np.testing.assert_array_equal(encode_four_bits(vectors[start:stop]), codes[start:stop])


def test_four_bits_of_zero_are_zero() -> None:
    np.testing.assert_array_equal(
        decode_four_bits(encode_four_bits(np.zeros((2, 6), np.float32)), 6), np.zeros((2, 6))
    )
