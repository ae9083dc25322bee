"""The trial table: which image was shown when, how often before, and in which split.

A split is a property of the image, never of the trial: all repeats of an image stay on one side.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import OptionError, SplitError, SubjectError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[str, ...] = get_args(Split)
TRIAL_SCHEMA = pa.schema(
    [
        ("trial", pa.int64()),
        ("image_id", pa.int64()),
        ("session", pa.int64()),
        ("repeat", pa.int64()),
        ("split", pa.string()),
    ]
)


def number_repeats(image_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count, for each trial, the earlier trials of the same image.

    Parameters
    ----------
    image_ids : int array of shape (n_trials,)
        In the order of presentation.

    Returns
    -------
    repeats : int64 array of shape (n_trials,)
        0 for the first presentation of an image.
    """
    order = np.argsort(image_ids, kind="stable")
    grouped = image_ids[order]
    is_first = np.ones(len(grouped), dtype=bool)
    is_first[1:] = grouped[1:] != grouped[:-1]
    positions = np.arange(len(grouped), dtype=np.int64)
    group_start = np.maximum.accumulate(np.where(is_first, positions, 0))
    repeats = np.empty(len(grouped), dtype=np.int64)
    repeats[order] = positions - group_start
    return repeats


def build_trials(
    image_ids: NDArray[np.int64],
    sessions: NDArray[np.int64],
    split_of_image: dict[int, str],
) -> pa.Table:
    """Make a trial table from the images in the order of presentation.

    Parameters
    ----------
    image_ids, sessions : int arrays of shape (n_trials,)
    split_of_image : dict of int to str
        Split of each image, as `assign_splits` gives it.

    Returns
    -------
    trials : pyarrow.Table with `TRIAL_SCHEMA`
    """
    return pa.table(
        {
            "trial": np.arange(len(image_ids), dtype=np.int64),
            "image_id": np.asarray(image_ids, dtype=np.int64),
            "session": np.asarray(sessions, dtype=np.int64),
            "repeat": number_repeats(image_ids),
            "split": [split_of_image[int(image_id)] for image_id in image_ids],
        },
        schema=TRIAL_SCHEMA,
    )


def assign_splits(
    image_ids: NDArray[np.int64], *, n_test: int, n_validation: int, seed: int
) -> dict[int, str]:
    """Draw test images, and validation images from the rest, by image identity.

    Parameters
    ----------
    image_ids : int array
        May repeat; each image is drawn at most once.
    n_test, n_validation : int
        Numbers of images, not of trials.
    seed : int

    Returns
    -------
    split_of_image : dict of int to str

    Raises
    ------
    ValueError
        If a number is negative, or no training image would be left.
    """
    unique = np.unique(image_ids)
    if n_test < 0 or n_validation < 0 or n_test + n_validation >= len(unique):
        raise ValueError(
            f"{n_test} test and {n_validation} validation images can't be drawn from "
            f"{len(unique)} images: both must be at least 0 and leave one image for training."
        )
    drawn = np.random.default_rng([seed, len(unique)]).permutation(unique)
    splits = ["test"] * n_test + ["validation"] * n_validation
    splits += ["train"] * (len(unique) - len(splits))
    return {int(image_id): split for image_id, split in zip(drawn, splits, strict=True)}


def split_around_test(
    image_ids: NDArray[np.int64], test_ids: Iterable[int], *, n_validation: int, seed: int
) -> dict[int, str]:
    """Keep given images for testing, and draw validation images from the others.

    Parameters
    ----------
    image_ids : int array
        May repeat.
    test_ids : iterable of int
        Those that no trial shows are of no account.
    n_validation : int
        Number of images, not of trials.
    seed : int

    Returns
    -------
    split_of_image : dict of int to str

    Raises
    ------
    OptionError
        If no image would be left for training.
    """
    shown = np.unique(image_ids)
    is_test = np.isin(shown, np.fromiter(test_ids, np.int64))
    n_others = int((~is_test).sum())
    if not 0 <= n_validation < n_others:
        raise OptionError(
            f"{n_validation} validation images were asked for, and {n_others} of {len(shown)} "
            f"images aren't of the test: one has to be left for training. Ask for fewer "
            f"(--validation-images)."
        )
    others = assign_splits(shown[~is_test], n_test=0, n_validation=n_validation, seed=seed)
    return {**{int(image_id): "test" for image_id in shown[is_test]}, **others}


