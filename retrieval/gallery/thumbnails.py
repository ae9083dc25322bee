"""Images of a page, each embedded once however often it is found.

The square in the middle of an image is all that a CLIP encoder sees, so that is what is shown.
"""

from __future__ import annotations

import base64
import logging
from io import BytesIO
from pathlib import Path
from typing import IO

from PIL import Image, ImageOps

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
        self._symbols: dict[Path, str | None] = {}
        self.n_unavailable = 0

    def symbol(self, path: Path | None) -> str | None:
        """Return the name of an image's symbol, or None if there is no image to show."""
        if path is None:
            return None
        if path not in self._symbols:
            self._symbols[path] = self._add(path, f"image-{len(self._symbols)}")
        return self._symbols[path]

    def _add(self, path: Path, name: str) -> str | None:
        try:
            content = encode_thumbnail(path, self._n_pixels)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            # Pillow reports a damaged PNG as SyntaxError.
            logger.warning("image not available: %s (%s)", path, error)
            self.n_unavailable += 1
            return None
        data = base64.b64encode(content).decode("ascii")
        self._sink.write(
            f'<symbol id="{name}" viewBox="0 0 1 1"><image width="1" height="1" '
            f'href="data:image/webp;base64,{data}"/></symbol>\n'.encode("ascii")
        )
        return name


def encode_thumbnail(path: Path, n_pixels: int) -> bytes:
    """Return the middle square of an image as WebP of at most `MAX_BYTES`, where quality allows.

    Parameters
    ----------
    path : Path
    n_pixels : int
        Side of the result.
    """
    with Image.open(path) as opened:
        opened.draft("RGB", (2 * n_pixels, 2 * n_pixels))  # JPEG decodes to a fraction of its size.
        upright = ImageOps.exif_transpose(opened)
        if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
            shown = Image.new("RGBA", upright.size, (*_BACKDROP, 255))
            shown.alpha_composite(upright.convert("RGBA"))
            upright = shown
        square = ImageOps.fit(
            upright.convert("RGB"), (n_pixels, n_pixels), Image.Resampling.LANCZOS
        )
    for quality in _QUALITIES:
        buffer = BytesIO()
        square.save(buffer, "WEBP", quality=quality, method=4)
        if buffer.tell() <= MAX_BYTES:
            break
    return buffer.getvalue()
