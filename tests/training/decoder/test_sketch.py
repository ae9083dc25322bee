from __future__ import annotations

import numpy as np
import pytest
import torch

from training.decoder.sketch import _PENALTIES, Sketch, draw_sketch_rows, fit_linear_map


def ridge(x: np.ndarray, y: np.ndarray, penalty: float) -> np.ndarray:
    """Return the weights (W, P) of ridge regression, by the normal equations."""
    return np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)


@pytest.fixture
def rows(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    x = rng.normal(size=(40, 12)) * np.linspace(3, 0.3, 12)
    x -= x.mean(axis=0)
    y = x @ rng.normal(size=(12, 5)) + 6 * rng.normal(size=(40, 5)) + 1
    return x, y


def test_the_map_is_ridge_with_the_penalty_that_leaving_out_chooses(
    rows: tuple[np.ndarray, np.ndarray],
) -> None:
    x, y = rows
    found = fit_linear_map(x, y, rank=12)
    unit = np.linalg.eigvalsh(x.T @ x).mean()
    errors = []
    for penalty in unit * _PENALTIES:
        left_out = []
        for row in range(40):
            others = np.delete(np.arange(40), row)
            # An intercept that isn't penalized, and the rows' mean as the center of the inputs.
            center = x[others].mean(axis=0)
            weights = ridge(x[others] - center, y[others] - y[others].mean(axis=0), penalty)
            left_out.append(y[row] - y[others].mean(axis=0) - (x[row] - center) @ weights)
        errors.append(np.mean(np.square(left_out)))
    best = int(np.argmin(errors))
    assert 0 < best < len(_PENALTIES) - 1
    assert found.error == pytest.approx(errors[best], rel=1e-6)
    np.testing.assert_allclose(found.mean, y.mean(axis=0))
    expected = ridge(x, y - y.mean(axis=0), unit * _PENALTIES[best])
    np.testing.assert_allclose(found.basis @ found.coefficients, expected, rtol=1e-6, atol=1e-9)


def test_a_low_rank_listens_to_the_main_directions_alone(
    rows: tuple[np.ndarray, np.ndarray],
) -> None:
    x, y = rows
    found = fit_linear_map(x, y, rank=4)
    _, _, main = np.linalg.svd(x, full_matrices=False)
    assert found.basis.shape == (12, 4)
    np.testing.assert_allclose(found.basis.T @ found.basis, np.eye(4), atol=1e-9)
    np.testing.assert_allclose(found.basis @ found.basis.T, main[:4].T @ main[:4], atol=1e-9)


def test_noise_teaches_nothing(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(50, 30)), rng.normal(size=(50, 3))
    found = fit_linear_map(x - x.mean(axis=0), y, rank=30)
    assert found.error == pytest.approx(found.variance, rel=0.05)
    assert np.abs(found.basis @ found.coefficients).max() < 0.05


def test_sketches_follow_the_cosine() -> None:
    draw = torch.Generator().manual_seed(0)
    directions = torch.randn(300, 1, 6, generator=draw)
    directions -= directions.mean(dim=0)
    readout = torch.randn(6, 3, generator=draw)
    colors = 0.2 * (directions[:, 0] @ readout) + 0.1
    pictures = colors[:, :, None, None] + 0.3 * torch.randn(300, 3, 8, 8, generator=draw)
    sketch = Sketch(width=6, channels=3, side=8, coarse_side=2, rank=6)
    sketch.fit(directions, pictures)
    one = torch.ones(300)
    drawn, blind = sketch(directions, one), sketch(directions, 0 * one)
    assert drawn.shape == pictures.shape
    assert float((drawn - colors[:, :, None, None]).square().mean()) < 0.01
    torch.testing.assert_close(blind.mean(dim=(2, 3)), pictures.mean(dim=(0, 2, 3)).expand(300, 3))
    torch.testing.assert_close(blind, blind[:1].expand_as(blind))
    torch.testing.assert_close(sketch(directions, 0.5 * one), (drawn + blind) / 2)


def test_wide_directions_are_fitted_on_fewer_pictures() -> None:
    np.testing.assert_array_equal(draw_sketch_rows(50, 768, seed=0), np.arange(50))
    rows = draw_sketch_rows(20_000, 257 * 768, seed=0)
    assert len(rows) == len(np.unique(rows)) == (1 << 28) // (257 * 768)
    assert len(draw_sketch_rows(20_000, 768, seed=0)) == 8192
    assert (rows != draw_sketch_rows(20_000, 257 * 768, seed=1)).any()
