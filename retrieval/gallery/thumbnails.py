"""Images of a page, each embedded once however often it is found.

The square in the middle of an image is all that a CLIP encoder sees, so that is what is shown.
"""

from __future__ import annotations

import base64
import logging
from io import BytesIO
from typing import IO

from PIL import Image, ImageOps

from ..errors import PictureError
from ..images.decoding import Place, open_picture

logger = logging.getLogger("voxseek")

N_PIXELS = 256
MAX_BYTES = 24 << 10
_QUALITIES = (82, 60, 35, 10)
_BACKDROP = (255, 255, 255)


class ThumbnailSheet:
    """SVG symbols of the images of a page, written as they are first asked for.

    Parameters
    ----------
    sink : binary file
        Takes one ``<symbol>`` an image.
    n_pixels : int
        Side of a thumbnail.

    Attributes
    ----------
    n_unavailable : int
        Images that were asked for and could not be read, each counted once.
    """

    def __init__(self, sink: IO[bytes], *, n_pixels: int = N_PIXELS) -> None:
        if n_pixels < 1:
            raise ValueError(f"n_pixels is {n_pixels}, expected at least 1.")
        self._sink = sink
        self._n_pixels = n_pixels
        self._symbols: dict[Place, str | None] = {}
        self.n_unavailable = 0

    def symbol(self, where: Place | None) -> str | None:
        """Return the name of an image's symbol, or None if there is no image to show."""
        if where is None:
            return None
        if where not in self._symbols:
            self._symbols[where] = self._add(where, f"image-{len(self._symbols)}")
        return self._symbols[where]

    def _add(self, where: Place, name: str) -> str | None:
        try:
            content = encode_thumbnail(where, self._n_pixels)
        except PictureError as error:
            logger.warning("image not available: %s (%s)", where, error)
            self.n_unavailable += 1
            return None
        data = base64.b64encode(content).decode("ascii")
        self._sink.write(
            f'<symbol id="{name}" viewBox="0 0 1 1"><image width="1" height="1" '
            f'href="data:image/webp;base64,{data}"/></symbol>\n'.encode("ascii")
        )
        return name


def encode_thumbnail(where: Place, n_pixels: int) -> bytes:
    """Return the middle square of an image as WebP of at most `MAX_BYTES`, where quality allows.

    Parameters
    ----------
    where : Place
    n_pixels : int
        Side of the result.

    Raises
    ------
    PictureError
        If there is no picture, or it can't be read.
    """
    upright = ImageOps.exif_transpose(open_picture(where))
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        shown = Image.new("RGBA", upright.size, (*_BACKDROP, 255))
        shown.alpha_composite(upright.convert("RGBA"))
        upright = shown
    square = ImageOps.fit(upright.convert("RGB"), (n_pixels, n_pixels), Image.Resampling.LANCZOS)
    for quality in _QUALITIES:
        buffer = BytesIO()
        square.save(buffer, "WEBP", quality=quality, method=4)
        if buffer.tell() <= MAX_BYTES:
            break
    return buffer.getvalue()
