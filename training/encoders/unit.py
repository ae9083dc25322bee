"""Unit norm, with a refusal for rows that have no direction."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import EncoderError


def unit_rows(embeddings: NDArray[np.float32], model: str) -> NDArray[np.float32]:
    """Divide each row by its Euclidean norm.

    Parameters
    ----------
    embeddings : float32 array of shape (n, dim)
    model : str
        Named in the message.

    Raises
    ------
    EncoderError
        If a row is zero or not finite.
    """
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)))
    if len(bad):
        raise EncoderError(
            f"{model} gave an embedding of norm {norms[bad[0], 0]} for row {bad[0]} of the batch, "
            f"expected a finite positive one. Look at that picture (is it one flat colour?)."
        )
    return np.asarray(embeddings / norms, dtype=np.float32)
