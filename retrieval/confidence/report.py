"""What a confidence is worth: a record for machines, a table for people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..benchmarks.bootstrap import N_RESAMPLES, percentile_interval, resample_images
from ..benchmarks.report import Estimate
from ..benchmarks.table import align
from .observations import Observations
from .reliability import Reliability, log_losses_of, measure_reliability


@dataclass(frozen=True)
class ConfidenceReport:
    """A confidence beside what one would have without it.

    Parameters
    ----------
    counts : dict of str to int
        Queries of each kind; see `Observations`.
    confidence : Reliability
        Of the fitted probabilities.
    constant : Reliability
        If each query is given the share of validation queries that were right.
    score : Reliability
        If the cosine of the first hit is read as a probability.
    gain : Estimate
        How much less the log loss of the confidence is than that of the constant, in nats; paired.
    seed, n_resamples : int
    """

    counts: dict[str, int]
    confidence: Reliability
    constant: Reliability
    score: Reliability
    gain: Estimate
    seed: int
    n_resamples: int

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        return {
            **self.counts,
            "confidence": self.confidence.to_dict(),
            "constant": self.constant.to_dict(),
            "score": self.score.to_dict(),
            "gain": self.gain.to_dict(),
            "seed": self.seed,
            "n_resamples": self.n_resamples,
        }

    def lines(self) -> Iterator[str]:
        """Yield the report as lines for people."""
        counts = self.counts
        share = 100 * counts["n_right"] / counts["n_queries"]
        yield (
            f"{counts['n_queries']} queries of {counts['n_images']} images: the first hit is the "
            f"seen image for {counts['n_right']} ({share:.1f} %)"
        )
        if counts["n_absent"]:
            yield f"{counts['n_absent']} of them saw an image that the index doesn't hold: wrong"
        if counts["n_unknown"]:
            yield f"{counts['n_unknown']} more have no image_id, and were left out"
        yield ""
        rows = [["[95 %]", "log loss", "Brier", "calibration error", "if it were true"]]
        for name, each in (
            ("confidence", self.confidence),
            ("validation's rate for all", self.constant),
            ("first score as it is", self.score),
        ):
            rows.append(
                [
                    name,
                    _spell(each.log_loss),
                    _spell(each.brier),
                    f"{each.calibration_error:.3f}",
                    _spell(each.calibration_error_if_true),
                ]
            )
        yield from align(rows)
        yield f"log loss saved over the constant: {_spell(self.gain)} nats a query"
        yield ""
        rows = [["confidence", "queries", "right", "95 % interval"]]
        for each_bin in self.confidence.bins:
            frequency = each_bin.frequency
            rows.append(
                [
                    f"{each_bin.probability:.3f}",
                    str(each_bin.n_queries),
                    f"{frequency.value:.3f}",
                    f"{frequency.low:.3f} to {frequency.high:.3f}",
                ]
            )
        yield from align(rows)


def report_confidence(
    observed: Observations,
    probabilities: np.ndarray,
    *,
    rate: float,
    least: float,
    seed: int,
    n_resamples: int = N_RESAMPLES,
) -> ConfidenceReport:
    """Measure probabilities, and what one would have without them.

    Parameters
    ----------
    observed : Observations
    probabilities : ndarray of shape (n,), float64
        Of queries that the model wasn't fitted on.
    rate : float
        Share of validation queries that were right.
    least : float
        Constant and score are held this far from 0 and 1, as the probabilities are.
    seed, n_resamples : int
    """
    said = {
        "confidence": probabilities,
        "constant": np.full(observed.n_queries, np.clip(rate, least, 1 - least)),
        "score": np.clip(observed.features[:, 0], least, 1 - least),
    }
    measured = {
        name: measure_reliability(
            each, observed.is_right, observed.images, seed=seed, n_resamples=n_resamples
        )
        for name, each in said.items()
    }
    saved = log_losses_of(said["constant"], observed.is_right)
    saved = saved - log_losses_of(said["confidence"], observed.is_right)
    resampled = []
    for counts in resample_images(observed.n_images, n_resamples, seed):
        weights = counts[observed.images]
        resampled.append(weights @ saved / weights.sum())
    low, high = percentile_interval(np.array(resampled))
    return ConfidenceReport(
        counts=observed.counts(),
        gain=Estimate(float(saved.mean()), float(low), float(high)),
        seed=seed,
        n_resamples=n_resamples,
        **measured,
    )


def _spell(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
