"""Retrieval and prior: contrast brains with images, and denoise image embeddings given the brain.

The contrastive loss needs the embeddings of a whole batch, the prior's is one number a row. The
two stay apart, so that a batch may pass through the network in pieces (`step.Stepper`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.schedule import cosine_schedule
from ..losses.bimixco import Mixing, bimixco_loss
from ..losses.phases import Phase
from ..losses.prior import Draws, draw, prior_loss
from ..losses.softclip import softclip_loss
from ..models.assemble import BrainModel
from ..schema.loss import ContrastiveRecipe
from ..schema.prior import ChainRecipe
from .contract import Objective
from .precision import forward_dtype


@dataclass(frozen=True)
class Labels:
    """What the contrastive loss of one batch is told.

    Parameters
    ----------
    phase : Phase
    targets : Tensor of shape (n, T * D), unit rows
    mixing : Mixing or None
        None in the phase ``softclip``.
    negatives : Tensor of shape (n_negatives, T * D), unit rows, or None
    """

    phase: Phase
    targets: Tensor
    mixing: Mixing | None
    negatives: Tensor | None


class RetrievalObjective(Objective):
    """A brain model with its losses.

    Parameters
    ----------
    model : BrainModel
    loss : ContrastiveRecipe
    prior : ChainRecipe or None
        None: the model has no prior.
    dtype : torch.dtype
        Of the forward pass, by autocast; float32 = none.
    """

    loss_names = ("contrastive_loss", "prior_loss")

    def __init__(
        self,
        model: BrainModel,
        loss: ContrastiveRecipe,
        prior: ChainRecipe | None,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.weights = (loss.contrastive_weight, loss.prior_weight)
        self.model = model
        self.recipe = prior
        self.dtype = dtype
        self.schedule = cosine_schedule(prior.n_steps) if prior is not None else None

    def forward(
        self, voxels: Sequence[Tensor], targets: Tensor, draws: Draws | None
    ) -> tuple[Tensor, Tensor]:
        """Decode some rows of a batch.

        Parameters
        ----------
        voxels : sequence of Tensor of shape (B_s, V_s)
        targets : Tensor of shape (B, T, D)
        draws : Draws or None
            Of these rows; None: don't train the prior.

        Returns
        -------
        predictions : float32 Tensor of shape (B, T * D), unit rows
        prior_losses : float32 Tensor of shape (B,)
            Zeros without ``draws``.
        """
        with forward_dtype(targets.device, self.dtype):
            tokens, retrieval = self.model(voxels)
            prior = self.model.prior
            if draws is None or prior is None or self.recipe is None or self.schedule is None:
                losses = torch.zeros(len(targets), device=targets.device)
            else:
                clean = targets * self.recipe.image_embed_scale
                losses = prior_loss(prior, self.schedule, tokens, clean, draws)
        return F.normalize(retrieval.float(), dim=1), losses

    def draw(self, targets: Tensor, generator: torch.Generator) -> Draws | None:
        """Draw what chance decides for a whole batch of targets."""
        if self.recipe is None:
            return None
        n, tokens, dim = targets.shape
        return draw(self.recipe, (n, tokens, dim), generator)

    def contrast(self, predictions: Tensor, labels: Labels) -> Tensor:
        """Return the contrastive loss of a whole batch of unit predictions (n, T * D), in nats."""
        temperature, negatives = labels.phase.temperature, labels.negatives
        if labels.mixing is None:
            return softclip_loss(
                predictions, labels.targets, temperature=temperature, negatives=negatives
            )
        mixed = labels.mixing.labels(predictions.device)
        return bimixco_loss(
            predictions, labels.targets, mixed, temperature=temperature, negatives=negatives
        )
