"""BrainModel: voxel layers, trunk, projector and prior as one module, built from a recipe."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import RunError
from ..recipe import Recipe
from ..schema.model import (
    FactoredHeadRecipe,
    LinearStartRecipe,
    LowLevelRecipe,
    MindEye2Recipe,
    MindEyeRecipe,
)
from ..schema.prior import (
    LinearSkipPriorRecipe,
    MindEyeFinalPriorRecipe,
    MindEyePriorRecipe,
    PriorRecipe,
)
from .head import DenseHead, FactoredHead
from .linear_start import LinearStartTrunk
from .low_level import LATENT_CHANNELS, LowLevelTrunk, map_to_tokens
from .mindeye import MindEyeProjector, MindEyeTrunk
from .mindeye2 import MindEye2Trunk
from .mindeye_final_prior import MindEyeFinalPrior
from .mindeye_prior import MindEyePrior
from .prior import PriorNetwork
from .projector import Projector


class BrainModel(nn.Module):
    """Voxels to tokens and to the retrieval embedding; the prior refines the tokens.

    Parameters
    ----------
    voxel_layers : ModuleList of nn.Linear
        One a subject: its voxels (V) to the latent (H) that all subjects share.
    trunk : Module
        Latents (B, H) to tokens (B, T, D).
    projector : Module
        Tokens to the retrieval embedding, both (B, T, D).
    prior : Module or None
        None where the recipe trains none.
    """

    def __init__(
        self,
        voxel_layers: nn.ModuleList,
        trunk: nn.Module,
        projector: nn.Module,
        prior: nn.Module | None,
    ) -> None:
        super().__init__()
        self.voxel_layers = voxel_layers
        self.trunk = trunk
        self.projector = projector
        self.prior = prior

    def forward(self, voxels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Decode trials.

        Parameters
        ----------
        voxels : sequence of S Tensors of shape (B_s, V_s)
            Of each subject, normalized as in training; a subject without trials has no rows. The
            outputs have the rows of all, ``B``, in this order.

        Returns
        -------
        tokens : Tensor of shape (B, T, D)
            The condition of the prior.
        retrieval : Tensor of shape (B, T * D)
            Compare by cosine with target embeddings; not normalized.
        """
        tokens = self.trunk(_latents(self.voxel_layers, voxels))
        return tokens, self.projector(tokens).flatten(1)

    def decode(self, voxels: Tensor, subject: int) -> tuple[Tensor, Tensor]:
        """Decode trials (B, V) of one subject, by its place; the rest as in `forward`."""
        decoded: tuple[Tensor, Tensor] = self(_alone(voxels, subject, len(self.voxel_layers)))
        return decoded


