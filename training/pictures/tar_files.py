"""Uncompressed tar files: what is in them, read in place and never unpacked.

Shards of pictures, as img2dataset and webdataset write them: ``00012.tar`` holds ``000120345.jpg``
beside ``000120345.txt``, its caption, and ``000120345.json``. What stands before the first dot of
a file's name is the key of its sample.
"""

from __future__ import annotations

import os
import tarfile
from dataclasses import dataclass
from pathlib import PurePosixPath

from .decoding import PICTURE_SUFFIXES, TOO_LARGE
from .errors import PictureError

MAX_BYTES = 64 << 20  # of one picture
DAMAGED = "damaged shard"


@dataclass(frozen=True)
class Member:
    """One file in a tar file.

    Parameters
    ----------
    name : str
        With its folders.
    start, n_bytes : int
        Where its content lies.
    """

    name: str
    start: int
    n_bytes: int

    @property
    def key(self) -> str:
        """The key of its sample, without folders."""
        return PurePosixPath(self.name).name.partition(".")[0]

    @property
    def is_picture(self) -> bool:
        """Whether its name ends like a picture's."""
        return PurePosixPath(self.name).suffix.lower() in PICTURE_SUFFIXES


def list_members(path: str | os.PathLike[str]) -> list[Member]:
    """Return the plain files of a tar file in their order; reads the headers alone.

    Raises
    ------
    PictureError
        If it is no uncompressed tar file, is damaged, ends before its end mark, or a name in it
        leads out of it.
    """
    members = []
    try:
        with tarfile.open(path, "r:") as archive:
            for info in archive:
                if info.isreg() and not info.issparse():
                    _require_inside(info.name, path)
                    members.append(Member(info.name, info.offset_data, info.size))
            # tarfile takes a damaged header for the end.
            end = archive.offset
    except (OSError, tarfile.TarError) as error:
        raise PictureError(DAMAGED, f"{path} can't be read as a tar file: {error}") from error
    if read_bytes(path, end, tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise _truncated(path)
    return members


def require_whole(path: str | os.PathLike[str]) -> None:
    """Raise unless a file begins and ends as a tar file does; reads its first and last block.

    Raises
    ------
    PictureError
        If it is another kind of file (a saved web page, say), compressed, or cut off.
    """
    size = os.stat(path).st_size
    head = read_bytes(path, 0, tarfile.BLOCKSIZE)
    try:
        if head.strip(tarfile.NUL) or len(head) < tarfile.BLOCKSIZE:
            tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise PictureError(
            DAMAGED,
            f"{path} is no tar file ({error}): its {size} bytes begin {head[:16]!r}. Expected an "
            f"uncompressed tar file; download it again, or decompress it.",
        ) from error
    mark = 2 * tarfile.BLOCKSIZE
    if read_bytes(path, max(0, size - mark), mark) != tarfile.NUL * mark:
        raise _truncated(path)


def read_member(path: str | os.PathLike[str], member: Member, *, limit: int | None = None) -> bytes:
    """Return the content of a file in a tar file; safe to call from threads.

    Parameters
    ----------
    path : path
    member : Member
    limit : int, optional
        Bytes; `MAX_BYTES` by default.

    Raises
    ------
    PictureError
        If it is larger, or the tar file ends within it.
    """
    most = MAX_BYTES if limit is None else limit
    if member.n_bytes > most:
        raise PictureError(
            TOO_LARGE, f"{member.name!r} in {path} has {member.n_bytes} bytes; at most {most}."
        )
    content = read_bytes(path, member.start, member.n_bytes)
    if len(content) < member.n_bytes:
        raise PictureError(DAMAGED, f"{path} ends within {member.name!r}.")
    return content


def read_bytes(path: str | os.PathLike[str], start: int, n_bytes: int) -> bytes:
    """Return a range of a file's bytes, fewer where the file ends before."""
    try:
        with open(path, "rb") as handle:
            handle.seek(start)
            return handle.read(n_bytes)
    except OSError as error:
        raise PictureError(DAMAGED, f"{path} can't be read: {error}") from error


def _require_inside(name: str, path: str | os.PathLike[str]) -> None:
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts:
        raise PictureError(
            DAMAGED,
            f"{path} holds a file {name!r}, whose path leads out of the archive; expected names "
            f"such as 000000007.jpg. Don't trust it, or pack it again.",
        )


def _truncated(path: str | os.PathLike[str]) -> PictureError:
    return PictureError(
        DAMAGED,
        f"{path} has no end mark where it ends: it was cut off, or is still being written. "
        f"Download or pack it again.",
    )
