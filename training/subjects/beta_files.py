"""Single-trial betas in volumes: NIfTI series, and the HDF5 and MATLAB files of GLMsingle.

    .nii, .nii.gz    X x Y x Z x trials
    .hdf5, .h5       ``betasmd``, X x Y x Z x trials or voxels x trials (GLMsingle in Python)
    .mat             ``modelmd``, of the same shape in MATLAB 7.3: h5py sees its axes reversed

Voxels are named by x, y, z from 0, and their columns lie in C order of these, whatever the file.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index_builder.embeddings.errors import MissingExtraError

from ..errors import SourceError
from .downloads import require_download
from .hdf5 import open_hdf5
from .responses import STRETCH_BYTES, Stretch

SLAB_BYTES = 64 << 20  # of whole volumes, read at once
NIFTI_SUFFIXES = (".nii", ".nii.gz")
_AFFINE_TOLERANCE = 1e-3  # mm, and the shear over a voxel: headers store float32
_BROKEN = (OSError, EOFError, ValueError, zlib.error)  # what reading a damaged file raises
_FORM = "betas X x Y x Z x trials"


@dataclass(frozen=True)
class BetaFile:
    """One file of single-trial betas; nothing but its header has been read.

    Parameters
    ----------
    path : Path
    shape : tuple of int
        (X, Y, Z); (n, 1, 1) where the file holds a list of voxels.
    n_trials : int
    affine : float array of shape (4, 4), or None
        From voxels to mm; GLMsingle's own files have none.
    slabs : callable
        Takes an increasing array of trials and x, y, z of voxels, and yields their responses,
        (n, n_voxels), some trials at a time.
    """

    path: Path
    shape: tuple[int, int, int]
    n_trials: int
    affine: NDArray[np.float64] | None
    slabs: Callable[[NDArray[np.int64], NDArray[np.int64]], Iterator[NDArray[Any]]]

    @property
    def has_space(self) -> bool:
        """Whether the file holds volumes, not a list of voxels."""
        return self.shape[1:] != (1, 1)

    def read(self, trials: NDArray[np.int64], xyz: NDArray[np.int64]) -> NDArray[np.float32]:
        """Read some trials at some voxels.

        Parameters
        ----------
        trials : int64 array of shape (n_trials,), increasing
        xyz : int64 array of shape (n_voxels, 3)

        Returns
        -------
        responses : float32 array of shape (n_trials, n_voxels)

        Raises
        ------
        SourceError
            If the file is truncated or damaged.
        """
        responses = np.empty((len(trials), len(xyz)), dtype=np.float32)
        n_read = 0
        try:
            for slab in self.slabs(trials, xyz):
                responses[n_read : n_read + len(slab)] = slab
                n_read += len(slab)
        except _BROKEN as error:
            raise SourceError(
                f"{self.path} breaks off after {n_read} of {len(trials)} trials ({error}); "
                f"expected {self.n_trials} whole volumes. Download the file again."
            ) from error
        return responses

    def stretches(
        self, trials: NDArray[np.int64], sessions: NDArray[np.int64], xyz: NDArray[np.int64]
    ) -> list[Stretch]:
        """Cut trials, and the session of each, into pieces that fit into memory."""
        n = max(1, STRETCH_BYTES // (4 * len(xyz)))

        def stretch(start: int) -> Stretch:
            part = trials[start : start + n]
            return Stretch(
                f"{self.path.name}, trials {part[0]} to {part[-1]}",
                sessions[start : start + n],
                lambda candidates: self.read(part, xyz[candidates]),
            )

        return [stretch(start) for start in range(0, len(trials), n)]


def open_betas(path: str | os.PathLike[str]) -> BetaFile:
    """Open a file of single-trial betas by its header.

    Raises
    ------
    MissingExtraError
        If nibabel or h5py is absent.
    SourceError
        If the file is no whole file of the forms above; a pickle of GLMsingle is never loaded.
    """
    file = require_download(path, _FORM)
    if file.name.endswith(NIFTI_SUFFIXES):
        return _open_nifti_betas(file)
    if file.suffix in (".hdf5", ".h5", ".mat"):
        return _open_hdf5_betas(file)
    if file.suffix == ".npy":
        raise SourceError(
            f"{file} is a pickled dictionary, as GLMsingle saves by default, and is never loaded: "
            f"a pickle can run code. Run GLMsingle with wanthdf5=1, and give the .hdf5 file."
        )
    raise SourceError(
        f"{file} ends in {file.suffix!r}, expected {_FORM} in .nii, .nii.gz, .hdf5, .h5 or .mat."
    )


def require_same_grid(files: Sequence[BetaFile]) -> BetaFile:
    """Return the first file, if all lie on its voxels.

    Raises
    ------
    SourceError
        Names the first file of another shape or affine.
    """
    first = files[0]
    for file in files[1:]:
        _require_grid(file.path, file.shape, file.affine, first)
    return first


def read_mask(path: str | os.PathLike[str], grid: BetaFile) -> NDArray[np.bool_]:
    """Read a NIfTI mask or region: where it is above 0.

    Parameters
    ----------
    path : path
    grid : BetaFile
        The mask must lie on its voxels.

    Returns
    -------
    mask : bool array of shape ``grid.shape``

    Raises
    ------
    SourceError
        If the file is no NIfTI volume, has another shape or affine, or is above 0 nowhere.
    """
    file = require_download(path, "a NIfTI mask")
    image = _load_nifti(file)
    shape = image.shape[:3] if image.shape[3:] in ((), (1,)) else image.shape
    _require_grid(file, shape, image.affine, grid)
    try:
        values = np.asarray(image.dataobj).reshape(shape)
    except _BROKEN as error:
        raise SourceError(
            f"{file} breaks off ({error}); expected a whole mask. Download the file again."
        ) from error
    mask = np.asarray(values > 0)
    if not mask.any():
        raise SourceError(f"{file} is above 0 nowhere, expected a mask. Give another file.")
    return mask


def select_voxels(
    grid: BetaFile,
    mask: str | os.PathLike[str] | None,
    rois: Sequence[str | os.PathLike[str]],
) -> tuple[NDArray[np.int64], dict[str, NDArray[np.bool_]]]:
    """Choose the candidate voxels of an import.

    Parameters
    ----------
    grid : BetaFile
    mask : path or None
        Without one the regions together are the mask, and without these every voxel is taken.
    rois : sequence of path
        NIfTI files; `name_region` names them.

    Returns
    -------
    xyz : int64 array of shape (n, 3), in C order
    masks : dict of str to bool array of shape (n,)

    Raises
    ------
    SourceError
        As `read_mask`, and if two regions have the same name.
    """
    volumes: dict[str, NDArray[np.bool_]] = {}
    for path in rois:
        name = name_region(Path(path))
        if name in volumes:
            raise SourceError(
                f"{path} is a second region {name!r}; expected each name once. Rename the file."
            )
        volumes[name] = read_mask(path, grid)
    if mask is not None:
        chosen = read_mask(mask, grid)
    elif volumes:
        chosen = np.logical_or.reduce(list(volumes.values()))
    else:
        chosen = np.ones(grid.shape, dtype=bool)
    xyz = np.argwhere(chosen).astype(np.int64)
    return xyz, {name: volume[chosen] for name, volume in volumes.items()}


def name_region(path: Path) -> str:
    """Return the name of a region from its file: BIDS's hemi and label if it has them, or all."""
    name = path.name.removesuffix(".gz").removesuffix(".nii")
    entities = dict(part.split("-", 1) for part in name.split("_") if "-" in part)
    if "label" not in entities:
        return name
    side = {"L": "lh.", "R": "rh."}.get(entities.get("hemi", ""), "")
    return side + entities["label"]


