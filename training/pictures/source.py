"""What a source of pictures is: parts of consecutive pictures, with their metadata."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
from PIL import Image


@dataclass(frozen=True, eq=False)
class PicturePart:
    """Consecutive pictures of a source: what becomes one part of an embedding folder.

    Parameters
    ----------
    metadata : pyarrow.Table
        One row a picture; the same columns in all parts of a source. ``image_path`` is its place.
    open : callable
        Decodes the picture of a row of ``metadata``; raises `PictureError`. Called from threads.
    """

    metadata: pa.Table
    open: Callable[[int], Image.Image]


class PictureSource(Protocol):
    """Where pictures come from.

    Attributes
    ----------
    name : str
        For messages, usually a path.
    n_pictures : int or None
        None where counting them would mean to read everything.
    is_strict : bool
        Whether a picture that can't be read is an error, or is left out.
    """

    name: str
    n_pictures: int | None
    is_strict: bool

    def identity(self, out: Path) -> dict[str, Any]:
        """Return what fixes the rows, JSON-serialisable, and doesn't change if ``out`` moves along.

        Parameters
        ----------
        out : Path
            The folder that paths in the metadata are relative to.
        """
        ...

    def parts(
        self, out: Path, part_rows: int, *, after: Mapping[str, Any] | None
    ) -> Iterator[PicturePart]:
        """Yield parts of at most ``part_rows`` pictures in a fixed order.

        Parameters
        ----------
        out : Path
        part_rows : int
        after : mapping or None
            Metadata of a picture: parts begin after the one that it is in.
        """
        ...


def relative_place(place: Path, out: Path) -> str:
    """Return a place as ``image_path`` has it: relative to ``out``, with forward slashes."""
    return Path(os.path.relpath(place, out)).as_posix()
