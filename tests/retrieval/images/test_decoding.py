from __future__ import annotations

import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retrieval.errors import PictureError
from retrieval.images.decoding import decode_picture

from .conftest import picture_bytes


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "GIF", "JPEG", "WEBP"])
def test_bytes_and_files_decode_alike(form: str, rng: np.random.Generator, tmp_path: Path) -> None:
    content = picture_bytes(rng, form)
    (tmp_path / "picture").write_bytes(content)
    expected = np.asarray(Image.open(BytesIO(content)).convert("RGB"))
    for source in (content, tmp_path / "picture"):
        decoded = decode_picture(source, where="it").convert("RGB")
        np.testing.assert_array_equal(np.asarray(decoded), expected)


def test_a_palette_with_transparency_decodes_without_a_warning() -> None:
    buffer = BytesIO()
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([0, 0, 0, 200, 10, 30])
    picture.save(buffer, "PNG", transparency=b"\x00\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = decode_picture(buffer.getvalue(), where="it").convert("RGB")
    assert decoded.getpixel((2, 2)) == (200, 10, 30)


def _png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))


@pytest.mark.parametrize("side", [9_000, 11_000, 40_000])
def test_a_bomb_is_refused_by_its_header(side: int) -> None:
    with pytest.raises(PictureError, match=r"a bomb (has 9000 x 9000|is too large)") as found:
        decode_picture(_png_that_claims(side, side), where="a bomb")
    assert found.value.reason == "too large"


def test_the_limit_is_strict(png: bytes) -> None:
    assert decode_picture(png, where="it", max_pixels=24 * 24).size == (24, 24)
    with pytest.raises(PictureError, match="it has 24 x 24 pixels"):
        decode_picture(png, where="it", max_pixels=24 * 24 - 1)


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>not found</html>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"],
    ids=["empty", "html", "postscript"],
)
def test_what_is_no_picture_is_refused(content: bytes) -> None:
    with pytest.raises(PictureError, match=r"it can't be read as a picture.*Expected one") as found:
        decode_picture(content, where="it")
    assert found.value.reason == "not a picture"


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_half_a_picture_is_refused(form: str, rng: np.random.Generator) -> None:
    content = picture_bytes(rng, form, side=60)
    with pytest.raises(PictureError, match="can't be read as a picture"):
        decode_picture(content[: len(content) // 2], where="it")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"nowhere\.png doesn't exist") as found:
        decode_picture(tmp_path / "nowhere.png")
    assert found.value.reason == "no such file"
