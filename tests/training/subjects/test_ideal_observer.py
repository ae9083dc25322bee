from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from index_builder.embeddings.reader import EmbeddingFolder
from training.errors import SubjectError
from training.subjects.ideal_observer import IdealObserver
from training.subjects.simulation import SimulationConfig, simulate_subject
from training.subjects.subject import Subject, write_subject
from training.subjects.trials import build_trials
from training.subjects.truth import Truth

HARD = SimulationConfig(
    n_voxels=200, n_test=40, n_semantic_components=12, ncsnr_scale=0.3, trials_per_session=60
)


def observer_of(
    folder: Path, signal: np.ndarray, rng: np.random.Generator, *, n_factors: int
) -> IdealObserver:
    """An observer of a subject whose images are all in the test split, in two sessions."""
    n_images, n_voxels = signal.shape
    image_ids = rng.permutation(np.repeat(np.arange(n_images), 3))
    session = np.arange(len(image_ids)) // math.ceil(len(image_ids) / 2)
    truth = Truth(
        image_ids=np.arange(n_images),
        signal=signal.astype(np.float32),
        noise_factors=rng.standard_normal((n_voxels, n_factors)).astype(np.float32),
        independent_variance=rng.uniform(0.5, 1.5, size=n_voxels)
        if n_factors
        else np.ones(n_voxels),
        session_gain=rng.uniform(0.5, 2, size=(2, n_voxels)),
        session_offset=rng.standard_normal((2, n_voxels)),
    )
    noise = rng.standard_normal((len(image_ids), n_factors)) @ truth.noise_factors.T
    noise += rng.standard_normal(noise.shape) * np.sqrt(truth.independent_variance)
    standard = truth.signal[image_ids] + noise
    subject = write_subject(
        folder,
        name="tiny",
        voxels=(truth.session_offset[session] + truth.session_gain[session] * standard).astype(
            np.float32
        ),
        trials=build_trials(image_ids, session, dict.fromkeys(range(n_images), "test")),
        rois={},
        images=None,
        command="test",
        details={},
    )
    return IdealObserver(subject, truth)


def orthogonal_top1(d_prime: float, n_way: int) -> float:
    """Return the Bayes-optimal accuracy for orthogonal signals of equal energy.

    ``∫ φ(x - d) Φ(x)^(n - 1) dx`` (Green & Swets 1966, Signal Detection Theory and Psychophysics,
    on the m-alternative forced choice), by the trapezoidal rule, which converges
    exponentially for such integrands.
    """
    x, step = np.linspace(d_prime - 12, d_prime + 12, 4801, retstep=True)
    density = np.exp(-0.5 * (x - d_prime) ** 2) / math.sqrt(2 * math.pi)
    below = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in x])
    return float((density * below ** (n_way - 1)).sum() * step)


def test_scores_are_the_brute_force_log_densities(tmp_path: Path, rng: np.random.Generator) -> None:
    observer = observer_of(tmp_path / "s", rng.standard_normal((6, 12)), rng, n_factors=3)
    subject, truth = observer.subject, observer.truth
    covariance = truth.noise_factors.astype(float) @ truth.noise_factors.T
    covariance += np.diag(truth.independent_variance)
    session = subject.trials["session"].to_numpy()
    expected = np.array(
        [
            [
                multivariate_normal(
                    truth.session_offset[s] + truth.session_gain[s] * truth.signal[candidate],
                    truth.session_gain[s][:, None] * covariance * truth.session_gain[s],
                ).logpdf(subject.voxels[trial])
                for candidate in range(6)
            ]
            for trial, s in enumerate(session)
        ]
    )
    single, shown, candidates = observer.trial_scores("test")
    np.testing.assert_allclose(single, expected, rtol=1e-9)
    np.testing.assert_array_equal(shown, subject.trials["image_id"].to_numpy())
    summed, image_ids = observer.scores("test")
    np.testing.assert_array_equal(image_ids, candidates)
    for image in range(6):
        np.testing.assert_allclose(summed[image], expected[shown == image].sum(axis=0), rtol=1e-9)


@pytest.mark.parametrize("n_way", [2, 10, 40])
def test_equidistant_signals_reach_the_closed_form(
    tmp_path: Path, rng: np.random.Generator, n_way: int
) -> None:
    d_prime = 2.0
    signal = np.zeros((40, 50))
    signal[np.arange(40), np.arange(40)] = d_prime / math.sqrt(3)  # three trials are averaged
    observer = observer_of(tmp_path / "s", signal, rng, n_factors=0)
    top1, standard_error = observer.expected_top1(n_way, 400, seed=0)
    assert standard_error < 0.01
    assert abs(top1 - orthogonal_top1(d_prime, n_way)) < 4 * standard_error
    single, _ = observer.expected_top1(n_way, 400, seed=0, n_averaged=1)
    assert abs(single - orthogonal_top1(d_prime / math.sqrt(3), n_way)) < 0.015


