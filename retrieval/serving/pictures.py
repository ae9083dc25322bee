"""Pictures: where those of an index lie, and small copies of them.

Clients name rows, never files. A folder that voxseek wrote knows where its pictures were when they
were embedded, and is believed; the metadata of a foreign folder were written by somebody else, so
that only pictures inside the folder count, files or in its archives. What is sent is always decoded
and encoded anew: a file that is no picture can't leave the machine. The rows of an HDF5 file are
pixels whatever they were, and its datasets may be bytes of other files; such are shown of our own
folders alone.
"""

from __future__ import annotations

import logging
import os
from bisect import bisect_right
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps

from index_builder.embeddings.collection import Collection
from index_builder.embeddings.errors import MissingExtraError
from training.pictures.parquet_files import PARQUET_SUFFIXES
from training.pictures.places import STORE_SUFFIXES, TAR_SUFFIXES

from ..errors import PictureError
from ..images.decoding import Place, open_picture
from .problems import Problem

logger = logging.getLogger("voxseek")

LEAST_SIZE, MOST_SIZE = 16, 1024
_ENCODED_SUFFIXES = (*TAR_SUFFIXES, *PARQUET_SUFFIXES)  # whose pictures are files
_QUALITY = 85
_BACKDROP = (255, 255, 255)


class PictureFolders:
    """Finds the picture of a row.

    Parameters
    ----------
    embeddings : Collection
        Whose column ``image_path`` is relative to the folder of the row.
    """

    def __init__(self, embeddings: Collection) -> None:
        self._embeddings = embeddings

    def find(self, row: int, image_path: str | None) -> Path | None:
        """Return the place of a row's picture, or None where there is none that may be shown.

        Archives aren't looked into: whether one holds the picture is found when it is shown.

        Parameters
        ----------
        row : int
        image_path : str or None
            The row's metadata.
        """
        folder = self._embeddings.folders[bisect_right(self._embeddings.row_starts, row) - 1]
        if not image_path or "\0" in image_path or not folder.is_local:
            return None
        root = os.path.realpath(folder.path)
        named = os.path.normpath(os.path.join(root, image_path))
        file, inside = _split(named)
        # A link may lead on within the folder that is named, and not out of it.
        home = os.path.realpath(os.path.dirname(file)) if folder.details else root
        found = os.path.realpath(file)
        if os.path.commonpath([home, found]) != home or not os.path.isfile(found):
            return None
        archives = _ENCODED_SUFFIXES + (STORE_SUFFIXES if folder.details else ())
        if inside and not found.lower().endswith(archives):
            return None
        return Path(found, inside)


def _split(place: str) -> tuple[str, str]:
    """Split a place into the file that it names or goes through, and the rest, in that file."""
    file = place
    while not os.path.isfile(file) and file != os.path.dirname(file):
        file = os.path.dirname(file)
    return file, place[len(file) :].lstrip(os.sep)


def encode_jpeg(picture: Image.Image, size: int) -> bytes:
    """Return a picture as JPEG, upright, its longer side at most ``size`` pixels."""
    upright = ImageOps.exif_transpose(picture)
    if upright.mode in ("RGBA", "LA", "PA"):
        backdrop = Image.new("RGBA", upright.size, (*_BACKDROP, 255))
        backdrop.alpha_composite(upright.convert("RGBA"))
        upright = backdrop
    shown = upright.convert("RGB")
    shown.thumbnail((size, size), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    shown.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def thumbnail(where: Place, size: int) -> bytes:
    """Return a picture as JPEG, its longer side at most ``size`` pixels.

    Raises
    ------
    Problem
        404 if it isn't there any longer, or is no picture.
    """
    try:
        return encode_jpeg(open_picture(where), size)
    except (PictureError, MissingExtraError) as error:
        if isinstance(error, MissingExtraError):
            logger.warning("%s", error)
        raise Problem(404, "no_picture", "there is no picture that can be shown.") from error
