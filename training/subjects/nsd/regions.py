"""Named regions of the kept voxels, from the atlases of an NSD release.

A label above 0 is a region; 0 is cortex without a label, and -1, in volumes, is no cortex at all
(cvnlab/nsddatapaper, ``analysis_surfaceroistovolume.m``). Names stand beside the surfaces, in
``NAME.mgz.ctab``: number, name, colors.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import SourceError
from ..downloads import require_download
from .columns import Columns, Session, read_map_on
from .release import Release

# Atlases that are read where they are there. The labels of the last repeat names of the first.
_ATLASES = (
    "prf-visualrois",
    "prf-eccrois",
    "floc-faces",
    "floc-words",
    "floc-places",
    "floc-bodies",
    "streams",
    "Kastner2015",
)
_PREFIXED = ("Kastner2015",)
# Quarter fields that make one visual area (NSD Data Manual, "ROIs").
_WHOLE_AREAS = {"V1": ("V1v", "V1d"), "V2": ("V2v", "V2d"), "V3": ("V3v", "V3d")}


def read_regions(
    release: Release, session: Session, columns: Columns, mask: str
) -> dict[str, NDArray[np.bool_]]:
    """Read the regions that lie within the kept voxels.

    Parameters
    ----------
    release : Release
    session : tuple of BetaFile
        Any; the atlases must have its grids.
    columns : Columns
    mask : str
        The atlas that the voxels were chosen by; becomes a region of all of them.

    Returns
    -------
    regions : dict of str to bool array of shape (n_voxels,)
        Each atlas by its name, each label by its own (``V1v``, ``FFA-1``, ``ventral``,
        ``Kastner2015.V1v``), and V1, V2 and V3 of ``prf-visualrois``. A label without a name is
        ``floc-faces.3``. What has no voxel here is left out.

    Raises
    ------
    SourceError
        If a file of an atlas is damaged, or has another grid.
    """
    regions: dict[str, NDArray[np.bool_]] = {mask: np.ones(columns.n_voxels, dtype=bool)}
    for atlas in _ATLASES:
        paths = [release.region_file(part, atlas) for part in release.parts]
        if not all(path.exists() for path in paths):
            continue
        labels = np.concatenate(
            [
                read_map_on(path, file).reshape(-1)[inside]
                for path, file, inside in zip(paths, session, columns.inside, strict=True)
            ]
        )
        names = _read_names(release, atlas)
        regions[atlas] = labels > 0
        for label in np.unique(labels[labels > 0]).tolist():
            name = names.get(int(label))
            if name is None or atlas in _PREFIXED:
                name = f"{atlas}.{int(label) if name is None else name}"
            regions[name] = labels == label
        if atlas == "prf-visualrois":
            for area, quarters in _WHOLE_AREAS.items():
                found = [regions[quarter] for quarter in quarters if quarter in regions]
                if found:
                    regions[area] = np.logical_or.reduce(found)
    return {name: flags for name, flags in regions.items() if flags.any()}


def _read_names(release: Release, atlas: str) -> dict[int, str]:
    path = next((file for file in release.region_names_files(atlas) if file.exists()), None)
    return {} if path is None else _parse_names(require_download(path, "the names of labels"))


def _parse_names(path: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        if len(fields) < 2 or not fields[0].isdecimal():
            raise SourceError(
                f"{path}, line {number}: {line[:60]!r} isn't a number and a name; download it "
                f"again, or remove it to number the regions."
            )
        names[int(fields[0])] = fields[1]
    return names
