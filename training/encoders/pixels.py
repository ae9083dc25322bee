"""Pixels as an embedding: a low-level control, and the target for sets of drawn figures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from index_builder.embeddings.space import EmbeddingSpace

from .unit import unit_rows


class PixelEncoder:
    """Grey pixels on a small square grid, of unit norm, with the picture's mean removed.

    The cosine of two such embeddings is the pixel correlation of the pictures: the score by which
    Miyawaki et al. 2008 (doi:10.1016/j.neuron.2008.11.004) identified seen figures.

    Parameters
    ----------
    side : int
        Pixels along a side of the grid; the embedding has ``side ** 2`` numbers.
    """

    takes_text = False

    def __init__(self, side: int = 10) -> None:
        if side < 2:
            raise ValueError(f"side is {side} pixels, expected at least 2.")
        self._side = side
        self.space = EmbeddingSpace(
            model=f"pixels-{side}x{side}", layer="final", tokens=1, dim=side * side, unit_norm=True
        )
        self.details: dict[str, str | int] = {"encoder": "pixels", "side": side}

    def prepare(self, picture: Image.Image) -> NDArray[np.float32]:
        """Average the picture's luminance over each cell of the grid: (side, side) in [0, 1]."""
        cells = picture.convert("L").resize((self._side, self._side), Image.Resampling.BOX)
        return np.asarray(cells, dtype=np.float32) / np.float32(255)

    def encode(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Remove each picture's mean and divide by its norm: (n, side * side)."""
        flat = batch.reshape(len(batch), -1)
        # Exact in float64: what rounding left of a flat picture would become a unit vector.
        means = flat.mean(axis=1, keepdims=True, dtype=np.float64)
        return unit_rows((flat - means).astype(np.float32), self.space.model)
