"""Epochs of training: batches to steps, validation, and the state between epochs.

An epoch's batches, mixing and noise follow from (seed, epoch) alone, so that the state at its end
is weights, optimizer and schedule, and no random generator.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from index_builder.embeddings.reader import EmbeddingFolder

from .checkpoint import STATE, STATE_FOLDER, Run
from .courses import Course, LowLevelCourse, RetrievalCourse, Shown
from .errors import DivergedError, RunError
from .models.assemble import build_model
from .models.head import FactoredHead, start_from_targets
from .objectives.assemble import build_objective
from .objectives.low_level import LowLevelObjective
from .optim import Optimization
from .processes import Processes
from .recipe import Recipe
from .samples import count_batches, draw_batches
from .schema.train import AdamWRecipe
from .step import Piece, Stepper
from .study import Study
from .validation import on_device

logger = logging.getLogger("voxseek")
_BLOCK_BYTES = 256 << 20
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Material:
    """A batch as read from the study, on the device.

    Parameters
    ----------
    shown : Shown
    pieces : list of Piece
        Rows of this process.
    targets : float32 Tensor of shape (n, T, D)
        Of the whole batch.
    """

    shown: Shown
    pieces: list[Piece]
    targets: Tensor


class Training:
    """Model, optimizer and data of one run, and its epochs.

    Parameters
    ----------
    study : Study
    targets : EmbeddingFolder
    recipe : Recipe
        Trained with AdamW.
    processes : Processes
    start_from : Run or None
        A run of the same architecture, whose trunk, projector and prior are taken over; voxel
        layers start anew.

    Raises
    ------
    RunError
        If ``start_from`` is of another architecture, or the recipe asks for what the study lacks.
    """

    def __init__(
        self,
        study: Study,
        targets: EmbeddingFolder,
        recipe: Recipe,
        processes: Processes,
        *,
        start_from: Run | None = None,
    ) -> None:
        assert isinstance(recipe.train, AdamWRecipe)
        self.study, self.recipe, self.processes = study, recipe.train, processes
        self.repeats, self.device = recipe.data.repeats, processes.device
        if recipe.train.patience and not study.has_validation:
            raise RunError(
                "recipe field train.patience needs validation images, and the subjects have none; "
                "set it to 0, or import the subjects with a validation split."
            )
        torch.manual_seed(recipe.train.seed)
        space = targets.space
        self.model = build_model(
            recipe, n_voxels=study.n_voxels, tokens=space.tokens, dim=space.dim
        )
        if start_from is not None:
            _take_over(self.model, start_from)
        elif isinstance(head := getattr(self.model.trunk, "head", None), FactoredHead):
            start_from_targets(head, _blocks(study, 4 * space.tokens * space.dim))
        self.model.to(self.device)
        n_batches = count_batches(study.samples, self.repeats, batch_size=recipe.train.batch_size)
        self.optimization = Optimization(
            self.model, recipe.train, n_steps=n_batches * recipe.train.epochs
        )
        self.course: Course
        objective = build_objective(self.model, recipe, _DTYPES[recipe.train.precision])
        if isinstance(objective, LowLevelObjective):
            self.course = LowLevelCourse(objective, study, recipe, self.device)
        else:
            self.course = RetrievalCourse(objective, study, recipe, self.device)
        self.stepper = Stepper(
            self.course.objective, self.optimization, processes, compiled=recipe.train.compile
        )

    def weights(self) -> dict[str, Tensor]:
        """Return the weights that the run is about, by name."""
        return dict(self.optimization.weights.state_dict())

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs, as tensors and plain values."""
        return {"model": self.model.state_dict(), **self.optimization.state()}

    def restore(self, state: dict[str, Any]) -> list[dict[str, Any]]:
        """Take over a saved state, and return the metrics of its epochs."""
        self.model.load_state_dict(state["model"])
        self.optimization.restore(state)
        metrics: list[dict[str, Any]] = state["metrics"]
        return metrics

    def run_epoch(self, epoch: int, root: Path) -> dict[str, Any]:
        """Train one epoch, validate, and return its line of metrics."""
        rng = np.random.default_rng([self.recipe.seed, 0, epoch])
        seed = int(rng.integers(2**62))
        torch.manual_seed(seed + self.processes.rank)  # dropout
        generator = torch.Generator(self.device).manual_seed(seed)
        facts = self.course.begin(epoch / self.recipe.epochs)
        self.model.train()
        losses = [self._step(material, generator) for material in _ahead(self._materials(rng))]
        parts = torch.stack(losses).cpu()
        self._require_finite(parts, epoch, root)
        return {
            "epoch": epoch,
            "step": (epoch + 1) * len(losses),
            **facts,
            "learning_rate": self.optimization.learning_rate,
            **dict(zip(self.course.objective.loss_names, parts.mean(dim=0).tolist(), strict=True)),
            "validation": self.course.validate(self.optimization.weights),
        }

    def _materials(self, rng: np.random.Generator) -> Iterator[Material]:
        """Draw and read the batches of an epoch."""
        samples = self.study.samples
        for batch in draw_batches(
            samples, self.repeats, batch_size=self.recipe.batch_size, rng=rng
        ):
            if len(batch.images) < self.processes.count:
                continue  # a process without rows would wait for the others for ever
            shown = self.course.show(batch, rng)
            rows = self.processes.rows(len(batch.images))
            own = torch.split(rows, self.recipe.micro_batch_size)
            pieces = [
                Piece(rows, on_device(samples.voxels(shown.batch.take(rows.numpy())), self.device))
                for rows in own
            ]
            (targets,) = on_device([self.study.read_targets(batch.images)], self.device)
            yield Material(shown, pieces, targets)

    def _step(self, material: Material, generator: torch.Generator) -> Tensor:
        """Take one optimizer step, and return the losses of batch and rows, detached."""
        targets = material.targets
        draws = self.course.objective.draw(targets, generator)
        labels = self.course.labels(material.shown, targets)
        return self.stepper.take(material.pieces, targets, draws, labels)

    def _require_finite(self, losses: Tensor, epoch: int, root: Path) -> None:
        bad = (~losses.isfinite()).any(dim=1)
        is_sound = all(bool(p.isfinite().all()) for p in self.model.parameters())
        if not bad.any() and is_sound:
            return
        names = self.course.objective.loss_names
        at = int(bad.int().argmax()) if bad.any() else len(losses) - 1
        step = epoch * len(losses) + at
        state = root / STATE_FOLDER / STATE
        kept = f"The last good state is {state}." if state.is_file() else "No state was saved yet."
        raise DivergedError(
            f"the losses ({', '.join(names)}) at epoch {epoch}, step {step} are "
            f"{losses[at].tolist()}, or its update was not finite. {kept} "
            f"Train again with a lower train.learning_rate, or with train.clip_norm = 1."
        )


