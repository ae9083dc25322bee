from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from index_builder.embeddings.reader import EmbeddingFolder
from index_builder.embeddings.space import EmbeddingSpace
from index_builder.embeddings.writer import EmbeddingWriter
from training.errors import SourceError
from training.subjects import simulation
from training.subjects.low_level import CYCLES_PER_IMAGE, GRID, N_ORIENTATIONS, low_level_features
from training.subjects.regions import QUANTILE_LEVELS, REGIONS
from training.subjects.simulation import SimulationConfig, principal_components, simulate_subject
from training.subjects.subject import Subject
from training.subjects.truth import Truth

CONFIG = SimulationConfig(
    n_voxels=400, n_test=20, n_semantic_components=12, trials_per_session=60, dtype="float32"
)


@pytest.fixture(scope="module")
def subject(targets: EmbeddingFolder, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return simulate_subject(targets, tmp_path_factory.mktemp("simulated") / "s", CONFIG, seed=1)


def model_of(subject: Subject) -> dict[str, np.ndarray]:
    with np.load(subject.path / "truth/model.npz", allow_pickle=False) as model:
        return dict(model)


def make_bare_targets(folder: Path) -> EmbeddingFolder:
    space = EmbeddingSpace("bare", "final", 1, 3, False)
    with EmbeddingWriter(folder, space, command="test", details={}) as writer:
        writer.write(np.eye(3, dtype=np.float16), pa.table({"image_id": [0, 1, 2]}))
        return writer.finish()


def noise_of(subject: Subject) -> np.ndarray:
    """Recover the noise of every trial from the voxels and the truth."""
    truth = Truth.open(subject)
    session = subject.trials["session"].to_numpy()
    image_row = np.searchsorted(truth.image_ids, subject.trials["image_id"].to_numpy())
    standard = (subject.voxels - truth.session_offset[session]) / truth.session_gain[session]
    return standard - truth.signal[image_row]


def test_the_same_seed_gives_the_same_bytes(
    targets: EmbeddingFolder, subject: Subject, tmp_path: Path
) -> None:
    simulate_subject(targets, tmp_path / "again", CONFIG, seed=1)
    for path in sorted(path for path in subject.path.rglob("*") if path.is_file()):
        twin = tmp_path / "again" / path.relative_to(subject.path)
        assert twin.read_bytes() == path.read_bytes(), path
    other = simulate_subject(targets, tmp_path / "other", CONFIG, seed=2)
    assert not np.array_equal(other.voxels, subject.voxels)
    assert other.image_ids("test").tolist() != subject.image_ids("test").tolist()


def test_the_chunks_in_which_trials_are_recorded_do_not_matter(
    targets: EmbeddingFolder,
    subject: Subject,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(simulation, "_ROWS_A_CHUNK", 7)
    again = simulate_subject(targets, tmp_path / "again", CONFIG, seed=1)
    np.testing.assert_allclose(again.voxels, subject.voxels, rtol=1e-4, atol=1e-4)


def test_every_image_is_shown_thrice_over_sessions(subject: Subject) -> None:
    assert subject.is_simulated and subject.captions()[5] == "blobs 5"
    image_ids = subject.trials["image_id"].to_numpy()
    sessions = subject.trials["session"].to_numpy()
    assert (np.bincount(image_ids) == 3).all() and len(np.bincount(image_ids)) == 120
    np.testing.assert_array_equal(np.bincount(sessions), [60] * 6)
    n_sessions_of_image = [len(set(sessions[image_ids == image])) for image in range(120)]
    assert np.mean(n_sessions_of_image) > 2.2  # 3 of 6 sessions at random: 2.53 on average
    assert [len(subject.image_ids(s)) for s in ("train", "validation", "test")] == [90, 10, 20]


def test_noise_free_responses_vary_by_ncsnr(subject: Subject) -> None:
    signal, ncsnr = Truth.open(subject).signal, model_of(subject)["ncsnr"]
    np.testing.assert_allclose(signal.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(signal.std(axis=0), ncsnr, rtol=1e-4)


def test_each_region_has_the_published_distribution_of_ncsnr(subject: Subject) -> None:
    ncsnr = model_of(subject)["ncsnr"]
    for region in REGIONS:
        found = np.quantile(ncsnr[subject.rois[region.name]], QUANTILE_LEVELS[1:-1])
        expected = region.ncsnr_quantiles[1:-1]
        # A region of n voxels holds the quantiles to within half a voxel's rank.
        np.testing.assert_allclose(found, expected, atol=0.08, err_msg=region.name)


def test_voxels_belong_to_one_region_each(subject: Subject) -> None:
    assert list(subject.rois) == sorted(region.name for region in REGIONS)
    np.testing.assert_array_equal(sum(mask.astype(int) for mask in subject.rois.values()), 1)


def test_the_noise_has_the_recorded_law(subject: Subject) -> None:
    truth, noise = Truth.open(subject), noise_of(subject)
    covariance = truth.noise_factors @ truth.noise_factors.T + np.diag(truth.independent_variance)
    np.testing.assert_allclose(np.diag(covariance), 1, atol=1e-5)
    assert truth.independent_variance.min() > 0
    n_trials = len(noise)
    whitened = np.linalg.solve(np.linalg.cholesky(covariance), noise.T)
    # Sum of squares of independent standard normal numbers: chi-squared, variance 2 each.
    assert abs(np.mean(whitened**2) - 1) < 5 * np.sqrt(2 / whitened.size)
    empirical = noise.T @ noise / n_trials
    rms = np.sqrt(np.mean((empirical - covariance) ** 2))
    expected_rms = np.sqrt(np.mean(covariance**2 + 1) / n_trials)
    assert rms == pytest.approx(expected_rms, rel=0.1)


def test_neighbours_share_noise_and_strangers_do_not(subject: Subject) -> None:
    patch, noise = model_of(subject)["patch"], noise_of(subject)
    correlation = np.corrcoef(noise.T)
    is_same = (patch[:, None] == patch) & ~np.eye(len(patch), dtype=bool)
    assert correlation[is_same].mean() > CONFIG.patch_noise * 0.8
    assert abs(correlation[patch[:, None] != patch].mean()) < 0.05


def test_semantic_drive_rises_along_the_hierarchy(targets: EmbeddingFolder, tmp_path: Path) -> None:
    linear = simulate_subject(
        targets, tmp_path / "linear", replace(CONFIG, nonlinearity="linear"), seed=1
    )
    scores, _ = principal_components(targets.take(np.arange(120)).astype(np.float32), 12)
    signal = Truth.open(linear).signal
    explained = np.square(scores.T @ signal / 120).sum(axis=0) / signal.var(axis=0)
    medians = {name: np.median(explained[mask]) for name, mask in linear.rois.items()}
    assert medians["V1"] < medians["V3"] < medians["hV4"] < medians["ventral"]
    assert medians["ventral"] > 0.8


def test_pure_noise_has_no_signal(targets: EmbeddingFolder, tmp_path: Path) -> None:
    silent = simulate_subject(targets, tmp_path / "s", replace(CONFIG, ncsnr_scale=0.0), seed=1)
    assert not np.any(Truth.open(silent).signal)


@pytest.mark.parametrize("nonlinearity", ["linear", "softplus", "power"])
def test_nonlinearities_bend_as_said(
    targets: EmbeddingFolder, tmp_path: Path, nonlinearity: Any
) -> None:
    bent = simulate_subject(
        targets, tmp_path / "s", replace(CONFIG, nonlinearity=nonlinearity, n_images=60), seed=1
    )
    assert len(bent.image_ids("all")) == 60
    signal = Truth.open(bent).signal / model_of(bent)["ncsnr"]
    skewness = float(np.mean(signal**3))
    expected = {"linear": (-0.2, 0.2), "softplus": (0.2, 1.5), "power": (-1.5, -0.2)}
    low, high = expected[nonlinearity]
    assert low < skewness < high


def test_principal_components_are_those_of_the_singular_values(rng: np.random.Generator) -> None:
    embeddings = (rng.standard_normal((50, 9)) * np.arange(1, 10)).astype(np.float32)
    scores, spectrum = principal_components(embeddings, 5)
    singular = np.linalg.svd(embeddings - embeddings.mean(axis=0), compute_uv=False)
    np.testing.assert_allclose(spectrum, singular[:5] / np.sqrt(50), rtol=1e-5)
    np.testing.assert_allclose(scores.T @ scores / 50, np.eye(5), atol=1e-5)


@pytest.mark.parametrize("scale", range(len(CYCLES_PER_IMAGE)))
@pytest.mark.parametrize("orientation", range(N_ORIENTATIONS))
def test_a_grating_excites_its_own_channel_most(
    tmp_path: Path, scale: int, orientation: int
) -> None:
    angle = orientation * np.pi / N_ORIENTATIONS
    y, x = np.mgrid[0:256, 0:256] / 256
    phase = 2 * np.pi * CYCLES_PER_IMAGE[scale] * (x * np.cos(angle) + y * np.sin(angle))
    Image.fromarray((127 + 100 * np.cos(phase)).astype(np.uint8)).save(tmp_path / "grating.png")
    features = low_level_features(tmp_path / "grating.png")
    n_energy = len(CYCLES_PER_IMAGE) * N_ORIENTATIONS
    assert features[:n_energy].mean(axis=(1, 2)).argmax() == scale * N_ORIENTATIONS + orientation


def test_a_colored_cell_lies_where_it_was_painted(tmp_path: Path) -> None:
    pixels = np.full((64, 64, 3), 128, dtype=np.uint8)
    pixels[8:16, 40:48] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "red.png")
    luminance, red_green, blue_yellow = low_level_features(tmp_path / "red.png")[-3:]
    assert np.argwhere(red_green == red_green.max()).tolist() == [[1, 5]]
    assert red_green[1, 5] == pytest.approx(1) and blue_yellow[1, 5] == pytest.approx(-0.5)
    assert luminance[1, 5] == pytest.approx(0.299)
    assert np.count_nonzero(red_green) == 1 and luminance.shape == (GRID, GRID)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_voxels": 10}, "n_voxels is 10, expected at least 100"),
        ({"nonlinearity": "cubic"}, "nonlinearity is 'cubic'"),
        ({"patch_noise": 0.6, "global_noise": 0.4}, "their sum must be below 1"),
        ({"representation_noise": 2.0}, "would take 2.42 of the noise variance"),
        ({"validation_fraction": 1.0}, r"validation_fraction is 1.0, expected in \[0, 1\)"),
    ],
)
def test_impossible_configs_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SimulationConfig(**change)


