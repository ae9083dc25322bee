"""Samples: trials of a split, their images, and the batches that training draws from them.

Images are the unit: a batch holds each image at most once, because two trials of one image would
be told apart as negatives, and an image's repeats are one sample or several as the recipe says.
Voxels and targets are kept in memory where the recipe's budget allows, and read from disk batch by
batch where not; the numbers are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index_builder.embeddings.float16 import to_float32
from index_builder.embeddings.reader import EmbeddingFolder

from .errors import RunError
from .normalization import SessionStatistics
from .recipe import DataRecipe
from .subjects.subject import Subject

_SHOWN_IDS = 5


@dataclass(frozen=True)
class Batch:
    """What one step sees.

    Parameters
    ----------
    images : int64 array of shape (n,)
        Index into the image ids of the split, distinct.
    trials : int64 array of shape (n, n_repeats)
        Index into the trials of the split; padded with an image's first trial.
    weights : float32 array of shape (n, n_repeats), rows sum to 1
        Share of each trial in the sample; 0 for padding.
    """

    images: NDArray[np.int64]
    trials: NDArray[np.int64]
    weights: NDArray[np.float32]


class TrialTable:
    """Normalized voxels of the trials of one split, grouped by image.

    Parameters
    ----------
    subject : Subject
    split : {"train", "validation", "test"}
    statistics : SessionStatistics
    memory_bytes : int
        Keep the voxels in memory if they need no more than this.

    Attributes
    ----------
    rows : int64 array of shape (n_trials,)
        Rows of the subject's voxels.
    image_ids : int64 array of shape (n_images,), increasing
    trials_of_image : int64 array of shape (n_images, n_repeats)
        Trials of each image in order of presentation, padded with the first.
    n_repeats : int64 array of shape (n_images,)
    memory_left : int
        What of ``memory_bytes`` the voxels did not take.
    """

    def __init__(
        self, subject: Subject, split: str, statistics: SessionStatistics, *, memory_bytes: int
    ) -> None:
        self._voxels = subject.voxels
        self._statistics = statistics
        self.rows = subject.trial_rows(split)
        self.sessions = subject.trials["session"].to_numpy()[self.rows]
        shown = subject.trials["image_id"].to_numpy()[self.rows]
        self.image_ids, image_of_trial = np.unique(shown, return_inverse=True)
        order = np.argsort(image_of_trial, kind="stable")
        self.n_repeats = np.bincount(image_of_trial, minlength=len(self.image_ids))
        first = np.cumsum(self.n_repeats) - self.n_repeats
        offsets = np.arange(self.n_repeats.max(initial=1))[None]
        offsets = np.where(offsets < self.n_repeats[:, None], offsets, 0)
        self.trials_of_image = order[first[:, None] + offsets]
        n_bytes = len(self.rows) * subject.n_voxels * 4
        self._held: NDArray[np.float32] | None = None
        if n_bytes <= memory_bytes:
            held = np.empty((len(self.rows), subject.n_voxels), np.float32)
            for at in range(0, len(self.rows), 1024):
                held[at : at + 1024] = self._read(np.arange(at, min(at + 1024, len(self.rows))))
            self._held = held
        self.memory_left = memory_bytes - (n_bytes if self._held is not None else 0)

    @property
    def has_padding(self) -> NDArray[np.bool_]:
        """Bool array like `trials_of_image`: places beyond an image's own repeats."""
        return np.arange(self.trials_of_image.shape[1])[None] >= self.n_repeats[:, None]

    def read(self, trials: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return normalized voxels of shape (n, n_voxels) for distinct or repeated trials."""
        if self._held is not None:
            return self._held[trials]
        distinct, places = np.unique(trials, return_inverse=True)
        return self._read(distinct)[places]

    def combine(self, batch: Batch) -> NDArray[np.float32]:
        """Return the weighted sum over the repeats, of shape (n, n_voxels)."""
        n, n_repeats = batch.trials.shape
        voxels = self.read(batch.trials.ravel())
        if n_repeats == 1:
            return voxels * batch.weights
        combined: NDArray[np.float32] = np.einsum(
            "nrv,nr->nv", voxels.reshape(n, n_repeats, -1), batch.weights
        )
        return combined

    def _read(self, trials: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._statistics.apply(self._voxels[self.rows[trials]], self.sessions[trials])


def draw_batches(
    table: TrialTable, recipe: DataRecipe, *, batch_size: int, rng: np.random.Generator
) -> Iterator[Batch]:
    """Yield the batches of one epoch; each holds an image at most once.

    Parameters
    ----------
    table : TrialTable
    recipe : DataRecipe
        ``single``: each trial comes once, in as many passes over the images as the most repeated
        one needs. Otherwise each image comes once.
    batch_size : int
        Upper limit; batches of a pass differ by one at most.
    rng : numpy Generator
    """
    padding = table.has_padding
    n_images, most_repeats = padding.shape
    if recipe.repeats == "single":
        keys = np.where(padding, 2.0, rng.random(padding.shape))
        shuffled = np.take_along_axis(table.trials_of_image, keys.argsort(axis=1), axis=1)
        for repeat in range(most_repeats):
            present = rng.permutation(np.flatnonzero(table.n_repeats > repeat))
            for images in _split(present, batch_size):
                trials = shuffled[images, repeat][:, None]
                yield Batch(images, trials, np.ones(trials.shape, np.float32))
        return
    if recipe.repeats == "random":
        weights = np.where(padding, 0.0, rng.exponential(size=padding.shape))
    else:
        weights = np.where(padding, 0.0, 1.0)
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    for images in _split(rng.permutation(n_images), batch_size):
        yield Batch(images, table.trials_of_image[images], weights[images])


def count_batches(table: TrialTable, recipe: DataRecipe, *, batch_size: int) -> int:
    """Return how many batches `draw_batches` yields an epoch."""
    if recipe.repeats != "single":
        return -(-len(table.image_ids) // batch_size)
    passes = range(int(table.n_repeats.max(initial=0)))
    return sum(-(-int((table.n_repeats > repeat).sum()) // batch_size) for repeat in passes)


def average_batches(table: TrialTable, *, batch_size: int) -> Iterator[Batch]:
    """Yield every image once, in order, with the mean over its repeats."""
    weights = np.where(table.has_padding, 0.0, 1.0) / table.n_repeats[:, None]
    for start in range(0, len(table.image_ids), batch_size):
        images = np.arange(start, min(start + batch_size, len(table.image_ids)))
        yield Batch(images, table.trials_of_image[images], weights[images].astype(np.float32))


def _split(images: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    return np.array_split(images, -(-len(images) // batch_size))


class TargetTable:
    """Target embeddings of the images of one split, joined by image id.

    Parameters
    ----------
    targets : EmbeddingFolder
        With the metadata column ``image_id``.
    image_ids : int64 array of shape (n_images,)
    memory_bytes : int
        Keep the embeddings in memory, in their stored dtype, if they need no more than this.

    Raises
    ------
    RunError
        If an image has no target, or several.
    """

    def __init__(
        self, targets: EmbeddingFolder, image_ids: NDArray[np.int64], *, memory_bytes: int
    ) -> None:
        if "image_id" not in targets.columns:
            raise RunError(
                f"{targets.path} has no metadata column image_id (it has "
                f"{', '.join(targets.columns) or 'none'}), so its rows can't be matched with "
                f"trials. Make the targets with `voxseek embed SUBJECT OUT`."
            )
        known = targets.metadata(columns=["image_id"])["image_id"].to_numpy()
        order = np.argsort(known, kind="stable")
        places = np.searchsorted(known[order], image_ids)
        found = places < len(known)
        found[found] = known[order][places[found]] == image_ids[found]
        if not found.all():
            raise RunError(
                f"{targets.path} has no target for {_shown(image_ids[~found])} of the "
                f"{len(image_ids)} images. Embed all images of the subject (voxseek embed)."
            )
        ends = np.searchsorted(known[order], image_ids, side="right")
        if (ends - places > 1).any():
            raise RunError(
                f"{targets.path} has several targets for {_shown(image_ids[ends - places > 1])}; "
                f"expected one an image. Embed the images again into a new folder."
            )
        self._targets = targets
        self._rows = order[places]
        width = targets.space.tokens * targets.space.dim
        n_bytes = len(image_ids) * width * targets.dtype.itemsize
        self._shape = (targets.space.tokens, targets.space.dim)
        self._held: NDArray[Any] | None = None
        if n_bytes <= memory_bytes:
            self._held = targets.take(self._rows)

    def read(self, images: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return targets of shape (n, tokens, dim), as stored but for the float32."""
        held = self._held
        stored = held[images] if held is not None else self._targets.take(self._rows[images])
        embeddings: NDArray[np.float32] = to_float32(stored.reshape(-1, *self._shape))
        return embeddings


def _shown(image_ids: NDArray[np.int64]) -> str:
    ids = ", ".join(map(str, image_ids[:_SHOWN_IDS].tolist()))
    more = f" and {len(image_ids) - _SHOWN_IDS} more" if len(image_ids) > _SHOWN_IDS else ""
    return f"image_id {ids}{more}"
