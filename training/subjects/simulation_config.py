"""How to simulate a brain: every parameter of `simulate_subject`, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from .regions import MAX_NCSNR

Nonlinearity = Literal["linear", "softplus", "power"]

_LARGEST_REPRESENTATION_NOISE = 0.95  # of a voxel's noise variance; the rest keeps it invertible


@dataclass(frozen=True)
class SimulationConfig:
    """How to simulate; the defaults are like NSD where NSD is known.

    Parameters
    ----------
    n_voxels : int
        At least 100.
    n_images : int or None
        Drawn at random from the targets; None takes all.
    n_test : int
        Test images, the part of NSD's shared images.
    validation_fraction : float in [0, 1)
        Share of the other images that is kept for validation.
    n_repeats : int
        Presentations of each image.
    trials_per_session : int
        NSD has 750.
    n_semantic_components : int
        Principal components of the targets that voxels see, at most.
    whitening : float in [0, 1]
        0 keeps the spectrum of the targets, 1 gives every component the same share.
    nonlinearity : {"linear", "softplus", "power"}
        From the standardised drive to the response; ``power`` is ``sqrt(max(drive + 2, 0))``.
    voxels_per_patch : int
        Neighbours that share tuning, reliability and noise.
    patch_heterogeneity : float in (0, 1]
        Share of the variance of tuning that is a voxel's own.
    ncsnr_scale : float, at least 0
        Multiplies NSD's ncsnr; 0 gives pure noise.
    representation_noise : float, at least 0
        Variance of the semantic components over repeats of an image, relative to their variance
        over images: the noise that more voxels don't average out.
    patch_noise, global_noise : float in [0, 1)
        Shares of the remaining noise variance that a patch, and all voxels, have in common.
    session_drift, session_offset : float, at least 0
        Standard deviation over sessions of the logarithm of the gain, and of the baseline in
        units of the noise.
    dtype : {"float16", "float32"}
        Of the stored voxels.
    """

    n_voxels: int = 3000
    n_images: int | None = None
    n_test: int = 300
    validation_fraction: float = 0.1
    n_repeats: int = 3
    trials_per_session: int = 750
    n_semantic_components: int = 128
    whitening: float = 0.0
    nonlinearity: Nonlinearity = "softplus"
    voxels_per_patch: int = 20
    patch_heterogeneity: float = 0.07
    ncsnr_scale: float = 1.0
    representation_noise: float = 0.6
    patch_noise: float = 0.5
    global_noise: float = 0.1
    session_drift: float = 0.1
    session_offset: float = 0.5
    dtype: Literal["float16", "float32"] = "float16"

    def __post_init__(self) -> None:
        for name, is_good, rule in (
            ("n_voxels", self.n_voxels >= 100, "at least 100"),
            ("n_images", self.n_images is None or self.n_images >= 2, "at least 2, or None"),
            ("n_test", self.n_test >= 1, "at least 1"),
            ("validation_fraction", 0 <= self.validation_fraction < 1, "in [0, 1)"),
            ("n_repeats", self.n_repeats >= 1, "at least 1"),
            ("trials_per_session", self.trials_per_session >= 2, "at least 2"),
            ("n_semantic_components", self.n_semantic_components >= 1, "at least 1"),
            ("whitening", 0 <= self.whitening <= 1, "in [0, 1]"),
            ("nonlinearity", self.nonlinearity in get_args(Nonlinearity), get_args(Nonlinearity)),
            ("voxels_per_patch", self.voxels_per_patch >= 1, "at least 1"),
            ("patch_heterogeneity", 0 < self.patch_heterogeneity <= 1, "in (0, 1]"),
            ("ncsnr_scale", self.ncsnr_scale >= 0, "at least 0"),
            ("representation_noise", self.representation_noise >= 0, "at least 0"),
            ("patch_noise", self.patch_noise >= 0, "at least 0"),
            ("global_noise", self.global_noise >= 0, "at least 0"),
            ("session_drift", self.session_drift >= 0, "at least 0"),
            ("session_offset", self.session_offset >= 0, "at least 0"),
            ("dtype", self.dtype in ("float16", "float32"), "float16 or float32"),
        ):
            if not is_good:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected {rule}.")
        if self.patch_noise + self.global_noise >= 1:
            raise ValueError(
                f"patch_noise {self.patch_noise} and global_noise {self.global_noise} leave no "
                f"independent noise; their sum must be below 1."
            )
        largest = self.representation_noise * (MAX_NCSNR * self.ncsnr_scale) ** 2
        if largest > _LARGEST_REPRESENTATION_NOISE:
            raise ValueError(
                f"representation_noise {self.representation_noise} at ncsnr_scale "
                f"{self.ncsnr_scale} would take {largest:.2f} of the noise variance of the best "
                f"voxels, at most {_LARGEST_REPRESENTATION_NOISE} is possible; lower one of them."
            )
