"""A simulated brain that sees pictures: a subject folder whose truth is known.

Low-level features of the pixels and the targets themselves drive voxels through random, local
weights and a mild nonlinearity; reliability, regions, repeats and sessions are NSD's. Formulas and
the reason for each default stand in ``docs/simulated_brain.md``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index_builder.embeddings.artefact import atomic_write
from index_builder.embeddings.float16 import to_float32
from index_builder.embeddings.progress import track
from index_builder.embeddings.reader import EmbeddingFolder

from ..errors import SourceError
from .cortex import grow_cortex
from .low_level import low_level_features
from .simulation_config import SimulationConfig
from .subject import Subject, write_subject
from .trials import assign_splits, build_trials
from .truth import SIGNAL, Truth

__all__ = ["SimulationConfig", "principal_components", "simulate_subject"]

# One random stream for each purpose, so that none depends on how much another has drawn.
_STREAM_IMAGES, _STREAM_CORTEX, _STREAM_ORDER, _STREAM_SESSIONS, _STREAM_NOISE = range(5)
_SESSION_MEMORY = 0.8  # correlation of one session's drift with the next one's
_ROWS_A_CHUNK = 256
_IMAGES_A_READ = 1024


def simulate_subject(
    targets: EmbeddingFolder,
    folder: str | os.PathLike[str],
    config: SimulationConfig,
    *,
    seed: int,
) -> Subject:
    """Show the pictures of ``targets`` to a simulated brain and write its subject folder.

    Parameters
    ----------
    targets : EmbeddingFolder
        Columns image_id, image_path (absolute, or relative to the folder) and caption. Of an
        embedding with several tokens, their mean drives the voxels.
    folder : path
        Must not hold a complete subject already.
    config : SimulationConfig
    seed : int, at least 0
        The same targets, config and seed give the same bytes.

    Returns
    -------
    subject : Subject
        ``truth/`` beside it holds the responses without noise and the law of the noise.

    Raises
    ------
    SourceError
        If the targets lack a column, repeat an image, don't vary, are too few for the config, or
        a picture can't be read.

    Notes
    -----
    Memory: embeddings and low-level features (960 numbers) of all images, the truth's weights,
    and one chunk of trials; signal and voxels are written through memory maps.
    """
    rows, images = _choose_images(targets, config, seed)
    image_ids = images["image_id"].to_numpy()
    components, spectrum = principal_components(
        _read_embeddings(targets, rows), config.n_semantic_components
    )
    cortex = grow_cortex(
        components,
        spectrum ** (1 - config.whitening),
        _low_level(images),
        config,
        np.random.SeedSequence([seed, _STREAM_CORTEX]),
    )
    root = Path(folder)
    trials = _order_trials(image_ids, config, seed)
    n_sessions = int(trials["session"].to_numpy()[-1]) + 1
    with atomic_write(root / SIGNAL) as temporary:
        signal = np.lib.format.open_memmap(
            temporary, mode="w+", dtype=np.float32, shape=(len(image_ids), config.n_voxels)
        )
        cortex.respond(signal)
        signal.flush()
    gain, offset = _drift(n_sessions, config, seed)
    truth = Truth(
        image_ids=image_ids,
        signal=np.load(root / SIGNAL, mmap_mode="r", allow_pickle=False),
        noise_factors=cortex.noise_factors,
        independent_variance=cortex.independent_variance,
        session_gain=gain,
        session_offset=offset,
    )
    return write_subject(
        root,
        name="simulated",
        voxels=_record(truth, trials, config, seed),
        trials=trials,
        rois=cortex.rois,
        images=images,
        command="voxseek data simulate",
        details={
            "simulation": {
                "seed": seed,
                "config": asdict(config),
                "targets": {
                    "space": targets.space.to_dict(),
                    "fingerprint": targets.fingerprint,
                },
            }
        },
        extra_files=truth.write(root, cortex.tuning),
    )


def principal_components(
    embeddings: NDArray[np.float32], n_components: int
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Reduce embeddings to uncorrelated unit-variance scores.

    Parameters
    ----------
    embeddings : float32 array of shape (n_images, dim)
    n_components : int
        At most; fewer where the embeddings have fewer.

    Returns
    -------
    scores : float32 array of shape (n_images, n_kept)
        Zero mean, unit variance over images.
    spectrum : float64 array of shape (n_kept,), decreasing
        Standard deviation of the embeddings along each component.

    Raises
    ------
    SourceError
        If the embeddings are all equal.
    """
    centred = embeddings.astype(np.float64)
    centred -= centred.mean(axis=0)
    variance, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    order = np.argsort(variance)[::-1][: min(n_components, len(centred) - 1)]
    order = order[variance[order] > 1e-12 * max(float(variance[-1]), 1e-12)]
    if len(order) == 0:
        raise SourceError(
            f"the {len(embeddings)} embeddings of the targets are all equal, so nothing could "
            f"drive a voxel; embed different pictures."
        )
    spectrum = np.sqrt(variance[order])
    scores = centred @ axes[:, order] / spectrum
    return scores.astype(np.float32), spectrum


