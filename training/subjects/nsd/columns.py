"""Which voxels become columns: those of a mask that are reliable and measured at least once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ...errors import SourceError
from .betas import BetaFile, is_invalid, read_betas
from .release import Release
from .volumes import read_map

Session = tuple[BetaFile, ...]


@dataclass(frozen=True)
class Columns:
    """The voxels that are kept, in the order of the columns.

    Parameters
    ----------
    grids : tuple of tuple of int
        (X, Y, Z) of the volume, or (n_vertices,) of each hemisphere.
    inside : tuple of int64 array, increasing
        For each grid, the numbers of the kept voxels in C order.
    ncsnr : float32 array of shape (n_voxels,), or None
        None where the release's map isn't there.
    """

    grids: tuple[tuple[int, ...], ...]
    inside: tuple[NDArray[np.int64], ...]
    ncsnr: NDArray[np.float32] | None

    @property
    def n_voxels(self) -> int:
        """Number of columns."""
        return sum(len(part) for part in self.inside)

    def keep(self, flags: NDArray[np.bool_]) -> Columns:
        """Return the columns whose flag is set; ``flags`` has shape (n_voxels,)."""
        edges = np.cumsum([len(part) for part in self.inside])[:-1]
        by_part = zip(self.inside, np.split(flags, edges), strict=True)
        return replace(
            self,
            inside=tuple(part[kept] for part, kept in by_part),
            ncsnr=None if self.ncsnr is None else self.ncsnr[flags],
        )

    def read(self, session: Session) -> NDArray[Any]:
        """Return the stored betas of a session, (750, n_voxels)."""
        parts = [
            read_betas(file, inside) for file, inside in zip(session, self.inside, strict=True)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def table(self, parts: Sequence[str]) -> pa.Table:
        """Return where each voxel lies: x, y, z from 0, or hemisphere and vertex; and ncsnr."""
        if len(parts) == 1:
            place = dict(zip("xyz", np.unravel_index(self.inside[0], self.grids[0]), strict=True))
        else:
            sides = [part.rstrip(".") for part in parts]
            place = {
                "hemisphere": np.repeat(sides, [len(part) for part in self.inside]),
                "vertex": np.concatenate(self.inside),
            }
        return pa.table(place | ({} if self.ncsnr is None else {"ncsnr": self.ncsnr}))


def columns_of_mask(release: Release, session: Session, mask: str) -> Columns:
    """Return the voxels whose label in an atlas is above 0, with their ncsnr where it is known.

    Parameters
    ----------
    release : Release
    session : tuple of BetaFile
        Any; its grids are those that the maps must have.
    mask : str
        Name of the atlas: ``"nsdgeneral"``.

    Raises
    ------
    SourceError
        If a map is missing, damaged or of another grid, or no voxel is inside.
    """
    grids = tuple(file.grid for file in session)
    paths = [release.region_file(part, mask) for part in release.parts]
    labels = [read_map_on(path, file) for path, file in zip(paths, session, strict=True)]
    inside = tuple(np.flatnonzero(part > 0) for part in labels)
    if not any(len(part) for part in inside):
        raise SourceError(f"{paths[0]} marks no voxel (no value above 0); name another mask.")
    return Columns(grids, inside, _read_ncsnr(release, session, inside))


def reliable(columns: Columns, release: Release, min_ncsnr: float) -> Columns:
    """Leave out voxels below an ncsnr, and those where it is NaN.

    Raises
    ------
    SourceError
        If the map of ncsnr isn't there, or no voxel is left.
    """
    if columns.ncsnr is None:
        raise SourceError(
            f"{release.ncsnr_file(release.parts[0])} is missing, and min_ncsnr is {min_ncsnr}; "
            f"download it (its name must stay), or import without min_ncsnr."
        )
    with np.errstate(invalid="ignore"):
        is_kept = columns.ncsnr >= min_ncsnr
    if not is_kept.any():
        raise SourceError(
            f"{release.ncsnr_file(release.parts[0])}: no voxel of the mask has an ncsnr of at "
            f"least {min_ncsnr} (the largest is {np.nanmax(columns.ncsnr):.3f}); ask for less."
        )
    return columns.keep(is_kept)


def measured(columns: Columns, sessions: Sequence[Session]) -> Columns:
    """Leave out voxels that are invalid in every session.

    Sessions are read until each voxel was valid once: of real data, the first and rarely more.

    Raises
    ------
    SourceError
        If no voxel is left.
    """
    is_kept = np.zeros(columns.n_voxels, dtype=bool)
    for session in sessions:
        left = np.flatnonzero(~is_kept)
        betas = columns.keep(~is_kept).read(session)
        is_kept[left] = ~is_invalid(betas)
        if is_kept.all():
            return columns
    if not is_kept.any():
        raise SourceError(
            f"{sessions[0][0].path}: every voxel of the mask is 0 or NaN in every session; the "
            f"mask lies outside the brain, or the betas are damaged. Download both again."
        )
    return columns.keep(is_kept)


def read_map_on(path: Path, file: BetaFile) -> NDArray[Any]:
    """Read a map that must have the grid of a file of betas.

    Raises
    ------
    SourceError
        If it is missing or damaged, or has another grid: another subject's, or another space's.
    """
    values = read_map(path)
    if values.shape != file.grid:
        raise SourceError(
            f"{path} has shape {values.shape}, and {file.path.name} has {file.grid}; the map is "
            f"another subject's, or of another space. Download the one that belongs to the betas."
        )
    return values


def _read_ncsnr(
    release: Release, session: Session, inside: tuple[NDArray[np.int64], ...]
) -> NDArray[np.float32] | None:
    paths = [release.ncsnr_file(part) for part in release.parts]
    if not all(path.exists() for path in paths):
        return None
    values = [
        read_map_on(path, file).reshape(-1)[numbers]
        for path, file, numbers in zip(paths, session, inside, strict=True)
    ]
    return np.concatenate(values).astype(np.float32)