def check_trials(trials: pa.Table, *, where: str) -> pa.Table:
    """Return the trial table with `TRIAL_SCHEMA`, or say what is wrong with it.

    Parameters
    ----------
    trials : pyarrow.Table
        Columns trial, image_id, session, repeat, split, in any order.
    where : str
        What holds the table, for the messages: usually a path.

    Raises
    ------
    SubjectError
        If columns are missing or unknown, trials aren't numbered 0..n-1 in row order, an id or
        session is negative, repeats of an image don't count 0, 1, ... in the order of the trials,
        or a split is unknown.
    SplitError
        If an image is in two splits.
    """
    if sorted(trials.column_names) != sorted(TRIAL_SCHEMA.names):
        raise SubjectError(
            f"{where} has columns {trials.column_names}, expected exactly {TRIAL_SCHEMA.names}."
        )
    if trials.num_rows == 0:
        raise SubjectError(f"{where} has no rows; a subject needs at least one trial.")
    try:
        table = trials.select(TRIAL_SCHEMA.names).cast(TRIAL_SCHEMA)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SubjectError(
            f"{where} can't be read as trials ({error}); expected whole numbers in trial, "
            f"image_id, session and repeat, and text in split."
        ) from error
    for name in TRIAL_SCHEMA.names:
        if table[name].null_count:
            row = int(np.argmax(table[name].is_null().to_numpy()))
            raise SubjectError(f"{where}, row {row}: {name} is empty; every trial needs one.")
    trial, image_id, session, repeat = (table[name].to_numpy() for name in TRIAL_SCHEMA.names[:4])
    split = np.asarray(table["split"].to_pylist())
    expected_trial = np.arange(table.num_rows)
    _require(trial == expected_trial, where, "trial", trial, "trials count 0, 1, ... in row order")
    _require(image_id >= 0, where, "image_id", image_id, "image ids are at least 0")
    _require(session >= 0, where, "session", session, "sessions are at least 0")
    _require(np.isin(split, SPLITS), where, "split", split, f"a split is one of {SPLITS}")
    _require(
        repeat == number_repeats(image_id),
        where,
        "repeat",
        repeat,
        "repeats of an image count 0, 1, ... in the order of its trials",
    )
    _check_one_split_an_image(image_id, split, where)
    return table


def _require(is_good: NDArray[np.bool_], where: str, name: str, values: object, rule: str) -> None:
    if is_good.all():
        return
    row = int(np.argmin(is_good))
    found = np.asarray(values)[row]
    raise SubjectError(
        f"{where}, row {row}: {name} is {found}, but {rule} "
        f"({int((~is_good).sum())} rows are wrong). Correct the table."
    )


def _check_one_split_an_image(
    image_id: NDArray[np.int64], split: NDArray[np.str_], where: str
) -> None:
    pairs = np.unique(np.stack([image_id, np.searchsorted(np.sort(SPLITS), split)], axis=1), axis=0)
    is_repeated = pairs[1:, 0] == pairs[:-1, 0]
    if not is_repeated.any():
        return
    shared = int(pairs[1:][is_repeated][0, 0])
    found = sorted(set(split[image_id == shared].tolist()))
    raise SplitError(
        f"{where}: image {shared} is in the splits {' and '.join(found)} "
        f"({int(is_repeated.sum())} such images); each image belongs to one. "
        f"Split by image_id, so that all repeats of an image stay together."
    )
