from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from index_builder.embeddings.errors import MissingExtraError
from tests.training.subjects.mindeye_layouts import (
    MISSING,
    N_SESSIONS,
    N_VOXELS,
    SESSION,
    Brain,
    behavior_of,
    color_of,
    npy,
    replace_in_tar,
    simulate_brain,
    write_mindeye,
    write_mindeye2,
)
from training.errors import SourceError, SplitError, SubjectError
from training.subjects import mindeye2
from training.subjects.mindeye2 import import_mindeye2
from training.subjects.mindeye_files import NSDGENERAL_VOXELS, Member, list_samples
from training.subjects.mindeye_tars import import_mindeye
from training.subjects.subject import Subject

PAGE = b"<!DOCTYPE html><html><body>Sign in to download</body></html>"
BETAS = "betas_all_subj01_fp32_renorm.hdf5"
WDS = "wds/subj01"


@pytest.fixture(scope="module")
def brain() -> Brain:
    return simulate_brain()


@pytest.fixture(scope="module")
def release(brain: Brain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mindeye2(brain, tmp_path_factory.mktemp("mindeye2"))


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> tuple[Brain, Path]:
    """A brain that saw one session, and its files."""
    brain = simulate_brain(n_sessions=1)
    return brain, write_mindeye2(brain, tmp_path_factory.mktemp("session"), sessions=[0])


@pytest.fixture
def copy(session: tuple[Brain, Path], tmp_path: Path) -> Path:
    """Files of a session, to be damaged."""
    return Path(shutil.copytree(session[1], tmp_path / "copy"))


def run(source: Path, folder: Path, **options: Any) -> Subject:
    arguments = {"betas": source, "behavior": source, "subject": 1, "n_validation": 50} | options
    return import_mindeye2(folder=folder, **arguments)


def test_trials_come_in_the_order_of_presentation(
    brain: Brain, release: Path, tmp_path: Path
) -> None:
    subject = run(release, tmp_path / "subject", images=release / "coco_images_224_float16.hdf5")
    assert subject.name == "subj01" and subject.details["n_sessions"] == N_SESSIONS
    np.testing.assert_array_equal(subject.voxels, brain.voxels)
    np.testing.assert_array_equal(subject.trials["image_id"], brain.image_ids)
    np.testing.assert_array_equal(subject.trials["session"], np.arange(brain.n_trials) // SESSION)
    np.testing.assert_array_equal(subject.image_ids("test"), np.sort(brain.shared))
    assert len(subject.image_ids("validation")) == 50
    image_id = int(brain.image_ids[11])
    assert subject.open_image(image_id).getpixel((0, 0)) == color_of(image_id)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_both_releases_of_a_subject_give_the_same_folder(tmp_path: Path, dtype: type) -> None:
    brain = simulate_brain(dtype, n_sessions=2)
    first = import_mindeye(
        write_mindeye(brain, tmp_path / "tars", subject=5),
        tmp_path / "first",
        subject=5,
        n_validation=40,
        seed=8,
        images=False,
    )
    second = run(
        write_mindeye2(brain, tmp_path / "betas", subject=5, sessions=[0, 1]),
        tmp_path / "second",
        subject=5,
        n_validation=40,
        seed=8,
    )
    assert first.trials.equals(second.trials)
    assert len(set(first.trials["split"].to_pylist())) == 3
    assert first.voxels.dtype == second.voxels.dtype == dtype
    for name in ("voxels.npy", "trials.parquet", "rois.npz"):
        assert first.manifest["files"][name] == second.manifest["files"][name]


@pytest.mark.parametrize("where", [".", "wds", WDS])
def test_behavior_is_found_from_any_of_its_folders(
    brain: Brain, release: Path, tmp_path: Path, where: str
) -> None:
    subject = run(
        release, tmp_path / "subject", betas=release / BETAS, behavior=release / where, sessions=[1]
    )
    assert subject.details["train_sessions"] == [1]


def test_sessions_are_those_to_train_on_and_the_test_stays_whole(
    brain: Brain, release: Path, tmp_path: Path
) -> None:
    subject = run(release, tmp_path / "subject", sessions=[0])
    rows = np.flatnonzero((np.arange(brain.n_trials) < SESSION) | brain.is_shared)
    np.testing.assert_array_equal(subject.voxels, brain.voxels[rows])
    np.testing.assert_array_equal(subject.trials["session"], rows // SESSION)
    np.testing.assert_array_equal(subject.image_ids("test"), np.unique(brain.shared))
    training = subject.trial_rows("train")
    assert set(subject.trials["session"].to_numpy()[training]) == {0}
    with pytest.raises(SourceError, match=r"train/7.tar is missing, expected the behavior in a se"):
        run(release, tmp_path / "other", sessions=[0, 7])
    for sessions in ([], [-1]):
        with pytest.raises(ValueError, match="expected at least one, from 0"):
            run(release, tmp_path / "other", sessions=sessions)


def test_the_old_test_lacks_the_last_session(brain: Brain, release: Path, tmp_path: Path) -> None:
    subject = run(release, tmp_path / "subject", test="test")
    in_last = np.arange(brain.n_trials) >= (N_SESSIONS - 1) * SESSION
    rows = np.flatnonzero(~(in_last & brain.is_shared))
    np.testing.assert_array_equal(subject.voxels, brain.voxels[rows])
    old = np.unique(brain.image_ids[brain.is_shared & ~in_last])
    np.testing.assert_array_equal(subject.image_ids("test"), old)
    with pytest.raises(ValueError, match="test is 'val', expected 'new_test' or 'test'"):
        run(release, tmp_path / "other", test="val")


def test_samples_of_missing_behavior_are_no_trials(
    session: tuple[Brain, Path], copy: Path, tmp_path: Path
) -> None:
    """In a matrix of one row, all -1; others than ``behav.npy`` aren't looked at."""
    brain, source = session
    train = copy / WDS / "train/0.tar"
    replace_in_tar(train, "past_behav.npy", PAGE)
    replace_in_tar(train, "olds_behav.npy", None, sample=3)
    assert run(copy, tmp_path / "same").trials.equals(run(source, tmp_path / "whole").trials)
    replace_in_tar(train, "behav.npy", npy(MISSING[None]))
    lost = int(np.flatnonzero(~brain.is_shared)[0])
    with pytest.raises(SourceError, match=rf"session 0 has 749 of 750 trials, and trial {lost} is"):
        run(copy, tmp_path / "subject")


def test_a_missing_session_is_noticed_unless_the_others_are_named(
    brain: Brain, release: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(release, tmp_path / "copy"))
    lost = source / WDS / "train/1.tar"
    lost.rename(f"{lost}.part")
    with pytest.raises(SourceError, match=r"train/1.tar is not there yet.*sessions to train on: -"):
        run(source, tmp_path / "subject")
    Path(f"{lost}.part").unlink()
    with pytest.raises(
        SourceError, match=r"train/1.tar is missing, expected the behavior in ses.*"
    ):
        run(source, tmp_path / "subject")
    subject = run(source, tmp_path / "subject", sessions=[0, 2])
    rows = np.flatnonzero((np.arange(brain.n_trials) // SESSION != 1) | brain.is_shared)
    np.testing.assert_array_equal(subject.voxels, brain.voxels[rows])
    for tar in (source / WDS / "train").iterdir():
        tar.unlink()
    with pytest.raises(SourceError, match=r"train holds no 0.tar, expected a tar a session"):
        run(source, tmp_path / "other")


def test_voxels_that_are_nan_throughout_a_session_are_stored_as_zero(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    brain = simulate_brain(n_sessions=2)
    brain.voxels[SESSION:, 4] = np.nan
    source = write_mindeye2(brain, tmp_path / "source", sessions=[0, 1])
    with caplog.at_level("WARNING", logger="voxseek"):
        subject = run(source, tmp_path / "subject")
    np.testing.assert_array_equal(subject.voxels, np.nan_to_num(brain.voxels))
    assert "session 1: 1 voxels are NaN in every trial, stored as 0." in caplog.text
    brain.voxels[0, 0] = 1e6
    source = write_mindeye2(brain, tmp_path / "large", sessions=[0, 1])
    with pytest.raises(SubjectError, match="session 0, voxels: voxel 0 of trial 0 is inf"):
        run(source, tmp_path / "half", dtype="float16")


def test_an_interrupted_import_goes_on_and_ends_the_same(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(release, tmp_path / "whole")
    read, reads = mindeye2._read_rows, [0]

    def count_to(limit: float) -> Callable[[Path, Any], Any]:
        def count(path: Path, numbers: Any) -> Any:
            reads[0] += 1
            if reads[0] > limit:
                raise KeyboardInterrupt
            return read(path, numbers)

        return count

    monkeypatch.setattr(mindeye2, "_read_rows", count_to(2))
    with pytest.raises(KeyboardInterrupt):
        run(release, tmp_path / "resumed")
    assert not (tmp_path / "resumed/subject.json").exists()
    reads[0] = 0
    monkeypatch.setattr(mindeye2, "_read_rows", count_to(np.inf))
    resumed = run(release, tmp_path / "resumed")
    assert reads[0] == N_SESSIONS - 2
    assert resumed.manifest == whole.manifest  # with the SHA-256 of the voxels


def test_an_unfinished_import_of_other_betas_is_begun_anew(
    brain: Brain, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(shutil.copytree(release, tmp_path / "copy"))
    read = mindeye2._read_rows

    def stop_at_the_last(path: Path, numbers: Any) -> Any:
        if numbers[0] >= (N_SESSIONS - 1) * SESSION:
            raise KeyboardInterrupt
        return read(path, numbers)

    with monkeypatch.context() as patched:
        patched.setattr(mindeye2, "_read_rows", stop_at_the_last)
        with pytest.raises(KeyboardInterrupt):
            run(source, tmp_path / "subject")
    rewrite(source / BETAS, "betas", brain.voxels + 1)
    subject = run(source, tmp_path / "subject")
    np.testing.assert_array_equal(subject.voxels, brain.voxels + 1)


# What is refused

TRAIN, TEST = f"{WDS}/train/0.tar", f"{WDS}/new_test/0.tar"


def changed(brain: Brain, *, shared: bool, **columns: float) -> bytes:
    """The behavior of the first trial of the training or of the test, but for some columns."""
    trial = int(np.flatnonzero(brain.is_shared == shared)[0])
    behavior = behavior_of(brain, trial, 1)
    places = {"image": 0, "subject": 1, "session": 2, "trial": 5, "is_shared": 16}
    for name, value in columns.items():
        behavior[places[name]] = value
    return npy(behavior[None])


@pytest.mark.parametrize(
    ("tar", "columns", "message"),
    [
        (TRAIN, {"subject": 3}, r"it is of subject 3, expected subject 1\. Give the tars of"),
        (TRAIN, {"session": 2}, r"says that it is of session 2, expected session 1 \(from 1, 750"),
        (
            TRAIN,
            {"session": 2, "trial": 751},
            r"it is of session 1 \(from 0\), expected 0 by the name of the tar",
        ),
        (TRAIN, {"is_shared": 1}, r"one of the shared images, but none is trained on\. Give"),
        (TEST, {"is_shared": 0}, r"is not one of the shared images, but the test holds shared im"),
        (TRAIN, {"image": -1}, r"\[-1.0, 1.0, 1.0, .*expected whole numbers from 0"),
        (TRAIN, {"image": np.nan}, r"\[nan, 1.0, 1.0, .*expected whole numbers from 0"),
        (TEST, {"trial": np.inf}, r"1.0, inf, 1.0\], expected whole numbers from 0"),
    ],
)
def test_a_trial_that_contradicts_its_file_is_named(
    session: tuple[Brain, Path],
    copy: Path,
    tmp_path: Path,
    tar: str,
    columns: dict[str, float],
    message: str,
) -> None:
    content = changed(session[0], shared=tar == TEST, **columns)
    sample = replace_in_tar(copy / tar, "behav.npy", content)
    with pytest.raises(SourceError, match=message) as caught:
        run(copy, tmp_path / "subject")
    assert str(caught.value).startswith(f"{copy / tar}, sample {sample}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PAGE, r"behav.npy: it can't be read as an npy file of numbers"),
        (npy(np.zeros((1, 16))), r"behav.npy holds 16 values of float64, expected 17 numbers"),
        (npy(np.full((1, 17), "x")), r"behav.npy holds 17 values of <U1, expected 17 numbers"),
    ],
)
def test_behavior_that_is_none_is_named(
    copy: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    replace_in_tar(copy / TEST, "behav.npy", content)
    with pytest.raises(SourceError, match=message) as caught:
        run(copy, tmp_path / "subject")
    assert str(copy / TEST) in str(caught.value)


def test_a_trial_that_is_there_twice_is_refused(
    session: tuple[Brain, Path], copy: Path, tmp_path: Path
) -> None:
    trial = int(np.flatnonzero(~session[0].is_shared)[1])
    content = changed(session[0], shared=False, trial=trial)
    replace_in_tar(copy / TRAIN, "behav.npy", content)
    message = rf"sample \w+: it has trial {trial}, as has .*0.tar, sample \w+; expected each trial"
    with pytest.raises(SourceError, match=message):
        run(copy, tmp_path / "subject")


def test_an_image_of_the_test_among_the_training_is_refused(
    session: tuple[Brain, Path], copy: Path, tmp_path: Path
) -> None:
    brain = session[0]
    image_id = int(brain.image_ids[brain.is_shared][0])
    replace_in_tar(copy / TRAIN, "behav.npy", changed(brain, shared=False, image=image_id))
    message = rf"train and .*new_test/0.tar both show image {image_id} \(1 such images\)"
    with pytest.raises(SplitError, match=message):
        run(copy, tmp_path / "subject")


def test_a_tar_that_breaks_off_is_named(copy: Path, tmp_path: Path) -> None:
    content = (copy / TRAIN).read_bytes()
    last = max(m["behav.npy"].start for m in list_samples(copy / TRAIN, ("behav.npy",)).values())
    (copy / TRAIN).write_bytes(content[: last - 512])  # between two samples
    with pytest.raises(SourceError, match=r"train/0.tar breaks off after \d+ samples, without"):
        run(copy, tmp_path / "subject")
    (copy / TEST).write_bytes(PAGE)
    with pytest.raises(SourceError, match=r"new_test/0.tar is a web page saved under the name of"):
        run(copy, tmp_path / "subject")
    (copy / TEST).unlink()
    with pytest.raises(SourceError, match=r"new_test/0.tar is missing, expected an uncompressed t"):
        run(copy, tmp_path / "subject")


def rewrite(path: Path, name: str, data: Any) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset(name, data=data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.write_bytes(PAGE), r"is a web page saved under the name of a data file"),
        (lambda p: p.write_bytes(b""), r"is empty \(0 bytes\), expected the HDF5 file of betas"),
        (lambda p: p.write_bytes(b"\0" * 999), r"can't be read as HDF5 .*Download it again"),
        (
            lambda p: p.write_bytes(p.read_bytes()[:-500]),
            r"can't be read as HDF5 .*: it is truncated, or another kind of file",
        ),
        (lambda p: p.unlink(), r"is missing, expected the HDF5 file of betas of subject 1"),
        (lambda p: p.rename(f"{p}.part"), r"is not there yet: its download is unfinished"),
        (
            lambda p: rewrite(p, "images", np.zeros((2, 3))),
            r"holds \['images'\], expected betas: float of shape \(n_trials, n_voxels\)",
        ),
        (lambda p: rewrite(p, "betas/x", np.zeros(3)), r"holds betas of shape \(\), expected"),
        (lambda p: rewrite(p, "betas", np.zeros((2, 3), int)), r"holds betas of shape \(2, 3\)"),
        (
            lambda p: rewrite(p, "betas", np.zeros((700, N_VOXELS))),
            r"has 700 rows of betas, and .* is global trial 749, from 0; expected a row for it",
        ),
        (
            lambda p: rewrite(p, "betas", np.zeros((750, NSDGENERAL_VOXELS[4]), np.float16)),
            r"there are 13153 voxels, which is nsdgeneral of subject 4; subject 1 has 15724",
        ),
    ],
)
def test_betas_that_are_none_are_named(
    copy: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(copy / BETAS)
    with pytest.raises(SourceError, match=message) as caught:
        run(copy, tmp_path / "subject")
    assert str(caught.value).startswith(str(copy / BETAS)) and "\n" not in str(caught.value)


def test_betas_that_break_off_within_are_named(copy: Path, tmp_path: Path) -> None:
    data = np.random.default_rng(0).standard_normal((SESSION, N_VOXELS))
    with h5py.File(copy / BETAS, "w") as file:
        made = file.create_dataset("betas", data=data, chunks=(SESSION, 1), compression="gzip")
        place = made.id.get_chunk_info(2).byte_offset
    content = bytearray((copy / BETAS).read_bytes())
    content[place : place + 64] = bytes(64)
    (copy / BETAS).write_bytes(content)
    with pytest.raises(SourceError, match=r"rows 0 to 749 can't be read .*download the file again"):
        run(copy, tmp_path / "subject")


def test_files_of_another_subject_are_refused(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"betas_all_subj02_fp32_renorm.hdf5 is missing"):
        run(copy, tmp_path / "subject", subject=2)
    with pytest.raises(SourceError, match=r"is of subject 1 by its name, expected subject 2"):
        run(copy, tmp_path / "subject", subject=2, betas=copy / BETAS)
    (copy / BETAS).rename(copy / "betas_all_subj02_fp32_renorm.hdf5")
    with pytest.raises(SourceError, match=r"holds no subj02/train, but \['subj01'\]; expected the"):
        run(copy, tmp_path / "subject", subject=2)
    with pytest.raises(SourceError, match=r"it is of subject 1, expected subject 2"):
        run(copy, tmp_path / "subject", subject=2, behavior=copy / WDS)
    with pytest.raises(ValueError, match="subject is 0, expected 1 to 8"):
        run(copy, tmp_path / "subject", subject=0)


def test_pictures_of_another_set_are_refused(copy: Path, tmp_path: Path) -> None:
    rewrite(copy / "few.hdf5", "images", np.zeros((5, 3, 4, 4), np.float16))
    with pytest.raises(SubjectError, match=r"few.hdf5 has 5 pictures, and trials show image \d+"):
        run(copy, tmp_path / "subject", images=copy / "few.hdf5")


def test_without_h5py_the_extra_is_named(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"h5py is not installed.*voxseek\[data\]"):
        run(copy, tmp_path / "subject")


def test_tars_are_read_once(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, members = Member.read_array, []
    monkeypatch.setattr(Member, "read_array", lambda m: (members.append(str(m)), read(m))[1])
    subject = run(release, tmp_path / "subject")
    assert len(members) == len(set(members)) == subject.n_trials
