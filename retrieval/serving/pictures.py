"""Pictures: where those of an index lie, and small copies of them.

Clients name rows, never files. A folder that voxseek wrote knows where its pictures were when they
were embedded, and is believed; the metadata of a foreign folder were written by somebody else, so
that only pictures inside the folder count. What is sent is always decoded and encoded anew: a file
that is no picture can't leave the machine.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps

from index_builder.embeddings.collection import Collection
from training.errors import SubjectError
from training.subjects.image_store import StoredImage

from ..errors import PictureError
from ..images.decoding import decode_picture
from .problems import Problem

LEAST_SIZE, MOST_SIZE = 16, 1024
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
        """Return the file of a row's picture, or None where there is none that may be shown.

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
        # A link may lead on within the folder that is named, and not out of it.
        home = os.path.realpath(os.path.dirname(named)) if folder.details else root
        found = os.path.realpath(named)
        if os.path.commonpath([home, found]) != home or not os.path.isfile(found):
            return None
        return Path(found)


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


def thumbnail(where: Path | StoredImage, size: int) -> bytes:
    """Return a picture as JPEG, its longer side at most ``size`` pixels.

    Raises
    ------
    Problem
        404 if it isn't there any longer, or is no picture.
    """
    try:
        picture = where.open() if isinstance(where, StoredImage) else decode_picture(where)
        return encode_jpeg(picture, size)
    except (PictureError, SubjectError) as error:
        raise Problem(404, "no_picture", "there is no picture that can be shown.") from error
