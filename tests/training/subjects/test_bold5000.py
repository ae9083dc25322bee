from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from training.errors import SourceError
from training.subjects.beta_files import BetaFile
from training.subjects.bold5000 import import_bold5000
from training.subjects.subject import Subject

SHAPE = (4, 3, 5)
COUNTS = (9, 11, 8)  # trials of three sessions
NAMES = ["n02.JPEG", "COCO_train2014_1.jpg", "abbey1.jpg", "rep_barn2.jpg", *"cdefghijklmnop"]
VARIANT = "GLMbetas-TYPED-FITHRF-GLMDENOISE-RR"
AFFINE = np.diag([2.0, 2, 2, 1])


@pytest.fixture
def shown(rng: np.random.Generator) -> list[str]:
    """28 trials of 18 pictures: two shown four times, one three times, two twice."""
    names = [NAMES[i] for i in [0] * 4 + [3] * 4 + [2] * 3 + [1, 1, 4, 4, *range(5, 18)]]
    return [names[i] for i in rng.permutation(len(names))]


@pytest.fixture
def release(tmp_path: Path, shown: list[str], rng: np.random.Generator) -> Path:
    """Session volumes of CSI1 with NaN outside the brain, lists of both kinds, and pictures."""
    responses = rng.standard_normal((*SHAPE, sum(COUNTS))).astype(np.float32)
    responses[0] = np.nan  # outside the brain
    responses[1, 0, 0, : COUNTS[0]] = 0  # lost in session 0
    np.save(tmp_path / "truth.npy", responses)
    ends = np.cumsum(COUNTS)
    (tmp_path / "betas").mkdir()
    for session, (count, end) in enumerate(zip(COUNTS, ends, strict=True), start=1):
        part = responses[..., end - count : end]
        path = tmp_path / f"betas/CSI1_{VARIANT}_ses-{session:02}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(part, AFFINE), path)
        folder = tmp_path / f"lists/CSI1/CSI1_sess{session:02}"
        folder.mkdir(parents=True)
        of_session = shown[end - count : end]
        (folder / "CSI1_sess_run01.txt").write_text("\n".join(of_session[:4]) + "\n")
        (folder / "CSI1_sess_run02.txt").write_text("\n".join(of_session[4:]))
    (tmp_path / "betas/CSI2_GLMbetas_ses-01.nii.gz").write_bytes(b"another subject's")
    flat = [name.removeprefix("rep_") for name in shown]
    (tmp_path / "lists/CSI1/CSI1_imgnames.txt").write_text("\n".join(flat) + "\n\n")
    (tmp_path / "repeated.txt").write_text("barn2.jpg\nabbey1.jpg\nnever_shown.jpg\n")
    for number, name in enumerate(set(flat)):
        path = tmp_path / f"pictures/Scene/{name if '.' in name else name + '.png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
    return tmp_path


@pytest.fixture
def regions(release: Path, rng: np.random.Generator) -> Path:
    """The arrays of regions, trials x voxels, with the release's spelling."""
    folder = release / "py"
    folder.mkdir()
    for name, n_voxels in (("LHEarlyVis", 6), ("RHRRSC", 2), ("LHLO", 3)):
        values = rng.standard_normal((sum(COUNTS), n_voxels))
        values[COUNTS[0] : sum(COUNTS[:2]), 0] = np.nan
        np.save(folder / f"CSI1_{VARIANT}_allses_{name}.npy", values)
    return folder


def run(release: Path, folder: str = "subject", **options: Any) -> Subject:
    arguments: dict[str, Any] = {
        "betas": release / "betas",
        "stimuli_list": release / "lists/CSI1/CSI1_imgnames.txt",
        "subject": "CSI1",
        "n_validation": 3,
    }
    arguments |= options
    return import_bold5000(folder=release / folder, **arguments)


