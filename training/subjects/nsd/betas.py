"""The betas of one session inside a mask, read in bounded memory.

NSD keeps the same numbers as HDF5, (750, Z, Y, X) with one voxel a chunk, and as NIfTI,
(X, Y, Z, 750): int16, percent signal change times 300. Surfaces are float and percent already
(fsaverage), or as volumes are (nativesurface). Voxels are numbered in C order over (X, Y, Z), so
both forms give the same columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import SourceError
from ..downloads import require_download
from ..hdf5 import open_hdf5
from .design import TRIALS_A_SESSION
from .volumes import open_series

SCALE = 300  # of int16 betas (NSD Data Manual, "Functional data (NSD)")
_HDF5_SUFFIXES = (".hdf5", ".mat")
_DATASET = "betas"
_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class BetaFile:
    """One file of betas that was found readable.

    Parameters
    ----------
    path : Path
    grid : tuple of int
        (X, Y, Z) of a volume, (n_vertices,) of a surface.
    dtype : dtype
        int16: times `SCALE`. Floating: percent signal change.
    """

    path: Path
    grid: tuple[int, ...]
    dtype: np.dtype[Any]


def open_betas(path: Path) -> BetaFile:
    """Look at the header of a file of betas and check it.

    Raises
    ------
    MissingExtraError
        If h5py or nibabel is absent.
    SourceError
        If the file is missing, truncated, of another kind, or hasn't 750 trials of numbers.
    """
    with _open(path) as trials:
        if len(trials.shape) not in (2, 4) or trials.shape[0] != TRIALS_A_SESSION:
            raise SourceError(
                f"{path} holds betas of shape {trials.shape}, expected {TRIALS_A_SESSION} trials "
                f"first, then (Z, Y, X) or vertices; download the session again."
            )
        if trials.dtype.kind not in "if":
            raise SourceError(
                f"{path} holds betas of {trials.dtype}, expected int16 (percent signal change "
                f"times {SCALE}) or floats (percent signal change); download the session again."
            )
        return BetaFile(path, tuple(reversed(trials.shape[1:])), trials.dtype)


def read_betas(file: BetaFile, inside: NDArray[np.int64]) -> NDArray[Any]:
    """Read the betas of some voxels as they are stored.

    Parameters
    ----------
    file : BetaFile
    inside : int64 array of shape (n_voxels,), increasing
        Numbers of the voxels in C order over ``file.grid``.

    Returns
    -------
    betas : array of shape (750, n_voxels), of the file's type

    Raises
    ------
    SourceError
        If the file is damaged.
    """
    betas = np.empty((TRIALS_A_SESSION, len(inside)), dtype=file.dtype.newbyteorder("="))
    at = np.unravel_index(inside, file.grid)[::-1]
    with _open(file.path) as trials:
        if trials.chunks is not None and trials.chunks[1:] == (1,) * len(file.grid):
            _read_runs(trials, at, betas)
        else:
            _read_trials(trials, at, betas)
    return betas


def is_invalid(betas: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which voxels have no data in this session: all 0, or NaN in a trial.

    Parameters
    ----------
    betas : array of shape (750, n_voxels)
        As stored; the brain's edge leaves the field of view when the head moves.

    Returns
    -------
    invalid : bool array of shape (n_voxels,)
    """
    invalid = np.asarray(~betas.any(axis=0))
    if betas.dtype.kind == "f":
        invalid |= np.isnan(betas).any(axis=0)
    return invalid


def count_saturated(betas: NDArray[Any]) -> int:
    """Count the values that stand at the ends of int16: cut off, not measured."""
    if betas.dtype.kind == "f":
        return 0
    ends = np.iinfo(betas.dtype)
    return int(np.count_nonzero(betas == ends.min) + np.count_nonzero(betas == ends.max))


def to_percent(
    betas: NDArray[Any], invalid: NDArray[np.bool_], dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Turn stored betas into percent signal change.

    Parameters
    ----------
    betas : array of shape (750, n_voxels)
        Whole numbers are divided by `SCALE`, floats are percent already.
    invalid : bool array of shape (n_voxels,)
        Set to 0.
    dtype : dtype
        float16 or float32.

    Returns
    -------
    percent : array of shape (750, n_voxels), ``dtype``
    """
    percent = np.empty(betas.shape, dtype=dtype)
    scale = np.float32(SCALE if betas.dtype.kind == "i" else 1)
    with np.errstate(over="ignore"):  # what overflows is refused when it is written
        for row, trial in enumerate(betas):
            percent[row] = trial.astype(np.float32) / scale
    percent[:, invalid] = 0
    return percent


def _read_runs(trials: Any, at: tuple[NDArray[np.int64], ...], betas: NDArray[Any]) -> None:
    """Read neighbors along the last axis together; only chunks inside the mask are touched."""
    order = np.lexsort(at[::-1])
    ordered = np.stack([axis[order] for axis in at])
    step = np.diff(ordered, axis=1)
    is_start = (step[-1] != 1) | step[:-1].any(axis=0)
    starts = np.concatenate([[0], np.flatnonzero(is_start) + 1, [len(order)]]).tolist()
    for start, stop in pairwise(starts):
        *row, first = ordered[:, start].tolist()
        place = (slice(None), *row, slice(first, first + stop - start))
        betas[:, order[start:stop]] = trials[place]


def _read_trials(trials: Any, at: tuple[NDArray[np.int64], ...], betas: NDArray[Any]) -> None:
    """Read whole trials, a few at a time, and keep what is inside the mask."""
    grid = trials.shape[1:]
    numbers = np.ravel_multi_index(at, grid)
    n_cells = int(np.prod(grid))
    step = max(1, _BLOCK_BYTES // (n_cells * trials.dtype.itemsize))
    for start in range(0, len(betas), step):
        block = trials[start : start + step]
        betas[start : start + step] = block.reshape(len(block), n_cells)[:, numbers]


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """Yield something with shape (n_trials, ...), dtype, chunks and items, for any form."""
    if path.suffix in _HDF5_SUFFIXES:
        with _open_betas(path) as dataset:
            yield dataset
    else:
        with open_series(path) as series:
            yield series


@contextmanager
def _open_betas(path: Path) -> Iterator[Any]:
    require_download(path, "HDF5 with the betas of a session")
    try:
        with open_hdf5(path) as content:
            if _DATASET not in content:
                raise SourceError(
                    f"{path} holds {sorted(content)}, expected {_DATASET!r}; download the session "
                    f"again."
                )
            yield content[_DATASET]
    except (OSError, KeyError, RuntimeError) as error:
        raise SourceError(
            f"{path} can't be read as HDF5 ({error}): it is truncated, or another kind of file. "
            f"Download it again."
        ) from error
