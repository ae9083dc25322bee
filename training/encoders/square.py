"""A picture as a square of pixels, for the encoders that see no more of its shape."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


def square_pixels(picture: Image.Image, side: int) -> Tensor:
    """Resize a picture bilinearly, with antialiasing and without rounding to bytes.

    Parameters
    ----------
    picture : Image
    side : int
        Of the square, in pixels; a picture of another shape is squeezed.

    Returns
    -------
    pixels : float32 Tensor of shape (3, side, side), in [0, 1]
    """
    rows = np.asarray(picture.convert("RGB"), dtype=np.float32) / np.float32(255)
    pixels = torch.from_numpy(rows).permute(2, 0, 1)[None]
    return F.interpolate(pixels, (side, side), mode="bilinear", antialias=True)[0]
