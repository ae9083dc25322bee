"""MindEye2's release of NSD (Scotti et al. 2024, arXiv:2403.11207) into a subject folder.

    betas_all_subj01_fp32_renorm.hdf5   betas, (n_trials, n_voxels): a row a global trial
    wds/subj01/train/0.tar ...          a tar a session: behavior in trials of its own images
    wds/subj01/new_test/0.tar           the same in trials of the 1,000 shared images
    wds/subj01/test/0.tar               of these, what MindEye was tested on
    coco_images_224_float16.hdf5        images, (73000, 3, 224, 224)

A sample of a tar is a trial. Of its matrices only ``behav.npy`` is read, 17 numbers; those of the
trials before, after, and of the same image repeat what the samples of these trials say.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from index_builder.embeddings.progress import track

from ..errors import SourceError, SplitError
from .downloads import describe_files, require_download
from .hdf5 import open_hdf5
from .image_store import ImageStore
from .mindeye_files import (
    TRIALS_A_SESSION,
    choose_dtype,
    list_samples,
    require_subject,
    require_subject_size,
    zero_invalid,
)
from .subject import Subject, write_subject
from .trials import build_trials, split_around_test
from .voxel_file import VoxelBlock, VoxelSource

COMMAND = "voxseek data import mindeye2"
_BETAS = "betas"
_BEHAVIOR = "behav.npy"
_N_COLUMNS = 17
# Columns of behavior, by the README of MindEye2; sessions count from 1, images and trials from 0.
_IMAGE, _SUBJECT, _SESSION, _TRIAL, _IS_SHARED = 0, 1, 2, 5, 16


@dataclass(frozen=True)
class _Trials:
    """Trials of one tar or of several, in their order."""

    image_ids: NDArray[np.int64]
    numbers: NDArray[np.int64]
    where: list[str]

    @property
    def sessions(self) -> NDArray[np.int64]:
        return self.numbers // TRIALS_A_SESSION


def import_mindeye2(
    betas: str | os.PathLike[str],
    behavior: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    subject: int,
    images: str | os.PathLike[str] | None = None,
    sessions: Collection[int] | None = None,
    test: Literal["new_test", "test"] = "new_test",
    n_validation: int = 300,
    seed: int = 0,
    dtype: str | None = None,
) -> Subject:
    """Make a subject folder of the files that MindEye2 was trained on.

    Parameters
    ----------
    betas : path
        ``betas_all_subj01_fp32_renorm.hdf5``, or the folder that holds it.
    behavior : path
        ``wds``, or the folder above or below it.
    folder : path
        The subject folder to write. An interrupted import goes on where it stopped.
    subject : int in 1..8
        As NSD counts.
    images : path or None
        ``coco_images_224_float16.hdf5`` or ``nsd_stimuli.hdf5``; it stays where it is.
    sessions : collection of int, or None
        Those to train on, from 0 as the tars are numbered; None means all. Test trials of the
        other sessions are kept, as in the paper's experiments with an hour of data.
    test : {"new_test", "test"}
        The shared images in all sessions, or in those that MindEye had, without the last three.
    n_validation : int
        Images to draw for validation from those that aren't shared.
    seed : int
        Of the draw.
    dtype : {"float16", "float32"} or None
        Of the voxels; None keeps float16 and float32.

    Returns
    -------
    subject : Subject
        Trials in the order of presentation, sessions from 0, voxels as they come: MindEye2's are
        z-scored by session already. One region, nsdgeneral.

    Raises
    ------
    MissingExtraError
        If h5py is absent.
    SourceError
        If a file is missing, damaged or of another subject, a trial is there twice or not at all,
        or a shared image is trained on. Names file and sample.
    SplitError
        If an image is among train and test.
    ValueError
        If an option is impossible.
    """
    require_subject(subject)
    if test not in ("new_test", "test"):
        raise ValueError(f"test is {test!r}, expected 'new_test' or 'test'.")
    store = None if images is None else ImageStore.open(images)
    path = _find_betas(Path(betas), subject)
    n_rows, n_voxels, found_dtype = _read_form(path)
    require_subject_size(n_voxels, subject, str(path))
    root = _find_behavior(Path(behavior), subject)
    tars = _find_sessions(root, sessions)
    test_tar = root / test / "0.tar"
    of_test = _read_trials(test_tar, subject, is_shared=True)
    if sessions is None:
        _require_sessions(of_test, tars, root, test_tar)
    of_train = [
        _read_trials(tar, subject, is_shared=False, session=session)
        for session, tar in track(tars.items(), label="read tars", total=len(tars), unit="tar")
    ]
    trials = _join([*of_train, of_test], n_rows, path)
    _require_whole(trials, of_test, tars)
    _require_apart(of_train, of_test, root, test_tar)

    def block(session: int) -> VoxelBlock:
        numbers = trials.numbers[trials.sessions == session]
        name = f"session {session}"
        return VoxelBlock(name, len(numbers), lambda: zero_invalid(_read_rows(path, numbers), name))

    used = np.unique(trials.sessions).tolist()
    files = [path, *tars.values(), test_tar]
    return write_subject(
        folder,
        name=f"subj{subject:02d}",
        voxels=VoxelSource(
            [block(session) for session in used],
            n_voxels,
            choose_dtype(found_dtype, dtype),
            {"command": COMMAND, "test": test, "files": describe_files(files)},
        ),
        trials=build_trials(
            trials.image_ids,
            trials.sessions,
            split_around_test(
                trials.image_ids, of_test.image_ids, n_validation=n_validation, seed=seed
            ),
        ),
        rois={"nsdgeneral": np.ones(n_voxels, dtype=bool)},
        images=store,
        command=COMMAND,
        details={
            "source": "MindEye2, betas_all and wds",
            "subject": subject,
            "n_sessions": len(used),
            "train_sessions": sorted(tars),
            "test": test,
            "n_validation": n_validation,
            "seed": seed,
        },
    )


def _find_betas(path: Path, subject: int) -> Path:
    if path.is_dir():
        path = path / f"betas_all_subj{subject:02d}_fp32_renorm.hdf5"
    require_download(path, f"the HDF5 file of betas of subject {subject}")
    named = [s for s in range(1, 9) if f"subj{s:02d}" in path.name]
    if named and subject not in named:
        raise SourceError(
            f"{path} is of subject {named[0]} by its name, expected subject {subject}. Give the "
            f"file of the subject, or name the other subject."
        )
    return path


def _find_behavior(path: Path, subject: int) -> Path:
    name = f"subj{subject:02d}"
    for root in (path / "wds" / name, path / name, path):
        if (root / "train").is_dir():
            return root
    there = sorted(p.name for p in [*path.glob("subj*"), *path.glob("wds/subj*")])
    raise SourceError(
        f"{path} holds no {name}/train{f', but {there}' if there else ''}; expected the folder wds "
        f"of MindEye2. Download wds/{name}, or correct the path or the subject."
    )


def _find_sessions(root: Path, sessions: Collection[int] | None) -> dict[int, Path]:
    """Return the tars to train on, by session."""
    if sessions is None:
        sessions = [int(p.stem) for p in (root / "train").glob("*.tar") if p.stem.isdecimal()]
        if not sessions:
            raise SourceError(
                f"{root / 'train'} holds no 0.tar, expected a tar a session. Download them."
            )
    elif not sessions or min(sessions) < 0:
        raise ValueError(f"sessions are {list(sessions)}, expected at least one, from 0.")
    what = "the behavior in a session, which is to be trained on"
    return {
        session: require_download(root / "train" / f"{session}.tar", what)
        for session in sorted(set(sessions))
    }


def _read_trials(
    tar: Path, subject: int, *, is_shared: bool, session: int | None = None
) -> _Trials:
    """Read the trials of a tar; a sample whose behavior is all -1 is none."""
    rows, where = [], []
    for name, members in list_samples(tar, (_BEHAVIOR,)).items():
        place = f"{tar}, sample {name}"
        numbers = members[_BEHAVIOR].read_array().reshape(-1)
        if len(numbers) != _N_COLUMNS or numbers.dtype.kind not in "fi":
            raise SourceError(
                f"{place}: {_BEHAVIOR} holds {len(numbers)} values of {numbers.dtype}, expected "
                f"{_N_COLUMNS} numbers. Download the tar again."
            )
        if (numbers == -1).all():
            continue
        row = numbers[[_IMAGE, _SUBJECT, _SESSION, _TRIAL, _IS_SHARED]]
        _check_trial(row.tolist(), place, subject, is_shared, session)
        rows.append(row.astype(np.int64))
        where.append(place)
    table = np.array(rows, dtype=np.int64).reshape(-1, 5)
    return _Trials(table[:, 0], table[:, 3], where)


def _check_trial(
    row: Sequence[float], place: str, subject: int, is_shared: bool, session: int | None
) -> None:
    image_id, owner, of_session, number, shared = row
    if not all(float(value).is_integer() and value >= 0 for value in row):
        raise SourceError(
            f"{place}: image, subject, session, global trial and is_shared1000 are {row}, expected "
            f"whole numbers from 0. Download the tar again."
        )
    if owner != subject:
        raise SourceError(
            f"{place}: it is of subject {owner:.0f}, expected subject {subject}. Give the tars of "
            f"the subject, or name the other subject."
        )
    if of_session != number // TRIALS_A_SESSION + 1:
        raise SourceError(
            f"{place}: global trial {number:.0f} says that it is of session {of_session:.0f}, "
            f"expected session {number // TRIALS_A_SESSION + 1:.0f} (from 1, {TRIALS_A_SESSION} "
            f"trials each). Download the tar again."
        )
    if session is not None and of_session != session + 1:
        raise SourceError(
            f"{place}: it is of session {of_session - 1:.0f} (from 0), expected {session} by the "
            f"name of the tar. Give the tar its own name again, or download it."
        )
    if shared != is_shared:
        rule = "the test holds shared images alone" if is_shared else "none is trained on"
        raise SourceError(
            f"{place}: image {image_id:.0f} is {'' if shared else 'not '}one of the shared images, "
            f"but {rule}. Give the tars of the release."
        )


def _require_sessions(of_test: _Trials, tars: dict[int, Path], root: Path, test_tar: Path) -> None:
    """Refuse a release that lacks the tar of a session of the test."""
    for session in sorted(set(of_test.sessions.tolist()) - tars.keys()):
        require_download(
            root / "train" / f"{session}.tar",
            f"the behavior in session {session}, of which {test_tar} has trials (or else name the "
            f"sessions to train on: --sessions)",
        )


def _join(parts: Sequence[_Trials], n_rows: int, path: Path) -> _Trials:
    """Return all trials in the order of presentation, each once and with a row of betas."""
    image_ids = np.concatenate([part.image_ids for part in parts])
    numbers = np.concatenate([part.numbers for part in parts])
    where = [place for part in parts for place in part.where]
    order = np.argsort(numbers, kind="stable")
    twice = np.flatnonzero(np.diff(numbers[order]) == 0)
    if len(twice):
        one, other = (where[order[twice[0] + i]] for i in (0, 1))
        raise SourceError(
            f"{other}: it has trial {numbers[order[twice[0]]]}, as has {one}; expected each trial "
            f"once. Download both tars again."
        )
    if len(order) and numbers[order[-1]] >= n_rows:
        raise SourceError(
            f"{path} has {n_rows} rows of betas, and {where[order[-1]]} is global trial "
            f"{numbers[order[-1]]}, from 0; expected a row for it. Check that both are of the same "
            f"subject, and download the betas again."
        )
    return _Trials(image_ids[order], numbers[order], [where[place] for place in order])


def _require_whole(trials: _Trials, of_test: _Trials, tars: dict[int, Path]) -> None:
    """Refuse a session of which train and test together lack trials."""
    tested = set(of_test.sessions.tolist())
    for session in sorted(tars.keys() & tested):
        first = session * TRIALS_A_SESSION
        there = trials.numbers[trials.sessions == session]
        if len(there) < TRIALS_A_SESSION:
            lost = np.setdiff1d(np.arange(first, first + TRIALS_A_SESSION), there)
            raise SourceError(
                f"{tars[session]}: with the test, session {session} has {len(there)} of "
                f"{TRIALS_A_SESSION} trials, and trial {lost[0]} is in neither; expected each "
                f"once. Download both tars again."
            )


def _require_apart(
    of_train: Sequence[_Trials], of_test: _Trials, root: Path, test_tar: Path
) -> None:
    trained = np.concatenate([part.image_ids for part in of_train])
    both = np.intersect1d(trained, of_test.image_ids)
    if len(both):
        raise SplitError(
            f"{root / 'train'} and {test_tar} both show image {both[0]} ({len(both)} such "
            f"images); expected each in one. Give the tars of one release."
        )


def _read_form(path: Path) -> tuple[int, int, np.dtype[Any]]:
    with open_hdf5(path) as content:
        dataset = content.get(_BETAS)
        shape: tuple[int, ...] = getattr(dataset, "shape", ())
        if len(shape) != 2 or dataset.dtype.kind != "f" or not all(shape):
            found = f"{_BETAS} of shape {shape}" if dataset is not None else sorted(content)
            raise SourceError(
                f"{path} holds {found}, expected {_BETAS}: float of shape (n_trials, n_voxels). "
                f"Give betas_all_subj0S_fp32_renorm.hdf5."
            )
        return shape[0], shape[1], dataset.dtype


def _read_rows(path: Path, numbers: NDArray[np.int64]) -> NDArray[Any]:
    """Return some rows of betas; ``numbers`` increases, and lies within a session."""
    first, last = int(numbers[0]), int(numbers[-1])
    with open_hdf5(path) as content:
        try:
            rows: NDArray[Any] = content[_BETAS][first : last + 1][numbers - first]
        except OSError as error:
            raise SourceError(
                f"{path}: rows {first} to {last} can't be read ({error}); download the file again."
            ) from error
    return rows
