from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from index_builder.embeddings.errors import MissingExtraError
from training import ridge
from training.errors import RunError
from training.ridge import RidgeSolution, fit_ridge

N_VOXELS = 24


@dataclass(frozen=True)
class Data:
    """Voxels that are a noisy linear map of targets of several tokens."""

    voxels: np.ndarray
    targets: np.ndarray

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self.targets[rows]

    @property
    def flat(self) -> np.ndarray:
        return self.targets.reshape(len(self.targets), -1).astype(np.float64)


@pytest.fixture
def make_data() -> Callable[..., Data]:
    def make(
        n_images: int, *, tokens: int = 2, dim: int = 5, noise: float = 2.0, seed: int = 0
    ) -> Data:
        rng = np.random.default_rng(seed)
        spectrum = np.arange(1, tokens * dim + 1) ** -0.7
        targets = rng.standard_normal((n_images, tokens * dim)) * spectrum
        targets = targets @ np.linalg.qr(rng.standard_normal((tokens * dim, tokens * dim)))[0]
        readout = np.random.default_rng(99).standard_normal((tokens * dim, N_VOXELS))
        voxels = 3 + targets @ readout + noise * rng.standard_normal((n_images, N_VOXELS))
        shaped = (1 + targets).reshape(n_images, tokens, dim)
        return Data(voxels.astype(np.float32), shaped.astype(np.float32))

    return make


def closed_form(voxels: np.ndarray, targets: np.ndarray, alpha: float) -> np.ndarray:
    """Coefficients of centered voxels, in float64."""
    gram = voxels.T @ voxels + alpha * np.eye(voxels.shape[1])
    return np.linalg.solve(gram, voxels.T @ targets)


def centered(rows: np.ndarray) -> np.ndarray:
    return rows - rows.mean(axis=0, dtype=np.float64)


def unit_of(voxels: np.ndarray) -> float:
    return float(np.square(centered(voxels)).sum() / len(voxels))


