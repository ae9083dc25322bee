"""Samples: trials of a split, their images, and the batches that training draws from them.

Images are the unit: a batch holds each image at most once, whoever saw it, because two trials of
one image would be told apart as negatives, and an image's repeats are one sample or several as the
recipe says. Voxels and targets are kept in memory where the recipe's budget allows, and read from
disk batch by batch where not; the numbers are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index_builder.embeddings.float16 import to_float32
from index_builder.embeddings.reader import EmbeddingFolder

from .errors import RunError
from .normalization import SessionStatistics
from .subjects.subject import Subject

_SHOWN_IDS = 5


@dataclass(frozen=True)
class Batch:
    """What one step sees; rows are ordered by subject.

    Parameters
    ----------
    images : int64 array of shape (n,)
        Index into the image ids of the samples, distinct.
    subjects : int64 array of shape (n,), increasing
        Who saw it.
    trials : int64 array of shape (n, n_repeats)
        Index into the trials of that subject's table; padded with the first.
    weights : float32 array of shape (n, n_repeats), rows sum to 1
        Share of each trial in the sample; 0 for padding.
    """

    images: NDArray[np.int64]
    subjects: NDArray[np.int64]
    trials: NDArray[np.int64]
    weights: NDArray[np.float32]

    def rows_of(self, subject: int) -> slice:
        """Return the rows of one subject."""
        start, stop = np.searchsorted(self.subjects, [subject, subject + 1])
        return slice(int(start), int(stop))

    def take(self, rows: NDArray[np.int64]) -> Batch:
        """Return some rows, in increasing order."""
        return Batch(self.images[rows], self.subjects[rows], self.trials[rows], self.weights[rows])

    def mixed(self, lam: NDArray[np.float32], partner: NDArray[np.int64]) -> Batch:
        """Return the batch whose row ``i`` holds ``lam`` of itself and the rest of its partner.

        Parameters
        ----------
        lam : float32 array of shape (n,), in [0, 1]
        partner : int64 array of shape (n,)
            Rows of the same subject.
        """
        share = lam[:, None]
        return Batch(
            self.images,
            self.subjects,
            np.concatenate([self.trials, self.trials[partner]], axis=1),
            np.concatenate([share * self.weights, (1 - share) * self.weights[partner]], axis=1),
        )


class TrialTable:
    """Normalized voxels of one subject's trials of one split, grouped by image.

    Parameters
    ----------
    subject : Subject
    rows : int64 array of shape (n_trials,)
        Rows of the subject's voxels: the trials of a split.
    statistics : SessionStatistics
    memory_bytes : int
        Keep the voxels in memory if they need no more than this.

    Attributes
    ----------
    image_ids : int64 array of shape (n_images,), increasing
    trials_of_image : int64 array of shape (n_images, n_repeats)
        Trials of each image in order of presentation, padded with the first.
    n_repeats : int64 array of shape (n_images,)
    memory_left : int
        What of ``memory_bytes`` the voxels did not take.
    """

    def __init__(
        self,
        subject: Subject,
        rows: NDArray[np.int64],
        statistics: SessionStatistics,
        *,
        memory_bytes: int,
    ) -> None:
        self._voxels = subject.voxels
        self._statistics = statistics
        self.n_voxels = subject.n_voxels
        self.rows = rows
        self.sessions = subject.trials["session"].to_numpy()[rows]
        shown = subject.trials["image_id"].to_numpy()[rows]
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

    def read(self, trials: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return normalized voxels of shape (n, n_voxels) for distinct or repeated trials."""
        if self._held is not None:
            return self._held[trials]
        distinct, places = np.unique(trials, return_inverse=True)
        return self._read(distinct)[places]

    def combine(
        self, trials: NDArray[np.int64], weights: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return weighted sums over repeats.

        Parameters
        ----------
        trials, weights : arrays of shape (n, n_repeats)

        Returns
        -------
        voxels : float32 array of shape (n, n_voxels)
        """
        n, n_repeats = trials.shape
        voxels = self.read(trials.ravel())
        if n_repeats == 1:
            return voxels * weights
        combined: NDArray[np.float32] = np.einsum(
            "nrv,nr->nv", voxels.reshape(n, n_repeats, self.n_voxels), weights
        )
        return combined

    def _read(self, trials: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._statistics.apply(self._voxels[self.rows[trials]], self.sessions[trials])


class Samples:
    """Trials of one split of one or several subjects, by image.

    A *view* is one image as one subject saw it, with that subject's repeats of it.

    Parameters
    ----------
    tables : sequence of TrialTable
        One a subject.

    Attributes
    ----------
    image_ids : int64 array of shape (n_images,), increasing
        Of all subjects.
    image_of_view, subject_of_view : int64 array of shape (n_views,)
        Views are ordered by subject, then image.
    trials_of_view : int64 array of shape (n_views, n_repeats)
        Padded with the first trial.
    n_repeats : int64 array of shape (n_views,)
    """

    def __init__(self, tables: Sequence[TrialTable]) -> None:
        self.tables = tuple(tables)
        self.image_ids = np.unique(np.concatenate([table.image_ids for table in tables]))
        self.image_of_view = np.concatenate(
            [np.searchsorted(self.image_ids, table.image_ids) for table in tables]
        )
        n_views = [len(table.image_ids) for table in tables]
        self.subject_of_view = np.repeat(np.arange(len(tables)), n_views)
        self.n_repeats = np.concatenate([table.n_repeats for table in tables])
        self.trials_of_view = np.concatenate(
            [_pad(table.trials_of_image, self.n_repeats.max(initial=1)) for table in tables]
        )

    @property
    def n_trials(self) -> int:
        """Number of trials of all subjects."""
        return sum(len(table.rows) for table in self.tables)

    @property
    def is_padding(self) -> NDArray[np.bool_]:
        """Bool array like `trials_of_view`: places beyond a view's own repeats."""
        return np.arange(self.trials_of_view.shape[1])[None] >= self.n_repeats[:, None]

    def voxels(self, batch: Batch) -> list[NDArray[np.float32]]:
        """Return the combined voxels of a batch, of shape (n_s, V_s), for each subject."""
        return [
            table.combine(batch.trials[rows], batch.weights[rows])
            for subject, table in enumerate(self.tables)
            for rows in [batch.rows_of(subject)]
        ]

    def batch(
        self, views: NDArray[np.int64], trials: NDArray[np.int64], weights: NDArray[np.float32]
    ) -> Batch:
        """Return a batch of views, ordered by subject."""
        order = np.argsort(self.subject_of_view[views], kind="stable")
        views = views[order]
        return Batch(
            self.image_of_view[views], self.subject_of_view[views], trials[order], weights[order]
        )


def draw_batches(
    samples: Samples, repeats: str, *, batch_size: int, rng: np.random.Generator
) -> Iterator[Batch]:
    """Yield the batches of one epoch; each holds an image at most once.

    Parameters
    ----------
    samples : Samples
    repeats : {"single", "one", "average", "random"}
        As in `DataRecipe`. What would come twice in a batch comes in passes over the images, as
        many as the most frequent image needs.
    batch_size : int
        Upper limit; batches of a pass differ by one at most.
    rng : numpy Generator
    """
    padding = samples.is_padding
    views = np.arange(len(padding))
    if repeats in ("single", "one"):
        keys = np.where(padding, 2.0, rng.random(padding.shape))
        drawn = np.take_along_axis(samples.trials_of_view, keys.argsort(axis=1), axis=1)
        if repeats == "one":
            views, trials = views, drawn[:, :1]
        else:
            views, repeat = np.nonzero(~padding)
            trials = drawn[views, repeat][:, None]
        weights = np.ones(trials.shape, np.float32)
    else:
        shares = rng.exponential(size=padding.shape) if repeats == "random" else np.ones(1)
        shares = np.where(padding, 0.0, shares)
        weights = (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)
        trials = samples.trials_of_view
    turns = _turns(samples.image_of_view[views], rng)
    for turn in range(int(turns.max(initial=-1)) + 1):
        for chosen in _split(rng.permutation(np.flatnonzero(turns == turn)), batch_size):
            yield samples.batch(views[chosen], trials[chosen], weights[chosen])


def count_batches(samples: Samples, repeats: str, *, batch_size: int) -> int:
    """Return how many batches `draw_batches` yields an epoch."""
    weights = samples.n_repeats if repeats == "single" else None
    times = np.bincount(samples.image_of_view, weights, minlength=len(samples.image_ids))
    turns = range(int(times.max(initial=0)))
    return sum(-(-int((times > turn).sum()) // batch_size) for turn in turns)


def average_batches(samples: Samples, *, batch_size: int) -> Iterator[Batch]:
    """Yield every view once, in order, with the mean over its repeats."""
    weights = np.where(samples.is_padding, 0.0, 1.0) / samples.n_repeats[:, None]
    for start in range(0, len(weights), batch_size):
        views = np.arange(start, min(start + batch_size, len(weights)))
        yield samples.batch(views, samples.trials_of_view[views], weights[views].astype(np.float32))


def _turns(images: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return for each entry how many of the same image come before it, in a random order."""
    _, image, times = np.unique(images, return_inverse=True, return_counts=True)
    keys = rng.random(len(images)) if times.max(initial=0) > 1 else np.zeros(len(images))
    order = np.lexsort((keys, image))
    turns = np.empty(len(images), np.int64)
    turns[order] = np.arange(len(images)) - np.repeat(np.cumsum(times) - times, times)
    return turns


def _pad(trials: NDArray[np.int64], n_repeats: int) -> NDArray[np.int64]:
    missing = n_repeats - trials.shape[1]
    return np.concatenate([trials, np.repeat(trials[:, :1], missing, axis=1)], axis=1)


def _split(views: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    return np.array_split(views, -(-len(views) // batch_size))


class TargetTable:
    """Target embeddings of the images of some samples, joined by image id.

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