def test_volumes_and_names_make_a_subject(release: Path, shown: list[str]) -> None:
    subject = run(release, images=release / "pictures")
    truth = np.load(release / "truth.npy")[1:].reshape(-1, sum(COUNTS)).T
    np.testing.assert_array_equal(subject.voxels, truth)
    assert subject.details["n_voxels_left_out"] == 15 and subject.details["n_invalid_sessions"] == 1
    table = subject.voxel_table()
    assert table is not None
    xyz = np.argwhere(np.ones(SHAPE))[15:]
    np.testing.assert_array_equal(np.stack([table[axis] for axis in "xyz"], axis=1), xyz)
    np.testing.assert_array_equal(subject.details["affine"], AFFINE)
    names = pq.read_table(subject.path / "stimuli.parquet")["name"].to_pylist()
    assert names == sorted(names) and len(names) == 18
    ids = subject.trials["image_id"].to_pylist()
    assert [names[i] for i in ids] == [name.removeprefix("rep_") for name in shown]
    assert subject.trials["session"].to_pylist() == np.repeat([0, 1, 2], COUNTS).tolist()
    barn = subject.image(names.index("barn2.jpg"))
    assert isinstance(barn, Path)
    assert barn.read_bytes() == (release / "pictures/Scene/barn2.jpg").read_bytes()


def test_repeats_and_the_test_come_from_the_names(release: Path) -> None:
    by_shows = run(release)
    names = pq.read_table(by_shows.path / "stimuli.parquet")["name"].to_pylist()
    test = [names[i] for i in by_shows.image_ids("test")]
    assert test == ["abbey1.jpg", "barn2.jpg", "n02.JPEG"]
    assert len(by_shows.image_ids("validation")) == 3 and len(by_shows.image_ids("train")) == 12
    repeats = by_shows.trials["repeat"].to_numpy()
    assert np.bincount(repeats).tolist() == [18, 5, 3, 2]
    listed = run(release, "listed", test_list=release / "repeated.txt")
    assert [names[i] for i in listed.image_ids("test")] == ["abbey1.jpg", "barn2.jpg"]
    assert listed.details["test"] == "list"


def test_lists_by_session_say_the_same_as_the_flat_one(release: Path) -> None:
    flat, by_session = run(release), run(release, "other", stimuli_list=release / "lists/CSI1")
    assert flat.trials.equals(by_session.trials)


def test_an_interrupted_import_goes_on_with_the_next_session(
    release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(release, "whole")
    reads: list[str] = []
    plain = BetaFile.read

    def counted(self: BetaFile, *arguments: Any) -> Any:
        reads.append(self.path.name)
        if len(reads) == 5:  # three to check, then in the second session to write
            raise KeyboardInterrupt
        return plain(self, *arguments)

    monkeypatch.setattr(BetaFile, "read", counted)
    with pytest.raises(KeyboardInterrupt):
        run(release)
    resumed = run(release)
    assert [name[-9:-7] for name in reads[5:]] == ["01", "02", "03", "02", "03"]
    assert (resumed.path / "voxels.npy").read_bytes() == (whole.path / "voxels.npy").read_bytes()


def test_a_mask_and_regions_choose_voxels(release: Path) -> None:
    values = np.zeros(SHAPE, np.uint8)
    values[2:] = 1
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), release / "mask.nii.gz")
    values[3] = 0
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), release / "LHPPA.nii.gz")
    subject = run(release, mask=release / "mask.nii.gz", rois=[release / "LHPPA.nii.gz"])
    truth = np.load(release / "truth.npy")[2:].reshape(-1, sum(COUNTS)).T
    np.testing.assert_array_equal(subject.voxels, truth)
    assert subject.rois["LHPPA"].tolist() == [True] * 15 + [False] * 15


def test_arrays_of_regions_lie_side_by_side(release: Path, regions: Path) -> None:
    subject = run(release, betas=regions, stimuli_list=release / "lists/CSI1")
    files = [regions / f"CSI1_{VARIANT}_allses_{n}.npy" for n in ("LHEarlyVis", "LHLO", "RHRRSC")]
    truth = np.concatenate([np.load(file) for file in files], axis=1).astype(np.float32)
    np.testing.assert_array_equal(subject.voxels, np.nan_to_num(truth))
    sizes = {name: int(mask.sum()) for name, mask in subject.rois.items()}
    assert sizes == {"LHEarlyVis": 6, "LHLOC": 3, "RHRSC": 2}
    assert subject.rois["LHLOC"][6:9].all() and subject.voxel_table() is None
    assert subject.details["n_invalid_sessions"] == 3
    assert subject.trials["session"].to_pylist() == np.repeat([0, 1, 2], COUNTS).tolist()


