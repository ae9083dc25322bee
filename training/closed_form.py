"""Linear models in closed form: ridge regression as a run like any other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from index_builder.embeddings.space import EmbeddingSpace

from .errors import RunError
from .models.assemble import build_model
from .recipe import Recipe
from .ridge import fit_ridge
from .samples import average_batches
from .schema.train import RidgeRecipe
from .study import Study
from .validation import identify_validation

_ROWS = 256


@dataclass(frozen=True)
class Solution:
    """Weights of a linear `BrainModel`, by name, and how its validation images were identified."""

    weights: dict[str, Tensor]
    validation: dict[str, float] | None


def solve(study: Study, recipe: Recipe, *, space: EmbeddingSpace) -> Solution:
    """Solve the linear model of a recipe on the study's only subject, repeats averaged.

    Parameters
    ----------
    study : Study
    recipe : Recipe
        With ``train.kind = "ridge"``.
    space : EmbeddingSpace
        Of the targets.

    Raises
    ------
    RunError
        If the solution does not fit into ``data.memory``.
    MissingExtraError
        If himalaya is not installed.
    """
    ridge, memory = recipe.train, recipe.data.memory_bytes
    assert isinstance(ridge, RidgeRecipe)
    (n_voxels,), n_images = study.n_voxels, len(study.samples.image_ids)
    n_bytes = 4 * n_images * n_voxels
    if n_bytes > memory:
        raise RunError(
            f"{n_images} images x {n_voxels} voxels take {n_bytes:,} bytes, and recipe field "
            f"data.memory allows {memory:,}; a closed form needs them at once. Raise data.memory."
        )
    voxels = np.concatenate(
        [
            study.samples.voxels(batch)[0]
            for batch in average_batches(study.samples, batch_size=_ROWS)
        ]
    )
    solution = fit_ridge(
        voxels,
        study.read_targets,
        latent_dim=recipe.model.latent_dim,
        penalties=np.geomspace(
            ridge.smallest_penalty, ridge.largest_penalty, ridge.n_penalties
        ).tolist(),
        n_folds=ridge.n_folds,
        seed=ridge.seed,
        memory_bytes=memory - n_bytes,
    ).for_retrieval()
    weights = {
        "voxel_layers.0.weight": solution.voxel_weight,
        "voxel_layers.0.bias": solution.voxel_bias,
        "trunk.head.weight": solution.head_weight,
        "trunk.head.bias": solution.head_bias,
    }
    with torch.device("meta"):
        model = build_model(recipe, n_voxels=[n_voxels], tokens=space.tokens, dim=space.dim)
    tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
    model.load_state_dict(tensors, assign=True)
    validation = identify_validation(model, study, batch_size=_ROWS, device=torch.device("cpu"))
    return Solution(tensors, validation)
