"""Where a picture is: a path that may go on into an archive.

    photographs/a.jpg                       a file
    tars/00012.tar/000120345.jpg            a file in a tar shard
    nsd_stimuli.hdf5/imgBrick/72999         a row of an HDF5 store
    data/train-00000-of-00002.parquet/17    a row of a parquet file

The column ``image_path`` of an embedding folder holds such paths, relative to the folder.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from PIL import Image

from ..errors import SourceError
from ..subjects.image_store import ImageStore
from .decoding import decode_picture
from .errors import PictureError
from .parquet_files import PARQUET_SUFFIXES, read_picture_row
from .tar_files import Member, list_members, read_member

TAR_SUFFIXES = (".tar",)
STORE_SUFFIXES = (".h5", ".hdf5")
_LISTINGS_KEPT = 64  # of tar shards: about a megabyte each, for ten thousand samples


def open_place(path: str | os.PathLike[str]) -> Image.Image:
    """Decode the picture at a place; safe to call from threads.

    Raises
    ------
    PictureError
        If there is none, or it can't be read.
    """
    place = Path(path)
    archive = next((folder for folder in place.parents if _is_archive(folder)), None)
    if archive is None:
        return decode_picture(place)
    inside = place.relative_to(archive).as_posix()
    suffix = archive.suffix.lower()
    if suffix in TAR_SUFFIXES:
        return decode_picture(read_tar_picture(archive, inside), where=str(place))
    if suffix in STORE_SUFFIXES:
        return _open_stored(archive, inside)
    if not inside.isdecimal():
        raise PictureError("no such row", f"{place} names no row of {archive}.")
    return decode_picture(read_picture_row(archive, int(inside)), where=str(place))


def read_tar_picture(shard: Path, name: str) -> bytes:
    """Return the file of a name in a tar shard, whose listing is kept.

    Raises
    ------
    PictureError
        If the shard doesn't hold it, or is damaged.
    """
    member = _members_by_name(shard, shard.stat().st_mtime_ns).get(name)
    if member is None:
        raise PictureError("not in its shard", f"{shard} holds no picture {name!r}.")
    return read_member(shard, member)


def _is_archive(path: Path) -> bool:
    suffixes = (*TAR_SUFFIXES, *STORE_SUFFIXES, *PARQUET_SUFFIXES)
    # os.path.isfile says no where Path.is_file raises: names too long, folders without permission.
    return path.suffix.lower() in suffixes and os.path.isfile(path)


@lru_cache(maxsize=_LISTINGS_KEPT)
def _members_by_name(shard: Path, modified: int) -> dict[str, Member]:
    return {member.name: member for member in list_members(shard) if member.is_picture}


def _open_stored(path: Path, inside: str) -> Image.Image:
    """Decode a row of an HDF5 store, ``DATASET/ROW``."""
    dataset, _, row = inside.rpartition("/")
    try:
        store = _open_store(path, path.stat().st_mtime_ns)
        if dataset != store.dataset or not row.isdecimal():
            raise PictureError(
                "no such row", f"{path} has no row {inside}, expected {store.dataset}/NUMBER."
            )
        return store.read(int(row))
    except SourceError as error:
        raise PictureError("damaged store", str(error)) from error


@lru_cache(maxsize=_LISTINGS_KEPT)
def _open_store(path: Path, modified: int) -> ImageStore:
    return ImageStore.open(path)
