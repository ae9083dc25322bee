"""Pick of n: of several pictures, the one whose embedding is nearest to what the brain says.

Each picture is embedded by the encoder of the targets and compared with the retrieval embedding by
cosine, as in Scotti et al. 2023 (arXiv:2305.18274); the seen picture is never asked.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.encoders.contract import ImageEncoder


class Picker:
    """Scores pictures against retrieval embeddings.

    Parameters
    ----------
    encoder : ImageEncoder
        Of the space of the retrieval embeddings.
    """

    def __init__(self, encoder: ImageEncoder) -> None:
        self._encoder = encoder
        self.details = {"space": encoder.space.model, **encoder.details}

    def scores(
        self, pictures: NDArray[np.uint8], retrieval: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return the cosine of each picture with its embedding.

        Parameters
        ----------
        pictures : uint8 array of shape (n, side, side, 3)
        retrieval : float32 array of shape (n, width)

        Returns
        -------
        scores : float32 array of shape (n,), in [-1, 1]
        """
        prepared = np.stack([self._encoder.prepare(Image.fromarray(p)) for p in pictures])
        rows = self._encoder.encode(prepared).reshape(len(pictures), -1).astype(np.float64)
        other = retrieval.astype(np.float64)
        dots = (rows * other).sum(axis=1)
        norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(other, axis=1)
        return np.asarray(dots / np.maximum(norms, np.finfo(np.float64).tiny), dtype=np.float32)
