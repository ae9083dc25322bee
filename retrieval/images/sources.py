"""PictureSources: where the pictures of an index's rows are looked for."""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from index_builder.embeddings.collection import Collection

from ..errors import PictureError
from .addresses import PUBLIC, Network
from .decoding import decode_picture, open_picture
from .fetching import FetchLimits, fetch_all
from .tar_shards import TarShards

COLUMNS = ("image_path", "key", "url")


@dataclass(frozen=True)
class PictureSources:
    """Files first, then tar shards, then URLs: the first that has a row's picture gives it.

    Parameters
    ----------
    embeddings : Collection
        A path in the column ``image_path`` is relative to the folder of its row, and may go on
        into an archive; see `training.pictures.places`.
    shards : TarShards or None
        Where a picture is found by the column ``key``, or by the name in ``image_path``, which is
        the key in folders that clip-retrieval wrote from shards.
    limits : FetchLimits or None
        None: the column ``url`` isn't used.
    network : Network
    """

    embeddings: Collection
    shards: TarShards | None = None
    limits: FetchLimits | None = None
    network: Network = PUBLIC

    @property
    def seconds(self) -> float:
        """What fetching the pictures of one query may take."""
        return self.limits.seconds_in_all if self.limits is not None else 0.0

    def columns(self, available: Sequence[str]) -> tuple[str, ...]:
        """Return the metadata columns that are needed, of those available.

        Raises
        ------
        PictureError
            If there is none by which a picture could be found.
        """
        useful = ["image_path"]
        useful += ["key"] if self.shards is not None else []
        useful += ["url"] if self.limits is not None else []
        found = tuple(name for name in COLUMNS if name in useful and name in available)
        if not found:
            raise PictureError(
                "no column",
                f"pictures are looked for by {', '.join(useful)}, and the index has the columns "
                f"{', '.join(available) or 'none'}. URLs are fetched with --fetch, shards read "
                f"with --shards DIR.",
            )
        return found

    def get(
        self, rows: Sequence[int], facts: Sequence[Mapping[str, Any]], *, seconds: float
    ) -> list[Image.Image | PictureError]:
        """Return the picture of each row, or why it can't be had.

        Parameters
        ----------
        rows : sequence of int
            Of the index.
        facts : sequence of mapping
            Metadata of each: what `columns` names.
        seconds : float
            For fetching all of them; ``limits.seconds_in_all`` stands if it is less.
        """
        found = [self._at_hand(row, fact) for row, fact in zip(rows, facts, strict=True)]
        if self.limits is None:
            return found
        elsewhere = [
            number
            for number, picture in enumerate(found)
            if isinstance(picture, PictureError) and facts[number].get("url")
        ]
        bounded = dataclasses.replace(
            self.limits, seconds_in_all=min(seconds, self.limits.seconds_in_all)
        )
        urls = [str(facts[number]["url"]) for number in elsewhere]
        contents = fetch_all(urls, bounded, network=self.network)
        for number, url, content in zip(elsewhere, urls, contents, strict=True):
            found[number] = content if isinstance(content, PictureError) else _decode(content, url)
        return found

    def _at_hand(self, row: int, fact: Mapping[str, Any]) -> Image.Image | PictureError:
        """Return a row's picture from a file or a shard, or why the last of them hasn't got it."""
        picture: Image.Image | PictureError = PictureError(
            "nowhere to look", f"row {row} names neither a file nor a shard that was given."
        )
        path = fact.get("image_path")
        folder = self.embeddings.folders[bisect_right(self.embeddings.row_starts, row) - 1]
        if path and folder.is_local:
            picture = _open(Path(folder.path, str(path)))
        if isinstance(picture, PictureError) and self.shards is not None:
            key = fact.get("key") or (PurePosixPath(str(path)).stem if path else None)
            if key:
                picture = self._from_shard(self.shards, str(key))
        return picture

    def _from_shard(self, shards: TarShards, key: str) -> Image.Image | PictureError:
        try:
            return _decode(shards.read(key), f"{key!r} of {shards.folder}")
        except PictureError as error:
            return error


def _open(path: Path) -> Image.Image | PictureError:
    try:
        return open_picture(path)
    except PictureError as error:
        return error


def _decode(content: bytes, where: str) -> Image.Image | PictureError:
    try:
        return decode_picture(content, where=where)
    except PictureError as error:
        return error
