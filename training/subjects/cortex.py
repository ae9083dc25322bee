"""Simulated cortex: the tuning of every voxel, its response, and the law of its noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .low_level import GRID, N_CHANNELS
from .regions import REGIONS, Region, allot_voxels, ncsnr_by_rank
from .simulation_config import Nonlinearity, SimulationConfig
from .truth import Tuning

N_GLOBAL_FACTORS = 8
_SCATTER_IN_PATCH = 0.3  # of receptive-field centres, in receptive-field widths
_VOXELS_A_BLOCK = 512


@dataclass(frozen=True)
class Cortex:
    """A sheet of voxels in front of a fixed set of images.

    Attributes
    ----------
    tuning : Tuning
    noise_factors : float32 array of shape (n_voxels, n_factors)
    independent_variance : float64 array of shape (n_voxels,)
        With the squared factors it sums to 1 in each voxel.
    rois : dict of str to bool array of shape (n_voxels,)
    """

    tuning: Tuning
    noise_factors: NDArray[np.float32]
    independent_variance: NDArray[np.float64]
    rois: dict[str, NDArray[np.bool_]]
    components: NDArray[np.float32]
    low_level: NDArray[np.float32]
    nonlinearity: Nonlinearity

    def respond(self, signal: NDArray[np.float32]) -> None:
        """Fill ``signal``, (n_images, n_voxels), with the noise-free responses.

        Each column has zero mean over images and the voxel's ncsnr as standard deviation.
        """
        tuning = self.tuning
        for start in range(0, signal.shape[1], _VOXELS_A_BLOCK):
            block = slice(start, start + _VOXELS_A_BLOCK)
            fields = receptive_field_weights(tuning.receptive_fields[block])
            weights = tuning.channel_weights[block][:, :, None] * fields[:, None, :]
            low_level = standardise(self.low_level @ weights.reshape(len(weights), -1).T)
            semantic = self.components @ tuning.semantic_weights[block].T
            share = tuning.semantic_share[block]
            drive = standardise(np.sqrt(share) * semantic + np.sqrt(1 - share) * low_level)
            response = standardise(bend(drive, self.nonlinearity))
            signal[:, block] = response * tuning.ncsnr[block]


def grow_cortex(
    components: NDArray[np.float32],
    amplitudes: NDArray[np.float64],
    low_level: NDArray[np.float32],
    config: SimulationConfig,
    seeds: np.random.SeedSequence,
) -> Cortex:
    """Draw the tuning of all voxels, region by region, patch by patch.

    Parameters
    ----------
    components : float32 array of shape (n_images, n_components)
        Unit-variance semantic scores.
    amplitudes : float64 array of shape (n_components,)
        Standard deviation of the voxels' weights on each component.
    low_level : float32 array of shape (n_images, N_CHANNELS, GRID, GRID)
    config : SimulationConfig
    seeds : SeedSequence
        One child a region, so that a region doesn't depend on the sizes of the others.
    """
    drawn = []
    region_of_voxel: list[int] = []
    n_patches = 0
    counts = allot_voxels(config.n_voxels)
    for index, (region, count, seed) in enumerate(
        zip(REGIONS, counts, seeds.spawn(len(REGIONS)), strict=True)
    ):
        tuning, common = _draw_region(region, count, amplitudes, config, seed)
        drawn.append((tuning, common, tuning.patch + n_patches))
        n_patches += int(tuning.patch[-1]) + 1
        region_of_voxel += [index] * count
    tuning = Tuning(
        semantic_weights=np.concatenate([part.semantic_weights for part, _, _ in drawn]),
        channel_weights=np.concatenate([part.channel_weights for part, _, _ in drawn]),
        receptive_fields=np.concatenate([part.receptive_fields for part, _, _ in drawn]),
        semantic_share=np.concatenate([part.semantic_share for part, _, _ in drawn]),
        patch=np.concatenate([patch for _, _, patch in drawn]),
        ncsnr=np.concatenate([part.ncsnr for part, _, _ in drawn]),
    )
    factors = _noise_factors(tuning, np.concatenate([common for _, common, _ in drawn]), config)
    regions = np.asarray(region_of_voxel)
    return Cortex(
        tuning=tuning,
        noise_factors=factors,
        independent_variance=1 - np.square(factors, dtype=np.float64).sum(axis=1),
        rois={region.name: regions == index for index, region in enumerate(REGIONS)},
        components=components,
        low_level=standardise(low_level.reshape(len(low_level), -1)),
        nonlinearity=config.nonlinearity,
    )


def receptive_field_weights(receptive_fields: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return Gaussian weights of the grid cells, (n_voxels, GRID * GRID), row-major."""
    centres = (np.arange(GRID, dtype=np.float32) + np.float32(0.5)) / np.float32(GRID)
    y, x = (axis.ravel() for axis in np.meshgrid(centres, centres, indexing="ij"))
    squared = (x - receptive_fields[:, :1]) ** 2 + (y - receptive_fields[:, 1:2]) ** 2
    return np.asarray(np.exp(-squared / (2 * receptive_fields[:, 2:] ** 2)), dtype=np.float32)


