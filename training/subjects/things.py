"""THINGS-fMRI: pictures of 720 object concepts in three brains, as tables of single trials.

    betas_csv/sub-01_ResponseData.h5         a pandas table in HDF5, voxels x (voxel_id + trials)
    betas_csv/sub-01_VoxelMetadata.csv       row for row: place, noise ceilings, 0 or 1 a region
    betas_csv/sub-01_StimulusMetadata.csv    column for column: trial_type, session, stimulus

(Hebart et al. 2023, doi:10.7554/eLife.82580.) The table of a brain holds 211,339 x 9,840 float64,
16 GB, so it is never read whole.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
from numpy.typing import NDArray

from index_builder.embeddings.progress import track

from ..errors import SourceError
from .downloads import describe_files, require_download
from .responses import STRETCH_BYTES, Stretch, build_source, digest, require_new_subject
from .stimuli import find_pictures, number_stimuli, write_stimuli
from .subject import Subject, write_subject
from .things_table import ResponseTable, open_table
from .trials import build_trials, split_around_test

_VOXEL_COLUMNS = ("voxel_id", "voxel_x", "voxel_y", "voxel_z", "nc_singletrial")
_NO_REGIONS = re.compile(r"voxel_|subject_id|nc_|splithalf_|prf-")
_STIMULUS_COLUMNS = ("trial_type", "session", "stimulus", "concept")


def import_things(
    release: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    subject: str,
    rois: Sequence[str] = (),
    min_noise_ceiling: float | None = None,
    images: str | os.PathLike[str] | None = None,
    n_validation: int = 400,
    seed: int = 0,
) -> Subject:
    """Make a subject folder of one brain of THINGS-fMRI.

    Parameters
    ----------
    release : path
        The folder ``betas_csv``, or the one that holds it.
    folder : path
        The subject folder to write.
    subject : str
        ``"sub-01"``, ``"sub-02"`` or ``"sub-03"``.
    rois : sequence of str
        Regions to import, by their columns in VoxelMetadata.csv: a voxel of any of them is taken.
        Empty for every voxel.
    min_noise_ceiling : float or None
        Least nc_singletrial of a voxel, in percent.
    images : path or None
        Folder of the pictures: ``dog_12s.jpg``, anywhere below it.
    n_validation : int
        Pictures drawn for validation from those of the training.
    seed : int

    Returns
    -------
    subject : Subject
        float32 voxels as released. All regions of the metadata are kept as masks, place and ncsnr
        of each voxel in its table; a caption is the concept. The test are the pictures of trial
        type "test".

    Raises
    ------
    MissingExtraError
        If h5py is absent.
    SourceError
        If a file is missing, damaged, of another subject, or the three disagree in voxels or
        trials, a region is unknown, no voxel is left, or a picture is of training and test.

    Notes
    -----
    The file's noise ceiling of a single trial, in percent, is 100 ncsnr² / (ncsnr² + 1) (Allen et
    al. 2022, doi:10.1038/s41593-021-00962-x, Methods), solved here for ncsnr.
    """
    require_new_subject(folder)
    files = _files(Path(release), subject)
    voxels, stimuli = _read_csv(files[1], _VOXEL_COLUMNS), _read_csv(files[2], _STIMULUS_COLUMNS)
    for path, table in ((files[1], voxels), (files[2], stimuli)):
        _require_subject(path, table, subject)
    responses = open_table(files[0], voxels["voxel_id"].to_numpy(), n_trials=stimuli.num_rows)
    ceiling = _numbers(files[1], voxels, "nc_singletrial")
    regions = _regions(voxels)
    candidates = _select(files[1], regions, ceiling, rois, min_noise_ceiling)
    sessions = np.unique(_numbers(files[2], stimuli, "session"), return_inverse=True)[1]
    names, image_ids = number_stimuli(stimuli["stimulus"].to_pylist())
    concept = dict(
        zip(stimuli["stimulus"].to_pylist(), stimuli["concept"].to_pylist(), strict=True)
    )
    test_ids = _test_ids(files[2], stimuli, names, image_ids)
    splits = split_around_test(image_ids, test_ids, n_validation=n_validation, seed=seed)
    pictures = None if images is None else find_pictures(images, names, concept)
    source, kept, counts = build_source(
        _stretches(responses, sessions, candidates),
        _find_valid(responses, sessions, candidates),
        identity={"files": describe_files(files), "candidates": digest(candidates)},
        where=str(files[0]),
    )
    rows = candidates[kept]
    Path(folder).mkdir(parents=True, exist_ok=True)
    return write_subject(
        folder,
        name=subject,
        voxels=source,
        trials=build_trials(image_ids, sessions, splits),
        rois={name: region[rows] for name, region in regions.items() if region[rows].any()},
        images=pictures,
        voxel_table=pa.table(
            {
                **{
                    axis: np.rint(_numbers(files[1], voxels, f"voxel_{axis}")[rows]).astype(
                        np.int64
                    )
                    for axis in "xyz"
                },
                "ncsnr": ncsnr_of_ceiling(ceiling[rows]).astype(np.float32),
            }
        ),
        command="voxseek data import things",
        details={
            "source": "THINGS-fMRI",
            "files": [path.name for path in files],
            "rois": list(rois),
            "min_noise_ceiling": min_noise_ceiling,
            "seed": seed,
            **counts,
        },
        extra_files=[write_stimuli(folder, names, concept)],
    )


def ncsnr_of_ceiling(percent: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ncsnr from the noise ceiling of a single trial, in percent; NaN stays NaN.

    Parameters
    ----------
    percent : float array
        Taken into [0, 100) first.

    Notes
    -----
    See `import_things`.
    """
    share = np.clip(percent / 100, 0, 1 - 1e-6)
    return np.sqrt(share / (1 - share))