def test_targets_that_can_not_be_shown_are_refused(
    tmp_path: Path, targets_with: Callable[..., EmbeddingFolder]
) -> None:
    small = replace(CONFIG, n_test=2)
    broken = targets_with(image_id=[0, 1, 2, 3, 1, 5])
    with pytest.raises(SourceError, match=r"hold image 1 more than once \(row 4\)"):
        simulate_subject(broken, tmp_path / "s", small, seed=0)


def test_a_missing_picture_is_named(
    tmp_path: Path, targets_with: Callable[..., EmbeddingFolder]
) -> None:
    lost = targets_with(image_path=[f"../pictures/{i}.png" for i in (0, 1, 2, 3, 44, 5)])
    with pytest.raises(SourceError, match=r"image 4 can't be read from .*44.png"):
        simulate_subject(lost, tmp_path / "s", replace(CONFIG, n_test=2), seed=0)


def test_too_few_or_equal_targets_are_refused(tmp_path: Path, targets: EmbeddingFolder) -> None:
    with pytest.raises(SourceError, match=r"hold 120 images, too few to show 500"):
        simulate_subject(targets, tmp_path / "s", replace(CONFIG, n_images=500), seed=0)
    with pytest.raises(SourceError, match=r"too few to show 120 and keep 120 of them"):
        simulate_subject(targets, tmp_path / "s", replace(CONFIG, n_test=120), seed=0)
    with pytest.raises(SourceError, match=r"embeddings of the targets are all equal"):
        principal_components(np.ones((5, 3), dtype=np.float32), 2)


def test_targets_need_the_columns_of_an_embedded_folder(tmp_path: Path) -> None:
    bare = make_bare_targets(tmp_path / "bare")
    with pytest.raises(SourceError, match=r"lack \['caption', 'image_path'\]"):
        simulate_subject(bare, tmp_path / "s", CONFIG, seed=0)
