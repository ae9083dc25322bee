from __future__ import annotations

import numpy as np
import pytest

from index_builder.rotation import N_PASSES, draw_signs, rotate, rotate_back, window_of


@pytest.mark.parametrize("width", [1, 2, 3, 8, 48, 100, 768])
def test_rotation_is_orthogonal(width: int) -> None:
    matrix = rotate(np.eye(width, dtype=np.float32), draw_signs(width, 3)).astype(np.float64)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(width), atol=2e-6)


def test_one_pass_is_the_hadamard_matrix() -> None:
    # Sylvester's construction, with signs that are all 1 and four passes over one window: H^4 = I.
    signs = np.ones((N_PASSES, 8), np.int8)
    np.testing.assert_allclose(rotate(np.eye(8, dtype=np.float32), signs), np.eye(8), atol=1e-6)
    signs[1:, :] = np.array([1, -1, 1, 1, -1, 1, 1, 1])
    h2 = np.array([[1, 1], [1, -1]]) / np.sqrt(2)
    hadamard = np.kron(np.kron(h2, h2), h2)
    expected = np.eye(8)
    for flips in signs:
        expected = expected * flips @ hadamard
    np.testing.assert_allclose(rotate(np.eye(8, dtype=np.float32), signs), expected, atol=1e-6)


@pytest.mark.parametrize("width", [256, 768])
def test_coordinates_of_a_basis_vector_look_gaussian(width: int) -> None:
    # Kurtosis of a normal is 3; of an unmixed basis vector it is `width`.
    matrix = rotate(np.eye(width, dtype=np.float32), draw_signs(width, 0))
    assert (matrix**4).mean() * width**2 == pytest.approx(3, abs=0.15)


def test_a_row_does_not_depend_on_the_rows_beside_it(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((300, 48)).astype(np.float32)
    signs = draw_signs(48, 1)
    together = rotate(rows.copy(), signs)
    alone = np.concatenate([rotate(row[None].copy(), signs) for row in rows])
    np.testing.assert_array_equal(together, alone)


def test_signs_are_seeded_and_both() -> None:
    assert window_of(768) == 512
    np.testing.assert_array_equal(draw_signs(768, 5), draw_signs(768, 5))
    assert not np.array_equal(draw_signs(768, 5), draw_signs(768, 6))
    assert set(np.unique(draw_signs(768, 5))) == {-1, 1}


@pytest.mark.parametrize("width", [1, 2, 3, 48, 768])
def test_rotating_back_undoes_the_rotation(rng: np.random.Generator, width: int) -> None:
    signs = draw_signs(width, 3)
    vectors = rng.standard_normal((200, width)).astype(np.float32)
    rotated = rotate(vectors.copy(), signs)
    np.testing.assert_allclose(rotate_back(rotated, signs), vectors, atol=5e-6)