class LowLevelModel(nn.Module):
    """Voxels to latents of Stable Diffusion's VAE, and to features for contrast with a teacher.

    Parameters
    ----------
    voxel_layers : ModuleList of nn.Linear
        One a subject, as in `BrainModel`.
    trunk : LowLevelTrunk
    """

    def __init__(self, voxel_layers: nn.ModuleList, trunk: LowLevelTrunk) -> None:
        super().__init__()
        self.voxel_layers = voxel_layers
        self.trunk = trunk

    def forward(self, voxels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Decode trials.

        Parameters
        ----------
        voxels : sequence of S Tensors of shape (B_s, V_s)

        Returns
        -------
        tokens : Tensor of shape (B, side * side, 4)
            Latents, a token a place, row by row.
        features : Tensor of shape (B, n_features, feature_dim)
        """
        latents, features = self.trunk(_latents(self.voxel_layers, voxels))
        return map_to_tokens(latents), features

    def decode(self, voxels: Tensor, subject: int) -> tuple[Tensor, Tensor]:
        """Decode trials (B, V) of one subject, by its place; the rest as in `forward`."""
        decoded: tuple[Tensor, Tensor] = self(_alone(voxels, subject, len(self.voxel_layers)))
        return decoded


def _latents(voxel_layers: nn.ModuleList, voxels: Sequence[Tensor]) -> Tensor:
    latents = [layer(rows) for layer, rows in zip(voxel_layers, voxels, strict=True) if len(rows)]
    return torch.cat(latents) if len(latents) > 1 else latents[0]


def _alone(voxels: Tensor, subject: int, n_subjects: int) -> list[Tensor]:
    nobody = voxels[:0]
    return [voxels if at == subject else nobody for at in range(n_subjects)]


def build_model(
    recipe: Recipe, *, n_voxels: Sequence[int], tokens: int, dim: int
) -> BrainModel | LowLevelModel:
    """Build an untrained model.

    Parameters
    ----------
    recipe : Recipe
    n_voxels : sequence of int
        Of each subject.
    tokens, dim : int
        Shape of one target embedding.

    Raises
    ------
    RunError
        If the recipe makes targets of another shape.
    """
    if isinstance(recipe.model, LowLevelRecipe):
        return _low_level(recipe.model, n_voxels, tokens, dim)
    layers = [nn.Linear(n, recipe.model.latent_dim) for n in n_voxels]
    trunk, projector = _trunk_and_projector(recipe.model, tokens, dim)
    if isinstance(recipe.model, LinearStartRecipe):
        for layer in layers:
            layer.weight.data.mul_(recipe.model.voxel_gain)
    return BrainModel(nn.ModuleList(layers), trunk, projector, _prior(recipe.prior, tokens, dim))


def _low_level(
    model: LowLevelRecipe, n_voxels: Sequence[int], tokens: int, dim: int
) -> LowLevelModel:
    side = 4 * model.start_side
    if (tokens, dim) != (side * side, LATENT_CHANNELS):
        raise RunError(
            f"model.start_side {model.start_side} makes latents of {side * side} x "
            f"{LATENT_CHANNELS}, and the targets are {tokens} x {dim}. Embed with --encoder "
            f"sd-vae-{8 * side}."
        )
    trunk = LowLevelTrunk(
        latent_dim=model.latent_dim,
        n_blocks=model.n_blocks,
        stem_dropout=model.stem_dropout,
        block_dropout=model.block_dropout,
        start_channels=model.start_channels,
        start_side=model.start_side,
        channels=[model.channels, 2 * model.channels, 4 * model.channels],
        feature_dim=model.feature_dim,
    )
    layers = nn.ModuleList(nn.Linear(n, model.latent_dim, bias=False) for n in n_voxels)
    return LowLevelModel(layers, trunk)


def _trunk_and_projector(
    model: LinearStartRecipe | MindEyeRecipe | MindEye2Recipe, tokens: int, dim: int
) -> tuple[nn.Module, nn.Module]:
    match model:
        case MindEyeRecipe():
            trunk: nn.Module = MindEyeTrunk(
                latent_dim=model.latent_dim,
                n_blocks=model.n_blocks,
                stem_dropout=model.stem_dropout,
                block_dropout=model.block_dropout,
                tokens=tokens,
                dim=dim,
            )
            return trunk, MindEyeProjector(dim, model.projector_dim)
        case MindEye2Recipe():
            trunk = MindEye2Trunk(
                latent_dim=model.latent_dim,
                n_blocks=model.n_blocks,
                dropout=model.dropout,
                tokens=tokens,
                dim=dim,
            )
            return trunk, MindEyeProjector(dim, model.projector_dim)
        case LinearStartRecipe():
            head: nn.Module
            if isinstance(model.head, FactoredHeadRecipe):
                rank, channels = model.head.rank, model.head.channels
                if rank > tokens or channels > dim:
                    raise RunError(
                        f"recipe fields model.head.rank and channels are {rank} and {channels}, "
                        f"and the targets are {tokens} x {dim}; neither can be larger. Lower them."
                    )
                head = FactoredHead(model.latent_dim, tokens, dim, rank=rank, channels=channels)
            else:
                head = DenseHead(model.latent_dim, tokens, dim)
            trunk = LinearStartTrunk(
                model.latent_dim, n_blocks=model.n_blocks, dropout=model.dropout, head=head
            )
            return trunk, Projector(
                dim, model.projector_dim
            ) if model.projector_dim else nn.Identity()


def _prior(prior: PriorRecipe | None, tokens: int, dim: int) -> nn.Module | None:
    match prior:
        case None:
            return None
        case MindEyeFinalPriorRecipe():
            if tokens > 1:
                raise RunError(
                    f"prior.kind 'mindeye_final' is of one token, and the targets have {tokens}; "
                    f"use prior.kind 'mindeye', or targets of the final layer."
                )
            return MindEyeFinalPrior(
                dim=dim,
                depth=prior.depth,
                n_heads=prior.n_heads,
                head_dim=prior.head_dim,
                n_text=prior.n_text,
                n_steps=prior.n_steps if prior.time_table else None,
                dropout=prior.dropout,
                inner_norm=prior.inner_norm,
            )
        case LinearSkipPriorRecipe():
            return PriorNetwork(
                tokens=tokens,
                dim=dim,
                width=prior.width,
                depth=prior.depth,
                n_heads=prior.n_heads,
            )
        case MindEyePriorRecipe():
            return MindEyePrior(
                tokens=tokens,
                dim=dim,
                depth=prior.depth,
                n_heads=prior.n_heads,
                head_dim=prior.head_dim,
                checkpoint=prior.checkpoint,
            )


def count_parameters(model: BrainModel | LowLevelModel) -> dict[str, int]:
    """Return the number of trained parameters of each part that the model has, and ``total``."""
    counts = {
        name: sum(parameter.numel() for parameter in part.parameters())
        for name, part in model.named_children()
    }
    return {**counts, "total": sum(counts.values())}


def summarize_parameters(
    recipe: Recipe, *, n_voxels: Sequence[int], tokens: int, dim: int
) -> dict[str, int]:
    """Return `count_parameters` of a recipe's model without allocating the model."""
    with torch.device("meta"):
        return count_parameters(build_model(recipe, n_voxels=n_voxels, tokens=tokens, dim=dim))
