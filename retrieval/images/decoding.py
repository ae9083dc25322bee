"""One way to a picture, wherever it is; all are decoded by `training.pictures`, under suspicion."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from PIL import Image

from training.errors import SourceError
from training.pictures.decoding import PICTURE_SUFFIXES, TOO_LARGE, decode_picture
from training.pictures.places import open_place
from training.subjects.image_store import StoredImage

from ..errors import PictureError

__all__ = ["PICTURE_SUFFIXES", "TOO_LARGE", "Place", "decode_picture", "open_picture"]

# A path, which may go on into an archive (see `training.pictures.places`); or a row of a subject's
# store.
Place: TypeAlias = Path | StoredImage


def open_picture(where: Place) -> Image.Image:
    """Decode the picture at a place; safe to call from threads.

    Raises
    ------
    PictureError
        If there is none, or it can't be read.
    MissingExtraError
        If it is in an HDF5 file, and h5py is absent.
    """
    try:
        return where.open() if isinstance(where, StoredImage) else open_place(where)
    except SourceError as error:
        raise PictureError("damaged store", str(error)) from error
    except OSError as error:
        raise PictureError("no such file", f"{where} can't be reached: {error}") from error
