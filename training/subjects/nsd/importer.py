"""``voxseek data import nsd``: a release of the Natural Scenes Dataset into a subject folder."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index_builder.embeddings.artefact import atomic_write

from ...errors import SourceError
from ..downloads import describe_files
from ..image_store import ImageStore
from ..subject import Subject, write_subject
from ..trials import build_trials, split_around_test
from ..voxel_file import VoxelBlock, VoxelSource
from .betas import count_saturated, is_invalid, open_betas, to_percent
from .columns import Columns, Session, columns_of_mask, measured, reliable
from .design import (
    N_SESSIONS,
    TRIALS_A_SESSION,
    Design,
    check_responses,
    check_stim_info,
    read_design,
)
from .regions import read_regions
from .release import Release

COUNTS = "sessions.json"
logger = logging.getLogger("voxseek")


def import_nsd(
    root: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    subject: int,
    space: str = "func1pt8mm",
    betas: str = "betas_fithrf_GLMdenoise_RR",
    sessions: int | None = None,
    mask: str = "nsdgeneral",
    min_ncsnr: float | None = None,
    stimuli: str | os.PathLike[str] | None = None,
    n_validation: int = 300,
    seed: int = 0,
    dtype: str = "float16",
) -> Subject:
    """Make a subject folder of one subject's betas, trial by trial, in percent signal change.

    An interrupted import goes on after the last whole session, and ends with the same bytes.

    Parameters
    ----------
    root : path
        Holds nsddata, nsddata_betas and, for the pictures, nsddata_stimuli, as downloaded.
    folder : path
        The subject folder to write.
    subject : int in 1..8
    space : {"func1pt8mm", "func1mm", "fsaverage", "nativesurface"}
    betas : str
        Folder of a version of the betas.
    sessions : int or None
        Keep the first sessions; None: all that are there. 37 are those of MindEye (2023).
    mask : str
        Atlas whose labels above 0 choose the voxels.
    min_ncsnr : float or None
        Leave out voxels below it.
    stimuli : path or None
        ``nsd_stimuli.hdf5``, which is referred to, not copied. None: the one of the release, or no
        pictures if it has none.
    n_validation : int
        Images, drawn from those that aren't shared.
    seed : int
        Of this draw.
    dtype : {"float16", "float32"}
        Of the voxels. float16 keeps percent signal change to .05 % of its value, less than the
        int16 of the source lost for values below 4 %.

    Returns
    -------
    subject : Subject
        Test images are the shared ones that the kept sessions showed. Voxels are in C order over
        (X, Y, Z), or left hemisphere first; `Subject.voxel_table` says where each lies. A voxel
        without data in a session is 0 there. ``sessions.json`` counts these, and saturated values.

    Raises
    ------
    MissingExtraError
        If h5py, nibabel or scipy is absent.
    SourceError
        If a file is missing, unfinished, damaged, of another subject, or the tables contradict
        each other; names the file, and the row.
    ValueError
        If an option is out of its range.
    """
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype is {dtype!r}, expected 'float16' or 'float32'.")
    release = Release(Path(root), subject, space, betas)
    opened = _open_sessions(release.session_files(sessions))
    design = read_design(release)
    image_ids = design.image_ids[: len(opened) * TRIALS_A_SESSION]
    checked = _check_tables(release, design, image_ids)
    of_mask = columns_of_mask(release, opened[0], mask)
    kept = of_mask if min_ncsnr is None else reliable(of_mask, release, min_ncsnr)
    columns = measured(kept, opened)
    if left_out := kept.n_voxels - columns.n_voxels:
        logger.warning(
            "%s: %d voxels of the mask have no data in any session; left out.",
            release.name,
            left_out,
        )
    counts = _Counts(Path(folder) / COUNTS, opened)
    made = write_subject(
        folder,
        name=release.name,
        voxels=_voxel_source(opened, columns, np.dtype(dtype), counts),
        trials=build_trials(
            image_ids,
            np.arange(len(image_ids), dtype=np.int64) // TRIALS_A_SESSION,
            split_around_test(
                image_ids, design.shared_ids.tolist(), n_validation=n_validation, seed=seed
            ),
        ),
        rois=read_regions(release, opened[0], columns, mask),
        images=_find_stimuli(release, stimuli),
        voxel_table=columns.table(release.parts),
        command="voxseek data import nsd",
        details={
            "source": "NSD",
            "subject": subject,
            "space": space,
            "betas": betas,
            "grid": [list(grid) for grid in columns.grids],
            "n_sessions": len(opened),
            "mask": mask,
            "n_voxels_of_mask": of_mask.n_voxels,
            "min_ncsnr": min_ncsnr,
            "n_below_min_ncsnr": of_mask.n_voxels - kept.n_voxels,
            "n_without_data": left_out,
            "unit": "percent signal change",
            "agrees_with": checked,
            "is_published_design": design.departure is None,
            "n_validation": n_validation,
            "seed": seed,
        },
        extra_files=[COUNTS],
    )
    counts.report(release.name)
    return made


def _open_sessions(paths: list[tuple[Path, ...]]) -> list[Session]:
    """Look at the header of every file, so that what is wrong is said before hours of reading."""
    if len(paths) > N_SESSIONS:
        raise SourceError(
            f"{paths[N_SESSIONS][0]} is session {N_SESSIONS + 1}, and NSD has {N_SESSIONS}; "
            f"remove it, or ask for {N_SESSIONS} sessions."
        )
    opened = [tuple(open_betas(path) for path in session) for session in paths]
    for session in opened:
        for file, first in zip(session, opened[0], strict=True):
            if file.grid != first.grid:
                raise SourceError(
                    f"{file.path} has voxels {file.grid}, and {first.path.name} has {first.grid}; "
                    f"the file is another subject's. Download it again."
                )
    return opened


def _check_tables(release: Release, design: Design, image_ids: NDArray[np.int64]) -> list[str]:
    """Return the names of the tables that are there; all of them agree with the design."""
    checked = []
    if release.responses_file.exists():
        check_responses(release.responses_file, image_ids)
        checked.append(release.responses_file.name)
    if release.stim_info_file.exists():
        check_stim_info(release.stim_info_file, design, release.subject)
        checked.append(release.stim_info_file.name)
    if not checked:
        logger.warning(
            "%s: neither responses.tsv nor nsd_stim_info_merged.csv is there; nothing confirms "
            "which image each trial showed.",
            release.name,
        )
    if design.departure is not None:
        logger.warning("%s isn't the published design: %s.", release.design_file, design.departure)
    return checked


def _find_stimuli(release: Release, stimuli: str | os.PathLike[str] | None) -> ImageStore | None:
    if stimuli is not None:
        return ImageStore.open(stimuli)
    if release.stimuli_file.exists():
        return ImageStore.open(release.stimuli_file)
    logger.warning(
        "%s isn't there: the subject has no pictures, and `voxseek embed` needs them.",
        release.stimuli_file,
    )
    return None


def _voxel_source(
    sessions: list[Session], columns: Columns, dtype: np.dtype[Any], counts: _Counts
) -> VoxelSource:
    def reader(number: int) -> Callable[[], NDArray[Any]]:
        def read() -> NDArray[Any]:
            stored = columns.read(sessions[number])
            invalid = is_invalid(stored)
            counts.record(number, count_saturated(stored), int(invalid.sum()))
            return to_percent(stored, invalid, dtype)

        return read

    files = [file.path for session in sessions for file in session]
    return VoxelSource(
        blocks=[
            VoxelBlock(f"session {number + 1}", TRIALS_A_SESSION, reader(number))
            for number in range(len(sessions))
        ],
        n_voxels=columns.n_voxels,
        dtype=dtype,
        identity={
            "files": describe_files(files),
            "voxels": [hashlib.sha256(part.tobytes()).hexdigest() for part in columns.inside],
        },
    )


class _Counts:
    """What was found in each session, in a file, so that an import that goes on has all of it.

    A session is recorded before its voxels count as written, so a recorded session may be read
    again, with the same result, and a written one is always recorded.
    """

    def __init__(self, path: Path, sessions: list[Session]) -> None:
        self.path = path
        self._sessions = sessions

    def record(self, number: int, n_saturated: int, n_invalid: int) -> None:
        found = {session["session"]: session for session in self._read()}
        found[number] = {
            "session": number,
            "files": [file.path.name for file in self._sessions[number]],
            "n_saturated_values": n_saturated,
            "n_voxels_without_data": n_invalid,
        }
        kept = [found[number] for number in sorted(found) if number < len(self._sessions)]
        with atomic_write(self.path) as temporary:
            temporary.write_text(json.dumps(kept, indent=2) + "\n")

    def report(self, name: str) -> None:
        sessions = self._read()
        if n_saturated := sum(session["n_saturated_values"] for session in sessions):
            logger.warning(
                "%s: %d values stand at the ends of int16 (±109.2 %%): cut off in the source, "
                "kept as they are; %s counts them by session.",
                name,
                n_saturated,
                self.path,
            )
        if n_invalid := sum(session["n_voxels_without_data"] for session in sessions):
            logger.warning(
                "%s: %d times a voxel has no data in a session; it is 0 there.", name, n_invalid
            )

    def _read(self) -> list[dict[str, Any]]:
        try:
            found: list[dict[str, Any]] = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return []  # The first session that is recorded begins the file.
        return found
