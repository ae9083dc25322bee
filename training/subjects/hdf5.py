"""HDF5 files of other people, opened for reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from index_builder.embeddings.errors import MissingExtraError

from ..errors import SourceError


def open_hdf5(path: Path) -> Any:
    """Open an HDF5 file for reading, as a context manager.

    Raises
    ------
    MissingExtraError
        If h5py is absent.
    SourceError
        If the file is truncated, or of another kind.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError("h5py", "data", "reading HDF5 files") from error
    try:
        return h5py.File(path, "r")
    except OSError as error:
        cure = "it is truncated, or another kind of file. Download it again."
        with open(path, "rb") as handle:
            if handle.read(10) == b"MATLAB 5.0":
                cure = "it is of MATLAB before 7.3. Save it again with -v7.3."
        raise SourceError(f"{path} can't be read as HDF5 ({error}): {cure}") from error