def test_wrong_arrays_of_regions_are_refused(release: Path, regions: Path) -> None:
    lists = release / "lists/CSI1"
    with pytest.raises(SourceError, match=r"imgnames.txt doesn't tell sessions apart"):
        run(release, betas=regions)
    with pytest.raises(SourceError, match=r"holds arrays of regions, which a mask can't cut"):
        run(release, betas=regions, stimuli_list=lists, mask=release / "mask.nii.gz")
    array = next(regions.glob("*LHLO.npy"))
    np.save(array, np.zeros((5, 3)))
    with pytest.raises(SourceError, match=r"LHLO.npy holds float64 of shape \(5, 3\), expected fl"):
        run(release, betas=regions, stimuli_list=lists)
    np.save(array, {"a": 1}, allow_pickle=True)
    with pytest.raises(SourceError, match=r"LHLO.npy can't be read as an array of numbers"):
        run(release, betas=regions, stimuli_list=lists)
    np.save(array, np.zeros((sum(COUNTS), 3)))
    array.with_name(array.name.replace("LHLO", "LHLOC")).write_bytes(array.read_bytes())
    with pytest.raises(SourceError, match=r"is a second array of LHLOC; expected each region once"):
        run(release, betas=regions, stimuli_list=lists)


def test_wrong_names_are_refused(release: Path) -> None:
    flat = release / "lists/CSI1/CSI1_imgnames.txt"
    lines = flat.read_text().split()
    flat.write_text("\n".join(lines[:-1]))
    with pytest.raises(SourceError, match=r"has 27 names, and the 3 session files have 28 trials"):
        run(release)
    flat.write_text("\n".join([*lines[:2], "", *lines[2:]]))
    with pytest.raises(SourceError, match=r"imgnames.txt, line 3: it is empty, expected a picture"):
        run(release)
    flat.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SourceError, match=r"imgnames.txt is no text"):
        run(release)
    with pytest.raises(SourceError, match=r"pictures has no folders of sessions with .txt files"):
        run(release, stimuli_list=release / "pictures")
    run_list = release / "lists/CSI1/CSI1_sess02/CSI1_sess_run01.txt"
    run_list.write_text(run_list.read_text() + "extra.jpg\n")
    with pytest.raises(SourceError, match=r"has 12 names in session 2, CSI1.*ses-02.nii.gz 11 tri"):
        run(release, stimuli_list=release / "lists/CSI1")


def test_wrong_folders_of_betas_are_refused(release: Path) -> None:
    betas = release / "betas"
    with pytest.raises(ValueError, match=r"subject is 'CSI5', expected one of CSI1, CSI2"):
        run(release, subject="CSI5")
    with pytest.raises(SourceError, match=r"nowhere is no folder, expected one with the betas"):
        run(release, betas=release / "nowhere")
    with pytest.raises(SourceError, match=r"holds 0 session volumes and 0 arrays of regions of CS"):
        run(release, subject="CSI3")
    second = betas / f"CSI1_{VARIANT}_ses-02.nii.gz"
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(
        SourceError, match=r"holds sessions \[1, 3\] of CSI1, and session 2 is miss"
    ):
        run(release)
    second.write_bytes(content)
    (betas / "CSI1_GLMbetas-TYPEA-ASSUMEHRF_ses-02.nii.gz").write_bytes(content)
    with pytest.raises(SourceError, match=r"holds two files of session 2: CSI1_.*one variant"):
        run(release)


def test_a_test_without_pictures_is_refused(release: Path) -> None:
    with pytest.raises(SourceError, match=r"no picture was shown 5 times \(the most is 4\)"):
        run(release, min_test_shows=5)
    (release / "repeated.txt").write_text("x.jpg\n")
    with pytest.raises(
        SourceError, match=r"repeated.txt: none of its 1 pictures was shown, the fi"
    ):
        run(release, test_list=release / "repeated.txt")