@pytest.mark.parametrize("n_images", [16, 60], ids=["dual", "primal"])
def test_is_the_closed_form(make_data: Callable[..., Data], n_images: int) -> None:
    data, new = make_data(n_images), make_data(9, seed=1)
    solution = fit_ridge(data.voxels, data.read, latent_dim=10, penalties=[0.3])
    alpha = 0.3 * unit_of(data.voxels)
    np.testing.assert_allclose(solution.alphas, alpha, rtol=1e-5)
    weights = closed_form(centered(data.voxels), centered(data.flat), alpha)
    expected = data.flat.mean(axis=0) + (new.voxels - data.voxels.mean(axis=0)) @ weights
    np.testing.assert_allclose(solution.predict(new.voxels), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("n_images", [16, 60], ids=["dual", "primal"])
def test_is_himalayas_prediction(make_data: Callable[..., Data], n_images: int) -> None:
    from himalaya.kernel_ridge import KernelRidge
    from himalaya.ridge import Ridge

    data, new = make_data(n_images), make_data(9, seed=1)
    solution = fit_ridge(data.voxels, data.read, latent_dim=10)
    scores = centered(data.flat) @ solution.head_weight
    estimator = (KernelRidge if n_images < N_VOXELS else Ridge)(
        alpha=solution.alphas, fit_intercept=True
    )
    estimator.fit(data.voxels.astype(np.float64), scores)
    expected = estimator.predict(new.voxels.astype(np.float64))
    found = (solution.predict(new.voxels) - solution.head_bias) @ solution.head_weight
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("n_images", [18, 60], ids=["dual", "primal"])
def test_each_penalty_is_the_best_over_folds(make_data: Callable[..., Data], n_images: int) -> None:
    data, penalties = make_data(n_images), [0.01, 0.1, 1.0, 10.0]
    solution = fit_ridge(
        data.voxels, data.read, latent_dim=10, penalties=penalties, n_folds=3, seed=5
    )
    voxels, scores = centered(data.voxels), centered(data.flat) @ solution.head_weight
    order = np.random.default_rng(5).permutation(n_images)
    alphas = unit_of(data.voxels) * np.array(penalties)
    errors = np.zeros((len(alphas), 10))
    for fold in np.array_split(order, 3):
        rest = np.setdiff1d(order, fold)
        for at, alpha in enumerate(alphas):
            guess = voxels[fold] @ closed_form(voxels[rest], scores[rest], alpha)
            errors[at] += np.square(guess - scores[fold]).mean(axis=0) / 3
    np.testing.assert_allclose(solution.alphas, alphas[errors.argmin(axis=0)], rtol=1e-4)
    np.testing.assert_allclose(solution.residual_variance, errors.min(axis=0), rtol=1e-3)
    assert len(set(solution.alphas.round(3))) > 1  # components differ in what they need


@pytest.mark.parametrize("n_images", [8, 60], ids=["fewer images than width", "more"])
@pytest.mark.parametrize("block_bytes", [1, 100, 1 << 20])
def test_components_are_the_singular_vectors_of_the_targets(
    make_data: Callable[..., Data],
    monkeypatch: pytest.MonkeyPatch,
    n_images: int,
    block_bytes: int,
) -> None:
    monkeypatch.setattr(ridge, "_BLOCK_BYTES", block_bytes)
    data = make_data(n_images)
    solution = fit_ridge(data.voxels, data.read, latent_dim=4, n_folds=2)
    singular, axes = np.linalg.svd(centered(data.flat), full_matrices=False)[1:]
    np.testing.assert_allclose(solution.head_bias, data.flat.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(solution.variance, singular[:4] ** 2 / n_images, rtol=1e-4)
    projector = solution.head_weight @ solution.head_weight.T
    np.testing.assert_allclose(projector, axes[:4].T @ axes[:4], atol=1e-4)


def test_latents_beyond_the_components_are_silent(make_data: Callable[..., Data]) -> None:
    data = make_data(30)
    solution = fit_ridge(data.voxels, data.read, latent_dim=16)
    assert solution.voxel_weight.shape == (16, N_VOXELS)
    assert solution.head_weight.shape == (10, 16)
    assert not solution.voxel_weight[10:].any() and not solution.head_weight[:, 10:].any()
    assert np.isnan(solution.alphas[10:]).all() and not solution.explained[10:].any()
    query = solution.for_retrieval()
    assert np.isfinite(query.voxel_weight).all() and not query.voxel_weight[10:].any()


def test_a_query_weighs_components_by_the_precision_of_their_prediction(
    make_data: Callable[..., Data],
) -> None:
    data = make_data(40, noise=6.0)
    solution = fit_ridge(data.voxels, data.read, latent_dim=10)
    is_predicted = solution.explained > 0
    assert 0 < is_predicted.sum() < 10
    query = solution.for_retrieval()
    latent = data.voxels @ solution.voxel_weight.T + solution.voxel_bias
    of_query = data.voxels @ query.voxel_weight.T + query.voxel_bias
    gains = (of_query / latent)[:, is_predicted]
    precision = 1 / solution.residual_variance[is_predicted]
    np.testing.assert_allclose(
        gains / gains[:, :1], precision / precision[0] + 0 * gains, rtol=1e-3
    )
    assert not of_query[:, ~is_predicted].any()
    # The predictable variance, so weighted, is as large as that of the targets.
    signal = (solution.variance - solution.residual_variance)[is_predicted]
    assert np.sum(gains[0] ** 2 * signal) == pytest.approx(solution.variance.sum(), rel=1e-3)
    np.testing.assert_array_equal(query.head_weight, solution.head_weight)


def identify(solution: RidgeSolution, data: Data) -> float:
    """Share of images whose own target is the nearest by cosine."""
    guess = solution.predict(data.voxels).astype(np.float64)
    scores = guess @ (data.flat / np.linalg.norm(data.flat, axis=1, keepdims=True)).T
    return float((scores.argmax(axis=1) == np.arange(len(scores))).mean())


def test_noisy_queries_identify_more_images_than_regressions(
    make_data: Callable[..., Data],
) -> None:
    data, new = make_data(300, noise=3.0), make_data(400, noise=3.0, seed=1)
    solution = fit_ridge(data.voxels, data.read, latent_dim=10)
    assert identify(solution.for_retrieval(), new) > 1.5 * identify(solution, new) > 5 / 400


def test_another_seed_divides_otherwise_and_the_same_one_alike(
    make_data: Callable[..., Data],
) -> None:
    data = make_data(30)
    first, again, other = (
        fit_ridge(data.voxels, data.read, latent_dim=5, seed=seed) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.voxel_weight, again.voxel_weight)
    assert not np.array_equal(first.residual_variance, other.residual_variance)


def test_himalayas_backend_is_put_back(make_data: Callable[..., Data]) -> None:
    from himalaya.backend import get_backend, set_backend

    data = make_data(16)
    set_backend("torch")
    try:
        fit_ridge(data.voxels, data.read, latent_dim=3)
        assert get_backend().name == "torch"
    finally:
        set_backend("numpy")


def test_himalaya_is_asked_for_by_name(
    make_data: Callable[..., Data], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "himalaya.backend", None)
    data = make_data(16)
    with pytest.raises(MissingExtraError, match=r"himalaya is not installed.*voxseek\[train\]"):
        fit_ridge(data.voxels, data.read, latent_dim=3)


def test_what_can_not_be_fitted_is_refused(make_data: Callable[..., Data]) -> None:
    data = make_data(16)
    with pytest.raises(
        RunError, match=r"of 16 images with 24 voxels and targets of 2 x 5 needs 0\.75 GiB.*0\.00"
    ):
        fit_ridge(data.voxels, data.read, latent_dim=3, memory_bytes=1 << 20)
    with pytest.raises(RunError, match="4 training images for 5 folds"):
        fit_ridge(data.voxels[:4], data.read, latent_dim=3)
    with pytest.raises(RunError, match="targets of all training images are equal"):
        fit_ridge(data.voxels, lambda rows: np.ones((len(rows), 1, 3), np.float32), latent_dim=3)
    with pytest.raises(RunError, match="voxels of all training images are equal"):
        fit_ridge(np.ones((16, 30), np.float32), data.read, latent_dim=3)