def tabulate_voxels(grid: BetaFile, xyz: NDArray[np.int64]) -> pa.Table | None:
    """Return x, y and z of voxels as a table; None where the file has no space."""
    return pa.table(dict(zip("xyz", xyz.T, strict=True))) if grid.has_space else None


def _require_grid(
    path: Path, shape: tuple[int, ...], affine: NDArray[np.float64] | None, grid: BetaFile
) -> None:
    if tuple(shape) != grid.shape:
        raise SourceError(
            f"{path} has volumes of {' x '.join(map(str, shape))} voxels, expected "
            f"{' x '.join(map(str, grid.shape))} as {grid.path.name} has. It is of another "
            f"subject, or of another space: give the one in the space of the betas."
        )
    if affine is None or grid.affine is None:
        return
    difference = np.abs(affine - grid.affine).max()
    if not difference <= _AFFINE_TOLERANCE:
        raise SourceError(
            f"{path} has another affine than {grid.path.name} (they differ by {difference:.4g}), "
            f"so their voxels lie in other places. Resample it to the space of the betas."
        )


def _load_nifti(file: Path) -> Any:
    try:
        import nibabel
        from nibabel.filebasedimages import ImageFileError
    except ImportError as error:
        raise MissingExtraError("nibabel", "data", "reading NIfTI files") from error
    try:
        return nibabel.load(file)
    except (ImageFileError, *_BROKEN) as error:
        raise SourceError(
            f"{file} can't be read as NIfTI ({error}): it is truncated, or another kind of file. "
            f"Download it again."
        ) from error


