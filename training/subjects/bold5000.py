"""BOLD5000, release 2: 4,916 pictures of ImageNet, COCO and SUN in four brains, CSI1 to CSI4.

    CSI1_GLMbetas-TYPED-FITHRF-GLMDENOISE-RR_ses-01.nii.gz         volumes of one session, 2 mm
    CSI1_GLMbetas-TYPED-FITHRF-GLMDENOISE-RR_allses_LHEarlyVis.npy one region, all sessions
    Stimuli_Presentation_Lists/CSI1/CSI1_sess01/*.txt              names, one a trial, by run
    CSI1_imgnames.txt                                              the same in one list

Betas are percent signal change, without a scale (Chang et al. 2019, doi:10.1038/s41597-019-0052-3;
release 2 by Prince et al. 2022, doi:10.7554/eLife.77599). Sessions have 9 or 10 runs of 37 trials;
CSI4 has 9 sessions, the others 15. Repeats come from the names: not every repeated picture was
shown four times, least of all to CSI4.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import SourceError
from .beta_files import (
    NIFTI_SUFFIXES,
    BetaFile,
    open_betas,
    require_same_grid,
    select_voxels,
    tabulate_voxels,
)
from .downloads import describe_files, require_download
from .responses import Stretch, build_source, digest, find_valid, require_new_subject
from .stimuli import find_pictures, natural_order, number_stimuli, read_names, write_stimuli
from .subject import Subject, write_subject
from .trials import build_trials, split_around_test

SUBJECTS = ("CSI1", "CSI2", "CSI3", "CSI4")
# Names in the release that differ from those of the same region elsewhere in it.
_MISSPELLED = {"LHLO": "LHLOC", "RHLO": "RHLOC", "RHRRSC": "RHRSC"}
_SESSION_OF_FILE = re.compile(r"ses(?:sion|s)?-?0*(\d+)", re.IGNORECASE)
_ROWS_AT_ONCE = 500


def import_bold5000(
    betas: str | os.PathLike[str],
    stimuli_list: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    subject: str,
    mask: str | os.PathLike[str] | None = None,
    rois: Sequence[str | os.PathLike[str]] = (),
    images: str | os.PathLike[str] | None = None,
    test_list: str | os.PathLike[str] | None = None,
    min_test_shows: int = 3,
    n_validation: int = 250,
    seed: int = 0,
) -> Subject:
    """Make a subject folder of one brain of BOLD5000.

    Parameters
    ----------
    betas : path
        A folder with the session volumes of one variant, or with the npy arrays of regions.
    stimuli_list : path
        The names, one a trial: ``CSI1_imgnames.txt``, or the folder of its presentation lists,
        ``Stimuli_Presentation_Lists/CSI1``. Arrays of regions need the folder: only it tells the
        sessions apart. A leading ``rep_`` of a name is dropped.
    folder : path
        The subject folder to write.
    subject : {"CSI1", "CSI2", "CSI3", "CSI4"}
        Files of the other subjects are passed over.
    mask : path or None
        NIfTI volume in the space of the betas. Without it the regions together are the mask, and
        without these every voxel that is finite and not 0.
    rois : sequence of path
        NIfTI volumes of regions.
    images : path or None
        Folder of the pictures: ``Scene_Stimuli/Presented_Stimuli``.
    test_list : path or None
        ``repeated_stimuli_113_list.txt``: the pictures of the test.
    min_test_shows : int
        Without a list, pictures shown at least so often are the test.
    n_validation : int
        Pictures drawn for validation from the others.
    seed : int

    Returns
    -------
    subject : Subject
        float32 voxels as released; image_id numbers the names in sorted order.

    Raises
    ------
    MissingExtraError
        If nibabel is absent and there are volumes to read.
    SourceError
        If files are missing, damaged, of several variants, lie on different voxels, or don't have
        one trial a name.
    """
    if subject not in SUBJECTS:
        raise ValueError(f"subject is {subject!r}, expected one of {', '.join(SUBJECTS)}.")
    require_new_subject(folder)
    shown, runs = _read_names(Path(stimuli_list))
    files = _list_files(Path(betas), subject)
    voxel_table: pa.Table | None = None
    masks: dict[str, NDArray[np.bool_]] = {}
    details: dict[str, Any] = {}
    if files[0].suffix == ".npy":
        if mask is not None or rois:
            raise SourceError(
                f"{betas} holds arrays of regions, which a mask can't cut. Give neither mask nor "
                f"regions, or give the folder of session volumes."
            )
        sessions = _sessions_by_list(runs, stimuli_list)
        stretches, masks = _stretch_regions(files, sessions)
        n_candidates = len(next(iter(masks.values())))
        positions = np.arange(n_candidates)
    else:
        volumes = [open_betas(path) for path in files]
        grid = require_same_grid(volumes)
        sessions = _sessions_by_file(volumes, runs, len(shown), stimuli_list)
        xyz, masks = select_voxels(grid, mask, rois)
        stretches = [
            stretch
            for session, volume in enumerate(volumes)
            for stretch in volume.stretches(
                np.arange(volume.n_trials), np.full(volume.n_trials, session), xyz
            )
        ]
        n_candidates, positions = len(xyz), xyz
        voxel_table = tabulate_voxels(grid, xyz)
        details["affine"] = None if grid.affine is None else grid.affine.tolist()
    names, image_ids = number_stimuli(shown)
    test_ids = _test_ids(names, image_ids, test_list, min_test_shows)
    splits = split_around_test(image_ids, test_ids, n_validation=n_validation, seed=seed)
    pictures = None if images is None else find_pictures(images, names)
    is_valid = find_valid(stretches, n_candidates)
    source, kept, counts = build_source(
        stretches,
        is_valid,
        identity={"files": describe_files(files), "candidates": digest(positions)},
        where=str(betas),
    )
    Path(folder).mkdir(parents=True, exist_ok=True)
    return write_subject(
        folder,
        name=subject,
        voxels=source,
        trials=build_trials(image_ids, sessions, splits),
        rois={name: region[kept] for name, region in masks.items()},
        images=pictures,
        voxel_table=None if voxel_table is None else voxel_table.take(kept),
        command="voxseek data import bold5000",
        details={
            "source": "BOLD5000 release 2",
            "files": [path.name for path in files],
            "test": f"at least {min_test_shows} shows" if test_list is None else "list",
            "seed": seed,
            **details,
            **counts,
        },
        extra_files=[write_stimuli(folder, names)],
    )


def _read_names(path: Path) -> tuple[list[str], list[int] | None]:
    """Return the name of each trial, and the number of trials of each session if it is known."""
    if not path.is_dir():
        return _read_list(path), None
    sessions = [
        [name for run in _in_order(folder.glob("*.txt")) for name in _read_list(run)]
        for folder in _in_order(path.iterdir())
        if folder.is_dir() and any(folder.glob("*.txt"))
    ]
    if not sessions:
        raise SourceError(
            f"{path} has no folders of sessions with .txt files, expected CSI1_sess01 and so on. "
            f"Give Stimuli_Presentation_Lists/CSI1, or a list of all names."
        )
    return [name for session in sessions for name in session], [len(s) for s in sessions]


def _in_order(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: natural_order(path.name))


def _read_list(path: Path) -> list[str]:
    return [name.removeprefix("rep_") for name in read_names(path)]


def _list_files(folder: Path, subject: str) -> list[Path]:
    """Return the session volumes in order of the sessions, or the arrays of regions by name."""
    if not folder.is_dir():
        raise SourceError(
            f"{folder} is no folder, expected one with the betas of {subject}. Correct the path."
        )
    mine = [path for path in sorted(folder.iterdir()) if _is_of(path.name, subject)]
    arrays = [path for path in mine if path.suffix == ".npy" and "allses_" in path.name]
    volumes: dict[int, Path] = {}
    for path in mine:
        session = _SESSION_OF_FILE.search(path.name)
        if not path.name.endswith(NIFTI_SUFFIXES) or session is None:
            continue
        number = int(session[1])
        if number in volumes:
            raise SourceError(
                f"{folder} holds two files of session {number}: {volumes[number].name} and "
                f"{path.name}. Give a folder with one variant of one subject."
            )
        volumes[number] = path
    if bool(arrays) == bool(volumes):
        raise SourceError(
            f"{folder} holds {len(volumes)} session volumes and {len(arrays)} arrays of regions of "
            f"{subject}, expected one of the two: {subject}_GLMbetas-TYPED-..._ses-01.nii.gz, or "
            f"{subject}_..._allses_LHEarlyVis.npy. Give the folder of one kind."
        )
    if volumes and sorted(volumes) != list(range(1, len(volumes) + 1)):
        gap = next(number for number in range(1, len(volumes) + 1) if number not in volumes)
        raise SourceError(
            f"{folder} holds sessions {sorted(volumes)} of {subject}, and session {gap} is missing."
            f" Download it: the list of names counts its trials."
        )
    return arrays or [volumes[number] for number in sorted(volumes)]


def _is_of(name: str, subject: str) -> bool:
    """Tell whether a file is of the subject; one that names no subject is."""
    named = [other for other in SUBJECTS if other in name]
    return not name.startswith(".") and (not named or subject in named)


def _sessions_by_file(
    volumes: list[BetaFile],
    runs: list[int] | None,
    n_names: int,
    stimuli_list: str | os.PathLike[str],
) -> NDArray[np.int64]:
    counts = [volume.n_trials for volume in volumes]
    if runs is not None and runs != counts:
        at = next((i for i, (a, b) in enumerate(zip(runs, counts, strict=False)) if a != b), None)
        found = (
            f"{len(runs)} sessions, the betas {len(counts)}, and so other"
            if at is None
            else f"{runs[at]} names in session {at + 1}, {volumes[at].path.name} {counts[at]}"
        )
        raise SourceError(
            f"{stimuli_list} has {found} trials; expected a name for each. Give the lists of this "
            f"subject, and all its files."
        )
    if sum(counts) != n_names:
        raise SourceError(
            f"{stimuli_list} has {n_names} names, and the {len(counts)} session files have "
            f"{sum(counts)} trials; expected a name for each. Give the list of this subject, and "
            f"all its files."
        )
    return np.repeat(np.arange(len(counts), dtype=np.int64), counts)


def _sessions_by_list(
    runs: list[int] | None, stimuli_list: str | os.PathLike[str]
) -> NDArray[np.int64]:
    if runs is None:
        raise SourceError(
            f"{stimuli_list} doesn't tell sessions apart, and arrays of regions don't either; "
            f"expected the folder of presentation lists, one folder a session. Give "
            f"Stimuli_Presentation_Lists/CSI1 of BOLD5000_Stimuli."
        )
    return np.repeat(np.arange(len(runs), dtype=np.int64), runs)


def _stretch_regions(
    files: list[Path], sessions: NDArray[np.int64]
) -> tuple[list[Stretch], dict[str, NDArray[np.bool_]]]:
    """Lay arrays of regions side by side: columns in the order of the files."""
    arrays = [_map_region(path, len(sessions)) for path in files]
    edges = np.cumsum([0, *(array.shape[1] for array in arrays)])
    masks: dict[str, NDArray[np.bool_]] = {}
    for number, path in enumerate(files):
        region = path.stem.split("allses_")[-1]
        region = _MISSPELLED.get(region, region)
        if region in masks:
            raise SourceError(
                f"{path} is a second array of {region}; expected each region once. Give a folder "
                f"with one variant of one subject."
            )
        masks[region] = np.zeros(edges[-1], dtype=bool)
        masks[region][edges[number] : edges[number + 1]] = True

    def stretch(start: int) -> Stretch:
        rows = slice(start, start + _ROWS_AT_ONCE)

        def read(candidates: NDArray[np.int64]) -> NDArray[Any]:
            side_by_side = np.concatenate([array[rows] for array in arrays], axis=1)
            return np.asarray(side_by_side[:, candidates])

        return Stretch(f"trials from {start}", sessions[rows], read)

    return [stretch(start) for start in range(0, len(sessions), _ROWS_AT_ONCE)], masks


def _map_region(path: Path, n_names: int) -> NDArray[Any]:
    file = require_download(path, "an array of betas, trials x voxels")
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SourceError(
            f"{file} can't be read as an array of numbers ({error}). Download it again."
        ) from error
    if array.ndim != 2 or array.dtype.kind != "f" or len(array) != n_names:
        raise SourceError(
            f"{file} holds {array.dtype} of shape {array.shape}, expected float, {n_names} trials "
            f"x voxels: a row for each name of the lists. Give the lists of this subject."
        )
    mapped: NDArray[Any] = array
    return mapped


def _test_ids(
    names: list[str],
    image_ids: NDArray[np.int64],
    test_list: str | os.PathLike[str] | None,
    min_shows: int,
) -> list[int]:
    if test_list is None:
        ids = np.flatnonzero(np.bincount(image_ids) >= min_shows).tolist()
        if not ids:
            raise SourceError(
                f"no picture was shown {min_shows} times (the most is "
                f"{np.bincount(image_ids).max()}), so there is none for the test. Lower "
                f"min_test_shows, or give the list of repeated pictures."
            )
        return ids
    listed = set(_read_list(Path(test_list)))
    ids = [image_id for image_id, name in enumerate(names) if name in listed]
    if not ids:
        raise SourceError(
            f"{test_list}: none of its {len(listed)} pictures was shown, the first is "
            f"{min(listed)!r}. Give repeated_stimuli_113_list.txt of BOLD5000_Stimuli."
        )
    return ids
