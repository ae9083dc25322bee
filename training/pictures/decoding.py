"""Bytes to pixels: what a picture may be, and what is refused before it is decoded."""

from __future__ import annotations

import errno
import os
import struct
from io import BytesIO

from PIL import Image

from .errors import PictureError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
PICTURE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# A phone's photograph has 12 to 50 million pixels; three bytes each, decoded.
MAX_PIXELS = 64 << 20
NOT_A_PICTURE = "not a picture"
TOO_LARGE = "too large"
_OUT_OF_REACH = (errno.ENAMETOOLONG, errno.EACCES, errno.ELOOP)


def decode_picture(
    content: bytes | str | os.PathLike[str], *, where: str = "", max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode the first frame of a picture, in memory and apart from its file.

    Parameters
    ----------
    content : bytes, or path
    where : str
        What to call the picture in messages; a path names itself.
    max_pixels : int
        Strict limit, compared with the size that the header declares, before decoding.

    Returns
    -------
    picture : PIL.Image.Image
        Never of a palette with transparency: such a one is RGBA.

    Raises
    ------
    PictureError
        If it is missing, in no format of `FORMATS`, damaged, or has more pixels.
    """
    if not isinstance(content, bytes):
        where = os.fspath(content)
    try:
        # An explicit list keeps out what Pillow hands to other programs, such as PostScript.
        source = BytesIO(content) if isinstance(content, bytes) else content
        with Image.open(source, formats=FORMATS) as opened:
            n_pixels = opened.width * opened.height
            if n_pixels > max_pixels:
                raise PictureError(
                    TOO_LARGE,
                    f"{where} has {opened.width} x {opened.height} pixels; at most "
                    f"{max_pixels / 1e6:.1f} million are decoded. Reduce it.",
                )
            opened.load()
            is_cut_out = opened.mode == "P" and "transparency" in opened.info
            return opened.convert("RGBA") if is_cut_out else opened.copy()
    except FileNotFoundError as error:
        raise PictureError("no such file", f"{where} doesn't exist.") from error
    except OSError as error:
        if error.errno in _OUT_OF_REACH:
            raise PictureError("no such file", f"{where} can't be reached: {error}") from error
        raise _not_a_picture(where, error) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError(TOO_LARGE, f"{where} is too large to decode: {error}") from error
    except (ValueError, SyntaxError, EOFError, struct.error, MemoryError) as error:
        # Pillow reports damage in any of these and in OSError, by format.
        raise _not_a_picture(where, error) from error


def _not_a_picture(where: str, error: Exception) -> PictureError:
    return PictureError(
        NOT_A_PICTURE,
        f"{where} can't be read as a picture: {error}. Expected one of {', '.join(FORMATS)}.",
    )
