"""An interval for rates near 0 or 1, where the bootstrap has nothing to resample."""

from __future__ import annotations

from index_builder.embeddings.errors import MissingExtraError

from .report import Estimate

_TAIL = 0.025  # on either side: a level of 95 %


def exact_interval(rate: float, n_images: int) -> Estimate:
    """Return a rate with its exact 95 % binomial interval.

    Parameters
    ----------
    rate : float in [0, 1]
        Mean over images of a success, or of a chance of success, in [0, 1].
    n_images : int
        At least 1.

    Raises
    ------
    MissingExtraError
        If scipy is absent.

    Notes
    -----
    Clopper & Pearson 1934 (doi:10.1093/biomet/26.4.404), whose coverage is never below its level,
    through quantiles of the beta law, which take a number of successes that isn't whole. For means
    of numbers in [0, 1] it is on the safe side: none varies more than a coin of the same mean.
    """
    if not 0 <= rate <= 1 or n_images < 1:
        raise ValueError(f"rate is {rate} of {n_images} images, expected 0 to 1 of at least 1.")
    try:
        from scipy.stats import beta
    except ImportError as error:
        raise MissingExtraError("scipy", "train", "an exact binomial interval") from error
    successes = rate * n_images
    failures = n_images - successes
    low = beta.ppf(_TAIL, successes, failures + 1) if successes > 0 else 0.0
    high = beta.ppf(1 - _TAIL, successes + 1, failures) if failures > 0 else 1.0
    return Estimate(rate, float(low), float(high))
