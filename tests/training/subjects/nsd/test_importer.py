from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from training.subjects.nsd import importer
from training.subjects.nsd.importer import import_nsd
from training.subjects.subject import Subject

from .conftest import N_SESSIONS, Truth
from .miniature import (
    GRID,
    N_TRIALS,
    N_VERTICES,
    Design,
    Miniature,
    write_betas_hdf5,
    write_surface,
)

OPTIONS = {"subject": 1, "n_validation": 20, "seed": 3}


@pytest.fixture(scope="module")
def subject(whole: Miniature, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return import_nsd(whole.root, tmp_path_factory.mktemp("subject"), dtype="float32", **OPTIONS)


def place(subject: Subject) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    table = subject.voxel_table()
    assert table is not None
    x, y, z = (table[axis].to_numpy() for axis in "xyz")
    return x, y, z


def test_columns_are_percent_signal_change_where_the_table_says(
    subject: Subject, truth: Truth
) -> None:
    x, y, z = place(subject)
    inside = np.argwhere(truth.labels == 1)  # in C order over (X, Y, Z)
    np.testing.assert_array_equal(np.stack([x, y, z], axis=1), inside)
    expected = np.concatenate([betas[x, y, z].T for betas in truth.betas]) / 300.0
    np.testing.assert_allclose(subject.voxels, expected, rtol=1e-6)
    np.testing.assert_array_equal(
        subject.voxel_table()["ncsnr"].to_numpy(), truth.ncsnr[truth.labels == 1]
    )
    assert subject.name == "subj01" and subject.details["n_sessions"] == N_SESSIONS


def test_float16_is_the_nearest_of_the_same_values(
    subject: Subject, whole: Miniature, tmp_path: Path
) -> None:
    half = import_nsd(whole.root, tmp_path / "s", **OPTIONS)
    np.testing.assert_array_equal(half.voxels, np.asarray(subject.voxels).astype(np.float16))


def test_trials_are_those_of_the_design(subject: Subject, design: Design) -> None:
    trials = subject.trials
    n = N_SESSIONS * N_TRIALS
    image_ids = design.image_ids(1)[:n]
    assert trials["image_id"].to_pylist() == image_ids.tolist()
    assert trials["image_id"][28].as_py() == 48617 and trials["repeat"][90].as_py() == 1
    assert trials["session"].to_pylist() == [trial // N_TRIALS for trial in range(n)]
    shown_and_shared = set(image_ids.tolist()) & set((design.sharedix[0] - 1).tolist())
    assert set(subject.image_ids("test").tolist()) == shown_and_shared
    assert len(subject.image_ids("validation")) == 20
    assert subject.details["is_published_design"]
    assert subject.details["agrees_with"] == ["responses.tsv", "nsd_stim_info_merged.csv"]
    repeats = np.unique(image_ids, return_counts=True)[1]
    assert {1, 2, 3} == set(repeats.tolist())


@pytest.mark.parametrize("form", [".nii.gz", ".nii", ".mat"])
def test_every_form_gives_the_same_bytes(
    form: str, subject: Subject, mini: Miniature, truth: Truth, tmp_path: Path
) -> None:
    for number, betas in enumerate(truth.betas, start=1):
        (mini.betas_folder() / f"betas_session{number:02d}.hdf5").unlink()
        mini.write_session(number, betas, form)
    other = import_nsd(mini.root, tmp_path / "s", dtype="float32", **OPTIONS)
    for name in ("voxels.npy", "voxels.parquet", "trials.parquet", "rois.npz"):
        assert (other.path / name).read_bytes() == (subject.path / name).read_bytes(), name


def test_pictures_stay_in_their_file(
    subject: Subject, whole: Miniature, mini: Miniature, tmp_path: Path
) -> None:
    image_id = int(subject.image_ids("test")[0])
    color = subject.open_image(image_id).getpixel((0, 0))
    assert color == tuple(image_id % modulus for modulus in (251, 241, 239))
    mini.stimuli_file.unlink()
    without = import_nsd(mini.root, tmp_path / "without", **OPTIONS)
    assert not without.has_images
    elsewhere = import_nsd(mini.root, tmp_path / "elsewhere", stimuli=whole.stimuli_file, **OPTIONS)
    assert elsewhere.open_image(image_id).getpixel((0, 0)) == color


def test_the_first_sessions_alone(mini: Miniature, design: Design, tmp_path: Path) -> None:
    """As for 37 of 40: what comes after neither has to be there nor counts as a repeat."""
    (mini.betas_folder() / "betas_session03.hdf5").write_bytes(b"")
    two = import_nsd(mini.root, tmp_path / "s", sessions=2, **OPTIONS)
    image_ids = design.image_ids(1)[: 2 * N_TRIALS]
    assert two.n_trials == 2 * N_TRIALS
    assert (
        two.trials["repeat"].to_numpy().max() + 1
        == np.unique(image_ids, return_counts=True)[1].max()
    )
    assert set(two.image_ids("test")) == set(image_ids) & set(design.sharedix[0] - 1)


def test_behavior_may_end_before_the_betas_or_after(mini: Miniature, tmp_path: Path) -> None:
    mini.write_responses(2)
    assert import_nsd(mini.root, tmp_path / "before", **OPTIONS).n_trials == 3 * N_TRIALS
    mini.write_responses(5)
    assert import_nsd(mini.root, tmp_path / "after", **OPTIONS).n_trials == 3 * N_TRIALS


def test_another_subject_has_its_own_images(
    mini: Miniature, truth: Truth, design: Design, tmp_path: Path
) -> None:
    mini.write_session(1, truth.betas[0], subject=4)
    mini.write_region("nsdgeneral", truth.labels, subject=4)
    four = import_nsd(mini.root, tmp_path / "s", **{**OPTIONS, "subject": 4})
    assert four.name == "subj04" and four.voxel_table().column_names == ["x", "y", "z"]
    assert four.trials["image_id"].to_pylist() == design.image_ids(4)[:N_TRIALS].tolist()
    assert four.details["agrees_with"] == ["nsd_stim_info_merged.csv"]


def test_regions_have_the_atlas_own_names(mini: Miniature, truth: Truth, tmp_path: Path) -> None:
    streams = np.where(truth.labels == 1, 5, -1)
    mini.write_region("streams", streams)
    mini.write_names(
        "streams", ("Unknown", *(f"s{i}" for i in range(1, 5)), "ventral"), "fsaverage"
    )
    mini.write_region("floc-faces", np.where(truth.labels == 1, truth.visual % 3, -1))
    mini.write_region("Kastner2015", truth.visual)
    mini.write_names("Kastner2015", ("Unknown", "V1v", "V1d"))
    subject = import_nsd(mini.root, tmp_path / "s", **OPTIONS)
    at = place(subject)
    visual = truth.visual[at]
    expected = {
        "nsdgeneral": np.ones(len(visual), dtype=bool),
        "prf-visualrois": visual > 0,
        "V1v": visual == 1,
        "V1": (visual == 1) | (visual == 2),
        "V3": (visual == 5) | (visual == 6),
        "hV4": visual == 7,
        "ventral": np.ones(len(visual), dtype=bool),
        "floc-faces": visual % 3 > 0,
        "floc-faces.2": visual % 3 == 2,
        "Kastner2015.V1d": visual == 2,
        "Kastner2015.3": visual == 3,
    }
    for name, flags in expected.items():
        np.testing.assert_array_equal(subject.rois[name], flags, err_msg=name)
    assert "s1" not in subject.rois and "Unknown" not in subject.rois


def test_voxels_without_data_are_zero_there_or_left_out(
    mini: Miniature, truth: Truth, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    betas = truth.betas.copy()
    never, once = np.argwhere(truth.labels == 1)[[4, 9]]
    betas[(slice(None), *never)] = 0
    betas[(slice(0, 1), *once)] = 0
    betas[(1, *once, 6)], betas[(1, *once, 7)] = 32767, -32768
    for number, session in enumerate(betas, start=1):
        mini.write_session(number, session)
    with caplog.at_level(logging.WARNING, logger="voxseek"):
        subject = import_nsd(mini.root, tmp_path / "s", dtype="float32", **OPTIONS)
    at = np.stack(place(subject), axis=1)
    assert not (at == never).all(axis=1).any()
    column = int(np.flatnonzero((at == once).all(axis=1))[0])
    assert (subject.voxels[:N_TRIALS, column] == 0).all()
    expected = betas[(slice(1, None), *once)].ravel() / 300.0
    np.testing.assert_allclose(subject.voxels[N_TRIALS:, column], expected, rtol=1e-6)
    assert subject.details["n_without_data"] == 1
    counts = json.loads((subject.path / importer.COUNTS).read_text())
    assert [session["n_voxels_without_data"] for session in counts] == [1, 0, 0]
    assert [session["n_saturated_values"] for session in counts] == [0, 2, 0]
    assert "1 voxels of the mask have no data in any session" in caplog.text
    assert "2 values stand at the ends of int16" in caplog.text


def test_unreliable_voxels_are_left_out(mini: Miniature, truth: Truth, tmp_path: Path) -> None:
    ncsnr = truth.ncsnr.copy()
    ncsnr[tuple(np.argwhere(truth.labels == 1)[0])] = np.nan
    mini.write_ncsnr(ncsnr)
    subject = import_nsd(mini.root, tmp_path / "s", min_ncsnr=0.5, **OPTIONS)
    kept = subject.voxel_table()["ncsnr"].to_numpy()
    inside = ncsnr[truth.labels == 1]
    np.testing.assert_array_equal(kept, inside[inside >= 0.5])
    assert subject.details["n_below_min_ncsnr"] == len(inside) - len(kept)


def test_fsaverage_is_percent_already_and_may_hold_nan(
    mini: Miniature, rng: np.random.Generator, tmp_path: Path
) -> None:
    folder = mini.betas_folder(space="fsaverage")
    sides = []
    for side, n in zip(("lh", "rh"), N_VERTICES, strict=True):
        betas = rng.standard_normal((n, N_TRIALS)).astype(np.float32)
        labels = (np.arange(n) % 3 == 0).astype(np.int32)
        betas[3, 5] = np.nan  # inside: invalid in this session
        write_surface(folder / f"{side}.betas_session01.mgh", betas)
        write_surface(folder / f"{side}.betas_session02.mgh", -np.nan_to_num(betas))
        write_surface(folder / f"{side}.ncsnr.mgh", np.arange(n, dtype=np.float32))
        write_surface(mini.labels_folder("fsaverage") / f"{side}.nsdgeneral.mgz", labels)
        sides.append(betas[labels > 0])
    subject = import_nsd(mini.root, tmp_path / "s", space="fsaverage", dtype="float32", **OPTIONS)
    table = subject.voxel_table().to_pydict()
    n_left = len(sides[0])
    assert table["hemisphere"] == ["lh"] * n_left + ["rh"] * len(sides[1])
    assert table["vertex"][n_left : n_left + 3] == [0, 3, 6]
    assert table["ncsnr"][1] == 3.0
    expected = np.concatenate(sides)
    invalid = np.isnan(expected).any(axis=1)
    first = np.where(invalid[:, None], 0, expected).T
    np.testing.assert_array_equal(subject.voxels[:N_TRIALS], first)
    np.testing.assert_array_equal(subject.voxels[N_TRIALS:], -np.nan_to_num(expected).T)
    assert invalid.sum() == 2


def test_native_surfaces_are_whole_numbers_times_300(
    mini: Miniature, rng: np.random.Generator, tmp_path: Path
) -> None:
    folder = mini.betas_folder(space="nativesurface")
    folder.mkdir(parents=True)
    sides = []
    for side, n in zip(("lh", "rh"), N_VERTICES, strict=True):
        sides.append(rng.integers(-3000, 3000, size=(n, N_TRIALS), dtype=np.int16))
        write_betas_hdf5(folder / f"{side}.betas_session01.hdf5", sides[-1])
        write_surface(mini.labels_folder() / f"{side}.nsdgeneral.mgz", np.ones(n, dtype=np.int32))
    subject = import_nsd(
        mini.root, tmp_path / "s", space="nativesurface", dtype="float32", **OPTIONS
    )
    np.testing.assert_allclose(subject.voxels, np.concatenate(sides).T / 300.0, rtol=1e-6)


_KILLED_AT_THE_SECOND_SESSION = """
import os, signal, sys
from training.subjects.nsd import importer
turn, n_done = importer.to_percent, 0
def die(*arguments):
    global n_done
    if n_done == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    n_done += 1
    return turn(*arguments)
importer.to_percent = die
importer.import_nsd(sys.argv[1], sys.argv[2], subject=1, n_validation=20, seed=3)
"""


def test_a_killed_import_goes_on_to_the_same_bytes(
    whole: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted = import_nsd(whole.root, tmp_path / "whole", **OPTIONS)
    folder = tmp_path / "killed"
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED_AT_THE_SECOND_SESSION, whole.root, folder],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL and not (folder / "subject.json").exists()
    n_read = 0
    turn = importer.to_percent

    def counting(*arguments: object) -> object:
        nonlocal n_read
        n_read += 1
        return turn(*arguments)

    monkeypatch.setattr(importer, "to_percent", counting)
    resumed = import_nsd(whole.root, folder, **OPTIONS)
    assert n_read == N_SESSIONS - 1
    files = sorted(path.name for path in uninterrupted.path.iterdir())
    assert sorted(path.name for path in resumed.path.iterdir()) == files
    for name in files:
        assert (resumed.path / name).read_bytes() == (uninterrupted.path / name).read_bytes(), name


def test_other_files_of_betas_begin_anew(
    mini: Miniature, truth: Truth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same options, after a session that was read already was downloaded again."""
    calls = iter([importer.to_percent, importer.to_percent])
    with monkeypatch.context() as patched:
        patched.setattr(importer, "to_percent", lambda *arguments: next(calls)(*arguments))
        with pytest.raises(StopIteration):
            import_nsd(mini.root, tmp_path / "s", **OPTIONS)
    changed = mini.write_session(1, -truth.betas[0])
    os.utime(changed, ns=(1, 1))
    subject = import_nsd(mini.root, tmp_path / "s", **OPTIONS)
    x, y, z = place(subject)
    expected = (-truth.betas[0][x, y, z, 0] / np.float32(300)).astype(np.float16)
    np.testing.assert_array_equal(subject.voxels[0], expected)


def test_a_table_of_the_release_can_be_missing(
    mini: Miniature, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mini.responses_file().unlink()
    mini.stim_info_file.unlink()
    subject = import_nsd(mini.root, tmp_path / "s", **OPTIONS)
    assert subject.details["agrees_with"] == []
    assert "nothing confirms which image each trial showed" in caplog.text


def test_a_design_that_is_not_the_published_one_is_said(
    mini: Miniature, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mini.design = Design(np.random.default_rng(8))
    row = int(mini.design.masterordering[0, 28]) - 1
    mini.design.subjectim[0, [row, 9999]] = mini.design.subjectim[0, [9999, row]]
    mini.write_design()
    mini.responses_file().unlink()
    mini.stim_info_file.unlink()
    subject = import_nsd(mini.root, tmp_path / "s", **OPTIONS)
    assert not subject.details["is_published_design"]
    assert "isn't the published design: trial 28 shows image" in caplog.text
    assert "published 48617" in caplog.text


def test_the_miniature_has_the_published_form(whole: Miniature) -> None:
    with h5py.File(whole.betas_folder() / "betas_session01.hdf5") as file:
        assert file["betas"].shape == (750, *reversed(GRID)) and file["betas"].dtype == "int16"
        assert file["betas"].chunks == (750, 1, 1, 1)
    assert whole.stim_info_file.read_text().startswith(",cocoId,cocoSplit,cropBox,loss,nsdId,")
    assert whole.responses_file().read_text().startswith("SUBJECT\tSESSION\tRUN\tTRIAL\t73KID\t")
