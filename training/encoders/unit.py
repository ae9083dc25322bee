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
    return np.asarray(embeddings / _norms(embeddings, model)[:, None], dtype=np.float32)


def unit_class_tokens(tokens: NDArray[np.float32], model: str) -> NDArray[np.float32]:
    """Divide all tokens of each picture by the Euclidean norm of its first, the class token.

    Parameters
    ----------
    tokens : float32 array of shape (n, tokens, dim)
    model : str
        Named in the message.

    Raises
    ------
    EncoderError
        If a class token is zero or not finite.
    """
    norms = _norms(tokens[:, 0], model)[:, None, None]
    return np.asarray(tokens / norms, dtype=np.float32)


def _norms(embeddings: NDArray[np.float32], model: str) -> NDArray[np.float32]:
    """Return the norm of each row, all of them finite and positive."""
    norms: NDArray[np.float32] = np.linalg.norm(embeddings, axis=1)
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if len(bad):
        raise EncoderError(
            f"{model} gave an embedding of norm {norms[bad[0]]} for row {bad[0]} of the batch, "
            f"expected a finite positive one. Look at that picture (is it one flat color?)."
        )
    return norms
