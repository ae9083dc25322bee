"""Files as they come from a data host: what can be wrong with them before their form is read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import SourceError

# What browsers, wget, aria2 and rclone add to the name of a file that isn't whole yet.
_UNFINISHED = (".part", ".partial", ".crdownload", ".download", ".aria2", ".tmp")
_LFS_POINTER = b"version https://git-lfs"
_WEB_PAGES = (b"<!doctype html", b"<html", b"<?xml")


def require_download(path: str | os.PathLike[str], what: str) -> Path:
    """Return the path of a file that is there, not empty, and no web page.

    Parameters
    ----------
    path : path
    what : str
        What the file should be, for the message: ``"a NIfTI file of betas"``.

    Raises
    ------
    SourceError
        If the file is missing, a link to nothing, still being downloaded, empty, HTML, or a
        pointer of Git LFS.
    """
    file = Path(path)
    if file.is_symlink() and not file.exists():
        raise SourceError(
            f"{file} is a link to nothing, expected {what}. If git-annex or DataLad made it, fetch "
            f"the content: datalad get {file.name}"
        )
    unfinished = [file.with_name(file.name + suffix) for suffix in _UNFINISHED]
    if file.suffix in _UNFINISHED or (not file.exists() and any(p.exists() for p in unfinished)):
        raise SourceError(
            f"{file} is not there yet: its download is unfinished. Expected {what}; let the "
            f"download end, or start it again."
        )
    if not file.is_file():
        raise SourceError(f"{file} is missing, expected {what}. Download it, or correct the path.")
    if file.stat().st_size == 0:
        raise SourceError(f"{file} is empty (0 bytes), expected {what}. Download it again.")
    with open(file, "rb") as handle:
        start = handle.read(256).lstrip().lower()
    if start.startswith(_WEB_PAGES):
        raise SourceError(
            f"{file} is a web page saved under the name of a data file, expected {what}. Download "
            f"the file itself; where the host asks for it, sign in or accept the terms first."
        )
    if start.startswith(_LFS_POINTER):
        raise SourceError(
            f"{file} is a pointer of Git LFS, expected {what}. Fetch the content: git lfs pull"
        )
    return file


def describe_files(paths: Iterable[Path]) -> list[list[Any]]:
    """Return name, size and time of change of files: another content has another description."""
    return [
        [path.name, (status := path.stat()).st_size, status.st_mtime_ns] for path in sorted(paths)
    ]
