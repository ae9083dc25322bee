"""Single-trial betas of any data set in BIDS names, with the events that they respond to.

    sub-01_ses-02_task-x_run-03_betas.nii.gz    X x Y x Z x trials, or HDF5 and MATLAB of GLMsingle
    sub-01_ses-02_task-x_run-03_events.tsv      onset, stim_file, ...: a row a trial

There is no standard for single-trial betas, so the file of betas is joined to its events by the
entities in both names. (BIDS: Gorgolewski et al. 2016, doi:10.1038/sdata.2016.44; GLMsingle: Prince
et al. 2022, doi:10.7554/eLife.77599.)
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import SourceError
from .beta_files import BetaFile, open_betas, require_same_grid, select_voxels, tabulate_voxels
from .downloads import describe_files, require_download
from .responses import build_source, digest, find_valid, require_new_subject
from .stimuli import find_pictures, natural_order, number_stimuli, read_names, write_stimuli
from .subject import Subject, write_subject
from .trials import build_trials, split_around_test

_ENTITIES = ("sub", "ses", "task", "acq", "run")
_ABSENT = ("", "n/a")
_BETAS = ("*_betas.nii.gz", "*_betas.nii", "TYPED_*.hdf5", "TYPED_*.mat")
_PICKLES = "TYPED_*.npy"


@dataclass(frozen=True)
class Events:
    """The events of one or more runs whose betas are in one file.

    Parameters
    ----------
    path : Path
        Of the first events file.
    rows : list of dict
        Events in order: files by session and run, rows by onset.
    is_kept : list of bool
        Which show a picture.
    sessions : list of str
        Label of the session of each event.
    """

    path: Path
    rows: list[dict[str, str]]
    is_kept: list[bool]
    sessions: list[str]


def import_bids(
    betas: Sequence[str | os.PathLike[str]],
    events: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    *,
    name: str,
    mask: str | os.PathLike[str] | None = None,
    rois: Sequence[str | os.PathLike[str]] = (),
    stimulus_column: str = "stim_file",
    drop: Sequence[str] = (),
    test_list: str | os.PathLike[str] | None = None,
    test_where: str | None = None,
    min_test_shows: int | None = None,
    images: str | os.PathLike[str] | None = None,
    n_validation: int = 100,
    seed: int = 0,
) -> Subject:
    """Make a subject folder of single-trial betas and events.

    Parameters
    ----------
    betas : sequence of path
        Files, or folders whose ``*_betas.nii.gz``, ``*_betas.nii``, ``TYPED_*.hdf5`` and
        ``TYPED_*.mat`` are taken, of one subject.
    events : sequence of path
        Files, or folders whose ``*_events.tsv`` are taken. Each belongs to the betas whose sub,
        ses, task, acq and run it shares, as far as the betas' name has them: the betas of a session
        take all its runs, and betas without entities take all events.
    folder : path
        The subject folder to write.
    name : str
        Of the subject.
    mask : path or None
        NIfTI volume in the space of the betas. Without it the regions together are the mask, and
        without these every voxel that is finite and not 0.
    rois : sequence of path
        NIfTI volumes of regions.
    stimulus_column : str
        Names the picture; rows where it is empty or ``n/a`` are dropped.
    drop : sequence of str
        ``"COLUMN=VALUE"``: rows to drop as well, blank or catch trials. The betas may have volumes
        for the dropped rows, for all of them or for none.
    test_list, test_where, min_test_shows
        Which pictures are the test, exactly one of these: a file of names, one a line; rows
        ``"COLUMN=VALUE"``; pictures shown at least so often.
    images : path or None
        Folder of the pictures.
    n_validation : int
        Pictures drawn for validation from the others.
    seed : int

    Returns
    -------
    subject : Subject
        float32 voxels as they come; image_id numbers the names in sorted order. Sessions are those
        of ``ses-``, one if there is none.

    Raises
    ------
    MissingExtraError
        If nibabel or h5py is absent.
    SourceError
        If files are missing, damaged or not joined one to one, lie on different voxels, or don't
        have one volume an event.
    """
    if sum(option is not None for option in (test_list, test_where, min_test_shows)) != 1:
        raise ValueError("give exactly one of test_list, test_where and min_test_shows.")
    require_new_subject(folder)
    beta_paths = sorted(_expand(betas, _BETAS, "betas"), key=_order)
    event_paths = sorted(_expand(events, ("*_events.tsv",), "events"), key=_order)
    files = [open_betas(path) for path in beta_paths]
    grid = require_same_grid(files)
    joined = [
        _read_events(paths, stimulus_column, drop) for paths in _join(beta_paths, event_paths)
    ]
    trials = [_trials_of(file, part) for file, part in zip(files, joined, strict=True)]
    shown = [
        (row, session)
        for part in joined
        for row, session, is_kept in zip(part.rows, part.sessions, part.is_kept, strict=True)
        if is_kept
    ]
    labels = sorted({session for _, session in shown}, key=natural_order)
    sessions = np.array([labels.index(session) for _, session in shown], dtype=np.int64)
    names, image_ids = number_stimuli([row[stimulus_column] for row, _ in shown])
    test_ids = _test_ids(
        [row for row, _ in shown], names, image_ids, test_list, test_where, min_test_shows
    )
    splits = split_around_test(image_ids, test_ids, n_validation=n_validation, seed=seed)
    pictures = None if images is None else find_pictures(images, names)
    xyz, masks = select_voxels(grid, mask, rois)
    starts = np.cumsum([0, *(len(part) for part in trials)])
    stretches = [
        stretch
        for start, file, part in zip(starts, files, trials, strict=False)
        for stretch in file.stretches(part, sessions[start : start + len(part)], xyz)
    ]
    source, kept, counts = build_source(
        stretches,
        find_valid(stretches, len(xyz)),
        identity={
            "files": describe_files(beta_paths),
            "candidates": digest(xyz),
            "trials": [digest(part) for part in trials],
        },
        where=str(beta_paths[0].parent),
    )
    voxel_table = tabulate_voxels(grid, xyz)
    Path(folder).mkdir(parents=True, exist_ok=True)
    return write_subject(
        folder,
        name=name,
        voxels=source,
        trials=build_trials(image_ids, sessions, splits),
        rois={region: values[kept] for region, values in masks.items()},
        images=pictures,
        voxel_table=None if voxel_table is None else voxel_table.take(kept),
        command="voxseek data import bids",
        details={
            "source": "BIDS",
            "files": [path.name for path in beta_paths],
            "affine": None if grid.affine is None else grid.affine.tolist(),
            "sessions": labels,
            "n_events_dropped": sum(part.is_kept.count(False) for part in joined),
            "test": test_where or ("list" if test_list else f"at least {min_test_shows} shows"),
            "seed": seed,
            **counts,
        },
        extra_files=[write_stimuli(folder, names)],
    )


def _expand(
    given: Sequence[str | os.PathLike[str]], patterns: Sequence[str], what: str
) -> list[Path]:
    """Return files as they are, and of folders what fits a pattern, at any depth."""
    found: list[Path] = []
    for path in map(Path, given):
        inside = [file for pattern in patterns for file in path.rglob(pattern)]
        inside = inside or list(path.rglob(_PICKLES))  # opening one says what to do
        if path.is_dir() and not inside:
            raise SourceError(
                f"{path} holds no {what} ({', '.join(patterns)}). Give the files themselves."
            )
        found += inside if path.is_dir() else [path]
    if not found:
        raise ValueError(f"no {what} were given, expected at least one file.")
    if len(set(found)) < len(found):
        raise SourceError(f"{max(found, key=found.count)} was given twice; give it once.")
    return found


def _entities(path: Path) -> dict[str, str]:
    """Return BIDS's entities of a file name; ``run-01`` and ``run-1`` are the same."""
    pairs = (part.split("-", 1) for part in path.name.split(".")[0].split("_") if "-" in part)
    return {
        key: str(int(value)) if value.isdecimal() else value
        for key, value in pairs
        if key in _ENTITIES
    }


