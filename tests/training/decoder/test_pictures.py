from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.writer import EmbeddingWriter
from training.decoder.pictures import gather_pictures, picture_digests, square_bytes
from training.errors import RunError, SplitError

Maker = Callable[..., Any]
SIDE = 8


def shown(lab: Any, image_ids: np.ndarray) -> np.ndarray:
    """Return the left and right colors that pictures of these ids must have."""
    return lab.colors[np.searchsorted(lab.image_ids, image_ids)]


@pytest.mark.parametrize("way", ["images", "excluded"])
def test_test_images_never_enter_and_validation_images_are_held_out(
    make_lab: Maker, way: str
) -> None:
    lab = make_lab(n_train=20, n_validation=5, n_test=7)
    given = {"images": lab.subject} if way == "images" else {"excluded": [lab.subject]}
    pictures = gather_pictures(lab.targets, SIDE, **given)
    np.testing.assert_array_equal(pictures.image_ids, lab.subject.image_ids("train"))
    np.testing.assert_array_equal(pictures.validation_ids, lab.subject.image_ids("validation"))
    assert (pictures.n_excluded, pictures.n_copies) == (7, 0)
    assert [subject["name"] for subject in pictures.excluded] == ["lab"]
    for ids, pixels in (
        (pictures.image_ids, pictures.pixels),
        (pictures.validation_ids, pictures.validation_pixels),
    ):
        np.testing.assert_array_equal(pixels[:, 3, 0], shown(lab, ids)[:, :3])
        np.testing.assert_array_equal(pixels[:, 3, -1], shown(lab, ids)[:, 3:])


def test_a_copy_of_a_test_image_under_another_number_is_left_out(make_lab: Maker) -> None:
    lab = make_lab(n_train=20, n_validation=5, n_test=7, copies=3)
    pictures = gather_pictures(lab.targets, SIDE, excluded=[lab.subject])
    np.testing.assert_array_equal(pictures.image_ids, lab.subject.image_ids("train")[3:])
    assert pictures.n_copies == 3


def test_without_subjects_every_picture_is_trained_on(make_lab: Maker) -> None:
    lab = make_lab(n_train=6, n_validation=2, n_test=2)
    pictures = gather_pictures(lab.targets, SIDE)
    np.testing.assert_array_equal(pictures.image_ids, lab.image_ids)
    assert not len(pictures.validation_ids) and not pictures.excluded


def test_what_can_not_be_gathered_is_said(make_lab: Maker, tmp_path: Path) -> None:
    lab = make_lab(n_train=6, n_validation=2, n_test=2, with_paths=False)
    with pytest.raises(RunError, match=r"doesn't say where its pictures are: .*--images SUBJECT"):
        gather_pictures(lab.targets, SIDE, excluded=[lab.subject])
    assert len(gather_pictures(lab.targets, SIDE, images=lab.subject).image_ids) == 6
    nameless = tmp_path / "nameless"
    with EmbeddingWriter(nameless, lab.targets.space, command="test", details={}) as writer:
        writer.write(np.eye(3, 24, dtype=np.float16), pa.table({"caption": ["a", "b", "c"]}))
        writer.finish()
    with pytest.raises(RunError, match=r"no metadata column image_id \(it has caption\)"):
        gather_pictures(EmbeddingFolder.open(nameless), SIDE)
    other = make_lab("other", n_train=2, n_validation=0, n_test=8)
    with pytest.raises(SplitError, match=r"image 16 is shown to .* for training or validation"):
        gather_pictures(lab.targets, SIDE, images=lab.subject, excluded=[other.subject])
    tested = make_lab("tested", n_train=0, n_validation=0, n_test=10)
    with pytest.raises(RunError, match=r"has 10 images, and none is left to train on"):
        gather_pictures(tested.targets, SIDE, excluded=[tested.subject])


def test_pictures_are_squared_and_told_apart_by_a_single_bit(rng: np.random.Generator) -> None:
    picture = Image.fromarray(rng.integers(0, 256, (30, 50, 3), dtype=np.uint8))
    squares = np.stack([square_bytes(picture, 16)] * 2)
    assert squares.shape == (2, 16, 16, 3) and squares.dtype == np.uint8
    squares[1, 5, 5, 1] ^= 1
    digests = picture_digests(squares)
    assert digests.shape == (2, 16) and (digests[0] != digests[1]).any()
    np.testing.assert_array_equal(picture_digests(squares[:1])[0], digests[0])
