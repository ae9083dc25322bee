"""Ridge regression: the linear decoder in closed form, as weights of the linear model.

Targets are reduced to their leading principal components, voxels predict each component with a
penalty of its own, chosen by cross-validation, and the components write the target. So the
solution is a voxel layer and a dense head with nothing between them.

Shapes: ``n`` images, ``V`` voxels, ``H`` latent width, ``T`` tokens, ``D`` width of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from index_builder.embeddings.errors import MissingExtraError

from .errors import RunError

ReadTargets = Callable[[NDArray[np.int64]], NDArray[np.float32]]

# Of the mean squared length of a sample, half a decade apart. Below, float32 rounds; above, nothing
# is left of a prediction.
PENALTIES = tuple(10.0 ** (step / 2) for step in range(-4, 7))
_BLOCK_BYTES = 256 << 20
_NEGLIGIBLE = 1e-7  # of the largest variance of a component: what float32 targets can't hold
# float32 matrices that himalaya has at a time, measured with one penalty a batch at n = 1,500 to
# 4,000: of shape (n, n) beside the kernel (6.2 to 6.5), and of shape (n, V) (5.0 to 5.2).
_DUAL_MATRICES, _PRIMAL_MATRICES = 7, 6


@dataclass(frozen=True)
class RidgeSolution:
    """A linear decoder: ``head_weight @ (voxel_weight @ voxels + voxel_bias) + head_bias``.

    Parameters
    ----------
    voxel_weight : float32 array of shape (H, V)
    voxel_bias : float32 array of shape (H,)
        Together they predict the principal components of the targets.
    head_weight : float32 array of shape (T * D, H)
        The components: orthonormal columns by decreasing variance. Zero, like the rows of
        ``voxel_weight``, beyond what the training targets have.
    head_bias : float32 array of shape (T * D,)
        Mean of the training targets.
    alphas : float64 array of shape (H,)
        Penalty of each component, on the scale of the sum of squares; NaN beyond.
    variance : float64 array of shape (H,)
        Of the training targets along each component.
    residual_variance : float64 array of shape (H,)
        What of it is left unpredicted, in cross-validation.
    """

    voxel_weight: NDArray[np.float32]
    voxel_bias: NDArray[np.float32]
    head_weight: NDArray[np.float32]
    head_bias: NDArray[np.float32]
    alphas: NDArray[np.float64]
    variance: NDArray[np.float64]
    residual_variance: NDArray[np.float64]

    @property
    def explained(self) -> NDArray[np.float64]:
        """Share of each component's variance that is predicted in cross-validation, (H,).

        Below 0 where the training mean would have been closer; 0 beyond the components.
        """
        positive = np.where(self.variance > 0, self.variance, 1.0)
        return np.where(self.variance > 0, 1 - self.residual_variance / positive, 0.0)

    def predict(self, voxels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return embeddings of shape (n, T * D) for voxels of shape (n, V)."""
        latent = voxels @ self.voxel_weight.T + self.voxel_bias
        return np.asarray(latent @ self.head_weight.T + self.head_bias, dtype=np.float32)

    def for_retrieval(self) -> RidgeSolution:
        """Return the decoder whose predictions are the best queries, not the closest guesses.

        Each component is divided by its residual variance, and all are multiplied by one number
        that gives them the targets' size. Components that cross-validation could not predict are
        left out.

        Notes
        -----
        Squared error shrinks what is hard to predict, but not enough to ask with. Let predictions
        ``p`` miss targets ``y`` by independent Gaussian errors of variance ``s`` along each
        component. Then ``log p(y_j | p)`` is ``sum(p * y_j / s)`` but for what all candidates have
        in common, and ``sum(y_j**2 / s) / 2``, which a cosine can't say and which differs little
        while errors are as large as fMRI's: the inner product of a candidate with the prediction
        over the variance of its error. What it gains: docs/training.md.
        """
        is_predicted = self.explained > 0
        gain = np.divide(
            1, self.residual_variance, out=np.zeros_like(self.variance), where=is_predicted
        )
        # The variance of a component's prediction is that of the component less the residual's.
        size = np.sum(gain**2 * np.where(is_predicted, self.variance - self.residual_variance, 0))
        if size > 0:
            gain *= np.sqrt(self.variance.sum() / size)
        gains = gain.astype(np.float32)
        return replace(
            self,
            voxel_weight=self.voxel_weight * gains[:, None],
            voxel_bias=self.voxel_bias * gains,
        )


