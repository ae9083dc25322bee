from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retrieval.gallery.thumbnails import MAX_BYTES, ThumbnailSheet, encode_thumbnail
from tests.retrieval.images.archives import KINDS, write_archives
from training.subjects.image_store import ImageStore, StoredImage


def decoded(path: Path, n_pixels: int = 64) -> Image.Image:
    return Image.open(BytesIO(encode_thumbnail(path, n_pixels))).convert("RGB")


def test_a_thumbnail_is_the_middle_square(tmp_path: Path) -> None:
    pixels = np.zeros((100, 300, 3), np.uint8)
    pixels[:, 100:200] = (200, 30, 30)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    shown = decoded(tmp_path / "wide.png")
    assert shown.size == (64, 64)
    np.testing.assert_allclose(np.asarray(shown)[4:-4, 4:-4].mean((0, 1)), (200, 30, 30), atol=6)


def test_camera_rotation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:32] = 255
    picture = Image.fromarray(pixels)
    exif = picture.getexif()
    exif[0x0112] = 3  # Orientation: upside down.
    picture.save(tmp_path / "turned.jpg", exif=exif)
    shown = np.asarray(decoded(tmp_path / "turned.jpg"))
    assert shown[:24].mean() < 20 < 235 < shown[-24:].mean()


def test_transparency_becomes_white(tmp_path: Path) -> None:
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert np.asarray(decoded(tmp_path / "clear.png")).min() > 250


def test_a_cut_out_of_a_palette_becomes_white(tmp_path: Path) -> None:
    Image.new("P", (32, 32), 5).save(tmp_path / "clear.gif", transparency=5)
    assert np.asarray(decoded(tmp_path / "clear.gif")).min() > 250


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_the_same_in_an_archive(
    tmp_path: Path, rng: np.random.Generator, kind: str
) -> None:
    picture = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    picture.save(tmp_path / "x.png")
    places = write_archives(tmp_path, picture)
    expected = encode_thumbnail(tmp_path / "x.png", 32)
    assert encode_thumbnail(places[kind], 32) == expected
    stored = StoredImage(ImageStore.open(tmp_path / "stimuli.hdf5"), 1)
    assert encode_thumbnail(stored, 32) == expected


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "I;16"])
def test_every_mode_is_shown(tmp_path: Path, mode: str) -> None:
    name = "picture.tif" if mode == "CMYK" else "picture.png"
    Image.new(mode, (40, 30)).save(tmp_path / name)
    assert decoded(tmp_path / name).size == (64, 64)


def test_the_size_is_bounded_even_for_noise(tmp_path: Path, rng: np.random.Generator) -> None:
    noise = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    assert len(encode_thumbnail(tmp_path / "noise.png", 256)) <= MAX_BYTES


def test_each_file_is_embedded_once(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    sink = BytesIO()
    sheet = ThumbnailSheet(sink)
    names = [sheet.symbol(tmp_path / name) for name in ("a.png", "b.png", "a.png")]
    assert names == ["image-0", "image-1", "image-0"]
    assert sink.getvalue().count(b"<symbol") == 2
    assert sheet.n_unavailable == 0


def test_unreadable_files_are_counted_once_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    Image.new("RGB", (64, 64)).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    write_archives(tmp_path, Image.new("RGB", (8, 8)))
    sink = BytesIO()
    sheet = ThumbnailSheet(sink)
    for name in ("broken.jpg", "absent.jpg", "cut.png", "absent.jpg", "0.tar/b.png"):
        assert sheet.symbol(tmp_path / name) is None
    assert sheet.symbol(None) is None
    assert sheet.n_unavailable == 4
    assert sink.getvalue() == b""
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == [
        f"image not available: {tmp_path / name}"
        for name in ("broken.jpg", "absent.jpg", "cut.png", "0.tar/b.png")
    ]


def test_a_thumbnail_has_a_size() -> None:
    with pytest.raises(ValueError, match="n_pixels is 0, expected at least 1"):
        ThumbnailSheet(BytesIO(), n_pixels=0)
