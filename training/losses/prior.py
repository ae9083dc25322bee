"""Loss of the diffusion prior: the squared error of the estimate of the clean embedding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..diffusion.schedule import NoiseSchedule
from ..schema.prior import ChainRecipe, MindEyeFinalPriorRecipe, MindEyePriorRecipe


@dataclass(frozen=True)
class Draws:
    """What chance decides in one step of a prior's training.

    Parameters
    ----------
    step : LongTensor of shape (B,)
    noise : Tensor of shape (B, T, D), standard normal
    drops : dict of str to bool Tensor of shape (B,)
        Rows trained without the brain (``drop_brain``), for classifier-free guidance, and where
        the network has a null for it, without the noised embedding (``drop_image``).
    """

    step: Tensor
    noise: Tensor
    drops: dict[str, Tensor]

    def rows(self, rows: Tensor) -> Draws:
        """Return the draws of some rows."""
        drops = {name: dropped[rows] for name, dropped in self.drops.items()}
        return Draws(self.step[rows], self.noise[rows], drops)


def draw(recipe: ChainRecipe, shape: tuple[int, int, int], generator: torch.Generator) -> Draws:
    """Draw steps, noise and drops for embeddings of shape (B, T, D), on the generator's device."""
    n, device = shape[0], generator.device
    step = torch.randint(recipe.n_steps, (n,), device=device, generator=generator)
    noise = torch.randn(shape, device=device, generator=generator)
    shares = {"drop_brain": recipe.drop_brain}
    if isinstance(recipe, MindEyePriorRecipe | MindEyeFinalPriorRecipe):
        shares["drop_image"] = recipe.drop_image
    drops = {
        name: torch.rand(n, device=device, generator=generator) < share
        for name, share in shares.items()
    }
    return Draws(step, noise, drops)


def prior_loss(
    network: nn.Module, schedule: NoiseSchedule, brain: Tensor, clean: Tensor, draws: Draws
) -> Tensor:
    """Return the squared error of the clean embedding, estimated from its noised version.

    Parameters
    ----------
    network : Module
    schedule : NoiseSchedule
    brain : Tensor of shape (B, T, D)
        Backbone tokens, as they are.
    clean : Tensor of shape (B, T, D)
        Target embeddings, multiplied by the image embedding scale.
    draws : Draws
        Of the B rows.

    Returns
    -------
    losses : float32 Tensor of shape (B,), squared scaled units
        Mean over tokens and their entries.

    Notes
    -----
    Ramesh et al. 2022 (arXiv:2204.06125), equation 2: predicting the clean embedding works better
    than predicting the noise.
    """
    noised = schedule.add_noise(clean, draws.noise, draws.step)
    estimate: Tensor = network(noised, draws.step, brain, **draws.drops)
    return (estimate.float() - clean.float()).square().flatten(1).mean(dim=1)
