from __future__ import annotations

import numpy as np
import pytest

from retrieval.benchmarks.reconstruction.pixels import (
    pixel_correlations,
    structural_similarities,
)
from retrieval.benchmarks.reconstruction.resizing import resize_square

LUMINANCE = np.array([0.2125, 0.7154, 0.0721])  # Of scikit-image's rgb2gray.
CHANNELS = ("gray", "color", "columns")


def pair(rng: np.random.Generator, side: int = 24) -> tuple[np.ndarray, np.ndarray]:
    seen = rng.random((2, 3, side, side), dtype=np.float32)
    return seen, (0.6 * seen + 0.4 * rng.random(seen.shape, dtype=np.float32))


def ssim_of_planes(first: np.ndarray, second: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Structural similarity with explicit sums over Gaussian windows, where they fit."""
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window /= window.sum()

    def smooth(plane: np.ndarray) -> np.ndarray:
        for axis in axes:
            plane = np.apply_along_axis(np.convolve, axis, plane, window, mode="valid")
        return plane

    mean_1, mean_2 = smooth(first), smooth(second)
    var_1, var_2 = smooth(first**2) - mean_1**2, smooth(second**2) - mean_2**2
    covariance = smooth(first * second) - mean_1 * mean_2
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * mean_1 * mean_2 + c1) * (2 * covariance + c2)) / (
        (mean_1**2 + mean_2**2 + c1) * (var_1 + var_2 + c2)
    )


@pytest.mark.parametrize("channels", CHANNELS)
def test_structural_similarity_is_wangs(rng: np.random.Generator, channels) -> None:
    seen, made = pair(rng)
    found = structural_similarities(seen, made, channels)
    for one, other, value in zip(seen.astype(float), made.astype(float), found, strict=True):
        gray = [np.einsum("chw,c->hw", picture, LUMINANCE) for picture in (one, other)]
        expected = {
            "gray": lambda g=gray: ssim_of_planes(*g, axes=(0, 1)).mean(),
            "columns": lambda g=gray: ssim_of_planes(*g, axes=(0,)).mean(),
            "color": lambda a=one, b=other: np.mean(
                [ssim_of_planes(x, y, axes=(0, 1)).mean() for x, y in zip(a, b, strict=True)]
            ),
        }[channels]()
        assert value == pytest.approx(expected, abs=2e-5)
    assert len({round(float(structural_similarities(seen, made, c)[0]), 4) for c in CHANNELS}) == 3


@pytest.mark.parametrize("channels", CHANNELS)
def test_identical_pictures_score_one(rng: np.random.Generator, channels) -> None:
    seen, _ = pair(rng)
    np.testing.assert_allclose(pixel_correlations(seen, seen), 1, atol=1e-12)
    np.testing.assert_allclose(structural_similarities(seen, seen, channels), 1, atol=1e-6)


def test_pixel_correlation_is_over_all_colors_at_once(rng: np.random.Generator) -> None:
    seen, made = pair(rng)
    expected = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(seen, made, strict=True)]
    np.testing.assert_allclose(pixel_correlations(seen, made), expected, atol=1e-12)
    np.testing.assert_allclose(pixel_correlations(seen, 1 - seen), -1, atol=1e-7)


def test_a_flat_picture_counts_as_zero_even_after_resizing(rng: np.random.Generator) -> None:
    seen, _ = pair(rng)
    flat = resize_square(np.full((2, 3, 17, 23), 0.37, np.float32), 24, "plain")
    np.testing.assert_array_equal(pixel_correlations(seen, flat), 0)


def test_two_flat_pictures_are_as_alike_as_their_luminance() -> None:
    first, second = np.full((2, 1, 3, 24, 24), 0.2, np.float32)
    second[:] = 0.6
    found = structural_similarities(first, second, "gray")
    assert found[0] == pytest.approx((2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4), abs=1e-4)


def test_resizing_keeps_what_is_linear_and_tells_plain_from_antialiased() -> None:
    ramp = np.broadcast_to(np.arange(8, dtype=np.float32) / 8, (1, 3, 8, 8))
    doubled = resize_square(np.ascontiguousarray(ramp), 16, "plain")
    # Pixel centers of the new grid lie at (i + 0.5) / 2 - 0.5 of the old one.
    expected = np.clip((np.arange(16) + 0.5) / 2 - 0.5, 0, 7) / 8
    np.testing.assert_allclose(doubled[0, 0, 3], expected, atol=1e-6)
    stripes = np.zeros((1, 3, 8, 8), np.float32)
    stripes[..., ::4] = 1
    halved = {r: resize_square(stripes, 2, r)[0, 0, 0, 0] for r in ("plain", "antialiased")}  # type: ignore[arg-type]
    # Plainly, the new pixel lies between old pixels 1 and 2, which are both black.
    assert halved["plain"] == 0
    assert halved["antialiased"] > 0.2


def test_a_picture_of_another_shape_is_squeezed(rng: np.random.Generator) -> None:
    wide = rng.random((1, 3, 10, 30), dtype=np.float32)
    assert resize_square(wide, 20, "plain").shape == (1, 3, 20, 20)
    square = rng.random((1, 3, 20, 20), dtype=np.float32)
    assert resize_square(square, 20, "antialiased") is square
