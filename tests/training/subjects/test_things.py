from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from training.errors import SourceError
from training.subjects import things, things_table
from training.subjects.subject import Subject
from training.subjects.things import import_things, ncsnr_of_ceiling

N_VOXELS, N_SESSIONS, PER_SESSION = 30, 3, 10
N_TRIALS = N_SESSIONS * PER_SESSION


@pytest.fixture
def truth(rng: np.random.Generator) -> np.ndarray:
    """Voxels x trials; voxel 3 is NaN everywhere, 4 in session 1, 5 is 0 in session 2."""
    responses = 0.1 * rng.standard_normal((N_VOXELS, N_TRIALS))
    responses[3] = np.nan
    responses[4, 15] = np.nan
    responses[5, 20:] = 0
    return responses


@pytest.fixture
def stimuli(rng: np.random.Generator) -> pd.DataFrame:
    """Two pictures of the test in each session, eight new ones for training."""
    train = [f"{'dog' if i % 2 else 'ape'}_{i:02}s.jpg" for i in range(24)]
    names = [[*train[8 * s : 8 * s + 8], "cat_01s.jpg", "elk_01s.jpg"] for s in range(N_SESSIONS)]
    shuffled = [str(name) for session in names for name in rng.permutation(session)]
    is_test = [name[:3] in ("cat", "elk") for name in shuffled]
    return pd.DataFrame(
        {
            "trial_type": ["test" if flag else "train" for flag in is_test],
            "session": np.repeat(np.arange(1, N_SESSIONS + 1), PER_SESSION),
            "run": 1,
            "subject_id": 1,
            "trial_id": np.arange(N_TRIALS),
            "stimulus": shuffled,
            "concept": [name[:3] for name in shuffled],
        }
    )


@pytest.fixture
def voxels() -> pd.DataFrame:
    number = np.arange(N_VOXELS)
    return pd.DataFrame(
        {
            "voxel_id": number,
            "subject_id": 1,
            "voxel_x": number % 5,
            "voxel_y": number // 5,
            "voxel_z": 7,
            "nc_singletrial": np.where(number % 3, 20.0, 0.0),
            "nc_testset": 60.0,
            "splithalf_uncorrected": 1,
            "prf-size": 1.0,
            "V1": (number < 8).astype(float),
            "LO1 (prf)": (number % 4 == 1).astype(int),
            "lFFA": 0,
            "glasser": number,
        }
    )


def write(
    folder: Path, truth: np.ndarray, voxels: pd.DataFrame, stimuli: pd.DataFrame, **options: Any
) -> Path:
    root = folder / "betas_csv"
    root.mkdir(exist_ok=True)
    table = pd.DataFrame(truth)
    ids = options.pop("ids", np.arange(len(truth)))
    table.insert(0, "voxel_id", ids)
    table.columns = table.columns.astype(options.pop("names", object))
    file = root / "sub-01_ResponseData.h5"
    file.unlink(missing_ok=True)
    table.to_hdf(file, key="ResponseData", **options)
    voxels.to_csv(root / "sub-01_VoxelMetadata.csv", index=False)
    stimuli.to_csv(root / "sub-01_StimulusMetadata.csv", index=False)
    return folder


def run(release: Path, folder: str = "subject", **options: Any) -> Subject:
    arguments: dict[str, Any] = {"subject": "sub-01", "n_validation": 4} | options
    return import_things(release, release / folder, **arguments)


