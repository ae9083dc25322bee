"""Study: the subjects of a run, split into samples, with the targets of what they saw."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from index_builder.embeddings.reader import EmbeddingFolder

from .errors import RunError
from .normalization import SessionStatistics, fit_statistics
from .samples import Samples, TargetTable, TrialTable
from .schema.data import DataRecipe
from .subjects.subject import Subject

logger = logging.getLogger("voxseek")


class Study:
    """Training and validation samples of some subjects, normalized, with their targets.

    Parameters
    ----------
    subjects : sequence of Subject
    targets : EmbeddingFolder
        Embeddings of all their images, with the column ``image_id``.
    recipe : DataRecipe
    seed : int
        Of the control's permutation.
    teacher : sequence of EmbeddingFolder
        Features of the same images for the low-level branch: plain, and of an augmented view.

    Attributes
    ----------
    statistics : list of SessionStatistics
        Of each subject's training trials.
    samples, validation : Samples

    Raises
    ------
    RunError
        If a subject comes twice or has no training trials, or an image has no target.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        targets: EmbeddingFolder,
        recipe: DataRecipe,
        *,
        seed: int,
        teacher: Sequence[EmbeddingFolder] = (),
    ) -> None:
        names = [subject.name for subject in subjects]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise RunError(f"subject {twice[0]} is given twice; give each subject once.")
        self.n_voxels = [subject.n_voxels for subject in subjects]
        rows = [training_rows(subject, recipe.sessions) for subject in subjects]
        self.statistics: list[SessionStatistics] = [
            fit_statistics(subject, own) for subject, own in zip(subjects, rows, strict=True)
        ]
        memory = recipe.memory_bytes
        tables, validation = [], []
        for subject, own, statistics in zip(subjects, rows, self.statistics, strict=True):
            tables.append(TrialTable(subject, own, statistics, memory_bytes=memory))
            memory = tables[-1].memory_left
            held_out = TrialTable(
                subject, subject.trial_rows("validation"), statistics, memory_bytes=0
            )
            statistics.report_unseen(held_out.sessions, where=str(subject.path))
            validation.append(held_out)
        self.samples, self.validation = Samples(tables), Samples(validation)
        self._targets = TargetTable(targets, self.samples.image_ids, memory_bytes=memory)
        self._teacher = [
            TargetTable(features, self.samples.image_ids, memory_bytes=0) for features in teacher
        ]
        self.has_validation = len(self.validation.image_ids) > 1
        if self.has_validation:
            self._validation_targets = TargetTable(
                targets, self.validation.image_ids, memory_bytes=0
            )
        else:
            logger.warning("%s: no validation images: training is blind.", ", ".join(names))
        self._target_of_image = np.arange(len(self.samples.image_ids))
        if recipe.control == "shuffled_labels":
            rng = np.random.default_rng([seed, 1])
            self._target_of_image = rng.permutation(self._target_of_image)

    @property
    def n_teachers(self) -> int:
        """Number of folders of a teacher's features."""
        return len(self._teacher)

    def read_targets(self, images: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return targets (n, T, D) of training images, permuted where that is the control."""
        return self._targets.read(self._target_of_image[images])

    def read_teacher(self, images: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        """Return each teacher folder's features (n, T, F) of training images."""
        return [features.read(self._target_of_image[images]) for features in self._teacher]

    def read_validation_targets(self, images: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return targets (n, T, D) of validation images."""
        return self._validation_targets.read(images)


def training_rows(subject: Subject, n_sessions: int) -> NDArray[np.int64]:
    """Return the rows of a subject's training trials, of its first sessions if not 0.

    Raises
    ------
    RunError
        If there are none.
    """
    rows = subject.trial_rows("train")
    if n_sessions:
        sessions = subject.trials["session"].to_numpy()
        rows = rows[np.isin(sessions[rows], np.unique(sessions)[:n_sessions])]
    if not len(rows):
        where = f" in its first {n_sessions} sessions" if n_sessions else ""
        raise RunError(
            f"{subject.path} has no training trials{where}; its splits must include some."
        )
    return rows
