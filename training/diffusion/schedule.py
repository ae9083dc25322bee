"""Noise schedule: how much of the signal is left at each diffusion step.

The numbers are diffusers' own (the only import of diffusers in this package), kept as one table
so that the samplers beside it stay plain functions. The networks predict the clean embedding
(``prediction_type="sample"`` in diffusers).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NoiseSchedule:
    """Signal left after each step of the forward process.

    Parameters
    ----------
    alphas_cumprod : float64 Tensor of shape (n_steps,), decreasing, in (0, 1)
        Share of the variance that is still signal: ``x_t = sqrt(a) x_0 + sqrt(1 - a) noise``
        (Ho et al. 2020, arXiv:2006.11239, equation 4).
    """

    alphas_cumprod: Tensor

    @property
    def n_steps(self) -> int:
        """Number of steps; step ``n_steps - 1`` is almost pure noise."""
        return len(self.alphas_cumprod)

    def add_noise(self, clean: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """Return the noised embeddings at given steps.

        Parameters
        ----------
        clean, noise : Tensor of shape (B, ...)
        step : LongTensor of shape (B,), in [0, n_steps)
        """
        left = self.alphas_cumprod.to(clean.device)[step]
        left = left.reshape(-1, *(1,) * (clean.ndim - 1))
        return left.sqrt().to(clean) * clean + (1 - left).sqrt().to(clean) * noise


def cosine_schedule(n_steps: int) -> NoiseSchedule:
    """Return the cosine schedule, from diffusers' ``squaredcos_cap_v2``.

    Nichol & Dhariwal 2021 (arXiv:2102.09672), equation 17, with betas capped at 0.999.
    """
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    if n_steps < 1:
        raise ValueError(f"n_steps is {n_steps}, expected at least 1.")
    scheduler = DDPMScheduler(
        num_train_timesteps=n_steps, beta_schedule="squaredcos_cap_v2", prediction_type="sample"
    )
    return NoiseSchedule(torch.cumprod(1 - scheduler.betas.double(), dim=0))
