"""Flow matching, as plain functions over a network that estimates the clean picture.

Time runs from 0, where a picture is noise, to 1, where it is clean; in between it is the straight
line of the two. The network sees a noised picture and estimates the clean one; that estimate says
in which direction the line goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

# (noised (B, C, h, w), time (B,)) -> estimate of the clean pictures, (B, C, h, w).
Estimator = Callable[[Tensor, Tensor], Tensor]

# The loss divides by what is left of the way; less than this of it counts as this: the clip of
# Li & He 2025 (arXiv:2511.13720).
LEAST_WAY = 0.05


def draw_times(
    n: int, generator: torch.Generator, *, location: float, scale: float, device: torch.device
) -> Tensor:
    """Draw times of a logit-normal distribution, float32 of shape (n,), in (0, 1).

    Notes
    -----
    Esser et al. 2024 (arXiv:2403.03206), section 3.1: the middle of the way, where the estimate is
    hardest, is seen more often than its ends. ``location`` above 0 moves it to the clean end.
    """
    normal = torch.randn(n, generator=generator, device=device)
    return torch.sigmoid(location + scale * normal)


def interpolate(noise: Tensor, clean: Tensor, time: Tensor) -> Tensor:
    """Return the point of each line at a time: ``(1 - t) noise + t clean``.

    Parameters
    ----------
    noise, clean : Tensor of shape (B, ...)
    time : Tensor of shape (B,), in [0, 1]

    Notes
    -----
    The conditional path of optimal transport: Lipman et al. 2023 (arXiv:2210.02747), equation 22
    with a smallest deviation of 0; rectified flow of Liu et al. 2023 (arXiv:2209.03003), section 2.
    """
    return torch.lerp(noise, clean, _like(time, clean))


def velocity_of(estimate: Tensor, noised: Tensor, time: Tensor) -> Tensor:
    """Return the velocity that leads from noised pictures to estimates of the clean ones at time 1.

    Parameters
    ----------
    estimate, noised : Tensor of shape (B, ...)
    time : Tensor of shape (B,), in [0, 1)
    """
    return (estimate - noised) / _like(1 - time, noised)


def flow_loss(estimate: Tensor, clean: Tensor, time: Tensor) -> Tensor:
    """Return the mean squared error of the velocity, of each picture, in the pictures' own unit.

    Parameters
    ----------
    estimate, clean : Tensor of shape (B, ...)
    time : Tensor of shape (B,), in [0, 1]

    Returns
    -------
    losses : Tensor of shape (B,)

    Notes
    -----
    Lipman et al. 2023, equation 23. Estimate and truth start from the same noised picture, so the
    error of the velocity is that of the clean picture over what is left of the way. That a small
    network learns the clean picture sooner than the velocity, which holds all of the noise, is the
    observation of Li & He 2025 (arXiv:2511.13720).
    """
    error = (estimate - clean) / _like(1 - time, clean).clamp_min(LEAST_WAY)
    return error.square().flatten(1).mean(dim=1)


def integrate(estimate: Estimator, start: Tensor, *, begin: float, n_steps: int) -> Tensor:
    """Follow the flow from a time to 1, in equal steps.

    Parameters
    ----------
    estimate : callable
    start : Tensor of shape (B, C, h, w)
        Noised pictures of time ``begin``.
    begin : float, in [0, 1)
    n_steps : int, at least 1
        All but the last take two evaluations, the last one takes one.

    Returns
    -------
    pictures : Tensor of shape (B, C, h, w)

    Notes
    -----
    Heun's method, as Karras et al. 2022 (arXiv:2206.00364), algorithm 1, use it: second order, and
    plain Euler to the end, where the velocity isn't defined. The last step lands on the estimate.
    """
    if n_steps < 1 or not 0 <= begin < 1:
        raise ValueError(f"n_steps {n_steps} from time {begin}: expected 1 or more, from [0, 1).")
    times = torch.linspace(begin, 1.0, n_steps + 1, dtype=torch.float64).tolist()
    current = start
    for now, following in pairwise(times[:-1]):
        velocity = _velocity_at(estimate, current, now)
        reached = current + (following - now) * velocity
        velocity = (velocity + _velocity_at(estimate, reached, following)) / 2
        current = current + (following - now) * velocity
    return estimate(current, _times(times[-2], current))


def guide(conditioned: Tensor, blind: Tensor, guidance: float) -> Tensor:
    """Return the estimate with a condition, pushed away from the one without.

    Notes
    -----
    Classifier-free guidance: Ho & Salimans 2022 (arXiv:2207.12598), equation 6 with 1 + w for
    ``guidance``. Estimates of the clean picture may be mixed like velocities: these are linear in
    them.
    """
    return torch.lerp(blind, conditioned, guidance)


def _velocity_at(estimate: Estimator, noised: Tensor, time: float) -> Tensor:
    times = _times(time, noised)
    return velocity_of(estimate(noised, times), noised, times)


def _times(time: float, pictures: Tensor) -> Tensor:
    return torch.full((len(pictures),), time, device=pictures.device)


def _like(values: Tensor, pictures: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (pictures.ndim - 1))
