"""The ideal observer of a simulated brain: how well anyone could tell which image was seen.

It knows the true response to every image and the law of the noise, so that its posterior is exact
and picking the candidate with the largest score is the Bayes-optimal decision under a flat prior.
No decoder, trained on any amount of data, identifies more images on average.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .subject import Subject
from .truth import Truth

_ROWS_A_BLOCK = 512
_RELATIVE_TIE = 1e-10  # differences of log likelihood below this share of it are rounding


class IdealObserver:
    """Exact likelihoods of the trials of a simulated subject; made by `open`.

    Notes
    -----
    With ``u = (voxels - offset) / gain`` a trial is ``u = x_i + n``, ``n ~ N(0, LLᵀ + diag(ψ))``.
    Products with the inverse covariance follow Woodbury's identity,
    ``Σ⁻¹ = D - D L (I + Lᵀ D L)⁻¹ Lᵀ D`` with ``D = diag(1 / ψ)``, and its determinant the matrix
    determinant lemma: no (n_voxels, n_voxels) matrix is made.
    """

    def __init__(self, subject: Subject, truth: Truth) -> None:
        self.subject = subject
        self.truth = truth
        loadings = truth.noise_factors.astype(np.float64)
        scaled = loadings / np.sqrt(truth.independent_variance)[:, None]
        core = np.linalg.cholesky(np.eye(loadings.shape[1]) + scaled.T @ scaled)
        # Rows w with w @ wᵀ = Lᵀ-part of Woodbury: Σ⁻¹ = D^½ (I - Wᵀ W) D^½.
        self._woodbury = np.linalg.solve(core, scaled.T)
        self._inverse_deviation = 1 / np.sqrt(truth.independent_variance)
        self._log_determinant = 2 * float(np.log(np.diag(core)).sum()) + float(
            np.log(truth.independent_variance).sum()
        )

    @classmethod
    def open(cls, subject: Subject) -> IdealObserver:
        """Read the truth beside a simulated subject.

        Raises
        ------
        SubjectError
            If the subject was not simulated, or its truth is damaged.
        """
        return cls(subject, Truth.open(subject))

    def scores(self, split: str = "test") -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Score every image of a split as the cause of the trials of each.

        Parameters
        ----------
        split : {"train", "validation", "test", "all"}

        Returns
        -------
        scores : float64 array of shape (n, n), nats
            ``scores[i, j]``: log probability density of all voxels in all trials of image ``i``,
            if image ``j`` had been shown. Rows are brains, columns candidates.
        image_ids : int64 array of shape (n,), increasing
            Of rows and columns.
        """
        single, trial_image, image_ids = self.trial_scores(split)
        summed = np.zeros((len(image_ids), len(image_ids)))
        np.add.at(summed, np.searchsorted(image_ids, trial_image), single)
        return summed, image_ids

    def trial_scores(
        self, split: str = "test"
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """Score every image of a split as the cause of each single trial.

        Returns
        -------
        scores : float64 array of shape (n_trials, n), nats
            Log probability density of the trial's voxels, if the image had been shown.
        trial_image_ids : int64 array of shape (n_trials,)
            The image that was shown; trials are in the order of ``subject.trial_rows(split)``.
        image_ids : int64 array of shape (n,), increasing
            Of the columns.
        """
        rows = self.subject.trial_rows(split)
        image_ids = self.subject.image_ids(split)
        candidates = self._whiten(self._signal(image_ids))
        session = self.subject.trials["session"].to_numpy()[rows]
        log_gain = np.log(self.truth.session_gain).sum(axis=1)
        constant = self._log_determinant + self.subject.n_voxels * math.log(2 * math.pi)
        scores = np.empty((len(rows), len(image_ids)))
        for start in range(0, len(rows), _ROWS_A_BLOCK):
            block = slice(start, start + _ROWS_A_BLOCK)
            gain = self.truth.session_gain[session[block]]
            voxels = self.subject.voxels[rows[block]].astype(np.float64)
            responses = self._whiten((voxels - self.truth.session_offset[session[block]]) / gain)
            squares = (
                _squared_norms(responses)[:, None]
                - 2 * _product(responses, candidates)
                + _squared_norms(candidates)
            )
            scores[block] = -0.5 * (squares + constant) - log_gain[session[block]][:, None]
        return scores, self.subject.trials["image_id"].to_numpy()[rows], image_ids

    def expected_top1(
        self,
        n_way: int,
        n_draws: int,
        seed: int,
        *,
        split: str = "test",
        n_averaged: int | None = None,
    ) -> tuple[float, float]:
        """Estimate the Bayes-optimal n-way accuracy, brain to image, over fresh noise.

        Parameters
        ----------
        n_way : int
            Candidates: the image that was seen and ``n_way - 1`` others of the split, over whose
            draws the expectation is exact.
        n_draws : int
            Fresh noises for each image of the split.
        seed : int
        split : {"train", "validation", "test", "all"}
        n_averaged : int or None
            Trials the observer sees of each image; None takes as many as the split has.

        Returns
        -------
        top1 : float in [0, 1]
        standard_error : float
            Of ``top1`` over draws of the noise, with the images fixed.

        Notes
        -----
        Only the inner products of the responses with the candidates' matter. Given image ``i``
        and ``R`` trials they are Gaussian with mean ``R K[i]`` and covariance ``R K``, with
        ``K = X Σ⁻¹ Xᵀ``, so they are drawn directly and no voxel is simulated.
        """
        image_ids = self.subject.image_ids(split)
        if not 1 <= n_way <= len(image_ids):
            raise ValueError(
                f"n_way is {n_way}, expected 1 to {len(image_ids)}, the images of {split!r}."
            )
        if n_draws < 2:
            raise ValueError(f"n_draws is {n_draws}, expected at least 2.")
        candidates = self._whiten(self._signal(image_ids))
        gram = _product(candidates, candidates)
        n_trials = self._n_trials(image_ids, n_averaged)
        values, vectors = np.linalg.eigh(gram)
        root = vectors * np.sqrt(np.maximum(values, 0))
        tie_width = _RELATIVE_TIE * (1 + float(n_trials.max() * np.diag(gram).max()))
        rng = np.random.default_rng(seed)
        log_chance = _log_share_of_pools(len(image_ids), n_way)
        accuracy = np.empty(n_draws)
        for draw in range(n_draws):
            noise = rng.standard_normal(gram.shape) @ root.T
            posterior = (
                n_trials[:, None] * (gram - np.diag(gram) / 2) + np.sqrt(n_trials)[:, None] * noise
            )
            margin = posterior - np.diag(posterior)[:, None]
            # Identical candidates tie but for rounding; a tie goes to either with equal chance.
            is_tied = np.abs(margin) <= tie_width
            key = rng.random(len(image_ids))
            wins_tie = is_tied & (key[None, :] > key[:, None])
            n_better = (((margin > 0) & ~is_tied) | wins_tie).sum(axis=1)
            accuracy[draw] = np.exp(log_chance[n_better]).mean()
        return float(accuracy.mean()), float(accuracy.std(ddof=1) / math.sqrt(n_draws))

    def _signal(self, image_ids: NDArray[np.int64]) -> NDArray[np.float64]:
        rows = np.searchsorted(self.truth.image_ids, image_ids)
        return self.truth.signal[rows].astype(np.float64)

    def _n_trials(
        self, image_ids: NDArray[np.int64], n_averaged: int | None
    ) -> NDArray[np.float64]:
        if n_averaged is not None:
            return np.full(len(image_ids), float(n_averaged))
        shown = self.subject.trials["image_id"].to_numpy()
        return np.bincount(
            np.searchsorted(image_ids, shown[np.isin(shown, image_ids)]), minlength=len(image_ids)
        ).astype(np.float64)

    def _whiten(self, rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return ``(a, b)`` such that ``x Σ⁻¹ yᵀ = a_x a_yᵀ - b_x b_yᵀ``."""
        scaled = rows * self._inverse_deviation
        return scaled, scaled @ self._woodbury.T


def _product(
    left: tuple[NDArray[np.float64], NDArray[np.float64]],
    right: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> NDArray[np.float64]:
    return np.asarray(left[0] @ right[0].T - left[1] @ right[1].T)


def _squared_norms(
    whitened: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> NDArray[np.float64]:
    return np.asarray((whitened[0] ** 2).sum(axis=1) - (whitened[1] ** 2).sum(axis=1))


def _log_share_of_pools(n_images: int, n_way: int) -> NDArray[np.float64]:
    """Return, by number of better candidates among all, the log share of pools without any."""

    def log_choose(n: int, k: int) -> float:
        if k > n:
            return -math.inf
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    total = log_choose(n_images - 1, n_way - 1)
    return np.array(
        [log_choose(n_images - 1 - better, n_way - 1) - total for better in range(n_images)]
    )
