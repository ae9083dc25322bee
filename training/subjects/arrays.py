"""Plain arrays into a subject folder: responses as npy, trials as a table, pictures as files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..errors import SourceError
from .images import IMAGE_SCHEMA
from .subject import Subject, write_subject
from .trials import TRIAL_SCHEMA, assign_splits, number_repeats

PICTURE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def import_arrays(
    folder: str | os.PathLike[str],
    *,
    voxels: str | os.PathLike[str],
    trials: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    name: str,
    test_fraction: float = 0.1,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> Subject:
    """Make a subject folder of an npy file, a trial table and pictures.

    Parameters
    ----------
    folder : path
        The subject folder to write.
    voxels : path of an npy file
        (n_trials, n_voxels) numbers; copied by chunks.
    trials : path of a csv, tsv or parquet file
        One row a trial, in the order of the voxel rows. Column image_id (whole numbers, at least
        0), and optionally session, repeat and split. Other columns are not read.
    images : path or None
        A folder of pictures named by image id (``12.png``, ``000012.jpg``), or a csv or tsv with
        columns image_id, path (absolute, or relative to the table) and optionally caption.
    name : str
        Of the subject.
    test_fraction, validation_fraction : float in [0, 1)
        Where the trials have no split: share of all images for the test, and share of the rest
        for validation. Images are drawn, never trials.
    seed : int

    Returns
    -------
    subject : Subject

    Raises
    ------
    SourceError
        If a file can't be read, voxels and trials differ in number, an image id or repeat is
        wrong, or a picture is missing; names file and row.
    SplitError
        If the split column puts an image into two splits.

    Notes
    -----
    Without a validation split in the table, ``validation_fraction`` of the training images are
    cut for it; the table's test images are never touched.
    """
    responses = _map_voxels(Path(voxels))
    table = _read_table(Path(trials))
    if table.num_rows != len(responses):
        hint = (
            " The array looks transposed: save its transpose."
            if responses.shape[1] == table.num_rows
            else ""
        )
        raise SourceError(
            f"{voxels} has {len(responses)} rows and {trials} has {table.num_rows}; expected one "
            f"row of voxels a trial, in the same order.{hint}"
        )
    image_ids = _whole_numbers(table, "image_id", trials)
    sessions = (
        _whole_numbers(table, "session", trials)
        if "session" in table.column_names
        else np.zeros(len(image_ids), dtype=np.int64)
    )
    _check_repeats(table, image_ids, trials)
    split = _splits(table, image_ids, trials, test_fraction, validation_fraction, seed)
    return write_subject(
        folder,
        name=name,
        voxels=responses,
        trials=pa.table(
            {
                "trial": np.arange(len(image_ids), dtype=np.int64),
                "image_id": image_ids,
                "session": sessions,
                "repeat": number_repeats(image_ids),
                "split": split,
            },
            schema=TRIAL_SCHEMA,
        ),
        rois={},
        images=None if images is None else _list_images(Path(images), image_ids),
        command="voxseek data import arrays",
        details={
            "source": "arrays",
            "seed": seed,
            "test_fraction": test_fraction,
            "validation_fraction": validation_fraction,
            "splits_given": "split" in table.column_names,
        },
    )


def _map_voxels(path: Path) -> NDArray[Any]:
    try:
        voxels: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SourceError(
            f"{path} can't be read as an npy file of numbers ({error}); pickled and object arrays "
            f"are never loaded. Save it again with numpy.save from a float array."
        ) from error
    if not isinstance(voxels, np.ndarray):
        raise SourceError(f"{path} is an npz archive, expected one npy array; save it alone.")
    if voxels.ndim != 2 or voxels.dtype.kind not in "fiu":
        raise SourceError(
            f"{path} holds {voxels.dtype} of shape {voxels.shape}, expected real numbers of shape "
            f"(n_trials, n_voxels)."
        )
    return voxels


def _read_table(path: Path) -> pa.Table:
    try:
        if path.suffix == ".parquet":
            table = pq.read_table(path)
        elif path.suffix in (".csv", ".tsv"):
            delimiter = "\t" if path.suffix == ".tsv" else ","
            table = pa_csv.read_csv(path, parse_options=pa_csv.ParseOptions(delimiter=delimiter))
        else:
            raise SourceError(f"{path} ends in {path.suffix!r}, expected .csv, .tsv or .parquet.")
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path} can't be read as a table ({error}); write it again.") from error
    if "image_id" not in table.column_names:
        raise SourceError(f"{path} has columns {table.column_names}, expected image_id among them.")
    return table


def _whole_numbers(table: pa.Table, name: str, path: str | os.PathLike[str]) -> NDArray[np.int64]:
    try:
        values = table[name].cast(pa.int64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SourceError(
            f"{path}: column {name} holds {table[name].type} ({error}); expected whole numbers."
        ) from error
    if values.null_count:
        row = int(np.argmax(values.is_null().to_numpy()))
        raise SourceError(f"{path}, row {row}: {name} is empty; every trial needs one.")
    numbers: NDArray[np.int64] = values.to_numpy()
    if len(numbers) and numbers.min() < 0:
        row = int(np.argmax(numbers < 0))
        raise SourceError(f"{path}, row {row}: {name} is {numbers[row]}, expected at least 0.")
    return numbers


def _check_repeats(
    table: pa.Table, image_ids: NDArray[np.int64], path: str | os.PathLike[str]
) -> None:
    if "repeat" not in table.column_names:
        return
    given = _whole_numbers(table, "repeat", path)
    pairs = np.stack([image_ids, given], axis=1)
    _, first, counts = np.unique(pairs, axis=0, return_index=True, return_counts=True)
    if counts.max() > 1:
        row = int(first[counts > 1].min())
        raise SourceError(
            f"{path}: image {image_ids[row]} has repeat {given[row]} more than once (first in row "
            f"{row}); expected each repeat of an image once."
        )
    expected = number_repeats(image_ids)
    if (given == expected).all():
        return
    row = int(np.argmax(given != expected))
    hint = " They seem to count from 1: subtract 1." if (given == expected + 1).all() else ""
    raise SourceError(
        f"{path}, row {row}: repeat is {given[row]}, expected {expected[row]}: repeats of an image "
        f"count 0, 1, ... in the order of its trials.{hint} Or leave the column out."
    )


def _splits(
    table: pa.Table,
    image_ids: NDArray[np.int64],
    path: str | os.PathLike[str],
    test_fraction: float,
    validation_fraction: float,
    seed: int,
) -> list[str]:
    for name, fraction in (("test", test_fraction), ("validation", validation_fraction)):
        if not 0 <= fraction < 1:
            raise ValueError(f"{name}_fraction is {fraction}, expected a number in [0, 1).")
    n_images = len(np.unique(image_ids))
    if "split" not in table.column_names:
        n_test = min(round(n_images * test_fraction), n_images - 1)
        n_validation = _n_validation(n_images - n_test, validation_fraction)
        drawn = assign_splits(image_ids, n_test=n_test, n_validation=n_validation, seed=seed)
        return [drawn[int(image_id)] for image_id in image_ids]
    given: list[str] = table["split"].to_pylist()
    if "validation" in given:
        return given
    is_train = np.array([split == "train" for split in given], dtype=bool)
    if not is_train.any():
        return given
    train_ids = image_ids[is_train]
    n_validation = _n_validation(len(np.unique(train_ids)), validation_fraction)
    drawn = assign_splits(train_ids, n_test=0, n_validation=n_validation, seed=seed)
    return [
        drawn[int(image_id)] if split == "train" else split
        for image_id, split in zip(image_ids, given, strict=True)
    ]


def _n_validation(n_images: int, fraction: float) -> int:
    """Return how many of the images to validate on; at least one is left for training."""
    return min(round(n_images * fraction), n_images - 1)


def _list_images(path: Path, shown: NDArray[np.int64]) -> pa.Table:
    """Return the table of pictures that `write_subject` wants, of shown images only."""
    if path.is_dir():
        by_id = _pictures_by_number(path)
        captions: dict[int, str | None] = {}
    else:
        table = _read_table(path)
        if "path" not in table.column_names:
            raise SourceError(f"{path} has columns {table.column_names}, expected path among them.")
        ids = _whole_numbers(table, "image_id", path).tolist()
        by_id = {
            image_id: path.parent / file
            for image_id, file in zip(ids, table["path"].to_pylist(), strict=True)
        }
        captions = {}
        if "caption" in table.column_names:
            captions = dict(zip(ids, table["caption"].to_pylist(), strict=True))
    wanted = np.unique(shown).tolist()
    if missing := [image_id for image_id in wanted if image_id not in by_id]:
        is_shifted = bool(by_id) and all(image_id - 1 in by_id for image_id in wanted)
        hint = (
            " The trials seem to count images from 1 and the pictures from 0: subtract 1."
            if is_shifted
            else ""
        )
        raise SourceError(
            f"{path} has no picture of image {missing[0]} ({len(missing)} of {len(wanted)} shown "
            f"images are missing, {len(by_id)} pictures found).{hint} Correct image_id in the "
            f"trials, or add the pictures."
        )
    return pa.table(
        {
            "image_id": wanted,
            "path": [str(by_id[image_id]) for image_id in wanted],
            "caption": [captions.get(image_id) for image_id in wanted],
        },
        schema=IMAGE_SCHEMA,
    )


def _pictures_by_number(folder: Path) -> dict[int, Path]:
    by_id: dict[int, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() not in PICTURE_SUFFIXES or not file.stem.isdecimal():
            continue
        image_id = int(file.stem)
        if image_id in by_id:
            raise SourceError(
                f"{folder} has two pictures of image {image_id}: {by_id[image_id].name} and "
                f"{file.name}. Remove one, or map images to files in a csv."
            )
        by_id[image_id] = file
    return by_id
