"""Brain correlation: whether a picture would have made the responses that were measured.

A linear encoding model is fitted to a subject's training images: voxels from the embedding of the
picture. It predicts the responses to a reconstruction, and they are correlated with those to the
picture that was seen, over the voxels of a region.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index_builder.embeddings.reader import EmbeddingFolder
from training.normalization import SessionStatistics, fit_statistics
from training.ridge import RidgeSolution, fit_ridge
from training.samples import TargetTable, TrialTable
from training.subjects.subject import Subject

from ...errors import BenchmarkError
from ..identification import FloatArray, IntArray
from .correlation import paired_correlations

ALL_VOXELS = "all voxels"
# Principal components of the responses, at most, that the model predicts: they bound its memory.
N_COMPONENTS = 1000
_MEMORY_BYTES = 16 << 30
_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True, eq=False)
class EncodingModel:
    """Voxels from the embedding of a picture, for one subject; made by `fit_encoding`.

    Parameters
    ----------
    subject : Subject
    solution : RidgeSolution
        Its inputs are embeddings and its outputs normalized voxels.
    statistics : SessionStatistics
        Of the training trials.
    """

    subject: Subject
    solution: RidgeSolution
    statistics: SessionStatistics

    def correlations(
        self, features: NDArray[np.float32], image_ids: IntArray, split: str
    ) -> dict[str, FloatArray]:
        """Correlate predicted with measured responses over the voxels of each region.

        Parameters
        ----------
        features : float32 array of shape (n, width)
            Embeddings of the pictures that are judged.
        image_ids : int64 array of shape (n,), increasing
            What was seen: the images of ``split``, all of them.
        split : str

        Returns
        -------
        correlations : dict of str to float64 array of shape (n,)
            By region. The measured response is the mean over the trials of an image, z-scored by
            session.

        Notes
        -----
        Pattern correlation, by image and averaged over images, as the code of Scotti et al. 2024
        (arXiv:2403.11207), final_evaluations, computes it for its Table 3, there with the encoding
        model GNet.
        """
        table = _trials(self.subject, split, self.statistics)
        if not np.array_equal(table.image_ids, image_ids):
            raise ValueError("the image ids are not those of the split.")
        regions = regions_of(self.subject)
        parts: dict[str, list[FloatArray]] = {region: [] for region in regions}
        rows_at_once = max(1, _BLOCK_BYTES // (8 * self.subject.n_voxels))
        for start in range(0, len(image_ids), rows_at_once):
            rows = np.arange(start, min(start + rows_at_once, len(image_ids)))
            measured = _mean_responses(table, rows)
            predicted = self.solution.predict(features[rows])
            for region, mask in regions.items():
                parts[region].append(paired_correlations(measured[:, mask], predicted[:, mask]))
        return {region: np.concatenate(values) for region, values in parts.items()}


def regions_of(subject: Subject) -> Mapping[str, Any]:
    """Return the masks of a subject's regions, of two voxels or more, after that of all voxels."""
    everything = {ALL_VOXELS: np.ones(subject.n_voxels, dtype=bool)}
    return everything | {name: mask for name, mask in subject.rois.items() if mask.sum() > 1}


def fit_encoding(
    subject: Subject,
    targets: EmbeddingFolder,
    *,
    seed: int = 0,
    memory_bytes: int = _MEMORY_BYTES,
) -> EncodingModel:
    """Fit the encoding model by ridge regression to the training images of a subject.

    Parameters
    ----------
    subject : Subject
    targets : EmbeddingFolder
        With a row for each training image, column ``image_id``.
    seed : int
        Of the folds of cross-validation.
    memory_bytes : int
        Most that may be held.

    Raises
    ------
    BenchmarkError
        If the subject has no training trials, or the embeddings don't fit into memory.
    RunError
        If an image has no embedding, or memory doesn't suffice for the regression.
    MissingExtraError
        If himalaya is absent.

    Notes
    -----
    Responses are averaged over the trials of an image. Their first 1,000 principal components are
    predicted, each with a penalty of its own; see `training.ridge.fit_ridge`.
    """
    train_rows = subject.trial_rows("train")
    if not len(train_rows):
        raise BenchmarkError(
            f"the subject {subject.path} has no training trials, so no encoding model can be "
            f"fitted. Leave out --encoding-targets."
        )
    statistics = fit_statistics(subject, train_rows)
    table = _trials(subject, "train", statistics)
    n_images, width = len(table.image_ids), targets.space.tokens * targets.space.dim
    n_bytes = 4 * n_images * width
    if 2 * n_bytes > memory_bytes:
        raise BenchmarkError(
            f"{n_images} embeddings of {targets.space} take {n_bytes / 2**30:.1f} GiB, and half of "
            f"{memory_bytes / 2**30:.1f} GiB may be used for them. Embed the pictures with the "
            f"layer final."
        )
    features = TargetTable(targets, table.image_ids, memory_bytes=0).read(np.arange(n_images))
    solution = fit_ridge(
        features.reshape(n_images, width),
        lambda rows: _mean_responses(table, rows)[:, None, :],
        latent_dim=min(N_COMPONENTS, n_images - 1, subject.n_voxels),
        seed=seed,
        memory_bytes=memory_bytes - n_bytes,
    )
    return EncodingModel(subject, solution, statistics)


def _trials(subject: Subject, split: str, statistics: SessionStatistics) -> TrialTable:
    return TrialTable(subject, subject.trial_rows(split), statistics, memory_bytes=0)


def _mean_responses(table: TrialTable, images: IntArray) -> NDArray[np.float32]:
    """Return the normalized voxels of images, averaged over their trials: (n, n_voxels)."""
    trials, n_repeats = table.trials_of_image[images], table.n_repeats[images, None]
    is_own = np.arange(trials.shape[1]) < n_repeats
    return table.combine(trials, (is_own / n_repeats).astype(np.float32))