def _take_over(model: torch.nn.Module, run: Run) -> None:
    """Copy what subjects share: trunk, projector and prior."""
    shared = {
        name: tensor
        for name, tensor in run.model.state_dict().items()
        if not name.startswith("voxel_layers.")
    }
    own = {name for name in model.state_dict() if not name.startswith("voxel_layers.")}
    shapes = model.state_dict()
    differing = sorted(own ^ set(shared)) or [
        name for name in sorted(shared) if shapes[name].shape != shared[name].shape
    ]
    if differing:
        raise RunError(
            f"{run.path} has another architecture than the recipe: {differing[0]} differs. Train "
            f"with the recipe of that run: its {run.path / 'recipe.toml'}, with --set for the rest."
        )
    model.load_state_dict(shared, strict=False)


def _blocks(study: Study, row_bytes: int) -> Iterator[NDArray[np.float32]]:
    """Yield the training targets in blocks of bounded size."""
    n_images = len(study.samples.image_ids)
    size = max(1, _BLOCK_BYTES // row_bytes)
    for start in range(0, n_images, size):
        yield study.read_targets(np.arange(start, min(start + size, n_images)))


def _ahead(materials: Iterator[Material]) -> Iterator[Material]:
    """Yield each batch while the next one is read by a thread."""
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(next, materials, None)
        while (material := following.result()) is not None:
            following = reader.submit(next, materials, None)
            yield material
