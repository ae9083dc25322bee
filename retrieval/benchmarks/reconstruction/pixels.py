"""Metrics on pixels: correlation, and structural similarity."""

from __future__ import annotations

from typing import Literal

import numpy as np

from index_builder.embeddings.errors import MissingExtraError

from ..identification import FloatArray
from .correlation import paired_correlations
from .resizing import Pixels

SIDE = 425  # The size of NSD's pictures (Allen et al. 2022, doi:10.1038/s41593-021-00962-x).
_SIGMA = 1.5  # Of the Gaussian window, in pixels: Wang et al. 2004, section III-B.

SsimChannels = Literal["gray", "color", "columns"]


def pixel_correlations(seen: Pixels, reconstructed: Pixels) -> FloatArray:
    """Return the Pearson correlation over all pixels and colors of each pair of pictures.

    Parameters
    ----------
    seen, reconstructed : float32 arrays of shape (n, 3, side, side)

    Returns
    -------
    correlations : float64 array of shape (n,), in [-1, 1]
        0 where a picture is flat, of one number throughout.
    """
    flat = (len(seen), -1)
    return paired_correlations(seen.reshape(flat), reconstructed.reshape(flat))


def structural_similarities(
    seen: Pixels, reconstructed: Pixels, channels: SsimChannels
) -> FloatArray:
    """Return the structural similarity of each pair of pictures.

    Parameters
    ----------
    seen, reconstructed : float32 arrays of shape (n, 3, side, side), in [0, 1]
    channels : {"gray", "color", "columns"}
        ``gray``: of the luminance. ``color``: mean over red, green and blue. ``columns``: of the
        luminance, whose columns are taken for channels, each a picture of one dimension: what
        scikit-image before 0.20 makes of a gray picture that is called multichannel.

    Returns
    -------
    similarities : float64 array of shape (n,), in [-1, 1]

    Raises
    ------
    MissingExtraError
        If scikit-image is absent.

    Notes
    -----
    Wang et al. 2004 (doi:10.1109/TIP.2003.819861), with their Gaussian window and the population
    covariance. The code of Scotti et al. 2023 (arXiv:2305.18274) asks for ``columns`` and gets
    ``gray`` by the version of scikit-image; that of Ozcelik & VanRullen 2023 pins one that obeys.
    """
    try:
        from skimage.color import rgb2gray
        from skimage.metrics import structural_similarity
    except ImportError as error:
        raise MissingExtraError("skimage", "reconstruct", "structural similarity") from error

    axis = None if channels == "gray" else -1
    similarities = np.empty(len(seen))
    for row, pair in enumerate(zip(seen, reconstructed, strict=True)):
        pictures = [np.ascontiguousarray(pixels.transpose(1, 2, 0)) for pixels in pair]
        if channels != "color":
            pictures = [rgb2gray(picture) for picture in pictures]
        similarities[row] = structural_similarity(
            *pictures,
            channel_axis=axis,
            gaussian_weights=True,
            sigma=_SIGMA,
            use_sample_covariance=False,
            data_range=1.0,
        )
    return similarities
