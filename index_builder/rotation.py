"""A random rotation that weighs next to nothing: sign flips and Hadamard transforms, in place.

One-bit codes are unbiased only after a random rotation (Gao & Long 2024, arXiv:2405.12497, section
3.1). A dense matrix of 768 x 768 floats is 2.36 MB, as much as 21,000 codes; FAISS's own Hadamard
prefix pads 768 to 1024 and lengthens every code by a third. Here a Walsh-Hadamard transform runs
over a window of the largest power of two that fits, first at the left end, then at the right end,
with fresh signs each time; the windows overlap and four passes mix all coordinates. The result is
exactly orthogonal at any width, and its state is four vectors of signs. Several passes of sign
flips and Hadamard transforms stand in for a random rotation in Andoni et al. 2015
(arXiv:1509.02897, section 5), and in Gao & Long's own library for widths that aren't powers of two.
"""

from __future__ import annotations

import numpy as np

from .threads import in_threads

N_PASSES = 4
_BLOCK_ROWS = 256  # transformed together, while they stay in a processor's cache


def window_of(width: int) -> int:
    """Return the largest power of two that isn't above ``width``."""
    return 1 << (width.bit_length() - 1)


def draw_signs(width: int, seed: int) -> np.ndarray:
    """Return the state of a rotation: int8 array of shape (N_PASSES, window), each -1 or 1."""
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 2, (N_PASSES, window_of(width)), dtype=np.int8) * 2 - 1).astype(np.int8)


def rotate(vectors: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Rotate rows in place, and return them.

    Parameters
    ----------
    vectors : ndarray of shape (n, width), float32, C-contiguous
    signs : ndarray of shape (N_PASSES, window), int8
        From `draw_signs`.

    Notes
    -----
    Every output is a sum in a fixed order, row by row, so that the bytes depend on neither the
    number of threads nor the rows beside it.
    """
    n, width = vectors.shape
    window = signs.shape[1]
    scaled = signs[:, :, None] * np.float32(1 / np.sqrt(window))

    def rotate_block(start: int, stop: int) -> None:
        block = vectors[start:stop]
        # One coordinate of all rows of the block side by side: every sum runs over long runs.
        columns = np.ascontiguousarray(block.T)
        for turn in range(N_PASSES):
            first = 0 if turn % 2 == 0 else width - window
            part = columns[first : first + window]
            part[:] = _hadamard(part * scaled[turn])
        block[:] = columns.T

    in_threads(rotate_block, n, _BLOCK_ROWS)
    return vectors


def rotate_back(vectors: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Undo `rotate` on rows (n, width), float32, in place, and return them."""
    n, width = vectors.shape
    window = signs.shape[1]
    scaled = signs[:, :, None] * np.float32(1 / np.sqrt(window))
    for start in range(0, n, _BLOCK_ROWS):
        block = vectors[start : start + _BLOCK_ROWS]
        columns = np.ascontiguousarray(block.T)
        for turn in reversed(range(N_PASSES)):
            first = 0 if turn % 2 == 0 else width - window
            part = columns[first : first + window]
            part[:] = _hadamard(part) * scaled[turn]
        block[:] = columns.T
    return vectors


def _hadamard(columns: np.ndarray) -> np.ndarray:
    """Return the unscaled Walsh-Hadamard transform along axis 0, a power of two long.

    ``columns`` is overwritten.
    """
    window, n = columns.shape
    spare = np.empty_like(columns)
    half = 1
    while half < window:
        old = columns.reshape(-1, 2, half, n)
        new = spare.reshape(-1, 2, half, n)
        np.add(old[:, 0], old[:, 1], out=new[:, 0])
        np.subtract(old[:, 0], old[:, 1], out=new[:, 1])
        columns, spare = spare, columns
        half *= 2
    return columns
