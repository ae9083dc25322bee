"""An interval for rates near 0 or 1, where the bootstrap has nothing to resample."""

from __future__ import annotations

from .report import Estimate

_Z = 1.959963984540054  # 97.5 % point of the normal law: a two-sided level of 95 %


def wilson_interval(rate: float, n_images: int) -> Estimate:
    """Return a rate with its 95 % Wilson score interval.

    Parameters
    ----------
    rate : float in [0, 1]
        Mean over images of a success, or of a chance of success, in [0, 1].
    n_images : int
        At least 1.

    Notes
    -----
    Wilson 1927 (doi:10.1080/01621459.1927.10502953). For means of numbers in [0, 1] it is on the
    safe side: no such number varies more than a coin of the same mean.
    """
    if not 0 <= rate <= 1 or n_images < 1:
        raise ValueError(f"rate is {rate} of {n_images} images, expected 0 to 1 of at least 1.")
    spread = _Z**2 / n_images
    centre = (rate + spread / 2) / (1 + spread)
    half = (rate * (1 - rate) * spread + spread**2 / 4) ** 0.5 / (1 + spread)
    return Estimate(rate, max(0.0, centre - half), min(1.0, centre + half))
