"""Pictures that stay in an HDF5 file: the same pixels as the file's, and clear refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from training.errors import SourceError, SubjectError
from training.subjects.image_store import ImageStore, StoredImage
from training.subjects.subject import Subject, write_subject
from training.subjects.trials import build_trials

h5py = pytest.importorskip("h5py")
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


def write_store(path: Path, dataset: str = "imgBrick", pixels: NDArray[Any] = PIXELS) -> Path:
    with h5py.File(path, "w") as file:
        file[dataset] = pixels
    return path


def write_folder(folder: Path, store: ImageStore, image_ids: NDArray[np.int64]) -> Subject:
    split = {int(i): "train" for i in image_ids}
    return write_subject(
        folder,
        name="s",
        voxels=np.ones((len(image_ids), 4), dtype=np.float32),
        trials=build_trials(image_ids, np.zeros(len(image_ids), dtype=np.int64), split),
        rois={},
        images=store,
        voxel_table=pa.table({"x": range(4)}),
        command="test",
        details={},
    )


def test_nsd_stimuli_give_their_pixels(tmp_path: Path) -> None:
    store = ImageStore.open(write_store(tmp_path / "nsd_stimuli.hdf5"))
    assert store.n_images == 6
    np.testing.assert_array_equal(np.asarray(store.read(4)), PIXELS[4])


def test_mindeye2_images_give_the_same_pixels(tmp_path: Path) -> None:
    unit = (PIXELS.transpose(0, 3, 1, 2) / 255).astype(np.float16)
    store = ImageStore.open(write_store(tmp_path / "coco.hdf5", "images", unit))
    np.testing.assert_array_equal(np.asarray(store.read(4)), PIXELS[4])


def test_a_subject_refers_to_its_store(tmp_path: Path) -> None:
    store = ImageStore.open(write_store(tmp_path / "nsd_stimuli.hdf5"))
    write_folder(tmp_path / "subject", store, np.array([5, 2, 5]))
    subject = Subject.open(tmp_path / "subject")
    assert subject.has_images and not (tmp_path / "subject" / "images").exists()
    np.testing.assert_array_equal(np.asarray(subject.open_image(5)), PIXELS[5])
    assert subject.image(2) == StoredImage(store, 2)
    subject.verify()
    table = subject.voxel_table()
    assert table is not None and table["x"].to_pylist() == [0, 1, 2, 3]


def test_a_store_that_is_gone_names_its_file(tmp_path: Path) -> None:
    path = write_store(tmp_path / "nsd_stimuli.hdf5")
    write_folder(tmp_path / "subject", ImageStore.open(path), np.array([5, 2]))
    path.unlink()
    subject = Subject.open(tmp_path / "subject")
    with pytest.raises(SourceError, match=r"nsd_stimuli.hdf5.* is missing. Restore it there"):
        subject.open_image(5)


def test_images_beyond_the_store_are_refused(tmp_path: Path) -> None:
    store = ImageStore.open(write_store(tmp_path / "nsd_stimuli.hdf5"))
    with pytest.raises(SubjectError, match="has 6 pictures, and trials show image 6"):
        write_folder(tmp_path / "subject", store, np.array([6, 2]))
    with pytest.raises(SourceError, match="image 6 was asked for"):
        store.read(6)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"holds \['other'\], expected one of the datasets"):
        ImageStore.open(write_store(tmp_path / "a.hdf5", "other"))
    with pytest.raises(SourceError, match=r"imgBrick is float32 of shape \(6, 8, 8, 3\), expected"):
        ImageStore.open(write_store(tmp_path / "b.hdf5", pixels=PIXELS.astype(np.float32)))
    (tmp_path / "c.hdf5").write_text("<html>Access denied</html>")
    with pytest.raises(SourceError, match="is a web page saved under the name of a data file"):
        ImageStore.open(tmp_path / "c.hdf5")
    whole = write_store(tmp_path / "d.hdf5").read_bytes()
    (tmp_path / "d.hdf5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match="can't be read as HDF5"):
        ImageStore.open(tmp_path / "d.hdf5")
    with pytest.raises(SourceError, match="is missing"):
        ImageStore.open(tmp_path / "e.hdf5")


@pytest.mark.parametrize("way", ["external", "virtual", "external link", "soft link"])
def test_pictures_of_another_file_are_refused(tmp_path: Path, way: str) -> None:
    secret = tmp_path / "secret.hdf5"
    write_store(secret)
    path = tmp_path / "nsd_stimuli.hdf5"
    with h5py.File(path, "w") as file:
        if way == "external":
            file.create_dataset(
                "imgBrick", PIXELS.shape, np.uint8, external=[(str(secret), 0, PIXELS.size)]
            )
        elif way == "virtual":
            layout = h5py.VirtualLayout(PIXELS.shape, np.uint8)
            layout[:] = h5py.VirtualSource(str(secret), "imgBrick", PIXELS.shape)
            file.create_virtual_dataset("imgBrick", layout)
        elif way == "external link":
            file["imgBrick"] = h5py.ExternalLink(str(secret), "imgBrick")
        else:
            file["other"] = PIXELS
            file["imgBrick"] = h5py.SoftLink("/other")
    for read in (ImageStore.open, lambda p: ImageStore(p, "imgBrick", 6).read(0)):
        with pytest.raises(SourceError, match="imgBrick refers to another place or file"):
            read(path)


def test_a_voxel_table_has_one_row_a_voxel(tmp_path: Path) -> None:
    with pytest.raises(SubjectError, match="the voxel table has 3 rows, expected 4"):
        write_subject(
            tmp_path / "subject",
            name="s",
            voxels=np.ones((1, 4), dtype=np.float32),
            trials=build_trials(np.array([0]), np.array([0]), {0: "train"}),
            rois={},
            images=None,
            voxel_table=pa.table({"x": range(3)}),
            command="test",
            details={},
        )


def test_a_manifest_with_half_a_store_is_refused(tmp_path: Path) -> None:
    store = ImageStore.open(write_store(tmp_path / "nsd_stimuli.hdf5"))
    write_folder(tmp_path / "subject", store, np.array([1]))
    manifest = tmp_path / "subject" / "subject.json"
    manifest.write_text(manifest.read_text().replace('"dataset"', '"set"'))
    with pytest.raises(SubjectError, match="image_store lacks or mistypes 'dataset'"):
        Subject.open(tmp_path / "subject")