def _files(release: Path, subject: str) -> list[Path]:
    root = release / "betas_csv" if (release / "betas_csv").is_dir() else release
    return [
        require_download(root / f"{subject}_{name}", f"a table of {subject} of THINGS-fMRI")
        for name in ("ResponseData.h5", "VoxelMetadata.csv", "StimulusMetadata.csv")
    ]


def _read_csv(path: Path, columns: Sequence[str]) -> pa.Table:
    try:
        table = pa_csv.read_csv(path)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path} can't be read as csv ({error}); download it again.") from error
    if missing := [name for name in columns if name not in table.column_names]:
        raise SourceError(
            f"{path} has no column {missing[0]!r} (it has {', '.join(table.column_names[:8])} ...),"
            f" expected {', '.join(columns)}. Download it again."
        )
    return table


def _numbers(path: Path, table: pa.Table, name: str) -> NDArray[np.float64]:
    try:
        values: NDArray[np.float64] = table[name].cast(pa.float64()).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SourceError(
            f"{path}: column {name} holds {table[name].type} ({error}), expected numbers. Download "
            f"it again."
        ) from error
    return values


def _require_subject(path: Path, table: pa.Table, subject: str) -> None:
    """Compare the numbers of the subjects, however the column spells them."""
    if "subject_id" not in table.column_names or not table.num_rows:
        return
    found = str(table["subject_id"][0].as_py())
    numbers = [re.sub(r"\D", "", text).lstrip("0") for text in (found, subject)]
    if numbers[0] != numbers[1]:
        raise SourceError(
            f"{path} is of subject {found}, expected {subject}. Give the files as released."
        )


def _regions(voxels: pa.Table) -> dict[str, NDArray[np.bool_]]:
    """Return the columns of 0 and 1 that aren't known to be something else."""
    regions = {}
    for name in voxels.column_names:
        if not name or _NO_REGIONS.match(name) or not _is_number(voxels[name].type):
            continue
        values = voxels[name].fill_null(0).to_numpy()
        if np.isin(values, (0, 1)).all():
            regions[name] = values == 1
    return regions


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _select(
    path: Path,
    regions: dict[str, NDArray[np.bool_]],
    ceiling: NDArray[np.float64],
    rois: Sequence[str],
    min_noise_ceiling: float | None,
) -> NDArray[np.int64]:
    if unknown := [name for name in rois if name not in regions]:
        raise SourceError(
            f"{path} has no region {unknown[0]!r}, expected one of {', '.join(regions)}. Correct "
            f"the name."
        )
    is_chosen = np.ones(len(ceiling), dtype=bool)
    if rois:
        is_chosen = np.logical_or.reduce([regions[name] for name in rois])
    if min_noise_ceiling is not None:
        with np.errstate(invalid="ignore"):
            is_chosen = is_chosen & (ceiling >= min_noise_ceiling)
    if not is_chosen.any():
        raise SourceError(
            f"{path}: no voxel has a noise ceiling of {min_noise_ceiling} % and lies in "
            f"{', '.join(rois) or 'the brain'}. Lower the threshold, or name other regions."
        )
    return np.flatnonzero(is_chosen)


def _test_ids(
    path: Path, stimuli: pa.Table, names: list[str], image_ids: NDArray[np.int64]
) -> NDArray[np.int64]:
    kinds = np.asarray(stimuli["trial_type"].to_pylist())
    if strange := sorted(set(kinds.tolist()) - {"train", "test"}):
        raise SourceError(
            f"{path}: trial_type is {strange[0]!r} in some row, expected train or test. Download "
            f"it again."
        )
    test_ids = np.unique(image_ids[kinds == "test"])
    both = np.intersect1d(test_ids, image_ids[kinds == "train"])
    if len(both):
        raise SourceError(
            f"{path}: picture {names[both[0]]} is of training and test ({len(both)} such "
            f"pictures), expected it in one. Download it again."
        )
    return test_ids


def _find_valid(
    responses: ResponseTable, sessions: NDArray[np.int64], candidates: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Tell where voxels are valid, (n_sessions, n_candidates), in one pass over the table."""
    members = [sessions == session for session in range(int(sessions.max()) + 1)]
    is_valid = np.zeros((len(members), len(candidates)), dtype=bool)
    slabs = responses.slabs(slice(0, responses.n_trials), candidates)
    for positions, slab in track(slabs, label="check", total=responses.n_slabs, unit="slab"):
        for session, is_member in enumerate(members):
            block = slab[:, is_member]
            is_valid[session, positions] = np.isfinite(block).all(axis=1) & (block != 0).any(axis=1)
    return is_valid


def _stretches(
    responses: ResponseTable, sessions: NDArray[np.int64], candidates: NDArray[np.int64]
) -> list[Stretch]:
    n = max(1, STRETCH_BYTES // (4 * len(candidates)))

    def stretch(start: int) -> Stretch:
        trials = slice(start, min(start + n, responses.n_trials))

        def read(positions: NDArray[np.int64]) -> NDArray[np.float32]:
            block = np.empty((trials.stop - start, len(positions)), dtype=np.float32)
            for columns, slab in responses.slabs(trials, candidates[positions]):
                block[:, columns] = slab.T
            return block

        return Stretch(f"trials {start} to {trials.stop - 1}", sessions[trials], read)

    return [stretch(start) for start in range(0, responses.n_trials, n)]
