from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from index_builder.embeddings.errors import ArtefactError
from training.errors import SplitError, SubjectError
from training.subjects.images import IMAGE_SCHEMA
from training.subjects.subject import Subject, write_subject
from training.subjects.trials import assign_splits, build_trials

N_IMAGES, N_REPEATS, N_VOXELS = 8, 3, 5


@pytest.fixture
def parts(tmp_path: Path, rng: np.random.Generator) -> dict[str, Any]:
    """Arguments of write_subject for a small, sound subject."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for image_id in range(N_IMAGES):
        pixels = rng.integers(0, 255, size=(20, 24, 3), dtype=np.uint8)
        suffix = "png" if image_id % 2 else "JPG"
        Image.fromarray(pixels).save(pictures / f"{image_id}.{suffix}")
    image_ids = rng.permutation(np.repeat(np.arange(N_IMAGES), N_REPEATS))
    paths = {int(path.stem): str(path) for path in pictures.iterdir()}
    return {
        "name": "subj01",
        "voxels": rng.standard_normal((N_IMAGES * N_REPEATS, N_VOXELS)).astype(np.float16),
        "trials": build_trials(
            image_ids,
            np.arange(len(image_ids)) // 10,
            assign_splits(image_ids, n_test=2, n_validation=1, seed=0),
        ),
        "rois": {"V1": np.arange(N_VOXELS) < 2, "file": np.arange(N_VOXELS) > 3},
        "images": pa.table(
            {
                "image_id": range(N_IMAGES),
                "path": [paths[image_id] for image_id in range(N_IMAGES)],
                "caption": [None, *(f"picture {i}" for i in range(1, N_IMAGES))],
            },
            schema=IMAGE_SCHEMA,
        ),
        "command": "test",
        "details": {"source": "test"},
    }


def test_what_is_written_is_read_back(tmp_path: Path, parts: dict[str, Any]) -> None:
    written = write_subject(tmp_path / "s", **parts)
    subject = Subject.open(tmp_path / "s")
    assert (subject.name, subject.n_trials, subject.n_voxels) == ("subj01", 24, N_VOXELS)
    assert isinstance(subject.voxels, np.memmap) and not subject.voxels.flags.writeable
    np.testing.assert_array_equal(subject.voxels, parts["voxels"])
    assert subject.trials.equals(parts["trials"]) and subject.trials.equals(written.trials)
    assert set(subject.rois) == {"V1", "file"}
    np.testing.assert_array_equal(subject.rois["V1"], parts["rois"]["V1"])
    assert subject.details == {"source": "test"} and not subject.is_simulated
    assert subject.has_images and subject.image(0) == tmp_path / "s/images/0.jpg"
    assert subject.image(3).read_bytes() == (tmp_path / "pictures/3.png").read_bytes()
    assert subject.captions() == {i: f"picture {i}" for i in range(1, N_IMAGES)}
    subject.verify()


def test_splits_partition_trials_and_images(tmp_path: Path, parts: dict[str, Any]) -> None:
    subject = write_subject(tmp_path / "s", **parts)
    splits = ("train", "validation", "test")
    rows = np.concatenate([subject.trial_rows(split) for split in splits])
    np.testing.assert_array_equal(np.sort(rows), subject.trial_rows("all"))
    images = np.concatenate([subject.image_ids(split) for split in splits])
    np.testing.assert_array_equal(np.sort(images), np.arange(N_IMAGES))
    assert [len(subject.image_ids(split)) for split in splits] == [5, 1, 2]
    with pytest.raises(ValueError, match=r"split is 'val'"):
        subject.trial_rows("val")


def test_chunks_give_the_bytes_of_the_whole(tmp_path: Path, parts: dict[str, Any]) -> None:
    write_subject(tmp_path / "whole", **parts)
    voxels = parts.pop("voxels")
    write_subject(tmp_path / "chunks", voxels=iter([voxels[:7], voxels[7:8], voxels[8:]]), **parts)
    for path in sorted(path for path in (tmp_path / "whole").rglob("*") if path.is_file()):
        twin = tmp_path / "chunks" / path.relative_to(tmp_path / "whole")
        assert twin.read_bytes() == path.read_bytes(), path


def test_other_number_types_become_float32(tmp_path: Path, parts: dict[str, Any]) -> None:
    parts["voxels"] = (parts["voxels"] * 300).astype(np.int16)
    subject = write_subject(tmp_path / "s", **parts)
    assert subject.voxels.dtype == np.float32
    np.testing.assert_array_equal(subject.voxels, parts["voxels"])


def test_a_subject_without_images(tmp_path: Path, parts: dict[str, Any]) -> None:
    parts["images"] = None
    subject = write_subject(tmp_path / "s", **parts)
    assert not subject.has_images and subject.captions() == {}
    with pytest.raises(ArtefactError, match=r"image 3 is not among the images"):
        subject.image(3)


def test_a_finished_subject_is_not_overwritten(tmp_path: Path, parts: dict[str, Any]) -> None:
    write_subject(tmp_path / "s", **parts)
    with pytest.raises(ArtefactError, match=r"already holds a complete subject"):
        write_subject(tmp_path / "s", **parts)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_bad_voxel_is_named_by_trial_and_voxel(
    tmp_path: Path, parts: dict[str, Any], dtype: type, value: float
) -> None:
    voxels = parts["voxels"].astype(dtype)
    write_subject(tmp_path / "s", **parts | {"voxels": voxels})
    voxels[17, 3] = value
    with pytest.raises(SubjectError, match=rf"voxel 3 of trial 17 is {value}"):
        write_subject(tmp_path / "t", **parts | {"voxels": [voxels[:10], voxels[10:]]})
    assert not (tmp_path / "t/subject.json").exists()
    np.lib.format.open_memmap(tmp_path / "s/voxels.npy", mode="r+")[17, 3] = value
    with pytest.raises(SubjectError, match=r"voxels.npy: voxel 3 of trial 17"):
        Subject.open(tmp_path / "s")


def test_float64_beyond_float32_is_named(tmp_path: Path, parts: dict[str, Any]) -> None:
    parts["voxels"] = parts["voxels"].astype(np.float64)
    parts["voxels"][2, 1] = 1e300
    with pytest.raises(SubjectError, match=r"voxel 1 of trial 2 is inf"):
        write_subject(tmp_path / "s", **parts)


def test_numbers_of_rows_and_voxels_must_agree(tmp_path: Path, parts: dict[str, Any]) -> None:
    voxels = parts.pop("voxels")
    with pytest.raises(SubjectError, match=r"23 rows of voxels and 24 trials"):
        write_subject(tmp_path / "s", voxels=voxels[:-1], **parts)
    with pytest.raises(SubjectError, match=r"26 rows of voxels and 24 trials"):
        write_subject(tmp_path / "s", voxels=[voxels, voxels[:2]], **parts)
    with pytest.raises(SubjectError, match=r"trials 10 onwards have shape \(14, 4\)"):
        write_subject(tmp_path / "s", voxels=[voxels[:10], voxels[10:, :4]], **parts)
    with pytest.raises(SubjectError, match=r"expected \(n_trials, n_voxels\)"):
        write_subject(tmp_path / "s", voxels=voxels[0], **parts)


def test_masks_must_fit(tmp_path: Path, parts: dict[str, Any]) -> None:
    parts["rois"] = {"V1": np.ones(N_VOXELS + 1, dtype=bool)}
    with pytest.raises(SubjectError, match=r"mask of 'V1' holds bool of shape \(6,\)"):
        write_subject(tmp_path / "s", **parts)
    parts["rois"] = {"V1": np.ones(N_VOXELS)}
    with pytest.raises(SubjectError, match=r"mask of 'V1' holds float64"):
        write_subject(tmp_path / "s", **parts)


def test_images_must_match_the_trials(tmp_path: Path, parts: dict[str, Any]) -> None:
    images = parts.pop("images")
    with pytest.raises(SubjectError, match=r"lacks image 7, which trials show"):
        write_subject(tmp_path / "s", images=images.slice(0, 7), **parts)
    with pytest.raises(SubjectError, match=r"lists image 7 2 times"):
        write_subject(tmp_path / "s", images=pa.concat_tables([images, images.slice(7)]), **parts)
    extra = images.slice(0, 1).set_column(0, "image_id", pa.array([99]))
    with pytest.raises(SubjectError, match=r"lists image 99, which no trial shows"):
        write_subject(tmp_path / "s", images=pa.concat_tables([images, extra]), **parts)


def test_missing_and_unreadable_pictures_are_named(tmp_path: Path, parts: dict[str, Any]) -> None:
    picture = tmp_path / "pictures/4.JPG"
    picture.write_bytes(picture.read_bytes()[:400])
    with pytest.raises(SubjectError, match=r"image 4 can't be read from .*4.JPG"):
        write_subject(tmp_path / "s", **parts)
    picture.unlink()
    with pytest.raises(SubjectError, match=r"image 4 can't be read from .*4.JPG"):
        write_subject(tmp_path / "s", **parts)


def test_damage_is_found_on_opening(tmp_path: Path, parts: dict[str, Any]) -> None:
    folder = tmp_path / "s"
    write_subject(folder, **parts)
    picture = folder / "images/5.png"
    content = picture.read_bytes()
    picture.unlink()
    with pytest.raises(ArtefactError, match=r"5.png is missing"):
        Subject.open(folder)
    picture.write_bytes(content[:-1] + b"\0")
    with pytest.raises(ArtefactError, match=r"5.png differs from its recorded SHA-256"):
        Subject.open(folder).verify()
    (folder / "voxels.npy").write_bytes((folder / "voxels.npy").read_bytes()[:-2])
    with pytest.raises(ArtefactError, match=r"voxels.npy has 366 bytes"):
        Subject.open(folder)


def rewrite_manifest_sizes(folder: Path) -> None:
    """Make the manifest agree with altered files, as a foreign writer would."""
    manifest = json.loads((folder / "subject.json").read_text())
    for name, record in manifest["files"].items():
        record["bytes"] = (folder / name).stat().st_size
    (folder / "subject.json").write_text(json.dumps(manifest))


def test_contradictions_of_a_foreign_writer_are_found(
    tmp_path: Path, parts: dict[str, Any]
) -> None:
    folder = tmp_path / "s"
    trials = write_subject(folder, **parts).trials
    splits = trials["split"].to_pylist()
    repeat_row = trials["repeat"].to_pylist().index(1)
    splits[repeat_row] = "train" if splits[repeat_row] == "test" else "test"
    pq.write_table(trials.set_column(4, "split", pa.array(splits)), folder / "trials.parquet")
    rewrite_manifest_sizes(folder)
    with pytest.raises(SplitError, match=r"trials.parquet: image"):
        Subject.open(folder)
    pq.write_table(trials.slice(0, 20), folder / "trials.parquet")
    rewrite_manifest_sizes(folder)
    with pytest.raises(SubjectError, match=r"24 rows and .*trials.parquet has 20"):
        Subject.open(folder)
    pq.write_table(trials, folder / "trials.parquet")
    np.save(folder / "voxels.npy", np.zeros((24, 5)))
    rewrite_manifest_sizes(folder)
    with pytest.raises(SubjectError, match=r"holds float64 of shape \(24, 5\)"):
        Subject.open(folder)


def test_an_image_path_may_not_leave_the_folder(tmp_path: Path, parts: dict[str, Any]) -> None:
    folder = tmp_path / "s"
    write_subject(folder, **parts)
    table = pq.read_table(folder / "images.parquet")
    paths = ["../pictures/1.png", *table["path"].to_pylist()[1:]]
    pq.write_table(table.set_column(1, "path", pa.array(paths)), folder / "images.parquet")
    rewrite_manifest_sizes(folder)
    with pytest.raises(SubjectError, match=r"expected one within the subject folder"):
        Subject.open(folder)


def test_pickled_masks_are_never_loaded(tmp_path: Path, parts: dict[str, Any]) -> None:
    folder = tmp_path / "s"
    write_subject(folder, **parts)
    np.savez(folder / "rois.npz", V1=np.array([{}], dtype=object))
    rewrite_manifest_sizes(folder)
    with pytest.raises(SubjectError, match=r"can't be read as named masks"):
        Subject.open(folder)
