"""Pictures in tar shards, as img2dataset and webdataset write them: found by key, never unpacked.

A shard ``00012.tar`` holds ``000120345.jpg`` beside its caption and JSON; the key of the sample
begins with the name of its shard.
"""

from __future__ import annotations

import os
import tarfile
from functools import lru_cache
from pathlib import Path, PurePosixPath

from ..errors import PictureError
from .decoding import PICTURE_SUFFIXES, TOO_LARGE

MAX_BYTES = 64 << 20  # of one picture
_SHARDS_KEPT = 64  # whose listings are kept: about a megabyte each, for ten thousand samples


class TarShards:
    """A folder of uncompressed tar shards. Safe to use from threads.

    Parameters
    ----------
    folder : path

    Raises
    ------
    PictureError
        If there are no tar files in it.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._shards = {path.stem: path for path in sorted(self.folder.glob("*.tar"))}
        if not self._shards:
            raise PictureError(
                "no shards",
                f"{folder} holds no .tar files; expected shards such as 00000.tar, as img2dataset "
                f"writes them with output_format webdataset.",
            )
        self._lengths = sorted({len(stem) for stem in self._shards}, reverse=True)
        self._members = lru_cache(maxsize=_SHARDS_KEPT)(_list_pictures)

    def read(self, key: str) -> bytes:
        """Return the file of the picture with a key.

        Raises
        ------
        PictureError
            If no shard's name begins the key, its shard doesn't hold it, or is damaged.
        """
        stems = (key[:length] for length in self._lengths if length <= len(key))
        shard = next((self._shards[stem] for stem in stems if stem in self._shards), None)
        if shard is None:
            raise PictureError(
                "no such shard", f"{self.folder} has no shard whose name begins the key {key!r}."
            )
        try:
            place = self._members(shard).get(key)
            if place is None:
                raise PictureError("not in its shard", f"{shard} holds no picture {key!r}.")
            start, n_bytes = place
            if n_bytes > MAX_BYTES:
                raise PictureError(
                    TOO_LARGE, f"{key!r} in {shard} has {n_bytes} bytes; at most {MAX_BYTES}."
                )
            with open(shard, "rb") as handle:
                handle.seek(start)
                content = handle.read(n_bytes)
        except (OSError, tarfile.TarError) as error:
            raise PictureError("damaged shard", f"{shard} can't be read: {error}") from error
        if len(content) < n_bytes:
            raise PictureError("damaged shard", f"{shard} ends within {key!r}.")
        return content


def _list_pictures(shard: Path) -> dict[str, tuple[int, int]]:
    """Return start and bytes of each picture of a shard, by key; reads the headers alone."""
    places = {}
    with tarfile.open(shard, "r:") as archive:
        for member in archive:
            name = PurePosixPath(member.name)
            if member.isreg() and not member.issparse() and name.suffix.lower() in PICTURE_SUFFIXES:
                places[name.name.partition(".")[0]] = member.offset_data, member.size
    return places
