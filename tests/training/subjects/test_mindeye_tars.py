from __future__ import annotations

import contextlib
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.subjects.mindeye_layouts import (
    N_SESSIONS,
    N_VOXELS,
    Brain,
    color_of,
    npy,
    replace_in_tar,
    simulate_brain,
    write_mindeye,
    write_tar,
)
from training.errors import SourceError, SubjectError
from training.subjects.mindeye_files import NSDGENERAL_VOXELS, Member, list_samples
from training.subjects.mindeye_tars import import_mindeye
from training.subjects.subject import Subject

PAGE = b"<!DOCTYPE html><html><body>Sign in to download</body></html>"


@pytest.fixture(scope="module")
def brain() -> Brain:
    return simulate_brain()


@pytest.fixture(scope="module")
def release(brain: Brain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mindeye(brain, tmp_path_factory.mktemp("mindeye") / "webdataset_avg_split")


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> tuple[Brain, Path]:
    """A brain that saw one session, and its tars."""
    brain = simulate_brain(n_sessions=1)
    folder = tmp_path_factory.mktemp("session") / "webdataset_avg_split"
    return brain, write_mindeye(brain, folder)


@pytest.fixture
def copy(session: tuple[Brain, Path], tmp_path: Path) -> Path:
    """Tars of a session, to be damaged."""
    return Path(shutil.copytree(session[1], tmp_path / "copy"))


def run(source: Path, folder: Path, **options: Any) -> Subject:
    return import_mindeye(
        source, folder, **{"subject": 1, "images": False, "n_validation": 50} | options
    )


def test_trials_come_in_the_order_of_presentation(
    brain: Brain, release: Path, tmp_path: Path
) -> None:
    subject = run(release, tmp_path / "subject", seed=3)
    assert subject.voxels.dtype == np.float32 and subject.name == "subj01"
    np.testing.assert_array_equal(subject.voxels, brain.voxels)
    np.testing.assert_array_equal(subject.trials["image_id"], brain.image_ids)
    np.testing.assert_array_equal(subject.trials["session"], np.arange(brain.n_trials) // 750)
    np.testing.assert_array_equal(subject.image_ids("test"), np.sort(brain.shared))
    assert len(subject.image_ids("validation")) == 50
    n_images = len(np.unique(brain.image_ids))
    assert subject.details["n_padded_rows"] == 3 * n_images - brain.n_trials > 100
    assert subject.rois["nsdgeneral"].all() and not subject.has_images
    other = run(release, tmp_path / "other", seed=4)
    assert set(other.image_ids("validation")) != set(subject.image_ids("validation"))


def test_pictures_are_copied_by_image(session: tuple[Brain, Path], tmp_path: Path) -> None:
    brain, source = session
    subject = run(source.parent, tmp_path / "subject", images=True)
    for image_id in (int(brain.shared[0]), int(brain.image_ids[0])):
        assert subject.image(image_id) == tmp_path / f"subject/images/{image_id}.png"
        assert subject.open_image(image_id).getpixel((0, 0)) == color_of(image_id)
    assert not (tmp_path / "subject/.pictures").exists()
    subject.verify()


def test_the_published_validation_can_be_kept(release: Path, tmp_path: Path) -> None:
    subject = run(release, tmp_path / "subject", published_validation=True)
    published = [
        int(sample["coco73k.npy"].read_whole_numbers()[0])
        for sample in list_samples(release / "val/val_subj01_0.tar", ("coco73k.npy",)).values()
    ]
    assert subject.image_ids("validation").tolist() == sorted(published)
    assert "seed" not in subject.details


def test_trials_may_count_from_one(brain: Brain, release: Path, tmp_path: Path) -> None:
    source = write_mindeye(brain, tmp_path / "from one", first_trial=1)
    subject = run(source, tmp_path / "subject")
    assert subject.details["first_trial"] == 1
    assert subject.trials.equals(run(release, tmp_path / "from zero").trials)
    np.testing.assert_array_equal(subject.voxels, brain.voxels)


@pytest.mark.parametrize("first_trial", [0, 1])
def test_a_session_may_be_absent(brain: Brain, tmp_path: Path, first_trial: int) -> None:
    source = write_mindeye(
        brain, tmp_path / "source", sessions=[0, N_SESSIONS - 1], first_trial=first_trial
    )
    subject = run(source, tmp_path / "subject")
    rows = brain.trials_of([0, N_SESSIONS - 1])
    assert np.unique(subject.trials["session"]).tolist() == [0, N_SESSIONS - 1]
    np.testing.assert_array_equal(subject.voxels, brain.voxels[rows])
    np.testing.assert_array_equal(subject.trials["image_id"], brain.image_ids[rows])


def test_the_type_of_voxels_is_kept_or_chosen(brain: Brain, release: Path, tmp_path: Path) -> None:
    half = simulate_brain(np.float16)
    source = write_mindeye(half, tmp_path / "half")
    kept = run(source, tmp_path / "kept")
    chosen = run(release, tmp_path / "chosen", dtype="float16")
    assert kept.voxels.dtype == chosen.voxels.dtype == np.float16
    np.testing.assert_array_equal(chosen.voxels, kept.voxels)
    with pytest.raises(ValueError, match="dtype is 'int16', expected 'float16', 'float32'"):
        run(release, tmp_path / "no", dtype="int16")


def test_voxels_that_are_nan_throughout_a_session_are_stored_as_zero(
    brain: Brain, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    voxels = brain.voxels.copy()
    voxels[750:1500, 2] = np.nan
    invalid = Brain(brain.image_ids, voxels, brain.shared)
    source = write_mindeye(invalid, tmp_path / "source")
    with caplog.at_level("WARNING", logger="voxseek"):
        subject = run(source, tmp_path / "subject")
    np.testing.assert_array_equal(subject.voxels, np.nan_to_num(voxels))
    assert "session 1: 1 voxels are NaN in every trial, stored as 0." in caplog.text
    voxels[3, 2] = np.nan
    source = write_mindeye(invalid, tmp_path / "one")
    with pytest.raises(SubjectError, match="session 0, voxels: voxel 2 of trial 3 is nan"):
        run(source, tmp_path / "refused")


def test_an_interrupted_import_goes_on_and_ends_the_same(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(release, tmp_path / "whole")
    n_scan = 4 * len(whole.image_ids("all"))  # voxels, trial, image, number of different rows
    read, reads = Member.read_array, [0]

    def count_to(limit: float) -> Callable[[Member], Any]:
        def count(member: Member) -> Any:
            reads[0] += 1
            if reads[0] > limit:
                raise KeyboardInterrupt
            return read(member)

        return count

    monkeypatch.setattr(Member, "read_array", count_to(n_scan + 2 * 750 + 20))
    with pytest.raises(KeyboardInterrupt):
        run(release, tmp_path / "resumed")
    assert not (tmp_path / "resumed/subject.json").exists()
    reads[0] = 0
    monkeypatch.setattr(Member, "read_array", count_to(np.inf))
    resumed = run(release, tmp_path / "resumed")
    assert reads[0] == n_scan + 750  # two of the three sessions stood
    assert resumed.manifest == whole.manifest  # with the SHA-256 of the voxels
    names = [sorted(p.name for p in (tmp_path / n).iterdir()) for n in ("whole", "resumed")]
    assert names[0] == names[1]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_an_unfinished_import_of_other_bytes_is_begun_anew(
    brain: Brain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    source = write_mindeye(brain, tmp_path / "source")
    read, reads = Member.read_array, [0]
    limit = 4 * len(np.unique(brain.image_ids)) + 800

    def stop(member: Member) -> Any:
        reads[0] += 1
        if reads[0] > limit:
            raise KeyboardInterrupt
        return read(member)

    with monkeypatch.context() as patched:
        patched.setattr(Member, "read_array", stop)
        with pytest.raises(KeyboardInterrupt):
            run(source, tmp_path / "subject")
    voxels = brain.voxels
    if dtype == "float32":  # the type stays, and other voxels are downloaded
        voxels = voxels + 1
        write_mindeye(Brain(brain.image_ids, voxels, brain.shared), source)
    subject = run(source, tmp_path / "subject", dtype=dtype)
    np.testing.assert_array_equal(subject.voxels, voxels.astype(dtype))


# What is refused

TRAIN = "train/train_subj01_1.tar"
OTHER_ROWS = np.arange(3.0 * N_VOXELS, dtype=np.float32).reshape(3, -1)


@pytest.mark.parametrize(
    ("field", "content", "message"),
    [
        ("nsdgeneral.npy", PAGE, r"nsdgeneral.npy: it can't be read as an npy file of numbers"),
        (
            "nsdgeneral.npy",
            npy(OTHER_ROWS)[:-4],
            r"nsdgeneral.npy: it can't be read as an npy file of numbers .*Download the tar again",
        ),
        (
            "trial.npy",
            b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (3,), }"
            + b" " * 60
            + pickle.dumps([1, 2, 3]),
            r"trial.npy: it can't be read .*; pickled arrays are never loaded",
        ),
        (
            "nsdgeneral.npy",
            npy(OTHER_ROWS[:2]),
            r"nsdgeneral.npy is float32 of shape \(2, 6\), exp",
        ),
        (
            "nsdgeneral.npy",
            npy(OTHER_ROWS[:, :-1]),
            r"it has 5 voxels of float32, and samples before it 6 of float32\. It is of another",
        ),
        ("nsdgeneral.npy", None, r"it has no nsdgeneral.npy\. Download the tar again"),
        ("num_uniques.npy", None, r"it has no num_uniques.npy"),
        (
            "num_uniques.npy",
            npy([7]),
            r"num_uniques.npy is 7, and . of its 3 rows of voxels differ",
        ),
        (
            "num_uniques.npy",
            npy([1.5]),
            r"num_uniques.npy: it holds 1 values of float64, expected w",
        ),
        ("coco73k.npy", npy([4, 5]), r"coco73k.npy is \[4, 5\], expected one image, from 0"),
        ("coco73k.npy", npy([-1]), r"coco73k.npy is \[-1\], expected one image, from 0"),
        ("trial.npy", npy([3]), r"trial.npy is \[3\], expected the global trial of each of 3 rows"),
        (
            "trial.npy",
            npy([1, 2, 30001]),
            r"30001\], expected the global trial .* Import the subject from MindEye2's files",
        ),
        ("trial.npy", npy([1.0, np.nan, 2.0]), r"it holds 3 values of float64, expected whole"),
    ],
)
def test_a_bad_member_is_named_with_its_tar(
    copy: Path, tmp_path: Path, field: str, content: bytes | None, message: str
) -> None:
    # Sample 4 has two or three rows; of one with a single row the others are never looked at.
    sample = replace_in_tar(copy / TRAIN, field, content, sample=4)
    with pytest.raises(SourceError, match=message) as caught:
        run(copy, tmp_path / "subject")
    assert str(copy / TRAIN) in str(caught.value) and sample in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_repeated_trial_is_refused(copy: Path, tmp_path: Path) -> None:
    other = next(iter(list_samples(copy / TRAIN, ("trial.npy",)).values()))["trial.npy"]
    replace_in_tar(copy / "train/train_subj01_2.tar", "trial.npy", other.read())
    message = r"_2.tar, sample \w+: it has trial \d+, as has .*; expected each trial once, so trial"
    with pytest.raises(SourceError, match=message):
        run(copy, tmp_path / "subject")


def test_an_image_in_two_samples_is_refused(brain: Brain, copy: Path, tmp_path: Path) -> None:
    shared = int(brain.shared[0])
    replace_in_tar(copy / TRAIN, "coco73k.npy", npy([shared]))
    with pytest.raises(SourceError, match=rf"it shows image {shared}, as does .*; expected each"):
        run(copy, tmp_path / "subject")


def test_a_missing_tar_is_noticed(copy: Path, tmp_path: Path) -> None:
    (copy / "train/train_subj01_2.tar").rename(copy / "train/train_subj01_2.tar.aside")
    with pytest.raises(SourceError, match=r"session 0 has \d+ of 750 trials \(1 of the sessions"):
        run(copy, tmp_path / "subject")
    (copy / TRAIN).rename(copy / f"{TRAIN}.part")
    (copy / "train/train_subj01_2.tar.aside").rename(copy / "train/train_subj01_2.tar")
    with pytest.raises(SourceError, match=r"train_subj01_1.tar is not there yet: its download is"):
        run(copy, tmp_path / "subject")
    (copy / f"{TRAIN}.part").unlink()
    with pytest.raises(SourceError, match=r"_1.tar is missing, expected a tar of the release"):
        run(copy, tmp_path / "subject")
    (copy / "val/val_subj01_0.tar").unlink()
    (copy / TRAIN).touch()
    with pytest.raises(SourceError, match=r"holds no val_subj01_\*.tar, expected those of train"):
        run(copy, tmp_path / "subject")


def test_another_subject_is_refused(brain: Brain, release: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no train_subj02_.*; tars of subject 1 are there\. Dow"):
        run(release, tmp_path / "subject", subject=2)
    with pytest.raises(ValueError, match="subject is 9, expected 1 to 8"):
        run(release, tmp_path / "subject", subject=9)
    shape = (brain.n_trials, NSDGENERAL_VOXELS[7])
    foreign = Brain(brain.image_ids, np.broadcast_to(np.float32(0), shape), brain.shared)
    few = Brain(foreign.image_ids[:60], foreign.voxels[:60], foreign.shared)
    source = write_mindeye(few, tmp_path / "source")
    with pytest.raises(
        SourceError, match="12682 voxels, which is nsdgeneral of subject 7; subject"
    ):
        run(source, tmp_path / "subject")


def test_pictures_that_are_absent_or_broken_are_refused(copy: Path, tmp_path: Path) -> None:
    sample = replace_in_tar(copy / TRAIN, "png", PAGE)
    with pytest.raises(SubjectError, match=r"image \d+ can't be read from .*expected a picture"):
        run(copy, tmp_path / "broken", images=True)
    replace_in_tar(copy / TRAIN, "png", None)
    with pytest.raises(
        SourceError, match=rf"sample {sample}: it has no jpg or jpeg or png\. Leave"
    ):
        run(copy, tmp_path / "absent", images=True)
    assert not run(copy, tmp_path / "without").has_images


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tar: PAGE, r"_1.tar is a web page saved under the name of a data file, expected"),
        (lambda tar: b"", r"_1.tar is empty \(0 bytes\), expected an uncompressed tar of samples"),
        (lambda tar: b"\x1f\x8b" + tar[2:], r"_1.tar can't be read as an uncompressed tar"),
        (lambda tar: tar[: len(tar) // 2 + 100], r"_1.tar (can't be read as|breaks off after)"),
        (lambda tar: tar[:-10240], r"_1.tar (can't be read as|breaks off after)"),
        (lambda tar: bytes(10240), r"_1.tar holds no sample with nsdgeneral.npy or trial.npy"),
    ],
)
def test_a_file_that_is_no_whole_tar_is_named(
    copy: Path, tmp_path: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    (copy / TRAIN).write_bytes(damage((copy / TRAIN).read_bytes()))
    with pytest.raises(SourceError, match=message):
        run(copy, tmp_path / "subject")


def test_every_truncation_of_a_tar_is_noticed(release: Path, tmp_path: Path) -> None:
    """Also one that ends between two members, which tarfile takes for the end."""
    content = (release / "val/val_subj01_0.tar").read_bytes()
    whole = list_samples(release / "val/val_subj01_0.tar", ("trial.npy",))
    last = max(m.start + 1024 for sample in whole.values() for m in sample.values())
    path = tmp_path / "cut.tar"
    for size in range(512, last, 512):
        path.write_bytes(content[:size])
        with pytest.raises(SourceError, match=r"cut.tar (can't be read as|breaks off after)"):
            list_samples(path, ("trial.npy",))


def test_members_within_folders_and_in_capitals_are_found(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("one.d/x", {"JPG": b"1"}), ("two.d/x", {"jpg": b"22"})])
    samples = list_samples(tmp_path / "a.tar", ("jpg",))
    assert {name: sample["jpg"].read() for name, sample in samples.items()} == {
        "one.d/x": b"1",
        "two.d/x": b"22",
    }
    write_tar(tmp_path / "b.tar", [("x", {"jpg": b"1"}), ("x", {"jpg": b"2"})])
    with pytest.raises(SourceError, match=r"b.tar holds x.jpg twice, expected once"):
        list_samples(tmp_path / "b.tar", ("jpg",))


def test_a_damaged_npy_is_never_another_error(tmp_path: Path, rng: np.random.Generator) -> None:
    """numpy reads the header as an expression, and lets what Python thinks of it pass."""
    whole = npy(OTHER_ROWS)
    for _ in range(600):
        damaged = bytearray(whole)
        damaged[rng.integers(0, 80)] = rng.choice(list(b"0123456789(),'{}: <>fiOV|\x00\xff"))
        (tmp_path / "a.tar").write_bytes(damaged)
        with contextlib.suppress(SourceError):
            Member(tmp_path / "a.tar", "x.npy", 0, len(damaged)).read_array()
    for header in (b"{'descr': '<f4', 'shape': (03,), }", b"{b'descr': '<f4', 'shape': (3,)}"):
        content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
        (tmp_path / "a.tar").write_bytes(content)
        with pytest.raises(SourceError, match=r"x.npy: it can't be read as an npy file of numb"):
            Member(tmp_path / "a.tar", "x.npy", 0, len(content)).read_array()


def test_a_member_that_is_gone_or_huge_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(bytes(600))
    with pytest.raises(SourceError, match=r"a.tar, x.npy: the tar ends within it"):
        Member(tmp_path / "a.tar", "x.npy", 512, 100).read()
    with pytest.raises(SourceError, match=r"x.npy: it has 100000000 bytes, expected at most"):
        Member(tmp_path / "a.tar", "x.npy", 512, 100_000_000).read()
