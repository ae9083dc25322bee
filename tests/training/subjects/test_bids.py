from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from training.errors import SourceError
from training.subjects.bids import import_bids
from training.subjects.subject import Subject

SHAPE = (3, 4, 2)
AFFINE = np.diag([2.0, 2, 2, 1])
RUNS = (("02", 1, 5), ("02", 2, 6), ("10", 1, 7))  # session, run, pictures


@pytest.fixture
def truth(rng: np.random.Generator) -> np.ndarray:
    """Betas of 18 trials with pictures, (trials, *SHAPE); a voxel is lost in the first session."""
    responses = rng.standard_normal((18, *SHAPE)).astype(np.float32)
    responses[0, 1, 1, 1] = np.nan
    return responses


@pytest.fixture
def shown(rng: np.random.Generator) -> list[str]:
    names = [*(f"images/p{i}.png" for i in range(9)), *["images/t0.png", "images/t1.png"] * 3]
    return [names[i] for i in [*rng.permutation(len(names)), 0, 1, 2]]


def event_rows(names: list[str], *, n_blank: int) -> list[list[str]]:
    """Events with blank trials among them, by onset."""
    rows = [[name, "test" if "/t" in name else "train"] for name in names]
    for number in range(n_blank):
        rows.insert(2 * number + 1, ["n/a", "blank"] if number % 2 else ["grey.png", "blank"])
    return [[f"{4.5 * i:.1f}", "3", *row] for i, row in enumerate(rows)]


