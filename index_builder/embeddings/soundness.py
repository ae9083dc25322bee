"""Rows that can't be searched: found on the way in by the writer, on the way out by the reader.

FAISS drops NaN rows from its lists while still counting them, an infinite row wins or loses every
inner product, and a zero row has no cosine: each must be caught before it reaches an index.
"""

from __future__ import annotations

import math
from enum import IntEnum

import numpy as np

from .float16 import widen_finite

# Unit vectors cast to float16 keep their norm within 1e-3; beyond 3 % nothing was normalized.
UNIT_NORM_RANGE = (0.97, 1.03)
_BLOCK_VALUES = 1 << 18  # values of a block: 1 MiB as float32, which stays in the processor's cache


class Flaw(IntEnum):
    """What is wrong with a row; ``NONE`` is zero."""

    NONE = 0
    NAN = 1
    INFINITE = 2
    ZERO = 3
    NORM = 4


def find_flaws(embeddings: np.ndarray, *, unit_norm: bool) -> np.ndarray:
    """Judge each row.

    Parameters
    ----------
    embeddings : ndarray of shape (n, ...), float16 or float32
    unit_norm : bool
        Whether rows must have a Euclidean norm within `UNIT_NORM_RANGE`, limits included.

    Returns
    -------
    flaws : ndarray of shape (n,), uint8
        Values of `Flaw`.
    """
    n_rows = len(embeddings)
    flaws = np.zeros(n_rows, np.uint8)
    flat = embeddings.reshape(n_rows, math.prod(embeddings.shape[1:]))
    block_rows = max(1, _BLOCK_VALUES // max(1, flat.shape[1]))
    for start in range(0, n_rows, block_rows):
        block = flat[start : start + block_rows]
        for row in np.flatnonzero(_find_suspects(block, unit_norm)):
            flaws[start + row] = _judge(block[row], unit_norm)
    return flaws


def describe_flaw(flaw: int, row: np.ndarray) -> str:
    """Return what is wrong with a row, as the end of "row 7 ..."."""
    if flaw == Flaw.NORM:
        norm = float(np.linalg.norm(row.astype(np.float64)))
        return f"has norm {norm:.4g}, and the space says unit norm"
    return {
        Flaw.NAN: "holds NaN",
        Flaw.INFINITE: "holds an infinite value",
        Flaw.ZERO: "is all zeros",
    }[Flaw(flaw)]


def _find_suspects(block: np.ndarray, unit_norm: bool) -> np.ndarray:
    """Return which rows of (n, width) may be flawed; the others are sound."""
    is_odd: np.ndarray
    if block.dtype == np.float16:
        if unit_norm:
            values = np.empty(block.shape, np.float32)
            widen_finite(block, values)  # infinity and NaN make enormous norms
            return _is_off_unit(np.einsum("ij,ij->i", values, values))
        magnitudes = (block.view(np.uint16) & 0x7FFF).max(axis=1)
        is_odd = (magnitudes == 0) | (magnitudes >= np.float16(np.inf).view(np.uint16))
        return is_odd
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        squared_norms = np.einsum("ij,ij->i", block, block)
    # A sum that left the range of float32 may still belong to a sound row.
    is_odd = ~np.isfinite(squared_norms) | (squared_norms < np.finfo(block.dtype).tiny)
    return is_odd | _is_off_unit(squared_norms) if unit_norm else is_odd


def _is_off_unit(squared_norms: np.ndarray) -> np.ndarray:
    low, high = UNIT_NORM_RANGE
    margin = 0.005  # of rounding, so that a row near a limit is judged in float64
    is_off: np.ndarray = (squared_norms <= (low + margin) ** 2) | (
        squared_norms >= (high - margin) ** 2
    )
    return is_off


def _judge(row: np.ndarray, unit_norm: bool) -> Flaw:
    if np.isnan(row).any():
        return Flaw.NAN
    if np.isinf(row).any():
        return Flaw.INFINITE
    if not row.any():
        return Flaw.ZERO
    low, high = UNIT_NORM_RANGE
    norm = np.linalg.norm(row.astype(np.float64))
    return Flaw.NORM if unit_norm and not low <= norm <= high else Flaw.NONE
