"""Pictures that nobody took: dead leaves, discs of every size that hide each other.

Leaves fall one on another with radii drawn in proportion to ``r**-3``, which makes the picture look
alike at every scale; edges, textures and the spectrum then are much like a photograph's (Lee,
Mumford & Huang 2001, doi:10.1023/A:1011109015675).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .low_level import SIDE

_N_LEAVES = 200  # cover a picture three to four times
_RADII = (0.03, 0.6)  # smallest and largest, in picture widths
_SCENE, _LEAF = 0.5, 0.5  # shares of the variance of color: of the whole picture, of one leaf
# Deviations of luminance and of two color differences, in [0, 1]: natural scenes vary far more
# in the former (Ruderman, Cronin & Chiao 1998, doi:10.1364/JOSAA.15.002036).
_OPPONENT_DEVIATIONS = np.array([0.25, 0.08, 0.08])
_OPPONENT_TO_RGB = np.array([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [-0.5, -0.5, 1.0]])


def paint_dead_leaves(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Paint one picture.

    Parameters
    ----------
    rng : numpy Generator

    Returns
    -------
    pixels : uint8 array of shape (SIDE, SIDE, 3), RGB
    """
    smallest, largest = _RADII
    level = rng.random(_N_LEAVES)
    radii = (smallest**-2 - level * (smallest**-2 - largest**-2)) ** -0.5
    centres = rng.uniform(-0.1, 1.1, (_N_LEAVES, 2))
    scene, *leaves = rng.standard_normal((_N_LEAVES + 1, 3)) * _OPPONENT_DEVIATIONS
    opponent = np.sqrt(_SCENE) * scene + np.sqrt(_LEAF) * np.stack(leaves)
    colors = np.clip(255 * (0.5 + opponent @ _OPPONENT_TO_RGB), 0, 255).astype(np.uint8)
    picture = Image.new("RGB", (SIDE, SIDE), tuple(colors[0].tolist()))
    canvas = ImageDraw.Draw(picture)
    corners = SIDE * np.concatenate([centres - radii[:, None], centres + radii[:, None]], axis=1)
    for corner, color in zip(corners.tolist(), colors.tolist(), strict=True):
        canvas.ellipse(corner, fill=tuple(color))
    return np.asarray(picture)
