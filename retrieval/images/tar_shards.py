"""Pictures in tar shards, as img2dataset and webdataset write them: found by key, never unpacked.

A shard ``00012.tar`` holds ``000120345.jpg`` beside its caption and JSON; the key of the sample
begins with the name of its shard.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from training.pictures.tar_files import Member, list_members, read_member

from ..errors import PictureError

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
        member = self._members(shard).get(key)
        if member is None:
            raise PictureError("not in its shard", f"{shard} holds no picture {key!r}.")
        return read_member(shard, member)


def _list_pictures(shard: Path) -> dict[str, Member]:
    """Return the picture of each key of a shard; reads the headers alone."""
    pictures: dict[str, Member] = {}
    for member in list_members(shard):
        if member.is_picture:
            pictures.setdefault(member.key, member)
    return pictures
