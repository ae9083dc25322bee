from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training.subjects.describe import describe
from training.subjects.noise_ceiling import estimate_ncsnr, noise_ceiling
from training.subjects.subject import Subject, write_subject
from training.subjects.trials import build_trials

NCSNR = np.array([0.0, 0.1, 0.25, 0.4, 0.6, 0.9, 1.5])
COPIES = 30


def simple_subject(folder: Path, n_images: int, n_repeats: int, *, seed: int = 5) -> Subject:
    """White signal and noise of known ratio, under another gain and offset in each session."""
    rng = np.random.default_rng(seed)
    ncsnr = np.repeat(NCSNR, COPIES)
    image_ids = rng.permutation(np.repeat(np.arange(n_images), n_repeats))
    session = np.arange(len(image_ids)) * 4 // len(image_ids)
    signal = rng.standard_normal((n_images, len(ncsnr))) * ncsnr
    response = signal[image_ids] + rng.standard_normal((len(image_ids), len(ncsnr)))
    gain = rng.uniform(0.5, 2, size=(4, len(ncsnr)))[session]
    voxels = gain * response + 3 * rng.standard_normal((4, len(ncsnr)))[session]
    split = dict.fromkeys(range(n_images), "train") | {0: "test"}
    return write_subject(
        folder,
        name="simple",
        voxels=voxels.astype(np.float32),
        trials=build_trials(image_ids, session, split),
        rois={"all": np.ones(len(ncsnr), dtype=bool)},
        images=None,
        command="test",
        details={},
    )


@pytest.mark.parametrize("n_repeats", [2, 3])
def test_the_set_ncsnr_is_recovered(tmp_path: Path, n_repeats: int) -> None:
    estimate = estimate_ncsnr(simple_subject(tmp_path / "s", 700, n_repeats))
    # The square is nearly unbiased, the root of a clipped estimate near zero is not.
    found = np.median(estimate.reshape(len(NCSNR), COPIES), axis=1)
    np.testing.assert_allclose(found[2:], NCSNR[2:], atol=0.03)
    assert found[0] < 0.1 and found[1] < 0.2


def test_the_estimate_is_nsds_formula(tmp_path: Path) -> None:
    subject = simple_subject(tmp_path / "s", 50, 3)
    session = subject.trials["session"].to_numpy()
    z = np.array(subject.voxels, dtype=np.float64)
    for label in np.unique(session):
        rows = session == label
        z[rows] = (z[rows] - z[rows].mean(axis=0)) / z[rows].std(axis=0, ddof=1)
    image_ids = subject.trials["image_id"].to_numpy()
    v = np.sqrt(np.mean([z[image_ids == i].var(axis=0, ddof=1) for i in range(50)], axis=0))
    expected = np.sqrt(np.maximum(0, 1 - v**2)) / v
    np.testing.assert_allclose(estimate_ncsnr(subject), expected, atol=1e-10)


def test_the_ceiling_is_the_reliability_of_the_average(rng: np.random.Generator) -> None:
    """Squared correlation of averaged trials with the signal, over many images."""
    for n_averaged in (1, 3):
        signal = 0.7 * rng.standard_normal(200_000)
        noise = rng.standard_normal((n_averaged, len(signal))).mean(axis=0)
        squared = np.corrcoef(signal, signal + noise)[0, 1] ** 2
        assert noise_ceiling(np.array([0.7]), n_averaged)[0] == pytest.approx(squared, abs=0.01)
    # data of NSD: median ncsnr .407 in occipito-temporal cortex is 33 % for three trials
    assert noise_ceiling(np.array([0.407]), 3)[0] == pytest.approx(0.33, abs=0.005)


def test_without_repeats_there_is_no_estimate(tmp_path: Path) -> None:
    subject = simple_subject(tmp_path / "s", 50, 1)
    with pytest.raises(ValueError, match=r"no image is repeated"):
        estimate_ncsnr(subject)
    assert describe(subject)["noise_ceiling"] is None


def test_a_constant_voxel_has_no_ceiling(tmp_path: Path) -> None:
    subject = simple_subject(tmp_path / "s", 50, 3)
    voxels = np.array(subject.voxels)
    voxels[:, 4] = 1.5
    still = write_subject(
        tmp_path / "still",
        name="still",
        voxels=voxels,
        trials=subject.trials,
        rois={},
        images=None,
        command="test",
        details={},
    )
    estimate = estimate_ncsnr(still)
    assert estimate[4] == 0 and np.isfinite(estimate).all()


def test_description_counts_what_is_there(tmp_path: Path) -> None:
    subject = simple_subject(tmp_path / "s", 40, 3)
    found = describe(subject)
    assert (found["n_trials"], found["n_images"], found["n_sessions"]) == (120, 40, 4)
    assert found["splits"]["train"] == {"n_trials": 117, "n_images": 39}
    assert found["splits"]["validation"] == {"n_trials": 0, "n_images": 0}
    assert found["repeats"] == {"3": 40} and found["rois"] == {"all": len(NCSNR) * COPIES}
    on_disk = sum(path.stat().st_size for path in subject.path.rglob("*") if path.is_file())
    assert found["disk_bytes"] == on_disk
    ncsnr = estimate_ncsnr(subject)
    assert found["noise_ceiling"]["median_averaged"] == np.median(noise_ceiling(ncsnr, 3))
    assert not found["is_simulated"] and not found["has_images"]
