"""What a simulated subject really is: responses without noise, and the law of the noise.

    truth/signal.npy   (n_images, n_voxels) float32: noise-free responses, in units of the noise
    truth/model.npz    everything else, as named arrays

A trial ``t`` of image ``i`` in session ``s`` is, voxel by voxel,
``offset[s] + gain[s] * (signal[i] + noise[t])``, and the noise is Gaussian with covariance
``noise_factors @ noise_factors.T + diag(independent_variance)``, of unit variance in each voxel.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index_builder.embeddings.artefact import atomic_write

from ..errors import SubjectError
from .subject import Subject

SIGNAL = "truth/signal.npy"
MODEL = "truth/model.npz"


@dataclass(frozen=True)
class Tuning:
    """What each voxel responds to.

    Attributes
    ----------
    semantic_weights : float32 array of shape (n_voxels, n_components)
        On unit-variance principal components of the targets; rows of unit norm.
    channel_weights : float32 array of shape (n_voxels, n_channels)
        On the channels of `low_level_features`.
    receptive_fields : float32 array of shape (n_voxels, 3)
        Centre x, centre y and standard deviation, in widths of the picture from its corner.
    semantic_share : float32 array of shape (n_voxels,)
        Of the variance of the drive.
    patch : int64 array of shape (n_voxels,)
        Piece of cortex that the voxel belongs to.
    ncsnr : float64 array of shape (n_voxels,)
    """

    semantic_weights: NDArray[np.float32]
    channel_weights: NDArray[np.float32]
    receptive_fields: NDArray[np.float32]
    semantic_share: NDArray[np.float32]
    patch: NDArray[np.int64]
    ncsnr: NDArray[np.float64]


@dataclass(frozen=True)
class Truth:
    """The generative model of one simulated subject.

    Attributes
    ----------
    image_ids : int64 array of shape (n_images,), increasing
        Rows of ``signal``.
    signal : float32 array of shape (n_images, n_voxels)
    noise_factors : float32 array of shape (n_voxels, n_factors)
    independent_variance : float64 array of shape (n_voxels,), positive
    session_gain, session_offset : float64 arrays of shape (n_sessions, n_voxels)
        In the unit of the voxels; indexed by the session of the trial table.
    """

    image_ids: NDArray[np.int64]
    signal: NDArray[np.float32]
    noise_factors: NDArray[np.float32]
    independent_variance: NDArray[np.float64]
    session_gain: NDArray[np.float64]
    session_offset: NDArray[np.float64]

    @classmethod
    def open(cls, subject: Subject) -> Truth:
        """Read the truth beside a simulated subject; the signal stays on disk.

        Raises
        ------
        SubjectError
            If the subject was not simulated, or its truth is damaged.
        """
        if not subject.is_simulated:
            raise SubjectError(
                f"{subject.path} is not a simulated subject, so nobody knows its true responses. "
                f"Make one with: voxseek data simulate"
            )
        try:
            signal = np.load(subject.path / SIGNAL, mmap_mode="r", allow_pickle=False)
            with np.load(subject.path / MODEL, allow_pickle=False) as model:
                arrays: dict[str, Any] = {
                    field.name: model[field.name] for field in fields(cls) if field.name != "signal"
                }
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise SubjectError(
                f"the truth of {subject.path} can't be read ({error}); simulate it again."
            ) from error
        return cls(signal=signal, **arrays)

    def write(self, folder: Path, tuning: Tuning) -> list[str]:
        """Write ``truth/model.npz``, and list the files of the truth; the signal stands already."""
        arrays = {name: value for name, value in vars(self).items() if name != "signal"}
        with atomic_write(folder / MODEL) as temporary, open(temporary, "wb") as handle:
            np.savez(handle, **arrays, **vars(tuning))
        return [SIGNAL, MODEL]