@pytest.mark.filterwarnings("ignore::pandas.errors.PerformanceWarning")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"complevel": 5},
        {"format": "table", "names": str},
        {"names": str, "ids": np.arange(N_VOXELS, dtype=float)},
    ],
    ids=["fixed", "compressed", "table", "ids among the numbers"],
)
def test_every_layout_of_pandas_gives_the_transpose(
    tmp_path: Path,
    truth: np.ndarray,
    voxels: pd.DataFrame,
    stimuli: pd.DataFrame,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(things_table, "SLAB_BYTES", 8 * N_TRIALS * 7)
    monkeypatch.setattr(things, "STRETCH_BYTES", 4 * N_VOXELS * 11)  # eleven trials at once
    subject = run(write(tmp_path, truth, voxels, stimuli, **options))
    expected = np.delete(truth, 3, axis=0)
    expected[3, 10:20] = 0
    np.testing.assert_array_equal(subject.voxels, expected.T.astype(np.float32))
    assert subject.details["n_voxels_left_out"] == 1 and subject.details["n_invalid_sessions"] == 2
    assert sorted(subject.rois) == ["LO1 (prf)", "V1"]
    table = subject.voxel_table()
    assert table is not None
    kept = np.delete(np.arange(N_VOXELS), 3)
    assert table["x"].to_pylist() == (kept % 5).tolist() and set(table["z"].to_pylist()) == {7}
    np.testing.assert_allclose(table["ncsnr"], np.where(kept % 3, 0.5, 0))


@pytest.fixture
def release(tmp_path: Path, truth: np.ndarray, voxels: pd.DataFrame, stimuli: pd.DataFrame) -> Path:
    return write(tmp_path, truth, voxels, stimuli, names=str)


def test_no_reading_of_the_table_exceeds_its_bound(
    release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dataset that counts what is asked of it: never more than a slab of some trials."""
    monkeypatch.setattr(things_table, "SLAB_BYTES", 8 * 60)
    monkeypatch.setattr(things, "STRETCH_BYTES", 4 * N_VOXELS * 6)
    sizes: list[int] = []
    plain = h5py.Dataset.__getitem__

    def counted(self: h5py.Dataset, where: Any, **options: Any) -> Any:
        part = plain(self, where, **options)
        sizes.append(part.nbytes)
        return part

    monkeypatch.setattr(h5py.Dataset, "__getitem__", counted)
    run(release)
    assert sum(sizes) >= 2 * 8 * N_VOXELS * N_TRIALS  # checked once, written once
    assert max(sizes) <= 8 * 60


def test_trials_splits_and_captions(release: Path, stimuli: pd.DataFrame) -> None:
    for number, name in enumerate(set(stimuli.stimulus)):
        path = release / "object_images" / name[:3] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
    subject = run(release / "betas_csv", "../subject", images=release / "object_images")
    names = pq.read_table(subject.path / "stimuli.parquet")["name"].to_pylist()
    assert [names[i] for i in subject.trials["image_id"].to_pylist()] == stimuli.stimulus.to_list()
    assert subject.trials["session"].to_pylist() == (stimuli.session - 1).to_list()
    assert [names[i] for i in subject.image_ids("test")] == ["cat_01s.jpg", "elk_01s.jpg"]
    assert len(subject.trial_rows("test")) == 6 and len(subject.image_ids("validation")) == 4
    assert set(subject.captions().values()) == {"dog", "ape", "cat", "elk"}


def test_regions_and_the_noise_ceiling_choose_voxels(release: Path) -> None:
    by_region = run(release, "a", rois=["LO1 (prf)"])
    assert by_region.n_voxels == 8 and by_region.rois["V1"].tolist() == [True] * 2 + [False] * 6
    both = run(release, "b", rois=["LO1 (prf)", "V1"], min_noise_ceiling=20)
    table = both.voxel_table()
    assert table is not None
    number = np.asarray(table["x"]) + 5 * np.asarray(table["y"])
    assert number.tolist() == [i for i in range(30) if i % 3 and (i < 8 or i % 4 == 1)]
    with pytest.raises(SourceError, match=r"has no region 'V9', expected one of V1, LO1 \(prf\)"):
        run(release, "c", rois=["V9"])
    with pytest.raises(SourceError, match=r"no voxel has a noise ceiling of 50 % and lies in V1"):
        run(release, "c", rois=["V1"], min_noise_ceiling=50)


def test_ncsnr_inverts_the_noise_ceiling() -> None:
    ncsnr = np.array([0, 0.3, 1.5])
    np.testing.assert_allclose(ncsnr_of_ceiling(100 * ncsnr**2 / (ncsnr**2 + 1)), ncsnr)
    assert np.isnan(ncsnr_of_ceiling(np.array([np.nan]))).all()
    assert np.isfinite(ncsnr_of_ceiling(np.array([-3.0, 100.0]))).all()


def test_files_that_disagree_are_refused(
    tmp_path: Path, truth: np.ndarray, voxels: pd.DataFrame, stimuli: pd.DataFrame
) -> None:
    def refused(match: str, **changes: Any) -> None:
        arguments: dict[str, Any] = {"truth": truth, "voxels": voxels, "stimuli": stimuli}
        release = write(tmp_path, **{"names": str} | arguments | changes)
        with pytest.raises(SourceError, match=match):
            run(release)

    refused(r"has 30 voxels x 29 trials, its metadata 30 voxels and 30", truth=truth[:, 1:])
    ids = np.arange(N_VOXELS)
    ids[8] = 99
    refused(r"ResponseData.h5, row 8: voxel_id is 99, and VoxelMetadata.csv has 8 there", ids=ids)
    refused(r"row 8: voxel_id is 99.0, and VoxelMetadata", ids=ids.astype(float))
    refused(r"is of subject 2, expected sub-01", stimuli=stimuli.assign(subject_id=2))
    refused(
        r"no column 'concept' \(it has trial_type, ses", stimuli=stimuli.drop(columns="concept")
    )
    refused(r"trial_type is 'catch' in some row", stimuli=stimuli.assign(trial_type="catch"))
    refused(r"column session holds string", stimuli=stimuli.assign(session="one"))
    both = stimuli.copy()
    both.loc[both.stimulus == "cat_01s.jpg", "trial_type"] = ["train", "test", "test"]
    refused(r"picture cat_01s.jpg is of training and test \(1 such", stimuli=both)


def test_damaged_and_missing_files_are_refused(release: Path) -> None:
    with pytest.raises(
        SourceError, match=r"sub-02_ResponseData.h5 is missing, expected a table of"
    ):
        run(release, subject="sub-02")
    file = release / "betas_csv/sub-01_ResponseData.h5"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(SourceError, match=r"ResponseData.h5 can't be read as HDF5"):
        run(release)
    with h5py.File(file, "w") as other:
        other["betas"] = np.zeros((3, 3))
    with pytest.raises(
        SourceError, match=r"holds 0 tables of real numbers among \['betas'\], expe"
    ):
        run(release)
    file.write_bytes(content)
    (release / "betas_csv/sub-01_VoxelMetadata.csv").write_text("<html>sign in</html>")
    with pytest.raises(SourceError, match=r"VoxelMetadata.csv is a web page"):
        run(release)
    (release / "betas_csv/sub-01_VoxelMetadata.csv").write_text("a,b\n1,2,3\n")
    with pytest.raises(SourceError, match=r"VoxelMetadata.csv can't be read as csv"):
        run(release)
