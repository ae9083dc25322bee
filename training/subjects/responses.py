"""Responses that come in stretches of trials: which voxels are valid where, and how to write them.

A voxel is invalid in a session where all its responses are 0, or one is not finite: there it is
stored as 0. A voxel that is invalid in every session is left out.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index_builder.embeddings.errors import ArtefactError
from index_builder.embeddings.progress import track

from ..errors import SourceError
from .subject import MANIFEST
from .voxel_file import VoxelBlock, VoxelSource

STRETCH_BYTES = 1 << 30  # of float32 responses; what an import holds in memory, about
_ROWS_AT_ONCE = 64
logger = logging.getLogger("voxseek")


@dataclass(frozen=True)
class Stretch:
    """Trials that are read together.

    Parameters
    ----------
    name : str
        For progress and messages.
    sessions : int64 array of shape (n_trials,)
    read : callable
        Takes positions among the candidate voxels, an increasing int64 array of shape (n,), and
        returns their responses, (n_trials, n) float, as a new array.
    """

    name: str
    sessions: NDArray[np.int64]
    read: Callable[[NDArray[np.int64]], NDArray[Any]]


def require_new_subject(folder: str | os.PathLike[str]) -> None:
    """Refuse a folder that holds a subject, before hours of reading.

    Raises
    ------
    ArtefactError
    """
    if (Path(folder) / MANIFEST).exists():
        raise ArtefactError(
            f"{folder} already holds a complete subject; expected a new or unfinished folder. "
            f"Remove it, or write to another folder."
        )


def find_valid(stretches: Sequence[Stretch], n_candidates: int) -> NDArray[np.bool_]:
    """Read every response once, and tell where voxels are valid.

    Parameters
    ----------
    stretches : sequence of Stretch
        Of all trials.
    n_candidates : int

    Returns
    -------
    is_valid : bool array of shape (n_sessions, n_candidates)
        Row s is session s.
    """
    n_sessions = 1 + max(int(stretch.sessions.max()) for stretch in stretches)
    is_finite = np.ones((n_sessions, n_candidates), dtype=bool)
    is_driven = np.zeros((n_sessions, n_candidates), dtype=bool)
    everything = np.arange(n_candidates, dtype=np.int64)
    for stretch in track(stretches, label="check", total=len(stretches), unit="stretch"):
        responses = stretch.read(everything)
        for session in np.unique(stretch.sessions):
            rows = np.flatnonzero(stretch.sessions == session)
            for start in range(0, len(rows), _ROWS_AT_ONCE):
                part = responses[rows[start : start + _ROWS_AT_ONCE]]
                is_finite[session] &= np.isfinite(part).all(axis=0)
                is_driven[session] |= (part != 0).any(axis=0)
    return is_finite & is_driven


def build_source(
    stretches: Sequence[Stretch],
    is_valid: NDArray[np.bool_],
    *,
    identity: dict[str, Any],
    where: str,
) -> tuple[VoxelSource, NDArray[np.int64], dict[str, int]]:
    """Make the voxel source of a subject from its stretches.

    Parameters
    ----------
    stretches : sequence of Stretch
        Of all trials, in their order.
    is_valid : bool array of shape (n_sessions, n_candidates)
    identity : dict
        JSON-serialisable: files and options.
    where : str
        What holds the responses, for the message.

    Returns
    -------
    source : VoxelSource of float32
    kept : int64 array of shape (n_voxels,), increasing
        Positions of its voxels among the candidates.
    counts : dict
        n_voxels_left_out, and n_invalid_sessions: pairs of a kept voxel and a session where it
        is stored as 0.

    Raises
    ------
    SourceError
        If no voxel is valid anywhere.
    """
    kept = np.flatnonzero(is_valid.any(axis=0))
    n_left_out = is_valid.shape[1] - len(kept)
    if not len(kept):
        raise SourceError(
            f"{where}: all {n_left_out} voxels are 0 or not finite in every session. Give other "
            f"files, or a mask that meets the brain."
        )
    invalid = ~is_valid[:, kept]
    if n_left_out:
        logger.info(
            "left out %d of %d voxels: 0 or not finite in every session",
            n_left_out,
            is_valid.shape[1],
        )

    def block(stretch: Stretch) -> VoxelBlock:
        def read() -> NDArray[np.float32]:
            responses = np.asarray(stretch.read(kept), dtype=np.float32)
            for session in np.unique(stretch.sessions):
                rows = np.flatnonzero(stretch.sessions == session)
                responses[np.ix_(rows, np.flatnonzero(invalid[session]))] = 0
            return responses

        return VoxelBlock(stretch.name, len(stretch.sessions), read)

    source = VoxelSource(
        blocks=[block(stretch) for stretch in stretches],
        n_voxels=len(kept),
        dtype=np.dtype(np.float32),
        identity={**identity, "valid": digest(is_valid)},
    )
    return source, kept, {"n_voxels_left_out": n_left_out, "n_invalid_sessions": int(invalid.sum())}


def digest(array: NDArray[Any]) -> str:
    """Return what tells an array from every other, for an identity."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
