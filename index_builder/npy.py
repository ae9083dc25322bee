"""npy files of an index, written whole or piece by piece, and put in their place when complete."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from .embeddings.artefact import atomic_write


def save_array(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Write an array."""
    with atomic_write(path) as temporary, open(temporary, "wb") as handle:
        np.save(handle, array, allow_pickle=False)


def write_rows(
    path: Path,
    dtype: str,
    shape: tuple[int, ...],
    pieces: Iterator[np.ndarray] | Sequence[np.ndarray],
) -> None:
    """Write an npy file piece by piece."""
    with atomic_write(path) as temporary, open(temporary, "wb") as handle:
        header = {"descr": dtype, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(handle, header)
        for piece in pieces:
            handle.write(np.ascontiguousarray(piece, dtype).data)
