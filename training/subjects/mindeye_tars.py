"""MindEye's release of NSD (Scotti et al. 2023, arXiv:2305.18274) into a subject folder.

    train/train_subj01_0.tar ... _17.tar   val/val_subj01_0.tar   test/test_subj01_0.tar, _1.tar

A sample is an image with all its trials. Of its fields, these are read:

    nsdgeneral.npy     (3, n_voxels), a row a trial; where fewer were scanned, rows are repeated
    num_uniques.npy    how many of the rows differ
    trial.npy          global trial of each row; undocumented, so it is checked
    coco73k.npy        the image, NSD's 73k id from 0
    jpg or png         the picture
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index_builder.embeddings.progress import track

from ..errors import SourceError
from .downloads import describe_files, require_download
from .images import IMAGE_SCHEMA
from .mindeye_files import (
    MAX_TRIALS,
    TRIALS_A_SESSION,
    Member,
    choose_dtype,
    list_samples,
    require_subject,
    require_subject_size,
    zero_invalid,
)
from .subject import Subject, write_subject
from .trials import build_trials, split_around_test
from .voxel_file import VoxelBlock, VoxelSource

COMMAND = "voxseek data import mindeye"
_SPLITS = {"train": "train", "val": "validation", "test": "test"}  # their name: ours
_ROWS = 3  # of voxels in a sample: NSD shows an image at most three times
_VOXELS, _TRIAL = "nsdgeneral.npy", "trial.npy"
_IMAGE, _N_UNIQUE = "coco73k.npy", "num_uniques.npy"
_PICTURES = ("jpg", "jpeg", "png")
_FIELDS = (_VOXELS, _TRIAL, _IMAGE, _N_UNIQUE, *_PICTURES)
_OTHER_WAYS = (
    "Import the subject from MindEye2's files (voxseek data import mindeye2) or from NSD's "
    "release (voxseek data import nsd), which number the trials plainly."
)


@dataclass(frozen=True)
class _Sample:
    """An image and its trials; ``rows`` and ``trials`` without the repeated ones."""

    where: str
    split: str
    image_id: int
    rows: NDArray[np.int64]
    trials: NDArray[np.int64]
    voxels: Member
    picture: Member | None


def import_mindeye(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    subject: int,
    n_validation: int = 300,
    published_validation: bool = False,
    seed: int = 0,
    images: bool = True,
    dtype: str | None = None,
) -> Subject:
    """Make a subject folder of the tars that MindEye was trained on.

    Parameters
    ----------
    source : path
        A folder with the subject's tars, at any depth: ``webdataset_avg_split``.
    folder : path
        The subject folder to write. An interrupted import goes on where it stopped.
    subject : int in 1..8
        As NSD counts.
    n_validation : int
        Images to draw for validation from those of train and val together.
    published_validation : bool
        Keep the images of val instead.
    seed : int
        Of the draw.
    images : bool
        Copy the pictures too.
    dtype : {"float16", "float32"} or None
        Of the voxels; None keeps theirs.

    Returns
    -------
    subject : Subject
        Trials in the order of presentation, sessions from 0, voxels as they come: MindEye's are
        z-scored by session already. One region, nsdgeneral.

    Raises
    ------
    SourceError
        If a tar is missing, damaged, or of another subject; rows and num_uniques contradict each
        other; or trial.npy can't be the global trial. Names tar and sample.
    ValueError
        If an option is impossible.

    Notes
    -----
    Every session must be whole: that there are 750 trials in each tells that no tar is missing,
    and whether trials count from 0 or 1. Tars are read twice, in the memory of one session.
    """
    require_subject(subject)
    tars = _find_tars(Path(source), subject)
    samples, n_voxels, found_dtype = _read_samples(tars, subject)
    _require_distinct_images(samples)
    numbers = np.concatenate([sample.trials for sample in samples])
    owners = np.repeat(np.arange(len(samples)), [len(sample.trials) for sample in samples])
    rows = np.concatenate([sample.rows for sample in samples])
    first = _number_of_first_trial(numbers, owners, samples, Path(source))
    order = np.argsort(numbers)
    sessions = (numbers[order] - first) // TRIALS_A_SESSION
    image_ids = np.array([sample.image_id for sample in samples])[owners[order]]

    def block(session: int) -> VoxelBlock:
        place = order[sessions == session]
        name = f"session {session}"

        def read() -> NDArray[Any]:
            block_rows = np.empty((len(place), n_voxels), dtype=found_dtype)
            for at, trial in enumerate(place):
                block_rows[at] = samples[owners[trial]].voxels.read_array()[rows[trial]]
            return zero_invalid(block_rows, name)

        return VoxelBlock(name, len(place), read)

    pictures = Path(folder) / ".pictures"
    try:
        return write_subject(
            folder,
            name=f"subj{subject:02d}",
            voxels=VoxelSource(
                [block(session) for session in np.unique(sessions).tolist()],
                n_voxels,
                choose_dtype(found_dtype, dtype),
                {"command": COMMAND, "files": describe_files(tar for _, tar in tars)},
            ),
            trials=build_trials(
                image_ids,
                sessions,
                _split(samples, image_ids, published_validation, n_validation, seed),
            ),
            rois={"nsdgeneral": np.ones(n_voxels, dtype=bool)},
            images=_copy_pictures(samples, pictures) if images else None,
            command=COMMAND,
            details={
                "source": "MindEye, webdataset_avg_split",
                "subject": subject,
                "n_sessions": len(np.unique(sessions)),
                "n_padded_rows": _ROWS * len(samples) - len(numbers),
                "first_trial": first,
                "published_validation": published_validation,
                **({} if published_validation else {"n_validation": n_validation, "seed": seed}),
            },
        )
    finally:
        shutil.rmtree(pictures, ignore_errors=True)


def _find_tars(source: Path, subject: int) -> list[tuple[str, Path]]:
    """Return split and path of each tar of the subject, in the order of their numbers."""
    pattern = re.compile(r"(train|val|test)_subj0?(\d+)_(\d+)\.tar")
    matches = ((path, pattern.fullmatch(path.name)) for path in source.rglob("*.tar"))
    found = [(int(m[2]), m[1], int(m[3]), path) for path, m in matches if m]
    tars = sorted((split, number, path) for owner, split, number, path in found if owner == subject)
    for split in _SPLITS:
        of_split = {number: path for name, number, path in tars if name == split}
        if not of_split:
            others = sorted({owner for owner, *_ in found} - {subject})
            there = f"; tars of subject {', '.join(map(str, others))} are there" if others else ""
            raise SourceError(
                f"{source} holds no {split}_subj{subject:02d}_*.tar, expected those of train, val "
                f"and test{there}. Download them, or correct the path or the subject."
            )
        for number in set(range(max(of_split))) - of_split.keys():
            require_download(
                next(iter(of_split.values())).with_name(f"{split}_subj{subject:02d}_{number}.tar"),
                "a tar of the release, numbered from 0",
            )
    return [(split, path) for split, _, path in tars]


def _read_samples(
    tars: Sequence[tuple[str, Path]], subject: int
) -> tuple[list[_Sample], int, np.dtype[Any]]:
    """Return the samples of all tars, and the number and type of voxels, the same in all."""
    samples: list[_Sample] = []
    form: tuple[int, np.dtype[Any]] | None = None
    for split, tar in track(tars, label="read tars", total=len(tars), unit="tar"):
        for name, members in list_samples(tar, _FIELDS).items():
            where = f"{tar}, sample {name}"
            if lacking := [field for field in _FIELDS[:4] if field not in members]:
                raise SourceError(f"{where}: it has no {lacking[0]}. Download the tar again.")
            voxels = members[_VOXELS].read_array()
            if voxels.ndim != 2 or len(voxels) != _ROWS or voxels.dtype.kind != "f":
                raise SourceError(
                    f"{where}: {_VOXELS} is {voxels.dtype} of shape {voxels.shape}, expected "
                    f"float of shape ({_ROWS}, n_voxels). Give the tars of webdataset_avg_split."
                )
            if form is None:
                form = voxels.shape[1], voxels.dtype
                require_subject_size(voxels.shape[1], subject, where)
            if form != (voxels.shape[1], voxels.dtype):
                raise SourceError(
                    f"{where}: it has {voxels.shape[1]} voxels of {voxels.dtype}, and samples "
                    f"before it {form[0]} of {form[1]}. It is of another subject or release: give "
                    f"the tars of one."
                )
            samples.append(_read_sample(where, _SPLITS[split], members, voxels))
    assert form is not None  # list_samples refuses a tar without samples
    return samples, *form


def _read_sample(
    where: str, split: str, members: dict[str, Member], voxels: NDArray[Any]
) -> _Sample:
    bytes_of_row = [row.tobytes() for row in voxels]
    rows = np.array([i for i, row in enumerate(bytes_of_row) if row not in bytes_of_row[:i]])
    n_unique = members[_N_UNIQUE].read_whole_numbers()
    if (n_unique != len(rows)).any():
        raise SourceError(
            f"{where}: {_N_UNIQUE} is {n_unique[0]}, and {len(rows)} of its {_ROWS} rows of voxels "
            f"differ; expected as many. Download the tar again."
        )
    image_id = members[_IMAGE].read_whole_numbers()
    if image_id.min() != image_id.max() or image_id[0] < 0:
        raise SourceError(
            f"{where}: {_IMAGE} is {image_id.tolist()}, expected one image, from 0. Download the "
            f"tar again."
        )
    trials = members[_TRIAL].read_whole_numbers()
    if len(trials) != _ROWS or not 0 <= trials[rows].min() <= trials[rows].max() <= MAX_TRIALS:
        raise SourceError(
            f"{where}: {_TRIAL} is {trials.tolist()}, expected the global trial of each of {_ROWS} "
            f"rows, 0 to {MAX_TRIALS}. {_OTHER_WAYS}"
        )
    picture = next((members[field] for field in _PICTURES if field in members), None)
    return _Sample(where, split, int(image_id[0]), rows, trials[rows], members[_VOXELS], picture)


def _require_distinct_images(samples: Sequence[_Sample]) -> None:
    seen: dict[int, _Sample] = {}
    for sample in samples:
        if (other := seen.setdefault(sample.image_id, sample)) is not sample:
            raise SourceError(
                f"{sample.where}: it shows image {sample.image_id}, as does {other.where}; "
                f"expected each image in one sample. Remove the copy, or give one release."
            )


def _number_of_first_trial(
    numbers: NDArray[np.int64],
    owners: NDArray[np.int64],
    samples: Sequence[_Sample],
    source: Path,
) -> int:
    """Return what the trials count from: 0 or 1, whichever makes every session whole."""
    order = np.argsort(numbers, kind="stable")
    twice = np.flatnonzero(np.diff(numbers[order]) == 0)
    if len(twice):
        one, other = (samples[owners[order[twice[0] + i]]].where for i in (0, 1))
        raise SourceError(
            f"{other}: it has trial {numbers[order[twice[0]]]}, as has {one}; expected each "
            f"trial once, so {_TRIAL} can't be the global trial. {_OTHER_WAYS}"
        )
    n_short = {}
    for first in (0, 1):
        sessions, counts = np.unique((numbers - first) // TRIALS_A_SESSION, return_counts=True)
        n_short[first] = [
            (int(session), int(n))
            for session, n in zip(sessions, counts, strict=True)
            if n < TRIALS_A_SESSION
        ]
        if not n_short[first]:
            return first
    fewest = min(n_short.values(), key=len)
    session, n = fewest[0]
    raise SourceError(
        f"{source}: session {session} has {n} of {TRIALS_A_SESSION} trials ({len(fewest)} of the "
        f"sessions are short); expected whole sessions. Download the tars that are missing "
        f"(train 0 to 17, val 0, test 0 and 1). If all are there, {_TRIAL} isn't the global trial: "
        f"{_OTHER_WAYS[0].lower()}{_OTHER_WAYS[1:]}"
    )


def _split(
    samples: Sequence[_Sample],
    image_ids: NDArray[np.int64],
    published_validation: bool,
    n_validation: int,
    seed: int,
) -> dict[int, str]:
    if published_validation:
        return {sample.image_id: sample.split for sample in samples}
    test_ids = [sample.image_id for sample in samples if sample.split == "test"]
    return split_around_test(image_ids, test_ids, n_validation=n_validation, seed=seed)


def _copy_pictures(samples: Sequence[_Sample], folder: Path) -> pa.Table:
    """Copy the pictures out of the tars, and return the table that `write_subject` wants."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for sample in track(samples, label="copy pictures", total=len(samples), unit="picture"):
        if sample.picture is None:
            raise SourceError(
                f"{sample.where}: it has no {' or '.join(_PICTURES)}. Leave the pictures out "
                f"(--no-images), or download the tar again."
            )
        suffix = sample.picture.name.rpartition(".")[2].lower()
        path = folder / f"{sample.image_id}.{suffix}"
        path.write_bytes(sample.picture.read())
        paths.append(str(path))
    return pa.table(
        {
            "image_id": [sample.image_id for sample in samples],
            "path": paths,
            "caption": [None] * len(samples),
        },
        schema=IMAGE_SCHEMA,
    )
