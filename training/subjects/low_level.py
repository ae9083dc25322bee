"""Low-level picture features: oriented energy, luminance and color on a retinotopic grid.

They drive the early visual voxels of the simulated brain, as Gabor energy drives V1 in the
encoding models of Kay et al. 2008 (doi:10.1038/nature06713).
"""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 64  # pixels to which a picture is averaged
GRID = 8  # cells along a side of the grid
CYCLES_PER_IMAGE = (4, 8, 16)
N_ORIENTATIONS = 4
RELATIVE_BANDWIDTH = 0.4  # standard deviation of a filter in frequency, over its centre
N_CHANNELS = len(CYCLES_PER_IMAGE) * N_ORIENTATIONS + 3
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, section 2.5.1


def _oriented_filters() -> NDArray[np.float32]:
    """Return one-sided Gaussian band-pass filters in frequency, (n_filters, SIDE, SIDE)."""
    frequency = np.fft.fftfreq(SIDE)
    fy, fx = np.meshgrid(frequency, frequency, indexing="ij")
    filters = []
    for cycles in CYCLES_PER_IMAGE:
        centre = cycles / SIDE
        for step in range(N_ORIENTATIONS):
            angle = step * np.pi / N_ORIENTATIONS
            along = fx * np.cos(angle) + fy * np.sin(angle) - centre
            across = fy * np.cos(angle) - fx * np.sin(angle)
            spread = 2 * (centre * RELATIVE_BANDWIDTH) ** 2
            filters.append(np.exp(-(along**2 + across**2) / spread))
    return np.asarray(filters, dtype=np.float32)


_FILTERS = _oriented_filters()


def low_level_features(path: str | os.PathLike[str]) -> NDArray[np.float32]:
    """Describe one picture by channels on a grid; see `describe_pixels`.

    Parameters
    ----------
    path : path
        A picture that Pillow can decode; it is resized to a square.

    Returns
    -------
    features : float32 array of shape (N_CHANNELS, GRID, GRID)
    """
    with Image.open(path) as picture:
        small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
    return describe_pixels(np.asarray(small))


def describe_pixels(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Describe the pixels of one picture by channels on a grid.

    Parameters
    ----------
    pixels : uint8 array of shape (SIDE, SIDE, 3), RGB

    Returns
    -------
    features : float32 array of shape (N_CHANNELS, GRID, GRID)
        Square root of the amplitude of a complex Gabor response for each spatial frequency
        (4, 8, 16 cycles an image) and orientation (0, 45, 90, 135 degrees of the grating's
        normal), then luminance, red minus green, and blue minus yellow, each in [-1, 1]; all
        averaged over the cell.
    """
    rgb = pixels.astype(np.float32) / np.float32(255)
    luminance = rgb @ _LUMINANCE
    red_green = rgb[..., 0] - rgb[..., 1]
    blue_yellow = rgb[..., 2] - (rgb[..., 0] + rgb[..., 1]) / 2
    spectrum = np.fft.fft2(luminance - luminance.mean())
    # A filter on one side of the spectrum gives the quadrature pair at once: its modulus is the
    # energy of a complex cell (Adelson & Bergen 1985, doi:10.1364/JOSAA.2.000284).
    amplitude = np.abs(np.fft.ifft2(spectrum * _FILTERS))
    channels = np.concatenate(
        [np.sqrt(amplitude), luminance[None], red_green[None], blue_yellow[None]]
    )
    cell = SIDE // GRID
    pooled = channels.reshape(N_CHANNELS, GRID, cell, GRID, cell).mean(axis=(2, 4))
    return np.asarray(pooled, dtype=np.float32)