def fit_ridge(
    voxels: NDArray[np.float32],
    read_targets: ReadTargets,
    *,
    latent_dim: int,
    penalties: Sequence[float] = PENALTIES,
    n_folds: int = 5,
    seed: int = 0,
    memory_bytes: int = 16 << 30,
) -> RidgeSolution:
    """Fit the linear decoder to training images.

    Parameters
    ----------
    voxels : float32 array of shape (n, V)
        Normalized, averaged over the repeats of an image: one row an image.
    read_targets : callable
        Returns the targets, of shape (k, T, D), for row numbers of ``voxels``, of shape (k,);
        `TargetTable.read` is one. Read by blocks, several times.
    latent_dim : int
        Components, at most.
    penalties : sequence of float, positive
        Candidates, in units of the mean squared length of a centered row of ``voxels``.
    n_folds : int, at least 2
    seed : int
        Of the division of the images into folds.
    memory_bytes : int
        Most that may be held beside ``voxels``.

    Returns
    -------
    solution : RidgeSolution

    Raises
    ------
    RunError
        If that much memory is not enough, there are fewer images than folds, or the voxels or the
        targets don't vary.
    MissingExtraError
        If himalaya is not installed.

    Notes
    -----
    Penalties are chosen for each component, by its squared error over all folds. With fewer images
    than voxels the regression is solved in the dual, by the eigenvalues of the (n, n) kernel,
    otherwise by the singular values of the voxels (himalaya: Dupré la Tour et al. 2022,
    doi:10.1016/j.neuroimage.2022.119728).
    """
    n_images, n_voxels = voxels.shape
    if n_images < n_folds:
        raise RunError(f"there are {n_images} training images for {n_folds} folds; give more.")
    mean_voxels = voxels.mean(axis=0, dtype=np.float64)
    tokens, dim = read_targets(np.arange(1)).shape[1:]
    needed = _needed_bytes(n_images, n_voxels, latent_dim, tokens * dim)
    if needed > memory_bytes:
        raise RunError(
            f"ridge regression of {n_images} images with {n_voxels} voxels and targets of "
            f"{tokens} x {dim} needs {needed / 2**30:.2f} GiB of memory beside the voxels, and may "
            f"use {memory_bytes / 2**30:.2f} GiB. Allow more (recipe field data.memory), or train "
            f"a recipe that goes by batches."
        )
    components = _principal_components(read_targets, n_images, latent_dim)
    deviations = np.sqrt(components.variance)
    order = np.random.default_rng(seed).permutation(n_images)
    coefficients, alphas, errors = _solve(
        voxels,
        mean_voxels,
        (components.scores / deviations).astype(np.float32),
        np.asarray(penalties, dtype=np.float64),
        [np.sort(fold) for fold in np.array_split(order, n_folds)],
    )
    n_kept = len(deviations)
    voxel_weight = np.zeros((latent_dim, n_voxels), np.float32)
    voxel_weight[:n_kept] = (coefficients * deviations).T
    head_weight = np.zeros((tokens * dim, latent_dim), np.float32)
    head_weight[:, :n_kept] = components.axes.T
    return RidgeSolution(
        voxel_weight=voxel_weight,
        voxel_bias=(-voxel_weight @ mean_voxels).astype(np.float32),
        head_weight=head_weight,
        head_bias=components.mean,
        alphas=_padded(alphas, latent_dim, np.nan),
        variance=_padded(components.variance, latent_dim, 0),
        residual_variance=_padded(errors * components.variance, latent_dim, 0),
    )


def _needed_bytes(n_images: int, n_voxels: int, latent_dim: int, width: int) -> int:
    """Return the most bytes held at a time beside the voxels."""
    weights = 4 * latent_dim * (width + 2 * n_voxels)
    of_components = 2 * 8 * min(n_images, width) ** 2 + 3 * _BLOCK_BYTES
    if n_images < n_voxels:
        of_regression = 4 * (_DUAL_MATRICES + 1) * n_images**2
    else:
        of_regression = 4 * _PRIMAL_MATRICES * n_images * n_voxels
    return weights + 8 * n_images * latent_dim + max(of_components, of_regression)


def _padded(values: NDArray[np.float64], length: int, filler: float) -> NDArray[np.float64]:
    return np.pad(values, (0, length - len(values)), constant_values=filler)


# ------------------------------------------------------------------- the components of the targets


@dataclass(frozen=True)
class _Components:
    """Principal components: mean (W,), axes (H, W), scores (n, H) and their variance (H,)."""

    mean: NDArray[np.float32]
    axes: NDArray[np.float32]
    scores: NDArray[np.float64]
    variance: NDArray[np.float64]


