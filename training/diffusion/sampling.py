"""Samplers of the diffusion prior, as plain functions over a denoiser.

A denoiser maps noised embeddings ``(B, ...)`` and a step ``(B,)`` to its estimate of the clean
ones. Every row draws its noise from a generator of its own, so that one image's sample depends on
neither its neighbours nor the batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .schedule import NoiseSchedule

Denoiser = Callable[[Tensor, Tensor], Tensor]


def draw_noise(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """Return standard normal noise of shape (B, *shape), row ``i`` from ``generators[i]``.

    Generators live on the CPU, so that a seed gives the same noise on every device.
    """
    return torch.stack([torch.randn(*shape, generator=generator) for generator in generators])


def sample_ddpm(
    denoise: Denoiser,
    schedule: NoiseSchedule,
    shape: Sequence[int],
    generators: Sequence[torch.Generator],
    *,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Sample by the full ancestral chain, one draw of noise a step.

    Parameters
    ----------
    denoise : callable
        ``denoise(noised (B, *shape), step (B,)) -> clean (B, *shape)``.
    schedule : NoiseSchedule
    shape : sequence of int
        Shape of one sample.
    generators : sequence of B torch.Generator, on the CPU
    device : torch device

    Returns
    -------
    samples : float32 Tensor of shape (B, *shape)

    Notes
    -----
    Ho et al. 2020 (arXiv:2006.11239), equations 6 and 7.
    """
    kept = [1.0, *schedule.alphas_cumprod.tolist()]
    current = draw_noise(generators, shape).to(device)
    for step in reversed(range(schedule.n_steps)):
        now, before = kept[step + 1], kept[step]
        alpha = now / before
        beta = 1 - alpha
        clean = denoise(current, _steps(step, current))
        mean_of_clean = before**0.5 * beta / (1 - now)
        mean_of_current = alpha**0.5 * (1 - before) / (1 - now)
        current = mean_of_clean * clean + mean_of_current * current
        if step:
            variance = beta * (1 - before) / (1 - now)
            current = current + variance**0.5 * draw_noise(generators, shape).to(device)
    return current


def sample_ddim(
    denoise: Denoiser,
    schedule: NoiseSchedule,
    shape: Sequence[int],
    generators: Sequence[torch.Generator],
    *,
    n_steps: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Sample in few deterministic steps; noise is drawn once, at the start.

    Parameters
    ----------
    denoise, schedule, shape, generators, device
        As in `sample_ddpm`.
    n_steps : int
        Evaluations of the denoiser, in [1, schedule.n_steps], spread evenly from the last step.

    Returns
    -------
    samples : float32 Tensor of shape (B, *shape)

    Notes
    -----
    Song et al. 2021 (arXiv:2010.02502), equation 12 with sigma 0. At the last evaluation the
    estimate of the clean embedding is returned as it is.
    """
    if not 1 <= n_steps <= schedule.n_steps:
        raise ValueError(f"n_steps is {n_steps}, expected 1 to {schedule.n_steps}.")
    steps = torch.linspace(schedule.n_steps - 1, 0, n_steps).round().long().tolist()
    current = draw_noise(generators, shape).to(device)
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        now = float(schedule.alphas_cumprod[step])
        clean = denoise(current, _steps(step, current))
        if following is None:
            return clean
        before = float(schedule.alphas_cumprod[following])
        noise = (current - now**0.5 * clean) / (1 - now) ** 0.5
        current = before**0.5 * clean + (1 - before) ** 0.5 * noise
    raise AssertionError("steps is never empty")


def _steps(step: int, current: Tensor) -> Tensor:
    return torch.full((len(current),), step, dtype=torch.long, device=current.device)
