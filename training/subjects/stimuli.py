"""Stimuli that have names, not numbers: image ids for them, and the pictures that bear the names.

``stimuli.parquet`` beside the voxels keeps which name (and caption) each image_id stands for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from index_builder.embeddings.artefact import atomic_write

from ..errors import SourceError
from .downloads import require_download
from .images import IMAGE_SCHEMA

STIMULI = "stimuli.parquet"
PICTURE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def number_stimuli(
    shown: Sequence[str], *, order: Callable[[str], Any] = str
) -> tuple[list[str], NDArray[np.int64]]:
    """Give the distinct names numbers from 0, in sorted order.

    Parameters
    ----------
    shown : sequence of str
        Name of the stimulus of each trial.
    order : callable
        What the names are sorted by.

    Returns
    -------
    names : list of str
        Row i is the name of image_id i.
    image_ids : int64 array of shape (n_trials,)
    """
    names = sorted(set(shown), key=order)
    number = {name: image_id for image_id, name in enumerate(names)}
    return names, np.array([number[name] for name in shown], dtype=np.int64)


def read_names(path: str | os.PathLike[str]) -> list[str]:
    """Read a list of stimuli, one name a line; empty lines at the end don't count.

    Raises
    ------
    SourceError
        If the file is missing, no text, or has an empty line.
    """
    file = require_download(path, "a list of picture names, one a line")
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8").rstrip().split("\n")]
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{file} is no text ({error}), expected a list of picture names, one a line."
        ) from error
    if "" in names:
        raise SourceError(
            f"{file}, line {names.index('') + 1}: it is empty, expected a picture name in every "
            f"line. Download the list again."
        )
    return names


def natural_order(text: str) -> list[tuple[int, str]]:
    """Return what sorts numbers in text by value: ``run9`` before ``run10``."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)
    ]


def write_stimuli(
    folder: str | os.PathLike[str], names: Sequence[str], captions: Mapping[str, str] | None = None
) -> str:
    """Write which stimulus each image_id stands for, and return the name of the file."""
    table = pa.table(
        {
            "image_id": pa.array(range(len(names)), pa.int64()),
            "name": pa.array(names, pa.string()),
            "caption": pa.array([(captions or {}).get(name) for name in names], pa.string()),
        }
    )
    with atomic_write(Path(folder) / STIMULI) as temporary:
        pq.write_table(table, temporary)
    return STIMULI


def find_pictures(
    folder: str | os.PathLike[str],
    names: Sequence[str],
    captions: Mapping[str, str] | None = None,
) -> pa.Table:
    """Find the picture of each stimulus anywhere under a folder.

    Parameters
    ----------
    folder : path
    names : sequence of str
        Row i is the name of image_id i: with or without extension, and folders before it.
    captions : mapping of str to str, or None
        By name.

    Returns
    -------
    images : pyarrow.Table with `IMAGE_SCHEMA`

    Raises
    ------
    SourceError
        If the folder is missing, or a name has no picture, or several that fit equally well.

    Notes
    -----
    Pictures are found by the name without its extension. Among several the one with the same
    extension wins, then the one whose folders end as the name's do.
    """
    root = Path(folder)
    if not root.is_dir():
        raise SourceError(f"{root} is no folder, expected one of pictures. Correct the path.")
    by_stem: dict[str, list[Path]] = {}
    for file in sorted(root.rglob("*")):
        if file.suffix.lower() in PICTURE_SUFFIXES and not file.name.startswith("."):
            by_stem.setdefault(file.stem, []).append(file)
    found = {name: _fitting(by_stem.get(stem_of(name), []), name) for name in names}
    if missing := [name for name, files in found.items() if not files]:
        raise SourceError(
            f"{root} has no picture named {stem_of(missing[0])!r} ({len(missing)} of {len(names)} "
            f"stimuli have none; {len(by_stem)} pictures found). Give the folder that holds all, "
            f"or import without pictures."
        )
    for name, files in found.items():
        if len(files) > 1:
            raise SourceError(
                f"{root} has {len(files)} pictures of {name!r}: {files[0].relative_to(root)} and "
                f"{files[1].relative_to(root)}. Give the folder that holds each once."
            )
    return pa.table(
        {
            "image_id": range(len(names)),
            "path": [str(found[name][0]) for name in names],
            "caption": [(captions or {}).get(name) for name in names],
        },
        schema=IMAGE_SCHEMA,
    )


def stem_of(name: str) -> str:
    """Return the last part of a name, without the extension if it is one of pictures."""
    last = PurePosixPath(name)
    return last.stem if last.suffix.lower() in PICTURE_SUFFIXES else last.name


def _fitting(files: list[Path], name: str) -> list[Path]:
    wanted = PurePosixPath(name)
    same_name = [file for file in files if file.name == wanted.name] or files
    folders = wanted.parent.parts
    same_place = [file for file in same_name if file.parent.parts[-len(folders) :] == folders]
    return same_place if folders and same_place else same_name
