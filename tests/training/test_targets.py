from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from index_builder.embeddings.errors import ArtefactError
from training.encoders.pixels import PixelEncoder
from training.errors import TargetsError
from training.pictures.listed import PictureList
from training.targets import count_unreadable, embed_pictures, list_pictures


@pytest.fixture
def pictures(tmp_path: Path, rng: np.random.Generator) -> Path:
    folder = tmp_path / "pictures"
    (folder / "deeper").mkdir(parents=True)
    for name in ("b.png", "a.jpg", "deeper/c.png", "d.png", "e.png"):
        pixels = rng.integers(0, 256, (12, 15, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("not a picture")
    (folder / "captions.csv").write_text("image,caption\nb.png,first\nb.png,second\n")
    return folder


def checksums(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_pictures_are_numbered_in_the_order_of_their_paths(pictures: Path) -> None:
    listed = list_pictures(pictures)
    names = [p.path.relative_to(pictures).as_posix() for p in listed]
    assert names == ["a.jpg", "b.png", "d.png", "deeper/c.png", "e.png"]
    assert [p.image_id for p in listed] == [0, 1, 2, 3, 4]
    assert [p.caption for p in listed] == ["", "first", "", "", ""]


def test_rows_are_the_encoders_own(pictures: Path, tmp_path: Path) -> None:
    encoder = PixelEncoder(side=4)
    folder = embed_pictures(
        list_pictures(pictures), tmp_path / "out", encoder, batch_size=2, part_rows=3
    )
    metadata = folder.metadata().to_pydict()
    expected = []
    for path in metadata["image_path"]:
        with Image.open(tmp_path / "out" / path) as opened:
            expected.append(encoder.encode(encoder.prepare(opened)[None])[0])
    assert metadata["image_id"] == [0, 1, 2, 3, 4]
    assert [part.n_rows for part in folder.parts] == [3, 2]
    np.testing.assert_allclose(folder.take(np.arange(5)), np.stack(expected), atol=1e-3)


class Interrupted(PixelEncoder):
    """An encoder that fails once it has seen four pictures."""

    n_seen = 0

    def encode(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        self.n_seen += len(batch)
        if self.n_seen > 4:
            raise KeyboardInterrupt
        return super().encode(batch)


def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(
    pictures: Path, tmp_path: Path
) -> None:
    listed = list_pictures(pictures)
    embed_pictures(listed, tmp_path / "whole", PixelEncoder(), batch_size=2, part_rows=2)
    with pytest.raises(KeyboardInterrupt):
        embed_pictures(listed, tmp_path / "cut", Interrupted(), batch_size=2, part_rows=2)
    assert not (tmp_path / "cut" / "space.json").exists()
    embed_pictures(listed, tmp_path / "cut", PixelEncoder(), batch_size=2, part_rows=2)
    assert checksums(tmp_path / "cut") == checksums(tmp_path / "whole")


def test_unreadable_pictures_of_a_folder_are_listed(pictures: Path, tmp_path: Path) -> None:
    (pictures / "d.png").write_bytes(b"\x89PNG but not really")
    (pictures / "e.png").write_bytes(b"")
    folder = embed_pictures(list_pictures(pictures), tmp_path / "out", PixelEncoder())
    assert folder.metadata().to_pydict()["image_id"] == [0, 1, 3]
    assert count_unreadable(folder) == 2
    listed = pq.read_table(tmp_path / "out" / "unreadable.parquet").to_pylist()
    assert listed[0] == {
        "image_id": 2,
        "image_path": "../pictures/d.png",
        "caption": "",
        "reason": "not a picture",
    }
    assert listed[1]["image_id"] == 4


def test_an_unreadable_picture_of_a_strict_source_is_named(pictures: Path, tmp_path: Path) -> None:
    (pictures / "d.png").write_bytes(b"\x89PNG but not really")
    listed = PictureList(list_pictures(pictures)[:], "a subject", is_strict=True)
    with pytest.raises(TargetsError, match=r"d\.png can't be read as a picture.*Replace or remove"):
        embed_pictures(listed, tmp_path / "out", PixelEncoder())


def test_parts_of_another_size_are_not_continued(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        embed_pictures(list_pictures(pictures), tmp_path / "out", Interrupted(), part_rows=2)
    with pytest.raises(ArtefactError, match=r"part_rows: 2 there, 3 now"):
        embed_pictures(list_pictures(pictures), tmp_path / "out", PixelEncoder(), part_rows=3)


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetsError, match="holds no pictures"):
        list_pictures(tmp_path)
    with pytest.raises(TargetsError, match="is not a folder"):
        list_pictures(tmp_path / "absent")


def test_captions_of_absent_pictures_are_refused(pictures: Path) -> None:
    (pictures / "captions.csv").write_text("image,caption\nzebra.png,a zebra\n")
    with pytest.raises(TargetsError, match=r"has a caption for 'zebra\.png'"):
        list_pictures(pictures)
    (pictures / "captions.csv").write_text("file,text\nb.png,a\n")
    with pytest.raises(TargetsError, match="expected `image` and `caption`"):
        list_pictures(pictures)
