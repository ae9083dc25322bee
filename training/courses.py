"""Courses: what each kind of model is shown and asked in an epoch, around its objective.

``RetrievalCourse`` mixes brains, draws further images to tell apart, and moves through the phases
of the contrastive loss; ``LowLevelCourse`` shows latents and a teacher's features. `Training` runs
either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from .errors import RunError
from .losses.bimixco import Mixing, draw_mixing
from .losses.phases import Phase, phase_at
from .objectives.contract import Objective
from .objectives.low_level import LowLevelObjective, TeacherFeatures
from .objectives.retrieval import Labels, RetrievalObjective
from .recipe import Recipe
from .samples import Batch
from .schema.loss import ContrastiveRecipe, LatentLossRecipe
from .schema.train import AdamWRecipe
from .study import Study
from .validation import compare_validation, identify_validation, on_device


@dataclass(frozen=True)
class Shown:
    """What a course shows of one batch.

    Parameters
    ----------
    batch : Batch
        As it is embedded: mixed, where the course mixes.
    told : object
        What the course makes labels of, on the device.
    """

    batch: Batch
    told: Any


class Course(Protocol):
    """The part of training that depends on what is learned."""

    @property
    def objective(self) -> Objective:
        """The model with its losses."""

    def begin(self, fraction: float) -> dict[str, Any]:
        """Begin an epoch at a fraction of training in [0, 1); return what metrics say of it."""

    def show(self, batch: Batch, rng: np.random.Generator) -> Shown:
        """Draw and read what goes with a batch."""

    def labels(self, shown: Shown, targets: Tensor) -> Any:
        """Return what the objective's `contrast` is told, for targets (n, T, D)."""

    def validate(self, model: nn.Module) -> dict[str, float] | None:
        """Return how well validation images are decoded; None where there are none."""


class RetrievalCourse:
    """Contrast of brains with images, and the prior.

    Raises
    ------
    RunError
        If the recipe asks for more images a step than there are.
    """

    def __init__(
        self,
        objective: RetrievalObjective,
        study: Study,
        recipe: Recipe,
        device: torch.device,
    ) -> None:
        assert isinstance(recipe.loss, ContrastiveRecipe) and isinstance(recipe.train, AdamWRecipe)
        self.objective = objective
        self._study, self._recipe, self._device = study, recipe.loss, device
        self._micro_batch_size = recipe.train.micro_batch_size
        self._phase: Phase = phase_at(0, recipe.loss)
        n_images = len(study.samples.image_ids)
        wanted = recipe.train.batch_size + recipe.loss.extra_negatives
        if recipe.loss.extra_negatives and wanted > n_images:
            raise RunError(
                f"recipe fields train.batch_size and loss.extra_negatives ask for {wanted} images "
                f"a step, and there are {n_images} training images; lower one of them."
            )

    def begin(self, fraction: float) -> dict[str, Any]:
        """Enter the phase of this moment."""
        self._phase = phase_at(fraction, self._recipe)
        return {"phase": self._phase.loss, "temperature": self._phase.temperature}

    def show(self, batch: Batch, rng: np.random.Generator) -> Shown:
        """Draw who is mixed with whom, and further images to tell apart."""
        mixing, shown = None, batch
        if self._phase.loss == "bimixco":
            mixing = draw_mixing(
                batch.subjects,
                rng,
                probability=self._recipe.mixing_probability,
                concentration=self._recipe.mixing_concentration,
            )
            shown = batch.mixed(mixing.lam, mixing.partner)
        negatives = None
        if self._recipe.extra_negatives:
            others = self._study.read_targets(self._draw_others(batch, rng))
            (embeddings,) = on_device([others], self._device)
            negatives = F.normalize(embeddings.flatten(1), dim=1)
        return Shown(shown, (mixing, negatives))

    def _draw_others(self, batch: Batch, rng: np.random.Generator) -> NDArray[np.int64]:
        n_images, n_wanted = len(self._study.samples.image_ids), self._recipe.extra_negatives
        drawn = rng.choice(n_images, n_wanted + len(batch.images), replace=False)
        return drawn[~np.isin(drawn, batch.images)][:n_wanted]

    def labels(self, shown: Shown, targets: Tensor) -> Labels:
        """Return the labels of this phase."""
        mixing: Mixing | None
        mixing, negatives = shown.told
        return Labels(
            phase=self._phase,
            targets=F.normalize(targets.flatten(1), dim=1),
            mixing=mixing,
            negatives=negatives,
        )

    def validate(self, model: nn.Module) -> dict[str, float] | None:
        """Identify the validation images."""
        return identify_validation(
            model, self._study, batch_size=self._micro_batch_size, device=self._device
        )


class LowLevelCourse:
    """Latents, and a teacher's features where the study has them.

    Raises
    ------
    RunError
        If there are features and no weight for them, or a weight and no features.
    """

    def __init__(
        self,
        objective: LowLevelObjective,
        study: Study,
        recipe: Recipe,
        device: torch.device,
    ) -> None:
        assert isinstance(recipe.loss, LatentLossRecipe) and isinstance(recipe.train, AdamWRecipe)
        self.objective = objective
        self._study, self._device = study, device
        self._micro_batch_size = recipe.train.micro_batch_size
        wanted = 2 if recipe.loss.feature_weight else 0
        if study.n_teachers != wanted:
            raise RunError(
                f"recipe field loss.feature_weight is {recipe.loss.feature_weight}, which needs "
                f"{wanted} folders of a teacher's features, and {study.n_teachers} are given. "
                f"Give --teacher twice (plain, augmented), or set loss.feature_weight to 0."
            )

    def begin(self, fraction: float) -> dict[str, Any]:
        """Begin; every epoch is alike."""
        return {}

    def show(self, batch: Batch, rng: np.random.Generator) -> Shown:
        """Read the teacher's features."""
        features = on_device(self._study.read_teacher(batch.images), self._device)
        return Shown(batch, TeacherFeatures(*features) if features else None)

    def labels(self, shown: Shown, targets: Tensor) -> TeacherFeatures | None:
        """Return the teacher's features."""
        features: TeacherFeatures | None = shown.told
        return features

    def validate(self, model: nn.Module) -> dict[str, float] | None:
        """Compare the latents of validation images."""
        return compare_validation(
            model, self._study, batch_size=self._micro_batch_size, device=self._device
        )
