"""Logistic calibration: from what a search shows of a query to the probability that it is right.

Platt scaling on several features. Why logistic and not isotonic, and why these features:
docs/confidence.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Of half the squared length of the coefficients, per standard deviation of a feature: a Gaussian
# prior of deviation 3.2. It keeps separable data finite and costs others next to nothing.
PENALTY = 0.1
N_FOLDS = 10
_MOST_STEPS = 100
_TOLERANCE = 1e-10  # of the gradient, per query


@dataclass(frozen=True)
class LogisticModel:
    """Probability of being right as a logistic function of standardized features.

    Parameters
    ----------
    features : tuple of str
        Names, in the order of the columns.
    means, deviations : tuple of float
        Of each feature where it was fitted; a deviation of 1 where it was constant.
    coefficients : tuple of float
        Log odds per standard deviation.
    intercept : float
        Log odds at the means.
    n_queries : int
        Queries that it was fitted on.
    """

    features: tuple[str, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]
    coefficients: tuple[float, ...]
    intercept: float
    n_queries: int

    def __str__(self) -> str:
        named = zip(self.coefficients, self.features, strict=True)
        terms = "".join(f" {weight:+.2f} {name}" for weight, name in named if weight)
        return f"log odds {self.intercept:+.2f}{terms} (in standard deviations)"

    @property
    def least(self) -> float:
        """The least probability, and what the largest lacks to 1: 1 / (n_queries + 2)."""
        return 1 / (self.n_queries + 2)

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Return the probability of each row of features.

        Parameters
        ----------
        features : ndarray of shape (n, n_features), float64

        Returns
        -------
        probabilities : ndarray of shape (n,), float64
            NaN where a feature is. Otherwise from ``least`` to 1 - ``least``.

        Notes
        -----
        The bounds are Laplace's rule of succession: n queries, all of them right, support no more
        than (n + 1) / (n + 2), wherever the logistic curve goes beyond them.
        """
        standard = (features - np.array(self.means)) / np.array(self.deviations)
        odds = standard @ np.array(self.coefficients) + self.intercept
        bounded: np.ndarray = np.clip(_logistic(odds), self.least, 1 - self.least)
        return bounded

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        return {
            "kind": "logistic",
            "features": list(self.features),
            "means": list(self.means),
            "deviations": list(self.deviations),
            "coefficients": list(self.coefficients),
            "intercept": self.intercept,
            "n_queries": self.n_queries,
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> LogisticModel:
        """Return the model that `to_dict` describes."""
        return cls(
            features=tuple(fields["features"]),
            means=tuple(fields["means"]),
            deviations=tuple(fields["deviations"]),
            coefficients=tuple(fields["coefficients"]),
            intercept=fields["intercept"],
            n_queries=fields["n_queries"],
        )


def fit_logistic(
    features: np.ndarray, is_right: np.ndarray, names: Sequence[str], *, penalty: float = PENALTY
) -> LogisticModel:
    """Fit a logistic model by penalized maximum likelihood, to convergence.

    Parameters
    ----------
    features : ndarray of shape (n, n_features), float64
    is_right : ndarray of shape (n,), bool
    names : sequence of str
        Of the features.
    penalty : float > 0
        Of half the squared length of the coefficients of standardized features; the intercept is
        free.

    Notes
    -----
    Platt 1999, "Probabilistic outputs for support vector machines", section 2.2: with n right and m
    wrong queries the targets are (n + 1) / (n + 2) and 1 / (m + 2) instead of 1 and 0, so that even
    the intercept of separable data is finite. The minimum is found by Newton's method with halved
    steps, of which Lin, Lin & Weng 2007 (doi:10.1007/s10994-007-5018-6) show that it doesn't fail
    where Platt's own method does.
    """
    if penalty <= 0:
        raise ValueError(f"penalty is {penalty}, expected more than 0.")
    means, deviations = features.mean(axis=0), features.std(axis=0)
    is_constant = (features == features[0]).all(axis=0)
    means[is_constant], deviations[is_constant] = features[0, is_constant], 1.0
    columns = np.column_stack([(features - means) / deviations, np.ones(len(features))])
    n_right, n_wrong = np.count_nonzero(is_right), np.count_nonzero(~is_right)
    targets = np.where(is_right, (n_right + 1) / (n_right + 2), 1 / (n_wrong + 2))
    penalties = np.full(columns.shape[1], penalty)
    penalties[-1] = 0.0
    weights = _minimize(columns, targets, penalties) + 0.0  # no negative zeros
    return LogisticModel(
        features=tuple(names),
        means=tuple(means.tolist()),
        deviations=tuple(deviations.tolist()),
        coefficients=tuple(weights[:-1].tolist()),
        intercept=float(weights[-1]),
        n_queries=len(features),
    )


def cross_validate(
    features: np.ndarray,
    is_right: np.ndarray,
    images: np.ndarray,
    names: Sequence[str],
    *,
    seed: int,
    n_folds: int = N_FOLDS,
) -> np.ndarray:
    """Return the probability of each query by a model that didn't see its image.

    Parameters
    ----------
    features, is_right, names
        As for `fit_logistic`.
    images : ndarray of shape (n,), int64
        Position of each query's image, from 0; queries of one image are in one fold.
    seed : int
        Of the shuffle of images into folds.
    n_folds : int
        At least 2; as many images or more.

    Returns
    -------
    probabilities : ndarray of shape (n,), float64
    """
    n_images = int(images.max()) + 1
    if not 2 <= n_folds <= n_images:
        raise ValueError(f"n_folds is {n_folds}, expected 2 to {n_images}.")
    folds = (np.random.default_rng(seed).permutation(n_images) % n_folds)[images]
    probabilities = np.empty(len(features))
    for fold in range(n_folds):
        is_out = folds == fold
        model = fit_logistic(features[~is_out], is_right[~is_out], names)
        probabilities[is_out] = model.probabilities(features[is_out])
    return probabilities


def _minimize(columns: np.ndarray, targets: np.ndarray, penalties: np.ndarray) -> np.ndarray:
    """Return the weights of least penalized cross-entropy: strictly convex, so there is one."""
    weights = np.zeros(columns.shape[1])
    loss = _loss(columns, targets, penalties, weights)
    for _ in range(_MOST_STEPS):
        probabilities = _logistic(columns @ weights)
        gradient = columns.T @ (probabilities - targets) + penalties * weights
        if np.abs(gradient).max() <= _TOLERANCE * len(columns):
            break
        curvature = (columns.T * (probabilities * (1 - probabilities))) @ columns
        step = np.linalg.solve(curvature + np.diag(penalties), gradient)
        size, descent = 1.0, gradient @ step
        while (
            tried := _loss(columns, targets, penalties, weights - size * step)
        ) > loss - 1e-4 * size * descent and size > 1e-10:
            size /= 2
        weights, loss = weights - size * step, tried
    return weights


def _loss(
    columns: np.ndarray, targets: np.ndarray, penalties: np.ndarray, weights: np.ndarray
) -> float:
    odds = columns @ weights
    return float((np.logaddexp(0, odds) - targets * odds).sum() + penalties @ weights**2 / 2)


def _logistic(odds: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-odds)), which doesn't overflow as a hyperbolic tangent."""
    probabilities: np.ndarray = 0.5 * (1 + np.tanh(odds / 2))
    return probabilities