def write_events(path: Path, rows: list[list[str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [["onset", "duration", "stim_file", "trial_type"], *rows[1:], rows[0]]  # not by onset
    path.write_text("".join("\t".join(line) + "\n" for line in lines))
    return path


def write_nifti(path: Path, volumes: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.moveaxis(volumes, 0, -1), affine), path)
    return path


@pytest.fixture
def dataset(tmp_path: Path, truth: np.ndarray, shown: list[str]) -> Path:
    """Runs of two sessions, two blank trials in each, whose betas hold the pictures only."""
    start = 0
    for session, run_number, count in RUNS:
        place = f"sub-01/ses-{session}/func/sub-01_ses-{session}_task-x_run-{run_number}"
        part = slice(start, start + count)
        write_nifti(tmp_path / f"derivatives/{place}_space-T1w_betas.nii.gz", truth[part])
        rows = event_rows(shown[part], n_blank=2)
        write_events(tmp_path / f"raw/{place.replace('run-', 'run-0')}_events.tsv", rows)
        start += count
    for number, name in enumerate(set(shown)):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / name)
    return tmp_path


def run(dataset: Path, folder: str = "subject", **options: Any) -> Subject:
    arguments: dict[str, Any] = {
        "betas": [dataset / "derivatives"],
        "events": [dataset / "raw"],
        "name": "sub-01",
        "drop": ["trial_type=blank"],
        "n_validation": 2,
    }
    if not {"test_list", "test_where", "min_test_shows"} & options.keys():
        arguments["test_where"] = "trial_type=test"
    return import_bids(folder=dataset / folder, **arguments | options)


def expected(truth: np.ndarray) -> np.ndarray:
    flat = truth.reshape(18, -1).copy()
    flat[:11, np.ravel_multi_index((1, 1, 1), SHAPE)] = 0
    return flat


def test_runs_are_joined_to_their_events(
    dataset: Path, truth: np.ndarray, shown: list[str]
) -> None:
    subject = run(dataset, images=dataset / "images")
    np.testing.assert_array_equal(subject.voxels, expected(truth))
    names = pq.read_table(subject.path / "stimuli.parquet")["name"].to_pylist()
    assert [names[i] for i in subject.trials["image_id"].to_pylist()] == shown
    assert subject.trials["session"].to_pylist() == [0] * 11 + [1] * 7
    assert subject.details["sessions"] == ["2", "10"]
    assert subject.details["n_events_dropped"] == 6 and subject.details["n_invalid_sessions"] == 1
    assert [names[i] for i in subject.image_ids("test")] == ["images/t0.png", "images/t1.png"]
    assert len(subject.image_ids("validation")) == 2
    picture = subject.image(names.index("images/p3.png"))
    assert isinstance(picture, Path)
    assert picture.read_bytes() == (dataset / "images/p3.png").read_bytes()


def test_betas_of_dropped_events_are_dropped_with_them(
    dataset: Path, truth: np.ndarray, shown: list[str]
) -> None:
    start = 0
    for session, run_number, count in RUNS:
        rows = event_rows(shown[start : start + count], n_blank=2)
        volumes = np.zeros((len(rows), *SHAPE), np.float32)
        volumes[[row[3] != "blank" for row in rows]] = truth[start : start + count]
        name = f"sub-01_ses-{session}_task-x_run-{run_number}_space-T1w_betas.nii.gz"
        write_nifti(next((dataset / "derivatives").rglob(name)), volumes)
        start += count
    np.testing.assert_array_equal(run(dataset).voxels, expected(truth))


@pytest.mark.parametrize("kind", ["session", "hdf5", "mat"])
def test_one_file_may_hold_several_runs(
    dataset: Path, truth: np.ndarray, shown: list[str], kind: str
) -> None:
    together = dataset / "together"
    together.mkdir()
    if kind == "session":
        write_nifti(together / "sub-01_ses-02_betas.nii.gz", truth[:11])
        write_nifti(together / "sub-01_ses-10_betas.nii.gz", truth[11:])
    else:
        volumes = np.moveaxis(truth, 0, -1)
        file = together / f"TYPED_FITHRF_GLMDENOISE_RR.{kind}"
        with h5py.File(file, "w") as content:
            content["betasmd" if kind == "hdf5" else "modelmd"] = (
                volumes if kind == "hdf5" else volumes.T
            )
        (together / "TYPEB_FITHRF.hdf5").write_bytes(file.read_bytes())
    subject = run(dataset, betas=[together])
    np.testing.assert_array_equal(subject.voxels, expected(truth))
    assert subject.trials["session"].to_pylist() == [0] * 11 + [1] * 7


def test_the_test_by_list_and_by_shows(dataset: Path, shown: list[str]) -> None:
    (dataset / "test.txt").write_text("images/p4.png\nimages/p5.png\n")
    listed = run(dataset, "listed", test_list=dataset / "test.txt")
    names = pq.read_table(listed.path / "stimuli.parquet")["name"].to_pylist()
    assert [names[i] for i in listed.image_ids("test")] == ["images/p4.png", "images/p5.png"]
    often = run(dataset, "often", min_test_shows=3)
    assert {names[i] for i in often.image_ids("test")} == {n for n in shown if shown.count(n) > 2}


def test_masks_and_regions_of_the_same_space(dataset: Path, truth: np.ndarray) -> None:
    values = np.zeros((1, *SHAPE), np.uint8)
    values[:, 1:] = 1
    mask = write_nifti(dataset / "mask.nii.gz", values)
    values[:, 2] = 0
    region = write_nifti(dataset / "sub-01_label-V1_mask.nii.gz", values)
    subject = run(dataset, mask=mask, rois=[region])
    np.testing.assert_array_equal(subject.voxels, expected(truth)[:, 8:])
    assert subject.rois["V1"].tolist() == [True] * 8 + [False] * 8
    other = AFFINE.copy()
    other[1, 3] = 3
    with pytest.raises(SourceError, match=r"mask.nii.gz has another affine than sub-01_ses-02"):
        run(dataset, "x", mask=write_nifti(mask, values, other))


def test_options_that_contradict_each_other_are_refused(dataset: Path) -> None:
    with pytest.raises(
        ValueError, match=r"exactly one of test_list, test_where and min_test_shows"
    ):
        run(dataset, test_where="a=b", min_test_shows=2)
    with pytest.raises(ValueError, match=r"'blank' is no condition, expected COLUMN=VALUE"):
        run(dataset, drop=["blank"])
    with pytest.raises(ValueError, match=r"no events were given, expected at least one file"):
        run(dataset, events=[])
    with pytest.raises(SourceError, match=r"images holds no events \(\*_events.tsv\)"):
        run(dataset, events=[dataset / "images"])
    with pytest.raises(SourceError, match=r"_betas.nii.gz was given twice; give it once"):
        run(dataset, betas=[dataset / "derivatives", dataset])


def test_files_that_do_not_belong_together_are_refused(dataset: Path) -> None:
    events = sorted((dataset / "raw").rglob("*.tsv"))
    with pytest.raises(
        SourceError, match=r"run-2_space-T1w_betas.nii.gz has no events file with th"
    ):
        run(dataset, events=[events[0], events[2]])
    betas = sorted((dataset / "derivatives").rglob("*.nii.gz"))
    with pytest.raises(
        SourceError, match=r"ses-02_task-x_run-02_events.tsv belongs to 0 files of b"
    ):
        run(dataset, betas=[betas[0], betas[2]])
    with pytest.raises(SourceError, match=r"events.tsv belongs to 2 files of betas \(.*_betas.nii"):
        run(
            dataset,
            betas=[*betas, write_nifti(dataset / "sub-01_betas.nii", np.ones((18, *SHAPE)))],
        )
    stranger = events[0].with_name("sub-02_ses-02_task-x_run-01_events.tsv")
    stranger.write_bytes(events[0].read_bytes())
    with pytest.raises(
        SourceError, match=r"sub-02_.*events.tsv is of another subject than .*sub-01"
    ):
        run(dataset)


def test_a_count_of_volumes_that_fits_nothing_is_refused(dataset: Path, truth: np.ndarray) -> None:
    file = next((dataset / "derivatives").rglob("*run-2*.nii.gz"))
    write_nifti(file, truth[:7])
    with pytest.raises(
        SourceError, match=r"has 7 volumes, and .*run-02_events.tsv .* 8 events, 6 of them with a p"
    ):
        run(dataset)


def test_wrong_tables_of_events_are_refused(dataset: Path) -> None:
    with pytest.raises(
        SourceError, match=r"has columns onset, duration, stim_file, trial_type, ex"
    ):
        run(dataset, stimulus_column="ImgName")
    with pytest.raises(
        SourceError, match=r"every event is dropped, duration is empty in all others"
    ):
        run(dataset, drop=["duration=3"], stimulus_column="duration")
    with pytest.raises(SourceError, match=r"no event has trial_type=tests, so there is no picture"):
        run(dataset, test_where="trial_type=tests")
    file = next((dataset / "raw").rglob("*.tsv"))
    text = file.read_text()
    file.write_text(text.replace("4.5\t", "n/a\t"))
    with pytest.raises(
        SourceError, match=r"events.tsv: onset is 'n/a' in some row, expected secon"
    ):
        run(dataset)
    file.write_text(text.replace("test", "train", 1))
    with pytest.raises(
        SourceError, match=r"picture 'images/t\d.png' has events with trial_type=te"
    ):
        run(dataset)
    file.write_text(text + "\t".join("123456") + "\n")
    with pytest.raises(SourceError, match=r"events.tsv can't be read as a table with tabs"):
        run(dataset)
    (dataset / "test.txt").write_text("x.png\n")
    file.write_text(text)
    with pytest.raises(SourceError, match=r"test.txt lists none of the 11 pictures"):
        run(dataset, test_list=dataset / "test.txt")


def test_a_folder_of_pickles_gets_the_cure(dataset: Path) -> None:
    (dataset / "glm").mkdir()
    (dataset / "glm/TYPED_FITHRF_GLMDENOISE_RR.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(SourceError, match=r"TYPED_.*npy is a pickled dictionary.*wanthdf5=1"):
        run(dataset, betas=[dataset / "glm"])
