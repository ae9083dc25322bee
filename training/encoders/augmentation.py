"""A changed view of a picture, other colors and a crop, for the teacher of the low-level branch."""

from __future__ import annotations

import math

import numpy as np
import torchvision.transforms.functional as tv
from torch import Tensor

# Probabilities and ranges of MindEye's low-level training: the code of Scotti et al. 2023
# (arXiv:2305.18274). Where it names none, those of kornia, which it calls.
_JITTERS = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
_LOWEST, _HIGHEST = (0.6, 0.6, 0.8, -0.1), (1.4, 1.4, 1.2, 0.1)
_JITTERED, _GREY, _SOLARIZED, _BLURRED = 0.8, 0.2, 0.2, 0.1
_SHARE = (0.5, 1.0)  # Of the area, that a crop keeps.
_RATIO = (3 / 4, 4 / 3)  # Width over height of a crop.


def augmented_view(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Return a random view of a square picture, of the same size.

    In this order, each but the last by chance: brightness, contrast, saturation and hue, in any
    order; grey; solarization, the inversion of bright pixels; a Gaussian blur; a crop, resized.

    Parameters
    ----------
    pixels : Tensor of shape (3, side, side), in [0, 1]
    rng : numpy Generator

    Returns
    -------
    view : Tensor of shape (3, side, side), in [0, 1]
    """
    if rng.random() < _JITTERED:
        factors = rng.uniform(_LOWEST, _HIGHEST)
        for at in rng.permutation(len(_JITTERS)):
            pixels = _JITTERS[at](pixels, float(factors[at]))
    if rng.random() < _GREY:
        pixels = tv.rgb_to_grayscale(pixels, num_output_channels=3)
    if rng.random() < _SOLARIZED:
        shifted = (pixels + float(rng.uniform(-0.1, 0.1))).clamp(0, 1)
        pixels = tv.solarize(shifted, float(rng.uniform(0.4, 0.6)))
    if rng.random() < _BLURRED:
        pixels = tv.gaussian_blur(pixels, [7, 7], [float(rng.uniform(0.1, 2.0))] * 2)
    side = pixels.shape[-1]
    area = side**2 * rng.uniform(*_SHARE)
    ratio = math.exp(rng.uniform(*np.log(_RATIO)))
    height = min(side, round(math.sqrt(area / ratio)))
    width = min(side, round(math.sqrt(area * ratio)))
    top, left = (int(rng.integers(side - extent + 1)) for extent in (height, width))
    view: Tensor = tv.resized_crop(pixels, top, left, height, width, [side, side])
    return view.clamp(0, 1)
