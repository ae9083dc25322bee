"""Noise ceiling from repeats, by the formula of the Natural Scenes Dataset.

A voxel's ncsnr is the standard deviation of its response over images divided by the standard
deviation of its noise over repeats (Allen et al. 2022, doi:10.1038/s41593-021-00962-x, Methods,
"Noise ceiling estimation").
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .subject import Subject
from .voxel_file import CHUNK_BYTES


def estimate_ncsnr(subject: Subject) -> NDArray[np.float64]:
    """Estimate the noise-ceiling signal-to-noise ratio of every voxel.

    Parameters
    ----------
    subject : Subject
        Images shown as often as the most repeated one enter; that must be at least twice.

    Returns
    -------
    ncsnr : float64 array of shape (n_voxels,), at least 0
        0 where the repeats of an image differ as much as the images do, and for voxels that never
        vary.

    Raises
    ------
    ValueError
        If no image is repeated.

    Notes
    -----
    Responses are z-scored by session; with v² the variance over the repeats of an image (divided
    by their number less one), averaged over images, ``ncsnr = sqrt(max(0, 1 - v²)) / v``.
    """
    repeats = subject.trials["repeat"].to_numpy()
    n_repeats = int(repeats.max()) + 1
    if n_repeats < 2:
        raise ValueError(f"{subject.path}: no image is repeated, so noise can't be estimated.")
    session_of_trial = subject.trials["session"].to_numpy()
    sessions, session_index = np.unique(session_of_trial, return_inverse=True)
    mean, scale = _session_statistics(subject, session_index, len(sessions))
    image_id = subject.trials["image_id"].to_numpy()
    order = np.lexsort((repeats, image_id))
    is_complete = np.isin(image_id[order], image_id[repeats == n_repeats - 1])
    rows = order[is_complete].reshape(-1, n_repeats)
    images_a_block = max(1, CHUNK_BYTES // (8 * n_repeats * subject.n_voxels))
    noise_variance = np.zeros(subject.n_voxels)
    for start in range(0, len(rows), images_a_block):
        block = rows[start : start + images_a_block]
        responses = subject.voxels[block].astype(np.float64)
        z = (responses - mean[session_index[block]]) * scale[session_index[block]]
        noise_variance += z.var(axis=1, ddof=1).sum(axis=0)
    noise_variance /= len(rows)
    signal = np.sqrt(np.maximum(0, 1 - noise_variance))
    return np.divide(
        signal, np.sqrt(noise_variance), out=np.zeros_like(signal), where=noise_variance > 0
    )


def noise_ceiling(ncsnr: NDArray[np.float64], n_averaged: int | float) -> NDArray[np.float64]:
    """Return the share of variance that a perfect model explains in averaged trials.

    Parameters
    ----------
    ncsnr : float array
    n_averaged : number
        Trials averaged for each image.

    Returns
    -------
    ceiling : float64 array of the same shape, in [0, 1)
        ``ncsnr² / (ncsnr² + 1 / n)``, reference as for the module.
    """
    power = np.square(np.asarray(ncsnr, dtype=np.float64))
    return np.asarray(power / (power + 1 / n_averaged))


def _session_statistics(
    subject: Subject, session_index: NDArray[np.int64], n_sessions: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and reciprocal standard deviation (0 if constant), (n_sessions, n_voxels)."""
    mean = np.zeros((n_sessions, subject.n_voxels))
    scale = np.zeros_like(mean)
    rows_a_block = max(1, CHUNK_BYTES // (8 * subject.n_voxels))
    for session in range(n_sessions):
        rows = np.flatnonzero(session_index == session)
        blocks = [rows[i : i + rows_a_block] for i in range(0, len(rows), rows_a_block)]
        for block in blocks:
            mean[session] += subject.voxels[block].astype(np.float64).sum(axis=0) / len(rows)
        squares = np.zeros(subject.n_voxels)
        for block in blocks:
            squares += ((subject.voxels[block] - mean[session]) ** 2).sum(axis=0)
        deviation = np.sqrt(squares / max(1, len(rows) - 1))
        np.divide(1, deviation, out=scale[session], where=deviation > 0)
    return mean, scale
