"""The objective of a model, as its recipe says."""

from __future__ import annotations

import torch

from ..models.assemble import BrainModel, LowLevelModel
from ..recipe import Recipe
from ..schema.loss import ContrastiveRecipe, LatentLossRecipe
from .low_level import LowLevelObjective
from .retrieval import RetrievalObjective


def build_objective(
    model: BrainModel | LowLevelModel, recipe: Recipe, dtype: torch.dtype
) -> RetrievalObjective | LowLevelObjective:
    """Return the model with its losses; the forward pass runs in ``dtype``."""
    if isinstance(model, LowLevelModel):
        assert isinstance(recipe.loss, LatentLossRecipe)
        return LowLevelObjective(model, recipe.loss, dtype)
    assert isinstance(recipe.loss, ContrastiveRecipe)
    return RetrievalObjective(model, recipe.loss, recipe.prior, dtype)
