"""NIfTI and MGH files of an NSD release: maps of one number a voxel, and series of trials."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index_builder.embeddings.errors import MissingExtraError

from ...errors import SourceError
from ..downloads import require_download

_SURFACES = (".mgh", ".mgz")
_COMPRESSED = (".gz", ".mgz")


class Series:
    """The trials of a NIfTI or MGH file, with the axes as the HDF5 form has them.

    Make one with `open_series`.

    Attributes
    ----------
    shape : tuple of int
        (n_trials, Z, Y, X), or (n_trials, n_vertices) of a surface.
    dtype : dtype
        Of what is read; the file's own unless it records a scale.
    chunks : None
        Stored trial after trial.
    """

    def __init__(self, path: Path, image: Any) -> None:
        self._path = path
        self._data = image.dataobj
        whole = [int(length) for length in image.shape]
        grid = whole[:1] if path.suffix in _SURFACES else whole[:-1]
        self.shape: tuple[int, ...] = (whole[-1], *reversed(grid))
        self.chunks = None
        needed = self._data.offset + math.prod(whole) * self._data.dtype.itemsize
        if path.suffix not in _COMPRESSED and path.stat().st_size < needed:
            raise SourceError(
                f"{path} has {path.stat().st_size} bytes, and its header announces {needed}: it is "
                f"truncated. Download it again."
            )
        self.dtype: np.dtype[Any] = self[0:1].dtype

    def __getitem__(self, trials: slice) -> NDArray[Any]:
        """Return the trials of a range, (n, Z, Y, X) or (n, n_vertices).

        A compressed file is read onwards from where the last range ended.
        """
        with _reading(self._path):
            block = np.asarray(self._data[..., trials]).T
        return block.reshape(len(block), *self.shape[1:])


@contextmanager
def open_series(path: Path) -> Iterator[Series]:
    """Open a 4-D file of trials; no more than the first is read by it.

    Raises
    ------
    MissingExtraError
        If nibabel is absent.
    SourceError
        If the file isn't NIfTI or MGH, is truncated, or has no axis of trials.
    """
    with _open(path) as image:
        if len(image.shape) != 4:
            raise SourceError(
                f"{path} has shape {image.shape}, expected a fourth axis of trials; download the "
                f"betas of a session, not a map."
            )
        yield Series(path, image)


def read_map(path: Path) -> NDArray[Any]:
    """Read one number a voxel, (X, Y, Z), or a vertex, (n_vertices,), in C order.

    Raises
    ------
    MissingExtraError
        If nibabel is absent.
    SourceError
        If the file isn't NIfTI or MGH, is truncated, or has an axis of trials.
    """
    with _open(path) as image, _reading(path):
        values = np.asarray(image.dataobj)
    if path.suffix in _SURFACES and values.size == values.shape[0]:
        values = values.reshape(-1)
    elif values.ndim != 3:
        raise SourceError(
            f"{path} has shape {values.shape}, expected one number a voxel or vertex; download "
            f"the map of this name again."
        )
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """Yield a nibabel image on a stream that is ours, so that reading onwards is cheap."""
    try:
        import nibabel
        from nibabel.filebasedimages import ImageFileError
        from nibabel.freesurfer.mghformat import MGHError
        from nibabel.spatialimages import HeaderDataError
        from nibabel.wrapstruct import WrapStructError
    except ImportError as error:
        raise MissingExtraError("nibabel", "data", "reading NIfTI files") from error
    require_download(path, f"{_form(path)} of the release")
    form: Any = nibabel.MGHImage if path.suffix in _SURFACES else nibabel.Nifti1Image
    with gzip.open(path) if path.suffix in _COMPRESSED else open(path, "rb") as stream:
        with _reading(path):
            try:
                image = form.from_stream(stream)
            except (ImageFileError, HeaderDataError, MGHError, WrapStructError) as error:
                raise ValueError(error) from error
        yield image


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Say of which file an error of reading is, and what to do."""
    try:
        yield
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise SourceError(
            f"{path} can't be read as {_form(path)} ({error}): it is truncated, or "
            f"another kind of file. Download it again."
        ) from error


def _form(path: Path) -> str:
    return "MGH" if path.suffix in _SURFACES else "NIfTI"
