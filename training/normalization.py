"""Normalization: z-scores by session, with the statistics of training trials only.

The scanner's gain and baseline drift from session to session, so each trial is centred and scaled
by its own session, voxel by voxel; repeats are averaged after, not before. Validation and test
trials are never looked at: their sessions are normalized by the training trials of that session.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from index_builder.embeddings.artefact import atomic_write

from .subjects.subject import Subject

_CHUNK_BYTES = 64 << 20
logger = logging.getLogger("voxseek")


@dataclass(frozen=True)
class SessionStatistics:
    """Mean and standard deviation of each voxel in each session of the training trials.

    Parameters
    ----------
    sessions : int64 array of shape (n_sessions,), increasing
    mean, std : float32 array of shape (n_sessions, n_voxels)
        ``std`` is positive: where a voxel does not vary within a session it is the pooled one.
    pooled_mean, pooled_std : float32 array of shape (n_voxels,)
        Over all training trials, for sessions that have none; 1 where a voxel never varies.
    """

    sessions: NDArray[np.int64]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    pooled_mean: NDArray[np.float32]
    pooled_std: NDArray[np.float32]

    def apply(
        self, voxels: NDArray[np.floating], sessions: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Return z-scores.

        Parameters
        ----------
        voxels : array of shape (n, n_voxels)
            Raw responses.
        sessions : int64 array of shape (n,)
            Session of each row; one without training trials gets the pooled statistics.

        Returns
        -------
        normalized : float32 array of shape (n, n_voxels)
        """
        normalized = np.array(voxels, dtype=np.float32)
        for session in np.unique(sessions):
            rows = np.flatnonzero(sessions == session)
            at = int(np.searchsorted(self.sessions, session))
            is_known = at < len(self.sessions) and self.sessions[at] == session
            mean = self.mean[at] if is_known else self.pooled_mean
            std = self.std[at] if is_known else self.pooled_std
            normalized[rows] = (normalized[rows] - mean) / std
        return normalized

    def report_unseen(self, sessions: NDArray[np.int64], *, where: str) -> None:
        """Log which sessions had no training trials, so that pooled statistics stand in."""
        unseen = np.setdiff1d(sessions, self.sessions)
        if len(unseen):
            logger.warning(
                "%s: session %s has no training trials; its trials are normalized by the "
                "statistics of all training trials together.",
                where,
                ", ".join(map(str, unseen.tolist())),
            )

    @classmethod
    def identity(cls, n_voxels: int) -> SessionStatistics:
        """Return statistics that leave voxels as they are."""
        zeros, ones = np.zeros(n_voxels, np.float32), np.ones(n_voxels, np.float32)
        nothing = np.empty((0, n_voxels), np.float32)
        return cls(np.empty(0, np.int64), nothing, nothing.copy(), zeros, ones)


def save_statistics(path: str | os.PathLike[str], statistics: Sequence[SessionStatistics]) -> None:
    """Write ``normalization.safetensors``, the statistics of each subject, atomically."""
    arrays = {
        f"{subject}.{name}": array
        for subject, of_subject in enumerate(statistics)
        for name, array in sorted(vars(of_subject).items())
    }
    with atomic_write(path) as temporary:
        save_file(arrays, temporary)


def load_statistics(path: str | os.PathLike[str]) -> list[SessionStatistics]:
    """Read what `save_statistics` wrote."""
    by_subject: dict[int, dict[str, Any]] = {}
    for key, array in load_file(path).items():
        subject, _, name = key.partition(".")
        by_subject.setdefault(int(subject), {})[name] = array
    return [SessionStatistics(**by_subject[subject]) for subject in sorted(by_subject)]


def fit_statistics(subject: Subject, train_rows: NDArray[np.int64]) -> SessionStatistics:
    """Compute the statistics of a subject's training trials, in bounded memory.

    Parameters
    ----------
    subject : Subject
    train_rows : int64 array
        Rows of its voxels: training trials and no others.

    Returns
    -------
    statistics : SessionStatistics
        Standard deviations are the population's (divisor n).
    """
    session_of_row = subject.trials["session"].to_numpy()
    sessions = np.unique(session_of_row[train_rows])
    shape = (len(sessions), subject.n_voxels)
    counts, means, variances = np.zeros(len(sessions)), np.zeros(shape), np.zeros(shape)
    for at, session in enumerate(sessions):
        rows = train_rows[session_of_row[train_rows] == session]
        counts[at] = len(rows)
        means[at] = sum(chunk.sum(axis=0) for chunk in _chunks(subject, rows)) / len(rows)
        deviations = (((chunk - means[at]) ** 2).sum(axis=0) for chunk in _chunks(subject, rows))
        variances[at] = sum(deviations) / len(rows)
    share = (counts / counts.sum())[:, None]
    pooled_mean = (share * means).sum(axis=0)
    pooled_std = np.sqrt((share * (variances + (means - pooled_mean) ** 2)).sum(axis=0))
    pooled_std = np.where(pooled_std > 0, pooled_std, 1.0)
    std = np.sqrt(variances)
    return SessionStatistics(
        sessions=sessions.astype(np.int64),
        mean=means.astype(np.float32),
        std=np.where(std > 0, std, pooled_std).astype(np.float32),
        pooled_mean=pooled_mean.astype(np.float32),
        pooled_std=pooled_std.astype(np.float32),
    )


def _chunks(subject: Subject, rows: NDArray[np.int64]) -> Iterator[NDArray[np.float64]]:
    n_rows = max(1, _CHUNK_BYTES // (8 * subject.n_voxels))
    for start in range(0, len(rows), n_rows):
        yield subject.voxels[rows[start : start + n_rows]].astype(np.float64)
