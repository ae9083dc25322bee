from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from training.errors import SourceError, SplitError
from training.subjects.arrays import import_arrays
from training.subjects.subject import Subject

N_IMAGES, N_TRIALS, N_VOXELS = 20, 60, 7


@pytest.fixture
def source(tmp_path: Path, rng: np.random.Generator) -> Path:
    """voxels.npy and a folder of pictures; the tests write the trials."""
    np.save(tmp_path / "voxels.npy", rng.standard_normal((N_TRIALS, N_VOXELS)).astype(np.float32))
    (tmp_path / "pictures").mkdir()
    for image_id in range(N_IMAGES):
        pixels = rng.integers(0, 255, size=(8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"pictures/{image_id:05d}.png")
    return tmp_path


def trial_columns(**changes: Any) -> pa.Table:
    columns: dict[str, Any] = {"image_id": np.tile(np.arange(N_IMAGES), 3)} | changes
    return pa.table({name: value for name, value in columns.items() if value is not None})


def run(source: Path, table: pa.Table, *, suffix: str = "parquet", **options: Any) -> Subject:
    path = source / f"trials.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, path)
    else:
        delimiter = "\t" if suffix == "tsv" else ","
        pa_csv.write_csv(table, path, pa_csv.WriteOptions(delimiter=delimiter))
    arguments = {"voxels": source / "voxels.npy", "images": source / "pictures", "name": "me"}
    return import_arrays(source / "subject", trials=path, **arguments | options)


@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv"])
def test_a_table_with_images_alone_is_completed(source: Path, suffix: str) -> None:
    subject = run(
        source, trial_columns(), suffix=suffix, test_fraction=0.25, validation_fraction=0.2
    )
    np.testing.assert_array_equal(subject.voxels, np.load(source / "voxels.npy"))
    assert subject.trials["repeat"].to_pylist() == [0] * 20 + [1] * 20 + [2] * 20
    assert set(subject.trials["session"].to_pylist()) == {0}
    assert [len(subject.image_ids(s)) for s in ("train", "validation", "test")] == [12, 3, 5]
    assert subject.image(3).read_bytes() == (source / "pictures/00003.png").read_bytes()


def test_given_columns_are_kept_and_validation_is_cut_from_training(source: Path) -> None:
    split = np.where(np.tile(np.arange(N_IMAGES), 3) < 6, "test", "train")
    session = np.repeat([4, 5, 6], 20)
    subject = run(
        source,
        trial_columns(split=split, session=session, repeat=np.repeat([0, 1, 2], 20)),
        validation_fraction=0.5,
    )
    assert subject.image_ids("test").tolist() == list(range(6))
    assert len(subject.image_ids("validation")) == 7 and len(subject.image_ids("train")) == 7
    np.testing.assert_array_equal(subject.trials["session"], session)


def test_a_given_validation_split_is_left_alone(source: Path) -> None:
    by_image = np.array(["test"] * 5 + ["validation"] * 2 + ["train"] * 13)
    subject = run(source, trial_columns(split=np.tile(by_image, 3)), validation_fraction=0.5)
    assert subject.image_ids("validation").tolist() == [5, 6]


def test_pictures_by_table_with_captions(source: Path) -> None:
    table = pa.table(
        {
            "image_id": range(N_IMAGES),
            "path": [f"pictures/{N_IMAGES - 1 - i:05d}.png" for i in range(N_IMAGES)],
            "caption": [f"number {i}" for i in range(N_IMAGES)],
        }
    )
    pa_csv.write_csv(table, source / "pictures.csv")
    subject = run(source, trial_columns(), images=source / "pictures.csv")
    assert subject.captions()[4] == "number 4"
    assert subject.image(0).read_bytes() == (source / "pictures/00019.png").read_bytes()


def test_fortran_order_and_no_pictures(source: Path) -> None:
    voxels = np.load(source / "voxels.npy")
    np.save(source / "voxels.npy", np.asfortranarray(voxels.astype(np.float64)))
    subject = run(source, trial_columns(), images=None)
    np.testing.assert_array_equal(subject.voxels, voxels)
    assert not subject.has_images


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id": np.tile(np.arange(N_IMAGES), 2)}, "has 60 rows and .*parquet has 40"),
        (
            {"image_id": np.tile(np.arange(N_IMAGES), 3) + 1},
            "no picture of image 20 .*count images from 1 and the pictures from 0: subtract 1",
        ),
        ({"image_id": np.tile(np.arange(N_IMAGES), 3) + 500}, "no picture of image 500"),
        ({"image_id": np.repeat(-1, N_TRIALS)}, "row 0: image_id is -1, expected at least 0"),
        ({"image_id": np.linspace(0, 1, N_TRIALS)}, "column image_id holds double"),
        ({"repeat": np.repeat([1, 2, 3], 20)}, "seem to count from 1: subtract 1"),
        ({"repeat": np.repeat([0, 2, 1], 20)}, "row 20: repeat is 2, expected 1"),
        ({"repeat": np.repeat([0, 1, 1], 20)}, "image 0 has repeat 1 more than once"),
        ({"image_id": None, "session": np.zeros(N_TRIALS)}, "expected image_id among them"),
        ({"session": [None, *range(N_TRIALS - 1)]}, "row 0: session is empty"),
    ],
)
def test_wrong_tables_are_explained(source: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        run(source, trial_columns(**changes))


def test_a_split_column_may_not_divide_an_image(source: Path) -> None:
    with pytest.raises(SplitError, match=r"image 0 is in the splits test and train"):
        run(source, trial_columns(split=["test"] * 10 + ["train"] * 50))


def test_a_transposed_array_is_recognised(source: Path) -> None:
    np.save(source / "voxels.npy", np.load(source / "voxels.npy").T)
    with pytest.raises(SourceError, match=r"looks transposed"):
        run(source, trial_columns())


def test_pickles_and_other_files_are_refused(source: Path) -> None:
    np.save(source / "voxels.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(SourceError, match=r"pickled and object arrays are never loaded"):
        run(source, trial_columns())
    np.savez(source / "voxels.npz", a=np.zeros(3))
    with pytest.raises(SourceError, match=r"is an npz archive"):
        run(source, trial_columns(), voxels=source / "voxels.npz")
    np.save(source / "voxels.npy", np.zeros((N_TRIALS, 2), dtype=complex))
    with pytest.raises(SourceError, match=r"holds complex128 of shape \(60, 2\)"):
        run(source, trial_columns())
    np.save(source / "voxels.npy", np.zeros((N_TRIALS, 2)))
    with pytest.raises(SourceError, match=r"ends in '.txt', expected .csv, .tsv or .parquet"):
        import_arrays(
            source / "s", voxels=source / "voxels.npy", trials=source / "trials.txt", name="x"
        )


def test_two_pictures_of_an_image_are_refused(source: Path) -> None:
    (source / "pictures/3.png").write_bytes((source / "pictures/00004.png").read_bytes())
    with pytest.raises(SourceError, match=r"two pictures of image 3: 00003.png and 3.png"):
        run(source, trial_columns())


def test_some_image_is_always_left_for_training(source: Path) -> None:
    subject = run(source, trial_columns(), test_fraction=0.9, validation_fraction=0.9)
    assert [len(subject.image_ids(s)) for s in ("train", "validation", "test")] == [1, 1, 18]


def test_a_picture_table_needs_a_path(source: Path) -> None:
    pa_csv.write_csv(pa.table({"image_id": [0], "file": ["a.png"]}), source / "pictures.csv")
    with pytest.raises(SourceError, match=r"columns \['image_id', 'file'\], expected path among"):
        run(source, trial_columns(), images=source / "pictures.csv")


def test_fractions_are_checked(source: Path) -> None:
    with pytest.raises(ValueError, match=r"test_fraction is 1.5"):
        run(source, trial_columns(), test_fraction=1.5)