def _choose_images(
    targets: EmbeddingFolder, config: SimulationConfig, seed: int
) -> tuple[NDArray[np.int64], pa.Table]:
    """Return rows of the targets and their image table, both by increasing image_id."""
    missing = {"image_id", "image_path", "caption"} - set(targets.columns)
    if missing:
        raise SourceError(
            f"the targets {targets.path} have columns {list(targets.columns)} and lack "
            f"{sorted(missing)}; make them with: voxseek embed IMAGES OUT"
        )
    table = targets.metadata(columns=["image_id", "image_path", "caption"])
    image_ids = table["image_id"].to_numpy()
    unique, first_row = np.unique(image_ids, return_index=True)
    if len(unique) < len(image_ids):
        repeated = int(np.setdiff1d(np.arange(len(image_ids)), first_row)[0])
        raise SourceError(
            f"the targets {targets.path} hold image {image_ids[repeated]} more than once (row "
            f"{repeated}); expected one row an image."
        )
    rows = first_row.astype(np.int64)
    n_images = len(rows) if config.n_images is None else config.n_images
    if n_images > len(rows) or config.n_test >= n_images:
        raise SourceError(
            f"the targets {targets.path} hold {len(rows)} images, too few to show {n_images} and "
            f"keep {config.n_test} of them for the test. Embed more pictures, or lower n_test."
        )
    if n_images < len(rows):
        rng = np.random.default_rng([seed, _STREAM_IMAGES])
        rows = rows[np.sort(rng.permutation(len(rows))[:n_images])]
    chosen = table.take(pa.array(rows))
    paths = [str(Path(targets.path) / path) for path in chosen["image_path"].to_pylist()]
    return rows, pa.table(
        {"image_id": chosen["image_id"], "path": paths, "caption": chosen["caption"]}
    )


def _read_embeddings(targets: EmbeddingFolder, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return one embedding an image, (n_images, dim): the mean over its tokens."""
    parts = []
    for start in range(0, len(rows), _IMAGES_A_READ):
        embeddings = to_float32(targets.take(rows[start : start + _IMAGES_A_READ]))
        parts.append(embeddings.reshape(len(embeddings), -1, targets.space.dim).mean(axis=1))
    return np.concatenate(parts)


def _low_level(images: pa.Table) -> NDArray[np.float32]:
    """Return the low-level features of all pictures, (n_images, N_CHANNELS, GRID, GRID)."""
    rows = zip(images["image_id"].to_pylist(), images["path"].to_pylist(), strict=True)
    features = []
    for image_id, path in track(rows, label="look", total=len(images), unit="image"):
        try:
            features.append(low_level_features(path))
        except (OSError, SyntaxError, ValueError) as error:
            raise SourceError(
                f"image {image_id} can't be read from {path} ({error}); the simulated brain must "
                f"see the pictures of its targets. Restore the file, or embed the pictures again."
            ) from error
    return np.stack(features)


def _order_trials(image_ids: NDArray[np.int64], config: SimulationConfig, seed: int) -> pa.Table:
    """Shuffle all presentations over the whole experiment, and split the images."""
    n_others = len(image_ids) - config.n_test
    split_of_image = assign_splits(
        image_ids,
        n_test=config.n_test,
        n_validation=min(round(n_others * config.validation_fraction), n_others - 1),
        seed=seed,
    )
    rng = np.random.default_rng([seed, _STREAM_ORDER])
    shown = rng.permutation(np.repeat(image_ids, config.n_repeats))
    return build_trials(
        shown, np.arange(len(shown), dtype=np.int64) // config.trials_per_session, split_of_image
    )


def _drift(
    n_sessions: int, config: SimulationConfig, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return gain and offset of every voxel in every session, each (n_sessions, n_voxels)."""
    rng = np.random.default_rng([seed, _STREAM_SESSIONS])
    shape = (n_sessions, config.n_voxels)
    noise_amplitude = np.exp(0.4 * rng.standard_normal(config.n_voxels))
    baseline = 1 + rng.standard_normal(config.n_voxels)
    shared = _slow_walk(rng.standard_normal((n_sessions, 1)))
    own = _slow_walk(rng.standard_normal(shape))
    gain = noise_amplitude * np.exp(config.session_drift * (shared + own) / np.sqrt(2))
    wander = _slow_walk(rng.standard_normal(shape))
    return gain, noise_amplitude * (baseline + config.session_offset * wander)


def _slow_walk(steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn independent unit-variance steps into an AR(1) series of unit variance along axis 0."""
    walk = steps.copy()
    for session in range(1, len(walk)):
        walk[session] *= np.sqrt(1 - _SESSION_MEMORY**2)
        walk[session] += _SESSION_MEMORY * walk[session - 1]
    return walk


def _record(
    truth: Truth, trials: pa.Table, config: SimulationConfig, seed: int
) -> Iterator[NDArray[Any]]:
    """Yield the recorded voxels by chunks of trials; the noise of a trial depends on no other."""
    image_row = np.searchsorted(truth.image_ids, trials["image_id"].to_numpy())
    session = trials["session"].to_numpy()
    n_voxels, n_factors = truth.noise_factors.shape
    deviation = np.sqrt(truth.independent_variance)
    for start in range(0, len(image_row), _ROWS_A_CHUNK):
        chunk = slice(start, min(start + _ROWS_A_CHUNK, len(image_row)))
        draws = np.stack(
            [
                np.random.default_rng([seed, _STREAM_NOISE, trial]).standard_normal(
                    n_factors + n_voxels, dtype=np.float32
                )
                for trial in range(chunk.start, chunk.stop)
            ]
        )
        noise = draws[:, :n_factors] @ truth.noise_factors.T + draws[:, n_factors:] * deviation
        response = truth.signal[image_row[chunk]] + noise
        recorded = (
            truth.session_offset[session[chunk]] + truth.session_gain[session[chunk]] * response
        )
        yield recorded.astype(config.dtype)
