from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from retrieval.benchmarks.reconstruction.pictures import (
    mean_picture,
    open_folder,
    open_seen,
    require_same_images,
)
from retrieval.errors import BenchmarkError, PictureError
from training.subjects.subject import Subject, write_subject
from training.subjects.trials import build_trials


@pytest.fixture
def subject(tmp_path: Path, draw_pictures, write_pictures) -> Subject:
    folder = write_pictures(draw_pictures(4), "stimuli")
    image_ids = np.array([0, 3, 6, 9, 0])
    splits = {0: "train", 3: "train", 6: "test", 9: "test"}
    return write_subject(
        tmp_path / "subject",
        name="subj01",
        voxels=np.zeros((5, 2), np.float32),
        trials=build_trials(image_ids, np.zeros(5, np.int64), splits),
        rois={},
        images=pa.table(
            {
                "image_id": [0, 3, 6, 9],
                "path": [str(folder / f"{image_id}.png") for image_id in (0, 3, 6, 9)],
                "caption": pa.nulls(4, pa.string()),
            }
        ),
        command="test",
        details={},
    )


def test_pictures_are_read_by_image_id_in_numerical_order(draw_pictures, write_pictures) -> None:
    drawn = draw_pictures(5)
    pictures = open_folder(write_pictures(drawn, "a"))
    assert pictures.image_ids.tolist() == [0, 3, 6, 9, 12]
    read = pictures.read(np.array([4, 1]), "plain")
    assert read.shape == (2, 3, 256, 256)
    assert read.dtype == np.float32
    levels = np.asarray(drawn[12])[0, 0] / 255
    np.testing.assert_allclose(read[0, :, 0, 0], levels, atol=1e-6)


def test_the_folder_images_counts_and_other_files_are_left_alone(
    tmp_path: Path, draw_pictures, write_pictures
) -> None:
    write_pictures(draw_pictures(2), "run/images")
    (tmp_path / "run" / "samples.json").write_text("{}")
    (tmp_path / "run" / "images" / "notes.txt").write_text("")
    assert open_folder(tmp_path / "run").image_ids.tolist() == [0, 3]


def test_the_fingerprint_is_of_names_and_content(draw_pictures, write_pictures) -> None:
    drawn = draw_pictures(3)
    first = open_folder(write_pictures(drawn, "a"))
    assert open_folder(write_pictures(drawn, "b")).fingerprint == first.fingerprint
    drawn[3] = drawn[0]
    assert open_folder(write_pictures(drawn, "c")).fingerprint != first.fingerprint


def test_gray_and_transparent_pictures_are_read_too(tmp_path: Path) -> None:
    Image.new("L", (9, 9), 51).save(tmp_path / "1.png")
    Image.new("RGBA", (9, 9), (255, 0, 51, 255)).save(tmp_path / "2.webp", lossless=True)
    read = open_folder(tmp_path).read(np.array([0, 1]), "plain")
    np.testing.assert_allclose(read[:, :, 7, 7], [[0.2, 0.2, 0.2], [1, 0, 0.2]], atol=1e-6)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "holds no pictures; expected files that are named by image_id"),
        (["zebra.png"], "zebra.png is not named by an image_id; expected a whole number"),
        (["-1.png"], "-1.png is not named by an image_id"),
        (["4.png", "04.png"], "two pictures of image_id 4, 04.png and 4.png; expected one"),
    ],
)
def test_a_folder_that_does_not_say_what_is_what(tmp_path: Path, names, message) -> None:
    for name in names:
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    with pytest.raises(BenchmarkError, match=message):
        open_folder(tmp_path)


def test_a_file_is_no_folder_and_a_text_no_picture(tmp_path: Path) -> None:
    (tmp_path / "3.png").write_text("<html>")
    with pytest.raises(BenchmarkError, match=r"3.png is not a folder; expected one of pictures"):
        open_folder(tmp_path / "3.png")
    with pytest.raises(PictureError, match=r"3.png can't be read as a picture"):
        open_folder(tmp_path).read(np.array([0]), "plain")


def test_a_subject_gives_the_pictures_of_the_split(subject: Subject) -> None:
    seen, opened = open_seen(subject.path, "test")
    assert opened is not None
    assert seen.image_ids.tolist() == [6, 9]
    expected = open_folder(subject.path.parent / "stimuli")
    np.testing.assert_array_equal(
        seen.read(np.array([1]), "plain"), expected.read(np.array([3]), "plain")
    )
    with pytest.raises(BenchmarkError, match="has no images of the split 'validation'"):
        open_seen(subject.path, "validation")


def test_a_subject_without_pictures(tmp_path: Path) -> None:
    write_subject(
        tmp_path,
        name="subj01",
        voxels=np.zeros((2, 2), np.float32),
        trials=build_trials(np.array([1, 2]), np.zeros(2, np.int64), {1: "train", 2: "test"}),
        rois={},
        images=None,
        command="test",
        details={},
    )
    with pytest.raises(BenchmarkError, match="has no pictures, so there is nothing to compare"):
        open_seen(tmp_path, "test")


def test_missing_and_superfluous_reconstructions_are_named(draw_pictures, write_pictures) -> None:
    drawn = draw_pictures(9)
    seen = open_folder(write_pictures(drawn, "seen"))
    fewer = {image_id: picture for image_id, picture in drawn.items() if image_id not in (6, 21)}
    with pytest.raises(
        BenchmarkError, match=r"made has no reconstruction of image_id 6, 21 of the 9 seen .*seen\)"
    ):
        require_same_images(open_folder(write_pictures(fewer, "made")), seen)
    more = drawn | {image_id: drawn[0] for image_id in range(100, 107)}
    with pytest.raises(
        BenchmarkError, match="a reconstruction of image_id 100, 101, 102, 103, 104 and 2 more, wh"
    ):
        require_same_images(open_folder(write_pictures(more, "more")), seen)
    one = open_folder(write_pictures({3: drawn[3]}, "one"))
    with pytest.raises(BenchmarkError, match="one has 1 picture, expected at least 2"):
        require_same_images(one, one)


def test_the_mean_picture_is_the_mean(draw_pictures, write_pictures) -> None:
    pictures = open_folder(write_pictures(draw_pictures(4), "a"))
    mean = mean_picture(pictures, "plain")
    assert len(mean) == 1
    expected = pictures.read(np.arange(4), "plain").mean(axis=0)
    np.testing.assert_allclose(mean.read(np.array([0]), "plain")[0], expected, atol=0.51 / 255)
