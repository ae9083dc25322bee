"""A contact sheet: one line an image, what was seen beside what was made of the brain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from index_builder.embeddings.artefact import atomic_write

CELL = 160  # pixels
_GAP, _HEAD = 8, 28
_PAPER, _INK, _ABSENT = (255, 255, 255), (40, 40, 40), (236, 236, 236)


def write_contact_sheet(
    path: Path,
    columns: Sequence[str],
    rows: Sequence[Sequence[Image.Image | None]],
    *,
    side_by_side: int = 1,
) -> None:
    """Write pictures as one PNG.

    Parameters
    ----------
    path : Path
    columns : sequence of str
        Titles, such as ``seen`` and ``reconstructed``.
    rows : sequence of sequences of picture or None
        One of each column an image; None leaves its place gray.
    side_by_side : int
        Images a line.
    """
    if not rows or side_by_side < 1:
        raise ValueError(f"{len(rows)} rows, {side_by_side} side by side: expected at least one.")
    n_lines = -(-len(rows) // side_by_side)
    block = len(columns) * (CELL + _GAP) + 2 * _GAP
    sheet = Image.new("RGB", (side_by_side * block, _HEAD + n_lines * (CELL + _GAP) + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=15)
    for number, row in enumerate(rows):
        line, place = divmod(number, side_by_side)
        for at, (title, picture) in enumerate(zip(columns, row, strict=True)):
            left = place * block + _GAP + at * (CELL + _GAP)
            top = _HEAD + line * (CELL + _GAP)
            if line == 0:
                draw.text((left, 6), title, fill=_INK, font=font)
            if picture is None:
                draw.rectangle((left, top, left + CELL - 1, top + CELL - 1), fill=_ABSENT)
                continue
            sheet.paste(_cell(picture), (left, top))
    with atomic_write(path) as temporary:
        sheet.save(temporary, "PNG", optimize=True)


def _cell(picture: Image.Image) -> Image.Image:
    """Return a picture as a square cell; small ones keep their pixels' edges."""
    if picture.mode in ("RGBA", "LA", "PA"):
        backdrop = Image.new("RGBA", picture.size, (*_PAPER, 255))
        backdrop.alpha_composite(picture.convert("RGBA"))
        picture = backdrop
    grows = min(picture.size) < CELL // 4
    method = Image.Resampling.NEAREST if grows else Image.Resampling.LANCZOS
    return ImageOps.fit(picture.convert("RGB"), (CELL, CELL), method)
