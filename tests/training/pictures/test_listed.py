from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from training.encoders.pixels import PixelEncoder
from training.errors import SourceError, TargetsError
from training.pictures.errors import PictureError
from training.pictures.opening import open_source
from training.pictures.places import open_place
from training.subjects.image_store import ImageStore
from training.subjects.subject import write_subject
from training.subjects.trials import build_trials
from training.targets import embed_pictures

from .conftest import HTML, picture_bytes, write_tar


@pytest.fixture
def store(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Five pictures as NSD stores them."""
    with h5py.File(tmp_path / "stimuli.hdf5", "w") as file:
        file["imgBrick"] = rng.integers(0, 256, (5, 12, 12, 3), dtype=np.uint8)
    return tmp_path / "stimuli.hdf5"


def test_a_store_alone_gives_one_row_a_picture(store: Path, tmp_path: Path) -> None:
    encoder = PixelEncoder(4)
    folder = embed_pictures(open_source(store), tmp_path / "out", encoder, part_rows=2)
    with h5py.File(store) as file:
        pixels = file["imgBrick"][:]
    rows = folder.metadata().to_pydict()
    assert rows["image_id"] == [0, 1, 2, 3, 4]
    assert rows["image_path"][3] == "../stimuli.hdf5/imgBrick/3"
    np.testing.assert_array_equal(open_place(tmp_path / "out" / rows["image_path"][3]), pixels[3])
    expected = encoder.encode(
        np.stack([encoder.prepare(ImageStore.open(store).read(row)) for row in range(5)])
    )
    np.testing.assert_allclose(folder.take(np.arange(5)), expected, atol=1e-3)


def test_unit_floats_of_a_store_are_read_too(tmp_path: Path, rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 256, (2, 12, 12, 3), dtype=np.uint8)
    with h5py.File(tmp_path / "coco.hdf5", "w") as file:
        file["images"] = (pixels.transpose(0, 3, 1, 2) / 255).astype(np.float16)
    found = np.asarray(open_place(tmp_path / "coco.hdf5" / "images" / "1"))
    np.testing.assert_array_equal(found, pixels[1])


def test_a_subject_whose_pictures_stay_in_a_store(store: Path, tmp_path: Path) -> None:
    shown = np.array([1, 3, 4])
    splits = {1: "train", 3: "validation", 4: "test"}
    write_subject(
        tmp_path / "subject",
        name="subj01",
        voxels=np.ones((3, 2), np.float32),
        trials=build_trials(shown, np.zeros(3, np.int64), splits),
        rois={},
        images=ImageStore.open(store),
        command="a test",
        details={},
    )
    source = open_source(tmp_path / "subject")
    folder = embed_pictures(source, tmp_path / "out", PixelEncoder(4))
    assert folder.metadata().to_pydict()["image_id"] == [1, 3, 4]
    store.unlink()
    with pytest.raises(TargetsError, match=r"stimuli\.hdf5.* Replace or remove it; parts embedded"):
        embed_pictures(source, tmp_path / "again", PixelEncoder(4))


def test_places_that_a_store_does_not_have(store: Path) -> None:
    for inside, reason in (
        ("imgBrick/5", "damaged store"),
        ("images/0", "no such row"),
        ("imgBrick/x", "no such row"),
    ):
        with pytest.raises(PictureError, match=r"stimuli\.hdf5") as found:
            open_place(store / inside)
        assert found.value.reason == reason


def test_a_place_in_a_shard(tmp_path: Path, rng: np.random.Generator) -> None:
    shard = write_tar(tmp_path / "0.tar", {"a/b.png": picture_bytes(rng), "a/b.txt": b"words"})
    assert open_place(shard / "a" / "b.png").size == (12, 12)
    for name in ("a/c.png", "a/b.txt"):
        with pytest.raises(PictureError, match=rf"0\.tar holds no picture '{name}'"):
            open_place(shard / name)


def test_what_holds_no_pictures_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    with pytest.raises(TargetsError, match="absent is not there; expected a folder"):
        open_source(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TargetsError, match="empty holds no pictures; looked for files ending in"):
        open_source(tmp_path / "empty")
    (tmp_path / "notes.txt").write_text("words")
    with pytest.raises(TargetsError, match=r"notes\.txt is not a folder, and no file of many"):
        open_source(tmp_path / "notes.txt")
    (tmp_path / "page.hdf5").write_bytes(HTML)
    with pytest.raises(SourceError, match=r"page\.hdf5 is a web page saved under the name"):
        open_source(tmp_path / "page.hdf5")
    write_tar(tmp_path / "both" / "0.tar", {"a.png": picture_bytes(rng)})
    (tmp_path / "both" / "a.png").write_bytes(picture_bytes(rng))
    with pytest.raises(TargetsError, match="both holds pictures and 1 tar shards; expected one"):
        open_source(tmp_path / "both")
