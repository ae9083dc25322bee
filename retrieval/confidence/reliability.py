"""Reliability: whether what is said to be so probable happens so often.

Intervals resample images, as everywhere (`benchmarks.bootstrap`), but for the calibration error:
frequencies of few queries scatter, and a resample scatters once more, so that its interval would
lie above the value. Beside it stands instead what it would be if the probabilities were true.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..benchmarks.bootstrap import N_RESAMPLES, percentile_interval, resample_images
from ..benchmarks.report import Estimate

N_BINS = 10
_NORMAL_QUANTILE = 1.959963984540054  # of 97.5 %


@dataclass(frozen=True)
class ReliabilityBin:
    """Queries of similar probability.

    Parameters
    ----------
    n_queries : int
    probability : float
        Mean of what was said.
    frequency : Estimate
        Share that was right; Wilson's interval, queries taken as independent.
    """

    n_queries: int
    probability: float
    frequency: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        return {
            "n_queries": self.n_queries,
            "probability": self.probability,
            "frequency": self.frequency.to_dict(),
        }


@dataclass(frozen=True)
class Reliability:
    """How far probabilities of being right were borne out.

    Parameters
    ----------
    log_loss : Estimate
        Mean of -log of the probability of what happened, in nats.
    brier : Estimate
        Mean squared difference of the probability from 1 or 0.
    calibration_error : float
        Mean over queries of the difference between the frequency and the probability of their bin.
    calibration_error_if_true : Estimate
        What it would be if the probabilities were true: the mean, and the middle 95 %. Given their
        probabilities, queries of one image are taken as independent.
    bins : tuple of ReliabilityBin
        By rising probability.
    """

    log_loss: Estimate
    brier: Estimate
    calibration_error: float
    calibration_error_if_true: Estimate
    bins: tuple[ReliabilityBin, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        return {
            "log_loss": self.log_loss.to_dict(),
            "brier": self.brier.to_dict(),
            "calibration_error": self.calibration_error,
            "calibration_error_if_true": self.calibration_error_if_true.to_dict(),
            "bins": [each.to_dict() for each in self.bins],
        }


def measure_reliability(
    probabilities: np.ndarray,
    is_right: np.ndarray,
    images: np.ndarray,
    *,
    seed: int,
    n_bins: int = N_BINS,
    n_resamples: int = N_RESAMPLES,
) -> Reliability:
    """Compare probabilities with what happened.

    Parameters
    ----------
    probabilities : ndarray of shape (n,), float64, above 0 and below 1
    is_right : ndarray of shape (n,), bool
    images : ndarray of shape (n,), int64
        Position of each query's image, from 0; images are what is resampled.
    seed : int
        Of the resamples, and of the outcomes drawn as if the probabilities were true.
    n_bins : int
        At most so many; equal probabilities are never parted.
    n_resamples : int

    Notes
    -----
    Brier 1950. Bins hold equally many queries, and the calibration error is the mean absolute
    difference over them: Naeini, Cooper & Hauskrecht 2015 with the bins of Nguyen & O'Connor 2015,
    which are less biased where probabilities crowd. Outcomes drawn from the probabilities: the
    consistency resampling of Bröcker & Smith 2007 (doi:10.1175/WAF993.1). The bins stay as they
    are in all draws.
    """
    if not ((probabilities > 0) & (probabilities < 1)).all():
        raise ValueError("expected probabilities above 0 and below 1.")
    happened = is_right.astype(np.float64)
    log_losses = log_losses_of(probabilities, is_right)
    squares = (probabilities - happened) ** 2
    bin_of = equal_bins(probabilities, n_bins)
    resampled = np.empty((n_resamples, 2))
    n_images = int(images.max()) + 1
    for index, counts in enumerate(resample_images(n_images, n_resamples, seed)):
        weights = counts[images]
        resampled[index] = weights @ log_losses, weights @ squares
        resampled[index] /= weights.sum()
    lows, highs = percentile_interval(resampled)
    log_loss, brier = (
        Estimate(float(values.mean()), float(low), float(high))
        for values, low, high in zip((log_losses, squares), lows, highs, strict=True)
    )
    return Reliability(
        log_loss=log_loss,
        brier=brier,
        calibration_error=calibration_error(happened - probabilities, bin_of),
        calibration_error_if_true=_error_if_true(probabilities, bin_of, n_resamples, seed),
        bins=tuple(
            ReliabilityBin(
                n_queries=int(np.count_nonzero(bin_of == number)),
                probability=float(probabilities[bin_of == number].mean()),
                frequency=wilson_interval(is_right[bin_of == number]),
            )
            for number in range(int(bin_of.max()) + 1)
        ),
    )


def log_losses_of(probabilities: np.ndarray, is_right: np.ndarray) -> np.ndarray:
    """Return -log of the probability of what happened, for each query, in nats."""
    losses: np.ndarray = -np.log(np.where(is_right, probabilities, 1 - probabilities))
    return losses


def equal_bins(probabilities: np.ndarray, n_bins: int) -> np.ndarray:
    """Return the bin of each query, from 0, by rising probability: int64, (n,).

    Bins hold as equally many queries as they can where equal probabilities stay together; there may
    be fewer than ``n_bins``.
    """
    ranks = np.searchsorted(np.sort(probabilities), probabilities)
    bins: np.ndarray = np.unique(ranks * n_bins // len(ranks), return_inverse=True)[1]
    return bins


def calibration_error(excess: np.ndarray, bin_of: np.ndarray) -> float:
    """Return the mean over queries of the absolute mean excess of their bin.

    Parameters
    ----------
    excess : ndarray of shape (n,), float64
        What happened, 1 or 0, less its probability.
    bin_of : ndarray of shape (n,), int64
    """
    return float(np.abs(np.bincount(bin_of, excess)).sum() / len(excess))


def wilson_interval(is_right: np.ndarray) -> Estimate:
    """Return the share that is right with its 95 % interval: Wilson 1927 (doi:10.2307/2276774)."""
    n, rate = len(is_right), float(is_right.mean())
    square = _NORMAL_QUANTILE**2
    center = (rate + square / (2 * n)) / (1 + square / n)
    half = _NORMAL_QUANTILE * np.sqrt(rate * (1 - rate) / n + square / (4 * n**2))
    half /= 1 + square / n
    # The bounds of no and of all are 0 and 1, but for rounding.
    low, high = max(0.0, min(rate, center - half)), min(1.0, max(rate, center + half))
    return Estimate(rate, float(low), float(high))


def _error_if_true(
    probabilities: np.ndarray, bin_of: np.ndarray, n_resamples: int, seed: int
) -> Estimate:
    rng = np.random.default_rng((seed, 1))  # another stream than that of the resamples
    errors = np.array(
        [
            calibration_error((rng.random(len(bin_of)) < probabilities) - probabilities, bin_of)
            for _ in range(n_resamples)
        ]
    )
    low, high = percentile_interval(errors)
    return Estimate(float(errors.mean()), float(low), float(high))
