"""BrainModel: backbone, projector and prior as one module, built from a recipe."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..recipe import Recipe
from .backbone import Backbone
from .prior import PriorNetwork
from .projector import Projector


class BrainModel(nn.Module):
    """Voxels to tokens and to the retrieval embedding; the prior refines the tokens.

    Parameters
    ----------
    backbone : Backbone
    projector : Projector
    prior : PriorNetwork or None
        None where the recipe trains none.
    """

    def __init__(
        self, backbone: Backbone, projector: Projector, prior: PriorNetwork | None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector
        self.prior = prior

    def forward(self, voxels: Tensor) -> tuple[Tensor, Tensor]:
        """Decode trials.

        Parameters
        ----------
        voxels : Tensor of shape (B, V)
            Normalized as in training.

        Returns
        -------
        tokens : Tensor of shape (B, T, D)
            The condition of the prior.
        retrieval : Tensor of shape (B, T * D)
            Compare by cosine with target embeddings; not normalized.
        """
        tokens = self.backbone(voxels)
        return tokens, self.projector(tokens).flatten(1)


def build_model(recipe: Recipe, *, n_voxels: int, tokens: int, dim: int) -> BrainModel:
    """Build an untrained model.

    Parameters
    ----------
    recipe : Recipe
    n_voxels : int
    tokens, dim : int
        Shape of one target embedding.
    """
    backbone = Backbone(
        n_voxels,
        latent_dim=recipe.model.latent_dim,
        n_blocks=recipe.model.n_blocks,
        dropout=recipe.model.dropout,
        voxel_gain=recipe.model.voxel_gain,
        tokens=tokens,
        dim=dim,
    )
    prior = None
    if recipe.prior.depth:
        prior = PriorNetwork(
            tokens=tokens,
            dim=dim,
            width=recipe.prior.width,
            depth=recipe.prior.depth,
            n_heads=recipe.prior.n_heads,
        )
    return BrainModel(backbone, Projector(dim, recipe.model.projector_dim), prior)


def count_parameters(model: BrainModel) -> dict[str, int]:
    """Return the number of trained parameters of each part, and ``total``."""
    parts: dict[str, nn.Module | None] = {
        "voxel_layer": model.backbone.voxel_layer,
        "blocks": model.backbone.blocks,
        "head": model.backbone.head,
        "projector": model.projector,
        "prior": model.prior,
    }
    counts = {
        name: sum(parameter.numel() for parameter in part.parameters()) if part else 0
        for name, part in parts.items()
    }
    return {**counts, "total": sum(counts.values())}


def summarize_parameters(recipe: Recipe, *, n_voxels: int, tokens: int, dim: int) -> dict[str, int]:
    """Return `count_parameters` of a recipe's model without allocating the model."""
    with torch.device("meta"):
        return count_parameters(build_model(recipe, n_voxels=n_voxels, tokens=tokens, dim=dim))
