"""Correlations of rows, a few at a time: float64 sums over float32 rows that may lie on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..identification import FloatArray, IntArray

# Deviations below this share of a row's largest number are the rounding of float32.
_FLAT = 1e-6
_CHUNK_BYTES = 64 << 20


def standardize(rows: NDArray[Any]) -> FloatArray:
    """Return rows without their mean and of unit norm.

    Parameters
    ----------
    rows : float array of shape (n, width)

    Returns
    -------
    standardized : float64 array of shape (n, width)
        The inner product of two rows is their Pearson correlation. Flat rows, whose numbers are
        all the same, have none; they are zero here, so that it is 0.
    """
    centered: FloatArray = rows - rows.mean(axis=1, keepdims=True, dtype=np.float64)
    norms = np.linalg.norm(centered, axis=1)
    flat = norms <= _FLAT * np.abs(rows).max(axis=1) * np.sqrt(rows.shape[1])
    centered[flat] = 0
    centered /= np.where(flat, 1, norms)[:, None]
    return centered


def is_flat(rows: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell of each row, (n, width), whether its numbers are all the same but for rounding."""
    return np.asarray(~standardize(rows).any(axis=1))


def paired_correlations(first: NDArray[Any], second: NDArray[Any]) -> FloatArray:
    """Return the Pearson correlation of each row with its partner; 0 where one is flat.

    Parameters
    ----------
    first, second : float arrays of shape (n, width)

    Returns
    -------
    correlations : float64 array of shape (n,), in [-1, 1]
    """
    products = np.einsum("nw,nw->n", standardize(first), standardize(second))
    return np.asarray(np.clip(products, -1, 1))


class FeatureRows:
    """Standardized features of pictures, in a file.

    Parameters
    ----------
    file : Path
        New.
    n_rows, width : int
    """

    def __init__(self, file: Path, n_rows: int, width: int) -> None:
        self._rows = np.memmap(file, np.float32, "w+", shape=(n_rows, width))

    def write(self, start: int, features: NDArray[np.float32]) -> None:
        """Standardize features of shape (n, width) and keep them from row ``start`` on."""
        self._rows[start : start + len(features)] = standardize(features)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows, and their width."""
        n_rows, width = self._rows.shape
        return n_rows, width

    def read(self, rows: IntArray, columns: slice = slice(None)) -> FloatArray:
        """Return some rows, and of them some columns, as float64."""
        return self._rows[rows, columns].astype(np.float64)


def correlate_features(first: FeatureRows, second: FeatureRows, rows: IntArray) -> FloatArray:
    """Return the correlation of each row of ``first`` with row ``rows[i]`` of ``second``, (n,)."""
    n_at_once = max(1, _CHUNK_BYTES // (16 * first.shape[1]))
    starts = range(0, len(rows), n_at_once)
    return np.concatenate(
        [
            np.einsum("nw,nw->n", first.read(own), second.read(rows[own]))
            for start in starts
            for own in [np.arange(start, min(start + n_at_once, len(rows)))]
        ]
    )


def correlation_rows(
    first: FeatureRows, second: FeatureRows, rows: IntArray
) -> Iterator[tuple[slice, FloatArray, FloatArray]]:
    """Yield the correlation matrix by tiles, with the same tile of its transpose.

    Parameters
    ----------
    first, second : FeatureRows
    rows : int64 array of shape (n,)
        Which row of ``second`` belongs to each of ``first``.

    Yields
    ------
    tile : slice
        Of images.
    of_first : float64 array of shape (t, n)
        Correlations of these rows of ``first`` with all of ``second``.
    of_second : float64 array of shape (t, n)
        Correlations of these rows of ``second`` with all of ``first``.
    """
    n, width = len(rows), first.shape[1]
    everyone = np.arange(n)
    n_tile = max(1, min(n, _CHUNK_BYTES // (16 * n)))
    n_columns = max(1, min(width, _CHUNK_BYTES // (16 * n)))
    for start in range(0, n, n_tile):
        tile = slice(start, min(start + n_tile, n))
        of_first, of_second = np.zeros((2, tile.stop - tile.start, n))
        for column in range(0, width, n_columns):
            columns = slice(column, column + n_columns)
            left, right = first.read(everyone, columns), second.read(rows, columns)
            of_first += left[tile] @ right.T
            of_second += right[tile] @ left.T
        yield tile, of_first, of_second
