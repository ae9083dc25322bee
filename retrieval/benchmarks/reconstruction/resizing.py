"""Resizing as the published metrics do it: bilinear, on floats, without rounding to bytes."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.float32]
Resize = Literal["plain", "antialiased"]


def picture_pixels(picture: Image.Image) -> Pixels:
    """Return a picture as float32 array of shape (3, height, width), in [0, 1]."""
    rows = np.asarray(picture.convert("RGB"), dtype=np.float32) / np.float32(255)
    return np.ascontiguousarray(rows.transpose(2, 0, 1))


def resize_square(pixels: Pixels, side: int, resize: Resize) -> Pixels:
    """Resize pictures to squares; another shape is squeezed.

    Parameters
    ----------
    pixels : float32 array of shape (n, 3, height, width)
    side : int
        In pixels.
    resize : {"plain", "antialiased"}
        Of a picture that shrinks: interpolate between the four nearest pixels, or average over all
        that a new one covers.

    Returns
    -------
    resized : float32 array of shape (n, 3, side, side)
    """
    if pixels.shape[2:] == (side, side):
        return pixels
    resized = F.interpolate(
        torch.from_numpy(pixels),
        (side, side),
        mode="bilinear",
        align_corners=False,
        antialias=resize == "antialiased",
    )
    return np.asarray(resized.numpy())
