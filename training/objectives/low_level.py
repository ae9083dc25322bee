"""The low-level branch: latents of Stable Diffusion's VAE, and features like a teacher's.

MindEye (Scotti et al. 2023, arXiv:2305.18274, section 3.4 and its code).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..losses.low_level import latent_l1_loss, soft_contrastive_loss
from ..losses.prior import Draws
from ..models.assemble import LowLevelModel
from ..schema.loss import LatentLossRecipe
from .contract import Objective
from .precision import forward_dtype


@dataclass(frozen=True)
class TeacherFeatures:
    """A frozen teacher's features of the pictures of one batch, (n, n_features, feature_dim).

    Parameters
    ----------
    plain, augmented : Tensor
        Of the pictures, and of an augmented view of them.
    """

    plain: Tensor
    augmented: Tensor


class LowLevelObjective(Objective):
    """A low-level model with its losses.

    Parameters
    ----------
    model : LowLevelModel
    recipe : LatentLossRecipe
    dtype : torch.dtype
        Of the forward pass, by autocast; float32 = none.
    """

    loss_names = ("feature_loss", "latent_loss")

    def __init__(self, model: LowLevelModel, recipe: LatentLossRecipe, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.recipe, self.dtype = model, recipe, dtype
        self.weights = (recipe.feature_weight, recipe.latent_weight)

    def forward(
        self, voxels: Sequence[Tensor], targets: Tensor, draws: Draws | None
    ) -> tuple[Tensor, Tensor]:
        """Decode some rows of a batch.

        Parameters
        ----------
        voxels : sequence of Tensor of shape (B_s, V_s)
        targets : Tensor of shape (B, side * side, 4)
        draws : None

        Returns
        -------
        features : float32 Tensor of shape (B, n_features, feature_dim)
        latent_losses : float32 Tensor of shape (B,)
            Mean absolute error, in units of ``latent_unit``.
        """
        with forward_dtype(targets.device, self.dtype):
            latents, features = self.model(voxels)
        unit = self.recipe.latent_unit
        return features.float(), latent_l1_loss(latents.float(), targets, scaling_factor=unit)

    def draw(self, targets: Tensor, generator: torch.Generator) -> None:
        """Draw nothing: these losses are certain."""

    def contrast(self, predictions: Tensor, labels: TeacherFeatures | None) -> Tensor:
        """Return the soft contrastive loss of a whole batch, in nats; 0 without a teacher."""
        if labels is None:
            return predictions.sum() * 0
        return soft_contrastive_loss(
            predictions,
            labels.plain,
            labels.augmented,
            temperature=self.recipe.feature_temperature,
        )
