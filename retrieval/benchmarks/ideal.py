"""How much of what is possible: a decoder's rate as a fraction of the ideal observer's.

A simulated brain has a known law, so the best possible decoder can be computed and its score is the
ceiling. The fraction tells a poor decoder from poor data, which a bare rate can't.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.subjects.ideal_observer import IdealObserver
from training.subjects.subject import Subject

from ..errors import BenchmarkError
from .bootstrap import percentile_interval, resample_images
from .identification import FloatArray, expected_top_rates
from .nway import identify_scores
from .report import Direction, Estimate, NwayReport
from .table import percent

_FRESH_NOISES = 20  # for each image; the error of the mean over 300 images is below .001


@dataclass(frozen=True)
class IdealComparison:
    """A decoder beside the best that is possible, brain to image, top-1.

    Parameters
    ----------
    ideal : NwayReport
        The ideal observer's, on the same trials.
    fractions : dict of int to Estimate
        By n_way: the decoder's rate divided by the ideal observer's.
    expected : dict of int to float
        By n_way: the ideal observer's rate over fresh noise, for the same images.
    """

    ideal: NwayReport
    fractions: dict[int, Estimate]
    expected: dict[int, float]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        return {
            "top1": {
                str(n_way): self.ideal.brain_to_image.rate(n_way).expected.to_dict()
                for n_way in self.fractions
            },
            "fraction": {str(n_way): part.to_dict() for n_way, part in self.fractions.items()},
            "expected_top1": {str(n_way): rate for n_way, rate in self.expected.items()},
        }

    def lines(self) -> Iterator[str]:
        """Yield one line an n_way, for people."""
        for n_way, part in self.fractions.items():
            best = self.ideal.brain_to_image.rate(n_way).expected
            yield (
                f"ideal observer, brain→image, {n_way}-way: top-1 {percent(best.value)} % "
                f"[{percent(best.low)}, {percent(best.high)}], over fresh noise "
                f"{percent(self.expected[n_way])} %; the predictions reach "
                f"{percent(part.value)} % of it [{percent(part.low)}, {percent(part.high)}]"
            )


def compare_with_ideal(
    report: NwayReport, subject: Subject, *, split: str = "test"
) -> IdealComparison:
    """Compare a report with the ideal observer of the simulated subject it is of.

    Parameters
    ----------
    report : NwayReport
        Of averaged predictions for the images of ``split``.
    subject : Subject
    split : {"train", "validation", "test", "all"}

    Raises
    ------
    SubjectError
        If the subject was not simulated.
    BenchmarkError
        If the report is of other images, or of single trials.
    """
    observer = IdealObserver.open(subject)
    scores, image_ids = observer.scores(split)
    sizes = tuple(dict.fromkeys(rate.n_way for rate in report.brain_to_image.top_rates))
    ideal = identify_scores(
        scores,
        image_ids,
        source="ideal observer",
        n_way=sizes,
        n_draws=report.n_draws,
        seed=report.seed,
        n_resamples=report.n_resamples,
    )
    return IdealComparison(
        ideal,
        {n_way: fraction_of_ideal(report, ideal, n_way=n_way) for n_way in sizes},
        {
            n_way: observer.expected_top1(n_way, _FRESH_NOISES, report.seed, split=split)[0]
            for n_way in sizes
        },
    )


def fraction_of_ideal(
    report: NwayReport,
    ideal: NwayReport,
    *,
    n_way: int,
    top: int = 1,
    direction: Direction = "brain_to_image",
) -> Estimate:
    """Divide a decoder's expected rate by the ideal observer's, with a paired interval.

    Parameters
    ----------
    report : NwayReport
        Of averaged predictions: one query an image.
    ideal : NwayReport
        Of the ideal observer, on the same images and the same averages.
    n_way, top : int
    direction : {"brain_to_image", "image_to_brain"}

    Returns
    -------
    Estimate
        The ratio of the two means; the interval resamples images, and both rates with them.

    Raises
    ------
    BenchmarkError
        If the reports are of different images, one is of single trials, or the ideal observer
        never succeeds.
    """
    if not np.array_equal(report.image_ids, ideal.image_ids):
        only_here = np.setdiff1d(report.image_ids, ideal.image_ids)
        only_there = np.setdiff1d(ideal.image_ids, report.image_ids)
        raise BenchmarkError(
            f"the two reports are of different images: {len(only_here)} only in the decoder's "
            f"{only_here[:5].tolist()}, {len(only_there)} only in the ideal observer's "
            f"{only_there[:5].tolist()}. Run both on the same split."
        )
    mine = _success_by_image(report, direction, n_way, top)
    best = _success_by_image(ideal, direction, n_way, top)
    if best.mean() == 0:
        raise BenchmarkError(
            f"the ideal observer never finds the image in the top {top} of {n_way}, so there is "
            f"nothing to take a fraction of; expected a rate above 0."
        )
    ratios = []
    for counts in resample_images(report.pool_size, report.n_resamples, report.seed):
        ceiling = counts @ best
        if ceiling > 0:  # A resample without a single success of the ideal has no ratio.
            ratios.append(counts @ mine / ceiling)
    low, high = percentile_interval(np.array(ratios))
    return Estimate(float(mine.mean() / best.mean()), float(low), float(high))


def _success_by_image(report: NwayReport, direction: Direction, n_way: int, top: int) -> FloatArray:
    """Return each image's expected success, shape (pool_size,)."""
    if report.image_to_brain is None:
        raise BenchmarkError(
            "the report is of single trials, and an ideal observer sees the average of an image's "
            "trials; expected one query an image. Average the predictions (voxseek predict)."
        )
    chosen = report.brain_to_image if direction == "brain_to_image" else report.image_to_brain
    return expected_top_rates(report.pool_size, n_way, top)[chosen.n_beating]