def _order(path: Path) -> tuple[list[tuple[int, str]], ...]:
    entities = _entities(path)
    return (
        *(natural_order(entities.get(key, "")) for key in ("sub", "ses", "run")),
        natural_order(path.name),
    )


def _join(betas: list[Path], events: list[Path]) -> list[list[Path]]:
    """Return the events files of each file of betas."""
    joined: dict[Path, list[Path]] = {path: [] for path in betas}
    for path in (*betas, *events):
        subjects = {_entities(other).get("sub") for other in (path, betas[0], events[0])} - {None}
        if len(subjects) > 1:
            raise SourceError(
                f"{path} is of another subject than {betas[0]} and {events[0]}; expected one. "
                f"Give the files of one subject."
            )
    for path in events:
        own = _entities(path)
        fitting = [
            file
            for file in betas
            if all(own.get(key) == value for key, value in _entities(file).items())
        ]
        if len(fitting) != 1:
            which = " and ".join(str(file) for file in fitting[:2]) or f"none, as {betas[0]}"
            raise SourceError(
                f"{path} belongs to {len(fitting)} files of betas ({which}), expected one with the "
                f"same {', '.join(_ENTITIES)}. Rename the files, or give fewer."
            )
        joined[fitting[0]].append(path)
    if lonely := [path for path, files in joined.items() if not files]:
        raise SourceError(
            f"{lonely[0]} has no events file with the same {', '.join(_ENTITIES)}. Give it, or "
            f"leave the betas out."
        )
    return list(joined.values())


