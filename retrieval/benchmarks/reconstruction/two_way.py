"""Two-way identification: is the own picture more alike than one other, over all others.

    reconstruction   a reconstruction chooses between its picture and another picture
    image            a picture chooses between its reconstruction and another reconstruction
    pairs            two pictures and two reconstructions are matched, right or crossed

No other picture need be drawn: each image is compared with all the others.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from ..identification import FloatArray, IntArray
from ..pairing import TIE_TOLERANCE
from .correlation import FeatureRows, correlate_features, correlation_rows

TwoWay = Literal["reconstruction", "image", "pairs"]


def two_way_rates(
    seen: FeatureRows, reconstructed: FeatureRows, rows: IntArray, definition: TwoWay
) -> FloatArray:
    """Return how often each image wins against another one.

    Parameters
    ----------
    seen : FeatureRows of n rows
    reconstructed : FeatureRows
    rows : int64 array of shape (n,)
        Row of ``reconstructed`` that belongs to each row of ``seen``.
    definition : {"reconstruction", "image", "pairs"}

    Returns
    -------
    rates : float64 array of shape (n,), in [0, 1]
        Mean over the n - 1 others; a tie, of correlations closer than 1e-6, is half a win.

    Notes
    -----
    ``reconstruction`` is what the code of Scotti et al. 2023 (arXiv:2305.18274) and of Ozcelik &
    VanRullen 2023 (arXiv:2303.05334) computes, ties apart, which it counts as lost. ``image`` is
    what Scotti et al. 2024 (arXiv:2403.11207), appendix A.9, describes. ``pairs`` is the matching
    of Mitchell et al. 2008 (doi:10.1126/science.1152876).
    """
    own = correlate_features(seen, reconstructed, rows)
    n = len(rows)
    rates = np.empty(n)
    for tile, of_seen, of_reconstructed in correlation_rows(seen, reconstructed, rows):
        if definition == "reconstruction":
            margins = own[tile, None] - of_reconstructed
        elif definition == "image":
            margins = own[tile, None] - of_seen
        else:
            margins = own[tile, None] + own - of_seen - of_reconstructed
        wins = (margins > TIE_TOLERANCE) + 0.5 * (np.abs(margins) <= TIE_TOLERANCE)
        # An image ties with itself, which is no comparison.
        rates[tile] = (wins.sum(axis=1) - 0.5) / (n - 1)
    return rates
