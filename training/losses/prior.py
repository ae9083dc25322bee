"""Loss of the diffusion prior: the squared error of the estimate of the clean embedding."""

from __future__ import annotations

import torch
from torch import Tensor

from ..diffusion.schedule import NoiseSchedule
from ..models.prior import PriorNetwork


def prior_loss(
    network: PriorNetwork,
    schedule: NoiseSchedule,
    brain: Tensor,
    clean: Tensor,
    *,
    step: Tensor,
    noise: Tensor,
    drop_brain: Tensor,
) -> Tensor:
    """Return the mean squared error of the clean embedding, estimated from its noised version.

    Parameters
    ----------
    network : PriorNetwork
    schedule : NoiseSchedule
    brain : Tensor of shape (B, T, D)
        Backbone tokens, scaled units.
    clean : Tensor of shape (B, T, D)
        Target embeddings, multiplied by the image embedding scale.
    step : LongTensor of shape (B,)
    noise : Tensor of shape (B, T, D), standard normal
    drop_brain : bool Tensor of shape (B,)
        Rows trained without the brain, for classifier-free guidance.

    Returns
    -------
    loss : scalar Tensor, squared scaled units

    Notes
    -----
    Ramesh et al. 2022 (arXiv:2204.06125), equation 2: predicting the clean embedding works better
    than predicting the noise.
    """
    noised = schedule.add_noise(clean, noise, step)
    estimate = network(noised, step, brain, drop_brain=drop_brain)
    return torch.nn.functional.mse_loss(estimate, clean)