def _principal_components(read_targets: ReadTargets, n_images: int, n_most: int) -> _Components:
    """Return the leading components of the targets, from the smaller of their two Gram matrices."""
    width = read_targets(np.arange(1)).size
    block_rows = max(1, _BLOCK_BYTES // (4 * width))

    def blocks(n_before: int = n_images) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        for start in range(0, n_before, block_rows):
            rows = slice(start, min(start + block_rows, n_images))
            yield rows, read_targets(np.arange(rows.start, rows.stop)).reshape(-1, width)

    total = np.zeros(width)
    for _, block in blocks():
        total += block.sum(axis=0, dtype=np.float64)
    mean = (total / n_images).astype(np.float32)
    n_kept = min(n_most, n_images - 1, width)
    if n_images <= width:
        gram = np.zeros((n_images, n_images))
        for rows, block in blocks():
            centered = block - mean
            for columns, other in blocks(rows.stop):
                gram[rows, columns] = centered @ (other - mean).T
        squares, vectors = _leading(gram, n_kept)
        axes = np.zeros((len(squares), width), np.float32)
        for rows, block in blocks():
            axes += (vectors[rows] / np.sqrt(squares)).astype(np.float32).T @ (block - mean)
        return _Components(mean, axes, vectors * np.sqrt(squares), squares / n_images)
    gram = np.zeros((width, width))
    for _, block in blocks():
        centered = (block - mean).astype(np.float64)
        gram += centered.T @ centered
    squares, vectors = _leading(gram, n_kept)
    scores = np.empty((n_images, len(squares)))
    for rows, block in blocks():
        scores[rows] = (block - mean) @ vectors
    return _Components(mean, vectors.T.astype(np.float32), scores, squares / n_images)


def _leading(
    gram: NDArray[np.float64], n_most: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the largest eigenvalues of a Gram matrix, decreasing, and their eigenvectors.

    Only the lower triangle is read, and overwritten.
    """
    n = len(gram)
    values, vectors = scipy.linalg.eigh(
        gram, overwrite_a=True, check_finite=False, subset_by_index=[n - n_most, n - 1]
    )
    values, vectors = values[::-1], vectors[:, ::-1]
    n_kept = int((values > _NEGLIGIBLE * values[0]).sum()) if values[0] > 0 else 0
    if n_kept == 0:
        raise RunError(
            "the targets of all training images are equal, so there is nothing to predict; "
            "embed different pictures."
        )
    return values[:n_kept], vectors[:, :n_kept]


# ----------------------------------------------------------------------------------- the regression


def _solve(
    voxels: NDArray[np.float32],
    mean_voxels: NDArray[np.float64],
    scores: NDArray[np.float32],
    penalties: NDArray[np.float64],
    folds: list[NDArray[np.int64]],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Regress unit-variance scores on voxels.

    Returns
    -------
    coefficients : float64 array of shape (V, H)
    alphas : float64 array of shape (H,)
    errors : float64 array of shape (H,)
        Mean squared error over the folds, of the penalty that was chosen.
    """
    n_images, n_voxels = voxels.shape
    everyone = np.arange(n_images)
    splits = [(np.setdiff1d(everyone, fold), fold) for fold in folds]
    with _himalaya_on_numpy():
        from himalaya.kernel_ridge import solve_kernel_ridge_cv_eigenvalues
        from himalaya.ridge import solve_ridge_cv_svd

        if n_images < n_voxels:
            kernel = _centered_kernel(voxels)
            grid = _grid(penalties, float(np.trace(kernel, dtype=np.float64)) / n_images)
            alphas, dual, losses = solve_kernel_ridge_cv_eigenvalues(
                kernel, scores, alphas=grid, cv=splits, n_alphas_batch=1
            )
            # The columns of `dual` sum to zero, so that the voxels need no centering here.
            coefficients = voxels.T @ dual
        else:
            centered = voxels - mean_voxels.astype(np.float32)
            grid = _grid(penalties, float(np.square(centered, dtype=np.float64).sum()) / n_images)
            alphas, coefficients, losses = solve_ridge_cv_svd(
                centered, scores, alphas=grid, cv=splits, n_alphas_batch=1
            )
    return coefficients.astype(np.float64), alphas.astype(np.float64), -losses[0].astype(np.float64)


def _centered_kernel(voxels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the inner products, (n, n), of the rows less their mean."""
    kernel = np.asarray(voxels @ voxels.T)
    means = kernel.mean(axis=0, dtype=np.float64)
    kernel -= means.astype(np.float32)
    kernel -= (means - means.mean()).astype(np.float32)[:, None]
    return kernel


def _grid(penalties: NDArray[np.float64], unit: float) -> NDArray[np.float32]:
    if not unit > 0:
        raise RunError(
            "the voxels of all training images are equal, so nothing can be predicted from them; "
            "check the subject (voxseek data info)."
        )
    return (unit * penalties).astype(np.float32)


@contextmanager
def _himalaya_on_numpy() -> Iterator[None]:
    """Set himalaya's backend, which is global, and put it back after."""
    try:
        from himalaya.backend import get_backend, set_backend
    except ImportError as error:
        raise MissingExtraError("himalaya", "train", "ridge regression") from error
    before = get_backend()
    set_backend("numpy")
    try:
        yield
    finally:
        set_backend(before)
