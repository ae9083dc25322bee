"""open_source: which form pictures come in."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import TargetsError
from ..subjects.subject import MANIFEST
from .decoding import PICTURE_SUFFIXES
from .listed import list_pictures, list_store
from .parquet_files import PARQUET_SUFFIXES
from .places import STORE_SUFFIXES, TAR_SUFFIXES
from .source import PictureSource
from .tables import TableSource
from .tars import TarSource


def open_source(path: str | os.PathLike[str]) -> PictureSource:
    """Open pictures in whichever form they come.

    Parameters
    ----------
    path : path
        A subject folder; a folder with tar shards at its top, whatever parquet files of img2dataset
        lie beside them; a folder of pictures, with folders in it; a folder of parquet files, with
        folders in it; or one tar, HDF5 or parquet file.

    Raises
    ------
    TargetsError
        If it is none of these, or could be two, or what is in it can't be read.
    SourceError, SubjectError, ArtefactError
        As the store or the subject.
    """
    root = Path(path)
    if not root.is_dir():
        return _open_file(root)
    if (root / MANIFEST).is_file():
        return list_pictures(root)
    shards = _sorted(root.iterdir(), TAR_SUFFIXES)
    has_pictures = any(p.suffix.lower() in PICTURE_SUFFIXES for p in root.rglob("*"))
    if shards and has_pictures:
        raise TargetsError(
            f"{root} holds pictures and {len(shards)} tar shards; expected one of them. Move one "
            f"of them to a folder of its own."
        )
    if shards:
        return TarSource(shards, str(root))
    if has_pictures:
        return list_pictures(root)
    if tables := _sorted(root.rglob("*"), PARQUET_SUFFIXES):
        return TableSource(tables, str(root))
    raise TargetsError(
        f"{root} holds no pictures; looked for files ending in {', '.join(PICTURE_SUFFIXES)}, for "
        f"tar shards at its top, and for parquet files."
    )


def _open_file(path: Path) -> PictureSource:
    suffix = path.suffix.lower()
    if not path.is_file():
        raise TargetsError(f"{path} is not there; expected a folder of pictures or a file of them.")
    if suffix in TAR_SUFFIXES:
        return TarSource([path], str(path))
    if suffix in PARQUET_SUFFIXES:
        return TableSource([path], str(path))
    if suffix in STORE_SUFFIXES:
        return list_store(path)
    raise TargetsError(
        f"{path} is not a folder, and no file of many pictures by its name; expected a folder, or "
        f"a file ending in {', '.join((*TAR_SUFFIXES, *STORE_SUFFIXES, *PARQUET_SUFFIXES))}."
    )


def _sorted(paths: Iterable[Path], suffixes: tuple[str, ...]) -> list[Path]:
    found = (p for p in paths if p.suffix.lower() in suffixes and not p.name.startswith("."))
    return sorted(p for p in found if p.is_file())
