"""Regions of the simulated brain: how many voxels, what drives them, how reliable they are.

Names follow NSD: ``prf-visualrois`` for early visual cortex, ``streams`` beyond it (Allen et al.
2022, doi:10.1038/s41593-021-00962-x). The reasons stand in ``docs/simulated_brain.md``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Region:
    """One region of the simulated brain.

    Parameters
    ----------
    name : str
    voxel_share : float in (0, 1)
        Of all voxels.
    semantic_share : float in [0, 1]
        Of the variance of the drive; the rest is low-level.
    receptive_field : float
        Standard deviation of the Gaussian receptive field, in widths of the picture.
    ncsnr_quantiles : tuple of float
        At `QUANTILE_LEVELS`.
    """

    name: str
    voxel_share: float
    semantic_share: float
    receptive_field: float
    ncsnr_quantiles: tuple[float, ...]


# Quantiles of ncsnr at 5, 25, 50, 75 and 95 % over 44,806 voxels of NSD subjects 1, 2, 5 and 7,
# from the public voxel metadata of ColinConwell/DeepNSD; the ends at 0 and 100 % are assumed.
QUANTILE_LEVELS = (0.0, 0.05, 0.25, 0.50, 0.75, 0.95, 1.0)
MAX_NCSNR = 1.1
_OCCIPITO_TEMPORAL = (0.0, 0.220, 0.301, 0.407, 0.547, 0.805, MAX_NCSNR)
_EARLY_VISUAL = (0.0, 0.113, 0.256, 0.416, 0.600, 0.863, MAX_NCSNR)

REGIONS = (
    Region("V1", 0.12, 0.05, 0.08, _EARLY_VISUAL),
    Region("V2", 0.11, 0.10, 0.11, _EARLY_VISUAL),
    Region("V3", 0.09, 0.20, 0.15, _EARLY_VISUAL),
    Region("hV4", 0.05, 0.40, 0.20, _EARLY_VISUAL),
    Region("ventral", 0.27, 0.85, 0.35, _OCCIPITO_TEMPORAL),
    Region("lateral", 0.22, 0.80, 0.35, _OCCIPITO_TEMPORAL),
    Region("parietal", 0.14, 0.65, 0.35, _OCCIPITO_TEMPORAL),
)


def allot_voxels(n_voxels: int) -> list[int]:
    """Divide voxels among `REGIONS` by their shares, to the last voxel."""
    edges = np.cumsum([0.0, *(region.voxel_share for region in REGIONS)])
    return [int(n) for n in np.diff(np.rint(edges / edges[-1] * n_voxels))]


def ncsnr_by_rank(region: Region, order: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spread the region's distribution of ncsnr over its voxels, rank for rank.

    Parameters
    ----------
    region : Region
    order : float array of shape (n_voxels,)
        The voxel with the largest number gets the largest ncsnr; only ranks matter, so that every
        simulated region has NSD's quantiles, not a sample from them.
    """
    level = (np.argsort(np.argsort(order)) + 0.5) / len(order)
    return np.interp(level, QUANTILE_LEVELS, region.ncsnr_quantiles)