def _open_nifti_betas(file: Path) -> BetaFile:
    image = _load_nifti(file)
    if len(image.shape) != 4 or image.get_data_dtype().kind not in "fiu":
        raise SourceError(
            f"{file} holds {image.get_data_dtype()} of shape {image.shape}, expected {_FORM}: four "
            f"axes of real numbers. Give the single-trial betas."
        )
    shape: tuple[int, int, int] = image.shape[:3]

    def slabs(trials: NDArray[np.int64], xyz: NDArray[np.int64]) -> Iterator[NDArray[Any]]:
        # Not through nibabel's slices: they begin a gzip stream anew, and never see its checksum.
        data = image.dataobj
        at = np.ravel_multi_index(tuple(xyz.T), shape, order="F")
        volume_bytes = data.dtype.itemsize * math.prod(shape)
        with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as stream:
            for start, stop, wanted in _cut(trials, shape):
                stream.seek(data.offset + start * volume_bytes)
                content = stream.read((stop - start) * volume_bytes)
                volumes = np.frombuffer(content, data.dtype).reshape(stop - start, math.prod(shape))
                yield volumes[wanted][:, at] * float(data.slope) + float(data.inter)
            if trials[-1] == image.shape[3] - 1:
                stream.read()  # past the last volume, where gzip compares the checksum

    return BetaFile(file, shape, image.shape[3], np.asarray(image.affine), slabs)


def _open_hdf5_betas(file: Path) -> BetaFile:
    with open_hdf5(file) as content:
        found: dict[str, Any] = {
            key: getattr(content[key], "shape", None) for key in content if not key.startswith("#")
        }
        name = "modelmd" if "modelmd" in content else "betasmd"
        if len(found.get(name) or ()) not in (2, 4) or content[name].dtype.kind not in "fiu":
            raise SourceError(
                f"{file} holds {found}, expected betasmd (X x Y x Z x trials, of GLMsingle in "
                f"Python) or modelmd (in MATLAB). Give TYPED_FITHRF_GLMDENOISE_RR."
            )
        axes = found[name] if name == "betasmd" else found[name][::-1]
    shape = (*axes[:-1], 1, 1)[:3]

    def slabs(trials: NDArray[np.int64], xyz: NDArray[np.int64]) -> Iterator[NDArray[Any]]:
        at = np.ravel_multi_index(tuple(xyz.T), shape, order="F")
        # Voxels lie in C order, so those of one x lie together.
        planes = np.searchsorted(xyz[:, 0], np.arange(shape[0] + 1))
        with open_hdf5(file) as opened:
            data = opened[name]
            for start, stop, wanted in _cut(trials, shape):
                if name == "modelmd":  # reversed: trials, z, y, x
                    yield data[start:stop].reshape(stop - start, -1)[wanted][:, at]
                elif shape[1:] == (1, 1):
                    of_list = data[:, start:stop] if data.ndim == 2 else data[:, 0, 0, start:stop]
                    yield of_list[xyz[:, 0]].T[wanted]
                else:
                    slab = np.empty((len(wanted), len(xyz)), dtype=np.float32)
                    for x in np.flatnonzero(np.diff(planes)):
                        of_plane = slice(planes[x], planes[x + 1])
                        plane = data[x, :, :, start:stop][xyz[of_plane, 1], xyz[of_plane, 2]]
                        slab[:, of_plane] = plane.T[wanted]
                    yield slab

    return BetaFile(file, shape, axes[-1], None, slabs)


def _cut(
    trials: NDArray[np.int64], shape: tuple[int, int, int]
) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
    """Yield ranges of volumes that hold wanted trials, and which of the range are wanted."""
    n = max(1, SLAB_BYTES // (8 * math.prod(shape)))
    for start in range(int(trials[0]), int(trials[-1]) + 1, n):
        stop = min(start + n, int(trials[-1]) + 1)
        wanted = trials[(trials >= start) & (trials < stop)] - start
        if len(wanted):
            yield start, stop, wanted