def test_closed_form_at_its_known_points() -> None:
    assert orthogonal_top1(0.0, 7) == pytest.approx(1 / 7, abs=1e-12)
    normal_cdf = 0.5 * math.erfc(-1.3 / math.sqrt(2) / math.sqrt(2))
    assert orthogonal_top1(1.3, 2) == pytest.approx(normal_cdf, abs=1e-12)
    assert orthogonal_top1(3.0, 1) == pytest.approx(1, abs=1e-12)
    assert orthogonal_top1(12.0, 1000) == pytest.approx(1, abs=1e-9)


@pytest.fixture(scope="module")
def hard_subject(targets: EmbeddingFolder, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return simulate_subject(targets, tmp_path_factory.mktemp("hard") / "s", HARD, seed=3)


def test_no_linear_decoder_that_knows_the_map_does_better(
    hard_subject: Subject, rng: np.random.Generator
) -> None:
    observer = IdealObserver.open(hard_subject)
    truth = observer.truth
    signal = truth.signal[np.searchsorted(truth.image_ids, hard_subject.image_ids("test"))]
    n_images, n_draws = len(signal), 300
    bayes, bayes_error = observer.expected_top1(n_images, n_draws, seed=0)
    assert 0.3 < bayes < 0.95  # hard enough to tell decoders apart
    covariance = truth.noise_factors @ truth.noise_factors.T + np.diag(truth.independent_variance)
    root = np.linalg.cholesky(covariance.astype(float)) / math.sqrt(3)
    fresh = signal + rng.standard_normal((n_draws, *signal.shape)) @ root.T
    for penalty in (1e-3, 0.1, 1.0, 10.0):
        # From matched filter (large penalty) to inverse noise covariance (small).
        decoder = np.linalg.solve(covariance + penalty * np.eye(len(covariance)), signal.T)
        for bias in (0.0, 0.5):
            evidence = fresh @ decoder - bias * np.einsum("iv,vi->i", signal, decoder)
            correct = (evidence.argmax(axis=2) == np.arange(n_images)).mean(axis=1)
            error = math.hypot(correct.std() / math.sqrt(n_draws), bayes_error)
            assert correct.mean() < bayes + 3 * error
            cosine = evidence / np.linalg.norm(signal @ decoder, axis=0)
            correct = (cosine.argmax(axis=2) == np.arange(n_images)).mean(axis=1)
            assert correct.mean() < bayes + 3 * error


def test_realised_accuracy_agrees_with_the_expectation(
    hard_subject: Subject,
) -> None:
    observer = IdealObserver.open(hard_subject)
    scores, image_ids = observer.scores("all")
    realised = float((scores.argmax(axis=1) == np.arange(len(image_ids))).mean())
    expected, _ = observer.expected_top1(len(image_ids), 50, seed=0, split="all")
    assert abs(realised - expected) < 4 * math.sqrt(expected * (1 - expected) / len(image_ids))
    single, shown, _ = observer.trial_scores("all")
    realised_single = float((image_ids[single.argmax(axis=1)] == shown).mean())
    expected_single, _ = observer.expected_top1(
        len(image_ids), 50, seed=0, split="all", n_averaged=1
    )
    assert expected_single < expected - 0.05
    tolerance = 4 * math.sqrt(expected_single * (1 - expected_single) / len(shown))
    assert abs(realised_single - expected_single) < tolerance


def test_more_candidates_are_harder_and_pools_are_averaged_exactly(hard_subject: Subject) -> None:
    observer = IdealObserver.open(hard_subject)
    top1 = [observer.expected_top1(n_way, 50, seed=0)[0] for n_way in (1, 2, 10, 40)]
    assert top1[0] == pytest.approx(1) and top1 == sorted(top1, reverse=True)
    with pytest.raises(ValueError, match=r"n_way is 41, expected 1 to 40"):
        observer.expected_top1(41, 50, seed=0)
    with pytest.raises(ValueError, match=r"n_draws is 1"):
        observer.expected_top1(40, 1, seed=0)


def test_pure_noise_is_identified_by_chance(targets: EmbeddingFolder, tmp_path: Path) -> None:
    silent = simulate_subject(targets, tmp_path / "s", replace(HARD, ncsnr_scale=0.0), seed=3)
    observer = IdealObserver.open(silent)
    top1, _ = observer.expected_top1(10, 20, seed=0)
    assert top1 == pytest.approx(0.1)  # every candidate ties, so each rank comes once
    scores, _ = observer.scores("test")
    np.testing.assert_allclose(scores, scores[:, :1] + np.zeros(40), rtol=1e-12)


def test_real_subjects_have_no_ideal_observer(tmp_path: Path, rng: np.random.Generator) -> None:
    observer = observer_of(tmp_path / "s", rng.standard_normal((4, 5)), rng, n_factors=1)
    with pytest.raises(SubjectError, match=r"is not a simulated subject"):
        IdealObserver.open(observer.subject)


def test_a_damaged_truth_is_named(hard_subject: Subject, tmp_path: Path) -> None:
    shutil.copytree(hard_subject.path, tmp_path / "s")
    subject = Subject.open(tmp_path / "s")
    (tmp_path / "s/truth/model.npz").write_bytes(b"PK")
    with pytest.raises(SubjectError, match=r"truth of .* can't be read"):
        IdealObserver.open(subject)