def bend(drive: NDArray[np.float32], nonlinearity: Nonlinearity) -> NDArray[np.float32]:
    """Apply the static nonlinearity to a drive of unit variance.

    Notes
    -----
    ``power`` is a compressive one, as in Kay et al. 2013 (doi:10.1152/jn.00105.2013), with its
    zero two standard deviations below the mean drive.
    """
    if nonlinearity == "softplus":
        return np.logaddexp(np.float32(0), drive)
    if nonlinearity == "power":
        return np.asarray(np.sqrt(np.maximum(drive + np.float32(2), 0)))
    return drive


def standardise(columns: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give each column zero mean and unit variance; columns that don't vary become 0."""
    centred = columns - columns.mean(axis=0)
    deviation = centred.std(axis=0)
    is_varied = deviation > 1e-6 * (1 + np.abs(columns).max(axis=0))
    scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=is_varied)
    return np.asarray(centred * scale, dtype=np.float32)


def _draw_region(
    region: Region,
    count: int,
    amplitudes: NDArray[np.float64],
    config: SimulationConfig,
    seed: np.random.SeedSequence,
) -> tuple[Tuning, NDArray[np.float64]]:
    """Draw one region: its tuning, and its loadings on the global noise."""
    rng = np.random.default_rng(seed)
    n_patches = max(1, round(count / config.voxels_per_patch))
    patch = np.arange(count, dtype=np.int64) * n_patches // count
    own = config.patch_heterogeneity

    def draw(width: int) -> NDArray[np.float64]:
        of_patch = rng.standard_normal((n_patches, width))[patch]
        of_voxel = rng.standard_normal((count, width))
        return np.asarray(np.sqrt(1 - own) * of_patch + np.sqrt(own) * of_voxel)

    # Uniform in eccentricity: as in cortex, the centre of gaze has more voxels for its area.
    eccentricity = 0.5 * rng.uniform(size=n_patches)[patch]
    angle = rng.uniform(0, 2 * np.pi, size=n_patches)[patch]
    scatter = _SCATTER_IN_PATCH * region.receptive_field * rng.standard_normal((2, count))
    semantic = draw(len(amplitudes)) * amplitudes
    tuning = Tuning(
        semantic_weights=_unit_rows(semantic).astype(np.float32),
        channel_weights=draw(N_CHANNELS).astype(np.float32),
        receptive_fields=np.stack(
            [
                0.5 + eccentricity * np.cos(angle) + scatter[0],
                0.5 + eccentricity * np.sin(angle) + scatter[1],
                np.full(count, region.receptive_field),
            ],
            axis=1,
        ).astype(np.float32),
        semantic_share=np.full(count, region.semantic_share, dtype=np.float32),
        patch=patch,
        ncsnr=config.ncsnr_scale * ncsnr_by_rank(region, draw(1)[:, 0]),
    )
    return tuning, _unit_rows(draw(N_GLOBAL_FACTORS))


def _unit_rows(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def _noise_factors(
    tuning: Tuning, common: NDArray[np.float64], config: SimulationConfig
) -> NDArray[np.float32]:
    """Return the loadings of the shared noise: semantic components, patches, whole brain."""
    representation = config.representation_noise * tuning.semantic_share * tuning.ncsnr**2
    rest = 1 - representation
    of_patch = np.zeros((len(rest), int(tuning.patch[-1]) + 1))
    of_patch[np.arange(len(rest)), tuning.patch] = np.sqrt(config.patch_noise * rest)
    return np.concatenate(
        [
            tuning.semantic_weights * np.sqrt(representation)[:, None],
            of_patch,
            common * np.sqrt(config.global_noise * rest)[:, None],
        ],
        axis=1,
        dtype=np.float32,
    )