def _read_events(paths: list[Path], stimulus_column: str, drop: Sequence[str]) -> Events:
    conditions = [_parse_condition(text) for text in drop]
    events = Events(paths[0], [], [], [])
    for path in paths:
        rows = _read_tsv(path, ("onset", stimulus_column, *(column for column, _ in conditions)))
        for row in sorted(rows, key=lambda row: _onset(row, path)):
            is_blank = any(row[column] == value for column, value in conditions)
            events.rows.append(row)
            events.is_kept.append(not is_blank and row[stimulus_column] not in _ABSENT)
            events.sessions.append(_entities(path).get("ses", ""))
    if not any(events.is_kept):
        raise SourceError(
            f"{paths[0]}: every event is dropped, {stimulus_column} is empty in all others. Name "
            f"the column of the pictures."
        )
    return events


def _read_tsv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    file = require_download(path, "an events file of BIDS")
    try:
        with open(file, encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE)
            found = list(reader.fieldnames or ())
            rows = [{key: (value or "").strip() for key, value in row.items()} for row in reader]
    except (UnicodeDecodeError, csv.Error, AttributeError) as error:
        raise SourceError(
            f"{file} can't be read as a table with tabs ({error}). Write it again."
        ) from error
    if missing := [column for column in columns if column not in found]:
        raise SourceError(
            f"{file} has columns {', '.join(found)}, expected {missing[0]!r} among them, "
            f"separated by tabs. Name the column that the file has."
        )
    return rows


def _onset(row: dict[str, str], path: Path) -> float:
    try:
        onset = float(row["onset"])
    except ValueError:
        onset = math.nan
    if not math.isfinite(onset):
        raise SourceError(
            f"{path}: onset is {row['onset']!r} in some row, expected seconds. Correct the file."
        )
    return onset


def _parse_condition(text: str) -> tuple[str, str]:
    column, separator, value = text.partition("=")
    if not separator or not column:
        raise ValueError(f"{text!r} is no condition, expected COLUMN=VALUE.")
    return column, value


def _trials_of(file: BetaFile, events: Events) -> NDArray[np.int64]:
    """Return which volumes show a picture: all, or those whose events aren't dropped."""
    is_kept = np.array(events.is_kept)
    if file.n_trials == len(is_kept):
        return np.flatnonzero(is_kept)
    if file.n_trials == is_kept.sum():
        return np.arange(file.n_trials)
    raise SourceError(
        f"{file.path} has {file.n_trials} volumes, and {events.path.name} (with the other runs of "
        f"this file) {len(is_kept)} events, {is_kept.sum()} of them with a picture; expected a "
        f"volume for each. Drop events that have no betas with COLUMN=VALUE, or give all runs."
    )


def _test_ids(
    rows: list[dict[str, str]],
    names: list[str],
    image_ids: NDArray[np.int64],
    test_list: str | os.PathLike[str] | None,
    test_where: str | None,
    min_test_shows: int | None,
) -> NDArray[np.int64]:
    if test_list is not None:
        listed = set(read_names(test_list))
        is_test = np.array([name in listed for name in names])
        found = f"{test_list} lists none of the {len(names)} pictures (the first is {names[0]!r})"
    elif test_where is not None:
        column, value = _parse_condition(test_where)
        matches = np.array([row.get(column) == value for row in rows])
        is_test = np.isin(np.arange(len(names)), image_ids[matches])
        mixed = np.intersect1d(image_ids[matches], image_ids[~matches])
        if len(mixed):
            raise SourceError(
                f"picture {names[mixed[0]]!r} has events with {test_where} and others "
                f"({len(mixed)} such pictures); expected each in one. Name the test in a list."
            )
        found = f"no event has {test_where}"
    else:
        is_test = np.bincount(image_ids) >= (min_test_shows or 0)
        found = f"no picture was shown {min_test_shows} times"
    if not is_test.any():
        raise SourceError(f"{found}, so there is no picture for the test. Name the test otherwise.")
    return np.flatnonzero(is_test)
